"""Eq. 1: maps in [0, 1] that turn with the image, on the grid that was asked for, in the authors' numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, relu

from sccam.data.transforms import resize
from sccam.stages.cam import MAX_EPSILON, CamConfig, ScoreViews, activation_map, normalise, view_size
from sccam.structures import ByteArray, IntArray

CLASSES = np.array([0, 2, 3], np.int32)
STRIDE = 8


def picture(height: int = 40, width: int = 56) -> ByteArray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def network(views: ByteArray, classes: IntArray) -> Tensor:
    """One random strided convolution that sees left and right differently, and five classes."""
    kernels = torch.randn(5, 3, STRIDE, STRIDE, generator=torch.Generator().manual_seed(0))
    images = torch.tensor(views.copy()).permute(0, 3, 1, 2) / 255 - 0.5
    bottom, right = (-side % STRIDE for side in images.shape[-2:])
    images = torch.nn.functional.pad(images, (0, right, 0, bottom))
    return relu(conv2d(images, kernels, stride=STRIDE))[:, classes.tolist()]


def constant(value: float) -> ScoreViews:
    return lambda views, classes: torch.full((len(views), len(classes), 5, 7), value)


def authors_map(image: ByteArray, classes: IntArray, scales: tuple[float, ...]) -> np.ndarray:
    """infer_cls.py, pass by pass: rectify, resize to the image, turn back, sum, divide by the maximum + 1e-5."""
    height, width = image.shape[:2]
    total = torch.zeros(len(classes), height, width)
    for scale in scales:
        view = resize(image, (round(height * scale), round(width * scale)))
        for mirrored in (False, True):
            (maps,) = network((view[:, ::-1] if mirrored else view)[None], classes)
            full = interpolate(maps[None], (height, width), mode="bilinear", align_corners=False)[0]
            total += full.flip(-1) if mirrored else full
    return (total / (total.amax((1, 2), keepdim=True) + 1e-5)).numpy()


def test_it_gives_the_authors_numbers_though_views_are_merged_before_the_resize(tolerance):
    scales = (1.0, 0.5, 1.5, 2.0)
    config = CamConfig(scales=scales, grid_stride=1, round_sizes=False)
    image = picture(37, 51)
    found = activation_map(image, CLASSES, network, config, multiple=STRIDE)
    assert found.scores == pytest.approx(authors_map(image, CLASSES, scales), abs=tolerance["float32"])


@pytest.mark.parametrize("score", [1.0, 0.03])
def test_a_constant_score_becomes_one_but_for_the_epsilon(score, tolerance):
    found = activation_map(picture(), CLASSES, constant(score), CamConfig(scales=(1.0,), flip=False), multiple=STRIDE)
    assert found.scores == pytest.approx(score / (score + MAX_EPSILON), abs=tolerance["float32"])


def test_the_maps_of_a_mirrored_image_are_mirrored(tolerance):
    config = CamConfig(scales=(1.0, 0.5))
    maps, mirrored = (
        activation_map(np.ascontiguousarray(image), CLASSES, network, config, multiple=STRIDE).scores
        for image in (picture(), picture()[:, ::-1])
    )
    assert mirrored == pytest.approx(maps[..., ::-1], abs=tolerance["float32"])


def test_without_the_mirror_image_they_are_not_since_this_network_sees_left_and_right_differently(tolerance):
    config = CamConfig(scales=(1.0,), flip=False)
    maps, mirrored = (
        activation_map(np.ascontiguousarray(image), CLASSES, network, config, multiple=STRIDE).scores
        for image in (picture(), picture()[:, ::-1])
    )
    assert np.abs(mirrored - maps[..., ::-1]).max() > 0.1


def test_the_merge_that_is_given_gets_the_views_of_each_scale_and_makes_the_map():
    seen = []

    def merge(views, grid, *, flip):
        seen.append(([view.shape for view in views], grid, flip))
        return np.full((3, *grid), 0.25, np.float32)

    config = CamConfig(scales=(1.0, 2.0))
    found = activation_map(picture(40, 56), CLASSES, network, config, multiple=STRIDE, merge=merge)
    assert seen == [([(2, 3, 5, 7), (2, 3, 10, 14)], (10, 14), True)]
    assert (found.scores == 0.25).all()


def test_the_order_of_classes_permutes_the_channels(tolerance):
    maps = activation_map(picture(), CLASSES, network, CamConfig(), multiple=STRIDE)
    turned = activation_map(picture(), CLASSES[[2, 0, 1]], network, CamConfig(), multiple=STRIDE)
    assert turned.scores == pytest.approx(maps.scores[[2, 0, 1]], abs=tolerance["float32"])


def test_the_map_of_a_class_does_not_depend_on_the_other_tags(tolerance):
    maps = activation_map(picture(), CLASSES, network, CamConfig(), multiple=STRIDE)
    alone = activation_map(picture(), CLASSES[1:2], network, CamConfig(), multiple=STRIDE)
    assert alone.scores[0] == pytest.approx(maps.scores[1], abs=tolerance["float32"])


def test_the_order_of_scales_does_not_matter(tolerance):
    there, back = (
        activation_map(picture(), CLASSES, network, CamConfig(scales=scales), multiple=STRIDE).scores
        for scales in ((1.0, 0.5, 1.5), (1.5, 0.5, 1.0))
    )
    assert there == pytest.approx(back, abs=tolerance["float32"])


@settings(max_examples=20)
@given(height=st.integers(1, 60), width=st.integers(1, 60), grid_stride=st.sampled_from([1, 4, 8]))
def test_values_lie_between_0_and_1_on_a_grid_that_covers_the_image(height, width, grid_stride):
    config = CamConfig(scales=(1.0, 0.5), grid_stride=grid_stride)
    maps = activation_map(picture(height, width), CLASSES, network, config, multiple=STRIDE)
    assert maps.scores.shape == (3, math.ceil(height / grid_stride), math.ceil(width / grid_stride))
    assert maps.scores.dtype == np.float32
    assert maps.scores.min() >= 0 and maps.scores.max() <= 1


@pytest.mark.filterwarnings("error")
def test_a_map_of_zeros_stays_zero():
    found = activation_map(picture(), CLASSES, constant(0.0), CamConfig(), multiple=STRIDE)
    assert not found.scores.any()


def test_classes_are_divided_each_by_its_own_maximum(tolerance):
    scores = np.array([[[1.0, 2.0]], [[0.0, 0.5]], [[0.0, 0.0]]], np.float32)
    expected = np.array([[[0.5, 1.0]], [[0.0, 1.0]], [[0.0, 0.0]]])
    assert normalise(scores) == pytest.approx(expected, abs=3 * MAX_EPSILON)  # what the epsilon takes from 0.5


def test_an_image_without_classes_has_a_map_without_channels():
    found = activation_map(picture(40, 56), CLASSES[:0], network, CamConfig(), multiple=STRIDE)
    assert found.scores.shape == (0, 10, 14)


# Sizes of the views


def sizes_of_views(config: CamConfig) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []

    def watching(views: ByteArray, classes: IntArray) -> Tensor:
        seen.append(views.shape)
        return network(views, classes)

    activation_map(picture(375, 500), CLASSES, watching, config, multiple=STRIDE)
    return seen


def test_a_long_side_brings_images_of_any_size_to_one_view():
    config = CamConfig(scales=(1.0, 0.5), long_side=640)
    seen: list[tuple[int, ...]] = []

    def views(stack: np.ndarray, classes: np.ndarray) -> torch.Tensor:
        seen.append(stack.shape[1:3])
        return torch.rand(len(stack), len(classes), 2, 3)

    for size in ((213, 320), (960, 1280)):
        image = np.zeros((*size, 3), np.uint8)
        activation = activation_map(image, np.array([0], np.int32), views, config, multiple=16)
        assert activation.scores.shape[1:] == (-(-size[0] // 4), -(-size[1] // 4))  # the map stays on the image's grid
    assert seen == [(432, 640), (208, 320), (480, 640), (240, 320)]
    assert CamConfig().enlargement((213, 320)) == 1.0


def test_view_sizes_are_the_authors_when_they_are_not_rounded():
    sizes = [(375, 500), (188, 250), (562, 750), (750, 1000)]
    assert sizes_of_views(CamConfig(round_sizes=False)) == [(2, *size, 3) for size in sizes]


def test_view_sizes_are_multiples_of_the_stride_when_they_are_rounded():
    sizes = [(376, 496), (184, 248), (560, 752), (752, 1000)]
    assert sizes_of_views(CamConfig()) == [(2, *size, 3) for size in sizes]


def test_without_the_mirror_image_there_is_one_view_a_scale():
    assert sizes_of_views(CamConfig(scales=(1.0,), flip=False, round_sizes=False)) == [(1, 375, 500, 3)]


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.1, 4), st.sampled_from([1, 8, 16, 32]))
def test_a_view_is_the_nearest_positive_multiple(height, width, scale, multiple):
    size = view_size((height, width), scale, multiple)
    for side, found in zip((height, width), size, strict=True):
        assert found > 0 and found % multiple == 0
        assert found == multiple or abs(found - side * scale) <= multiple / 2
