"""Fast k-means: a partition that no pass can improve, the inertia of scikit-learn's, and the same from both forms."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from sccam.errors import ConfigError, NumericError, ShapeError
from sccam.runtime import kmeans_blas, kmeans_forms
from sccam.runtime.kmeans_blas import form_of, inertia_of, k_means
from sccam.runtime.kmeans_forms import GramForm, PointsForm, Slabs
from sccam.stages import cluster
from sccam.stages.cluster import ClusterConfig, KMeansFit, cluster_subcategories
from sccam.structures import LabelSet

FORMS = [GramForm, PointsForm]


@pytest.fixture(params=FORMS, ids=lambda form: form.__name__)
def form(request, monkeypatch):
    """Each test that takes it runs in both forms, whatever the sizes."""
    monkeypatch.setattr(kmeans_blas, "form_of", lambda *sizes: request.param)
    return request.param


def fit(points: np.ndarray, k: int, *, n_init: int = 10, seed: int = 0, **settings) -> KMeansFit:
    return k_means(points, k, n_init=n_init, max_iterations=settings.pop("max_iterations", 300), seed=seed, **settings)


def planted(n: int = 120, d: int = 40, k: int = 6, separation: float = 3.0, seed: int = 0) -> np.ndarray:
    """Rectified points around k random centres [N D]."""
    rng = np.random.default_rng(seed)
    centres = separation * rng.standard_normal((k, d), np.float32)
    return np.maximum(centres[rng.integers(k, size=n)] + rng.standard_normal((n, d), np.float32), 0)


def same_cluster(found: KMeansFit) -> np.ndarray:
    """[N N]: the partition without the names of its clusters."""
    return found.assignment[:, None] == found.assignment


def means(points: np.ndarray, found: KMeansFit) -> np.ndarray:
    used = np.unique(found.assignment)
    return np.stack([points[found.assignment == c].mean(axis=0) for c in used])


# What a result is


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 5), st.sampled_from(FORMS), st.integers(0, 99))
def test_every_point_is_nearest_to_the_mean_of_its_cluster(n, d, k, form, seed):
    points = np.random.default_rng(seed).random((n, d), np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kmeans_blas, "form_of", lambda *sizes: form)
        found = fit(points, min(k, n), n_init=3, seed=seed, tolerance=0)
    distances = ((points[:, None].astype(float) - means(points, found)) ** 2).sum(axis=2)
    own = np.take_along_axis(distances, np.unique(found.assignment, return_inverse=True)[1][:, None], axis=1)[:, 0]
    assert np.all(own <= distances.min(axis=1) + 1e-6)  # equal but for rounding of float32
    assert found.inertia == pytest.approx(own.sum(), abs=1e-5)
    assert len(np.unique(found.assignment)) == min(k, n)  # random points differ


def test_it_finds_the_best_of_all_partitions_of_a_small_set(form):
    points = np.random.default_rng(3).random((8, 2), np.float32)
    best = min(inertia_of(points, np.array(labels), 3) for labels in product(range(3), repeat=8))
    assert fit(points, 3, n_init=30).inertia == pytest.approx(best, rel=1e-5)


def test_planted_clusters_are_found(form):
    origin = np.repeat(np.arange(4), 25)
    points = (10 * np.eye(4, 7)[origin] + np.random.default_rng(0).normal(0, 0.1, (100, 7))).astype(np.float32)
    assert np.array_equal(same_cluster(fit(points, 4)), origin[:, None] == origin)


@pytest.mark.parametrize(("n", "d", "k"), [(150, 300, 10), (400, 30, 5), (60, 64, 2)])
def test_the_inertia_is_that_of_scikit_learns_best_of_10_on_clustered_points(n, d, k):
    for seed in range(3):
        points = planted(n, d, k, seed=seed)
        theirs = cluster.k_means(points, k, n_init=10, max_iterations=300, seed=seed)
        assert fit(points, k, seed=seed).inertia == pytest.approx(theirs.inertia, rel=1e-3)  # other starts are drawn


@pytest.mark.parametrize("separation", [0.0, 3.0])
def test_scikit_learn_cannot_improve_it(form, separation):
    points = planted(separation=separation)
    found = fit(points, 6, tolerance=0)
    theirs = KMeans(6, init=means(points, found), n_init=1, tol=0).fit(points)
    assert np.array_equal(theirs.labels_, found.assignment)
    assert found.inertia == pytest.approx(theirs.inertia_, rel=1e-5)


def test_scikit_learn_stops_after_as_many_passes_from_the_same_starts(form, monkeypatch):
    points, chosen = planted(separation=0.3), np.array([3, 50, 77])

    def starts(own, k, restarts, generator):
        distances = own.distances_from(chosen)
        return distances.argmin(axis=0)[:, None], distances.min(axis=0)[None]

    monkeypatch.setattr(kmeans_blas, "_starts", starts)
    for tolerance in (0.0, 1e-4, 1.0, 5.0):
        for limit in (1, 2, 300):
            found = fit(points, 3, n_init=1, tolerance=tolerance, max_iterations=limit)
            theirs = KMeans(3, init=points[chosen], n_init=1, tol=tolerance, max_iter=limit).fit(points)
            assert np.array_equal(found.assignment, theirs.labels_)
            assert found.iterations == theirs.n_iter_


# What does not matter


def test_both_forms_give_the_same_partition_from_the_same_seed(monkeypatch):
    points = planted(separation=0.5)
    found = []
    for form in FORMS:
        monkeypatch.setattr(kmeans_blas, "form_of", lambda *sizes, form=form: form)
        found.append(fit(points, 6, n_init=4))
    assert np.array_equal(found[0].assignment, found[1].assignment)
    assert found[0].iterations == found[1].iterations


@pytest.mark.parametrize("separation", [0.3, 3.0])
def test_float32_gives_the_partition_of_float64(form, separation):
    points = planted(separation=separation)
    single, double = fit(points, 6), fit(points.astype(np.float64), 6)
    assert np.array_equal(single.assignment, double.assignment)
    assert single.inertia == pytest.approx(double.inertia, rel=1e-6)


def test_the_order_of_points_does_not_matter_to_the_inertia(form):
    points = planted()
    order = np.random.default_rng(1).permutation(len(points))
    assert fit(points[order], 6).inertia == pytest.approx(fit(points, 6).inertia, rel=1e-5)


@pytest.mark.parametrize("shift", [-3.0, 10_000.0])
def test_shifting_all_points_does_not_matter(form, shift):
    points = np.round(planted(separation=0.5) * 64) / 64  # so that the shifted points are exact in float32
    moved, found = fit(points + np.float32(shift), 6), fit(points, 6)
    assert np.array_equal(moved.assignment, found.assignment)
    assert moved.inertia == pytest.approx(found.inertia, rel=1e-4)  # their mean is not


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**20])
def test_scaling_by_a_power_of_two_changes_the_inertia_by_its_square_and_nothing_else(form, scale):
    points = planted(separation=0.5)
    scaled, found = fit(points * np.float32(scale), 6), fit(points, 6)
    assert np.array_equal(scaled.assignment, found.assignment)
    assert scaled.inertia == pytest.approx(found.inertia * scale**2, rel=1e-12)


def test_turning_all_points_does_not_matter(form):
    points = planted()
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 40)))[0].astype(np.float32)
    assert np.array_equal(same_cluster(fit(points @ rotation, 6)), same_cluster(fit(points, 6)))


def test_threads_do_not_change_a_bit(form):
    points = planted(n=3 * kmeans_forms.SLAB + 5, d=2 * kmeans_forms.SLAB + 3, separation=0.2)
    found = [fit(points, 6, n_init=3, threads=threads) for threads in (1, 2, 3)]
    for other in found[1:]:
        assert np.array_equal(other.assignment, found[0].assignment)
        assert other.inertia == found[0].inertia


def test_blocks_do_not_matter(monkeypatch):
    points = planted(n=4 * kmeans_forms.SLAB + 9, d=12, separation=0.3)
    whole = fit(points, 6)
    monkeypatch.setattr(kmeans_forms, "BLOCK_BYTES", 1)
    blocked = fit(points, 6)
    assert np.array_equal(blocked.assignment, whole.assignment)


def test_the_same_seed_gives_the_same_result_and_another_seed_other_starts(form):
    points = planted(separation=0.0)
    first, again, other = fit(points, 6, n_init=1), fit(points, 6, n_init=1), fit(points, 6, n_init=1, seed=1)
    assert np.array_equal(first.assignment, again.assignment) and first.inertia == again.inertia
    assert first.inertia != other.inertia


def test_restarts_do_not_disturb_each_other(form):
    points = planted(separation=0.2) - 0.5
    stopped_alone_and_together(form, points, k=6, tolerance=0)


def test_restarts_that_stop_by_the_tolerance_do_not_disturb_each_other_either(form):
    points = np.random.default_rng(0).random((400, 2), np.float32) - np.float32(0.5)
    stopped_alone_and_together(form, points, k=5, tolerance=1e-3)


def stopped_alone_and_together(form, points: np.ndarray, k: int, tolerance: float) -> None:
    """Compares the labels and passes of 8 restarts in one product with those of each alone."""
    labels = np.random.default_rng(0).integers(k, size=(len(points), 8))
    distances = np.ones((8, len(points)), np.float32)

    def lloyd(of: list[int]) -> tuple[np.ndarray, ...]:
        with ThreadPoolExecutor(1) as executor:
            own = form(points, Slabs(executor))
            return kmeans_blas._lloyd(own, labels[:, of].copy(), distances[of], k, 300, tolerance)

    together, _, passes = lloyd(list(range(8)))
    assert len(np.unique(passes)) > 2  # some stop earlier than others
    for restart in range(8):
        alone, _, own_passes = lloyd([restart])
        assert np.array_equal(alone[:, 0], together[:, restart])
        assert own_passes[0] == passes[restart]


def test_a_point_is_at_no_distance_from_itself_and_all_distances_are_right(form, tolerance):
    points = planted(n=50, d=700) - 1
    with ThreadPoolExecutor(1) as executor:
        found = form(points, Slabs(executor)).distances_from(np.array([4, 17]))
    expected = ((points[[4, 17], None].astype(float) - points) ** 2).sum(axis=2)
    assert found[0, 4] == found[1, 17] == 0
    assert found / expected.max() == pytest.approx(expected / expected.max(), abs=tolerance["float32"])


def test_the_points_are_left_as_they_were(form):
    points = planted()
    before = points.copy()
    fit(points, 3)
    assert np.array_equal(points, before)


def test_points_need_not_lie_in_memory_row_by_row(form):
    points = planted()
    assert np.array_equal(fit(np.asfortranarray(points), 6).assignment, fit(points, 6).assignment)


def test_more_restarts_are_never_worse_when_they_begin_with_the_same_ones(form):
    points = planted(separation=0.4)
    few, many = (min(fit(points, 6, n_init=1, seed=seed).inertia for seed in range(count)) for count in (2, 12))
    assert fit(points, 6, n_init=40).inertia <= few * (1 + 1e-3) and many <= few


# The ends of the range


def test_one_cluster_holds_all_and_its_inertia_is_the_scatter(form):
    points = planted()
    found = fit(points, 1)
    assert not found.assignment.any()
    assert found.inertia == pytest.approx(len(points) * points.astype(float).var(axis=0).sum(), rel=1e-5)


def test_as_many_clusters_as_points_leave_each_point_alone(form):
    points = planted(n=12, separation=0.0)
    found = fit(points, 12, n_init=2)
    assert sorted(found.assignment.tolist()) == list(range(12))
    assert found.inertia == 0


def test_one_point_is_one_cluster(form):
    found = fit(np.array([[3.0, 4.0]], np.float32), 1)
    assert found.assignment.tolist() == [0] and found.inertia == 0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_equal_points_lie_in_one_cluster(form, k):
    points = np.repeat(planted(n=3, d=30), 4, axis=0)
    found = fit(points, k)
    groups = found.assignment.reshape(3, 4)
    assert (groups == groups[:, :1]).all()
    assert len(np.unique(found.assignment)) == min(k, 3)
    if k >= 3:
        assert found.inertia == pytest.approx(0, abs=1e-5)


def test_points_that_are_all_equal_are_one_cluster(form):
    found = fit(np.full((7, 5), 1.7, np.float32), 3)
    assert len(np.unique(found.assignment)) == 1
    assert found.inertia == pytest.approx(0, abs=1e-10)


def test_an_empty_cluster_gets_the_farthest_point():
    labels = np.array([[0], [0], [0], [2]])
    distances = np.array([[1.0, 5.0, 2.0, 9.0]], np.float32)  # the last is alone already
    filled, counts = kmeans_blas._filled(labels, distances, 3, np.full(4, 10, np.float32))
    assert filled[:, 0].tolist() == [0, 1, 0, 2]
    assert counts.tolist() == [2, 1, 1]


def test_a_cluster_stays_empty_where_every_point_is_its_mean():
    filled, counts = kmeans_blas._filled(np.zeros((3, 1), int), np.zeros((1, 3), np.float32), 2, np.ones(3, np.float32))
    assert not filled.any() and counts.tolist() == [3, 0]


def test_tight_clusters_far_from_each_other_have_the_inertia_of_their_points(form):
    rng = np.random.default_rng(0)
    points = (1000 * np.eye(3, 5)[np.arange(60) % 3] + 0.01 * rng.standard_normal((60, 5))).astype(np.float32)
    found = fit(points, 3)
    assert found.inertia == pytest.approx(inertia_of(points.astype(np.float64), np.arange(60) % 3, 3), rel=1e-4)


# Which form


def test_gram_is_taken_for_few_points_and_never_for_more_points_than_channels():
    assert form_of(600, 4096, 100) is GramForm
    assert form_of(41, 40, 100) is PointsForm
    assert form_of(600, 4096, 20) is PointsForm  # few clusters: products with points cost less than G


# In the stage


def test_the_stage_gives_the_same_subcategories_with_either_k_means():
    points = planted(n=40, d=60, k=4, separation=5)
    present = np.random.default_rng(0).random((40, 2)) < 0.8
    labels = LabelSet(present, tuple(map(str, range(40))), ("cat", "dog"))
    config = ClusterConfig(k=4)
    slow, fast = (cluster_subcategories(points, labels, config, fit=own) for own in (cluster.k_means, k_means))
    for c in range(2):
        own, other = (found.present[:, found.parent == c].astype(int) for found in (slow, fast))
        assert own.shape[1] == other.shape[1] == 4
        assert np.array_equal(own @ own.T, other @ other.T)


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_point_that_is_not_finite_is_refused(form, value):
    points = planted()
    points[7, 3] = value
    with pytest.raises(NumericError, match="NaN or infinite"):
        fit(points, 3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_points_too_large_to_be_squared_are_refused(form):
    with pytest.raises(NumericError, match="overflow"):
        fit(np.float32(1e25) * planted(), 3)


@pytest.mark.parametrize("shape", [(2, 5), (0, 5), (5, 0), (5,), (5, 2, 2)])
def test_points_of_another_shape_without_channels_or_fewer_than_clusters_are_refused(shape):
    with pytest.raises(ShapeError, match=r"expected \[N, D\] with N at least k = 3"):
        fit(np.ones(shape, np.float32), 3)


def test_no_clusters_and_no_restarts_are_refused():
    with pytest.raises(ShapeError, match="k = 0"):
        fit(planted(), 0)
    with pytest.raises(ConfigError, match="n_init is 0"):
        fit(planted(), 2, n_init=0)
    with pytest.raises(ConfigError, match="max_iterations 0"):
        fit(planted(), 2, max_iterations=0)
