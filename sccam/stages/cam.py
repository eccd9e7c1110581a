"""Eq. 1: class activation maps, summed over scales and mirror images, for the classes that are present.

    M_c(x) = max(0, w_c . f(x)),   M_c <- sum over views M_c / (max_x M_c + 1e-5)

Source: Chang et al., CVPR 2020, Eq. 1; authors' code infer_cls.py (scales 1, 0.5, 1.5, 2, each with its mirror
image; rectified, resized bilinearly, summed, divided by the spatial maximum + 1e-5; parent head only).
Same numbers, less work: only present classes leave the network, and an image and its mirror image are added before
the resize, which is linear. Differs: the sum is kept on a grid of `grid_stride` pixels, as irn does, instead of
every pixel; and a view's sides are rounded to the network's stride where `round_sizes` is set, so that a cell
always covers whole pixels.

    symbol   name here     shape
    f        score_views   image views -> rectified maps [V P h w]
    M        scores        [P h w]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from sccam.data.transforms import resize
from sccam.errors import ConfigError
from sccam.structures import LONGEST_SIDE, MOST_SCALE, ActivationMap, ByteArray, FloatArray, IntArray

if TYPE_CHECKING:  # torch is loaded where maps are merged: settings and sizes do without
    from torch import Tensor

MAX_EPSILON = 1e-5  # added to the maximum; infer_cls.py

ScoreViews = Callable[[ByteArray, IntArray], "Tensor"]
"""(views u8 [V H W 3], classes [P]) -> rectified maps [V P h w]."""


@dataclass(frozen=True, slots=True)
class CamConfig:
    """Settings of Eq. 1."""

    scales: tuple[float, ...] = (1.0, 0.5, 1.5, 2.0)  # infer_cls.py
    long_side: int = field(default=0, metadata={"min": 0, "max": LONGEST_SIDE})
    """Longer side of the view of scale 1 [px]; 0: the image's own. A map has a cell for some 16 px of the view, which
    blurs everything on small images; a view much larger than those of the training shows the classifier parts only."""

    flip: bool = True  # infer_cls.py
    grid_stride: int = field(default=4, metadata={"min": 1})  # [px per cell] of the kept map; irn
    round_sizes: bool = True  # view sides become multiples of the network's stride; false: as the authors

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > MOST_SCALE:
            raise ConfigError(f"cam.scales {list(self.scales)} must be one or more factors in (0, {MOST_SCALE:g}]")

    def enlargement(self, size: tuple[int, int]) -> float:
        """What the sides (height, width) of an image are multiplied with at scale 1."""
        return self.long_side / max(size) if self.long_side else 1.0


class MergeMaps(Protocol):
    """What `merge_maps` does; a faster one may be given to `activation_map`."""

    def __call__(self, views: Sequence[FloatArray], grid: tuple[int, int], *, flip: bool) -> FloatArray:
        """Views [V P h_s w_s] of each scale -> maps [P h w]."""


def merge_maps(views: Sequence[FloatArray], grid: tuple[int, int], *, flip: bool) -> FloatArray:
    """The sum over views on a grid, each class divided by (its maximum + 1e-5): [P h w].

    Args:
        views: for each scale the rectified maps [V P h_s w_s]: of the image and, with `flip`, of its mirror image.
        grid: (h, w) of the result.
        flip: whether there is a mirror image, so that V is 2 and not 1.
    """
    import torch
    from torch.nn.functional import interpolate

    total = torch.zeros(views[0].shape[1], *grid)
    for maps in map(torch.from_numpy, views):
        merged = maps[0] + maps[1].flip(-1) if flip else maps[0]
        if len(total):  # torch resizes no empty stack
            total += interpolate(merged[None], grid, mode="bilinear", align_corners=False)[0]
    return normalise(total.numpy())


def activation_map(
    image: ByteArray,
    classes: IntArray,
    score_views: ScoreViews,
    config: CamConfig,
    *,
    multiple: int,
    merge: MergeMaps = merge_maps,
) -> ActivationMap:
    """The map of one image for its present classes, on the grid of `config.grid_stride`.

    Args:
        image: u8 [H W 3].
        classes: [P] present classes, ascending.
        score_views: the classifier's rectified parent maps.
        multiple: the network's stride, to which view sides are rounded.
        merge: how views become maps; by default the form above, the paper's.
    """
    if len(classes) == 0:  # an image without tags has no map
        return ActivationMap(np.zeros((0, *_map_grid(image, config)), np.float32), classes)
    return ActivationMap(merged_views(image, classes, score_views, config, multiple=multiple, merge=merge), classes)


def _map_grid(image: ByteArray, config: CamConfig) -> tuple[int, int]:
    """(h, w) of the map of an image u8 [H W 3]."""
    return -(-image.shape[0] // config.grid_stride), -(-image.shape[1] // config.grid_stride)


def merged_views(
    image: ByteArray,
    classes: IntArray,
    score_views: ScoreViews,
    config: CamConfig,
    *,
    multiple: int,
    merge: MergeMaps = merge_maps,
) -> FloatArray:
    """What `activation_map` wraps: [P h w], P being what `score_views` gives, which may be several maps a class."""
    height, width = image.shape[:2]
    scores = []
    for scale in config.scales:
        factor = scale * config.enlargement((height, width))
        view = resize(image, view_size((height, width), factor, multiple if config.round_sizes else 1))
        views = np.stack([view, view[:, ::-1]]) if config.flip else view[None]
        scores.append(score_views(views, classes).float().cpu().numpy())
    return merge(scores, _map_grid(image, config), flip=config.flip)


def view_size(size: tuple[int, int], scale: float, multiple: int) -> tuple[int, int]:
    """(height, width) of a view: each side times `scale`, rounded to a positive multiple."""
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in size)
    return height, width


def normalise(scores: np.ndarray) -> np.ndarray:
    """Each class's scores [P h w] divided by (its spatial maximum + 1e-5); a class that is 0 everywhere stays 0."""
    peak = scores.max(axis=(1, 2), initial=0.0)
    return (scores / (peak[:, None, None] + MAX_EPSILON)).astype(np.float32)
