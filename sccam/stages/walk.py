"""Random walk: spread class scores over the image along T = A^beta D^-1, t steps.

Source: Ahn & Kwak, "Learning Pixel-level Semantic Affinity", CVPR 2018, section 3.3; authors' code psa/infer_aff.py.
Differs: they form T^256 by eight dense squarings; here T stays sparse and is applied 256 times, the same product.
They drop pairs whose source cell lies near the left, right or lower border, which leaves cells without neighbours;
here every pair inside the image counts. `WalkConfig.border = "psa"` gives theirs.

    symbol   name here             shape
    t        walk_lengths          256; with the rule "mean" M T^t is averaged over 256, 128, 64, ...
    A        affinity.values       [R h w], half of the pairs; A is symmetric with ones on the diagonal
    D        D                     [hw] column sums of A^beta
    T        transition            [hw hw] sparse, every column sums to one
    M        scores                [c h w], any channels: classes, one background or several
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse

from sccam.errors import NumericError, ShapeError
from sccam.structures import ActivationMap, AffinityField, FloatArray, IntArray

BORDERS = ("clean", "psa")
FEW_CHANNELS = 3  # up to here SciPy is faster one channel at a time than on a narrow matrix (measured, grid 47 x 63)


@dataclass(frozen=True, slots=True)
class WalkConfig:
    """Settings of the random walk; the defaults are the authors' (PSA README, infer_aff.py)."""

    beta: float = field(default=8.0, metadata={"min": 0.0})
    """Exponent of the affinities: larger keeps weak links from carrying scores. PSA 8, IRN 10."""

    steps: int = field(default=256, metadata={"min": 0})
    """Steps t of the walk. PSA squares T eight times (logt 8), so 256."""

    rule: str = field(default="fixed", metadata={"choices": ("fixed", "contrast", "mean")})
    """With "contrast" `steps` is the longest walk: it or a half, quarter, ... of it, chosen by walk_length.py. With
    "mean" the scores are averaged over walks of all these lengths. Source of both: ours."""

    halvings: int = field(default=4, metadata={"min": 0, "max": 16})
    """How often the rules "contrast" and "mean" halve the longest walk: 4 for 256, 128, 64, 32 and 16 steps."""

    border: str = field(default="clean", metadata={"choices": BORDERS})
    """With "clean" every pair inside the image counts; with "psa" the authors' pairs, and pooling over zero padding."""

    normalise: bool = False
    """Divides every walked channel, background included, by its maximum, as Eq. 1 does before the walk: 256 steps of
    averaging leave a small object lower than a large one. PSA compares the channels as they are; IRN divides all of
    them by one maximum."""

    alpha: float = field(default=16.0, metadata={"min": 0.0})
    """Exponent of the background score that walks with the classes. PSA 16."""


def random_walk(scores: FloatArray, affinity: AffinityField, config: WalkConfig) -> FloatArray:
    """Scores after `walk_lengths(config)` steps: every value a weighted average of the values it started among.

    Args:
        scores: [c h w], on the grid of `affinity`; each channel walks alone, so several backgrounds may walk at once.
        affinity: of neighbouring cells.
        config: exponent, steps, rule and treatment of the border.

    Returns:
        f32 [c h w]; within [min, max] of each channel up to rounding.

    Raises:
        ShapeError: scores and affinities lie on different grids.
        NumericError: a score or affinity is NaN or infinite.

    Source: infer_aff.py, M T^t.
    """
    check_walk(scores, affinity)
    lengths = walk_lengths(config)
    gather = transition(affinity, config).T  # row j: what cell j takes from its neighbours
    M = np.ascontiguousarray(scores, dtype=np.float32).reshape(len(scores), -1)  # [c hw]
    if len(M) <= FEW_CHANNELS:
        walked = np.stack([_repeated(gather, channel, lengths) for channel in M])
    else:
        walked = _repeated(gather, np.ascontiguousarray(M.T), lengths).T
    return np.ascontiguousarray(walked).reshape(scores.shape)


def walk_lengths(config: WalkConfig) -> tuple[int, ...]:
    """Numbers of steps, ascending, whose walked scores are averaged: one number, but for the rule "mean"."""
    return halved_lengths(config) if config.rule == "mean" else (config.steps,)


def halved_lengths(config: WalkConfig) -> tuple[int, ...]:
    """`steps` and what the halvings leave of it, ascending: for 256 the powers that psa's squarings pass last."""
    steps = config.steps
    return tuple(sorted({max(1, steps >> n) for n in range(config.halvings + 1)} if steps else {0}))


def check_walk(scores: FloatArray, affinity: AffinityField) -> None:
    """Refuses what no row of the table `walk` can work on; see `random_walk`."""
    grid = affinity.values.shape[1:]
    if scores.ndim != 3 or scores.shape[1:] != grid:
        raise ShapeError(
            f"scores have shape {scores.shape}, affinities lie on grid {grid}; compute both at the same stride"
        )
    for name, values in (("scores", scores), ("affinities", affinity.values)):
        if not np.isfinite(values).all():
            raise NumericError(f"{name} of the walk hold NaN or infinity", fix="check the network before this stage")


