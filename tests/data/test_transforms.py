"""Random views: image and label stay aligned, the same generator gives the same view, sizes come out as asked."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sccam.data.transforms import AugmentConfig, augment, pad_to_multiple, resize
from sccam.structures import ByteArray

FILL = (124, 116, 104)
PLAIN = AugmentConfig(crop=32, long_side=(), scales=(), flip=False, jitter=())  # a crop and nothing else


def coordinates(height: int, width: int) -> tuple[ByteArray, ByteArray]:
    """An image whose red is x and green is y, and a label that follows from both (below 251)."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x, y, np.full_like(x, 200)], axis=-1).astype(np.uint8)
    return image, label_at(image)


def label_at(pixels: ByteArray) -> ByteArray:
    x, y = pixels[..., 0].astype(int), pixels[..., 1].astype(int)
    return ((7 * x + 13 * y) % 251).astype(np.uint8)


def view(config: AugmentConfig, image: ByteArray, label: ByteArray, seed: int = 0) -> tuple[ByteArray, ByteArray]:
    pixels, cropped = augment(image, config, np.random.default_rng(seed), fill=FILL, label=label)
    assert cropped is not None
    return pixels, cropped


def extent(label: ByteArray) -> tuple[int, int]:
    """Height and width of what is not 255."""
    inside = label != 255
    return int(inside.any(axis=1).sum()), int(inside.any(axis=0).sum())


# Alignment


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.integers(16, 64),
    flip=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_crop_at_scale_1_keeps_every_pixel_with_its_label(height, width, crop, flip, seed):
    image, label = coordinates(height, width)
    pixels, cropped = view(dataclasses.replace(PLAIN, crop=crop, flip=flip), image, label, seed)
    assert pixels.shape == (crop, crop, 3) and cropped.shape == (crop, crop)
    inside = cropped != 255
    assert extent(cropped) == (min(height, crop), min(width, crop))
    assert inside.sum() == min(height, crop) * min(width, crop)  # one rectangle
    assert np.array_equal(cropped[inside], label_at(pixels)[inside])
    assert np.array_equal(pixels[~inside], np.broadcast_to(FILL, (int((~inside).sum()), 3)))


@settings(max_examples=40)
@given(
    height=st.integers(24, 120),
    width=st.integers(24, 120),
    scale=st.sampled_from([0.5, 0.75, 1.5, 2.0]),
    seed=st.integers(0, 99),
)
def test_a_scaled_label_lies_within_a_pixel_of_its_image(height, width, scale, seed):
    image, _ = coordinates(height, width)
    config = dataclasses.replace(PLAIN, scales=(scale,), flip=True)
    pixels, cropped = view(config, image, np.ascontiguousarray(image[..., 0]), seed)
    inside = cropped != 255
    assert extent(cropped) == (min(32, round(height * scale)), min(32, round(width * scale)))
    # Bicubic averages over a cell of 1/scale pixels and nearest takes one of them; the image's rim flattens both.
    assert np.abs(pixels[..., 0].astype(int) - cropped)[inside].max() <= 1 + 1 / scale


def test_a_label_map_that_is_padded_at_its_right_and_bottom_stays_aligned():
    image, _ = coordinates(21, 29)  # affinity labels cover whole cells: 24 x 32
    padded, label = coordinates(24, 32)
    assert padded.shape[:2] == (24, 32)
    for seed in range(5):
        pixels, cropped = view(dataclasses.replace(PLAIN, crop=16), image, label, seed)
        assert np.array_equal(cropped, label_at(pixels))


# Randomness


def test_the_same_generator_gives_the_same_view():
    image, label = coordinates(50, 70)
    config = AugmentConfig(crop=48, long_side=(40, 90))
    for seed in range(4):
        first, second = view(config, image, label, seed), view(config, image, label, seed)
        assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not np.array_equal(view(config, image, label, 0)[0], view(config, image, label, 1)[0])


def test_a_label_does_not_change_the_view():
    image, label = coordinates(50, 70)
    config = AugmentConfig(crop=48, long_side=(40, 90))
    alone, nothing = augment(image, config, np.random.default_rng(5), fill=FILL)
    assert nothing is None
    assert np.array_equal(alone, view(config, image, label, 5)[0])


def test_half_of_the_views_are_mirrored():
    image, label = coordinates(32, 32)
    config = dataclasses.replace(PLAIN, flip=True)
    mirrored = [view(config, image, label, seed)[0][0, 0, 0] == 31 for seed in range(400)]
    assert 160 < sum(mirrored) < 240  # four standard deviations


def test_every_placement_of_a_crop_occurs():
    image, label = coordinates(34, 32)
    tops = {int(view(PLAIN, image, label, seed)[0][0, 0, 1]) for seed in range(50)}
    assert tops == {0, 1, 2}


