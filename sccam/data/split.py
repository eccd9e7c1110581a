"""train.txt and val.txt for a folder: tags in the same shares on both sides, what belongs together on one side.

Source: Sechidis, Tsoumakas and Vlahavas, On the Stratification of Multi-label Data, ECML PKDD 2011, Algorithm 1: the
tag with the fewest images left is dealt first, each of its images to the side that still lacks it most.
Differs: images come in groups that are dealt as one; a tag of at least two groups has at least one on either side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sccam.artifacts import sha256, write_text
from sccam.data.folder import read_folder
from sccam.data.text import one_line
from sccam.errors import ConfigError, DataError
from sccam.structures import BoolArray, IntArray

LISTS = ("train.txt", "val.txt")


@dataclass(frozen=True, slots=True)
class Split:
    """What was written: images of each class on either side, and images that are copies of others."""

    classes: tuple[str, ...]
    train: tuple[int, ...]
    val: tuple[int, ...]
    images: tuple[int, int]  # train, val
    copies: int


def split_folder(
    root: Path | str, share: float = 0.2, seed: int = 0, *, group_by: str | None = None, overwrite: bool = False
) -> Split:
    """Writes both lists into an image folder, for `sccam train` to heed.

    Args:
        share: of the images that go to val.txt, in (0, 1).
        seed: same seed, same lists.
        group_by: images that agree in this stay together: "folder", or a regular expression whose first group (or whole
            match) in the image's id names its scene. Files of the same content always stay together.
        overwrite: replace lists that are there.

    Raises:
        DataError: the folder cannot be read, or has lists already.
        ConfigError: an impossible share, or an expression that is none or fits no image.
    """
    if not 0 < share < 1:
        raise ConfigError(f"a share of {share} for val.txt", fix="give a number between 0 and 1, such as 0.2")
    root = Path(root)
    there = [name for name in LISTS if (root / name).exists()]
    if there and not overwrite:
        raise DataError("the folder is split already", where=root / there[0], fix="add --overwrite to split it anew")
    images = read_folder(root, allow_negative=True, lists=False).train
    scenes = _scenes(images.ids, group_by)
    contents = [sha256(path) for path in images.paths]
    in_val = stratified(images.labels.present, joined(scenes, contents), share, seed)
    if in_val.all() or not in_val.any():
        raise DataError("all images belong together, so they cannot be split", where=root, fix="use another --group-by")
    for name, side in zip(LISTS, (~in_val, in_val), strict=True):
        ids = [id for id, there in zip(images.ids, side, strict=True) if there]
        write_text(root / name, "".join(f"{one_line(id)}\n" for id in ids))
    counts = [images.labels.present[side].sum(axis=0) for side in (~in_val, in_val)]
    return Split(
        images.classes, tuple(counts[0].tolist()), tuple(counts[1].tolist()),
        (int((~in_val).sum()), int(in_val.sum())), len(contents) - len(set(contents)),
    )  # fmt: skip


def stratified(present: BoolArray, groups: IntArray, share: float, seed: int) -> BoolArray:
    """Which images are on the smaller side [N].

    Args:
        present: tags [N C].
        groups: images of one number stay together [N].
        share: of the images on that side.
    """
    rng = np.random.default_rng(seed)
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    tags = np.zeros((len(sizes), present.shape[1]), np.int64)  # images of a group that carry a tag
    np.add.at(tags, group, present)
    wanted_of_tag = _shares(tags.sum(axis=0).astype(float), (tags > 0).sum(axis=0), share)  # [2 C]
    wanted = np.array([1 - share, share]) * len(present)
    side, left = np.full(len(sizes), -1), np.ones(len(sizes), bool)
    order = rng.permutation(len(sizes))
    while left.any():
        remaining = ((tags > 0) & left[:, None]).sum(axis=0)
        if remaining.any():
            tag = int(np.argmin(np.where(remaining > 0, remaining, np.inf)))
            chosen = [g for g in order if left[g] and tags[g, tag]]
        else:
            tag, chosen = -1, [g for g in order if left[g]]
        for g in chosen:
            lacking = wanted_of_tag[:, tag] if tag >= 0 else wanted
            best = np.flatnonzero(lacking >= lacking.max() - 1e-9)
            side[g] = best[np.argmax(wanted[best])]
            wanted_of_tag[side[g]] -= tags[g]
            wanted[side[g]] -= sizes[g]
            left[g] = False
    return np.asarray(side[group] == 1)


def joined(*keys: Sequence[str]) -> IntArray:
    """Numbers of groups [N]: images that agree in any of the keys are in one, through others as well."""
    count = len(keys[0])
    parent = list(range(count))

    def root(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    for values in keys:
        first: dict[str, int] = {}
        for n, value in enumerate(values):
            parent[root(n)] = root(first.setdefault(value, n))
    return np.array([root(n) for n in range(count)], np.int32)


def _shares(images: np.ndarray, groups: np.ndarray, share: float) -> np.ndarray:
    """Images of each tag that either side should get [2 C]; a tag of two groups and more gets one image at least."""
    small = np.where(groups >= 2, np.maximum(share * images, 1.0), share * images)
    small = np.where(groups >= 2, np.minimum(small, images - 1.0), small)
    return np.stack([images - small, small])


def _scenes(ids: Sequence[str], group_by: str | None) -> list[str]:
    if group_by is None:
        return [f"image {n}" for n in range(len(ids))]
    if group_by == "folder":
        return [id.rpartition("/")[0] for id in ids]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise ConfigError(f"{group_by!r} is no regular expression: {error}", fix="try folder, or ^[^_]+") from None
    found = [pattern.search(id) for id in ids]
    if not any(found):
        raise ConfigError(f"{group_by!r} fits no image's id", where=ids[0], fix="an id is the path without suffix")
    return [(match.group(match.re.groups and 1) or "") if match else f"image {n}" for n, match in enumerate(found)]
