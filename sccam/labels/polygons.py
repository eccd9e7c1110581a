"""Regions of a mask as polygons on the edges of its pixels, and polygons as masks.

A pixel (y, x) is the square from (x, y) to (x + 1, y + 1), as in COCO. A region is a connected component of one
class: pixels that share a side (not only a corner), so that it has one outer ring and any number of holes. Outer
rings run clockwise on the screen, holes the other way round. No format here knows holes, so `keyhole` joins them to
the outer ring by doubled edges, which enclose nothing: a reader that fills by the even-odd rule gets the holes back.

`simplified` is Douglas and Peucker's way (1973): every pixel whose centre is further than the tolerance from the border
of its region keeps its label, since between a border and its simplification no point is moved further than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sccam.structures import BACKGROUND, IGNORE, BoolArray, ByteArray, IntArray

Ring = np.ndarray  # [n 2] of x, y [px]; closed, the first point is not repeated
TOP, RIGHT, BOTTOM, LEFT = range(4)  # the sides of a pixel, in the order of a clockwise walk
# (dy, dx) of the pixel ahead of each side, and of the one beyond the side ahead
_AHEAD = ((0, 1), (1, 0), (0, -1), (-1, 0))
_BEYOND = ((-1, 1), (1, 1), (1, -1), (-1, -1))
_START = ((0, 0), (1, 0), (1, 1), (0, 1))  # (x, y) of where each side starts, from its pixel


@dataclass(frozen=True, slots=True)
class Regions:
    """Connected components of a mask, numbered from 1."""

    number: IntArray  # [H W]; 0 is background, 255 and what is too small
    label: ByteArray  # of each, from number 1 on
    area: IntArray  # [px] of each
    boxes: tuple[tuple[slice, slice], ...]  # rows and columns of each

    def __len__(self) -> int:
        return len(self.label)

    def mask(self, n: int) -> BoolArray:
        """Where region n, from 0, is in its box."""
        return np.asarray(self.number[self.boxes[n]] == n + 1)


def regions(index: ByteArray, min_area: int = 0) -> Regions:
    """The connected components of every class in a mask [H W], class by class; those below `min_area` [px] left out."""
    from scipy import ndimage

    number = np.zeros(index.shape, np.int32)
    labels: list[ByteArray] = []
    count = 0
    for label in np.flatnonzero(np.bincount(index.ravel(), minlength=IGNORE + 1)):
        if label in (BACKGROUND, IGNORE):
            continue
        found, new = ndimage.label(index == label)
        np.copyto(number, found + count, where=found > 0)
        labels.append(np.full(new, label, np.uint8))
        count += new
    label_of = np.concatenate(labels) if labels else np.zeros(0, np.uint8)
    area = np.bincount(number.ravel(), minlength=count + 1)[1:]
    if (keep := area >= min_area).all():
        return Regions(number, label_of, area.astype(np.int32), tuple(ndimage.find_objects(number)))
    renumbered = np.r_[0, np.where(keep, np.cumsum(keep), 0)].astype(np.int32)[number]
    return Regions(renumbered, label_of[keep], area[keep].astype(np.int32), tuple(ndimage.find_objects(renumbered)))


def polygons(found: Regions, tolerance: float = 0.0) -> list[Ring]:
    """One ring for each region, its holes joined in.

    Args:
        tolerance: how far the border may move [px]; 0 for exactly the pixels. A ring that would lose all its area
            keeps its exact form.
    """
    outer: list[Ring | None] = [None] * len(found)
    holes: list[list[Ring]] = [[] for _ in range(len(found))]
    for n, ring in _rings(found.number):
        clockwise = signed_area(ring) > 0
        if tolerance > 0:
            simple = simplified(ring, tolerance)
            if len(simple) < 3 and not clockwise:
                continue  # a hole that is all within the tolerance of its border
            if len(simple) >= 3 and signed_area(simple) * signed_area(ring) > 0:
                ring = simple
        if clockwise:
            outer[n] = ring
        else:
            holes[n].append(ring)
    return [keyhole(ring, inner) for ring, inner in zip(outer, holes, strict=True) if ring is not None]


def signed_area(ring: Ring) -> float:
    """The area a ring encloses [px]; positive where it runs clockwise on the screen."""
    x, y = ring[:, 0].astype(float), ring[:, 1].astype(float)
    return float(np.dot(x, np.roll(y, -1)) - np.dot(np.roll(x, -1), y)) / 2


def keyhole(outer: Ring, holes: Sequence[Ring]) -> Ring:
    """The outer ring with every hole joined to its nearest point by an edge there and back."""
    if not holes:
        return outer
    from scipy.spatial import cKDTree

    tree = cKDTree(outer)
    joined: dict[int, list[Ring]] = {}
    for hole in holes:
        distance, nearest = tree.query(hole)
        first = int(np.argmin(distance))
        turned = np.roll(hole, -first, axis=0)
        joined.setdefault(int(nearest[first]), []).append(np.concatenate([turned, turned[:1]]))
    parts, done = [], 0
    for place in sorted(joined):
        parts.append(outer[done : place + 1])
        for hole in joined[place]:
            parts += [hole, outer[place : place + 1]]
        done = place + 1
    return np.concatenate([*parts, outer[done:]])


def simplified(ring: Ring, tolerance: float) -> Ring:
    """A ring with fewer of its points: none of those left out is further than `tolerance` [px] from the new border."""
    # The two fixed points of a closed line: the first, and the one that is furthest from it.
    far = int(np.argmax(((ring - ring[0]) ** 2).sum(axis=1)))
    closed = np.concatenate([ring, ring[:1]]).astype(float)
    keep = np.zeros(len(closed), bool)
    keep[[0, far]] = True
    pending = [(0, far), (far, len(ring))]
    while pending:
        start, end = pending.pop()
        if end - start < 2:
            continue
        distance = _to_segment(closed[start + 1 : end], closed[start], closed[end])
        worst = int(np.argmax(distance))
        if distance[worst] > tolerance:
            middle = start + 1 + worst
            keep[middle] = True
            pending += [(start, middle), (middle, end)]
    return ring[keep[:-1]]


def filled(ring: np.ndarray, size: tuple[int, int]) -> BoolArray:
    """The pixels [H W] whose centres a ring [n 2] of x, y [px] encloses by the even-odd rule."""
    height, width = size
    x0, y0 = ring[:, 0].astype(float), ring[:, 1].astype(float)
    x1, y1 = np.roll(x0, -1), np.roll(y0, -1)
    # Rows whose centres an edge crosses; one end belongs to it, so that a corner on a centre counts once.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    after = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    counts = after - first
    edge = np.repeat(np.arange(len(ring)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    crossings = np.bincount(row * (width + 1) + column, minlength=height * (width + 1)).reshape(height, width + 1)
    return (np.cumsum(crossings, axis=1) & 1).astype(bool)[:, :width]


def _rings(number: IntArray) -> Iterator[tuple[int, Ring]]:
    """(region from 0, ring) of every border: its corners, the region on the right hand."""
    height, width = number.shape
    around = np.zeros((height + 2, width + 2), np.int32)
    around[1:-1, 1:-1] = number

    def shifted(offset: tuple[int, int]) -> IntArray:
        dy, dx = offset
        return around[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    # An edge is a side of a pixel beyond which another region lies. Its code is 4 * pixel + side.
    outside = (_AHEAD[LEFT], _AHEAD[TOP], _AHEAD[RIGHT], _AHEAD[BOTTOM])
    codes, following = [], []
    for side in range(4):
        pixel = np.flatnonzero((number > 0) & (shifted(outside[side]) != number))
        own = number.ravel()[pixel]
        ahead = shifted(_AHEAD[side]).ravel()[pixel] == own if len(pixel) else np.zeros(0, bool)
        beyond = shifted(_BEYOND[side]).ravel()[pixel] == own if len(pixel) else np.zeros(0, bool)
        (ay, ax), (by, bx) = _AHEAD[side], _BEYOND[side]
        turn_right = 4 * pixel + (side + 1) % 4
        straight = 4 * (pixel + ay * width + ax) + side
        turn_left = 4 * (pixel + by * width + bx) + (side + 3) % 4
        codes.append(4 * pixel + side)
        following.append(np.where(~ahead, turn_right, np.where(beyond, turn_left, straight)))
    code = np.concatenate(codes)
    order = np.argsort(code)
    code = code[order]
    after: list[int] = np.searchsorted(code, np.concatenate(following)[order]).tolist()
    seen = bytearray(len(after))
    side_of, pixel_of = code % 4, code // 4
    for start in range(len(after)):
        if seen[start]:
            continue
        walked = []
        edge = start
        while not seen[edge]:
            seen[edge] = 1
            walked.append(edge)
            edge = after[edge]
        walk = np.array(walked)
        sides = side_of[walk]
        corner = walk[sides != np.roll(sides, 1)]
        y, x = np.divmod(pixel_of[corner], width)
        yield int(number.flat[pixel_of[start]]) - 1, np.stack([x, y], axis=1) + np.array(_START)[side_of[corner]]


def _to_segment(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The distance of each point [n 2] from a straight line between two points."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length > 0 else np.zeros(len(points))
    rest = points - start - share[:, None] * along
    return np.hypot(rest[:, 0], rest[:, 1])
