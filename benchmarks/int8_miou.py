"""What int8 costs a large segmenter in mIoU: DeepLab-v2 with ResNet-101, trained here and measured in every precision.

    python benchmarks/int8_miou.py RUN PHOTOS [--minutes 30]      # results/int8_miou.json

The network learns the pseudo labels of RUN, the photographs of its training, from random weights: no installed package
carries ImageNet weights for ResNet-101, so its mIoU is low, and only the differences between precisions are of use.
It trains at a quarter of the resolution of its grid (stride 32, bf16), and is measured at stride 8, as it would be
deployed. Masks are read for the measurement alone, of PHOTOS/val.txt.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from sccam.artifacts import Manifest, write_json
from sccam.bench.networks import RADIUS
from sccam.data.images import read_image
from sccam.data.masks import read_mask
from sccam.data.transforms import resize
from sccam.export.network import graph_of, in_precision, torch_network
from sccam.export.to_onnx import to_onnx
from sccam.nets.backbones import build_backbone
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.origin import commit, device_name
from sccam.runtime.folder import predict
from sccam.runtime.network import OpenedNetwork
from sccam.runtime.network_onnxruntime import session_of
from sccam.runtime.segmenter import SegmentJob, SegmentOptions
from sccam.runtime.sources import Source
from sccam.stages.evaluate import ConfusionMatrix, scores
from sccam.structures import IGNORE, ByteArray

RESULT = Path(__file__).resolve().parent / "results" / "int8_miou.json"
CROP, BATCH, SCALES = 160, 16, (0.6, 1.1)
LEARNING_RATE, WEIGHT_DECAY, WARM_UP = 1e-3, 1e-2, 0.05
TRAIN_STRIDE, TRAIN_RATES = 32, (1, 2, 3, 4)
STRIDE, RATES = 8, (4, 8, 12, 16)  # the same field of view
PRECISIONS = ("fp32", "fp16", "int8")

Pair = tuple[ByteArray, ByteArray]


def main() -> None:
    """Trains, measures, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--minutes", type=float, default=30.0)
    arguments = parser.parse_args()
    classes = tuple((arguments.photos / "classes.txt").read_text(encoding="utf-8").split())
    pairs = [
        (read_image(image_of(arguments.photos, path.stem)), read_mask(path))
        for path in sorted((arguments.run / "pseudo_labels").glob("*.png"))
    ]
    state, steps = trained(pairs, len(classes) + 1, arguments.minutes)
    net = DeepLab(build_backbone("resnet101", output_stride=STRIDE, weights="none"), len(classes) + 1, RATES, (1.0,))
    net.load_state_dict(renamed(state))
    manifest = Manifest(
        file="", sha256="", kind="segmenter", backbone="resnet101", classes=classes, mean=tuple(net.backbone.mean),
        std=tuple(net.backbone.std), stride=STRIDE, made_by="", made_from={"pad_multiple": 32, "radius": RADIUS},
        backend="onnx",
    )  # fmt: skip
    val = (arguments.photos / "val.txt").read_text(encoding="utf-8").split()
    graph = graph_of(net.eval(), manifest)
    base = to_onnx(graph, {"kind": manifest.kind, "classes": "\n".join(classes)})
    pictures = [image for image, _ in pairs]
    ways: dict[str, Any] = {"torch fp32": torch_network(graph)}
    ways |= {
        f"onnxruntime {precision}": session_of(in_precision(base, precision, pictures, net).SerializeToString())
        for precision in PRECISIONS
    }
    found = {name: labels_of(way, manifest, arguments.photos, val) for name, way in ways.items()}
    truth = {name: read_mask(arguments.photos / "masks" / f"{name}.png") for name in val}
    rows = [row(name, labels, found["torch fp32"], truth, classes) for name, labels in found.items()]
    facts = {"device": device_name(), "commit": commit(), "minutes": arguments.minutes, "steps": steps,
             "batch": BATCH, "images": {"train": len(pairs), "val": len(val)}}  # fmt: skip
    write_json(RESULT, {**facts, "rows": rows})
    print(json.dumps(rows, indent=1))


