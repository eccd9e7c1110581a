"""Two exact ways to the inner products that k-means is made of: through G = X X^T, and through the points X.

    m_c = (1 / n_c) sum_{j in c} x_j
    GramForm     <x_i, m_c> = (G Z)_ic / n_c     N^2 D once, then N^2 for each cluster and pass; D is gone
    PointsForm   <x_i, m_c> = (X M^T)_ic         N D for each cluster and pass; memory stays that of the points
    both         |m_c|^2 = (1 / n_c) sum_{i in c} <x_i, m_c>,   |x_i - m_c|^2 = |x_i|^2 - 2 <x_i, m_c> + |m_c|^2

All restarts share each product: clusters are numbered restart by restart, S = restarts x K of them in all.
A product is cut into slabs of rows, each one a call of BLAS on a thread of `slabs`; slabs have a fixed size, so the
number of threads does not change a bit.

    symbol   name here    shape
    X        points       [N D], centred: the closer to the origin, the less the differences above cancel
    G        gram         [N N]
    Z        members      [N S], 1 where point i is in cluster c
    M        means        [S D]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
"""float32 or float64: the forms compute in the type of the points."""

SLAB = 256  # rows or columns of one call of BLAS: enough for its full speed, and some for each thread at N = 600
BLOCK_BYTES = 1 << 26  # [bytes] of products held at once by the form of the points, however many points there are


class Form(Protocol):
    """What Lloyd's loop needs to know of the points."""

    squared: Array  # [N] |x_i|^2

    def distances_from(self, chosen: Array) -> Array:
        """[n N] squared distances of all points from the points `chosen` [n]."""

    def move(self, clusters: Array, counts: Array) -> tuple[Array, Array]:
        """Moves the means to the clusters [N R], numbered below S, of `counts` [S] points.

        Returns:
            |m|^2 [S], and the squared length [S] of each move, infinite for the first one.
        """

    def inner_products(self) -> Iterator[tuple[slice, Array]]:
        """<x_i, m_c> [n S], some rows after the others."""

    def keep(self, going_on: Array, restarts: Array) -> None:
        """Forgets all clusters but `going_on` (a mask [S]) of the restarts (a mask [R])."""


class Slabs:
    """Cuts matrix products into slabs of rows or columns, for as many threads as the executor has."""

    def __init__(self, threads: Executor):
        self._threads = threads

    def each(self, length: int, body: Callable[[slice], object]) -> None:
        """body(slice) for each slab of `length` rows or columns."""
        slabs = [slice(first, min(first + SLAB, length)) for first in range(0, length, SLAB)]
        if len(slabs) == 1:
            body(slabs[0])
        else:
            list(self._threads.map(body, reversed(slabs)))  # the last is the longest in `gram`

    def product(self, left: Array, right: Array) -> Array:
        """left @ right, cut along the longer side of the result."""
        out = np.empty((left.shape[0], right.shape[1]), left.dtype)
        if len(out) >= out.shape[1]:
            self.each(len(out), lambda rows: np.matmul(left[rows], right, out=out[rows]))
        else:
            self.each(out.shape[1], lambda columns: np.matmul(left, right[:, columns], out=out[:, columns]))
        return out

    def gram(self, points: Array) -> Array:
        """points @ points.T: the part below the diagonal is computed, the other copied."""
        gram = np.empty((len(points), len(points)), points.dtype)

        def slab(rows: slice) -> None:
            own, before = points[rows], points[: rows.start]
            gram[rows, rows] = own @ own.T  # half the work: NumPy sees that it is symmetric
            np.matmul(own, before.T, out=gram[rows, : rows.start])
            gram[: rows.start, rows] = gram[rows, : rows.start].T

        self.each(len(points), slab)
        return gram


class GramForm:
    """The form whose passes do not depend on D. Best while there are fewer points than channels."""

    def __init__(self, points: Array, slabs: Slabs):
        self._slabs = slabs
        self._gram = slabs.gram(points)
        self.squared = self._gram.diagonal().copy()
        self._products = np.empty((0, 0), points.dtype)  # [N S] of the last move
        self._clusters: Array | None = None  # [N R] of the last move
        self._counts = self._norms = np.empty(0)

    def distances_from(self, chosen: Array) -> Array:
        return _squared_distances(self.squared, chosen, self._gram[chosen])

    def move(self, clusters: Array, counts: Array) -> tuple[Array, Array]:
        inverse = 1 / np.maximum(counts, 1)
        members = _members(clusters, len(counts), self._gram.dtype)
        self._products = products = self._slabs.product(self._gram, members)
        products *= inverse.astype(products.dtype)
        norms = _sums_over_members(products, clusters) * inverse
        moved = np.full(len(counts), np.inf)
        if self._clusters is not None:  # |m' - m|^2 with <m', m> = (1 / n) sum of <x_i, m'> over the old members
            crossed = _sums_over_members(products, self._clusters) / np.maximum(self._counts, 1)
            moved = np.maximum(norms - 2 * crossed + self._norms, 0)
        self._clusters, self._counts, self._norms = clusters, counts, norms
        return norms, moved

    def inner_products(self) -> Iterator[tuple[slice, Array]]:
        yield slice(0, len(self.squared)), self._products

    def keep(self, going_on: Array, restarts: Array) -> None:
        assert self._clusters is not None
        self._clusters = _renumbered(self._clusters, restarts, going_on)
        self._counts, self._norms = self._counts[going_on], self._norms[going_on]


