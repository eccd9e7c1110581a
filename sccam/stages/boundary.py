"""Affinity from boundaries: two cells belong together unless a boundary lies between them.

    a_ij = 1 - max over cells k on the line from i to j of B_k

Source: Ahn, Cho and Kwak, Weakly Supervised Learning of Instance Segmentation with Inter-pixel Relations (IRN), CVPR
2019, Eq. 5. The labels, the loss and the walk are psa's, in affinity.py, affinity_labels.py and walk.py; here is only
what a pair's affinity is made of. Loads no PyTorch until the loss is asked for.
Differs: the grid and the radius are those of the affinity labels (8 px and 5 cells by default; IRN has 4 px and 10
cells), and there is no displacement field, which is for telling instances apart.

    symbol   name here    shape
    B        boundary     [N h w] in [0, 1]
    a        affinity     [R h w] of one image
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sccam.stages.walk import pair_windows
from sccam.structures import AffinityField, FloatArray, IntArray

if TYPE_CHECKING:
    from torch import Tensor


def line(dy: int, dx: int) -> list[tuple[int, int]]:
    """Cells (y, x) of the straight line from (0, 0) to (dy, dx), both ends included."""
    steps = max(abs(dy), abs(dx))
    if steps == 0:
        return [(0, 0)]
    return [(round(dy * step / steps), round(dx * step / steps)) for step in range(steps + 1)]


def boundary_field(boundary: FloatArray, offsets: IntArray, stride: int) -> AffinityField:
    """Affinities of all neighbouring cells of one image, 0 where the second cell lies outside.

    Args:
        boundary: [h w].
        offsets: i32 [R 2], from `neighbour_offsets`.
        stride: [px per cell].
    """
    values = np.zeros((len(offsets), *boundary.shape), np.float32)
    for plane, offset in zip(values, offsets.tolist(), strict=True):
        here, _ = pair_windows(boundary.shape[0], boundary.shape[1], offset, offsets, "clean")
        plane[here] = 1 - np.max([boundary[shifted(here, cell)] for cell in line(*offset)], axis=0)
    return AffinityField(values, offsets, stride)


def pair_affinities(boundary: Tensor, offset: tuple[int, int], here: tuple[slice, slice]) -> Tensor:
    """Affinities of the pairs whose first cells are the rectangle `here`, [N ...].

    Args:
        boundary: [N h w].
        offset: (dy, dx) from the first to the second cell.
    """
    import torch

    highest = boundary[:, *here]
    for cell in line(*offset)[1:]:
        highest = torch.maximum(highest, boundary[:, *shifted(here, cell)])
    return 1 - highest


def shifted(window: tuple[slice, slice], cell: tuple[int, int]) -> tuple[slice, slice]:
    """The rectangle moved by (dy, dx)."""
    rows, columns = (slice(part.start + by, part.stop + by) for part, by in zip(window, cell, strict=True))
    return rows, columns
