"""Eq. 2: every present class of an image in exactly one sub-category, and clusters that are really there are found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sccam.errors import NumericError, ShapeError
from sccam.stages.cluster import ClusterConfig, KMeansFit, cluster_subcategories
from sccam.structures import LabelSet, SubcategoryLabels

CLASSES = ("cat", "dog", "car")


def tags(present: np.ndarray) -> LabelSet:
    ids = tuple(f"image{n}" for n in range(len(present)))
    return LabelSet(present.astype(bool), ids, CLASSES[: present.shape[1]])


def block(labels: SubcategoryLabels, c: int) -> np.ndarray:
    """[N K] sub-categories of class c, found by parent."""
    return labels.present[:, labels.parent == c]


def same_cluster(labels: SubcategoryLabels, c: int) -> np.ndarray:
    """[N N] whether two images share a sub-category of class c: the partition without its names."""
    own = block(labels, c).astype(int)
    return own @ own.T > 0


def planted(per_cluster: int = 6, dimensions: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Features around four far corners [N D], and the corner of each."""
    rng = np.random.default_rng(0)
    corners = 10 * np.eye(4, dimensions)
    origin = np.repeat(np.arange(4), per_cluster)
    features = corners[origin] + rng.normal(0, 0.1, (len(origin), dimensions))
    return features.astype(np.float32), origin


@settings(max_examples=25)
@given(
    present=arrays(bool, (9, 3)),
    features=arrays(np.float32, (9, 2), elements=st.sampled_from([0.0, 0.5, 3.0])),
    k=st.integers(1, 5),
)
def test_an_image_has_exactly_one_subcategory_for_each_present_class_and_none_for_the_others(present, features, k):
    labels = cluster_subcategories(features, tags(present), ClusterConfig(k=k, n_init=1))
    for c in range(3):
        assert np.array_equal(block(labels, c).sum(axis=1), present[:, c])
        different = len(np.unique(features[present[:, c]], axis=0))
        assert 1 <= block(labels, c).shape[1] <= max(1, min(k, different))
    assert np.all(np.diff(labels.parent) >= 0)


def test_planted_clusters_are_found():
    features, origin = planted()
    labels = cluster_subcategories(features, tags(np.ones((len(origin), 1))), ClusterConfig(k=4))
    assert np.array_equal(same_cluster(labels, 0), origin[:, None] == origin)


def test_the_order_of_images_matters_to_the_names_of_clusters_only():
    features, _ = planted()
    present = np.random.default_rng(1).random((len(features), 2)) < 0.8
    order = np.random.default_rng(2).permutation(len(features))
    config = ClusterConfig(k=4)
    labels = cluster_subcategories(features, tags(present), config)
    shuffled = cluster_subcategories(features[order], tags(present[order]), config)
    for c in range(2):
        assert np.array_equal(same_cluster(shuffled, c), same_cluster(labels, c)[np.ix_(order, order)])


def test_each_class_is_clustered_alone_so_the_order_of_classes_moves_blocks_only():
    rng = np.random.default_rng(0)
    features, present = rng.random((20, 3), np.float32), rng.random((20, 3)) < 0.6
    config = ClusterConfig(k=3)
    labels = cluster_subcategories(features, tags(present), config)
    turned = cluster_subcategories(features, tags(present[:, [2, 0, 1]]), config)
    for new, old in enumerate([2, 0, 1]):
        assert np.array_equal(block(turned, new), block(labels, old))


def test_an_image_with_two_classes_enters_both_fits():
    features = np.array([[0.0], [0.1], [9.0], [9.1]], np.float32)
    labels = cluster_subcategories(features, tags(np.ones((4, 2))), ClusterConfig(k=2))
    assert labels.parent.tolist() == [0, 0, 1, 1]
    assert np.array_equal(same_cluster(labels, 0), same_cluster(labels, 1))
    assert same_cluster(labels, 0)[0].tolist() == [True, True, False, False]


def test_the_same_seed_gives_the_same_labels():
    rng = np.random.default_rng(0)
    features, present = rng.random((30, 4), np.float32), np.ones((30, 1))
    config = ClusterConfig(k=5, n_init=1)
    first, second = (cluster_subcategories(features, tags(present), config, seed=3) for _ in range(2))
    assert np.array_equal(first.present, second.present)