def test_an_image_smaller_than_the_crop_lies_anywhere_in_it():
    image, label = coordinates(30, 32)
    tops = {int(np.argmax((view(PLAIN, image, label, seed)[1] != 255).any(axis=1))) for seed in range(50)}
    assert tops == {0, 1, 2}


def test_the_long_side_is_uniform_over_its_range_with_both_ends():
    image, label = coordinates(20, 40)
    config = dataclasses.replace(PLAIN, crop=64, long_side=(38, 42))
    sizes = [extent(view(config, image, label, seed)[1]) for seed in range(200)]
    assert {width for _, width in sizes} == {38, 39, 40, 41, 42}
    assert {height for height, _ in sizes} == {19, 20, 21}


def test_a_long_side_wins_over_scales():
    image, label = coordinates(20, 40)
    config = dataclasses.replace(PLAIN, crop=128, long_side=(60, 60), scales=(2.0,))
    assert extent(view(config, image, label)[1]) == (30, 60)


# Colours


def test_without_jitter_colours_are_those_of_the_image():
    image, label = coordinates(32, 32)
    assert np.array_equal(view(PLAIN, image, label)[0], image)


def test_jitter_of_no_strength_changes_nothing_but_rounding():
    image, label = coordinates(32, 32)
    config = dataclasses.replace(PLAIN, jitter=(0.0, 0.0, 0.0, 0.0))
    found = view(config, image, label)[0].astype(int)
    assert np.abs(found - image).max() <= 1  # blending with weight 1 may round by a grey level


@pytest.mark.parametrize("channel", range(4), ids=["brightness", "contrast", "saturation", "hue"])
def test_each_of_the_four_strengths_changes_colours_and_no_position(channel):
    image, label = coordinates(32, 32)
    strength = tuple(0.3 if index == channel else 0.0 for index in range(4))
    pixels, cropped = view(dataclasses.replace(PLAIN, jitter=strength), image, label)
    assert np.abs(pixels.astype(int) - image).max() > 3
    assert np.array_equal(cropped, label)


def test_brightness_multiplies_by_a_factor_within_its_range():
    grey = np.full((32, 32, 3), 100, np.uint8)
    config = dataclasses.replace(PLAIN, jitter=(0.3, 0.0, 0.0, 0.0))
    levels = [int(view(config, grey, grey[..., 0], seed)[0][0, 0, 0]) for seed in range(60)]
    assert 70 <= min(levels) < 80 and 120 < max(levels) <= 130


def test_hue_and_saturation_leave_grey_as_it_is():
    grey = np.full((32, 32, 3), 100, np.uint8)
    config = dataclasses.replace(PLAIN, jitter=(0.0, 0.0, 0.5, 0.5))
    assert np.array_equal(view(config, grey, grey[..., 0])[0], grey)


def test_padding_keeps_the_fill_colour_whatever_the_jitter():
    image, label = coordinates(20, 20)
    pixels, cropped = view(dataclasses.replace(PLAIN, jitter=(0.9, 0.9, 0.9, 0.5)), image, label)
    assert np.unique(pixels[cropped == 255], axis=0).tolist() == [list(FILL)]


# Resizing and padding


@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 8, 32]))
def test_padding_adds_to_the_right_and_bottom_up_to_the_multiple(height, width, multiple):
    image, _ = coordinates(height, width)
    padded = pad_to_multiple(image, multiple, FILL)
    assert all(side % multiple == 0 for side in padded.shape[:2])
    assert all(0 <= new - old < multiple for new, old in zip(padded.shape[:2], (height, width), strict=True))
    assert np.array_equal(padded[:height, :width], image)
    for rest in (padded[height:], padded[:, width:]):
        assert np.array_equal(rest, np.broadcast_to(FILL, rest.shape))


def test_a_size_that_fits_already_is_given_back():
    image, _ = coordinates(32, 64)
    assert pad_to_multiple(image, 32, FILL) is image
    assert resize(image, (32, 64)) is image


@given(st.integers(1, 40), st.integers(1, 40))
def test_resizing_gives_the_size_that_was_asked_for_and_keeps_a_colour(height, width):
    plain = np.full((17, 23, 3), FILL, np.uint8)
    found = resize(plain, (height, width))
    assert found.shape == (height, width, 3) and found.dtype == np.uint8
    assert np.array_equal(found, np.broadcast_to(FILL, found.shape))


def test_resizing_commutes_with_mirroring():
    image = np.random.default_rng(0).integers(0, 256, (31, 47, 3), dtype=np.uint8)
    there = resize(np.ascontiguousarray(image[:, ::-1]), (20, 70))
    assert np.abs(there.astype(int) - resize(image, (20, 70))[:, ::-1]).max() <= 1  # one grey level of rounding
