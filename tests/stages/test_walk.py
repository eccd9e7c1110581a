"""The walk is a weighted average along affinities: fixed points, bounds, and the authors' counts and numbers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sccam.errors import ShapeError
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.walk import (
    BORDERS,
    WalkConfig,
    background_score,
    pool_to_grid,
    random_walk,
    transition,
    upsample,
    walk_lengths,
    with_background,
)
from sccam.structures import ActivationMap, AffinityField

TOLERANCE = {
    "column sum": 1e-7,  # one rounding to single precision of the diagonal
    "256 steps": 2e-5,  # 256 single-precision averages of 69 terms against double precision
    "one step": 1e-7,  # one single-precision product
    "bilinear": 1e-6,  # single-precision weights of two neighbours
}
OFFSETS = neighbour_offsets(5)
VOC_GRID = (47, 63)  # a 375 x 500 photo at stride 8


def field_of(height: int, width: int, seed: int = 0, offsets: np.ndarray = OFFSETS) -> AffinityField:
    """Affinities of a random image that varies slowly, with every pair inside the grid."""
    rng = np.random.default_rng(seed)
    image = rng.random((height, width)).cumsum(axis=0).cumsum(axis=1)
    image /= image.max()
    values = np.zeros((len(offsets), height, width), np.float32)
    for r, (dy, dx) in enumerate(offsets):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    values[r, y, x] = np.exp(-3 * abs(image[y, x] - image[y + dy, x + dx]))
    return AffinityField(values, offsets, 8)


def dense_walk(scores: np.ndarray, field: AffinityField, beta: float, squarings: int) -> np.ndarray:
    """The authors' way in double precision: a dense matrix, squared again and again."""
    _, height, width = field.values.shape
    A = np.eye(height * width)
    for values, (dy, dx) in zip(field.values, field.offsets, strict=True):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    i, j = y * width + x, (y + dy) * width + x + dx
                    A[i, j] = A[j, i] = values[y, x]
    P = A**beta
    T = P / P.sum(axis=0)
    for _ in range(squarings):
        T = T @ T
    return (scores.reshape(len(scores), -1).astype(np.float64) @ T).reshape(scores.shape)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (3, 4), (11, 9)])
def test_columns_of_the_transition_sum_to_one(grid, border):
    T = transition(field_of(*grid), WalkConfig(border=border))
    sums = T.astype(np.float64).sum(axis=0)
    assert np.abs(sums - 1).max() <= TOLERANCE["column sum"]
    assert T.dtype == np.float32
    assert T.data.min() >= 0


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("border", BORDERS)
def test_a_constant_map_is_a_fixed_point(border, channels):
    constant = np.full((channels, 12, 17), 0.7, np.float32)
    walked = random_walk(constant, field_of(12, 17), WalkConfig(border=border))
    assert np.abs(walked - constant).max() <= TOLERANCE["256 steps"]


@settings(deadline=None, max_examples=25)
@given(arrays(np.float32, (2, 6, 7), elements=st.floats(0, 1, width=32)), st.integers(0, 40), st.integers(0, 3))
def test_walked_scores_stay_between_the_lowest_and_the_highest(scores, steps, seed):
    walked = random_walk(scores, field_of(6, 7, seed), WalkConfig(steps=steps))
    for before, after in zip(scores, walked, strict=True):
        assert after.min() >= before.min() - TOLERANCE["256 steps"]
        assert after.max() <= before.max() + TOLERANCE["256 steps"]


@pytest.mark.parametrize("channels", [2, 6])
@pytest.mark.parametrize("beta", [8.0, 10.0])
def test_sparse_steps_equal_dense_squaring_in_double_precision(beta, channels):
    field = field_of(9, 13)
    scores = np.random.default_rng(1).random((channels, 9, 13), dtype=np.float32)
    walked = random_walk(scores, field, WalkConfig(beta=beta, steps=256))
    assert np.abs(walked - dense_walk(scores, field, beta, squarings=8)).max() <= TOLERANCE["256 steps"]


@pytest.mark.parametrize(
    ("steps", "lengths"), [(256, (16, 32, 64, 128, 256)), (20, (1, 2, 5, 10, 20)), (3, (1, 3)), (1, (1,)), (0, (0,))]
)
def test_the_mean_is_that_of_walks_of_steps_and_what_halvings_leave_of_it(steps, lengths):
    mean = WalkConfig(steps=steps, rule="mean")
    assert walk_lengths(mean) == lengths and walk_lengths(WalkConfig(steps=steps)) == (steps,)
    scores = np.random.default_rng(5).random((4, 9, 13), dtype=np.float32)
    for some in (scores, scores[:2]):
        walks = [random_walk(some, field_of(9, 13), WalkConfig(steps=length)) for length in lengths]
        assert np.abs(random_walk(some, field_of(9, 13), mean) - np.mean(walks, axis=0)).max() <= 1e-6


def test_channels_walk_alone():
    field = field_of(8, 8)
    scores = np.random.default_rng(2).random((5, 8, 8), dtype=np.float32)
    together = random_walk(scores, field, WalkConfig(steps=64))
    alone = np.concatenate([random_walk(channel[None], field, WalkConfig(steps=64)) for channel in scores])
    assert np.abs(together - alone).max() <= TOLERANCE["256 steps"]


def test_no_steps_change_nothing_and_the_input_is_left_alone():
    scores = np.random.default_rng(3).random((2, 6, 7), dtype=np.float32)
    before = scores.copy()
    assert np.array_equal(random_walk(scores, field_of(6, 7), WalkConfig(steps=0)), before)
    random_walk(scores, field_of(6, 7), WalkConfig(steps=3))
    assert np.array_equal(scores, before)


