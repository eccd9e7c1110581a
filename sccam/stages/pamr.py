"""Pixel-adaptive mask refinement: every pixel takes over what pixels of its colour nearby say; a filter, not a network.

    k_ij = -mean over RGB |I_i - I_j| / (0.1 sigma_i),   a_ij = exp(k_ij) / sum over j' exp(k_ij')
    p_i <- sum over j a_ij p_j,   repeated; j runs over 3x3 neighbours at several dilations

Source: Araslanov and Roth, Single-stage Semantic Segmentation from Image Labels, CVPR 2020, Eqs. 6-8; its 10 steps, and
the dilations 1, 2, 4, 8, 12, 24 that later work uses. It has no message between far pixels as the dense CRF has, but
consists of shifts, sums and one softmax, so an accelerator can run it inside a graph.

    symbol   name here        shape
    I        image            u8 [H W 3]
    p        probabilities    [P H W]
    a        weights          [8 D, H W] for D dilations
"""

from __future__ import annotations

import numpy as np

from sccam.errors import ShapeError
from sccam.structures import ByteArray, FloatArray

DILATIONS = (1, 2, 4, 8, 12, 24)
NEIGHBOURS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))
SOFTNESS = 0.1  # of a pixel's own spread of colours
EPSILON = 1e-8


def refine(image: ByteArray, probabilities: FloatArray, steps: int) -> FloatArray:
    """Refined probabilities f32 [P H W], with the same sum over P.

    Args:
        image: u8 [H W 3].
        probabilities: [P H W].
        steps: repetitions.

    Raises:
        ShapeError: the two differ in size.
    """
    if image.shape[:2] != probabilities.shape[1:]:
        raise ShapeError(f"image {image.shape[:2]} and probabilities {probabilities.shape[1:]} differ in size")
    weights = _weights(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32))
    found = np.asarray(probabilities, np.float32)
    for _ in range(steps):
        padded, total = _padded(found), np.zeros_like(found)
        for weight, window in zip(weights, _windows(found.shape[1:]), strict=True):
            total += weight * padded[:, *window]
        found = total
    return found


def _weights(image: FloatArray) -> FloatArray:
    padded, size = _padded(image), image.shape[1:]
    shifted = [padded[:, *window] for window in _windows(size)]
    total, squares = np.zeros_like(image), np.zeros_like(image)
    for values in shifted:
        total += values
        squares += values * values
    count = len(shifted)
    spread = np.sqrt(np.maximum(squares - total * total / count, 0) / (count - 1))
    scale = 1 / (SOFTNESS * spread + EPSILON)
    logits = np.stack([-(np.abs(image - values) * scale).mean(axis=0) for values in shifted])
    powers = np.exp(logits - logits.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0), np.float32)


def _padded(values: FloatArray) -> FloatArray:
    reach = max(DILATIONS)
    return np.pad(values, ((0, 0), (reach, reach), (reach, reach)), mode="edge")


def _windows(size: tuple[int, ...]) -> list[tuple[slice, slice]]:
    reach, (height, width) = max(DILATIONS), size
    return [
        (slice(reach + d * dy, reach + d * dy + height), slice(reach + d * dx, reach + d * dx + width))
        for d in DILATIONS
        for dy, dx in NEIGHBOURS
    ]
