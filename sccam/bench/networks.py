"""Suite `networks`: a network alone, in every way that this machine can run it, from images to outputs in memory.

    eager          the network as PyTorch runs it, fp32; on a GPU convolutions use TF32, which is PyTorch's default, and
                   are judged as half precision is, against the same without TF32
    tuned          channels_last, half precision, torch.compile, CUDA graphs: what PyTorch gives to those who ask
    onnxruntime    the exported files
    openvino       the same files, by the runtime that a user of a CPU would take instead; where it is installed
    tensorrt       an engine of the fp16 file; where it is installed

Heads are random, and so are trunks whose ImageNet weights no installed package carries: that changes no speed. Random
residual branches get a fraction of their usual scale, since they amplify every rounding from block to block, which
trained ones do not. Decisions of such a network hang on a hair, so `agreement` is lower than a trained one's, whose
figures `sccam export` takes.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sccam.artifacts import Manifest
from sccam.bench import Options
from sccam.bench.harness import Contestant, Result, Work, compare
from sccam.bench.inputs import photographs
from sccam.bench.network_ways import WAYS, Outputs, Run, in_torch, runtimes
from sccam.data.transforms import resize
from sccam.errors import WeightsError
from sccam.export.graphs import Graph
from sccam.export.int8 import CALIBRATION_IMAGES
from sccam.export.network import graph_of, in_precision
from sccam.export.parity import agreeing
from sccam.export.to_onnx import to_onnx
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import LITE0, Backbone, build_backbone
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.structures import ByteArray

VOC_CLASSES = 20
RADIUS = 5  # of the affinity network
STATISTICS_IMAGES = 4
BRANCH_SCALE = 0.2
INPUTS = 3  # sets of images, in turn
ROUNDS = 7
LIMITS = {"fp32": 1e-4, "tf32": 0.02, "fp16": 0.02, "bf16": 0.1, "int8": 0.5}  # of `relative_difference`


@dataclass(frozen=True, slots=True)
class Built:
    """How a network is made, and what is measured of it."""

    kind: str
    backbone: str
    stride: int
    make: Callable[[Backbone], nn.Module]
    cpu: tuple[tuple[int, int], ...]  # (side [px], images a batch)
    cuda: tuple[tuple[int, int], ...]
    goals: dict[str, float]


NETWORKS = {
    "DeepLab-v2 ResNet-101": Built(
        "segmenter", "resnet101", 8, lambda trunk: DeepLab(trunk, VOC_CLASSES + 1, scales=(1.0,)),
        ((321, 1),), ((321, 1), (513, 1), (513, 16)),
        {"onnxruntime fp32": 1.25, "onnxruntime int8": 4.0, "openvino bf16": 2.0, "eager, CUDA graph, fp16": 3.0},
    ),
    "ResNet-50, maps": Built(
        "cam_net", "resnet50", 16, lambda trunk: CamNet(trunk, VOC_CLASSES),
        ((321, 1), (321, 4), (321, 8)), ((321, 1), (321, 16)), {"onnxruntime fp32": 1.6},
    ),
    "ResNet-38d, maps": Built(
        "cam_net", "resnet38d", 8, lambda trunk: CamNet(trunk, VOC_CLASSES), ((321, 1),), ((321, 1), (321, 8)), {}
    ),
    "EfficientNet-Lite0, maps": Built(
        "cam_net", LITE0, 16, lambda trunk: CamNet(trunk, VOC_CLASSES), ((321, 1), (321, 8)), ((321, 1), (321, 16)), {}
    ),
    "EfficientNet-Lite0, affinities": Built(
        "affinity_net", LITE0, 16, lambda trunk: AffinityNet(trunk, 8), ((321, 1),), ((321, 1), (321, 16)), {}
    ),
    "EfficientNet-Lite0, DeepLab": Built(  # as configs/photos.toml has it
        "segmenter", LITE0, 16, lambda trunk: DeepLab(trunk, VOC_CLASSES + 1, (3, 6, 9, 12), (1.0, 0.75, 0.5)),
        ((321, 1), (321, 2), (321, 4), (321, 8), (321, 16)), ((321, 1), (321, 4), (321, 16), (321, 64)), {},
    ),
}  # fmt: skip
QUICK = ("EfficientNet-Lite0, DeepLab",)
COMPILED = ("DeepLab-v2 ResNet-101", "EfficientNet-Lite0, DeepLab")  # every shape takes torch.compile a minute


def run(options: Options) -> Iterator[list[Result]]:
    """A table for each network, size and batch."""
    pictures = photographs(options.folder, CALIBRATION_IMAGES)
    for name, built in NETWORKS.items():
        if options.quick and name not in QUICK:
            continue
        net, manifest = untrained(built, pictures)
        with tempfile.TemporaryDirectory() as folder:
            files = exported(net, manifest, pictures, Path(folder), options.device)
            cases = built.cuda if options.device == "cuda" else built.cpu
            for n, (side, batch) in enumerate(cases[:1] if options.quick else cases):
                sets = batches(pictures, side, batch)
                compiled = n == 0 and name in COMPILED and not options.quick
                ways = contestants(net, manifest, files, sets, options.device, compiled=compiled, goals=built.goals)
                yield compare(
                    "networks", f"{name}, {side} x {side}, batch {batch}", ways, inputs=INPUTS, quick=options.quick,
                    judge=exactly(ways[0]), error=relative_difference, limit=LIMITS["fp32"], agreement=same_decisions,
                    work=work(graph_of(net, manifest), sets[0]), device=options.device, rounds=ROUNDS,
                )  # fmt: skip


def contestants(
    net: Any, manifest: Manifest, files: dict[str, Path], sets: Sequence[ByteArray], device: str, *,
    compiled: bool, goals: dict[str, float],
) -> list[Contestant]:  # fmt: skip
    """The eager way, tuned ones, and the runtimes that are here.

    Args:
        compiled: also by torch.compile, which takes a minute for each shape.
    """
    ways: list[tuple[str, Run, str, bool]] = []
    for way in WAYS[device]:
        if way.compiled and not compiled:
            continue
        network = in_torch(graph_of(copy.deepcopy(net), manifest), device, way)
        try:
            network(sets[0])
        except Exception as error:  # there may be no compiler, or one that meets what it does not know
            print(f"not run: {way.name}: {type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        ways.append((way.name, network, way.precision, way.name != "eager"))
    ways += [(*runtime, False) for runtime in runtimes(files, sets[0].shape, device, manifest)]
    exact = "tf32" if device == "cuda" else "fp32"  # of convolutions, by default
    return [
        Contestant(
            name, partial(_on, network, sets), strong=strong, goal=goals.get(name),
            limit=LIMITS[exact if precision == "fp32" else precision],
        )
        for name, network, precision, strong in ways
    ]  # fmt: skip


def exactly(way: Contestant) -> Callable[[int], Outputs]:
    """Its outputs without TF32."""

    def run(n: int) -> Outputs:
        allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        try:
            found: Outputs = way.run(n)
        finally:
            torch.backends.cudnn.allow_tf32 = allowed
        return found

    return run


def _on(network: Run, sets: Sequence[ByteArray], n: int) -> Outputs:
    return network(sets[n])


def exported(net: Any, manifest: Manifest, pictures: Sequence[ByteArray], folder: Path, device: str) -> dict[str, Path]:
    """Precision -> ONNX file, of any batch and size."""
    base = to_onnx(graph_of(copy.deepcopy(net), manifest), {"kind": manifest.kind, "classes": ""})
    files = {}
    for precision in ("fp32", "fp16", "int8") if device == "cpu" else ("fp32", "fp16"):
        files[precision] = folder / f"net.{precision}.onnx"
        model = in_precision(copy.deepcopy(base), precision, pictures, net)
        files[precision].write_bytes(model.SerializeToString())
    return files


def untrained(built: Built, pictures: Sequence[ByteArray]) -> tuple[Any, Manifest]:
    """A network with random heads, and a manifest for it; its trunk has ImageNet weights where they are installed."""
    torch.manual_seed(0)
    try:
        trunk, trained = build_backbone(built.backbone, output_stride=built.stride), True
    except WeightsError:
        trunk, trained = build_backbone(built.backbone, output_stride=built.stride, weights="none"), False
    net = built.make(trunk)
    if not trained:
        _calm(net, trunk, pictures)
    net.eval()
    manifest = Manifest(
        file="", sha256="", kind=built.kind, backbone=built.backbone,
        classes=tuple(f"class {c + 1}" for c in range(VOC_CLASSES)), mean=trunk.mean, std=trunk.std,
        stride=built.stride, made_by="", made_from={"radius": RADIUS},
    )  # fmt: skip
    return net, manifest


def _calm(net: nn.Module, trunk: Backbone, pictures: Sequence[ByteArray]) -> None:
    """Branches at a fraction of their scale, and batch-norm statistics of a few images."""
    with torch.no_grad():
        for module in trunk.modules():  # a branch ends in a norm in torchvision's nets, in a convolution elsewhere
            names = ("bn3", "conv_branch2b2", "conv_branch2b1")
            last = next((getattr(module, name) for name in names if hasattr(module, name)), None)
            if last is not None:
                last.weight.mul_(BRANCH_SCALE)
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    net.eval()
    for norm in norms:
        norm.train()
        norm.momentum = None  # the plain mean over what is seen
        norm.reset_running_stats()
    few = np.stack([resize(picture, (224, 320)) for picture in pictures[:STATISTICS_IMAGES]])
    with torch.no_grad():
        net(Compute("cpu", "fp32").normalised(few, trunk.mean, trunk.std))


def batches(pictures: Sequence[ByteArray], side: int, batch: int) -> list[ByteArray]:
    """`INPUTS` batches u8 [batch side side 3] of the pictures in turn."""
    small = [resize(picture, (side, side)) for picture in pictures]
    return [np.stack([small[(batch * n + k) % len(small)] for k in range(batch)]) for n in range(INPUTS)]


def work(graph: Graph, images: ByteArray) -> Work:
    """Operations that PyTorch counts; weights, input and the first image's output moved once."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        graph.eval()(torch.from_numpy(images[:1]))
    weights = sum(value.numel() for value in graph.parameters())
    return Work(
        len(images), gflop=1e-9 * counter.get_total_flops() * len(images), gbyte=1e-9 * (4 * weights + images.size)
    )


def relative_difference(found: Outputs, expected: Outputs) -> float:
    """Root mean square of found - expected over that of expected around its mean, the worst of the outputs."""
    return max(
        float(np.sqrt(np.mean((found[name] - value) ** 2)) / max(float(value.std()), 1e-12))
        for name, value in expected.items()
    )


def same_decisions(found: Outputs, expected: Outputs) -> float:
    """Share of cells with the same label, or on the same side of one half for affinities."""
    same = [agreeing(name, value, found[name], 0.0)[1] for name, value in expected.items()]
    return float(np.concatenate([cells.ravel() for cells in same]).mean())
