"""Refinement by colours nearby: the formula, what it keeps, and what it does at a border of colours."""

from __future__ import annotations

import numpy as np
import pytest

from sccam.errors import ShapeError
from sccam.stages import pamr
from sccam.stages.pamr import DILATIONS, NEIGHBOURS, refine


def test_one_step_is_the_formula(rng):
    image = rng.integers(0, 256, (9, 7, 3)).astype(np.uint8)
    probabilities = rng.random((2, 9, 7)).astype(np.float32)
    found = refine(image, probabilities, 1)
    offsets = [(d * dy, d * dx) for d in DILATIONS for dy, dx in NEIGHBOURS]
    for y in range(9):
        for x in range(7):
            cells = [(min(max(y + dy, 0), 8), min(max(x + dx, 0), 6)) for dy, dx in offsets]
            colours = np.array([image[cell] for cell in cells], np.float64)
            scale = 0.1 * colours.std(axis=0, ddof=1) + 1e-8
            logits = -(np.abs(colours - image[y, x]) / scale).mean(axis=1)
            weights = np.exp(logits - logits.max())
            expected = sum(w * probabilities[:, *cell] for w, cell in zip(weights / weights.sum(), cells, strict=True))
            assert found[:, y, x] == pytest.approx(expected, abs=1e-4)


def test_sums_stay_and_a_constant_image_smooths(rng):
    image = np.full((20, 24, 3), 90, np.uint8)
    probabilities = rng.dirichlet([1, 1, 1], (20, 24)).transpose(2, 0, 1).astype(np.float32)
    found = refine(image, probabilities, 3)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert found.std() < 0.3 * probabilities.std()
    assert np.array_equal(refine(image, probabilities, 0), probabilities)


def test_a_rough_mask_comes_to_the_border_of_the_colours(rng):
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, 16:] = 200
    image = (image + rng.integers(0, 6, image.shape)).astype(np.uint8)
    rough = np.zeros((2, 32, 32), np.float32)
    rough[1, :, 12:] = 1  # four columns too wide
    rough[0] = 1 - rough[1]
    refined = refine(image, rough, 10).argmax(axis=0)
    assert (refined == (np.arange(32) >= 16)).mean() > 0.99


def test_other_sizes_are_refused():
    with pytest.raises(ShapeError, match="differ in size"):
        refine(np.zeros((4, 4, 3), np.uint8), np.zeros((2, 4, 5), np.float32), 1)
    assert pamr.SOFTNESS == 0.1