def test_a_non_contiguous_map_walks_like_its_copy():
    wide = np.random.default_rng(4).random((2, 6, 14), dtype=np.float32)
    view = wide[:, :, ::2]
    assert np.array_equal(
        random_walk(view, field_of(6, 7), WalkConfig()), random_walk(view.copy(), field_of(6, 7), WalkConfig())
    )


def test_a_wall_without_affinity_stops_the_walk():
    field = field_of(6, 8)
    values = field.values.copy()
    for r, (_, dx) in enumerate(OFFSETS):
        for x in range(8):
            if (x < 4) != (x + dx < 4):
                values[r, :, x] = 0
    scores = np.zeros((1, 6, 8), np.float32)
    scores[:, :, :4] = 1
    walked = random_walk(scores, AffinityField(values, OFFSETS, 8), WalkConfig())
    assert np.abs(walked - scores).max() <= TOLERANCE["256 steps"]


def undirected_edges(border: str) -> tuple[int, np.ndarray]:
    """Number of pairs, and neighbours of each cell, on the grid of a VOC photo."""
    values = np.ones((len(OFFSETS), *VOC_GRID), np.float32)
    T = transition(AffinityField(values, OFFSETS, 8), WalkConfig(border=border))
    neighbours = np.diff(T.indptr) - 1
    return (T.nnz - T.shape[0]) // 2, neighbours


def test_the_clean_border_keeps_every_pair_inside_the_image():
    edges, neighbours = undirected_edges("clean")
    assert edges == 93_314
    assert neighbours.min() == 21  # a corner sees a quarter of the disc


def test_the_authors_border_loses_the_pairs_that_theirs_loses():
    edges, neighbours = undirected_edges("psa")
    assert edges == 80_410
    assert (neighbours == 0).sum() == 10
    assert neighbours.reshape(VOC_GRID)[0, :4].tolist() == [0, 0, 0, 0]
    assert (neighbours == 2 * len(OFFSETS)).sum() == 1_833


def test_isolated_cells_keep_their_score():
    scores = np.random.default_rng(5).random((1, 12, 16), dtype=np.float32)
    walked = random_walk(scores, field_of(12, 16), WalkConfig(border="psa"))
    assert np.array_equal(walked[0, 0, :4], scores[0, 0, :4])


def test_a_golden_pair_of_cells():
    field = AffinityField(np.array([[[0.5, 0.0]]], np.float32), np.array([[0, 1]], np.int32), 8)
    walked = random_walk(np.array([[[1.0, 0.0]]], np.float32), field, WalkConfig(beta=1.0, steps=1))
    assert np.allclose(walked, [[[2 / 3, 1 / 3]]], atol=TOLERANCE["one step"])


def test_scores_on_another_grid_are_refused():
    with pytest.raises(ShapeError, match="compute both at the same stride"):
        random_walk(np.zeros((1, 4, 4), np.float32), field_of(6, 7), WalkConfig())


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_upsampling_equals_torch(stride):
    scores = np.random.default_rng(6).random((3, 5, 7), dtype=np.float32)
    size = (5 * stride - stride // 2, 7 * stride - stride // 3)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[None], scale_factor=stride, mode="bilinear", align_corners=False
    )[0, :, : size[0], : size[1]]
    assert np.abs(upsample(scores, size, stride) - expected.numpy()).max() <= TOLERANCE["bilinear"]
    assert upsample(scores, size, stride).dtype == np.float32


def test_upsampling_beyond_the_grid_is_refused():
    with pytest.raises(ShapeError, match="covers 16x24 px, not 17x24"):
        upsample(np.zeros((1, 2, 3), np.float32), (17, 24), 8)


def test_clean_pooling_keeps_a_constant_and_the_authors_pooling_fades_at_the_border():
    ones = np.ones((2, 13, 10), np.float32)
    assert np.array_equal(pool_to_grid(ones, 8), np.ones((2, 2, 2), np.float32))
    padded = pool_to_grid(ones, 8, border="psa")
    assert np.allclose(padded[0], [[1, 2 / 8], [5 / 8, 10 / 64]])


def test_pooling_equals_torch_where_cells_are_whole():
    scores = np.random.default_rng(7).random((3, 24, 16), dtype=np.float32)
    expected = torch.nn.functional.avg_pool2d(torch.from_numpy(scores), 8).numpy()
    for border in BORDERS:
        assert np.allclose(pool_to_grid(scores, 8, border), expected, atol=TOLERANCE["bilinear"])


def test_background_is_certain_where_no_class_scores():
    scores = np.array([[[0.0, 0.5, 1.0]], [[0.0, 0.25, 0.0]]], np.float32)
    assert np.allclose(background_score(scores, 2.0), [[1.0, 0.25, 0.0]])
    assert np.array_equal(background_score(np.zeros((0, 2, 3), np.float32), 16.0), np.ones((2, 3)))


def test_a_score_that_rounding_lifted_above_one_is_no_background():
    assert background_score(np.full((1, 1, 1), np.nextafter(np.float32(1), np.float32(2))), 11.7) == 0


def test_background_comes_first():
    scores = np.random.default_rng(8).random((2, 3, 4), dtype=np.float32)
    stacked = with_background(ActivationMap(scores, np.array([3, 7], np.int32)), 16.0)
    assert np.array_equal(stacked[1:], scores)
    assert np.array_equal(stacked[0], background_score(scores, 16.0))
    assert stacked.dtype == np.float32


def test_the_walk_loads_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; from sccam.stages import affinity_labels, crf, evaluate, threshold, walk; "
        "raise SystemExit('torch' in sys.modules or 'pydensecrf' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
