"""Pixel affinity: labels for pairs of neighbouring cells, the loss that learns them, and the learned field.

Source: Ahn & Kwak, "Learning Pixel-level Semantic Affinity", CVPR 2018; authors' code psa/train_aff.py,
psa/tool/pyutils.py and psa/network/resnet38_aff.py.
Differs: at inference every pair inside the image is used, theirs keeps the margin of training (see walk.py);
the loss takes every pair too unless `border = "psa"`.

    symbol   name here          shape
    f        features           [N D h w], output of the affinity net
    a_ij     affinity           exp(-mean over D of |f_i - f_j|), in (0, 1]
    P+       same label         background pairs and foreground pairs, counted apart
    P-       different labels   "negative"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sccam.data.transforms import AugmentConfig
from sccam.errors import ConfigError, ShapeError
from sccam.stages.affinity_labels import AFFINITY_STRIDE
from sccam.stages.boundary import pair_affinities
from sccam.stages.crf import CrfConfig
from sccam.stages.optim import OptimiserConfig
from sccam.stages.walk import BORDERS, pair_windows
from sccam.structures import BACKGROUND, IGNORE, AffinityField, IntArray

EPSILON = 1e-5  # train_aff.py: inside the logarithms and in the counts
Window = tuple[slice, slice]


@dataclass(frozen=True, slots=True)
class AffinityConfig:
    """Settings of affinity learning; the defaults are the authors' (PSA README, train_aff.py)."""

    source: str = field(default="features", metadata={"choices": ("features", "boundary")})
    """What affinities are made from: the distance of features (psa), or boundaries between the cells (irn)."""

    radius: int = field(default=5, metadata={"min": 2, "max": 16})
    """Pairs lie closer than this [cells]: 34 offsets at 5."""

    alpha_low: float = field(default=4.0, metadata={"min": 0.0})
    """Background exponent of the posterior that decides foreground: background is strong, so what stays is sure."""

    alpha_high: float = field(default=32.0, metadata={"min": 0.0})
    """Background exponent of the posterior that decides background. README 32; 24 in the CVPR submission."""

    crf: CrfConfig = CrfConfig()
    """Of the two posteriors."""

    border: str = field(default="clean", metadata={"choices": BORDERS})
    """With "clean" every pair inside the crop counts; with "psa" the authors' margin around the first cells."""

    epochs: int = field(default=8, metadata={"min": 1})
    """Passes over the training images."""

    batch: int = field(default=8, metadata={"min": 1})
    """Images a step."""

    augment: AugmentConfig = AugmentConfig(crop=448, long_side=())
    """Random views; the authors do not rescale the image."""

    optimiser: OptimiserConfig = OptimiserConfig()
    """SGD at 0.01 as users of ResNet-38 run it (the README's 0.1 is for VGG), heads ten times as fast."""

    def __post_init__(self) -> None:
        if self.augment.crop % AFFINITY_STRIDE:
            raise ConfigError(f"affinity.augment.crop {self.augment.crop} is no multiple of {AFFINITY_STRIDE}")


class PairLoss(NamedTuple):
    """Scalars that carry gradients: L = background/4 + foreground/4 + negative/2."""

    total: Tensor
    background: Tensor
    foreground: Tensor
    negative: Tensor


