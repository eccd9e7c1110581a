"""Pseudo labels: the likeliest of background and present classes, and 255 where that is not likely enough."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sccam.stages.pseudo_label import PseudoLabelConfig, label_index


def posterior(*pixels: tuple[float, ...]) -> np.ndarray:
    """[P+1 1 W] from one tuple a pixel."""
    return np.array(pixels, np.float32).T[:, None]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_only_background_present_classes_and_ignore_occur(seed, confidence):
    rng = np.random.default_rng(seed)
    scores = rng.dirichlet([1, 1, 1], (6, 7)).transpose(2, 0, 1).astype(np.float32)
    index = label_index(scores, np.array([3, 17], np.int32), confidence)
    assert index.dtype == np.uint8 and index.shape == (6, 7)
    assert set(np.unique(index)) <= {0, 4, 18, 255}
    assert np.array_equal(index == 255, scores.max(axis=0) < confidence)


def test_a_golden_row():
    scores = posterior((0.5, 0.3, 0.2), (0.2, 0.5, 0.3), (0.1, 0.3, 0.6), (0.4, 0.3, 0.3))
    classes = np.array([2, 253], np.int32)
    assert label_index(scores, classes, 0.0).tolist() == [[0, 3, 254, 0]]
    assert label_index(scores, classes, 0.5).tolist() == [[0, 3, 254, 255]]


def test_ties_go_to_background_and_then_to_the_first_class():
    classes = np.array([0, 1], np.int32)
    assert label_index(posterior((0.4, 0.4, 0.2), (0.2, 0.4, 0.4)), classes, 0.0).tolist() == [[0, 1]]


def test_by_default_every_pixel_has_a_label():
    assert PseudoLabelConfig().confidence == 0
    assert not (label_index(posterior((0.34, 0.33, 0.33)), np.array([0, 1]), 0.0) == 255).any()


def test_an_image_without_classes_is_background():
    assert not label_index(np.ones((1, 3, 4), np.float32), np.zeros(0, np.int32), 0.9).any()
