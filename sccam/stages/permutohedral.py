"""Permutohedral lattice: a Gaussian filter over points of any features, in time linear in their number.

Source: Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", Eurographics 2010.
Numbers and order of operations are those of Krähenbühl & Koltun's densecrf library, which pydensecrf wraps.

    symbol   name here                   shape
    f        features, in deviations     [d N]
    E f      elevated                    [d+1 N], coordinates that sum to zero
    S        splat, barycentric weights  sparse [M N], d + 1 vertices a point
    B_j      blur along axis j           v + (v of both neighbours) / 2; missing neighbours count as zero
    K        filter                      alpha S' B_d ... B_0 S, alpha = 1 / (1 + 2^-d)

The M vertices are the corners of the simplices that hold a point, no others: K depends on which exist. A vertex has
d + 1 integer coordinates with one remainder modulo d + 1; it is written as that remainder and the d quotients.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sccam.errors import ShapeError
from sccam.structures import FloatArray

Keys = NDArray[np.int64]

REMAINDER_BITS = 3  # of a key, for d + 1 <= 8
QUOTIENT_BITS = {2: 21, 5: 12}  # of a key, each of the d quotients; 63 bits hold remainder and quotients
POINTS_AT_ONCE = 4  # densecrf's lanes: it fills up the last ones with points at the origin, which make vertices


@dataclass(frozen=True, slots=True)
class Lattice:
    """The vertices around a set of points, and how values get there, spread and get back."""

    splat: sparse.csr_array  # [M N] f32
    neighbours: NDArray[np.intp]  # [d+1 2 M], M where there is none

    def filter(self, values: FloatArray) -> FloatArray:
        """K values, f32 [N c], for values [N c]."""
        vertices, _ = self.splat.shape
        at_vertices = np.zeros((vertices + 1, values.shape[1]), np.float32)  # the last row stays zero
        at_vertices[:-1] = self.splat @ values
        for one, other in self.neighbours:
            at_vertices[:-1] += np.float32(0.5) * (at_vertices[one] + at_vertices[other])
        alpha = np.float32(1 / (1 + 2.0 ** -(len(self.neighbours) - 1)))
        return alpha * (self.splat.T @ at_vertices[:-1])


def permutohedral_lattice(features: FloatArray) -> Lattice:
    """The lattice around N points with features [d N], in standard deviations of the Gaussian; d is 2 or 5.

    Raises:
        ShapeError: the points lie so far apart, in deviations, that keys of 64 bits do not tell the vertices apart.
    """
    dimension, points = features.shape
    filled = np.pad(features, ((0, 0), (0, -points % POINTS_AT_ONCE)))
    quotients, ranks, residues = _nearest_remainder_zero(_elevated(filled))
    _require_room(quotients, dimension)
    keys, weights = _simplex_keys(quotients, ranks), _barycentric(ranks, residues)

    vertices, index = np.unique(keys.ravel(), return_inverse=True)
    index = index.reshape(keys.shape)[:, :points]
    columns = np.broadcast_to(np.arange(points), index.shape)
    entries = (weights[:, :points].ravel(), (index.ravel(), columns.ravel()))
    return Lattice(sparse.csr_array(entries, shape=(len(vertices), points)), _neighbours(vertices, dimension))


def _elevated(features: FloatArray) -> FloatArray:
    """E f [d+1 N]: on the plane of coordinate sum zero, where the blur's variance is that of a unit Gaussian."""
    dimension, points = features.shape
    deviation = np.float32(np.sqrt(2 / 3) * (dimension + 1))  # of the blur, in steps of the lattice
    elevated = np.empty((dimension + 1, points), np.float32)
    total = np.zeros(points, np.float32)
    for axis in range(dimension, 0, -1):
        scaled = features[axis - 1] * np.float32(1 / np.sqrt((axis + 1) * axis) * float(deviation))
        elevated[axis] = total - np.float32(axis) * scaled
        total = total + scaled
    elevated[0] = total
    return elevated


