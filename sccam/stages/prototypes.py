"""Local prototypes: what the pixels of a class look like, kind by kind, instead of one classifier weight.

    P_c = centres of k-means over the features of class c's pixels, all of length 1
    F_c = those that the classifier takes for c,   B_c = those that it half does: what comes with the class
    v_c = mean of F_c - s mean of B_c,             maps: max(0, v_c . f / |f|)

Source: Chen and Sun, Extracting Class Activation Maps from Non-Discriminative Features as well (LPCAM), CVPR 2023,
§4.1; its numbers are the defaults here. A mean of cosines is the cosine with the mean, so a class needs one vector, and
the exported graph stays a 1x1 convolution, after a division by the length.
Differs: at most `most` pixels a class are clustered, drawn evenly. A class that is surely none of its kinds has all
that are nearly the surest in F_c. Two settings are ours. A classifier that was trained for long has logits so large
that it is sure of every pixel, and no kind is left for B_c: `margin` brings them to a scale. Where classes share what
surrounds them, subtracting it helps; where they share a part of themselves, it takes that part away: with several
shares in `subtract` the images choose s, or the classifier's own maps.

    symbol   name here    shape
    f        pixels       [M D]
    P_c      centres      [k D]
    w        parent       [C D], of the classifier
    s        subtract     scalar in [0, 1]
    v_c      result       [D]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sccam.errors import ConfigError
from sccam.stages.cluster import KMeans, k_means
from sccam.structures import FloatArray

EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class PrototypeConfig:
    """Settings of the local prototypes."""

    k: int = field(default=0, metadata={"min": 0})  # clusters of a class's pixels; 0: no prototypes. LPCAM 12
    least_map: float = field(default=0.1, metadata={"min": 0.0, "max": 1.0})  # of a pixel that is clustered
    foreground: float = field(default=0.9, metadata={"min": 0.0, "max": 1.0})  # probability from which a centre counts
    context: float = field(default=0.05, metadata={"min": 0.0, "max": 1.0})  # from here to that one is subtracted
    margin: float = field(default=0.0, metadata={"min": 0.0})  # that logits are scaled to; 0: as they are, LPCAM
    """Logits are divided so that the surest kind of the median class lies this far above all other classes together."""

    subtract: tuple[float, ...] = (1.0,)  # shares of the context's mean; the images choose one of several. LPCAM 1
    """Of several, the images choose one or the classifier's own maps: whichever have regions that tell an image's
    colours apart best (`colour_contrast` of threshold.py)."""

    most: int = field(default=10_000, metadata={"min": 1})  # pixels of a class

    def __post_init__(self) -> None:
        if self.context > self.foreground:
            raise ConfigError(f"prototypes.context is {self.context}, above prototypes.foreground, {self.foreground}")
        if not self.subtract or min(self.subtract) < 0 or max(self.subtract) > 1:
            raise ConfigError(f"prototypes.subtract {list(self.subtract)} must be one or more shares from 0 to 1")


@dataclass(frozen=True, slots=True)
class Kinds:
    """What the pixels of a class look like."""

    centres: FloatArray  # [k D], of length 1 or less
    logits: FloatArray  # [k C] of the classifier for the mean pixel of each


def unit(vectors: FloatArray) -> FloatArray:
    """Each [.. D] divided by its length."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), EPSILON), np.float32)


def kinds_of(
    pixels: FloatArray, parent: FloatArray, config: PrototypeConfig, *, seed: int = 0, fit: KMeans = k_means
) -> Kinds:
    """At most k kinds of pixels.

    Args:
        pixels: [M D] features of a class's pixels, M at least 1.
        parent: [C D] the classifier's weights.
        seed, fit: of the k-means.
    """
    points = unit(pixels)
    found = fit(points, min(config.k, len(points)), n_init=1, max_iterations=100, seed=seed).assignment
    members = [found == k for k in np.unique(found)]
    centres = np.stack([unit(points[chosen].mean(axis=0)) for chosen in members])
    logits = np.stack([pixels[chosen].mean(axis=0) @ parent.T for chosen in members])
    return Kinds(centres, logits)


def scale_of(kinds: Sequence[tuple[int, Kinds]], config: PrototypeConfig) -> float:
    """What logits are divided by: the largest margin of a class's kinds, median over classes, over `config.margin`.

    Args:
        kinds: of each class c as (c, its kinds).

    Returns:
        1 where `margin` is 0, where there is only one class, or where no class has a kind of its own.
    """
    largest = [_margin(found.logits, c).max() for c, found in kinds if found.logits.shape[1] > 1]
    typical = float(np.median(largest)) if largest else 0.0
    return typical / config.margin if config.margin > 0 and typical > 0 else 1.0


def class_prototype(
    kinds: Kinds, c: int, config: PrototypeConfig, *, scale: float = 1.0, subtract: float = 1.0
) -> FloatArray:
    """v_c [D].

    Args:
        kinds: of class c.
        scale: what logits are divided by.
        subtract: share of the context's mean.
    """
    probability = _softmax(kinds.logits / scale)[:, c]
    own = probability >= config.foreground
    if not own.any():  # a class that the classifier is not sure of anywhere keeps its surest kinds
        own = probability >= config.foreground * probability.max()
    result = kinds.centres[own].mean(axis=0)
    beside = (probability >= config.context) & ~own  # what is surely another class says nothing about this one
    return np.asarray(result - subtract * kinds.centres[beside].mean(axis=0) if beside.any() else result, np.float32)


def _margin(logits: FloatArray, c: int) -> FloatArray:
    """How far class c lies above all others together, [k]: z_c - log sum exp z_other, for logits [k C]."""
    others = np.delete(logits, c, axis=1)
    peak = others.max(axis=1)
    return np.asarray(logits[:, c] - peak - np.log(np.exp(others - peak[:, None]).sum(axis=1)), np.float32)


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
