"""Local prototypes: what the pixels of a class look like, kind by kind, instead of one classifier weight.

    P_c = centres of k-means over the features of class c's pixels, all of length 1
    F_c = those that the classifier takes for c,   B_c = those that it half does: what comes with the class
    v_c = mean of F_c - mean of B_c,               maps: max(0, v_c . f / |f|)

Source: Chen and Sun, Extracting Class Activation Maps from Non-Discriminative Features as well (LPCAM), CVPR 2023,
§4.1; its numbers are the defaults here. A mean of cosines is the cosine with the mean, so a class needs one vector, and
the exported graph stays a 1x1 convolution, after a division by the length.
Differs: at most `most` pixels a class are clustered, drawn evenly.

    symbol   name here    shape
    f        pixels       [M D]
    P_c      centres      [k D]
    w        parent       [C D], of the classifier
    v_c      result       [D]
"""

from __future__ import annotations

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
    most: int = field(default=10_000, metadata={"min": 1})  # pixels of a class

    def __post_init__(self) -> None:
        if self.context > self.foreground:
            raise ConfigError(f"prototypes.context is {self.context}, above prototypes.foreground, {self.foreground}")


def unit(vectors: FloatArray) -> FloatArray:
    """Each [.. D] divided by its length."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), EPSILON), np.float32)


def class_prototype(
    pixels: FloatArray, parent: FloatArray, c: int, config: PrototypeConfig, *, seed: int = 0, fit: KMeans = k_means
) -> FloatArray:
    """v_c [D].

    Args:
        pixels: [M D] features of class c's pixels, M at least 1.
        parent: [C D] the classifier's weights.
        c: the class.
        seed, fit: of the k-means.
    """
    points = unit(pixels)
    found = fit(points, min(config.k, len(points)), n_init=1, max_iterations=100, seed=seed).assignment
    members = [found == k for k in np.unique(found)]
    probability = np.array([_softmax(pixels[chosen].mean(axis=0) @ parent.T)[c] for chosen in members])
    centres = np.stack([unit(points[chosen].mean(axis=0)) for chosen in members])
    own = probability >= config.foreground
    if not own.any():  # a class that the classifier is not sure of anywhere keeps its surest kind
        own = probability == probability.max()
    result = centres[own].mean(axis=0)
    beside = (probability >= config.context) & ~own  # what is surely another class says nothing about this one
    return np.asarray(result - centres[beside].mean(axis=0) if beside.any() else result, np.float32)


def _softmax(logits: FloatArray) -> FloatArray:
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)
