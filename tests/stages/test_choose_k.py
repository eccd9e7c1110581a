"""K from a class's own features: as many clusters as were planted, one where there are none."""

from __future__ import annotations

import numpy as np
import pytest

from sccam.stages.choose_k import (
    by_first_neighbours,
    by_silhouette,
    neighbour_levels,
    pairwise_distances,
    prepared,
    silhouette,
)
from sccam.stages.classify import ClassifyConfig, sub_weight_of
from sccam.stages.cluster import ClusterConfig, cluster_subcategories, k_means
from sccam.structures import FloatArray, LabelSet


def planted(
    rng: np.random.Generator, clusters: int, each: int = 20, channels: int = 16, apart: float = 6.0
) -> FloatArray:
    centres = apart * rng.standard_normal((clusters, channels))
    return (centres.repeat(each, axis=0) + rng.standard_normal((clusters * each, channels))).astype(np.float32)


def fitter(points):
    return lambda k: k_means(points, k, n_init=5, max_iterations=100, seed=0).assignment


def test_the_silhouette_is_that_of_the_library(rng):
    from sklearn.metrics import pairwise_distances as their_distances
    from sklearn.metrics import silhouette_score

    points = planted(rng, 3, apart=2.0)
    np.testing.assert_allclose(pairwise_distances(points), their_distances(points.astype(float)), atol=1e-6)
    for k in (2, 3, 7):
        partition = fitter(points)(k)
        assert silhouette(pairwise_distances(points), partition) == pytest.approx(silhouette_score(points, partition))
    alone = np.array([0] + [1] * (len(points) - 1))
    assert silhouette(pairwise_distances(points), alone) == pytest.approx(silhouette_score(points, alone))
    assert silhouette(pairwise_distances(points), np.zeros(len(points), np.int32)) == 0.0


@pytest.mark.parametrize("clusters", [2, 3, 5])
def test_planted_clusters_are_counted(rng, clusters):
    points = planted(rng, clusters)
    assert len(np.unique(by_silhouette(points, fitter(points), 10, 0.05))) == clusters
    assert clusters in neighbour_levels(points) or neighbour_levels(points)[0] < clusters


def test_a_class_that_does_not_split_is_one_cluster(rng):
    points = rng.standard_normal((60, 64)).astype(np.float32)
    assert not by_silhouette(points, fitter(points), 8, 0.1).any()
    assert not by_first_neighbours(points, fitter(points), 8, 0.1).any()
    assert not by_first_neighbours(points[:2], fitter(points[:2]), 1, 0.1).any()


def test_levels_fall_and_end_at_few(rng):
    levels = neighbour_levels(planted(rng, 4))
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == len(levels) and levels[-1] <= 4
    assert neighbour_levels(np.zeros((1, 3), np.float32)) == []


def test_whitened_components_have_variance_one_and_lengths_are_one(rng):
    points = planted(rng, 3)
    white = prepared(points, whiten=5, normalise=False)
    assert white.shape == (60, 5)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(5), atol=1e-4)
    assert np.allclose(np.linalg.norm(prepared(points, whiten=0, normalise=True), axis=1), 1)
    assert prepared(np.ones((4, 3), np.float32), whiten=2, normalise=True).shape[0] == 4  # no direction varies
    assert np.isfinite(prepared(np.ones((4, 3), np.float32), whiten=2, normalise=True)).all()
    np.testing.assert_array_equal(prepared(points, whiten=0, normalise=False), points)


def test_each_class_gets_its_own_k(rng):
    points = np.concatenate([planted(rng, 3), planted(rng, 2), rng.standard_normal((40, 16)).astype(np.float32)])
    present = np.zeros((len(points), 3), bool)
    present[:60, 0] = present[60:100, 1] = present[100:, 2] = True
    labels = LabelSet(present, tuple(map(str, range(len(points)))), ("three", "two", "one"))
    found = cluster_subcategories(points, labels, ClusterConfig(clusters="silhouette", k=8, min_silhouette=0.15))
    assert found.parent.tolist() == [0, 0, 0, 1, 1, 2]
    assert (found.present.sum(axis=1) == 1).all()
    few = cluster_subcategories(points, labels, ClusterConfig(k=10, min_size=30))
    assert few.parent.tolist() == [0, 0, 1, 2]


def test_the_pull_of_the_sub_categories_does_not_depend_on_k_where_that_is_asked_for():
    paper, scaled = ClassifyConfig(), ClassifyConfig(sub_weight_rule="per_class")
    assert sub_weight_of(paper, 20, 60) == sub_weight_of(paper, 20, 200) == 5.0
    assert sub_weight_of(scaled, 20, 200) == 5.0  # K = 10
    for k in (1, 3, 30):  # a logit weighs lambda / S
        assert sub_weight_of(scaled, 20, 20 * k) / (20 * k) == pytest.approx(5.0 / 200)