def pair_loss(
    features: Tensor,
    labels: Tensor,
    offsets: IntArray,
    border: str = "clean",
    source: str = "features",
    counts: Tensor | None = None,
) -> PairLoss:
    """The affinity loss of a batch and its three terms; pairs that touch 255 are dropped.

    Args:
        features: f [N D h w]; with `source` "boundary" the boundaries B [N 1 h w].
        labels: integer [N h w], from `affinity_labels`.
        offsets: i32 [R 2], from `neighbour_offsets`.
        border, source: as in `AffinityConfig`.
        counts: `pair_counts` of the batch that this is a part of; its own ones by default.

    Raises:
        ShapeError: features and labels lie on different grids.

    Source: train_aff.py. Each term is a mean over the pairs of its kind in the whole batch.
    """
    if features.shape[:1] + features.shape[2:] != labels.shape:
        raise ShapeError(f"features have shape {tuple(features.shape)}, labels {tuple(labels.shape)}")
    height, width = labels.shape[1:]
    features = features.to(torch.promote_types(features.dtype, torch.float32))  # 1 + 1e-5 needs more than half
    affinities = []
    for dy, dx in offsets.tolist():
        here, there = pair_windows(height, width, (dy, dx), offsets, border)
        if source == "boundary":
            affinities.append(pair_affinities(features[:, 0], (dy, dx), here).flatten())
        else:
            affinities.append(torch.exp(-_MeanDistance.apply(features, here, there)).flatten())
    a, kinds = torch.cat(affinities), pair_kinds(labels, offsets, border)
    if counts is None:
        counts = kinds.sum(dim=1)
    attract, repel = -torch.log(a + EPSILON), -torch.log(1 + EPSILON - a)
    background, foreground, negative = (
        torch.where(chosen, values, 0).sum() / (count + EPSILON)
        for values, chosen, count in zip((attract, attract, repel), kinds, counts, strict=True)
    )
    return PairLoss(background / 4 + foreground / 4 + negative / 2, background, foreground, negative)


def pair_kinds(labels: Tensor, offsets: IntArray, border: str = "clean") -> Tensor:
    """Which pairs are of the background, of one foreground label, of two labels: [3 P]; arguments as in `pair_loss`."""
    height, width = labels.shape[1:]
    windows = [pair_windows(height, width, offset, offsets, border) for offset in offsets.tolist()]
    first, second = (torch.cat([labels[:, *window[end]].flatten() for window in windows]) for end in (0, 1))
    valid = (first != IGNORE) & (second != IGNORE)
    same = valid & (first == second)
    return torch.stack([same & (first == BACKGROUND), same & (first != BACKGROUND), valid & (first != second)])


def pair_counts(labels: Tensor, offsets: IntArray, border: str = "clean") -> Tensor:
    """How many pairs are of each kind [3]: what the terms of `pair_loss` are means over."""
    return pair_kinds(labels, offsets, border).sum(dim=1)


def affinity_field(features: Tensor, offsets: IntArray, stride: int) -> AffinityField:
    """Affinities of all neighbouring cells of one image, 0 where the second cell lies outside.

    Args:
        features: f [D h w] on any device; cut off padding first. For a batch, call once an image.
        offsets: i32 [R 2], from `neighbour_offsets`.
        stride: [px per cell] of the features.

    Source: resnet38_aff.py. One offset at a time, so that memory stays at one copy of the features.
    """
    if features.ndim != 3:
        raise ShapeError(f"features have shape {tuple(features.shape)}, expected (D, h, w) of one image")
    height, width = features.shape[1:]
    batch = features.detach().float()[None]
    values = torch.zeros(len(offsets), height, width, device=features.device)
    for r, (dy, dx) in enumerate(offsets.tolist()):
        here, there = pair_windows(height, width, (dy, dx), offsets, "clean")
        values[r][here] = torch.exp(-(batch[:, :, *here] - batch[:, :, *there]).abs().mean(dim=1))[0]
    return AffinityField(values.cpu().numpy(), offsets, stride)


class _MeanDistance(torch.autograd.Function):
    """mean over D of |f_i - f_j|, [N ...]; the backward recomputes signs instead of keeping R copies of f."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, here: Window, there: Window) -> Tensor:
        ctx.save_for_backward(features)
        ctx.here, ctx.there = here, there
        return (features[:, :, *here] - features[:, :, *there]).abs().mean(dim=1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (features,) = ctx.saved_tensors
        sign = torch.sign(features[:, :, *ctx.here] - features[:, :, *ctx.there])
        part = sign * (gradients[0] / features.shape[1])[:, None]
        whole = torch.zeros_like(features)
        whole[:, :, *ctx.here] += part
        whole[:, :, *ctx.there] -= part
        return whole, None, None
