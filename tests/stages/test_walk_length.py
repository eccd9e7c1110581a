"""Which lengths a walk may have, and what decides between them."""

from __future__ import annotations

import numpy as np
import pytest

from sccam.stages.walk import WalkConfig, halved_lengths
from sccam.stages.walk_length import best_length, region_contrast


@pytest.mark.parametrize(
    ("steps", "halvings", "expected"),
    [
        (256, 4, (16, 32, 64, 128, 256)), (256, 2, (64, 128, 256)), (100, 4, (6, 12, 25, 50, 100)), (7, 0, (7,)),
        (3, 16, (1, 3)), (1, 4, (1,)), (0, 4, (0,)),
    ],
)  # fmt: skip
def test_lengths_are_the_longest_walk_and_its_halves(steps, halvings, expected):
    assert halved_lengths(WalkConfig(steps=steps, halvings=halvings)) == expected


def test_the_contrast_is_the_share_of_variance_between_regions(rng):
    image = rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)
    labels = rng.choice([0, 3, 7], (9, 11))
    colours = image.reshape(-1, 3).astype(float)
    whole = np.square(colours - colours.mean(axis=0)).sum()
    within = sum(
        np.square(colours[labels.ravel() == n] - colours[labels.ravel() == n].mean(axis=0)).sum() for n in (0, 3, 7)
    )
    assert region_contrast(image, labels) == pytest.approx(1 - within / whole)


def test_labels_that_follow_the_colours_have_all_of_the_contrast_and_one_label_has_none():
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, 3:] = 200
    halves = np.repeat([[0, 0, 0, 5, 5, 5]], 4, axis=0)
    assert region_contrast(image, halves) == pytest.approx(1.0)
    assert region_contrast(image, np.zeros_like(halves)) == pytest.approx(0.0)
    assert region_contrast(np.full_like(image, 90), halves) == 0.0


def test_the_largest_mean_wins_and_of_equal_ones_the_longest_walk():
    steps = (2, 4, 8)
    best, means = best_length(steps, [[0.1, 0.5, 0.2], [0.4, 0.2, 0.2]])
    assert best == 4 and means == pytest.approx([0.25, 0.35, 0.2])
    assert best_length(steps, [[0.3, 0.3, 0.1]])[0] == 4
    assert best_length(steps, []) == (8, [0.0, 0.0, 0.0])
