"""From the network's grid to pixels: bilinear scores and their arg-max, a strip at a time, so that memory is bounded.

    score(y, x) = sum over the two rows and two columns of cells around ((y + 1/2) g - 1/2, (x + 1/2) g' - 1/2)

g, g' are cells per pixel: 1 / stride where the network saw the image as it is, less where it saw a smaller one. The
weights are those of stages/walk.upsample, cells beyond the border repeating the last one (align_corners False).
"""

from __future__ import annotations

import numpy as np

from sccam.structures import ByteArray, FloatArray

STRIP_VALUES = 4 << 20  # scores that are held at a time


def pixel_scores(
    grid: FloatArray, rows: range, columns: range, cells_per_pixel: tuple[float, float]
) -> FloatArray:  # fmt: skip
    """Scores f32 [c rows columns] of a window of pixels.

    Args:
        grid: [c h w].
        rows, columns: of pixels of the whole image.
        cells_per_pixel: (g, g').
    """
    down = _weights(rows, grid.shape[1], cells_per_pixel[0])
    across = _weights(columns, grid.shape[2], cells_per_pixel[1])
    scores: FloatArray = down @ grid.astype(np.float32, copy=False) @ across.T
    return scores


def pixel_labels(grid: FloatArray, size: tuple[int, int], cells_per_pixel: tuple[float, float]) -> ByteArray:
    """The channel with the highest score at every pixel, u8 [H W]; the first of equal ones.

    Args:
        grid: [c h w], c at most 256.
        size: (H, W) [px].
        cells_per_pixel: (g, g').
    """
    height, width = size
    grid = grid.astype(np.float32, copy=False)
    across = grid @ _weights(range(width), grid.shape[2], cells_per_pixel[1]).T  # [c h W]
    down = _weights(range(height), grid.shape[1], cells_per_pixel[0])
    labels = np.empty(size, np.uint8)
    step = max(1, STRIP_VALUES // (len(grid) * width))
    for top in range(0, height, step):
        labels[top : top + step] = (down[top : top + step] @ across).argmax(axis=0)
    return labels


def regridded(grid: FloatArray, cells: tuple[int, int], scale: tuple[float, float]) -> FloatArray:
    """A grid [... h w] read at other cells: f32 [... h' w'].

    Args:
        cells: (h', w').
        scale: old cells per new cell, by axis.
    """
    down = _weights(range(cells[0]), grid.shape[-2], scale[0])
    across = _weights(range(cells[1]), grid.shape[-1], scale[1])
    found: FloatArray = down @ grid.astype(np.float32, copy=False) @ across.T
    return found


def _weights(pixels: range, cells: int, cells_per_pixel: float) -> FloatArray:
    """f32 [pixels cells]: the one or two cells that each pixel reads, weights summing to one."""
    at = np.clip((np.arange(pixels.start, pixels.stop) + 0.5) * cells_per_pixel - 0.5, 0, cells - 1)
    below = at.astype(int)
    part = (at - below).astype(np.float32)
    weights = np.zeros((len(at), cells), np.float32)
    lines = np.arange(len(at))
    weights[lines, below] = 1 - part
    weights[lines, np.minimum(below + 1, cells - 1)] += part
    return weights
