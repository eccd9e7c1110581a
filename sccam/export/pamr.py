"""Pixel-adaptive mask refinement inside a graph: that of `stages/pamr.py`, in Pad, Slice and arithmetic.

Differences to the pixel itself take the place of colours, so that half precision holds the spread of a flat place; and
a floor of the spread, below what one level of one neighbour makes, takes the place of the paper's small summand.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sccam.stages.pamr import DILATIONS, NEIGHBOURS, SOFTNESS

LEVELS = 16 / 255  # of 8 bits: the squares of 48 differences stay below the largest number in half precision
LEAST = 5e-4  # of SOFTNESS times the spread; one neighbour that differs by one level gives 9e-4
OFFSETS = tuple((d * dy, d * dx) for d in DILATIONS for dy, dx in NEIGHBOURS)
REACH = max(DILATIONS)


def refine(image: Tensor, probabilities: Tensor, steps: int) -> Tensor:
    """Refined probabilities [N L H W].

    Args:
        image: levels of 8 bits as floats [N 3 H W].
        probabilities: [N L H W].
        steps: repetitions, unrolled in the graph.
    """
    weights = _weights(image * LEVELS)
    for _ in range(steps):
        padded = _padded(probabilities)
        probabilities = sum(  # type: ignore[assignment]
            weight * _window(padded, *offset) for weight, offset in zip(weights, OFFSETS, strict=True)
        )
    return probabilities


def _weights(image: Tensor) -> tuple[Tensor, ...]:
    """Of every offset [N 1 H W], with the sum 1 over offsets."""
    padded, count = _padded(image), len(OFFSETS)
    differences = [_window(padded, *offset) - image for offset in OFFSETS]
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for values in differences:
        total, squares = total + values, squares + values * values
    spread = ((squares - total * total / count).clamp(min=0) / (count - 1)).sqrt()
    scale = (SOFTNESS * spread).clamp(min=LEAST)
    logits = torch.cat([-(values.abs() / scale).mean(dim=1, keepdim=True) for values in differences], dim=1)
    return torch.softmax(logits, dim=1).split(1, dim=1)


def _padded(values: Tensor) -> Tensor:
    return F.pad(values, (REACH, REACH, REACH, REACH), mode="replicate")


def _window(padded: Tensor, dy: int, dx: int) -> Tensor:
    """The values at an offset; slices count from the end, so their bounds are constants."""
    return padded[:, :, REACH + dy : (dy - REACH) or None, REACH + dx : (dx - REACH) or None]
