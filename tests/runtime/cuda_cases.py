"""Inputs and comparisons for the GPU's kernels, used on the CPU (test_cuda_*.py) and on a GPU (tests/gpu)."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import torch
from torch.nn.functional import interpolate

from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.cam import normalise
from sccam.structures import AffinityField

# Largest allowed |difference| from the paper forms; values are of the order of 1.
ERROR = MappingProxyType(
    {
        "walk": 1e-5,  # 1e-6 of the expansion, the rest single precision of hundreds of steps, in the paper form too
        "walk, weights in half": 1e-4,  # weights are off by 5e-4 of themselves; averages of dozens of them by less
        "affinity": 1e-6,  # one sum in another order, one exponential
        "merge": 1e-6,  # a few single-precision products
        "crf": 2e-5,  # single-precision sums in another order over ten softmaxes
    }
)


def field_of(grid: tuple[int, int], radius: int = 5, seed: int = 0) -> AffinityField:
    """Affinities of features that vary slowly, with a sharp edge down the middle."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(12, *grid)).cumsum(axis=1).cumsum(axis=2)
    features /= max(1e-3, np.abs(features).max() / 4)
    features[:, :, grid[1] // 2 :] += 1
    return affinity_field(torch.tensor(features, dtype=torch.float32), neighbour_offsets(radius), 8)


def in_half(field: AffinityField) -> AffinityField:
    """The same with values that half precision holds exactly."""
    return AffinityField(field.values.astype(np.float16).astype(np.float32), field.offsets, field.stride)


def walk_scores(grid: tuple[int, int], channels: int, seed: int = 0) -> np.ndarray:
    """f32 [c h w], random."""
    return np.random.default_rng(seed).random((channels, *grid), dtype=np.float32)


def photo(height: int, width: int, seed: int = 0, noise: int = 30) -> np.ndarray:
    """u8 [H W 3]: stripes of colour under noise; no corner is black."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(40, 216, (4, 3))
    stripes = colours[(np.arange(height)[:, None] + 2 * np.arange(width)[None]) // 9 % 4]
    return np.clip(stripes + rng.integers(-noise, noise + 1, stripes.shape), 1, 255).astype(np.uint8)


def crf_scores(height: int, width: int, labels: int, seed: int = 0) -> np.ndarray:
    """f32 [c H W] in [0, 1], undecided: several labels are likely everywhere."""
    scores = np.random.default_rng(seed).random((labels, height, width), dtype=np.float32)
    scores[:, : height // 2] += 0.5 * (np.arange(labels) % 2)[:, None, None]
    return scores / scores.max()


def views_of(classes: int, flip: bool, seed: int = 0) -> list[torch.Tensor]:
    """Maps of three scales; the last class is 0 everywhere."""
    generator = torch.Generator().manual_seed(seed)
    views = [
        torch.rand(1 + flip, classes, *size, generator=generator) for size in ((10, 14), (5, 7), (15, 21), (19, 27))
    ]
    for view in views:
        view[:, -1] = 0
    return views


def merged(views: list[torch.Tensor], grid: tuple[int, int], flip: bool) -> np.ndarray:
    """As stages/cam.py adds, resizes and normalises."""
    total = torch.zeros(views[0].shape[1], *grid)
    for maps in views:
        both = maps[0] + maps[1].flip(-1) if flip else maps[0]
        total += interpolate(both[None], grid, mode="bilinear", align_corners=False)[0]
    return normalise(total.numpy())


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference of two arrays of one shape; NaN is infinitely far."""
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    gap = np.abs(found - expected).max(initial=0.0)
    return float(np.where(np.isnan(gap), np.inf, gap))
