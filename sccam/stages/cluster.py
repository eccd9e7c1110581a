"""Eq. 2: the images of each class, split into K sub-categories by k-means on their pooled features.

Source: Chang et al., CVPR 2020, Eq. 2 and Algorithm 1; authors' code create_pseudo_label.py.
Followed: one fit per class over every image that carries the class, raw Euclidean features, k-means++; an image
with several classes enters several fits with the same vector. `n_init` is stated because scikit-learn's default
fell from the 10 restarts of the authors' day to 1.
Differs, and only where a setting asks for it: features may be averaged over the class's own map instead of the image,
whitened and scaled to length 1, and K chosen for each class from its features (choose_k.py; the paper names that as
future work).
Differs always: K is capped by the number of different vectors of a class, where the authors' code stops with an error
(too few images) or silently returns fewer clusters (equal vectors). So K may differ by class, and blocks are found
through `parent`, not by dividing an index by K.

    symbol   name here                  shape
    f(x)     features                   [N D]
    Y_p      labels.present             [N C]
    Y_s      SubcategoryLabels.present  [N S]
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sccam.errors import NumericError, ShapeError
from sccam.stages.choose_k import by_first_neighbours, by_silhouette, prepared
from sccam.structures import FloatArray, IntArray, LabelSet, SubcategoryLabels


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """Settings of Eq. 2."""

    clusters: str = field(default="paper", metadata={"choices": ("paper", "silhouette", "first_neighbours")})
    """How many a class gets: "paper" k for each; others choose 1 to k from its features, see choose_k.py."""
    features: str = field(default="previous", metadata={"choices": ("previous", "pretrained")})
    """Whose pooled features are clustered: the round before's classifier, or the trunk before any training here,
    which has not learned these tags by heart."""
    pool: str = field(default="image", metadata={"choices": ("image", "map")})
    """Where features are averaged: over the whole image, the paper's way, or over the class's own activation map, so
    that neither the background nor the image's other classes decide on its sub-category."""
    scale: float = field(default=1.0, metadata={"min": 0.1, "max": 4.0})  # of the view that features are taken from
    k: int = field(default=10, metadata={"min": 1})  # clusters per class; paper §4.2
    min_size: int = field(default=1, metadata={"min": 1})  # images a cluster, on average: a class has at most N / this
    min_silhouette: float = field(default=0.05, metadata={"min": -1.0, "max": 1.0})  # below it a class is one cluster
    normalise: bool = False  # features to length 1, as spherical k-means has them
    whiten: int = field(default=0, metadata={"min": 0})  # principal components of all images, whitened; 0: raw features
    n_init: int = field(default=10, metadata={"min": 1, "max": 1000})  # restarts; scikit-learn's default in 2020
    max_iterations: int = field(default=300, metadata={"min": 1})  # create_pseudo_label.py


@dataclass(frozen=True, slots=True)
class KMeansFit:
    """One partition of N points."""

    assignment: IntArray  # [N], cluster of each point; a number may be unused
    inertia: float  # sum of squared distances to the centres
    iterations: int  # passes of the restart that was kept


KMeans = Callable[..., KMeansFit]
"""(points f32 [N D], k, *, n_init, max_iterations, seed) -> KMeansFit."""


def k_means(points: FloatArray, k: int, *, n_init: int, max_iterations: int, seed: int) -> KMeansFit:
    """scikit-learn's k-means: what the authors call, and the judge of faster ones."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # Near-equal points can still leave a cluster empty; cluster_subcategories renumbers.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit = KMeans(n_clusters=k, n_init=n_init, max_iter=max_iterations, random_state=seed).fit(points)
    return KMeansFit(fit.labels_.astype(np.int32), float(fit.inertia_), int(fit.n_iter_))


def cluster_subcategories(
    features: FloatArray | Sequence[FloatArray],
    labels: LabelSet,
    config: ClusterConfig,
    *,
    seed: int = 0,
    fit: KMeans = k_means,
) -> SubcategoryLabels:
    """The sub-category targets of one round.

    Args:
        features: [N D] pooled classifier features, in the order of `labels.ids`; or for each class [N_c D] of its
            images alone, in the same order.
        labels: image-level tags; a class that no image carries gets one sub-category that stays empty.
        seed: of the k-means++ starts (authors: 0).
        fit: the k-means; a faster one may be given.

    Returns:
        Multi-hot labels with exactly one sub-category for each present class of an image.

    Raises:
        ShapeError: as many features as images are needed.
        NumericError: a feature is NaN or infinite.
    """
    members = [np.flatnonzero(labels.present[:, c]) for c in range(len(labels.classes))]
    blocks, parent = [], []
    for c, points in enumerate(_by_class(features, labels, members, config)):
        assignment, k = _clusters(points, config, seed, fit)
        block = np.zeros((len(labels.ids), k), dtype=bool)
        block[members[c], assignment] = True
        blocks.append(block)
        parent += [c] * k
    return SubcategoryLabels(np.concatenate(blocks, axis=1), np.array(parent, dtype=np.int32), labels.ids)


def _by_class(
    features: FloatArray | Sequence[FloatArray], labels: LabelSet, members: list[np.ndarray], config: ClusterConfig
) -> list[FloatArray]:
    """What is clustered of each class [N_c D]: checked, whitened and scaled over all rows together."""
    whole = isinstance(features, np.ndarray)
    parts: list[FloatArray] = [features] if isinstance(features, np.ndarray) else list(features)
    rows = [np.arange(len(labels.ids))] if whole else members
    wanted = [len(own) for own in rows]
    if [part.shape[0] if part.ndim == 2 else -1 for part in parts] != wanted:
        shapes = ", ".join(str(part.shape) for part in parts)
        raise ShapeError(f"features have shape {shapes}, expected {', '.join(f'[{n}, D]' for n in wanted)}")
    for part, own in zip(parts, rows, strict=True):
        if not np.isfinite(part).all():
            bad = labels.ids[int(own[np.flatnonzero(~np.isfinite(part).all(axis=1))[0]])]
            raise NumericError("a feature is NaN or infinite", where=f"image {bad}", why="the classifier diverged")
    ready = prepared(np.concatenate(parts), whiten=config.whiten, normalise=config.normalise)
    if whole:
        return [ready[chosen] for chosen in members]
    return np.split(ready, np.cumsum(wanted)[:-1])


def _clusters(points: FloatArray, config: ClusterConfig, seed: int, fit: KMeans) -> tuple[np.ndarray, int]:
    """Cluster of each point, and the number of clusters: at most K and at most the number of different points."""
    different = len({row.tobytes() for row in points + 0.0})  # + 0.0: -0 equals 0
    most = max(1, min(config.k, different, len(points) // config.min_size))

    def fitted(k: int) -> IntArray:
        return fit(points, k, n_init=config.n_init, max_iterations=config.max_iterations, seed=seed).assignment

    if most == 1:
        return np.zeros(len(points), dtype=np.int64), 1
    if config.clusters == "paper":
        found = fitted(most)
    elif config.clusters == "silhouette":
        found = by_silhouette(points, fitted, most, config.min_silhouette)
    else:
        found = by_first_neighbours(points, fitted, most, config.min_silhouette)
    used, assignment = np.unique(found, return_inverse=True)
    return assignment, len(used)
