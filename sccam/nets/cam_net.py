"""The classifier whose activation maps are the whole point: parent classes, and sub-categories beside them.

Source: SC-CAM, network/resnet38_cls.py. The heads are 1x1 convolutions without bias, so pooling and head commute:
a class logit is the spatial mean of its map before the ReLU. The paper's extra 3x3 convolution is in no released code.

    maps             Eq. 1 of pixel x's features f
    "parent"         max(0, w_c . f), the paper's
    "reactivated"    max(0, (w_c + v_c) . f)          v from stages/reactivate.py
    "prototypes"     max(0, v_c . f / |f|)            v from stages/prototypes.py
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccam.nets.backbones import Backbone
from sccam.nets.dropout import ChannelDropout

SHORTEST = 1e-4  # root of the mean square of features that are divided by it, a normal number of fp16


class CamNet(nn.Module):
    """A trunk with a parent head of C classes and, in rounds 1 to 3, a head of S sub-categories.

    Args:
        backbone: the trunk; heads read its deep tap.
        classes: C.
        subcategories: S; 0 leaves the second head out.
        maps: what activation maps are made of, a name in the table above.
    """

    def __init__(self, backbone: Backbone, classes: int, subcategories: int = 0, maps: str = "parent") -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = ChannelDropout(backbone.dropout)
        self.parent = _head(backbone.channels[-1], classes)
        self.sub = _head(backbone.channels[-1], subcategories) if subcategories > 0 else None
        self.maps = maps
        self.second = None if maps == "parent" else _head(backbone.channels[-1], classes)  # v

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalised images [N 3 H W] -> parent logits [N C] and sub-category logits [N S] (None without that head)."""
        return self.logits(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """[N 3 H W] -> the deep tap [N D h w], with dropout in training."""
        return torch.as_tensor(self.dropout(self.backbone(x)[-1]))

    def logits(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features [N D h w] -> parent logits [N C] and sub-category logits [N S]."""
        pooled = _pool(features)
        sub_logits = None if self.sub is None else self.sub(pooled).flatten(1)
        return self.parent(pooled).flatten(1), sub_logits

    def activation(self, x: Tensor) -> Tensor:
        """[N 3 H W] -> parent maps [N C h w], rectified, not yet divided by their maximum (Eq. 1)."""
        return self.rectified(self.backbone(x)[-1], self.map_weight())

    def activation_of(self, x: Tensor, classes: Sequence[int] | Tensor) -> Tensor:
        """[N 3 H W] -> maps [N P h w] of the P given classes only, in the given order; P may be 0."""
        index = torch.as_tensor(classes, dtype=torch.long, device=self.parent.weight.device)
        return self.rectified(self.backbone(x)[-1], self.map_weight()[index])

    def map_weight(self) -> Tensor:
        """What pixels are multiplied with, [C D]."""
        weight = self.parent.weight.flatten(1)
        if self.second is None:
            return weight
        second = self.second.weight.flatten(1)
        return weight + second if self.maps == "reactivated" else second

    def rectified(self, features: Tensor, weight: Tensor) -> Tensor:
        """Features [N D h w], weights [P D] -> maps [N P h w]."""
        maps = F.relu(torch.einsum("ndhw,pd->nphw", features, weight))
        return maps / lengths(features) if self.maps == "prototypes" else maps

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters by role: trunk "weights" and "norms", "heads", "head_biases" (none here)."""
        heads = [p for head in (self.parent, self.sub, self.second) if head is not None for p in head.parameters()]
        return {**self.backbone.parameter_groups(), "heads": heads, "head_biases": []}


def lengths(features: Tensor) -> Tensor:
    """|f| of every pixel, [N D h w] -> [N 1 h w]; from a mean of squares, as their sum can leave the range of fp16."""
    squares = features.square().mean(dim=1, keepdim=True)
    return squares.sqrt().clamp(min=SHORTEST) * features.shape[1] ** 0.5


def _pool(features: Tensor) -> Tensor:
    """[N D h w] -> [N D 1 1]."""
    return F.adaptive_avg_pool2d(features, 1)


def _head(channels: int, outputs: int) -> nn.Conv2d:
    head = nn.Conv2d(channels, outputs, 1, bias=False)
    nn.init.xavier_uniform_(head.weight)
    return head
