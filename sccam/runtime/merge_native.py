"""Eq. 1 after the network, in the compiled kernel: the same maps as the paper form in stages/cam.py, without torch.

The kernel is native/merge.h. Here are its checks, and torch's rule for where a cell of the grid reads (align_corners
False): at scale * (cell + 0.5) - 0.5, not below 0, with scale = size / grid; between two cells of the map, of which
the last is repeated. The rule is in float32 with one rounding at the end, as torch's compiled one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from sccam.errors import NumericError, ShapeError
from sccam.runtime import native
from sccam.stages.cam import MAX_EPSILON
from sccam.structures import FloatArray

CELLS_OF_A_THREAD = 1 << 18  # cells x scales for which another thread is started: it takes 25 us, they 40 [measured]


def merge_maps(
    views: Sequence[FloatArray],
    grid: tuple[int, int],
    *,
    flip: bool,
    threads: int = 0,
    instruction_set: str | None = None,
) -> FloatArray:
    """The maps [P h w] of one image, each class divided by (its maximum + 1e-5).

    Args:
        views: for each scale the rectified maps [V P h_s w_s]: of the image and, with `flip`, of its mirror image.
        grid: (h, w) of the result.
        flip: whether there is a mirror image, so that V is 2 and not 1.
        threads: 0 takes the cores of this process, fewer for a small grid. Their number does not change the result.
        instruction_set: one of `native.available()`; by default the best.

    Raises:
        ShapeError: a scale has another number of views or classes than it should, or the grid or a map has no cell.
        NumericError: a map is NaN or infinite.
        BackendUnavailable: the kernels are not compiled.
    """
    mirrored = 2 if flip else 1
    if not views or min(grid) < 1:
        raise ShapeError(f"{len(views)} scales on a grid of {grid}; at least one scale and one cell are needed")
    maps = [np.ascontiguousarray(view, np.float32) for view in views]
    classes = maps[0].shape[1] if maps[0].ndim == 4 else -1
    for view in maps:
        if view.ndim != 4 or view.shape[:2] != (mirrored, classes) or min(view.shape[2:]) < 1:
            raise ShapeError(f"maps of a scale have shape {view.shape}, expected [{mirrored}, P, h, w], P alike in all")
        if not np.isfinite(view.sum()) and not np.isfinite(view).all():  # the sum alone is quicker, but may overflow
            raise NumericError("an activation map is NaN or infinite", why="the classifier diverged")
    scores = np.empty((classes, *grid), np.float32)
    if classes == 0:
        return scores
    tables = [(_reads(view.shape[2], grid[0]), _reads(view.shape[3], grid[1])) for view in maps]  # held until the call
    scales = np.array(  # `Scale` of merge.h: nine words of 8 bytes
        [
            (view.ctypes.data, *view.shape[2:], *(table.ctypes.data for axis in reads for table in axis))
            for view, reads in zip(maps, tables, strict=True)
        ],
        dtype=np.int64,
    )
    if threads == 0:
        threads = max(1, min(native.thread_count(), scores.size * len(maps) // CELLS_OF_A_THREAD))
    native.call(
        "sccam_merge_maps",
        scales,
        len(maps),
        classes,
        flip,
        *grid,
        MAX_EPSILON,
        scores,
        threads,
        name=instruction_set,
    )
    return scores


@functools.lru_cache(maxsize=256)  # a data set has few sizes
def _reads(size: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the cells of a grid read along one axis: first cell, second cell, weight of the second."""
    scale = np.float64(np.float32(size) / np.float32(cells))
    at = np.maximum(scale * (np.arange(cells) + 0.5) - 0.5, 0).astype(np.float32)
    first = np.minimum(at.astype(np.int32), size - 1)
    return first, np.minimum(first + 1, size - 1), at - first.astype(np.float32)
