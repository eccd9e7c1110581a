"""Masks for the tests of labels, and folders of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from sccam.data.masks import write_labelmap, write_mask
from sccam.structures import BoolArray, ByteArray

CLASSES = ("cat", "dog", "traffic light")
LABELS = (0, 1, 2, 3)

_sizes = st.tuples(st.integers(1, 13), st.integers(1, 13))
_noise = arrays(np.bool_, _sizes)
_even = st.builds(np.full, _sizes, st.booleans())
_stripes = st.builds(
    lambda size, axis, first: np.asarray(np.indices(size))[axis] % 2 == first, _sizes, *[st.integers(0, 1)] * 2
)
binary_masks = st.one_of(_noise, _even, _stripes)


def index_masks(labels: Sequence[int] = LABELS) -> st.SearchStrategy[ByteArray]:
    """Class indices u8 [H W] of 1 x 1 px and more: noise, one label all over, stripes."""
    label = st.sampled_from(labels)
    noise = arrays(np.uint8, _sizes, elements=label)
    striped = st.builds(lambda mask, a, b: np.asarray(np.where(mask, a, b), np.uint8), binary_masks, label, label)
    return st.one_of(noise, striped)


def blobs(height: int, width: int, seed: int = 0) -> BoolArray:
    """A mask like those of photographs: a few large regions, some with holes."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    return np.asarray(ndimage.gaussian_filter(noise, min(height, width) / 25) > 0)


def blob_index(height: int, width: int, seed: int = 0) -> ByteArray:
    """The same with three classes that touch each other."""
    first, second, third = (blobs(height, width, seed + n) for n in range(3))
    return np.asarray(first * (1 + second.astype(np.uint8) + third))


def write_infer_folder(out: Path, masks: Mapping[str, ByteArray], suffix: str = ".jpg") -> Path:
    """What `sccam infer` leaves, of the masks by name."""
    out.mkdir(parents=True, exist_ok=True)
    write_labelmap(out / "labelmap.txt", CLASSES)
    with (out / "predictions.jsonl").open("w", encoding="ascii") as log:
        for name, index in masks.items():
            write_mask(out / f"masks/{name}.png", index)
            record = {"name": name, "path": f"photos/new/{name}{suffix}", "size": list(index.shape)}
            log.write(json.dumps({**record, "mask": f"masks/{name}.png"}) + "\n")
    return out