class PointsForm:
    """The form whose memory is that of the points: sums of members are kept, and follow the points that changed."""

    def __init__(self, points: Array, slabs: Slabs):
        self._slabs = slabs
        self._points = points
        self.squared = np.einsum("nd,nd->n", points, points)
        self._clusters: Array | None = None  # [N R] of the last move
        self._sums = self._means = np.empty((0, points.shape[1]))  # [S D], float64: they are added to in every pass

    def distances_from(self, chosen: Array) -> Array:
        products = self._slabs.product(self._points, self._points[chosen].T)
        return _squared_distances(self.squared, chosen, np.ascontiguousarray(products.T))

    def move(self, clusters: Array, counts: Array) -> tuple[Array, Array]:
        first = self._clusters is None
        if first:
            self._sums = np.zeros((len(counts), self._points.shape[1]))
        for rows, change in self._changes(clusters, len(counts)):
            self._sums += self._slabs.product(change.T, self._points[rows])
        means = self._sums / np.maximum(counts, 1)[:, None]
        moved = np.full(len(counts), np.inf) if first else np.einsum("sd,sd->s", *[means - self._means] * 2)
        self._clusters, self._means = clusters, means
        return np.einsum("sd,sd->s", means, means), moved

    def inner_products(self) -> Iterator[tuple[slice, Array]]:
        means = self._means.astype(self._points.dtype).T
        block = _rows_of_block(len(self._means), self._points.itemsize)
        for first in range(0, len(self._points), block):
            rows = slice(first, first + block)
            yield rows, self._slabs.product(self._points[rows], means)

    def keep(self, going_on: Array, restarts: Array) -> None:
        assert self._clusters is not None
        self._clusters = _renumbered(self._clusters, restarts, going_on)
        self._sums, self._means = self._sums[going_on], self._means[going_on]

    def _changes(self, clusters: Array, count: int) -> Iterator[tuple[Array | slice, Array]]:
        """Rows that changed their cluster in some restart, and what is to be added to Z there [n S]."""
        dtype = self._points.dtype
        block = _rows_of_block(count + self._points.shape[1], self._points.itemsize)
        for first in range(0, len(clusters), block):
            rows: Array | slice = slice(first, first + block)
            new = clusters[rows]
            if self._clusters is None:
                yield rows, _members(new, count, dtype)
                continue
            old = self._clusters[rows]
            changed = np.flatnonzero((new != old).any(axis=1))
            if 2 * len(changed) < len(new):  # otherwise picking rows takes longer than it saves
                rows, new, old = first + changed, new[changed], old[changed]
            if len(changed):
                yield rows, _members(new, count, dtype) - _members(old, count, dtype)


def _rows_of_block(values: int, itemsize: int) -> int:
    """Rows of a block that has `values` values a row; a whole number of slabs."""
    return max(1, BLOCK_BYTES // (values * itemsize * SLAB)) * SLAB


def _squared_distances(squared: Array, chosen: Array, products: Array) -> Array:
    """[n N] from the inner products [n N] of chosen points with all; a point's distance from itself is 0."""
    products *= -2
    products += squared
    products += squared[chosen, None]
    np.maximum(products, 0, out=products)
    products[np.arange(len(chosen)), chosen] = 0
    return products


def _members(clusters: Array, count: int, dtype: Any) -> Array:
    """Z [n S]."""
    members = np.zeros((len(clusters), count), dtype)
    members.reshape(-1)[(clusters + count * np.arange(len(clusters))[:, None]).reshape(-1)] = 1
    return members


def _sums_over_members(products: Array, clusters: Array) -> Array:
    """Sum of products[i, c] over the points i of each cluster c [S], in float64."""
    own = np.take_along_axis(products, clusters, axis=1)
    return np.bincount(clusters.reshape(-1), own.reshape(-1), minlength=products.shape[1])


def _renumbered(clusters: Array, restarts: Array, going_on: Array) -> Array:
    """The clusters of some restarts, numbered without gaps."""
    return (np.cumsum(going_on) - 1)[clusters[:, restarts]]
