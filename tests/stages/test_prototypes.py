"""Local prototypes: kinds of pixels that are surely the class, less those that only come with it."""

from __future__ import annotations

import numpy as np
import pytest

from sccam.errors import ConfigError
from sccam.stages.prototypes import PrototypeConfig, class_prototype, unit

# Two classes: class 0 looks like axis 0 or axis 1, class 1 like axis 2, and axis 3 speaks a little for class 1.
PARENT = np.array([[8, 8, 0, 0], [0, 0, 8, 1]], np.float32)


def pixels_along(rng: np.random.Generator, *axes: int) -> np.ndarray:
    rows = [np.eye(4)[axis] + 0.02 * rng.normal(size=(40, 4)) for axis in axes]
    return np.concatenate(rows).astype(np.float32)


def test_both_kinds_of_a_class_count_alike_however_many_pixels_each_has(rng):
    pixels = np.concatenate([pixels_along(rng, 0, 1), pixels_along(rng, 0)])
    vector = class_prototype(pixels, PARENT, 0, PrototypeConfig(k=2))
    assert vector == pytest.approx([0.5, 0.5, 0, 0], abs=0.02)


def test_what_only_comes_with_the_class_is_subtracted(rng):
    vector = class_prototype(pixels_along(rng, 0, 3), PARENT, 0, PrototypeConfig(k=2))
    assert vector == pytest.approx([1, 0, 0, -1], abs=0.03)
    vector = class_prototype(pixels_along(rng, 0, 2), PARENT, 0, PrototypeConfig(k=2))  # surely the other class
    assert vector == pytest.approx([1, 0, 0, 0], abs=0.03)


def test_a_class_that_is_nowhere_sure_keeps_its_surest_kind(rng):
    vector = class_prototype(pixels_along(rng, 2, 3), PARENT, 0, PrototypeConfig(k=2))
    assert vector == pytest.approx([0, 0, 0, 1], abs=0.03)


def test_one_pixel_is_enough_and_length_does_not_matter(rng):
    one = np.array([[5, 0, 0, 0]], np.float32)
    assert class_prototype(one, PARENT, 0, PrototypeConfig(k=12)) == pytest.approx([1, 0, 0, 0])
    assert unit(np.zeros((1, 3), np.float32)).tolist() == [[0, 0, 0]]


def test_a_context_above_the_foreground_is_refused():
    with pytest.raises(ConfigError, match="above"):
        PrototypeConfig(context=0.95)
