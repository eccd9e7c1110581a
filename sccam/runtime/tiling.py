"""Images too large for the network at once: tiles that overlap, blended on the network's grid.

A tile's weight falls linearly to its borders within the overlap, so no seam shows; weights are divided by their sum.
What lies deeper in a tile than the network sees far is what the whole image would have given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from sccam.structures import ByteArray, FloatArray

TILE = 1024  # [px] side; a batch of one at this size fits small GPUs
OVERLAP = 128  # [px] on each side that has a neighbour
TILED_ABOVE = 4 << 20  # [px] larger inputs are tiled


def windows(length: int, tile: int, overlap: int, multiple: int) -> list[range]:
    """Ranges of at most `tile` that cover 0 .. length and overlap by `overlap` or more; they begin at multiples.

    Args:
        length: [px], a multiple of `multiple`, as are `tile` and `overlap`.
    """
    if length <= tile:
        return [range(length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(n * (length - tile) / (count - 1) / multiple) * multiple for n in range(count)]
    return [range(start, start + tile) for start in starts]


def tiled_logits(
    images: ByteArray,
    logits_of: Callable[[ByteArray], FloatArray],
    *,
    stride: int,
    multiple: int,
    tile: int = TILE,
    overlap: int = OVERLAP,
) -> FloatArray:
    """Logits f32 [N c h w] of images that are too large, tile by tile.

    Args:
        images: u8 [N H W 3], sides multiples of `multiple`.
        logits_of: images -> logits on their grid.
        stride: [px per cell]; `multiple` is a multiple of it.
    """
    n, height, width = images.shape[:3]
    total = weight = None
    for rows, columns in _pairs(windows(height, tile, overlap, multiple), windows(width, tile, overlap, multiple)):
        crop = np.ascontiguousarray(images[:, rows.start : rows.stop, columns.start : columns.stop])
        logits = logits_of(crop)
        if total is None or weight is None:
            total = np.zeros((n, logits.shape[1], height // stride, width // stride), np.float32)
            weight = np.zeros(total.shape[2:], np.float32)
        down, across = (_ramp(len(axis) // stride, overlap // stride) for axis in (rows, columns))
        share = down[:, None] * across[None, :]
        at = (slice(rows.start // stride, rows.stop // stride), slice(columns.start // stride, columns.stop // stride))
        total[..., at[0], at[1]] += share * logits
        weight[at] += share
    assert total is not None and weight is not None
    total /= weight
    return total


def _pairs(first: list[range], second: list[range]) -> Iterator[tuple[range, range]]:
    return ((a, b) for a in first for b in second)


def _ramp(cells: int, overlap: int) -> FloatArray:
    """Weights that rise from the border over `overlap` cells, f32 [cells]; never 0."""
    from_border = np.minimum(np.arange(cells), np.arange(cells)[::-1]) + 0.5
    return np.minimum(1, from_border / max(1, overlap)).astype(np.float32)
