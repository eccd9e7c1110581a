"""The portable rows of the backend table: the paper forms of stages/, image after image, wherever NumPy runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sccam.stages.walk import WalkConfig, random_walk
from sccam.structures import AffinityField, FloatArray, IntArray


def affinity_fields(features: Sequence[FloatArray], offsets: IntArray, stride: int) -> list[AffinityField]:
    """`stages.affinity.affinity_field` of several images; needs torch."""
    import torch

    from sccam.stages.affinity import affinity_field

    # A copy: of one row that was turned round, NumPy calls a negative stride contiguous, and torch takes none.
    return [affinity_field(torch.from_numpy(np.array(one, order="C")), offsets, stride) for one in features]


def random_walks(
    scores: Sequence[FloatArray], affinities: Sequence[AffinityField], config: WalkConfig
) -> list[FloatArray]:
    """`stages.walk.random_walk` of several images."""
    return [random_walk(one, affinity, config) for one, affinity in zip(scores, affinities, strict=True)]
