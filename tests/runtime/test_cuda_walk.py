"""The GPU's walk and affinities, run on the CPU: the paper forms' numbers, in any batch and order of threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sccam.errors import NumericError, ResourceError, ShapeError
from sccam.runtime import walk_cupy
from sccam.runtime.affinity_cupy import affinity_fields
from sccam.runtime.walk_cupy import random_walks
from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.walk import BORDERS, WalkConfig, random_walk
from sccam.structures import AffinityField
from tests.runtime.cuda_cases import ERROR, difference, field_of, in_half, walk_scores
from tests.runtime.cuda_shim.device import ShimDevice

GRIDS = [(1, 1), (1, 17), (9, 1), (5, 7), (16, 20), (13, 31)]
OFFSETS = neighbour_offsets(5)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("steps", "rule"), [(0, "fixed"), (1, "fixed"), (7, "fixed"), (256, "fixed"), (256, "mean")])
def test_a_ragged_batch_equals_the_paper_form(device, border, steps, rule):
    fields = [in_half(field_of(grid, seed=n)) for n, grid in enumerate(GRIDS)]
    scores = [walk_scores(grid, 1 + n, n) for n, grid in enumerate(GRIDS)]
    config = WalkConfig(beta=1, steps=steps, rule=rule, border=border)
    for walked, one, field in zip(random_walks(scores, fields, config, device=device), scores, fields, strict=True):
        assert difference(walked, random_walk(one, field, config)) <= ERROR["walk"]


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("beta", [0.0, 8.0])
def test_weights_rounded_to_half_change_little(device, border, beta):
    field, scores = field_of((20, 27)), walk_scores((20, 27), 3)
    config = WalkConfig(beta=beta, border=border)
    (walked,) = random_walks([scores], [field], config, device=device)
    assert difference(walked, random_walk(scores, field, config)) <= ERROR["walk, weights in half"]


@pytest.mark.parametrize("radius", [2, 9])
def test_any_radius_equals_the_paper_form(device, radius):
    field, scores = in_half(field_of((12, 22), radius)), walk_scores((12, 22), 2)
    config = WalkConfig(beta=1, steps=40)
    (walked,) = random_walks([scores], [field], config, device=device)
    assert difference(walked, random_walk(scores, field, config)) <= ERROR["walk"]


def test_offsets_need_not_form_a_disc(device):
    offsets = np.array([(0, 2), (1, -3), (2, 0)], np.int32)
    field = AffinityField(np.full((3, 9, 10), 0.5, np.float32), offsets, 8)
    scores, config = walk_scores((9, 10), 2), WalkConfig(beta=1, steps=30)
    (walked,) = random_walks([scores], [field], config, device=device)
    assert difference(walked, random_walk(scores, field, config)) <= ERROR["walk"]


def test_without_neighbours_nothing_walks(device):
    field = AffinityField(np.zeros((0, 3, 4), np.float32), np.zeros((0, 2), np.int32), 8)
    scores = walk_scores((3, 4), 2)
    (walked,) = random_walks([scores], [field], WalkConfig(), device=device)
    assert difference(walked, scores) <= ERROR["walk"]


def test_a_tolerance_of_zero_takes_every_step(device):
    field, scores, config = in_half(field_of((8, 9))), walk_scores((8, 9), 2), WalkConfig(beta=1, steps=64)
    before = device.launches
    (walked,) = random_walks([scores], [field], config, tolerance=0, device=device)
    assert device.launches - before >= 64
    assert difference(walked, random_walk(scores, field, config)) <= ERROR["walk"]


def test_a_constant_stays_what_it_is(device):
    field = field_of((14, 11))
    (walked,) = random_walks([np.full((1, 14, 11), 0.7, np.float32)], [field], WalkConfig(), device=device)
    assert np.abs(walked - 0.7).max() <= 2e-6  # the coefficients sum to one in double precision, 78 are rounded


def test_many_channels_a_thread_give_the_same_bits(device, kernel_folder, monkeypatch):
    fields = [field_of((9, 13)), field_of((6, 8), seed=1)]
    scores = [walk_scores((9, 13), 21), walk_scores((6, 8), 3)]
    one = random_walks(scores, fields, WalkConfig(), device=device)
    monkeypatch.setattr(walk_cupy, "ENOUGH_THREADS", 0)
    many = random_walks(scores, fields, WalkConfig(), device=ShimDevice(kernel_folder))
    assert all(map(np.array_equal, one, many))


def test_results_depend_on_neither_the_batch_nor_the_order_of_threads(device, kernel_folder):
    fields = [field_of(grid, seed=n) for n, grid in enumerate(GRIDS)]
    scores = [walk_scores(grid, 3, n) for n, grid in enumerate(GRIDS)]
    together = random_walks(scores, fields, WalkConfig(), device=device)
    for seed in (1, 2):
        other = ShimDevice(kernel_folder, seed=seed)
        for n in range(len(GRIDS)):
            (alone,) = random_walks(scores[n : n + 1], fields[n : n + 1], WalkConfig(), device=other)
            assert np.array_equal(alone, together[n])
    assert all(map(np.array_equal, random_walks(scores, fields, WalkConfig(), device=device), together))


def test_images_of_two_radii_walk_in_one_call(device):
    fields = [in_half(field_of((7, 8), radius)) for radius in (5, 2, 5)]
    scores = [walk_scores((7, 8), 2, n) for n in range(3)]
    config = WalkConfig(beta=1, steps=20)
    for walked, one, field in zip(random_walks(scores, fields, config, device=device), scores, fields, strict=True):
        assert difference(walked, random_walk(one, field, config)) <= ERROR["walk"]


def test_a_full_device_halves_the_batch(device, kernel_folder):
    fields, scores = [field_of((10, 12), seed=n) for n in range(4)], [walk_scores((10, 12), 2, n) for n in range(4)]
    expected = random_walks(scores, fields, WalkConfig(), device=device)
    small = ShimDevice(kernel_folder, room=150_000)  # room for one of the four
    assert all(map(np.array_equal, random_walks(scores, fields, WalkConfig(), device=small), expected))
    with pytest.raises(ResourceError, match="no room for one image"):
        random_walks(scores, fields, WalkConfig(), device=ShimDevice(kernel_folder, room=1000))


def test_wrong_walk_input_is_named(device):
    field = field_of((5, 6))
    with pytest.raises(ShapeError, match=r"shape \(2, 6, 5\), affinities lie on grid \(5, 6\)"):
        random_walks([np.zeros((2, 6, 5), np.float32)], [field], WalkConfig(), device=device)
    with pytest.raises(ShapeError, match="2 scores, 1 affinities"):
        random_walks([np.zeros((2, 5, 6), np.float32)] * 2, [field], WalkConfig(), device=device)
    with pytest.raises(NumericError, match="NaN"):
        random_walks([np.full((1, 5, 6), np.nan, np.float32)], [field], WalkConfig(), device=device)
    scores = walk_scores((5, 6), 1)  # the same shape: no trace of the NaN is left in the plan's buffers
    (walked,) = random_walks([scores], [field], WalkConfig(), device=device)
    assert difference(walked, random_walk(scores, field, WalkConfig())) <= ERROR["walk, weights in half"]
    far = AffinityField(np.zeros((1, 5, 40), np.float32), np.array([(0, 16)], np.int32), 8)
    with pytest.raises(ShapeError, match="16 cells away"):
        random_walks([np.zeros((1, 5, 40), np.float32)], [far], WalkConfig(), device=device)


def test_an_empty_call_walks_nothing(device):
    assert random_walks([], [], WalkConfig(), device=device) == []
    (walked,) = random_walks([np.zeros((0, 5, 6), np.float32)], [field_of((5, 6))], WalkConfig(), device=device)
    assert walked.shape == (0, 5, 6)


def test_affinities_of_a_ragged_batch_equal_the_paper_form(device):
    features = [torch.randn(70, 12, 15), torch.randn(5, 7, 4), torch.randn(3, 1, 1)]
    for field, one in zip(affinity_fields(features, OFFSETS, 8, device=device), features, strict=True):
        expected = affinity_field(one, OFFSETS, 8)
        assert difference(field.values, expected.values) <= ERROR["affinity"]
        assert field.stride == 8
        assert np.array_equal(field.offsets, OFFSETS)


def test_cut_off_padding_takes_no_part(device):
    padded = torch.randn(6, 16, 16)
    (field,) = affinity_fields([padded[:, :11, :13]], OFFSETS, 8, device=device)
    assert difference(field.values, affinity_field(padded[:, :11, :13], OFFSETS, 8).values) <= ERROR["affinity"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_of_any_float_are_taken_as_single_precision(device, dtype):
    features = torch.randn(6, 8, 9).to(dtype)
    (field,) = affinity_fields([features], OFFSETS, 8, device=device)
    assert difference(field.values, affinity_field(features, OFFSETS, 8).values) <= ERROR["affinity"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_wrong_features_are_named(device, bad):
    features = np.zeros((3, 4, 5), np.float32)
    features[2, 3, 4] = bad
    with pytest.raises(NumericError, match="NaN or infinity"):
        affinity_fields([features], OFFSETS, 8, device=device)
    with pytest.raises(ShapeError, match=r"\(4, 5\), expected \(D, h, w\)"):
        affinity_fields([features[0]], OFFSETS, 8, device=device)
