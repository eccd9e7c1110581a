"""Affinities of neighbouring cells on a GPU, all offsets and images in one launch. Numbers of stages/affinity.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sccam.errors import NumericError, ShapeError
from sccam.runtime.device import Device, before, block_table, check_size, in_batches
from sccam.runtime.device_cupy import open_device
from sccam.structures import AffinityField, FloatArray, IntArray

THREADS = 256  # of a block
OFFSETS = 4  # a thread; affinity.cu
MOST_VALUES = 1 << 28  # features or affinities of a batch: a gigabyte


def affinity_fields(
    features: Sequence[Any], offsets: IntArray, stride: int, *, device: Device | None = None
) -> list[AffinityField]:
    """exp(-mean over D of |f_i - f_j|) for all neighbouring cells of several images; 0 where the second lies outside.

    Args:
        features: [D h w] of each image, of NumPy, torch or CuPy, padding cut off; grids may differ.
        offsets: i32 [R 2], from `neighbour_offsets`.
        stride: [px per cell] of the features.
        device: the current GPU by default.

    Raises:
        ShapeError: features are not [D h w].
        NumericError: a feature is NaN or infinite.
        ResourceError: the GPU has no room for one image.
        BackendUnavailable: CuPy is not installed, or there is no GPU.
    """
    for one in features:
        if len(one.shape) != 3 or 0 in one.shape:
            raise ShapeError(f"features have shape {tuple(one.shape)}, expected (D, h, w) of one image")
    device = device or open_device()
    pairs = np.ascontiguousarray(offsets, np.int32)

    def fits(batch: Sequence[Any]) -> bool:
        return sum(max(one.shape[0], len(pairs)) * one.shape[1] * one.shape[2] for one in batch) <= MOST_VALUES

    values = in_batches(device, features, lambda batch: _affinities(device, batch, pairs), fits)
    return [AffinityField(one, offsets, stride) for one in values]


def _affinities(device: Device, batch: Sequence[Any], offsets: IntArray) -> list[FloatArray]:
    shapes = [tuple(one.shape) for one in batch]
    starts = before([len(offsets) * height * width for _, height, width in shapes])
    check_size(starts[-1] + OFFSETS * max(height * width for _, height, width in shapes))
    groups = -(-len(offsets) // OFFSETS)
    table = block_table([groups * height * width for _, height, width in shapes], THREADS)
    with device.active():
        held = [device.borrow(one, np.float32) for one in batch]  # alive until the download
        values = device.empty(starts[-1], np.float32)
        bad = device.filled(1, np.int32, 0)
        device.program("affinity").launch(
            "affinity", len(table), THREADS, device.upload(table),
            device.upload(np.array([(*shape, start) for shape, start in zip(shapes, starts, strict=False)], np.int32)),
            device.upload(np.array([device.pointer(one) for one in held], np.uint64)),
            device.upload(offsets), len(offsets), values, bad,
        )  # fmt: skip
        found = device.download(values)
        if device.download(bad)[0]:
            raise NumericError("features for the affinity hold NaN or infinity", fix="check the affinity network")
    return [
        found[start:stop].reshape(len(offsets), height, width)
        for start, stop, (_, height, width) in zip(starts, starts[1:], shapes, strict=False)
    ]
