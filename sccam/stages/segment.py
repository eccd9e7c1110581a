"""DeepLab-v2 trained on pseudo labels, with pixels of label 255 left out.

    L = CE(logits at scale 1) + CE(0.75) + CE(0.5) + CE(their maximum)

Source: Chen et al., TPAMI 2018 (DeepLab-v2); kazuto1011/deeplab-pytorch, which the authors' README names: labels
are brought to each grid by nearest neighbour, the test output is the maximum over the scales.
With `average` the weights that are kept are an exponential mean over the steps. With `self_epochs` the segmenter then
labels its training images itself, its classes limited to each image's tags, with a CRF behind it, and learns on from
that: one round of self-training, as is common after weak supervision (Zhang et al., RRM, AAAI 2020, and others).
With `balance` t the loss sees logits + t log(share of the label's pixels), and the network that is kept does without
that sum, so that it gives rare labels more room: 0 favours the mean over pixels, 1 the mean over labels, and the IoU
wants something between. Source: Menon et al., Long-tail Learning via Logit Adjustment, ICLR 2021, Eq. 10.
Differs: learning rates and sizes are settings; the authors "lowered the learning rate a bit" and never said how far.

    symbol   name here   shape
             logits      list of [N C+1 h w], finest scale first, the maximum last
             labels      [N H W], 255 ignored
    t log p  shift       [C+1]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from sccam.data.transforms import AugmentConfig
from sccam.errors import ConfigError
from sccam.stages.optim import OptimiserConfig
from sccam.structures import IGNORE, LONGEST_SIDE, MOST_SCALE, FloatArray

MOST_DILATION = 512  # [cells]
LEAST_SHARE = 1e-3  # of the pixels: a label that is hardly ever seen is not drawn everywhere


@dataclass(frozen=True, slots=True)
class SegmentConfig:
    """Settings of the segmenter."""

    epochs: int = field(default=19, metadata={"min": 1})  # 20,000 iterations of 10 images on 10,582
    batch: int = field(default=10, metadata={"min": 1})  # 5 x 2 accumulated in deeplab-pytorch
    output_stride: int = field(default=8, metadata={"choices": (8, 16, 32)})
    rates: tuple[int, ...] = (6, 12, 18, 24)  # ASPP dilations [cells], for stride 8
    scales: tuple[float, ...] = (1.0, 0.75, 0.5)  # of training and of the maximum at test time
    long_side: int = field(default=0, metadata={"min": 0, "max": LONGEST_SIDE})  # [px] after training; 0: their own
    average: float = field(default=0.0, metadata={"min": 0.0, "max": 0.9999})  # decay of the weights' mean; 0: the last
    balance: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})  # of rare labels; 0: as frequent as they are
    self_epochs: int = field(default=0, metadata={"min": 0})  # of learning on from the own masks; 0: none
    self_confidence: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})  # posterior below which it is 255
    initialise: str = field(default="pretrained", metadata={"choices": ("pretrained", "classifier")})  # trunk weights
    augment: AugmentConfig = AugmentConfig(crop=321, long_side=(), scales=(0.5, 0.75, 1.0, 1.25, 1.5), jitter=())
    optimiser: OptimiserConfig = OptimiserConfig(lr=2.5e-4, head_factor=10.0, head_bias_factor=20.0)

    def __post_init__(self) -> None:
        if not self.scales or self.scales[0] != 1.0 or min(self.scales) <= 0 or max(self.scales) > MOST_SCALE:
            raise ConfigError(
                f"segment.scales {list(self.scales)} must begin with 1.0 and be factors in (0, {MOST_SCALE:g}]"
            )
        if not self.rates or min(self.rates) < 1 or max(self.rates) > MOST_DILATION:
            raise ConfigError(f"segment.rates {list(self.rates)} must be dilations of 1 to {MOST_DILATION} cells")


def prior_shift(pixels: NDArray[np.int64], balance: float) -> FloatArray:
    """What the loss adds to the logits of each label [C+1]; 0 for a label without a pixel.

    Args:
        pixels: labelled pixels of each label [C+1].
    """
    shares = np.maximum(pixels / max(int(pixels.sum()), 1), LEAST_SHARE)
    return np.where(pixels > 0, balance * np.log(shares), 0.0).astype(np.float32)


def segmentation_loss(
    logits: Sequence[Tensor], labels: Tensor, shift: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """The sum over scales of the mean cross-entropy, each at its own grid; 0 where every label is 255.

    Args:
        shift: from `prior_shift`.
        counts: `labelled_cells` of the batch that this is a part of; its own ones by default.
    """
    total = logits[0].new_zeros(())
    for n, scale_logits in enumerate(logits):
        target = _on_grid(labels, scale_logits.shape[-2:])
        shifted = scale_logits.float() if shift is None else scale_logits.float() + shift[:, None, None]
        if counts is not None:
            summed = cross_entropy(shifted, target, ignore_index=IGNORE, reduction="sum")
            total = total + summed / counts[n].clamp(min=1)
        elif bool((target != IGNORE).any()):  # the mean over no pixel would be NaN
            total = total + cross_entropy(shifted, target, ignore_index=IGNORE)
    return total


def labelled_cells(labels: Tensor, grids: Sequence[Sequence[int]]) -> Tensor:
    """Cells of each grid whose label [N H W] is not 255: what the terms of `segmentation_loss` are means over."""
    return torch.stack([(_on_grid(labels, grid) != IGNORE).sum() for grid in grids])


def _on_grid(labels: Tensor, grid: Sequence[int]) -> Tensor:
    return interpolate(labels[:, None].float(), tuple(grid), mode="nearest-exact")[:, 0].long()


def upsample_logits(logits: Tensor, padded: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Logits [N C+1 h w] at the padded input's pixels, cropped to the image: [N C+1 H W]."""
    full = interpolate(logits.float(), padded, mode="bilinear", align_corners=False)
    return torch.as_tensor(full[..., : size[0], : size[1]])
