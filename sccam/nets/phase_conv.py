"""Dilated depthwise convolutions as ordinary ones over phases: the same sums on a CPU.

A stride-1 convolution with dilation d reads, for the output at (y, x), only inputs whose row is y and whose column
is x modulo d. So the map falls apart into d*d phases that never mix; each is convolved without dilation, for which
CPU libraries have fast depthwise code, and the phases are put back in place.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PhaseConv2d(nn.Conv2d):
    """An `nn.Conv2d` with stride 1, dilation d and "same" padding, computed by phases on the CPU.

    Elsewhere, and while a graph is exported, it is the ordinary dilated convolution. Weights and names are unchanged.
    """

    @classmethod
    def of(cls, conv: nn.Conv2d) -> PhaseConv2d:
        """The same convolution with the very parameters of `conv`, which must satisfy `has_phases`."""
        if not has_phases(conv):
            raise ValueError(f"{conv} is not a stride-1, square-dilated convolution with same padding")
        made = cls(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            padding=(conv.dilation[0] * (conv.kernel_size[0] // 2), conv.dilation[1] * (conv.kernel_size[1] // 2)),
            dilation=(conv.dilation[0], conv.dilation[1]),
            groups=conv.groups,
            bias=conv.bias is not None,
            device="meta",  # the parameters are replaced below
        )
        made.weight, made.bias = conv.weight, conv.bias
        return made.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """[N D h w] -> [N D' h w]."""
        if x.device.type != "cpu" or torch.compiler.is_exporting() or torch.jit.is_tracing():
            return super().forward(x)
        d, (height, width) = self.dilation[0], x.shape[-2:]
        margin = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        phases = split_phases(F.pad(x, (0, -width % d, 0, -height % d)), d)
        phases = F.conv2d(phases, self.weight, self.bias, padding=margin, groups=self.groups)
        return join_phases(phases, d)[..., :height, :width]


def use_phase_convs(module: nn.Module) -> int:
    """Replaces each dilated stride-1 depthwise convolution inside `module`; says how many. Weights stay shared."""
    replaced = 0
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and not isinstance(child, PhaseConv2d):
            if child.groups == child.in_channels and has_phases(child):
                setattr(module, name, PhaseConv2d.of(child))
                replaced += 1
        else:
            replaced += use_phase_convs(child)
    return replaced


def has_phases(conv: nn.Conv2d) -> bool:
    """True for stride 1, one dilation above 1 on both axes, odd kernel and zero padding that keeps the size."""
    if conv.stride != (1, 1) or conv.dilation[0] != conv.dilation[1] or conv.dilation[0] == 1:
        return False
    if conv.padding_mode != "zeros" or any(side % 2 == 0 for side in conv.kernel_size):
        return False
    same = tuple(conv.dilation[0] * (side // 2) for side in conv.kernel_size)
    # Convolutions that pad at run time (TensorFlow's SAME) carry padding 0; at stride 1 theirs is symmetric too.
    return conv.padding in (same, "same") or type(conv).__name__ == "Conv2dSame"


def split_phases(x: Tensor, d: int) -> Tensor:
    """[N D h w], h and w multiples of d -> [N*d*d D h/d w/d], in channels-last memory."""
    n, channels, height, width = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(n, height // d, d, width // d, d, channels)
    return rows.permute(0, 2, 4, 1, 3, 5).reshape(n * d * d, height // d, width // d, channels).permute(0, 3, 1, 2)


def join_phases(x: Tensor, d: int) -> Tensor:
    """The inverse of `split_phases`: [N*d*d D h w] -> [N D h*d w*d], in channels-last memory."""
    n, channels, height, width = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(n // (d * d), d, d, height, width, channels)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(n // (d * d), height * d, width * d, channels).permute(0, 3, 1, 2)
