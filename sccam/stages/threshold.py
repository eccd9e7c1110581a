"""Background threshold: seeds from it, alpha from it, and rules that choose it from the images alone.

Source: the constant threshold is that of the authors' infer_cls.py (SC-CAM and IRN 0.15, PSA 0.2).
Differs: the rules are ours. Later work searches the threshold on true masks, which the weakly supervised setting
does not have; a rule here sees maps and colours, never a mask.

    symbol   name here     shape
    s        threshold     scalar in (0, 1): a pixel is background unless a class scores above s
    alpha    alpha         scalar: (1 - max)^alpha crosses one class's score at s where (1 - s)^alpha = s
    m        highest       [h w], max over the present classes
    I        image         u8 [h w 3], shrunk to the grid of the maps
    J(s)     merit         [T], what a rule maximises over THRESHOLDS
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from sccam.errors import ConfigError, ShapeError
from sccam.structures import ActivationMap, ByteArray, FloatArray

THRESHOLDS = np.arange(2, 99) / 100  # candidates [T]: a finer choice means nothing for maps in [0, 1]
MapAndImage = tuple[FloatArray, ByteArray]  # highest [h w], image [h w 3]
Merit = NDArray[np.float64]  # [T]


@dataclass(frozen=True, slots=True)
class ThresholdConfig:
    """How the background threshold is found."""

    rule: str = field(default="otsu", metadata={"choices": ("fixed", "otsu", "contrast", "otsu_contrast", "edges")})
    """A name in RULES, or "fixed"."""

    fixed: float = field(default=0.15, metadata={"min": 0.0, "max": 1.0})
    """The threshold of rule "fixed", and of a rule that finds nothing to choose by. SC-CAM 0.15."""

    def __post_init__(self) -> None:
        if not 0 < self.fixed < 1:
            raise ConfigError(f"threshold.fixed is {self.fixed}; it must lie strictly between 0 and 1")


def seed_labels(activation: ActivationMap, threshold: float) -> ByteArray:
    """u8 [H W]: argmax over [threshold, class scores]; 0 background, c + 1 class c. Ties go to background.

    Args:
        activation: maps at full size.
        threshold: constant score of the background, in [0, 1].

    Source: SC-CAM infer_cls.py.
    """
    constant = np.full((1, *activation.scores.shape[1:]), threshold, np.float32)
    winner = np.concatenate([constant, activation.scores]).argmax(axis=0)
    return np.concatenate([[0], activation.classes + 1]).astype(np.uint8)[winner]


def alpha_of(threshold: float) -> float:
    """The alpha whose background score crosses a class score at `threshold`: ln s / ln(1 - s).

    Raises:
        ConfigError: the threshold is not strictly between 0 and 1.
    """
    if not 0 < threshold < 1:
        raise ConfigError(f"threshold {threshold} has no alpha; it must lie strictly between 0 and 1")
    return math.log(threshold) / math.log1p(-threshold)


def threshold_of(alpha: float) -> float:
    """The class score s at which (1 - s)^alpha = s; the inverse of `alpha_of`.

    Raises:
        ConfigError: alpha is not positive.
    """
    if not 0 < alpha < math.inf:
        raise ConfigError(f"alpha {alpha} has no threshold; it must be positive and finite")
    return float(brentq(lambda s: (1 - s) ** alpha - s, 0.0, 1.0, xtol=1e-12))


def choose_threshold(maps: Iterable[MapAndImage], config: ThresholdConfig) -> float:
    """The threshold that the rule's merit prefers; the middle one where several are equally good.

    Args:
        maps: pairs of the highest class score [h w] in [0, 1] and the image u8 [h w 3] on the same grid. Read once.
        config: rule, and the threshold to return when no candidate is better than another (no maps, flat maps).

    Raises:
        ConfigError: no rule has that name.
        ShapeError: a map and its image differ in size.
    """
    if config.rule == "fixed":
        return config.fixed
    if config.rule not in RULES:
        raise ConfigError(f"no threshold rule {config.rule!r}", fix=f"choose one of fixed, {', '.join(RULES)}")
    merit = RULES[config.rule](map(_checked, maps))
    slack = 1e-9 * np.abs(merit).max()  # equal up to the rounding of sums
    if np.ptp(merit) <= slack:
        return config.fixed
    best = np.flatnonzero(merit >= merit.max() - slack)
    return float(THRESHOLDS[best[len(best) // 2]])


def colour_contrast(maps: Sequence[MapAndImage], config: ThresholdConfig) -> float:
    """`contrast` at the threshold that the rule chooses: how well these maps tell an image's colours apart, in [0, 1].

    Args:
        maps, config: as in `choose_threshold`.
    """
    threshold = choose_threshold(maps, config)
    return float(contrast(map(_checked, maps))[int(np.abs(THRESHOLDS - threshold).argmin())])


def otsu(maps: Iterable[MapAndImage]) -> Merit:
    """Variance between the scores above and below s, over the pixels of all images together (Otsu 1979)."""
    count = np.zeros(len(THRESHOLDS) + 1)
    total = np.zeros(len(THRESHOLDS) + 1)
    for highest, _ in maps:
        level = _levels(highest)
        count += np.bincount(level, minlength=len(count))
        total += np.bincount(level, highest.ravel(), minlength=len(total))
    return _between_variance(count, total[None])


def contrast(maps: Iterable[MapAndImage]) -> Merit:
    """Share of an image's colour variance that lies between its two regions, averaged over images."""
    merits = []
    for highest, image in maps:
        level = _levels(highest)
        colours = image.reshape(-1, image.shape[-1]).T.astype(np.float64)
        colours -= colours.mean(axis=1, keepdims=True)
        count = np.bincount(level, minlength=len(THRESHOLDS) + 1).astype(np.float64)
        totals = np.array([np.bincount(level, c, minlength=len(THRESHOLDS) + 1) for c in colours], np.float64)
        variance = np.square(colours).sum()
        merits.append(_between_variance(count, totals) / variance if variance > 0 else np.zeros(len(THRESHOLDS)))
    return np.mean(merits, axis=0) if merits else np.zeros(len(THRESHOLDS))


