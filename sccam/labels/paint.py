"""Regions that a file describes, painted into class indices; whatever the file says wrongly is a DataError."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sccam.data.images import DEFAULT_MAX_PIXELS
from sccam.errors import DataError
from sccam.labels.polygons import Ring, filled
from sccam.structures import ByteArray

LEAST_NUMBERS = 6  # three points
FURTHEST = 1e7  # [px, or shares] of a coordinate; beyond it the file is damaged, and products would overflow


def checked_size(height: object, width: object, where: str) -> tuple[int, int]:
    """(H, W) of an image [px].

    Raises:
        DataError: they are not whole numbers from 1, or the image is too large to be one.
    """
    sides = [side for side in (height, width) if isinstance(side, int) and not isinstance(side, bool) and side > 0]
    if len(sides) < 2:
        raise DataError(f"not a height and width: {height!r}, {width!r}", where=where)
    if sides[0] * sides[1] > DEFAULT_MAX_PIXELS:
        raise DataError(f"too large: {width} x {height} px, the limit is {DEFAULT_MAX_PIXELS:,} px", where=where)
    return sides[0], sides[1]


def ring_of(numbers: object, where: str) -> Ring:
    """x y x y ... as a ring [n 2].

    Raises:
        DataError: they are not the coordinates of three points or more.
    """
    if not isinstance(numbers, Sequence) or len(numbers) < LEAST_NUMBERS or len(numbers) % 2:
        raise DataError("not a polygon: x and y of three points or more are needed", where=where)
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise DataError(f"not a coordinate: {number!r}", where=where)
        if not abs(number) <= FURTHEST:  # NaN is not, either
            raise DataError(f"coordinate {str(number)[:12]} is in no image", where=where)
    return np.array(numbers, float).reshape(-1, 2)


def paint(index: ByteArray, ring: Ring, label: int) -> None:
    """Gives the pixels of `index` [H W] whose centres the ring [px] encloses a label."""
    height, width = index.shape
    left, top = np.clip(np.floor(ring.min(axis=0)), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(ring.max(axis=0)), 0, (width, height)).astype(int)
    if left < right and top < bottom:
        box = index[top:bottom, left:right]
        box[filled(ring - (left, top), box.shape)] = label
