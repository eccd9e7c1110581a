"""Eq. 3: the classifier learns its classes and the sub-categories of the round together.

    L = L_parent(y_p, Y_p) + lambda L_sub(y_s, Y_s)

Source: Chang et al., CVPR 2020, Eq. 3 and Algorithm 1; authors' code train_cls.py.
Both terms are sigmoid cross-entropies averaged over their own logits. So lambda and K interact: a parent logit
weighs 1/C, a sub-category logit lambda/S; with lambda = 5 and K = 10 that is half of a parent logit, and it halves
again when K doubles. `sub_weight_rule = "paper"` leaves lambda as it is for every K; "per_class" multiplies it by
S / (10 C), so that each sub-category logit weighs what it weighs with the paper's ten clusters a class.
Differs: the paper describes an extra 3x3 convolution before the heads; the authors' code has none, nor has this.

With `equivariance` > 0 the maps of a smaller view have to be the smaller maps, for present classes:

    L_eq = mean |A(M(x)) - M(A(x))|        Source: Wang et al., SEAM, CVPR 2020, Eq. 4, without its attention

    symbol   name here       shape
    y_p      parent_logits   [N C]
    y_s      sub_logits      [N S]
    lambda   sub_weight
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, binary_cross_entropy_with_logits, relu

from sccam.data.transforms import AugmentConfig
from sccam.errors import ConfigError
from sccam.stages.cam import MAX_EPSILON
from sccam.stages.optim import OptimiserConfig

PAPER_K = 10  # clusters a class, §4.2


@dataclass(frozen=True, slots=True)
class ClassifyConfig:
    """Settings of Algorithm 1's classifiers. Round 0 is a plain classifier, rounds 1.. add the sub-categories."""

    rounds: int = field(default=3, metadata={"min": 0, "max": 100})  # paper Table 2
    epochs: tuple[int, ...] = (15, 31, 41, 51)  # trained in each round; the authors' snapshots ep30/40/50 count from 0
    schedule_epochs: tuple[int, ...] = (15, 61, 61, 61)  # T of the learning rate, in epochs
    batch: int = field(default=16, metadata={"min": 1})
    sub_weight: float = field(default=5.0, metadata={"min": 0.0})  # lambda of Eq. 3
    sub_weight_rule: str = field(default="paper", metadata={"choices": ("paper", "per_class")})
    equivariance: float = field(default=0.0, metadata={"min": 0.0})  # weight of L_eq; SEAM 1.0, the paper 0
    smaller: float = field(default=0.5, metadata={"min": 0.1, "max": 1.0})  # side of the smaller view; SEAM 0.3
    dropout: float = field(
        default=-1.0, metadata={"min": -1.0, "max": 0.95}
    )  # of channels before the heads; -1: trunk's
    freeze: int = field(default=-1, metadata={"min": -1})  # as network.freeze, for the classifiers alone; -1: as that
    enough: float = field(default=0.0, metadata={"min": 0.0})  # mean loss of an epoch that ends a round early; 0: none
    restart: str = field(default="pretrained", metadata={"choices": ("pretrained", "previous")})  # trunk of a new round
    augment: AugmentConfig = AugmentConfig()
    round0_crop: int = field(default=448, metadata={"min": 16, "max": 4096})  # [px] in round 0; psa's own classifier
    optimiser: OptimiserConfig = OptimiserConfig()

    def __post_init__(self) -> None:
        if not self.epochs or min(self.epochs) < 1:
            raise ConfigError(f"classify.epochs {list(self.epochs)} must be one or more positive numbers")
        if min(self.schedule_epochs, default=1) < 1:
            raise ConfigError(
                f"classify.schedule_epochs {list(self.schedule_epochs)} must be positive numbers, or none"
            )

    def augment_of(self, round_index: int) -> AugmentConfig:
        """The random view of a round."""
        return self.augment if round_index > 0 else replace(self.augment, crop=self.round0_crop)

    def epochs_of(self, round_index: int) -> tuple[int, int]:
        """(epochs, schedule epochs) of a round; the last entry serves all later rounds."""
        epochs = self.epochs[min(round_index, len(self.epochs) - 1)]
        schedule = self.schedule_epochs[min(round_index, len(self.schedule_epochs) - 1)] if self.schedule_epochs else 0
        return epochs, max(epochs, schedule)


def sub_weight_of(config: ClassifyConfig, classes: int, subcategories: int) -> float:
    """lambda of a round, for C classes and S sub-categories."""
    if config.sub_weight_rule == "paper":
        return config.sub_weight
    return config.sub_weight * subcategories / (PAPER_K * classes)


def joint_loss(
    parent_logits: Tensor,
    sub_logits: Tensor | None,
    parent_target: Tensor,
    sub_target: Tensor | None,
    sub_weight: float,
) -> Tensor:
    """Eq. 3, averaged over the batch. Without sub-categories (round 0) it is the parent term alone.

    Args:
        parent_logits, parent_target: [N C]; targets are 0 or 1.
        sub_logits, sub_target: [N S], both or neither.
        sub_weight: lambda.
    """
    loss = binary_cross_entropy_with_logits(parent_logits, parent_target)
    if sub_logits is not None and sub_target is not None:
        loss = loss + sub_weight * binary_cross_entropy_with_logits(sub_logits, sub_target)
    return loss


def equivariance_loss(large: Tensor, small: Tensor, targets: Tensor) -> Tensor:
    """L_eq over the maps of present classes, each divided by its own maximum; 0 where no image has a class.

    Args:
        large, small: [N C h w] scores of a view and of the same view made smaller, before the ReLU.
        targets: [N C], 0 or 1.
    """
    first, second = (
        _over_maximum(adaptive_avg_pool2d(relu(large), (small.shape[-2], small.shape[-1]))),
        _over_maximum(relu(small)),
    )
    present = targets[:, :, None, None]
    return ((first - second).abs() * present).sum() / (present.sum() * small[0, 0].numel()).clamp(min=1)


def _over_maximum(maps: Tensor) -> Tensor:
    return maps / (maps.amax(dim=(2, 3), keepdim=True) + MAX_EPSILON)
