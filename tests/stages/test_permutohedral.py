"""The permutohedral lattice: weights are barycentric, the filter is nearly Gaussian, vertices that cannot be told apart
are refused."""

import numpy as np
import pytest

from sccam.errors import ShapeError
from sccam.stages.permutohedral import permutohedral_lattice

SHARE_OF_PEAK = 0.1  # Adams et al. report errors of some per cent; the lattice is coarser than the kernel


def grid(height, width, deviation):
    rows, columns = np.indices((height, width), np.float32).reshape(2, -1)
    return np.stack([columns, rows]) / np.float32(deviation)


@pytest.mark.parametrize("dimension", [2, 5])
def test_weights_of_a_point_are_not_negative_and_sum_to_one(dimension, rng, tolerance):
    features = rng.normal(0, 5, (dimension, 200)).astype(np.float32)
    splat = permutohedral_lattice(features).splat
    assert splat.data.min() >= -tolerance["float32"]
    assert splat.sum(axis=0) == pytest.approx(np.ones(200), abs=tolerance["float32"])
    assert (np.diff(splat.tocsc().indptr) <= dimension + 1).all()


@pytest.mark.parametrize("dimension", [2, 5])
def test_neighbours_are_mutual(dimension, rng):
    lattice = permutohedral_lattice(rng.normal(0, 3, (dimension, 300)).astype(np.float32))
    vertices = lattice.splat.shape[0]
    for down, up in lattice.neighbours:
        there = np.flatnonzero(down < vertices)
        assert len(there) and (up[down[there]] == there).all()
        assert (up < vertices).sum() == len(there)


def test_an_impulse_spreads_like_a_gaussian():
    side, deviation = 41, 4.0
    impulse = np.zeros((side * side, 1), np.float32)
    impulse[side * side // 2] = 1
    found = permutohedral_lattice(grid(side, side, deviation)).filter(impulse).reshape(side, side)
    offset = np.arange(side) - side // 2
    gaussian = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * deviation**2))
    assert (
        np.abs(found / found.sum() - gaussian / gaussian.sum()).max()
        <= SHARE_OF_PEAK * (gaussian / gaussian.sum()).max()
    )


def test_far_points_hear_nothing_of_each_other():
    features = np.zeros((5, 2), np.float32)
    features[2, 1] = 100  # deviations
    assert permutohedral_lattice(features).filter(np.array([[1], [0]], np.float32))[1, 0] == 0


def test_filtering_is_linear(rng, tolerance):
    lattice = permutohedral_lattice(rng.normal(0, 2, (5, 64)).astype(np.float32))
    values = rng.random((64, 3), np.float32)
    weights = np.array([[0.2], [0.3], [0.5]], np.float32)
    assert lattice.filter(values @ weights) == pytest.approx(lattice.filter(values) @ weights, rel=tolerance["float32"])


def test_points_are_filled_up_to_fours_at_the_origin_as_densecrf_does():
    far = np.full((2, 5), 50, np.float32)
    assert permutohedral_lattice(far[:, :4]).splat.shape == (3, 4)
    assert permutohedral_lattice(far).splat.shape == (6, 5)


@pytest.mark.parametrize(("dimension", "far"), [(2, 1e7), (5, 1e4), (5, np.inf), (2, np.nan)])
def test_points_too_far_apart_are_refused(dimension, far):
    features = np.zeros((dimension, 8), np.float32)
    features[:, 3] = far
    with np.errstate(invalid="ignore"), pytest.raises(ShapeError, match="cells along an axis"):
        permutohedral_lattice(features)
