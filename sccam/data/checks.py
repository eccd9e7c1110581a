"""Checks that every layout of a dataset shares: classes, tags, sub-category counts and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sccam.data.images import image_size
from sccam.data.masks import check_mask, mask_size, read_mask
from sccam.data.text import nearest, quoted
from sccam.errors import DataError, MaskError, short
from sccam.structures import Dataset, TaggedImages


def check_names(classes: Sequence[str], places: Sequence[str]) -> None:
    """Refuses class names that are listed twice or that a label map cannot hold; `places` say where each stands."""
    first: dict[str, str] = {}
    for name, place in zip(classes, places, strict=True):
        if name in first:
            raise DataError(f"class {name!r} is listed twice", where=place, why=f"first at {first[name]}")
        first[name] = place
        if name.lower() == "background":
            raise DataError(
                "background is not a class",
                where=place,
                why="masks always have background at index 0, so the first class is index 1",
                fix="remove it from the classes and tags",
            )
        if ":" in name or not name.isprintable():
            raise DataError(
                f"class name {short(name)} has a character that labelmap.txt cannot hold",
                where=place,
                fix="rename the class",
            )


def check_classes(train: TaggedImages, where: object) -> None:
    """Refuses tags from which no class can be learnt: a class without images, or nothing to compare a class with."""
    present = train.labels.present
    if not train.classes:
        raise DataError("no image has a tag", where=where, fix="name the classes that each image shows")
    unseen = [train.classes[c] for c in np.flatnonzero(~np.any(present, axis=0))]
    if unseen:
        raise DataError(
            f"no training image has the class {quoted(unseen)}",
            where=where,
            why="a spelling in the class list that no tag uses, or all its images are in the validation list",
            fix="tag some training images with it, or remove it from classes.txt",
        )
    if len(train.classes) == 1 and present.all():
        raise DataError(
            f"every image has the one class {train.classes[0]!r}; there is nothing to tell it apart from",
            where=where,
            fix="add images of a second class, or images without it (no tags, with allow_negative)",
        )


def check_tag(tag: str, classes: Sequence[str], listed_in: object, where: str) -> None:
    """Refuses a tag that is no class, and offers the nearest name."""
    if tag not in classes:
        raise DataError(
            f"unknown tag {short(tag)}",
            where=where,
            why=nearest(tag, classes) or f"it is not among the {len(classes)} classes in {listed_in}",
            fix=f"correct the tag, or add it to {listed_in}",
        )


def check_cluster_counts(dataset: Dataset, k: int) -> tuple[str, ...]:
    """One warning for each class with fewer training images than `k` sub-categories."""
    counts = dataset.train.labels.present.sum(axis=0)
    return tuple(
        f"class {name!r} has {count} training images, fewer than K = {k}: it gets at most {count} sub-categories"
        for name, count in zip(dataset.classes, counts.tolist(), strict=True)
        if count < k
    )


def everywhere(train: TaggedImages) -> tuple[str, ...]:
    """One warning for each class that every training image has."""
    return tuple(
        f"every training image has the class {train.classes[c]!r}: it cannot be told apart from the background"
        for c in np.flatnonzero(np.all(train.labels.present, axis=0))
    )


def validate_masks(dataset: Dataset) -> tuple[str, ...]:
    """Reads every mask in full and returns warnings about the suspicious ones.

    A single mask of only 0 and 255 can be an object that was left unlabelled; where most are so, a 0/255 export is
    the likely reason, and that is refused.

    Raises:
        MaskError: the first wrong mask, and how many more there are.
    """
    parts = (dataset.train, dataset.val)
    images = {name: path for part in parts for name, path in zip(part.ids, part.paths, strict=True)}
    tags = {name: row for part in parts for name, row in zip(part.ids, part.labels.present, strict=True)}
    wrong: list[MaskError] = []
    binary: list[MaskError] = []
    for image_id, path in dataset.masks.paths.items():
        tagged = bool(tags[image_id].any())
        try:
            _check_mask_size(path, images[image_id])
            index = read_mask(path, class_count=len(dataset.classes))
        except MaskError as error:
            wrong.append(error)
            continue
        try:
            check_mask(index, path, len(dataset.classes), tagged)
        except MaskError as error:
            binary.append(error)
    if len(binary) > len(dataset.masks.paths) / 2:
        wrong += binary
    if wrong:
        more = f" (and {len(wrong) - 1} more masks are wrong)" if len(wrong) > 1 else ""
        raise MaskError(wrong[0].what + more, where=wrong[0].where, why=wrong[0].why, fix=wrong[0].fix)
    return tuple(f"{error.where}: {error.what}" for error in binary)


def check_mask_sizes(masks: Mapping[str, Path], images: Mapping[str, Path]) -> None:
    """Compares the sizes in the headers of masks and images; nothing is decoded."""
    for image_id, path in masks.items():
        _check_mask_size(path, images[image_id])


def _check_mask_size(mask: Path, image: Path) -> None:
    found, expected = mask_size(mask), image_size(image)
    if found != expected:
        turned = found == image_size(image, raw_orientation=True)
        raise MaskError(
            f"the mask is {found[1]} x {found[0]} px, its image {expected[1]} x {expected[0]} px",
            where=mask,
            why="the mask was drawn on the image as stored, without its EXIF orientation"
            if turned
            else "the mask belongs to another image or was resized",
            fix=f"{'turn' if turned else 'redraw'} the mask to fit {image}",
        )
