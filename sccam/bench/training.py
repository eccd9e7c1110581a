"""Suite `training`: one step of each trained network, forward, loss, backward and optimiser. Images a second.

The settings are those of configs/photos.toml; the losses are the stages' own. All rows train the same network, from a
random start with as many levels frozen as after a pretrained one, so what a step costs is what it costs in a run. On a
CPU the networks compute their dilated convolutions in a faster form than PyTorch's own, and so does the baseline.
Batches lie on the device: reading and augmenting them is another matter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sccam.bench import Options
from sccam.bench.harness import Contestant, Result, Work, compare
from sccam.bench.inputs import label_map, of_size
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import Backbone, build_backbone
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.recipe import RunConfig, load_config
from sccam.stages.affinity import pair_loss
from sccam.stages.affinity_labels import AFFINITY_STRIDE, neighbour_offsets
from sccam.stages.classify import joint_loss
from sccam.stages.optim import OptimiserConfig, build_optimiser
from sccam.stages.segment import segmentation_loss
from sccam.structures import ByteArray

BATCH, QUICK_BATCH = 16, 8  # images
CROP = 224  # [px] of all three networks in configs/photos.toml
CLASSES = 20  # of VOC 2012
LABELS = 3  # of an image: background and two classes
ROUNDS = 5  # a step takes seconds on a CPU
SEED = 0
FP16_SCALE = 2.0**10  # of the loss at first; PyTorch's own begins with steps that overflow and are skipped
LIMIT = 2e-2
"""Of `loss_gap` to the baseline. 16-bit floats round every layer by up to 4e-3."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained.

    Attributes:
        net: that every row starts from a copy of; in training mode, on the CPU.
        images: normalised f32 [N 3 H W].
        forward: of a copy: images -> what the loss takes.
        loss: of the outputs; targets lie where the outputs do.
    """

    name: str
    net: nn.Module
    images: Tensor
    forward: Callable[[Any], Callable[[Tensor], Any]]
    loss: Callable[[Any], Tensor]
    optimiser: OptimiserConfig


@dataclass(frozen=True, slots=True)
class Way:
    """How it is trained."""

    name: str
    precision: str = "fp32"
    channels_last: bool = True
    compiled: bool = False
    strong: bool = True


EVERYWHERE = (
    Way("eager fp32", channels_last=False, strong=False),
    Way("channels last"),
    Way("channels last, bf16", "bf16"),
)
WAYS = {
    "cpu": EVERYWHERE,
    "cuda": (
        *EVERYWHERE,
        Way("channels last, fp16", "fp16"),
        Way("channels last, bf16, compiled", "bf16", compiled=True),
    ),
}


class Step:
    """A network that is trained in one way; `fresh` makes the next run begin at the start."""

    def __init__(self, task: Task, way: Way, device: str):
        self.task, self.fresh = task, False
        self._compute = Compute.resolve(device, way.precision)
        self._net: Any = copy.deepcopy(task.net).to(device)
        self._images = task.images.to(device)
        if way.channels_last:
            self._compute.place(self._net)
            self._images = self._images.contiguous(memory_format=torch.channels_last)
        forward = task.forward(self._net)
        if way.compiled:  # with the random numbers of the other rows, so that dropout takes the same channels
            forward = torch.compile(forward, options={"fallback_random": True})
        self._forward = forward
        self._restart()

    def run(self, _: int) -> list[float]:
        """The loss of one step; of the first two from the start, where that is asked for."""
        if not self.fresh:
            return [self._step()]
        self.fresh = False
        self._restart()
        return [self._step(), self._step()]

    def _restart(self) -> None:
        self._net.load_state_dict(self.task.net.state_dict())
        self._optimiser = build_optimiser(self._net.parameter_groups(), self.task.optimiser)
        half = self._compute.precision == "fp16"
        device = torch.device(self._compute.device).type
        self._scaler = torch.amp.GradScaler(device, init_scale=FP16_SCALE, enabled=half)

    def _step(self) -> float:
        """As `sccam.fit` does it."""
        torch.manual_seed(SEED)  # of dropout
        self._optimiser.zero_grad(set_to_none=True)
        with self._compute.autocast():
            loss = self.task.loss(self._forward(self._images))
        value = float(loss.detach())
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimiser)
        self._scaler.update()
        return value


def run(options: Options) -> Iterator[list[Result]]:
    """A table for each network."""
    batch = QUICK_BATCH if options.quick else BATCH
    photos = of_size(options.images, (CROP, CROP))
    photos = [photos[n % len(photos)] for n in range(batch)]
    for make in (classifier, affinity_network, segmenter):
        torch.manual_seed(SEED)
        yield _compared(make(load_config("photos", []), photos, options.device), options)


def classifier(config: RunConfig, photos: Sequence[ByteArray], device: str) -> Task:
    """Of the rounds with sub-categories (Eq. 3)."""
    subcategories = CLASSES * config.cluster.k
    net = CamNet(trunk(config, config.network.train_stride or config.network.output_stride), CLASSES, subcategories)
    parents = torch.zeros(len(photos), CLASSES, device=device)
    subs = torch.zeros(len(photos), subcategories, device=device)
    for n in range(len(photos)):
        parents[n, n % CLASSES] = subs[n, config.cluster.k * (n % CLASSES)] = 1

    def loss(logits: tuple[Tensor, Tensor]) -> Tensor:
        return joint_loss(logits[0].float(), logits[1].float(), parents, subs, config.classify.sub_weight)

    return Task("classifier", net, _normalised(photos, net), lambda net: net, loss, config.classify.optimiser)


def affinity_network(config: RunConfig, photos: Sequence[ByteArray], device: str) -> Task:
    """Pairs of neighbouring cells."""
    net = AffinityNet(trunk(config, config.network.output_stride), AFFINITY_STRIDE)
    offsets = neighbour_offsets(config.affinity.radius)
    half = AFFINITY_STRIDE // 2
    labels = _labels(photos, device)[:, half::AFFINITY_STRIDE, half::AFFINITY_STRIDE].contiguous()

    def loss(features: Tensor) -> Tensor:
        return pair_loss(features.float(), labels, offsets, config.affinity.border).total

    return Task("affinity network", net, _normalised(photos, net), lambda net: net, loss, config.affinity.optimiser)


def segmenter(config: RunConfig, photos: Sequence[ByteArray], device: str) -> Task:
    """DeepLab at all its scales."""
    settings = config.segment
    net = DeepLab(trunk(config, settings.output_stride), CLASSES + 1, settings.rates, settings.scales)
    labels = _labels(photos, device)

    def loss(logits: list[Tensor]) -> Tensor:
        return segmentation_loss(logits, labels)

    return Task("segmenter", net, _normalised(photos, net), lambda net: net.multi_scale, loss, settings.optimiser)


def trunk(config: RunConfig, output_stride: int) -> Backbone:
    """With random weights, its first levels frozen as if they were pretrained."""
    backbone = build_backbone(config.network.backbone, output_stride=output_stride, weights="none")
    backbone.freeze(backbone.default_freeze)
    return backbone


def _normalised(photos: Sequence[ByteArray], net: Any) -> Tensor:
    images = Compute("cpu", "fp32").normalised(np.stack(photos), net.backbone.mean, net.backbone.std)
    return images.contiguous()


def _labels(photos: Sequence[ByteArray], device: str) -> Tensor:
    labels = [label_map(photo, LABELS, n) for n, photo in enumerate(photos)]
    return torch.from_numpy(np.stack(labels)).to(device)


def _compared(task: Task, options: Options) -> list[Result]:
    steps: list[Step] = []
    contestants = []
    for way in WAYS[options.device]:
        step = Step(task, way, options.device)
        if way.compiled and not _compiles(step):
            continue
        steps.append(step)
        contestants.append(Contestant(way.name, step.run, strong=way.strong))

    def judge(n: int) -> list[float]:
        steps[0].fresh = True
        expected = steps[0].run(n)
        for step in steps:
            step.fresh = True
        return expected

    batch, _, height, width = task.images.shape
    return compare(
        "training", f"{task.name}, {batch} images of {height} x {width}", contestants, inputs=1, quick=options.quick,
        judge=judge, error=loss_gap, limit=LIMIT, device=options.device, work=Work(batch), rounds=ROUNDS,
    )  # fmt: skip


def _compiles(step: Step) -> bool:
    """Whether this machine has what the compiler needs, such as a C compiler and a library that fits the GPU."""
    try:
        step.run(0)
    except Exception:  # the compiler raises a class of its own for each thing that is missing
        return False
    return True


def loss_gap(found: Sequence[float], expected: Sequence[float]) -> float:
    """The larger of two differences: of the first loss, as a share of it, and of the second one on the same batch, as a
    share of how far the step moved it. The second tells of the gradients and of the optimiser, whatever its rate."""
    (first, second), (start, end) = found, expected
    moved = max(abs(end - start), 1e-12)  # a step that moves nothing is no baseline: then any difference is too much
    gaps = [abs(first - start) / abs(start), abs(second - end) / moved]
    return float(np.nan_to_num(gaps, nan=np.inf).max())
