"""Suite `scaling`: how cost grows with what there is to do. A case is named "WHAT = X"; where results are recorded, the
exponent of each WHAT is fitted. Only time counts here: the other suites judge the same functions.

The network is DeepLab on EfficientNet-Lite0 with random weights; or, where a run is given, its segmenter, and then its
exported file in ONNX Runtime beside it.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sccam.artifacts import Manifest
from sccam.bench import Options, eager
from sccam.bench.crf import library_crf
from sccam.bench.harness import Contestant, Result, Work, compare
from sccam.bench.inputs import SIZE, class_scores, of_size
from sccam.bench.kmeans import planted
from sccam.bench.merge import network_maps
from sccam.bench.training import segmenter
from sccam.bench.walk import GRIDS, drawn_case
from sccam.errors import DataError
from sccam.nets.compute import Compute
from sccam.recipe import load_config
from sccam.runtime import backends, network_onnxruntime
from sccam.runtime.folder import predict_to
from sccam.runtime.network import MOST_LANES, Network, OpenedNetwork, open_network
from sccam.runtime.network_torch import network_of
from sccam.runtime.pool import worker_count
from sccam.runtime.segmenter import SegmentJob
from sccam.runtime.sources import sources
from sccam.stages.cluster import ClusterConfig
from sccam.stages.crf import PSA
from sccam.stages.walk import WalkConfig
from sccam.structures import ByteArray

QUICK_VALUES = 3  # of each tuple below, the smallest; an exponent is fitted to three and more
ROUNDS = 5
Size = tuple[int, int]

CRF_SIZES: tuple[Size, ...] = ((188, 250), (266, 354), (375, 500), (530, 707), (750, 1000))  # [px]
FEW = 3  # labels of a CRF and channels of a walk where something else varies: background and two classes
LABELS = (2, 4, 8, 16, 21)
WALK_GRIDS: tuple[Size, ...] = ((24, 32), (34, 45), (47, 63), (67, 89), (94, 125))  # [cells]
CHANNELS = (1, 2, 4, 8, 16, 32)
STEPS = (64, 128, 256, 512, 1024, 2048)
CLASSES = (1, 2, 4, 8, 16)
POINTS = (125, 250, 500, 1000, 2000)
POINT_CHANNELS, CLUSTERS = 1280, 5  # of EfficientNet-Lite0
NETWORK_SIZES: tuple[Size, ...] = ((192, 256), (256, 352), (384, 512), (544, 704), (768, 1024))  # [px]
BATCHES = (1, 2, 4, 8, 16)
BATCH_SIZE: Size = (256, 320)  # [px] where the batch varies
IMAGES = (100, 200, 400, 800, 1600, 3200)
TINY: Size = (32, 32)  # [px] of the images of a folder: what is timed is all that surrounds a network

Ways = Mapping[str, Callable[[], Any]]  # name of a row -> its work; the baseline first


def run(options: Options) -> Iterator[list[Result]]:
    """A table for each value of everything that varies."""
    photo, few, device = options.images[0], options.quick, options.device
    for size in _values(CRF_SIZES, few):
        yield _timed(f"dense CRF, {FEW} labels, megapixels", _mega(size), crfs(photo, size, FEW, device), options)
    for labels in _values(LABELS, few):
        yield _timed(f"dense CRF, {_text(SIZE)} pixels, labels", labels, crfs(photo, SIZE, labels, device), options)
    psa, steps = GRIDS["psa"], WalkConfig().steps
    for grid in _values(WALK_GRIDS, few):
        ways = walks(grid, FEW, steps, device)
        yield _timed(f"random walk, {FEW} channels, {steps} steps, cells", grid[0] * grid[1], ways, options)
    for channels in _values(CHANNELS, few):
        ways = walks(psa, channels, steps, device)
        yield _timed(f"random walk, {_text(psa)} cells, {steps} steps, channels", channels, ways, options)
    for count in _values(STEPS, few):
        ways = walks(psa, FEW, count, device)
        yield _timed(f"random walk, {_text(psa)} cells, {FEW} channels, steps", count, ways, options)
    for classes in _values(CLASSES, few):
        yield _timed(f"map merging, {_text(SIZE)} pixels, classes", classes, merges(classes, device), options)
    for points in _values(POINTS, few):
        yield _timed(f"k-means, {POINT_CHANNELS} channels, K {CLUSTERS}, points", points, k_means(points), options)
    yield from _networks(photo, options)
    yield from _folders(options)


def crfs(photo: ByteArray, size: Size, labels: int, device: str) -> Ways:
    """One image."""
    (image,) = of_size([photo], size)
    unaries = [[class_scores(image, labels, 0)]]
    names = dict.fromkeys([library_crf(), *_rows("crf", device)])
    return {name: partial(backends.row("crf", name), [image], unaries, PSA) for name in names}


def walks(grid: Size, channels: int, steps: int, device: str) -> Ways:
    """One image, matrices and all."""
    config = WalkConfig(steps=steps)
    scores, affinity = drawn_case(grid, channels, 0)
    rows = {name: partial(backends.row("walk", name), [scores], [affinity], config) for name in _rows("walk", device)}
    return {"torch sparse": partial(eager.sparse_walk, scores, affinity, config, device), **rows}


def merges(classes: int, device: str) -> Ways:
    """The maps of all scales and mirror images of one image, at every pixel."""
    views = [np.ascontiguousarray(view[:, :classes]) for view in network_maps(0)]
    names = dict.fromkeys(["portable", *_rows("merge", device)])
    return {name: partial(backends.row("merge", name), views, SIZE, flip=True) for name in names}


def k_means(points: int) -> Ways:
    """All restarts of one class."""
    config, data = ClusterConfig(k=CLUSTERS), planted(points, POINT_CHANNELS, CLUSTERS, 0)
    settings = {"n_init": config.n_init, "max_iterations": config.max_iterations, "seed": 0}
    names = dict.fromkeys(["sklearn", *_rows("k_means", "cpu")])
    return {name: partial(backends.row("k_means", name), data, CLUSTERS, **settings) for name in names}


def networks(options: Options) -> tuple[str, dict[str, Network]]:
    """What the network is, and what runs it."""
    if options.run is not None:
        opened = open_network(options.run, "segmenter", "torch", device=options.device)
        found: dict[str, Network] = {"eager torch": opened.run}
        path = options.run / "export" / "segmenter.onnx"
        here = importlib.util.find_spec("onnxruntime") is not None and path.is_file()
        if here and (options.device == "cpu" or network_onnxruntime.has_cuda()):
            found["ONNX Runtime"] = network_onnxruntime.open_onnx(path, options.device)
        return f"DeepLab {opened.manifest.backbone}", found
    config, compute = load_config("photos", []), Compute.resolve(options.device, "auto")
    torch.manual_seed(0)
    net: Any = segmenter(config, of_size(options.images[:1], BATCH_SIZE), "cpu").net
    compute.place(net.eval())
    return f"DeepLab {config.network.backbone}", {"eager torch": network_of(net, compute)}


def _networks(photo: ByteArray, options: Options) -> Iterator[list[Result]]:
    name, rows = networks(options)
    for size in _values(NETWORK_SIZES, options.quick):
        images = np.stack(of_size([photo], size))
        ways: Ways = {row: partial(network, images) for row, network in rows.items()}
        yield _timed(f"{name}, megapixels", _mega(size), ways, options)
    for batch in _values(BATCHES, options.quick):
        images = np.stack(of_size([photo] * batch, BATCH_SIZE))
        ways = {row: partial(network, images) for row, network in rows.items()}
        yield _timed(f"{name}, {_text(BATCH_SIZE)} pixels, batch", batch, ways, options, images=batch)


def _folders(options: Options) -> Iterator[list[Result]]:
    """Tiny images from files to masks, with a network that costs next to nothing."""
    photos, job, made = of_size(options.images, TINY), SegmentJob(stand_in()), 0
    with tempfile.TemporaryDirectory() as folder:
        for count in sorted(_values(IMAGES, options.quick)):
            for n in range(made, count):
                Image.fromarray(photos[n % len(photos)]).save(Path(folder, f"{n}.jpg"))
            made, ways = count, {"predict_to": partial(_segment, job, Path(folder), count)}
            yield _timed("segmentation of a folder, images", count, ways, options, images=count)


def _segment(job: SegmentJob, folder: Path, count: int) -> None:
    with tempfile.TemporaryDirectory() as out:
        done = predict_to(job, sources(folder), out).done
    if done != count:
        raise DataError(f"{done} of {count} images were labelled", where=folder)


def stand_in() -> OpenedNetwork:
    """A segmenter by formula: a pixel is an object where it is bright."""
    stride = 8
    manifest = Manifest(
        file="", sha256="", kind="segmenter", backbone="none", classes=("bright",), mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), stride=stride, made_by="", made_from={"pad_multiple": stride},
    )  # fmt: skip

    def logits(images: ByteArray) -> dict[str, np.ndarray]:
        bright = images[:, stride // 2 :: stride, stride // 2 :: stride].mean(axis=-1, dtype=np.float32) / 255 - 0.5
        return {"logits": np.stack([-bright, bright], axis=1)}

    return OpenedNetwork(logits, manifest, "formula", Path("formula"), lanes=min(worker_count(0), MOST_LANES))


def _timed(what: str, x: float, ways: Ways, options: Options, images: int = 1) -> list[Result]:
    contestants = [Contestant(name, lambda _, work=work: work()) for name, work in ways.items()]  # type: ignore[misc]
    return compare(
        "scaling", f"{what} = {x:g}", contestants, inputs=1, quick=options.quick, judge=None, device=options.device,
        work=Work(images), x=x, rounds=ROUNDS,
    )  # fmt: skip


def _values(values: tuple[Any, ...], few: bool) -> tuple[Any, ...]:
    return values[:QUICK_VALUES] if few else values


def _rows(work: str, device: str) -> list[str]:
    """What "auto" takes on this machine; and the GPU's, where that is the device."""
    automatic = getattr(backends.Backends().resolved(), work)
    gpu = device == "cuda" and "cupy" in backends.TABLE[work] and backends.missing("cupy") is None
    return [automatic, "cupy"] if gpu else [automatic]


def _mega(size: Size) -> float:
    return round(size[0] * size[1] / 1e6, 4)


def _text(size: Size) -> str:
    return f"{size[0]} x {size[1]}"
