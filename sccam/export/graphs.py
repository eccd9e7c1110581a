"""The graphs that leave: an RGB image as it was decoded goes in, what a runtime needs comes out.

    graph            input                   outputs
    MapGraph         image u8 [N H W 3]      maps [N C h w] rectified (Eq. 1), scores [N C]
    AffinityGraph    image u8 [N H W 3]      affinity [N R h w], 0 where the second cell lies outside
    BoundaryGraph    image u8 [N H W 3]      boundary [N 1 h w], a probability
    SegmenterGraph   image u8 [N H W 3]      logits [N C+1 h w], or labels u8 [N H W]

Normalisation is inside; N, H and W are free. Outside stay: resizing, padding (in the mean colour), the division of
maps by their maximum (it spans the whole graph, and the maximum of a padded image is not the image's), CRF and walk.

The pooling of the classifier and its bias-free 1x1 head commute, so a class score is the spatial mean of the class's
map before the ReLU, and one graph gives both; the head of the sub-categories is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccam.export import pamr
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.boundary_net import BoundaryNet
from sccam.nets.cam_net import CamNet, lengths
from sccam.nets.deeplab import DeepLab
from sccam.structures import IntArray

OUTSIDE = 1e4  # feature value of cells beyond the grid: exp(-1e4) is 0 in every format, and fp16 holds it


class Graph(nn.Module):
    """What all exported graphs share: one image input, and names for the outputs with a letter for each axis."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], outputs: dict[str, tuple[str, ...]]) -> None:
        super().__init__()
        self.outputs = outputs
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1))

    def normalised(self, image: Tensor) -> Tensor:
        """u8 [N H W 3] -> [N 3 H W]. TensorRT lets an 8-bit input be cast and nothing else, so the cast comes first."""
        return image.float().permute(0, 3, 1, 2) * self.scale + self.shift  # type: ignore[operator]


class MapGraph(Graph):
    """Activation maps of every class, and class scores (logits)."""

    def __init__(self, net: CamNet) -> None:
        super().__init__(net.backbone.mean, net.backbone.std, {"maps": ("N", "C", "h", "w"), "scores": ("N", "C")})
        self.net = net

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        net = self.net
        features = net.backbone(self.normalised(image))[-1]
        scores = net.parent(features)
        if net.second is None:
            return F.relu(scores), scores.mean(dim=(2, 3))
        maps = F.relu(F.conv2d(features, net.map_weight()[:, :, None, None]))
        if net.maps == "prototypes":
            maps = maps / lengths(features)
        return maps, scores.mean(dim=(2, 3))


class AffinityGraph(Graph):
    """Affinity planes of all offsets at once, in Pad, Slice, Sub, Abs, ReduceMean, Concat, Neg and Exp."""

    def __init__(self, net: AffinityNet, offsets: IntArray) -> None:
        super().__init__(net.backbone.mean, net.backbone.std, {"affinity": ("N", "R", "h", "w")})
        self.net = net
        self.offsets: list[tuple[int, int]] = [(int(dy), int(dx)) for dy, dx in offsets]
        self.reach = max(max(abs(dy), abs(dx)) for dy, dx in self.offsets)

    def forward(self, image: Tensor) -> Tensor:
        features, reach = self.net(self.normalised(image)), self.reach
        padded = F.pad(features, (reach, reach, 0, reach), value=OUTSIDE)
        distances = []
        for dy, dx in self.offsets:  # slices that count from the end, so their bounds are constants
            rows = slice(dy, (dy - reach) or None)
            columns = slice(reach + dx, (dx - reach) or None)
            distances.append((features - padded[:, :, rows, columns]).abs().mean(dim=1, keepdim=True))
        return torch.exp(-torch.cat(distances, dim=1))


class BoundaryGraph(Graph):
    """Where boundaries lie; affinities are made of them outside, by comparisons alone."""

    def __init__(self, net: BoundaryNet) -> None:
        super().__init__(net.backbone.mean, net.backbone.std, {"boundary": ("N", "1", "h", "w")})
        self.net = net

    def forward(self, image: Tensor) -> Tensor:
        return torch.as_tensor(self.net(self.normalised(image)))


class SegmenterGraph(Graph):
    """Class logits on the grid, or the label of every pixel.

    Args:
        labels: the label index u8 [N H W] instead of logits.
        multi_scale: the maximum over the net's scales, as it was trained; otherwise one pass at scale 1.
        pamr: steps of pixel-adaptive refinement before the labels, in the place of a CRF outside.
    """

    def __init__(self, net: DeepLab, *, labels: bool = False, multi_scale: bool = True, pamr: int = 0) -> None:
        outputs: dict[str, tuple[str, ...]] = {"logits": ("N", "C+1", "h", "w")}
        if labels:
            outputs = {"labels": ("N", "H", "W")}
        super().__init__(net.backbone.mean, net.backbone.std, outputs)
        self.net, self.labels, self.multi_scale = net, labels, multi_scale and len(net.scales) > 1
        self.pamr = pamr

    def forward(self, image: Tensor) -> Tensor:
        inputs = self.normalised(image)
        logits = self.net.multi_scale(inputs)[-1] if self.multi_scale else self.net(inputs)
        if not self.labels:
            return logits
        full = F.interpolate(logits, size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        if self.pamr:
            full = pamr.refine(image.float().permute(0, 3, 1, 2), full.softmax(dim=1), self.pamr)
        return full.argmax(dim=1).to(torch.int32).to(torch.uint8)


def prepare(graph: Graph) -> Graph:
    """The graph in inference mode, its run-time paddings replaced by ONNX's own; eager results stay what they were."""
    _replace_same_padding(graph)
    return graph.eval().requires_grad_(False)


class SamePadding(nn.Module):
    """A convolution with TensorFlow's SAME padding, which depends on the input's size.

    Eager code keeps its padding at run time. In an exported graph it is ONNX's `auto_pad = SAME_UPPER`, the same rule,
    so every size stays free and no padding is computed from shapes.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """[N D H W] -> [N D' ceil(H/s) ceil(W/s)]."""
        if not torch.compiler.is_exporting():
            return torch.as_tensor(self.conv(x))
        conv, (n, _, height, width) = self.conv, x.shape
        rows, columns = conv.stride
        return torch.onnx.ops.symbolic(
            "Conv",
            [x, conv.weight] if conv.bias is None else [x, conv.weight, conv.bias],
            {
                "auto_pad": "SAME_UPPER",
                "dilations": list(conv.dilation),
                "group": conv.groups,
                "kernel_shape": list(conv.kernel_size),
                "strides": list(conv.stride),
            },
            dtype=x.dtype,
            shape=(n, conv.out_channels, (height + rows - 1) // rows, (width + columns - 1) // columns),
        )


def _replace_same_padding(module: nn.Module) -> None:
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and type(child).__name__ == "Conv2dSame":  # timm's
            setattr(module, name, SamePadding(child))
        elif not isinstance(child, SamePadding):
            _replace_same_padding(child)
