"""Class reactivation: a head that must tell the classes of an image apart, learned where each class is seen.

    z_c = mean over x of M_c(x) f(x),   L = L_parent + lambda mean over present c of CE(v . z_c, c)
    maps: max(0, (w_c + v_c) . f(x))

Source: Chen et al., Class Re-Activation Maps (ReCAM), CVPR 2022, Eqs. 2-5 and Table 1 (weights added). Sigmoid scores
of one class do not compete with another's, so two classes that come together light up on each other; here each class's
own pixels, weighed by its map, have to be that class and no other by softmax. A round of its own after the last.
Differs: the maps that weigh the pixels are not learned through.

    symbol   name here      shape
    f        features       [N D h w]
    w        parent         [C D]
    v        second         [C D]
    M        maps           [N C h w], each over its maximum
    lambda   weight         scalar
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, relu

from sccam.stages.cam import MAX_EPSILON
from sccam.stages.optim import OptimiserConfig


@dataclass(frozen=True, slots=True)
class ReactivateConfig:
    """Settings of the reactivation round."""

    epochs: int = field(default=0, metadata={"min": 0})  # 0: no such round; ReCAM 4
    weight: float = field(default=1.0, metadata={"min": 0.0})  # lambda; ReCAM 1.0
    optimiser: OptimiserConfig = OptimiserConfig(lr=5e-4)  # ReCAM 5e-4


def reactivation_loss(features: Tensor, parent: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy of every present class's own features; 0 where no image has a class.

    Args:
        features: [N D h w].
        parent, second: [C D].
        targets: [N C], 0 or 1.
    """
    with torch.no_grad():
        maps = relu(torch.einsum("ndhw,cd->nchw", features, parent))
        maps = maps / (maps.amax(dim=(2, 3), keepdim=True) + MAX_EPSILON)
    images, classes = torch.nonzero(targets > 0, as_tuple=True)
    if not len(images):
        return features.sum() * 0
    pooled = torch.einsum("nchw,ndhw->ncd", maps, features)[images, classes] / maps[0, 0].numel()
    return cross_entropy(pooled @ second.T, classes)
