"""Is one way better than another on these images, or would other images have said the opposite?

A paired bootstrap over images: images are drawn with replacement, both ways are scored on the same draw, and the
differences of many draws give an interval. Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
Seeds are no images: the scores of a draw are averaged over them, so that the interval speaks of the mean run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sccam.errors import ShapeError
from sccam.structures import FloatArray

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Difference:
    """Of the mean IoU of two ways, in [-1, 1]."""

    mean: float  # on all images, the mean over seeds
    low: float
    high: float

    @property
    def word(self) -> str:
        """What a reader may conclude."""
        return "better" if self.low > 0 else "worse" if self.high < 0 else "no difference"


def mean_iou(counts: np.ndarray) -> FloatArray:
    """[...] from counts [... L L+1]: the mean over labels that the truth has; a last column counts ignored pixels."""
    labels = counts.shape[-2]
    hit = np.diagonal(counts[..., :labels], axis1=-2, axis2=-1).astype(np.float64)
    true, predicted = counts.sum(axis=-1), counts[..., :labels].sum(axis=-2)
    present = true > 0
    iou = hit / np.maximum(true + predicted - hit, 1)
    found: FloatArray = (iou * present).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return found


def paired_bootstrap(
    counts: np.ndarray, baseline: np.ndarray, *, draws: int = DRAWS, level: float = LEVEL, seed: int = 0
) -> Difference:
    """The difference of two ways on the same images.

    Args:
        counts, baseline: i64 [seeds images L L+1], pixels by true and predicted label.
        draws: resampled sets of images.
        level: of the interval.

    Raises:
        ShapeError: the two are not of the same seeds, images and labels.
    """
    if counts.shape != baseline.shape:
        raise ShapeError(f"counts of shape {counts.shape} and {baseline.shape} cannot be paired")
    images = counts.shape[1]
    weights = (
        np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
    )

    def of_draws(values: np.ndarray) -> FloatArray:
        flat = values.reshape(*values.shape[:2], -1).astype(np.float64)
        drawn = np.einsum("bi,sil->bsl", weights, flat, optimize=True)
        found: FloatArray = mean_iou(drawn.reshape(draws, len(values), *values.shape[2:])).mean(axis=1)
        return found

    differences = of_draws(counts) - of_draws(baseline)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    whole = mean_iou(counts.sum(axis=1)).mean() - mean_iou(baseline.sum(axis=1)).mean()
    return Difference(float(whole), float(low), float(high))