def test_the_k_means_that_is_given_does_the_work_with_the_settings_of_the_config():
    calls = []

    def halves(points: np.ndarray, k: int, **settings: int) -> KMeansFit:
        calls.append((len(points), k, settings))
        return KMeansFit((np.arange(len(points)) % 2 * 2).astype(np.int32), 0.0, 1)  # number 1 stays unused

    config = ClusterConfig(k=3, n_init=4, max_iterations=5)
    labels = cluster_subcategories(np.eye(6, dtype=np.float32), tags(np.ones((6, 1))), config, seed=7, fit=halves)
    assert calls == [(6, 3, {"n_init": 4, "max_iterations": 5, "seed": 7})]
    assert labels.present.tolist() == [[True, False], [False, True]] * 3


# Where K cannot be reached


def test_k_is_at_most_the_number_of_images():
    labels = cluster_subcategories(np.eye(3, dtype=np.float32), tags(np.ones((3, 1))), ClusterConfig(k=10))
    assert labels.parent.tolist() == [0, 0, 0]
    assert labels.present.sum(axis=0).tolist() == [1, 1, 1]


def test_k_is_at_most_the_number_of_different_vectors():
    features = np.array([[1.0], [1.0], [1.0], [4.0], [4.0]], np.float32)
    labels = cluster_subcategories(features, tags(np.ones((5, 1))), ClusterConfig(k=4))
    assert sorted(labels.present.sum(axis=0).tolist()) == [2, 3]


def test_a_class_of_equal_vectors_or_of_one_image_has_one_subcategory():
    present = np.array([[1, 0], [1, 0], [1, 1]])
    labels = cluster_subcategories(np.ones((3, 2), np.float32), tags(present), ClusterConfig(k=10))
    assert labels.parent.tolist() == [0, 1]
    assert np.array_equal(labels.present, present)


def test_a_class_without_images_keeps_one_empty_subcategory_so_that_every_class_has_a_block():
    present = np.array([[1, 0, 1], [1, 0, 0]])
    labels = cluster_subcategories(np.array([[0.0], [5.0]], np.float32), tags(present), ClusterConfig(k=2))
    assert labels.parent.tolist() == [0, 0, 1, 2]
    assert not block(labels, 1).any()


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_not_finite_names_its_image(value):
    features = np.ones((3, 2), np.float32)
    features[1, 1] = value
    with pytest.raises(NumericError, match="NaN or infinite") as caught:
        cluster_subcategories(features, tags(np.ones((3, 1))), ClusterConfig())
    assert caught.value.where == "image image1"


@pytest.mark.parametrize("shape", [(2, 4), (3,), (3, 4, 1)])
def test_features_that_do_not_fit_the_tags_are_refused(shape):
    with pytest.raises(ShapeError, match=r"expected \[3, D\]"):
        cluster_subcategories(np.ones(shape, np.float32), tags(np.ones((3, 1))), ClusterConfig())


def test_features_of_each_class_alone_are_the_same_as_one_row_an_image_that_serves_all(rng):
    present = rng.random((30, 3)) < 0.6
    labels = LabelSet(present, tuple(map(str, range(30))), ("a", "b", "c"))
    features = rng.normal(size=(30, 5)).astype(np.float32)
    config = ClusterConfig(k=3)
    whole = cluster_subcategories(features, labels, config)
    alone = cluster_subcategories([features[present[:, c]] for c in range(3)], labels, config)
    assert np.array_equal(whole.present, alone.present) and np.array_equal(whole.parent, alone.parent)


def test_a_class_may_split_by_what_it_looks_like_itself(rng):
    """Two classes in every image, each of two kinds; one row an image cannot serve both."""
    kinds = rng.integers(0, 2, (40, 2))
    labels = LabelSet(np.ones((40, 2), bool), tuple(map(str, range(40))), ("a", "b"))
    parts = [(10.0 * kinds[:, c, None] + rng.normal(size=(40, 4))).astype(np.float32) for c in range(2)]
    found = cluster_subcategories(parts, labels, ClusterConfig(k=2, normalise=False))
    for c in range(2):
        assignment = found.present[:, found.parent == c].argmax(axis=1)
        assert np.array_equal(assignment, kinds[:, c]) or np.array_equal(1 - assignment, kinds[:, c])


def test_parts_that_fit_no_class_and_broken_ones_are_refused(rng):
    labels = LabelSet(np.array([[1, 0], [1, 1]], bool), ("x", "y"), ("a", "b"))
    with pytest.raises(ShapeError, match="expected"):
        cluster_subcategories([np.ones((2, 3), np.float32)], labels, ClusterConfig(k=1))
    broken = [np.ones((2, 3), np.float32), np.full((1, 3), np.nan, np.float32)]
    with pytest.raises(NumericError, match="image y"):
        cluster_subcategories(broken, labels, ClusterConfig(k=1))