def _nearest_remainder_zero(elevated: FloatArray) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    """The closest vertex with remainder 0 and the position relative to it.

    Returns:
        its quotients [d+1 N], the rank of each residue (0 the largest) [d+1 N], the residues / (d + 1) [d+1 N].
    """
    sides = len(elevated)
    inverse = np.float32(1) / np.float32(sides)
    rounded = np.rint(inverse * elevated)
    residues = elevated - rounded * np.float32(sides)
    ranks = np.zeros(elevated.shape, np.int64)
    for first in range(sides):
        for second in range(first + 1, sides):
            is_smaller = residues[first] < residues[second]
            ranks[first] += is_smaller
            ranks[second] += ~is_smaller

    with np.errstate(invalid="ignore"):  # features beyond all integers are refused by the caller
        quotients = rounded.astype(np.int64)
    excess = quotients.sum(axis=0)  # of steps off the plane; the coordinates that were rounded furthest take them back
    ranks += excess
    step = (ranks < 0).astype(np.int64) - (ranks >= sides)
    quotients, ranks = quotients + step, ranks + step * sides
    return quotients, ranks, (elevated - quotients.astype(np.float32) * np.float32(sides)) * inverse


def _barycentric(ranks: NDArray[np.int64], residues: FloatArray) -> FloatArray:
    """Weights [d+1 N] of the vertices with remainder 0 ... d: differences between residues in descending order."""
    ascending = np.empty_like(residues)
    np.put_along_axis(ascending, len(ranks) - 1 - ranks, residues, axis=0)
    weights = np.diff(ascending, axis=0, prepend=ascending[-1:] - np.float32(1))
    weights[0] = ascending[0] + (np.float32(1) - ascending[-1])
    return weights


def _units(dimension: int) -> Keys:
    """What one step of each quotient adds to a key [d+1]; the last coordinate follows from the others."""
    bits = QUOTIENT_BITS[dimension]
    return np.array([1 << (REMAINDER_BITS + axis * bits) for axis in range(dimension)] + [0], np.int64)


def _require_room(quotients: NDArray[np.int64], dimension: int) -> None:
    most = (1 << (QUOTIENT_BITS[dimension] - 1)) - 2  # one step to neighbours, one to the corners
    if quotients.min() < -most or quotients.max() > most:
        raise ShapeError(
            f"the lattice of a kernel has more than {2 * most} cells along an axis",
            fix="make the kernel's range (sxy, srgb) larger",
        )


def _simplex_keys(quotients: NDArray[np.int64], ranks: NDArray[np.int64]) -> Keys:
    """Keys [d+1 N] of the simplex's vertices: to reach remainder r, the r smallest residues step back by one."""
    units = _units(len(quotients) - 1)
    bias = units.sum() << (QUOTIENT_BITS[len(quotients) - 1] - 1)  # so that no quotient is negative
    base = bias + units @ quotients
    remainders = np.arange(len(quotients))
    return np.stack([base + r - units @ (ranks >= len(quotients) - r) for r in remainders])


def _neighbours(vertices: Keys, dimension: int) -> NDArray[np.intp]:
    """Row numbers [d+1 2 M] of the vertices one step down and up each axis, M where there is none."""
    units, last = _units(dimension), (1 << REMAINDER_BITS) - 1
    remainder = vertices & last
    down = np.where(remainder > 0, vertices - 1, vertices - units.sum() + dimension)
    up = np.where(remainder < dimension, vertices + 1, vertices + units.sum() - dimension)

    def rows(keys: Keys) -> NDArray[np.intp]:
        found = np.searchsorted(vertices, keys)
        there = vertices[np.minimum(found, len(vertices) - 1)] == keys
        return np.where(there, found, len(vertices))

    return np.stack([np.stack([rows(down + unit), rows(up - unit)]) for unit in units])
