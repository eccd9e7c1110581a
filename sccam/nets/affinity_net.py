"""AffinityNet: features whose distance says whether two cells show the same thing.

Source: Ahn & Kwak, CVPR 2018; psa/network/resnet38_aff.py. With ResNet-38 the head has 1,413,120 weights.
Differs: taps that are not at the grid's stride are resized to it, so that other trunks fit.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccam.nets.backbones import Backbone

FUSE_GAIN = 4.0  # Source: resnet38_aff.py, Xavier gain of the last layer


class AffinityNet(nn.Module):
    """Three taps, each through a 1x1 convolution and ELU, joined by one more.

    Args:
        backbone: the trunk.
        grid_stride: [px per cell] of the output.
        widths: channels taken from the shallow, middle and deep tap; their sum D is the output's.
    """

    def __init__(self, backbone: Backbone, grid_stride: int = 8, widths: tuple[int, int, int] = (64, 128, 256)) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid_stride = grid_stride
        shallow, middle, deep = backbone.channels
        self.shallow = nn.Conv2d(shallow, widths[0], 1, bias=False)
        self.middle = nn.Conv2d(middle, widths[1], 1, bias=False)
        self.deep = nn.Conv2d(deep, widths[2], 1, bias=False)
        self.fuse = nn.Conv2d(sum(widths), sum(widths), 1, bias=False)
        for head in (self.shallow, self.middle, self.deep):
            nn.init.kaiming_normal_(head.weight)
        nn.init.xavier_uniform_(self.fuse.weight, gain=FUSE_GAIN)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N 3 H W] -> features [N D h w], h = ceil(H / grid_stride)."""
        grid = (-(-x.shape[-2] // self.grid_stride), -(-x.shape[-1] // self.grid_stride))
        shallow, middle, deep = self.backbone(x)
        heads = (self.shallow, self.middle, self.deep)
        parts = [F.elu(head(tap)) for head, tap in zip(heads, (shallow, middle, deep), strict=True)]
        if torch.compiler.is_exporting():  # sizes are symbols there: a tap of the grid's stride lies on the grid
            at_grid = [part for part, s in zip(parts, self.backbone.strides, strict=True) if s == self.grid_stride]
            grid = (at_grid[0].shape[-2], at_grid[0].shape[-1]) if at_grid else grid
            on_grid = [s == self.grid_stride for s in self.backbone.strides]
        else:
            on_grid = [part.shape[-2:] == grid for part in parts]
        parts = [part if on else _resized(part, grid) for part, on in zip(parts, on_grid, strict=True)]
        return F.elu(self.fuse(torch.cat(parts, dim=1)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role: trunk "weights" and "norms", "heads", "head_biases" (none here)."""
        heads = [p for head in (self.shallow, self.middle, self.deep, self.fuse) for p in head.parameters()]
        return {**self.backbone.parameter_groups(), "heads": heads, "head_biases": []}


def _resized(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """[N D h' w'] -> [N D h w]."""
    return F.interpolate(features, size=grid, mode="bilinear", align_corners=False)
