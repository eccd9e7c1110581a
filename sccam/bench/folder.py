"""Suite `folder`: a folder of images to masks on disk, by `sccam infer` and by the loop that people write with PyTorch.

    eager loop       each image: read, network in eager fp32, logits enlarged to every pixel, argmax, palette PNG
    tuned loop       the same, channels_last and bf16 or fp16
    infer, ...       the job of `sccam infer` with a file of the run

Labels are compared with those of the eager loop. Exports of less precision may differ as their parity says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sccam.artifacts import RunFolder
from sccam.bench import Options
from sccam.bench.harness import Contestant, Result, Work, compare
from sccam.data.masks import read_mask
from sccam.data.transforms import pad_to_multiple
from sccam.errors import SccamError
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.nets.saved import load_network
from sccam.runtime.folder import predict_to
from sccam.runtime.network import open_network
from sccam.runtime.network_torch import PAD_MULTIPLE, mean_colour
from sccam.runtime.segmenter import SegmentJob
from sccam.runtime.sources import Source, sources
from sccam.stages.segment import upsample_logits
from sccam.structures import ByteArray

IMAGES, QUICK_IMAGES = 48, 8
ROUNDS = 7
LIMITS = {"fp32": 1e-3, "half": 0.01, "int8": 0.05}  # share of pixels with another label
FILES = {"fp32": "segmenter.onnx", "fp16": "segmenter.fp16.onnx", "int8": "segmenter.int8.onnx"}

Masks = dict[str, ByteArray]


def run(options: Options) -> Iterator[list[Result]]:
    """One table."""
    assert options.run is not None and options.folder is not None
    found = list(sources(options.folder))
    count = min(len(found), QUICK_IMAGES if options.quick else IMAGES)
    found = found[:: max(1, len(found) // count)][:count]
    half = "bf16" if options.device == "cpu" else "fp16"
    contestants = [
        Contestant("eager loop", written(loop(options.run, options.device, "fp32", found))),
        Contestant(
            f"tuned loop, {half}", written(loop(options.run, options.device, half, found)), strong=True,
            limit=LIMITS["half"],
        ),
        Contestant("infer, torch", written(infer(options.run, "torch", options.device, found))),
    ]  # fmt: skip
    for precision, name in FILES.items():
        file = options.run / "export" / name
        if not file.is_file():
            continue
        try:
            way = written(infer(file, "onnxruntime", options.device, found))
        except SccamError as error:  # such as a runtime without its CUDA provider
            print(f"not run: {file.name}: {error.what}", flush=True)
            continue
        limit = LIMITS.get(precision, LIMITS["half"])
        contestants.append(Contestant(f"infer, onnxruntime {precision}", way, limit=limit))
    yield compare(
        "folder", f"{options.folder.resolve().parent.name}, {count} images to masks on disk", contestants, inputs=1,
        quick=options.quick, judge=lambda n: contestants[0].run(n)(), error=differing, limit=LIMITS["fp32"],
        agreement=lambda a, b: 1 - differing(a, b), work=Work(count), device=options.device, rounds=ROUNDS,
    )  # fmt: skip


def written(work: Callable[[Path], None]) -> Callable[[int], Callable[[], Masks]]:
    """Runs the work in a new folder; its masks are read only where they are compared, not while time is taken."""
    kept: list[tempfile.TemporaryDirectory[str]] = []

    def run(n: int) -> Callable[[], Masks]:
        kept[:] = [tempfile.TemporaryDirectory()]  # the folder before goes
        out = Path(kept[0].name)
        work(out)
        masks = out / "masks"
        return lambda: {p.relative_to(masks).as_posix(): read_mask(p) for p in sorted(masks.rglob("*.png"))}

    return run


def infer(model: Path, backend: str, device: str, found: list[Source]) -> Callable[[Path], None]:
    """The job of `sccam infer`."""
    job = SegmentJob(open_network(model, "segmenter", backend, device=device))

    def work(out: Path) -> None:
        summary = predict_to(job, found, out)
        assert summary.done == len(found), summary

    return work


def loop(run: Path, device: str, precision: str, found: list[Source]) -> Callable[[Path], None]:
    """One image after the other, as a script would do it."""
    compute = Compute(device, precision)
    net, _ = load_network(RunFolder(run).weights("segmenter"), compute)
    assert isinstance(net, DeepLab)
    backbone, plain = net.backbone, precision == "fp32"
    if plain:
        net.to(memory_format=torch.contiguous_format)

    @torch.inference_mode()
    def labels(image: ByteArray) -> Any:
        padded = pad_to_multiple(image, PAD_MULTIPLE, mean_colour(backbone))
        inputs = compute.normalised(padded[None], backbone.mean, backbone.std)
        with compute.autocast():
            logits = net.multi_scale(inputs.contiguous() if plain else inputs)[-1]
        full = upsample_logits(logits.float(), (padded.shape[0], padded.shape[1]), (image.shape[0], image.shape[1]))
        return full[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    def work(out: Path) -> None:
        for source in found:
            with Image.open(source.path) as opened:
                image = np.asarray(opened.convert("RGB"))
            mask = Image.fromarray(labels(image)).convert("P")
            path = out / "masks" / f"{source.name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)

    return work


def differing(found: Callable[[], Masks], expected: Masks) -> float:
    """Share of all pixels with another label; all of them where a mask is missing."""
    ours = found()
    if ours.keys() != expected.keys():
        return 1.0
    pixels = sum(mask.size for mask in expected.values())
    return float(sum((ours[name] != mask).sum() for name, mask in expected.items()) / pixels)
