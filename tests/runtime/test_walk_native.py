"""The compiled walk and affinities: the paper forms' numbers on every instruction set, and their mathematics."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sccam.errors import BackendUnavailable, NumericError, ShapeError
from sccam.runtime import native
from sccam.runtime.affinity_native import affinity_fields
from sccam.runtime.walk_native import chebyshev_coefficients, random_walks
from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.walk import BORDERS, WalkConfig, random_walk, walk_lengths
from sccam.structures import AffinityField

pytestmark = pytest.mark.skipif(not native.available(), reason="no compiler was there to build the kernels")

ERROR = 1e-5  # of a walk of 256 steps: 1e-6 of the expansion, the rest single precision (also in the paper form)
GRIDS = [(1, 1), (1, 625), (23, 1), (5, 7), (17, 16), (33, 65)]


@pytest.fixture(params=native.available())
def instruction_set(request, monkeypatch):
    monkeypatch.setenv(native.CHOICE, request.param)
    return request.param


def features_of(grid: tuple[int, int], channels: int = 12, seed: int = 0) -> np.ndarray:
    """A field that varies slowly, with a sharp edge down the middle."""
    rng = np.random.default_rng(seed)
    smooth = rng.normal(size=(channels, *grid)).cumsum(axis=1).cumsum(axis=2).astype(np.float32)
    smooth /= np.abs(smooth).max()
    smooth[:, :, grid[1] // 2 :] += 0.5
    return smooth


def field_of(grid: tuple[int, int], radius: int = 5, seed: int = 0) -> AffinityField:
    return affinity_field(torch.from_numpy(features_of(grid, seed=seed)), neighbour_offsets(radius), 8)


def scores_of(grid: tuple[int, int], channels: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((channels, *grid), np.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_a_walk_gives_the_numbers_of_the_paper_form(instruction_set, grid, border, threads):
    for channels in (1, 3, 8, 21):
        scores, config = scores_of(grid, channels), WalkConfig(border=border)
        (found,) = random_walks([scores], [field_of(grid)], config, threads=threads)
        assert found.dtype == np.float32
        assert np.abs(found - random_walk(scores, field_of(grid), config)).max() <= ERROR


@pytest.mark.parametrize("config", [WalkConfig(beta=10.0), WalkConfig(beta=2.5), WalkConfig(beta=0.0)])
@pytest.mark.parametrize("radius", [2, 3, 7, 16])
def test_any_exponent_and_radius(instruction_set, config, radius):
    grid = (19, 22)
    (found,) = random_walks([scores_of(grid, 4)], [field_of(grid, radius)], config)
    assert np.abs(found - random_walk(scores_of(grid, 4), field_of(grid, radius), config)).max() <= ERROR


@pytest.mark.parametrize("rule", ["fixed", "mean"])
@pytest.mark.parametrize("steps", [0, 1, 2, 7, 30, 255, 1000])
def test_any_number_of_steps(instruction_set, steps, rule):
    grid, config = (12, 18), WalkConfig(steps=steps, rule=rule)
    (found,) = random_walks([scores_of(grid, 3)], [field_of(grid)], config)
    # The paper form rounds once a step, 1000 times here.
    assert np.abs(found - random_walk(scores_of(grid, 3), field_of(grid), config)).max() <= 2 * ERROR


def test_a_constant_map_is_a_fixed_point(instruction_set):
    grid = (33, 65)
    (found,) = random_walks([np.full((2, *grid), 0.7, np.float32)], [field_of(grid)], WalkConfig())
    assert np.abs(found - 0.7).max() <= 1e-6  # ten roundings of a number below 1


@given(st.integers(0, 300), st.integers(0, 5))
def test_scores_stay_in_their_range_to_the_stated_error(steps, seed):
    grid = (9, 14)
    scores = scores_of(grid, 2, seed)
    (found,) = random_walks([scores], [field_of(grid, seed=seed)], WalkConfig(steps=steps))
    assert found.min() >= scores.min() - ERROR and found.max() <= scores.max() + ERROR


def test_a_channel_walks_alone_and_an_image_is_the_same_in_any_batch_and_on_any_threads():
    grids = [(9, 14), (33, 65), (1, 5)]
    scores, fields = [scores_of(grid, 5) for grid in grids], [field_of(grid) for grid in grids]
    together = random_walks(scores, fields, WalkConfig(), threads=2)
    for one, field, found in zip(scores, fields, together, strict=True):
        assert np.array_equal(found, random_walks([one], [field], WalkConfig(), threads=1)[0])
        order = [3, 1, 4, 0, 2]
        assert np.array_equal(found[order], random_walks([one[order]], [field], WalkConfig())[0])


def test_a_mirrored_image_gives_the_mirrored_scores():
    grid, offsets = (13, 21), neighbour_offsets(5)
    features, scores = features_of(grid), scores_of(grid, 3)
    (field,) = affinity_fields([features], offsets, 8)
    (mirrored,) = affinity_fields([features[:, :, ::-1]], offsets, 8)
    (found,) = random_walks([scores], [field], WalkConfig())
    (other,) = random_walks([scores[:, :, ::-1]], [mirrored], WalkConfig())
    assert np.abs(found - other[:, :, ::-1]).max() <= ERROR


def test_the_expansion_leaves_out_no_more_than_it_says_and_keeps_constants():
    for steps in (2, 3, 64, 256, 1024):
        for tolerance in (1e-3, 1e-6):
            c = chebyshev_coefficients((steps,), tolerance)
            if c is None:
                continue
            assert len(c) - 1 < steps and c.sum() == pytest.approx(1, abs=1e-12) and (c >= 0).all()
            angles = np.linspace(0, math.pi, 2001)
            expansion = np.polynomial.chebyshev.chebval(np.cos(angles), c)
            assert np.abs(expansion - np.cos(angles) ** steps).max() <= 2 * tolerance  # left out, and divided by
    for tolerance, degree in ((1e-4, 62), (1e-6, 78)):
        kept = chebyshev_coefficients((256,), tolerance)
        assert kept is not None and len(kept) - 1 == degree
    assert chebyshev_coefficients((30,), 0.0) is None and chebyshev_coefficients((1,), 1e-6) is None


@pytest.mark.parametrize(("tolerance", "degree"), [(1e-6, 78), (0.0, 256)])
def test_a_mean_of_walks_has_the_mean_of_their_expansions(tolerance, degree):
    lengths = walk_lengths(WalkConfig(rule="mean"))
    c = chebyshev_coefficients(lengths, tolerance)
    assert c is not None and len(c) - 1 == degree and c.sum() == pytest.approx(1, abs=1e-12) and (c >= 0).all()
    x = np.cos(np.linspace(0, math.pi, 2001))
    mean = np.mean([x**steps for steps in lengths], axis=0)
    assert np.abs(np.polynomial.chebyshev.chebval(x, c) - mean).max() <= 2 * tolerance + 1e-12


def test_a_mean_of_walks_with_every_step_is_that_of_the_paper_form():
    grid, config = (12, 18), WalkConfig(steps=30, rule="mean")
    (found,) = random_walks([scores_of(grid, 3)], [field_of(grid)], config, tolerance=0)
    assert np.abs(found - random_walk(scores_of(grid, 3), field_of(grid), config)).max() <= ERROR


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("grid", GRIDS)
def test_affinities_are_those_of_the_paper_form(instruction_set, grid, threads, tolerance):
    for channels, radius in ((1, 5), (12, 2), (448, 5), (7, 16)):
        features, offsets = features_of(grid, channels), neighbour_offsets(radius)
        (found,) = affinity_fields([features], offsets, 8, threads=threads)
        expected = affinity_field(torch.from_numpy(features), offsets, 8)
        assert found.stride == 8 and np.array_equal(found.values == 0, expected.values == 0)
        assert np.abs(found.values - expected.values).max() <= tolerance["float32"]


def test_bad_input_is_refused_by_name():
    grid = (4, 6)
    field, scores = field_of(grid), scores_of(grid, 2)
    with pytest.raises(ShapeError, match=r"scores have shape \(2, 4, 6\), affinities lie on grid \(5, 7\)"):
        random_walks([scores], [field_of((5, 7))], WalkConfig())
    with pytest.raises(ShapeError, match="1 scores, 2 affinities"):
        random_walks([scores], [field, field], WalkConfig())
    for bad in (np.nan, np.inf):
        broken = scores.copy()
        broken[1, 2, 3] = bad
        with pytest.raises(NumericError, match="scores of the walk hold NaN or infinity"):
            random_walks([broken], [field], WalkConfig())
        values = field.values.copy()
        values[0, 0, 0] = bad
        with pytest.raises(NumericError, match="affinities of the walk"):
            random_walks([scores], [AffinityField(values, field.offsets, 8)], WalkConfig())
        with pytest.raises(NumericError, match="features"):
            affinity_fields([np.full((2, 3, 4), bad, np.float32)], neighbour_offsets(2), 8)
    with pytest.raises(ShapeError, match=r"expected \(D, h, w\)"):
        affinity_fields([np.zeros((3, 4), np.float32)], neighbour_offsets(2), 8)


def test_no_images_and_no_channels_give_nothing():
    assert random_walks([], [], WalkConfig()) == []
    assert random_walks([scores_of((4, 6), 0)], [field_of((4, 6))], WalkConfig())[0].shape == (0, 4, 6)


def test_non_contiguous_and_double_scores_walk_like_their_copies():
    grid = (10, 12)
    scores = scores_of(grid, 4)
    expected = random_walks([scores], [field_of(grid)], WalkConfig())[0]
    padded: Any = np.zeros((4, 20, 12), np.float64)
    padded[:, ::2] = scores
    assert np.array_equal(random_walks([padded[:, ::2]], [field_of(grid)], WalkConfig())[0], expected)


def test_an_unknown_instruction_set_is_refused(monkeypatch):
    monkeypatch.setenv(native.CHOICE, "mmx")
    with pytest.raises(BackendUnavailable, match="no kernels for 'mmx'"):
        random_walks([scores_of((4, 6), 1)], [field_of((4, 6))], WalkConfig())


def test_the_kernels_load_no_torch():
    code = (
        "import sys, numpy as np; from sccam.runtime import walk_native, affinity_native as a;"
        "from sccam.stages.walk import WalkConfig; o = np.array([[0, 1], [1, 0]], np.int32);"
        "f = a.affinity_fields([np.ones((3, 4, 5), np.float32)], o, 8);"
        "walk_native.random_walks([np.ones((1, 4, 5), np.float32)], f, WalkConfig());"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "False", done.stderr
