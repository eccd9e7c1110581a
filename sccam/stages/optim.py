"""The optimiser rows of the paper and of the authors' code, and their polynomial learning rate.

Source: Chang et al., CVPR 2020 §4.1 (Adam, 1e-3, weight decay 5e-4); authors' tool/torchutils.py, train_cls.py
(SGD, 0.01, heads 10x, weight decay 5e-4, lr_t = lr_0 (1 - t/T)^0.9 at every step).
Differs: the authors' SGD passes its weight decay in the place of the momentum, so it runs with a momentum of 5e-4.
The intended 0.9 is used here; `momentum_slip = true` gives theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class OptimiserConfig:
    """One optimiser row. The learning rate of a group is `lr` times its factor."""

    name: str = field(default="sgd", metadata={"choices": ("sgd", "adam", "adamw")})
    lr: float = field(default=0.01, metadata={"min": 0.0})  # trunk weights; train_cls.py
    head_factor: float = field(default=10.0, metadata={"min": 0.0})  # of head weights; train_cls.py
    head_bias_factor: float = field(default=20.0, metadata={"min": 0.0})  # of head biases, without decay; DeepLab-v2
    momentum: float = field(default=0.9, metadata={"min": 0.0, "max": 1.0})  # sgd only
    weight_decay: float = field(default=5e-4, metadata={"min": 0.0})
    power: float = field(default=0.9, metadata={"min": 0.0})  # of the polynomial decay
    momentum_slip: bool = False  # true: momentum = weight decay, as the authors' code really runs


def build_optimiser(groups: Mapping[str, Sequence[nn.Parameter]], config: OptimiserConfig) -> torch.optim.Optimizer:
    """The optimiser over a network's `parameter_groups()`; empty groups are left out.

    Args:
        groups: "weights", "norms" (trunk; norms without decay), "heads", "head_biases" (without decay).
    """
    factor = {"weights": 1.0, "norms": 1.0, "heads": config.head_factor, "head_biases": config.head_bias_factor}
    rows: list[dict[str, Any]] = [
        {
            "params": list(parameters),
            "lr": config.lr * factor[name],
            "initial_lr": config.lr * factor[name],
            "weight_decay": config.weight_decay if name in ("weights", "heads") else 0.0,
        }
        for name, parameters in groups.items()
        if len(parameters) > 0
    ]
    if config.name == "sgd":
        momentum = config.weight_decay if config.momentum_slip else config.momentum
        return torch.optim.SGD(rows, lr=config.lr, momentum=momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name](rows, lr=config.lr)


def poly_factor(step: int, total_steps: int, power: float) -> float:
    """(1 - t/T)^power, the factor on every learning rate at step t of T; 0 from T on."""
    return max(0.0, 1.0 - step / total_steps) ** power


def set_learning_rate(optimiser: torch.optim.Optimizer, factor: float) -> None:
    """Gives every group its initial learning rate times `factor`."""
    for group in optimiser.param_groups:
        group["lr"] = group["initial_lr"] * factor
