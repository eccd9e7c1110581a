"""ResNet-38d: the wide pre-activation trunk of AffinityNet and SC-CAM, at output stride 8.

Source: Wu et al. 2016 (model A1); psa/network/resnet38d.py and SC-CAM's copy of it.
Names follow the released weights: b5_2.conv_branch2b1.weight, b6.bn_branch2b2.running_mean, and so on.
The net ends in 4096 channels, 105,023,168 convolution weights, none of them with a bias.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from sccam.nets.backbones import Backbone
from sccam.nets.dropout import ChannelDropout

# name, channels in, middle, out, stride, dilation of the first and of the second 3x3
PLAIN_BLOCKS = (
    ("b2", 64, 128, 128, 2, 1, 1),
    ("b2_1", 128, 128, 128, 1, 1, 1),
    ("b2_2", 128, 128, 128, 1, 1, 1),
    ("b3", 128, 256, 256, 2, 1, 1),
    ("b3_1", 256, 256, 256, 1, 1, 1),
    ("b3_2", 256, 256, 256, 1, 1, 1),
    ("b4", 256, 512, 512, 2, 1, 1),
    *((f"b4_{i}", 512, 512, 512, 1, 1, 1) for i in range(1, 6)),
    ("b5", 512, 512, 1024, 1, 1, 2),
    ("b5_1", 1024, 512, 1024, 1, 2, 2),
    ("b5_2", 1024, 512, 1024, 1, 2, 2),
)
# name, channels in, out, dilation, dropout
BOTTLENECKS = (("b6", 1024, 2048, 4, 0.3), ("b7", 2048, 4096, 4, 0.5))


class ResNet38(Backbone):
    """The trunk. Taps: the activated input of b5 (512), of b6 (1024), and ReLU(bn7) (4096), all at stride 8."""

    name = "resnet38d"
    channels = (512, 1024, 4096)
    strides = (8, 8, 8)
    output_stride = 8
    dropout = 0.5
    default_freeze = 1

    def __init__(self, freeze: int = default_freeze) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        for name, *shape in PLAIN_BLOCKS:
            self.add_module(name, PlainBlock(*shape))
        for name, width_in, width_out, dilation, dropout in BOTTLENECKS:
            self.add_module(name, Bottleneck(width_in, width_out, dilation, dropout))
        self.bn7 = nn.BatchNorm2d(4096)
        self.freeze(freeze)
        self.train()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised image [N 3 H W] -> taps [N 512|1024|4096 h w], h = ceil(H / 8)."""
        taps = {}
        x = self.conv1a(x)
        for name in [*(row[0] for row in PLAIN_BLOCKS), *(row[0] for row in BOTTLENECKS)]:
            x, taps[name] = self.get_submodule(name)(x)
        return taps["b5"], taps["b6"], F.relu(self.bn7(x))

    def levels(self) -> list[list[nn.Module]]:
        """What runs at 1/1 and 1/2 (the part its authors freeze), at 1/4, and at 1/8."""
        blocks = [(row[0], self.get_submodule(row[0])) for row in PLAIN_BLOCKS]
        half = [self.conv1a, *(block for name, block in blocks if name.startswith("b2"))]
        quarter = [block for name, block in blocks if name.startswith("b3")]
        eighth = [block for name, block in blocks if name.startswith(("b4", "b5"))]
        tail = [self.get_submodule(row[0]) for row in BOTTLENECKS]
        return [half, quarter, [*eighth, *tail, self.bn7]]

    def freeze(self, levels: int) -> None:
        """As every trunk, and scales and shifts of all BatchNorms besides: the authors' optimiser never sees them."""
        super().freeze(levels)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)


class PlainBlock(nn.Module):
    """Two 3x3 convolutions, each behind BatchNorm and ReLU; nothing after the sum."""

    def __init__(self, width_in: int, middle: int, width_out: int, stride: int, first: int, second: int) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(width_in)
        self.conv_branch2a = nn.Conv2d(width_in, middle, 3, stride, padding=first, dilation=first, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, width_out, 3, padding=second, dilation=second, bias=False)
        self.conv_branch1: nn.Module | None = None
        if width_in != width_out or stride != 1:
            self.conv_branch1 = nn.Conv2d(width_in, width_out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N D h w] -> the block's output, and its activated input (the taps of the trunk)."""
        a = F.relu(self.bn_branch2a(x))
        branch = self.conv_branch2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(a))))
        # A projection reads the activated input, the identity the raw one.
        skip = x if self.conv_branch1 is None else self.conv_branch1(a)
        return skip + branch, a


class Bottleneck(nn.Module):
    """1x1, dilated 3x3, 1x1, with channel dropout before the last two; the skip is always a projection."""

    def __init__(self, width_in: int, width_out: int, dilation: int, dropout: float) -> None:
        super().__init__()
        quarter, half = width_out // 4, width_out // 2
        self.bn_branch2a = nn.BatchNorm2d(width_in)
        self.conv_branch2a = nn.Conv2d(width_in, quarter, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(quarter)
        self.dropout_2b1 = ChannelDropout(dropout)
        self.conv_branch2b1 = nn.Conv2d(quarter, half, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(half)
        self.dropout_2b2 = ChannelDropout(dropout)
        self.conv_branch2b2 = nn.Conv2d(half, width_out, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(width_in, width_out, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N D h w] -> the block's output, and its activated input."""
        a = F.relu(self.bn_branch2a(x))
        branch = self.dropout_2b1(F.relu(self.bn_branch2b1(self.conv_branch2a(a))))
        branch = self.dropout_2b2(F.relu(self.bn_branch2b2(self.conv_branch2b1(branch))))
        return self.conv_branch1(a) + self.conv_branch2b2(branch), a
