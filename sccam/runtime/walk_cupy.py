"""Random walk on a GPU: T^t by a Chebyshev expansion, applied as a stencil to a batch. Numbers of stages/walk.py.

The expansion and its coefficients are those of `walk_native.py`; `kernels/walk.cu` is one step for a whole batch, and
all steps are recorded as one CUDA graph for each combination of shapes. The tolerance bounds what the coefficients that
are left out sum to, and so the error of the expansion in the norm that weighs cells by D. Affinities to the power beta
are rounded to half precision and D is summed from the rounded ones: T stays a weighted average to single precision,
of weights that differ by up to 5e-4 of themselves from the paper form's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sccam.errors import NumericError, ShapeError
from sccam.runtime.device import Buffer, Device, before, block_table, check_size, in_batches
from sccam.runtime.device_cupy import open_device
from sccam.runtime.walk_native import TOLERANCE, chebyshev_coefficients
from sccam.stages.walk import WalkConfig, pair_windows, walk_lengths
from sccam.structures import AffinityField, FloatArray, IntArray

THREADS, STEP_THREADS = 256, 128  # of a block; walk.cu
FARTHEST = 15  # rows or columns of a neighbour: four bits in HALF
MANY, FARTHEST_FOR_MANY = 4, 8  # channels a thread of walk_step_many, and up to which reach
ENOUGH_THREADS = 132 * 512  # four blocks on each of an H100's processors; below it, one channel a thread
MOST_VALUES = 1 << 28  # of a batch's largest buffer: offsets are 32-bit integers, and a gigabyte is enough
IMAGE = ("height", "width", "channels", "quads", "pitch", "plane", "state", "weight", "cells", "values", "plain",
         "bottom", "left", "right", "unused0", "unused1")  # fmt: skip
"""Fields of struct Image in walk.cu, in order."""

Pair = tuple[Any, AffinityField]


def random_walks(
    scores: Sequence[Any],
    affinities: Sequence[AffinityField],
    config: WalkConfig,
    *,
    tolerance: float = TOLERANCE,
    device: Device | None = None,
) -> list[FloatArray]:
    """Walked scores of several images, f32 [c h w] each, as `stages.walk.random_walk` gives them.

    Args:
        scores: [c h w] of each image, of NumPy, torch or CuPy; grids and channels may differ.
        affinities: one for each.
        config: exponent, steps, rule, border.
        tolerance: error of the expansion relative to the scores' range; 0 takes every step.
        device: the current GPU by default.

    Raises:
        ShapeError: scores and affinities lie on different grids, their numbers differ, or a neighbour is too far.
        NumericError: a score or affinity is NaN or infinite.
        ResourceError: the GPU has no room for one image.
        BackendUnavailable: CuPy is not installed, or there is no GPU.
    """
    if len(scores) != len(affinities):
        raise ShapeError(f"{len(scores)} scores, {len(affinities)} affinities; one for each image is needed")
    for one, affinity in zip(scores, affinities, strict=True):
        grid = affinity.values.shape[1:]
        if len(one.shape) != 3 or tuple(one.shape[1:]) != grid:
            raise ShapeError(
                f"scores have shape {tuple(one.shape)}, affinities lie on grid {grid}; compute both at the same stride"
            )
    device = device or open_device()
    coefficients = chebyshev_coefficients(walk_lengths(config), tolerance)
    kinds: dict[bytes, list[int]] = {}  # images by their offsets: each kind has its own stencil
    for n, affinity in enumerate(affinities):
        if min(scores[n].shape) > 0:
            kinds.setdefault(np.ascontiguousarray(affinity.offsets, np.int32).tobytes(), []).append(n)
    results = [np.zeros(one.shape, np.float32) for one in scores]
    for members in kinds.values():
        found = in_batches(
            device,
            [(scores[n], affinities[n]) for n in members],
            lambda batch: _walk(device, batch, config, coefficients),
            _fits,
        )
        for n, walked in zip(members, found, strict=True):
            results[n] = walked
    return results


class Stencil:
    """The window that holds all offsets and their opposites, and where each tap finds its affinity."""

    def __init__(self, offsets: IntArray) -> None:
        pairs = {tuple(pair): r for r, pair in enumerate(offsets.tolist())}
        self.reach = int(np.abs(offsets).max(initial=0))
        if self.reach > FARTHEST:
            raise ShapeError(f"a neighbour lies {self.reach} cells away; the GPU walk takes up to {FARTHEST}")
        halves = [
            max((abs(dx) for dy, dx in pairs if abs(dy) == row), default=0) for row in range(self.reach + 1)
        ]  # of rows -dy and dy
        self.padding = -(-self.reach // 4) * 4
        self.defines = (("REACH", str(self.reach)), ("HALF", f"{sum(h << 4 * n for n, h in enumerate(halves)):#x}ull"))
        taps = []
        for dy in range(-self.reach, self.reach + 1):
            for dx in range(-halves[abs(dy)], halves[abs(dy)] + 1):
                if (dy, dx) != (0, 0):
                    first = pairs.get((dy, dx))
                    r = pairs.get((-dy, -dx), -1) if first is None else first
                    taps.append((dy, dx, r, int(first is not None)))
        self.taps = np.array(taps, np.int32).reshape(-1, 4)


class _Plan:
    """Buffers and the recorded steps for one combination of shapes."""

    def __init__(
        self,
        device: Device,
        stencil: Stencil,
        offsets: IntArray,
        shapes: tuple[tuple[int, ...], ...],
        config: WalkConfig,
        coefficients: FloatArray | None,
    ) -> None:
        channels, heights, widths = np.array(shapes).T
        quads = -(-widths // 4)
        pitches = 4 * quads + 2 * stencil.padding
        planes = pitches * (heights + 2 * stencil.reach)
        states, cells = before(channels * planes), before(4 * heights * quads)
        weights, self.values = before(len(stencil.taps) * heights * quads), before(len(offsets) * heights * widths)
        self.plain = before(channels * heights * widths)
        check_size(max(states[-1], 4 * weights[-1], self.values[-1]))
        windows = [_window(height, width, offsets, config.border) for _, height, width in shapes]
        columns = (
            heights, widths, channels, quads, pitches, planes, states[:-1], weights[:-1], cells[:-1], self.values[:-1],
            self.plain[:-1], *np.array(windows).T, 0 * heights, 0 * heights,
        )  # fmt: skip
        self.device, self.program = device, device.program("walk", stencil.defines)
        self.images = device.upload(np.stack(columns, axis=1).astype(np.int32))
        self.taps = device.upload(stencil.taps)
        self.weights = device.empty(max(weights[-1], 1) * 4, np.uint16)
        self.sums = device.empty(cells[-1], np.float32)
        self.states = [device.filled(states[-1], np.float32, 0) for _ in range(2)]
        self.total = device.filled(states[-1], np.float32, 0)
        self.out = device.empty(self.plain[-1], np.float32)
        self.beta, self.coefficients, self.steps = float(config.beta), coefficients, config.steps

        self.cell_blocks, self.cell_count = self._blocks(4 * quads * heights, THREADS)
        self.pack_blocks, self.pack_count = self._blocks(channels * heights * 4 * quads, THREADS)
        self.value_blocks, self.value_count = self._blocks(channels * heights * widths, THREADS)
        many = MANY if stencil.reach <= FARTHEST_FOR_MANY else 1
        threads = heights * quads * -(-channels // many)
        self.kernel = "walk_step_many" if threads.sum() >= ENOUGH_THREADS else "walk_step_one"
        if self.kernel == "walk_step_one":
            threads = heights * quads * channels
        self.step_blocks, self.step_count = self._blocks(threads, STEP_THREADS)
        self.walk = device.recorder()

    def run(self, scores: Sequence[Any], affinities: Sequence[AffinityField]) -> list[FloatArray]:
        device, launch = self.device, self.program.launch
        values, bad = device.empty(self.values[-1], np.float32), device.filled(1, np.int32, 0)
        for start, stop, one in zip(self.values, self.values[1:], affinities, strict=False):
            device.write(values[start:stop], one.values.reshape(-1))
        held = [device.borrow(one, np.float32) for one in scores]  # alive until the download
        pointers = device.upload(np.array([device.pointer(one) for one in held], np.uint64))
        launch(
            "walk_weights", self.cell_count, THREADS, self.cell_blocks, self.images, self.taps, len(self.taps),
            values, self.beta, self.weights, self.sums,
        )  # fmt: skip
        first = 0.0 if self.coefficients is None else float(self.coefficients[0])
        launch(
            "walk_pack", self.pack_count, THREADS, self.pack_blocks, self.images, pointers, first,
            self.states[0], self.total,
        )  # fmt: skip
        self.walk(self._steps)
        result = self.states[self.steps % 2] if self.coefficients is None else self.total
        launch("walk_unpack", self.value_count, THREADS, self.value_blocks, self.images, result, self.out, bad)
        out = device.download(self.out)
        if device.download(bad)[0]:
            raise NumericError("scores or affinities of the walk hold NaN or infinity", fix="check the network")
        return [
            out[start:stop].reshape(one.shape)
            for start, stop, one in zip(self.plain, self.plain[1:], scores, strict=False)
        ]

    def _steps(self) -> None:
        """t plain steps, or T_k = 2 P T_(k-1) - T_(k-2) up to the degree, T_1 = P T_0."""
        for k in range(1, 1 + (self.steps if self.coefficients is None else len(self.coefficients) - 1)):
            recurring = self.coefficients is not None and k > 1
            weight = 0.0 if self.coefficients is None else float(self.coefficients[k])
            self.program.launch(
                self.kernel, self.step_count, STEP_THREADS, self.step_blocks, self.images, self.weights, self.sums,
                self.states[(k - 1) % 2], self.states[k % 2], self.total,
                2.0 if recurring else 1.0, 1.0 if recurring else 0.0, weight,
            )  # fmt: skip

    def _blocks(self, items: Sequence[int], threads: int) -> tuple[Buffer, int]:
        table = block_table(items, threads)
        return self.device.upload(table), len(table)


def _walk(
    device: Device, batch: Sequence[Pair], config: WalkConfig, coefficients: FloatArray | None
) -> list[FloatArray]:
    scores, affinities = [pair[0] for pair in batch], [pair[1] for pair in batch]
    offsets = np.ascontiguousarray(affinities[0].offsets, np.int32)
    stencil = Stencil(offsets)
    shapes = tuple(tuple(one.shape) for one in scores)
    degree = None if coefficients is None else len(coefficients)
    key = ("walk", shapes, offsets.tobytes(), config.border, config.beta, walk_lengths(config), degree)
    with device.active():
        plan = device.plan(key, lambda: _Plan(device, stencil, offsets, shapes, config, coefficients))
        return plan.run(scores, affinities)


def _window(height: int, width: int, offsets: IntArray, border: str) -> tuple[int, int, int]:
    """Rows [0, bottom) and columns [left, right) of first cells; that second cells lie inside, the kernel sees to."""
    if border == "clean":
        return height, 0, width
    (rows, columns), _ = pair_windows(height, width, (0, 0), offsets, border)
    return rows.stop, columns.start, columns.stop


def _fits(batch: Sequence[Pair]) -> bool:
    def values(pair: Pair) -> int:
        (channels, height, width), offsets = pair[0].shape, pair[1].offsets
        reach = int(np.abs(offsets).max(initial=0))
        states = channels * (height + 2 * reach) * (width + 2 * reach + 8)
        return max(states, 2 * len(offsets) * height * (width + 3))

    return sum(map(values, batch)) <= MOST_VALUES
