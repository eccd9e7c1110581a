"""Local prototypes: kinds of pixels that are surely the class, less those that only come with it."""

from __future__ import annotations

import numpy as np
import pytest

from sccam.errors import ConfigError
from sccam.stages.prototypes import Kinds, PrototypeConfig, class_prototype, kinds_of, scale_of, unit

# Two classes: class 0 looks like axis 0 or axis 1, class 1 like axis 2, and axis 3 speaks a little for class 1.
PARENT = np.array([[8, 8, 0, 0], [0, 0, 8, 1]], np.float32)


def pixels_along(rng: np.random.Generator, *axes: int) -> np.ndarray:
    rows = [np.eye(4)[axis] + 0.02 * rng.normal(size=(40, 4)) for axis in axes]
    return np.concatenate(rows).astype(np.float32)


def prototype(pixels: np.ndarray, c: int, k: int, *, grown: float = 1.0, **options: float) -> np.ndarray:
    """v_c by a classifier whose logits have grown by a factor."""
    config = PrototypeConfig(k=k)
    return class_prototype(kinds_of(pixels, grown * PARENT, config), c, config, **options)


def test_both_kinds_of_a_class_count_alike_however_many_pixels_each_has(rng):
    pixels = np.concatenate([pixels_along(rng, 0, 1), pixels_along(rng, 0)])
    vector = prototype(pixels, 0, 2)
    assert vector == pytest.approx([0.5, 0.5, 0, 0], abs=0.02)


def test_what_only_comes_with_the_class_is_subtracted(rng):
    vector = prototype(pixels_along(rng, 0, 3), 0, 2)
    assert vector == pytest.approx([1, 0, 0, -1], abs=0.03)
    vector = prototype(pixels_along(rng, 0, 2), 0, 2)  # surely the other class
    assert vector == pytest.approx([1, 0, 0, 0], abs=0.03)


def test_a_class_that_is_nowhere_sure_keeps_its_surest_kind(rng):
    vector = prototype(pixels_along(rng, 2, 3), 0, 2)
    assert vector == pytest.approx([0, 0, 0, 1], abs=0.03)


def test_a_class_that_is_nowhere_sure_keeps_all_kinds_that_are_nearly_its_surest():
    kinds = Kinds(np.eye(3, dtype=np.float32), np.array([[0.2, 1], [0.25, 1], [-3, 1]], np.float32))  # 0.31, 0.32, 0.02
    assert class_prototype(kinds, 0, PrototypeConfig(k=3)) == pytest.approx([0.5, 0.5, 0])


def test_one_pixel_is_enough_and_length_does_not_matter(rng):
    one = np.array([[5, 0, 0, 0]], np.float32)
    assert prototype(one, 0, 12) == pytest.approx([1, 0, 0, 0])
    assert unit(np.zeros((1, 3), np.float32)).tolist() == [[0, 0, 0]]


def test_a_share_of_what_comes_with_the_class_is_subtracted(rng):
    pixels = pixels_along(rng, 0, 3)
    assert prototype(pixels, 0, 2, subtract=0.25) == pytest.approx([1, 0, 0, -0.25], abs=0.03)
    assert prototype(pixels, 0, 2, subtract=0.0) == pytest.approx([1, 0, 0, 0], abs=0.03)


def test_logits_that_have_grown_are_brought_back_by_their_margins(rng):
    pixels = [pixels_along(rng, 0, 3) + 0.1, pixels_along(rng, 2, 3)]  # of both classes; 0.1: what axis 3 has of axis 0
    expected = prototype(pixels[0], 0, 2)
    assert expected == pytest.approx([0.9, 0, 0, -0.9], abs=0.1)
    assert prototype(pixels[0], 0, 2, grown=40) != pytest.approx(expected, abs=0.3)  # axis 3 passes for class 0
    config = PrototypeConfig(k=2, margin=7)
    scales = [
        scale_of([(c, kinds_of(part, grown * PARENT, config)) for c, part in enumerate(pixels)], config)
        for grown in (1, 40)
    ]
    assert scales[1] == pytest.approx(40 * scales[0], rel=1e-5)
    assert prototype(pixels[0], 0, 2, grown=40, scale=scales[1]) == pytest.approx(expected, abs=1e-5)


def test_the_scale_is_the_median_over_classes_of_the_largest_margin():
    def kinds(*own: float) -> Kinds:
        return Kinds(np.eye(len(own), 3, dtype=np.float32), np.array([[x, 0, 0] for x in own], np.float32))

    # against two other logits of 0, z lies z - ln 2 above both together
    found = [(0, kinds(1, 4)), (0, kinds(9, 2)), (0, kinds(6))]
    assert scale_of(found, PrototypeConfig(k=2, margin=2)) == pytest.approx((6 - np.log(2)) / 2)
    assert scale_of(found, PrototypeConfig(k=2)) == 1  # as LPCAM
    nowhere, alone = [(0, kinds(-1, -4))], [(0, Kinds(np.ones((1, 3), np.float32), np.ones((1, 1), np.float32)))]
    assert [scale_of(few, PrototypeConfig(k=2, margin=2)) for few in (nowhere, alone, [])] == [1, 1, 1]


@pytest.mark.parametrize("subtract", [(), (-0.1,), (0.5, 1.5)])
def test_shares_that_are_none_are_refused(subtract):
    with pytest.raises(ConfigError, match="shares"):
        PrototypeConfig(subtract=subtract)


def test_a_context_above_the_foreground_is_refused():
    with pytest.raises(ConfigError, match="above"):
        PrototypeConfig(context=0.95)
