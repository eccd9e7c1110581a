"""DeepLab-v2: the segmenter trained on pseudo labels. Four dilated 3x3 convolutions, summed, at three scales.

Source: Chen et al., TPAMI 2018; kazuto1011/deeplab-pytorch, which SC-CAM names.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccam.nets.backbones import Backbone

HEAD_STD = 0.01  # Source: deeplab-pytorch, initial weights N(0, 0.01)


class DeepLab(nn.Module):
    """A trunk and an atrous spatial pyramid.

    Args:
        backbone: the trunk; the pyramid reads its deep tap.
        labels: how many, background included (C + 1).
        rates: dilations of the pyramid [cells].
        scales: image scales of `multi_scale`; the first must be 1.
    """

    def __init__(
        self,
        backbone: Backbone,
        labels: int,
        rates: Sequence[int] = (6, 12, 18, 24),
        scales: Sequence[float] = (1.0, 0.75, 0.5),
    ) -> None:
        super().__init__()
        if not scales or scales[0] != 1.0:
            raise ValueError(f"the first scale must be 1.0, got {tuple(scales)}")
        self.backbone = backbone
        self.scales = tuple(scales)
        self.pyramid = Pyramid(backbone.channels[-1], labels, rates)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N 3 H W] -> logits [N C+1 h w] on the grid of the deep tap."""
        return self.pyramid(self.backbone(x)[-1])

    def multi_scale(self, x: Tensor) -> list[Tensor]:
        """[N 3 H W] -> logits at each scale, then their element-wise maximum on the first one's grid.

        Training takes the loss of every entry; a prediction reads only the last.
        """
        height, width = x.shape[-2:]
        logits = [self(x)]
        for scale in self.scales[1:]:
            size = (_scaled(height, scale), _scaled(width, scale))
            logits.append(self(F.interpolate(x, size=size, mode="bilinear", align_corners=False)))
        grid = logits[0].shape[-2:]
        best = logits[0]
        for other in logits[1:]:
            best = torch.maximum(best, F.interpolate(other, size=grid, mode="bilinear", align_corners=False))
        return [*logits, best]

    def head_weights(self) -> list[nn.Parameter]:
        """Kernels of the pyramid (the paper's recipe: 10 times the trunk's learning rate)."""
        return [p for p in self.pyramid.parameters() if p.ndim > 1]

    def head_biases(self) -> list[nn.Parameter]:
        """Biases of the pyramid (20 times, no weight decay)."""
        return [p for p in self.pyramid.parameters() if p.ndim == 1]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role: trunk "weights" and "norms", "heads", "head_biases"."""
        groups = self.backbone.parameter_groups()
        return {**groups, "heads": self.head_weights(), "head_biases": self.head_biases()}


class Pyramid(nn.Module):
    """The sum of 3x3 convolutions with bias, one for each dilation; they are named rate6, rate12, and so on."""

    def __init__(self, channels: int, labels: int, rates: Sequence[int]) -> None:
        super().__init__()
        self.rates = tuple(rates)
        for rate in self.rates:
            conv = nn.Conv2d(channels, labels, 3, padding=rate, dilation=rate)
            nn.init.normal_(conv.weight, std=HEAD_STD)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
            self.add_module(f"rate{rate}", conv)

    def convs(self) -> list[nn.Conv2d]:
        return [getattr(self, f"rate{rate}") for rate in self.rates]

    def forward(self, x: Tensor) -> Tensor:
        """[N D h w] -> [N C+1 h w]."""
        if x.device.type != "cpu" or torch.compiler.is_exporting() or torch.jit.is_tracing():
            first, *others = self.convs()
            total = first(x)
            for conv in others:
                total = total + conv(x)
            return torch.as_tensor(total)
        return self._by_taps(x)

    def _by_taps(self, x: Tensor) -> Tensor:
        """The same sum on a CPU: D is wide and C + 1 small, so one 1x1 convolution gives every product.

        It has 9 taps times the labels for each rate, one matrix product in all; `fold` moves each product to the
        cell that it belongs to. It scatters where a convolution gathers, hence the flipped kernels.
        """
        convs = self.convs()
        kernels = torch.stack([conv.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2) for conv in convs])
        products = F.conv2d(x, kernels.flatten(0, 1)[..., None, None]).flatten(2).unflatten(1, (len(convs), -1))
        grid = x.shape[-2:]
        first, *others = [conv.bias for conv in convs if conv.bias is not None]
        for bias in others:  # one by one: gradients of a stack's sum share their memory, and add up in each other
            first = first + bias
        total = first[:, None, None].expand(x.shape[0], -1, *grid)
        for index, rate in enumerate(self.rates):
            total = total + F.fold(products[:, index], grid, kernel_size=3, dilation=rate, padding=rate)
        return total


def _scaled(side: int, scale: float) -> int:
    """A side times a scale, rounded down; in whole numbers, so that an exported graph can follow it for any side."""
    fraction = Fraction(scale).limit_denominator(100)
    return max(1, side * fraction.numerator // fraction.denominator)
