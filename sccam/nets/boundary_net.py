"""BoundaryNet: where one thing ends and another begins.

Source: Ahn, Cho and Kwak, CVPR 2019, §4.2 and irn/net/resnet50_irn.py, the branch of the boundaries.
Differs: three taps instead of five, on the grid of the affinity labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import Backbone

WIDTH, GROUPS = 32, 4  # Source: resnet50_irn.py


class BoundaryNet(nn.Module):
    """Three taps, each through a 1x1 convolution, group norm and ReLU, joined by one more convolution.

    Args:
        backbone: the trunk.
        grid_stride: [px per cell] of the output.
    """

    def __init__(self, backbone: Backbone, grid_stride: int = 8) -> None:
        super().__init__()
        self.backbone = backbone
        self.grid_stride = grid_stride
        self.taps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, WIDTH, 1, bias=False), nn.GroupNorm(GROUPS, WIDTH), nn.ReLU())
            for channels in backbone.channels
        )
        self.fuse = nn.Conv2d(WIDTH * len(self.taps), 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images [N 3 H W] -> probability of a boundary [N 1 h w], h = ceil(H / grid_stride)."""
        grid = (-(-x.shape[-2] // self.grid_stride), -(-x.shape[-1] // self.grid_stride))
        parts = [head(tap) for head, tap in zip(self.taps, self.backbone(x), strict=True)]
        if torch.compiler.is_exporting():  # sizes are symbols there: a tap of the grid's stride lies on the grid
            at_grid = [part for part, s in zip(parts, self.backbone.strides, strict=True) if s == self.grid_stride]
            grid = (at_grid[0].shape[-2], at_grid[0].shape[-1]) if at_grid else grid
        resized = [F.interpolate(part, size=grid, mode="bilinear", align_corners=False) for part in parts]
        return torch.sigmoid(self.fuse(torch.cat(resized, dim=1)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role, as AffinityNet's."""
        heads = [p for module in (*self.taps, self.fuse) for p in module.parameters()]
        return {
            **self.backbone.parameter_groups(),
            "heads": [p for p in heads if p.ndim > 1],
            "head_biases": [p for p in heads if p.ndim <= 1],
        }


PairNet = AffinityNet | BoundaryNet
"""What affinities are made from: features by their distance, or boundaries by the highest between."""
