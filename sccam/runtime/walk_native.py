"""Random walk on the CPU, compiled: T^t by a Chebyshev expansion, applied as a stencil. Numbers of stages/walk.py.

    x^t = sum over k of c_k T_k(x) on [-1, 1],    c_k = Pr(|Z_t| = k) >= 0

Z_t is the sum of t fair steps of +-1, since x T_k = (T_(k-1) + T_(k+1)) / 2. P = D^-1 A has a real spectrum in
[-1, 1], because A is symmetric. Cutting the sum at d leaves out exactly Pr(|Z_t| > d); the rest is divided by its sum,
so that a constant map stays constant. d = 78 for t = 256 and 1e-6: a third of the steps. The mean of walks of several
lengths has the mean of their coefficients, and costs what the longest of them does.

Source: Sachdeva & Vishnoi, "Faster Algorithms via Approximation Theory", 2014, section 3, for the bound; here the
distribution itself is summed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np

from sccam.errors import ShapeError
from sccam.runtime import native
from sccam.stages.walk import WalkConfig, check_walk, pair_windows, walk_lengths
from sccam.structures import AffinityField, FloatArray, IntArray

TOLERANCE = 1e-6  # of the expansion; single precision costs as much again


def random_walks(
    scores: Sequence[FloatArray],
    affinities: Sequence[AffinityField],
    config: WalkConfig,
    *,
    tolerance: float = TOLERANCE,
    threads: int = 0,
) -> list[FloatArray]:
    """Walked scores of several images, f32 [c h w] each, as `stages.walk.random_walk` gives them.

    Args:
        scores: [c h w] of each image; grids and channels may differ.
        affinities: one for each.
        config: exponent, steps, rule, border.
        tolerance: error of the expansion relative to the scores' range; 0 takes every step.
        threads: 0 for all cores.

    Raises:
        ShapeError: scores and affinities lie on different grids, or their numbers differ.
        NumericError: a score or affinity is NaN or infinite.
        BackendUnavailable: the kernels are not compiled.
    """
    if len(scores) != len(affinities):
        raise ShapeError(f"{len(scores)} scores, {len(affinities)} affinities; one for each image is needed")
    for one, affinity in zip(scores, affinities, strict=True):
        check_walk(one, affinity)
    coefficients = chebyshev_coefficients(walk_lengths(config), tolerance)

    def walk(n: int, threads: int) -> FloatArray:
        return _walk(scores[n], affinities[n], config, coefficients, threads)

    return native.for_images(walk, len(scores), threads)


@functools.lru_cache(maxsize=64)
def chebyshev_coefficients(lengths: tuple[int, ...], tolerance: float) -> FloatArray | None:
    """c_0 .. c_d as f64 [d + 1] of the mean of x^t over `lengths`, or None for plain steps: one t, d no smaller.

    Args:
        lengths: t, ascending.
        tolerance: what the coefficients that are left out may sum to.
    """
    expansions = [_expansion(steps, tolerance) for steps in lengths]
    if len(lengths) == 1 and len(expansions[0]) > lengths[0]:
        return None
    longest = max(map(len, expansions))
    mean = np.mean([np.pad(expansion, (0, longest - len(expansion))) for expansion in expansions], axis=0)
    mean.setflags(write=False)
    return mean


def _expansion(steps: int, tolerance: float) -> FloatArray:
    """c_0 .. c_d as f64 [d + 1] of x^steps."""
    chances = np.zeros(steps + 1)
    for up in range(steps + 1):  # integers of any length, so nothing underflows before the division
        chances[abs(2 * up - steps)] += math.comb(steps, up) / (1 << steps)
    beyond = np.cumsum(chances[::-1])[::-1] - chances  # Pr(|Z| > d)
    kept = chances[: int(np.argmax(beyond <= tolerance)) + 1] if tolerance > 0 else chances
    return np.asarray(kept / kept.sum())


def _walk(
    scores: FloatArray, affinity: AffinityField, config: WalkConfig, coefficients: FloatArray | None, threads: int
) -> FloatArray:
    channels, height, width = scores.shape
    out = np.empty(scores.shape, np.float32)
    if out.size:
        native.call(
            "sccam_walk",
            np.ascontiguousarray(affinity.values, np.float32),
            np.ascontiguousarray(affinity.offsets, np.int32),
            windows(height, width, affinity.offsets, config.border),
            len(affinity.offsets),
            height,
            width,
            np.ascontiguousarray(scores, np.float32),
            out,
            channels,
            config.beta,
            coefficients,
            config.steps if coefficients is None else len(coefficients) - 1,
            threads,
        )
    return out


def windows(height: int, width: int, offsets: IntArray, border: str) -> IntArray:
    """i32 [R 4]: rows and columns (from, to, from, to) of the first cells of all pairs, from `pair_windows`."""
    return np.array(
        [
            (rows.start, max(rows.start, rows.stop), columns.start, max(columns.start, columns.stop))
            for dy, dx in offsets.tolist()
            for rows, columns in [pair_windows(height, width, (dy, dx), offsets, border)[0]]
        ],
        np.int32,
    ).reshape(-1, 4)
