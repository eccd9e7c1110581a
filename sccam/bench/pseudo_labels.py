"""Suite `pseudo_labels`: labels of tagged images, networks included: the job of `sccam infer` against the stages.

    stages     eager torch networks and the paper forms of sccam/stages, image after image: the reference
    authors    the same maps, then a dense matrix and pydensecrf: what people run today
    job        ONNX files of the run (or its weights, where a row says torch), compiled kernels, steps that overlap

Every way reads the same images in every round, one after the other, and gives labels, which are compared in the run.
`steps` says where the time goes, in milliseconds of one thread an image.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from sccam.artifacts import RunFolder
from sccam.bench import Options, eager
from sccam.bench.crf import library_crf
from sccam.bench.harness import Contestant, Result, Work, compare
from sccam.data.images import read_image
from sccam.errors import DataError
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.saved import load_network
from sccam.runtime import backends
from sccam.runtime.backends import Backends
from sccam.runtime.image_tags import Tags
from sccam.runtime.network_torch import affinity_features, score_views
from sccam.runtime.pipeline import stream
from sccam.runtime.pseudo_labels import LabelRecipe, PseudoLabelJob, read_recipe
from sccam.runtime.sources import Source, sources
from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import AFFINITY_STRIDE, neighbour_offsets
from sccam.stages.cam import activation_map
from sccam.stages.crf import dense_crf
from sccam.stages.pseudo_label import label_index, sharpened
from sccam.stages.walk import background_score, divided_by_maximum, pool_to_grid, random_walk, upsample
from sccam.structures import ByteArray

IMAGES = 24  # in a round
QUICK_IMAGES = 4
SETS = 3  # of images, in turn
LIMIT = 1e-3  # share of pixels with another label
GOAL = 10.0

Labels = list[ByteArray]


class Steps:
    """Where the time goes: milliseconds an image by step, summed over threads."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._images = 0

    def timed(self, step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time added to the step."""

        def run(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **named)
            self._seconds[step] += time.perf_counter() - started
            return result

        return run

    def image(self, ms: dict[str, float] | None = None) -> None:
        """One more image, with times that were taken elsewhere [ms]."""
        self._images += 1
        for step, value in (ms or {}).items():
            self._seconds[step] += value / 1e3

    def ms(self) -> dict[str, float]:
        """Of all images so far, the mean."""
        return {step: round(1e3 * value / max(1, self._images), 3) for step, value in self._seconds.items()}


def run(options: Options) -> Iterator[list[Result]]:
    """One table."""
    assert options.run is not None and options.folder is not None and options.tags is not None
    device = options.device
    classes = load_network(RunFolder(options.run).weights("cam_net"), Compute.resolve("cpu", "fp32"))[1].classes
    tags = Tags(options.tags, classes)
    count = QUICK_IMAGES if options.quick else IMAGES
    tagged = [source for source in sources(options.folder) if _has_tags(tags, source)]
    chosen = tagged[:: max(1, len(tagged) // (count * SETS))][: count * SETS]
    groups = [group for n in range(0, len(chosen), count) if len(group := chosen[n : n + count]) == count]
    recipe = read_recipe(options.run)
    crf = library_crf()
    contestants = [
        chain("stages", options.run, recipe, tags, groups, paper_form, device),
        chain(
            "authors" if crf == "pydensecrf" else f"authors, but the CRF {crf}", options.run, recipe, tags, groups,
            partial(authors_way, crf=crf, device=device), device, judged=False,
        ),
        job("job, onnxruntime", options, "onnxruntime", Backends(), groups, goal=GOAL),
        job("job, torch", options, "torch", Backends(), groups),
    ]  # fmt: skip
    if device == "cuda":
        cupy = Backends("cupy", "cupy", "cupy", "cupy", "auto")
        contestants.append(job("job, torch, kernels cupy", options, "torch", cupy, groups))
    yield compare(
        "pseudo_labels", f"{options.folder.resolve().parent.name}, {count} images", contestants, inputs=len(groups),
        quick=options.quick, judge=contestants[0].run, error=differing, limit=LIMIT,
        agreement=lambda a, b: 1 - differing(a, b), device=device,
        work=Work(count, gflop=count * network_gflop(options.run, recipe, groups[0])),
    )  # fmt: skip


def _has_tags(tags: Tags, source: Source) -> bool:
    try:
        return len(tags.of(source)) > 0
    except DataError:
        return False


def job(
    name: str, options: Options, backend: str, kernels: Backends, groups: list[list[Source]], goal: float | None = None
) -> Contestant:
    """The job of `sccam infer`; labels in the order of the images."""
    assert options.run is not None
    opened, steps = PseudoLabelJob(options.run, options.tags, backend, device=options.device, kernels=kernels), Steps()
    opened.time_kernels(steps.timed)

    def labels(n: int) -> Labels:
        found = {}
        for done in stream(opened, groups[n]):
            assert done.result is not None and done.loaded is not None, done.error
            found[done.source.name] = done.result.labels
            steps.image(done.loaded.ms)
        return [found[source.name] for source in groups[n]]

    return Contestant(name, labels, goal=goal, steps=steps.ms)


def chain(
    name: str,
    run: Path,
    recipe: LabelRecipe,
    tags: Tags,
    groups: list[list[Source]],
    after: Callable[..., ByteArray],
    device: str = "cpu",
    *,
    judged: bool = True,
) -> Contestant:
    """Maps and affinity features in eager torch, then `after`."""
    compute, steps = Compute.resolve(device, "fp32"), Steps()
    cam_net, manifest = load_network(RunFolder(run).weights("cam_net"), compute)
    affinity_net, _ = load_network(RunFolder(run).weights("affinity_net"), compute)
    assert isinstance(cam_net, CamNet) and isinstance(affinity_net, AffinityNet)
    views = score_views(cam_net, compute)
    read, maps_of = steps.timed("read", read_image), steps.timed("maps", activation_map)
    features = steps.timed("affinity network", affinity_features(affinity_net, compute))
    fields = steps.timed("affinities", affinity_field)
    offsets = neighbour_offsets(recipe.radius)

    @torch.inference_mode()
    def label(source: Source) -> ByteArray:
        steps.image()
        image, classes = read(source.path), tags.of(source)
        maps = maps_of(image, classes, views, recipe.cam, multiple=manifest.stride)
        field = fields(features(image).cpu(), offsets, AFFINITY_STRIDE)
        return after(image, maps.scores, classes, field, recipe, steps)

    return Contestant(name, lambda n: [label(source) for source in groups[n]], judged=judged, steps=steps.ms)


def paper_form(image: ByteArray, maps: Any, classes: Any, field: Any, recipe: LabelRecipe, steps: Steps) -> ByteArray:
    """Walk, CRF and labels as the stages write them."""
    return _labelled(random_walk, dense_crf, image, maps, classes, field, recipe, steps)


def authors_way(
    image: ByteArray, maps: Any, classes: Any, field: Any, recipe: LabelRecipe, steps: Steps, *,
    crf: str = "pydensecrf", device: str = "cpu",
) -> ByteArray:  # fmt: skip
    """Walk by a dense matrix, CRF by pydensecrf."""
    refine = backends.row("crf", crf)
    walk = partial(eager.dense_walk, device=device)
    return _labelled(walk, lambda i, p, c: refine([i], [[p]], c)[0][0], image, maps, classes, field, recipe, steps)


def _labelled(
    walk: Callable[..., Any], crf: Callable[..., Any], image: ByteArray, maps: Any, classes: Any, field: Any,
    recipe: LabelRecipe, steps: Steps,
) -> ByteArray:  # fmt: skip
    probabilities = steps.timed("walk", _scores_by)(walk, image, maps, field, recipe)
    if recipe.pseudo_label.use_crf:
        probabilities = steps.timed("crf", crf)(image, probabilities, recipe.pseudo_label.crf)
    return label_index(probabilities, classes, recipe.pseudo_label.confidence)


def _scores_by(walk: Callable[..., Any], image: ByteArray, maps: Any, field: Any, recipe: LabelRecipe) -> Any:
    """Probabilities before the CRF [P+1 H W]."""
    size = (image.shape[0], image.shape[1])
    full = upsample(maps, size, recipe.cam.grid_stride)
    channels = np.concatenate([background_score(full, recipe.alpha)[None], full])
    walked = walk(pool_to_grid(channels, field.stride, recipe.walk.border), field, recipe.walk)
    if recipe.walk.normalise:
        walked = divided_by_maximum(walked)
    return sharpened(upsample(walked, size, field.stride), recipe.pseudo_label.sharpen)


def network_gflop(run: Path, recipe: LabelRecipe, group: list[Source]) -> float:
    """Of both networks for one image, the mean of a few; by PyTorch's count."""
    compute = Compute.resolve("cpu", "fp32")
    cam_net, manifest = load_network(RunFolder(run).weights("cam_net"), compute)
    affinity_net, _ = load_network(RunFolder(run).weights("affinity_net"), compute)
    assert isinstance(cam_net, CamNet) and isinstance(affinity_net, AffinityNet)
    views, features = score_views(cam_net, compute), affinity_features(affinity_net, compute)
    counts = []
    for source in group[:3]:
        image = read_image(source.path)
        with FlopCounterMode(display=False) as counter:
            activation_map(image, np.zeros(1, np.int32), views, recipe.cam, multiple=manifest.stride)
            features(image)
        counts.append(1e-9 * counter.get_total_flops())
    return statistics.fmean(counts)


def differing(found: Labels, expected: Labels) -> float:
    """Share of all pixels with another label."""
    pixels = sum(labels.size for labels in expected)
    return float(sum((a != b).sum() for a, b in zip(found, expected, strict=True)) / pixels)