def otsu_contrast(maps: Iterable[MapAndImage]) -> Merit:
    """The product of the two, each over its maximum: scores and colours have to agree on the border.

    Otsu's threshold falls low on blurred maps, where the blur around a thing outnumbers the thing; that of the colours
    lies high on maps of a thing's telling part. The product lies between the two.
    """
    merits = []

    def passing() -> Iterable[MapAndImage]:  # one pass: maps of large images are not kept
        for pair in maps:
            merits.append(contrast([pair]))
            yield pair

    first = otsu(passing())
    second = np.mean(merits, axis=0) if merits else np.zeros(len(THRESHOLDS))
    found: Merit = first * second / max(float(first.max() * second.max()), 1e-300)
    return found


def edges(maps: Iterable[MapAndImage]) -> Merit:
    """Colour step across the contour m = s as a multiple of the image's mean step, averaged over images.

    An image without a contour at s, or without any colour step, says nothing: it counts as 1, what a random contour
    reaches.
    """
    merits = []
    for highest, image in maps:
        level = _levels(highest).reshape(highest.shape)
        colours = image.astype(np.float64)
        steps, lows, highs = [], [], []
        for axis in (0, 1):  # pairs of pixels that share a side
            steps.append(np.linalg.norm(np.diff(colours, axis=axis), axis=-1).ravel())
            first, second = _neighbours(level, axis)
            lows.append(np.minimum(first, second).ravel())
            highs.append(np.maximum(first, second).ravel())
        step, low, high = np.concatenate(steps), np.concatenate(lows), np.concatenate(highs)
        length = _crossing(low, high, np.ones_like(step))
        reached = _crossing(low, high, step)
        chance = length * (step.sum() / max(len(step), 1))
        merits.append(np.divide(reached, chance, out=np.ones(len(THRESHOLDS)), where=chance > 0))
    return np.mean(merits, axis=0) if merits else np.zeros(len(THRESHOLDS))


RULES: dict[str, Callable[[Iterable[MapAndImage]], Merit]] = {
    "otsu": otsu,
    "contrast": contrast,
    "otsu_contrast": otsu_contrast,
    "edges": edges,
}


def _checked(pair: MapAndImage) -> MapAndImage:
    highest, image = pair
    if highest.shape != image.shape[:2]:
        raise ShapeError(f"map {highest.shape} and image {image.shape[:2]} differ; shrink the image to the map's grid")
    return pair


def _levels(highest: FloatArray) -> NDArray[np.intp]:
    """How many candidates lie below each score, [hw]: the pixel is foreground at exactly those."""
    return np.searchsorted(THRESHOLDS, highest.ravel(), side="left")


def _between_variance(count: Merit, totals: Merit) -> Merit:
    """n0 n1 / n |mean0 - mean1|^2 at every candidate, from counts [T+1] and sums [channels T+1] by level."""
    below, above = count[:-1].cumsum()[:, None], count[::-1].cumsum()[::-1][1:, None]
    sum_below, sum_above = totals[:, :-1].cumsum(axis=1).T, totals[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:].T
    both = (below > 0) & (above > 0)
    gap = sum_below / np.maximum(below, 1) - sum_above / np.maximum(above, 1)
    return np.where(both, below * above / np.maximum(below + above, 1) * np.square(gap), 0.0).sum(axis=1)


def _neighbours(level: NDArray[np.intp], axis: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    return (level[:-1], level[1:]) if axis == 0 else (level[:, :-1], level[:, 1:])


def _crossing(low: NDArray[np.intp], high: NDArray[np.intp], weight: Merit) -> Merit:
    """Sum of `weight` over the pairs that a candidate separates, [T]: those with low <= candidate < high."""
    begins = np.bincount(low, weight, minlength=len(THRESHOLDS) + 1)
    ends = np.bincount(high, weight, minlength=len(THRESHOLDS) + 1)
    return (begins - ends).cumsum()[:-1]
