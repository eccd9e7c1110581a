"""How many sub-categories a class has, read off its own features; the paper fixes K and names this as future work.

    by_silhouette         K from 2 to the most whose k-means has the highest mean silhouette
    by_first_neighbours   K of the finest partition by first neighbours that has no more clusters than allowed

Either way a class whose best partition has a mean silhouette below a limit does not split: its K is 1.
Sources: Rousseeuw, Silhouettes, 1987; Sarfraz et al., Efficient Parameter-free Clustering Using First Neighbor
Relations (FINCH), CVPR 2019, §3, of which only the numbers of clusters are used: k-means draws the borders, so that
every rule differs from the paper in K alone.

    symbol   name here    shape
    s(i)     silhouette   scalar, the mean over points
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from sccam.structures import FloatArray, IntArray

Fitted = Callable[[int], IntArray]
"""K -> cluster of each point [N]."""

EPSILON = 1e-12


def prepared(features: FloatArray, *, whiten: int, normalise: bool) -> FloatArray:
    """Features as they are clustered [N D'].

    Args:
        features: [N D] of all images.
        whiten: principal components to keep, each scaled to variance 1; 0 keeps the features.
        normalise: scale every image's features to length 1, after whitening.
    """
    found = features
    if whiten:
        centred = found.astype(np.float64) - found.mean(axis=0)
        _, spread, axes = np.linalg.svd(centred, full_matrices=False)
        kept = int(min(whiten, (spread > EPSILON * max(spread[0], EPSILON)).sum())) or 1
        scale = np.maximum(spread[:kept], EPSILON) / np.sqrt(len(found))
        found = (centred @ axes[:kept].T / scale).astype(np.float32)
    if normalise:
        found = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), EPSILON)
    return np.ascontiguousarray(found, np.float32)


def by_silhouette(points: FloatArray, fitted: Fitted, most: int, least: float) -> IntArray:
    """Cluster of each point [N], K the best of 2 to `most`; all 0 where no silhouette reaches `least`."""
    distances = pairwise_distances(points)
    partitions = [fitted(k) for k in range(2, most + 1)]
    values = [silhouette(distances, partition) for partition in partitions]
    best = int(np.argmax(values))
    return partitions[best] if values[best] >= least else np.zeros(len(points), np.int32)


def by_first_neighbours(points: FloatArray, fitted: Fitted, most: int, least: float) -> IntArray:
    """Cluster of each point [N], K that of the finest level with at most `most` clusters; all 0 where that is 1."""
    k = next((count for count in neighbour_levels(points) if count <= most), 1)
    if k == 1:
        return np.zeros(len(points), np.int32)
    partition = fitted(k)
    enough = silhouette(pairwise_distances(points), partition) >= least
    return partition if enough else np.zeros(len(points), np.int32)


def neighbour_levels(points: FloatArray) -> list[int]:
    """Numbers of clusters, falling, of partitions by first neighbours.

    Points are joined with their nearest one, and so are points that share their nearest; what hangs together is a
    cluster. The next level does the same with the clusters' means, until one is left or nothing joins.
    """
    counts, means = [], points.astype(np.float64)
    sizes: np.ndarray = np.ones(len(points))
    while len(means) > 2:
        distances = pairwise_distances(means)
        np.fill_diagonal(distances, np.inf)
        first = distances.argmin(axis=1)
        links = sparse.coo_array((np.ones(len(first)), (np.arange(len(first)), first)), shape=(len(first),) * 2)
        count, cluster = connected_components(links, directed=False)
        if count == len(means):
            break
        total = np.bincount(cluster, sizes, count)
        means = np.stack([np.bincount(cluster, sizes * column, count) for column in means.T], axis=1) / total[:, None]
        sizes = total
        counts.append(int(count))
    return counts


def silhouette(distances: FloatArray, partition: IntArray) -> float:
    """s = mean over points of (b - a) / max(a, b): a to the point's own cluster, b to the nearest other; in [-1, 1].

    A point alone in its cluster counts 0, as does everything where there is one cluster.

    Args:
        distances: [N N].
        partition: cluster of each point [N].
    """
    _, cluster, sizes = np.unique(partition, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return 0.0
    sums = np.stack([distances[:, cluster == k].sum(axis=1) for k in range(len(sizes))], axis=1)  # [N K]
    rows = np.arange(len(cluster))
    own = sums[rows, cluster] / np.maximum(sizes[cluster] - 1, 1)
    means = sums / sizes
    means[rows, cluster] = np.inf
    other = means.min(axis=1)
    values = (other - own) / np.maximum(np.maximum(own, other), EPSILON)
    return float(np.where(sizes[cluster] == 1, 0.0, values).mean())


def pairwise_distances(points: np.ndarray) -> FloatArray:
    """Euclidean distances [N N]."""
    exact = points.astype(np.float64)
    squares = (exact**2).sum(axis=1)
    found: FloatArray = np.sqrt(np.maximum(squares[:, None] + squares - 2 * exact @ exact.T, 0))
    np.fill_diagonal(found, 0)
    return found
