"""The records that pass between stages, and the letters that name every shape.

    N images · C classes without background · K clusters per class · S sub-categories in all ·
    P classes present in one image · H W pixels · h w grid cells · R neighbour offsets · D channels

Sizes are (height, width). Class indices count from 0 without background; label indices put background at 0,
so class c is label c + 1; 255 is "ignore". Arrays are NumPy unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sccam.errors import ShapeError

BACKGROUND = 0
IGNORE = 255
LONGEST_SIDE = 65_535  # [px] of an image, as JPEG has it
MOST_SCALE = 8.0  # of a view against its image
MAX_CLASSES = 254  # labels 1..254; 0 is background and 255 is ignore

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int32]
ByteArray = NDArray[np.uint8]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)


@dataclass(frozen=True, slots=True)
class LabelSet:
    """Image-level tags. `present[n, c]`: image n carries class c."""

    present: BoolArray  # [N C]
    ids: tuple[str, ...]  # N
    classes: tuple[str, ...]  # C, in column order

    def __post_init__(self) -> None:
        expected = (len(self.ids), len(self.classes))
        _require(self.present.shape == expected, f"tags have shape {self.present.shape}, expected {expected}")


@dataclass(frozen=True, slots=True)
class TaggedImages:
    """What a trainer may see: images and tags. There is no field for a mask, on purpose."""

    split: str  # "train" | "val" | any list's name
    paths: tuple[Path, ...]  # N
    labels: LabelSet

    def __post_init__(self) -> None:
        _require(len(self.paths) == len(self.labels.ids), "one path per tagged image is needed")

    @property
    def ids(self) -> tuple[str, ...]:
        return self.labels.ids

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels.classes

    def only(self, ids: Iterable[str]) -> TaggedImages:
        """The images with the given ids, in their order here."""
        wanted = set(ids)
        rows = [n for n, id in enumerate(self.ids) if id in wanted]
        labels = replace(self.labels, present=self.labels.present[rows], ids=tuple(self.ids[n] for n in rows))
        return replace(self, paths=tuple(self.paths[n] for n in rows), labels=labels)

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True, slots=True)
class TrueMasks:
    """Ground truth, for measuring only. Images without a mask are absent from `paths`."""

    paths: dict[str, Path]  # image id -> mask file
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dataset:
    """A folder as it was read: tags for training, masks for measuring, kept apart."""

    root: Path
    train: TaggedImages
    val: TaggedImages  # may be empty
    masks: TrueMasks  # may be empty
    warnings: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        return self.train.classes


@dataclass(frozen=True, slots=True)
class SubcategoryLabels:
    """Clusters as multi-label targets (Eq. 2). `parent[s]` is the class of sub-category s; K may differ by class."""

    present: BoolArray  # [N S]
    parent: IntArray  # [S], ascending
    ids: tuple[str, ...]

    def __post_init__(self) -> None:
        expected = (len(self.ids), len(self.parent))
        _require(self.present.shape == expected, f"sub-categories have shape {self.present.shape}, expected {expected}")


@dataclass(frozen=True, slots=True)
class ActivationMap:
    """Class activation maps of one image for its present classes, each divided by its maximum (Eq. 1)."""

    scores: FloatArray  # [P h w] in [0, 1]; h w may be the full H W
    classes: IntArray  # [P], ascending

    def __post_init__(self) -> None:
        _require(
            self.scores.ndim == 3 and self.scores.shape[0] == len(self.classes),
            f"maps have shape {self.scores.shape} for {len(self.classes)} present classes",
        )


@dataclass(frozen=True, slots=True)
class AffinityField:
    """`values[r, y, x]`: affinity of cell (y, x) with (y + dy, x + dx), offset r = (dy, dx); 0 outside the grid."""

    values: FloatArray  # [R h w] in [0, 1]
    offsets: IntArray  # [R 2] (dy, dx), half plane
    stride: int  # [px per cell]

    def __post_init__(self) -> None:
        _require(
            self.values.ndim == 3 and self.values.shape[0] == len(self.offsets),
            f"affinities have shape {self.values.shape} for {len(self.offsets)} offsets",
        )


@dataclass(frozen=True, slots=True)
class PseudoLabel:
    """`index[y, x]`: 0 background, c + 1 class c, 255 ignore."""

    index: ByteArray  # [H W]
    id: str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of an exported network."""

    name: str
    dtype: str  # "uint8" | "float32" | ...
    shape: tuple[int | str, ...]  # a letter where the size is free
