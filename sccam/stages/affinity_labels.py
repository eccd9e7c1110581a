"""Which cells surely show the same thing: affinity labels from two CRF posteriors, and the pairs that are compared.

Source: Ahn & Kwak, CVPR 2018, section 3.2; authors' code psa/infer_cls.py, psa/voc12/data.py, psa/tool/pyutils.py.
Loads no PyTorch: worker processes make the labels.

    symbol   name here      shape
             low_scores     [P+1 H W] posterior where background is strong: what stays foreground is sure
             high_scores    [P+1 H W] posterior where background is weak: what stays background is sure
             offsets        [R 2] (dy, dx), half of a disc
"""

from __future__ import annotations

import numpy as np

from sccam.errors import ShapeError
from sccam.stages.walk import pool_to_grid
from sccam.structures import BACKGROUND, IGNORE, ByteArray, FloatArray, IntArray

AFFINITY_STRIDE = 8  # [px per cell] of affinities and walk; psa
PADDING_SCORE = 1e-5  # below it in every channel a cell is padding; psa/voc12/data.py


def neighbour_offsets(radius: int = 5) -> IntArray:
    """i32 [R 2] of (dy, dx): the half of the disc dx^2 + dy^2 < radius^2 with dy > 0, or dy = 0 and dx > 0.

    Rows run by dy, then dx. Every unordered pair of cells appears once.
    """
    reach = range(-radius + 1, radius)
    half_plane = [
        (dy, dx) for dy in range(radius) for dx in reach if (dy > 0 or dx > 0) and dx * dx + dy * dy < radius * radius
    ]
    return np.array(half_plane, np.int32).reshape(-1, 2)


def affinity_labels(low_scores: FloatArray, high_scores: FloatArray, stride: int = 8) -> ByteArray:
    """u8 [h w]: 0 sure background, p + 1 surely the p-th present class, 255 unsure.

    Args:
        low_scores: [P+1 H W], CRF posterior with `alpha_low`, background first.
        high_scores: [P+1 H W], the same with `alpha_high`.
        stride: [px per cell].

    Raises:
        ShapeError: the two posteriors differ in shape.

    Source: psa/voc12/data.py, ExtractAffinityLabel and its loader. Labels count the classes of this image only:
    pairs need to know no more than same or different. Cells without any score are padding and unsure.
    """
    if low_scores.shape != high_scores.shape:
        raise ShapeError(f"posteriors have shapes {low_scores.shape} and {high_scores.shape}; they must be equal")
    low, high = pool_to_grid(low_scores, stride), pool_to_grid(high_scores, stride)
    foreground, background = low.argmax(axis=0), high.argmax(axis=0)
    labels = np.where(foreground == BACKGROUND, IGNORE, foreground)
    labels[background == BACKGROUND] = BACKGROUND
    labels[np.maximum(low.max(axis=0), high.max(axis=0)) < PADDING_SCORE] = IGNORE
    return labels.astype(np.uint8)
