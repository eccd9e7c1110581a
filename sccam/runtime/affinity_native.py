"""Affinities of neighbouring cells on the CPU, compiled: the numbers of stages/affinity.py, without torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sccam.errors import NumericError, ShapeError
from sccam.runtime import native
from sccam.structures import AffinityField, FloatArray, IntArray


def affinity_fields(
    features: Sequence[FloatArray], offsets: IntArray, stride: int, *, threads: int = 0
) -> list[AffinityField]:
    """exp(-mean over D of |f_i - f_j|) for all neighbouring cells of several images; 0 where the second lies outside.

    Args:
        features: f32 [D h w] of each image, padding cut off; grids may differ.
        offsets: i32 [R 2], from `neighbour_offsets`.
        stride: [px per cell] of the features.
        threads: 0 for all cores.

    Raises:
        ShapeError: features are not [D h w].
        NumericError: a feature is NaN or infinite.
        BackendUnavailable: the kernels are not compiled.
    """
    for one in features:
        if one.ndim != 3 or 0 in one.shape:
            raise ShapeError(f"features have shape {one.shape}, expected (D, h, w) of one image")
        if not np.isfinite(one).all():
            raise NumericError("features for the affinity hold NaN or infinity", fix="check the affinity network")
    pairs = np.ascontiguousarray(offsets, np.int32)

    def field(n: int, threads: int) -> AffinityField:
        channels, height, width = features[n].shape
        values = np.empty((len(pairs), height, width), np.float32)
        native.call(
            "sccam_affinity",
            np.ascontiguousarray(features[n], np.float32),
            channels,
            height,
            width,
            pairs,
            len(pairs),
            values,
            threads,
        )
        return AffinityField(values, offsets, stride)

    return native.for_images(field, len(features), threads)