def transition(affinity: AffinityField, config: WalkConfig) -> sparse.csr_array:
    """T = A^beta D^-1 as f32 [hw hw]: `T[i, j]` is the share of cell i in the new value of cell j.

    Source: infer_aff.py. Columns are summed in double precision and the diagonal takes what rounding to single
    leaves over, so that a constant map stays constant over hundreds of steps.
    """
    _, height, width = affinity.values.shape
    cells = np.arange(height * width, dtype=np.int32).reshape(height, width)
    sources, targets, powers = [], [], []
    for (dy, dx), values in zip(affinity.offsets.tolist(), affinity.values, strict=True):
        here, there = pair_windows(height, width, (dy, dx), affinity.offsets, config.border)
        sources.append(cells[here].ravel())
        targets.append(cells[there].ravel())
        powers.append(values[here].ravel().astype(np.float64) ** config.beta)
    every = cells.ravel()
    rows = np.concatenate([*sources, *targets, every])
    columns = np.concatenate([*targets, *sources, every])
    weights = np.concatenate([*powers, *powers, np.ones(every.size)])

    D = np.bincount(columns, weights, minlength=every.size)
    shares = (weights / D[columns]).astype(np.float32)
    shares[-every.size :] += 1 - np.bincount(columns, shares)  # the diagonal
    return sparse.coo_array((shares, (rows, columns)), shape=(every.size, every.size)).tocsr()


def divided_by_maximum(scores: FloatArray) -> FloatArray:
    """Every channel of [c h w] divided by its own maximum; a channel that is 0 everywhere stays 0."""
    peak = scores.max(axis=(1, 2), keepdims=True, initial=0.0)
    return np.divide(scores, peak, out=np.zeros_like(scores), where=peak > 0)


def pair_windows(
    height: int, width: int, offset: tuple[int, int], offsets: IntArray, border: str
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Rectangles of the first and the second cell of all pairs (y, x)-(y + dy, x + dx).

    Args:
        height, width: of the grid [cells].
        offset: (dy, dx) with dy >= 0.
        offsets: i32 [R 2], all offsets: the farthest one sets the authors' margin.
        border: "clean": all pairs inside the grid; "psa": first cells keep clear of the last rows and of the outer
            columns on both sides, as many as the farthest offset is long.

    Source: psa/tool/pyutils.py: one rectangle of first cells serves all offsets.
    """
    dy, dx = offset
    if border == "psa":
        reach = int(np.abs(offsets).max(initial=0))
        top, bottom, left, right = 0, max(height - reach, 0), reach, max(width - reach, reach)
    else:
        top, bottom, left, right = 0, max(height - dy, 0), max(-dx, 0), max(width - max(dx, 0), max(-dx, 0))
    here = (slice(top, bottom), slice(left, right))
    there = (slice(top + dy, bottom + dy), slice(left + dx, right + dx))
    return here, there


def background_score(scores: FloatArray, alpha: float) -> FloatArray:
    """(1 - max over classes)^alpha as f32 [H W]: one where no class is seen.

    Args:
        scores: [P H W] in [0, 1]; with P = 0 the background is certain everywhere.
        alpha: exponent; smaller gives more background.

    Source: PSA, infer_cls.py and infer_aff.py.
    """
    highest = scores.max(axis=0, initial=0.0)
    return (np.maximum(1 - highest, 0) ** alpha).astype(np.float32)  # interpolation may round a 1 up to 1 + 1e-7


def with_background(activation: ActivationMap, alpha: float) -> FloatArray:
    """f32 [P+1 H W]: the background score first, then the present classes in their order."""
    return np.concatenate([background_score(activation.scores, alpha)[None], activation.scores])


def pool_to_grid(scores: FloatArray, stride: int, border: str = "clean") -> FloatArray:
    """Mean over stride x stride cells, f32 [c h w] with h = ceil(H / stride).

    Args:
        scores: [c H W].
        stride: [px per cell].
        border: "clean": partial cells average the pixels they have; "psa": they count the missing ones as zero.

    Source: infer_aff.py, zero padding followed by an average pool.
    """
    _, height, width = scores.shape
    tops, lefts = np.arange(0, height, stride), np.arange(0, width, stride)
    sums = np.add.reduceat(np.add.reduceat(scores, tops, axis=1), lefts, axis=2)
    if border == "psa":
        return (sums / stride**2).astype(np.float32)
    rows = np.minimum(height - tops, stride)
    columns = np.minimum(width - lefts, stride)
    return (sums / np.outer(rows, columns)).astype(np.float32)


def upsample(scores: FloatArray, size: tuple[int, int], stride: int) -> FloatArray:
    """Bilinear interpolation by `stride`, cropped to `size`: f32 [c H W].

    Args:
        scores: [c h w].
        size: (H, W) [px], at most (h, w) * stride.
        stride: [px per cell]; pixel centres lie at (y + 1/2) / stride - 1/2 cells (align_corners False).

    Raises:
        ShapeError: `size` is larger than the grid covers.

    Source: infer_aff.py. Bilinear weights are separable, so this is one matrix on either side.
    """
    _, h, w = scores.shape
    height, width = size
    if height > h * stride or width > w * stride:
        raise ShapeError(f"a {h}x{w} grid at stride {stride} covers {h * stride}x{w * stride} px, not {height}x{width}")
    rows, columns = _interpolation(height, h, stride), _interpolation(width, w, stride)
    return rows @ scores.astype(np.float32, copy=False) @ columns.T


def _repeated(gather: sparse.csc_array, state: FloatArray, lengths: Sequence[int]) -> FloatArray:
    total, done = np.zeros_like(state), 0
    for steps in lengths:
        for _ in range(steps - done):
            state = gather @ state
        total, done = total + state, steps
    return total / np.float32(len(lengths))


def _interpolation(pixels: int, cells: int, stride: int) -> FloatArray:
    """f32 [pixels cells]: the one or two cells that each pixel reads, weights summing to one."""
    position = np.clip((np.arange(pixels) + 0.5) / stride - 0.5, 0, cells - 1)
    below = position.astype(int)
    above = np.minimum(below + 1, cells - 1)
    part = position - below
    weights = np.zeros((pixels, cells), np.float32)
    np.add.at(weights, (np.arange(pixels), below), 1 - part)
    np.add.at(weights, (np.arange(pixels), above), part)
    return weights