def trained(pairs: list[Pair], labels: int, minutes: float) -> tuple[dict[str, torch.Tensor], int]:
    """Weights after so many minutes, and steps."""
    torch.manual_seed(0)
    compute = Compute("cpu", "bf16")
    backbone = build_backbone("resnet101", output_stride=TRAIN_STRIDE, weights="none")
    net = DeepLab(backbone, labels, TRAIN_RATES, (1.0,))
    with torch.no_grad():
        for module in backbone.modules():
            if hasattr(module, "bn3"):  # branches begin at nothing
                module.bn3.weight.zero_()  # type: ignore[union-attr, operator]
    compute.place(net)
    optimiser = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    started, steps, losses = time.monotonic(), 0, []
    for images, truth in crops(pairs):
        spent = (time.monotonic() - started) / (60 * minutes)
        if spent >= 1:
            break
        rate = LEARNING_RATE * min(1.0, spent / WARM_UP) * 0.5 * (1 + math.cos(math.pi * spent))
        for group in optimiser.param_groups:
            group["lr"] = rate
        net.train()
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.train()
        optimiser.zero_grad(set_to_none=True)
        with compute.autocast():
            logits = net(compute.normalised(images, backbone.mean, backbone.std))
        full = F.interpolate(logits.float(), size=(CROP, CROP), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(full, torch.from_numpy(truth).long(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        steps += 1
        losses.append(float(loss.detach()))
        if steps % 20 == 0:
            print(f"step {steps}, {60 * minutes * spent:.0f} s, loss {np.mean(losses[-20:]):.3f}", flush=True)
    return net.state_dict(), steps


def crops(pairs: list[Pair]) -> Iterator[Pair]:
    """Endless batches of random crops, mirrored every second time."""
    rng = np.random.default_rng(0)
    while True:
        images = np.zeros((BATCH, CROP, CROP, 3), np.uint8)
        truth = np.full((BATCH, CROP, CROP), IGNORE, np.uint8)
        for n in range(BATCH):
            image, mask = pairs[rng.integers(len(pairs))]
            scale = rng.uniform(*SCALES)
            height, width = (max(CROP, round(side * scale)) for side in image.shape[:2])
            image = resize(image, (height, width))
            rows, columns = (np.arange(side) * mask.shape[k] // side for k, side in enumerate((height, width)))
            mask = mask[rows][:, columns]
            top, left = rng.integers(height - CROP + 1), rng.integers(width - CROP + 1)
            window = np.s_[top : top + CROP, left : left + CROP]
            flip = np.s_[:, :: 1 if rng.random() < 0.5 else -1]
            images[n], truth[n] = image[window][flip], mask[window][flip]
        yield images, truth


def renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Convolutions of the pyramid are named by their rates, which grow as the stride falls."""
    pairs = {f"pyramid.rate{old}.": f"pyramid.rate{new}." for old, new in zip(TRAIN_RATES, RATES, strict=True)}
    found = {}
    for name, tensor in state.items():
        start = next((old for old in pairs if name.startswith(old)), None)
        found[name if start is None else pairs[start] + name[len(start) :]] = tensor
    return found


def labels_of(run: Any, manifest: Manifest, photos: Path, names: list[str]) -> dict[str, ByteArray]:
    """Labels of every image by `sccam infer`'s job."""
    job = SegmentJob(OpenedNetwork(run, manifest, "onnxruntime", Path("net.onnx")), SegmentOptions())
    found = predict(job, (Source(image_of(photos, name), name) for name in names))
    return {result.source.name: result.labels for result in found if result.labels is not None}


def image_of(photos: Path, name: str) -> Path:
    """The image file of an id."""
    return next((photos / "images").glob(f"{name}.*"))


def row(
    name: str,
    labels: dict[str, ByteArray],
    reference: dict[str, ByteArray],
    truth: dict[str, ByteArray],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    """mIoU, and the share of pixels with the label that fp32 in torch gives."""
    matrix = ConfusionMatrix(len(classes))
    for image, mask in truth.items():
        matrix.add(labels[image], mask)
    same = np.mean([(labels[image] == reference[image]).mean() for image in truth])
    return {
        "way": name,
        "miou": round(100 * (scores(matrix, classes).miou or 0.0), 2),
        "same_labels": round(float(same), 5),
    }


if __name__ == "__main__":
    main()
