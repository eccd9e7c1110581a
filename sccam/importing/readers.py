"""Readers of formats in which people have their tags. Each gives a stream: an image's name there, and its tags.

A region of any kind tags its image with its class; nothing else of it is read. Rows of one image are joined later.
Masks come from sccam.labels.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sccam.artifacts import sha256
from sccam.data.images import IMAGE_SUFFIXES
from sccam.data.text import read_lines
from sccam.data.voc import object_names
from sccam.errors import DataError
from sccam.labels import labelstudio
from sccam.labels.coco import categories_of
from sccam.labels.items import walked
from sccam.labels.json_parts import JsonParts
from sccam.structures import BACKGROUND

TRAIN, VAL, TEST = "train", "val", "test"
LIST_NAMES = {"train": TRAIN, "training": TRAIN, "val": VAL, "valid": VAL, "validation": VAL, "test": TEST}


@dataclass(frozen=True, slots=True)
class Tagged:
    """One image as a source names it, with some or all of its tags."""

    name: str
    tags: tuple[str, ...]
    where: str  # for messages
    list: str | None = None  # train, val or test, where the source tells


@dataclass(frozen=True, slots=True)
class Tags:
    """What a reader gives; `classes` is None where the source has no order of them."""

    classes: tuple[str, ...] | None
    items: Iterator[Tagged | DataError]


def list_of(text: str) -> str | None:
    """The list that a name in a file means; None for one that means none."""
    return LIST_NAMES.get(text.strip().lower())


def read_coco(path: Path) -> Tags:
    """The images of a COCO file, each with the categories of its annotations, crowds included; in one pass.

    Raises:
        DataError: it is no such file, with the line, or its categories are wrong.
    """
    images: list[Any] = []
    categories: list[Any] = []
    of_image: defaultdict[Any, dict[Any, None]] = defaultdict(dict)
    wrong: list[DataError] = []
    seen = set()
    with JsonParts(path) as parts:
        for key in parts.members():
            seen.add(key)
            if key == "annotations":
                for number, (value, _, _) in enumerate(parts.array(), 1):
                    keys = [value.get(name) for name in ("image_id", "category_id")] if isinstance(value, dict) else []
                    if len(keys) == 2 and all(isinstance(one, int | str) for one in keys):
                        of_image[keys[0]][keys[1]] = None
                    else:
                        wrong.append(
                            DataError(
                                "an annotation names no image or no category", where=f"{path}: annotation {number}"
                            )
                        )
            elif key in ("images", "categories"):
                (images if key == "images" else categories).extend(value for value, _, _ in parts.array())
            else:
                parts.value()
        if parts.peek():
            raise DataError("not valid JSON: more behind the end", where=path)
    if missing := {"images", "annotations", "categories"} - seen:
        raise DataError(f"not a COCO file: {', '.join(sorted(missing))} are missing", where=path)
    classes, labels = categories_of(categories, path)

    def items() -> Iterator[Tagged | DataError]:
        yield from wrong
        for number, entry in enumerate(images, 1):
            where = f"{path}: image {number}"
            key = entry.get("id") if isinstance(entry, dict) else None
            file = entry.get("file_name") if isinstance(entry, dict) else None
            if not isinstance(key, int | str) or not isinstance(file, str):
                yield DataError("an image has no id or no file_name", where=where)
                continue
            found = [labels.get(category) for category in of_image.pop(key, {})]
            if None in found:
                yield DataError("one of its annotations has a category that is not in the list", where=where)
                continue
            yield Tagged(file, tuple(classes[label - 1] for label in found if label not in (None, BACKGROUND)), where)
        for key in of_image:
            yield DataError(f"annotations name the image {key!r}, which is not among the images", where=path)

    return Tags(classes, items())


def read_labelstudio(path: Path) -> Tags:
    """The tasks of a JSON export: choices, and the labels of boxes, polygons, brushes and any other region.

    Of a task the first annotation that was not cancelled counts, else its first prediction; a task without either is
    left out.
    """

    def items() -> Iterator[Tagged | DataError]:
        for number, task in enumerate(labelstudio.tasks_of(path), 1):
            where = f"{path}: task {number}"
            try:
                results = labelstudio.results_of(task, where)
                if results is None:
                    continue
                data = task["data"] if isinstance(task.get("data"), dict) else {}
                named = [name for result in results for name in _names_of(result, where)]
                yield Tagged(labelstudio.file_of(data, where), tuple(named), where)
            except DataError as error:
                yield error

    return Tags(None, items())


def _names_of(result: dict[str, Any], where: str) -> list[str]:
    kind, value = result.get("type"), result.get("value")
    if not isinstance(kind, str) or not isinstance(value, dict) or not (kind == "choices" or kind.endswith("labels")):
        return []  # a rating, a text, a relation
    names = value.get(kind, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"the {kind} of a result are no list of names", where=where)
    return names


def read_voc(root: Path) -> Tags:
    """The XML annotations below a folder, as LabelImg and VOC have them; lists from ImageSets where they are.

    An image is named as its annotation is.

    Raises:
        DataError: there is no annotation.
    """
    files = list(walked(root, (".xml",)))
    if not files:
        raise DataError("no XML annotation", where=root, fix="name the folder that holds Annotations/")
    lists = _voc_lists(root / "ImageSets")

    def items() -> Iterator[Tagged | DataError]:
        for file in files:
            try:
                name = file[: -len(".xml")]
                if name.startswith("Annotations/"):
                    name = "JPEGImages/" + name.removeprefix("Annotations/")
                tags = object_names(root / file)
                which = lists.get(name.rpartition("/")[2]) or list_of(file.split("/")[0])
                yield Tagged(name, tags, str(root / file), which)
            except DataError as error:
                yield error

    return Tags(None, items())


def _voc_lists(root: Path) -> dict[str, str]:
    """Name -> list, by train.txt and val.txt of Segmentation or Main."""
    for folder in (root / "Segmentation", root / "Main"):
        found: dict[str, str] = {}
        for name in (VAL, TRAIN):
            if (folder / f"{name}.txt").is_file():
                found |= {line.split()[0]: name for line in read_lines(folder / f"{name}.txt") if line.strip()}
        if found:
            return found
    return {}


def read_folders(root: Path) -> Tags:
    """One folder for each class, directly in `root` or in its train, val (or valid) and test folders.

    Files of the same content in the folders of several classes are one image with several tags.

    Raises:
        DataError: `root` has no folder of images.
    """
    files = list(walked(root, IMAGE_SUFFIXES))
    if not any("/" in file for file in files):
        raise DataError("no folder of images", where=root, fix="make one folder for each class")
    listed = all(list_of(file.split("/")[0]) for file in files)
    content = _contents(root, files)

    def items() -> Iterator[Tagged | DataError]:
        first: dict[tuple[str | None, str], str] = {}
        for file in files:
            parts = file.split("/")
            which = list_of(parts[0]) if listed else None
            folders = parts[1:-1] if listed else parts[:-1]
            if not folders:
                yield DataError("the image lies outside the class folders", where=root / file)
                continue
            name = first.setdefault((which, content[file]), file) if file in content else file
            yield Tagged(name, (folders[0],), str(root / file), which)

    return Tags(None, items())


def _contents(root: Path, files: list[str]) -> dict[str, str]:
    """The checksum of every file that may be a copy; one that cannot be read is none, and fails when it is placed."""
    same_size = defaultdict(list)
    for file in files:
        with suppress(OSError):
            same_size[os.path.getsize(root / file)].append(file)
    found = {}
    for file in (file for group in same_size.values() if len(group) > 1 for file in group):
        with suppress(OSError):
            found[file] = sha256(root / file)
    return found
