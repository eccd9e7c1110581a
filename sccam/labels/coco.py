"""COCO: one JSON file of images, categories and annotations; an annotation is a region of one class.

By default an annotation is a connected component, since COCO's readers take annotations for objects: they count them
and use their boxes. `per_class` writes one for each class of an image. Regions are run lengths, which are exact, or
polygons with holes joined in by doubled edges. 255 has no place and is left out: it reads back as background.

Annotations may overlap; read as class indices, a later one lies over an earlier one. A file of any size is read
twice: once for the places of its images and annotations (some 20 bytes each are kept), then image by image.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from sccam.artifacts import replacing
from sccam.errors import DataError
from sccam.labels.items import NAME_KEY, Found, Labelled, Layout, Names, safe_name, stem
from sccam.labels.json_parts import JsonParts, line_of
from sccam.labels.paint import checked_size, paint, ring_of
from sccam.labels.polygons import polygons, regions
from sccam.labels.rle import column_runs, compressed, lengths_of, mask_of, uncompressed
from sccam.structures import BACKGROUND, MAX_CLASSES, ByteArray

Region = dict[str, Any]  # what an annotation says of its region


@contextmanager
def writing(path: Path, classes: Sequence[str], layout: Layout) -> Iterator[Callable[[Labelled], int]]:
    """A COCO file; yields what takes an item and tells how many annotations were written."""
    categories = [{"id": c, "name": name, "supercategory": ""} for c, name in enumerate(classes, 1)]
    images = annotations = 0
    # Two lists grow at the same time: annotations go to a file beside, and behind the images in the end.
    with replacing(path) as temporary:
        beside = temporary.with_name(temporary.name + ".annotations")
        try:
            with temporary.open("w", encoding="ascii") as file, beside.open("w+", encoding="ascii") as later:
                file.write(f'{{"info":{line_of({"description": "sccam"})},"licenses":[],\n')
                file.write(f'"categories":{line_of(categories)},\n"images":[')

                def add(item: Labelled) -> int:
                    nonlocal images, annotations
                    height, width = item.index.shape
                    found = regions_of(item.index, layout)
                    image = {
                        "id": images + 1, "file_name": layout.image_root + item.file_name, "height": height,
                        "width": width, NAME_KEY: item.name,
                    }  # fmt: skip
                    file.write(",\n" * bool(images) + line_of(image))
                    for number, region in enumerate(found, annotations + 1):
                        line = line_of({"id": number, "image_id": images + 1, "iscrowd": 0, **region})
                        later.write(",\n" * (number > 1) + line)
                    images += 1
                    annotations += len(found)
                    return len(found)

                yield add
                file.write('],\n"annotations":[')
                later.seek(0)
                shutil.copyfileobj(later, file)
                file.write("]}\n")
        finally:
            beside.unlink(missing_ok=True)


def regions_of(index: ByteArray, layout: Layout) -> list[Region]:
    """The annotations of a mask [H W]: category, segmentation, area [px] and box x, y, w, h [px] of each."""
    height, width = index.shape
    found = regions(index, layout.min_area)
    if layout.polygons:
        shapes: list[Any] = [[ring.ravel().tolist()] for ring in polygons(found, layout.tolerance)]
    else:
        shapes = [
            column_runs(found.mask(n), top=rows.start, left=columns.start, height=height)
            for n, (rows, columns) in enumerate(found.boxes)
        ]
    groups = [[n] for n in range(len(found))]
    if layout.per_class:
        groups = [np.flatnonzero(found.label == label).tolist() for label in np.unique(found.label)]
    result = []
    for group in groups:
        boxes = [found.boxes[n] for n in group]
        top, left = (min(box[axis].start for box in boxes) for axis in (0, 1))
        bottom, right = (max(box[axis].stop for box in boxes) for axis in (0, 1))
        if layout.polygons:
            segmentation: Any = [ring for n in group for ring in shapes[n]]
        else:
            starts, ends = (np.sort(np.concatenate([shapes[n][part] for n in group])) for part in (0, 1))
            counts = compressed(lengths_of(starts, ends, index.size))
            segmentation = {"size": [height, width], "counts": counts}
        result.append(
            {
                "category_id": int(found.label[group[0]]),
                "segmentation": segmentation,
                "area": int(found.area[group].sum()),
                "bbox": [left, top, right - left, bottom - top],
            }
        )
    return result


@dataclass(slots=True)
class _Contents:
    """What is kept of a file: its categories, and where its images and annotations are."""

    categories: list[Any] = field(default_factory=list)
    image_first: array[int] = field(default_factory=lambda: array("q"))  # byte of each image
    image_count: array[int] = field(default_factory=lambda: array("i"))  # bytes
    image_number: dict[Any, int] = field(default_factory=dict)  # by the ids that annotations name, in their order
    image: array[int] = field(default_factory=lambda: array("i"))  # of each annotation, its number
    first: array[int] = field(default_factory=lambda: array("q"))  # byte
    count: array[int] = field(default_factory=lambda: array("i"))  # bytes
    wrong: list[DataError] = field(default_factory=list)


def read(path: Path, images: Path | None = None) -> Found:
    """The images of a COCO file.

    Raises:
        DataError: it is not such a file, with the line, or its categories are wrong.
    """
    contents = _contents(path)
    classes, labels = categories_of(contents.categories, path)
    if len(classes) > MAX_CLASSES:
        raise DataError(f"{len(classes)} categories; at most {MAX_CLASSES} fit in a mask", where=path)
    return Found(classes, _items(path, contents, labels))


def _contents(path: Path) -> _Contents:
    contents = _Contents()
    with JsonParts(path) as parts:
        seen = set()
        for key in parts.members():
            seen.add(key)
            if key == "annotations":
                for value, first, count in parts.array():
                    _note(contents, value, first, count, path)
            elif key == "images":
                for _, first, count in parts.array():
                    contents.image_first.append(first)
                    contents.image_count.append(count)
            elif key == "categories":
                contents.categories = [value for value, _, _ in parts.array()]
            else:
                parts.value()
        if parts.peek():
            raise DataError("not valid JSON: more behind the end", where=path)
    missing = [key for key in ("images", "annotations", "categories") if key not in seen]
    if missing:
        raise DataError(
            f"not a COCO file: {', '.join(missing)} are missing", where=path, fix="name its format with --from"
        )
    return contents


def _note(contents: _Contents, value: Any, first: int, count: int, path: Path) -> None:
    image = value.get("image_id") if isinstance(value, dict) else None
    if not isinstance(image, int | str):
        where = _place(path, value, len(contents.image) + len(contents.wrong))
        contents.wrong.append(DataError("an annotation names no image", where=where))
        return
    contents.image.append(contents.image_number.setdefault(image, len(contents.image_number)))
    contents.first.append(first)
    contents.count.append(count)


def categories_of(categories: list[Any], path: Path) -> tuple[tuple[str, ...], dict[Any, int]]:
    """The classes in the order of the file, and the label of each category; one named background is label 0."""
    names: list[str] = []
    labels: dict[Any, int] = {}
    for number, category in enumerate(categories):
        where = f"{path}: category {number + 1}"
        if not isinstance(category, dict) or not isinstance(category.get("name"), str):
            raise DataError("a category has no name", where=where)
        name, key = category["name"], category.get("id")
        if not isinstance(key, int | str) or key in labels:
            raise DataError(f"category {name!r} has no id of its own", where=where)
        if name.lower() == "background":
            labels[key] = BACKGROUND
            continue
        names.append(name)
        labels[key] = len(names)
    if not names:
        raise DataError("no categories", where=path)
    return tuple(names), labels


def _items(path: Path, contents: _Contents, labels: dict[Any, int]) -> Iterator[Labelled | DataError]:
    yield from contents.wrong
    image = np.frombuffer(contents.image, np.int32) if contents.image else np.zeros(0, np.int32)
    order = np.argsort(image, kind="stable")
    bounds = np.searchsorted(image[order], np.arange(len(contents.image_number) + 1))
    names = Names()
    done = set()
    with path.open("rb") as file:
        for number, (first, count) in enumerate(zip(contents.image_first, contents.image_count, strict=True), 1):
            where = f"{path}: image {number}"
            file.seek(first)
            entry = json.loads(file.read(count))
            try:
                key = entry.get("id") if isinstance(entry, dict) else None
                if not isinstance(key, int | str) or key in done:
                    raise DataError("an image has no id of its own", where=where)
                done.add(key)
                own = contents.image_number.get(key)
                places = order[bounds[own] : bounds[own + 1]].tolist() if own is not None else []
                yield _item(file, path, entry, places, contents, labels, names)
            except DataError as error:
                yield error
    for key in (key for key in contents.image_number if key not in done):
        yield DataError(f"annotations name the image {key!r}, which is not among the images", where=path)


def _item(
    file: IO[bytes], path: Path, entry: Any, places: list[int], contents: _Contents, labels: dict[Any, int],
    names: Names,
) -> Labelled:  # fmt: skip
    where = f"{path}: image {entry['id']!r}"
    image = safe_name(str(entry.get("file_name", "")).replace("\\", "/"), where)
    wish = safe_name(entry[NAME_KEY], where) if NAME_KEY in entry else stem(image)
    index = np.zeros(checked_size(entry.get("height"), entry.get("width"), where), np.uint8)
    for place in places:
        file.seek(contents.first[place], os.SEEK_SET)
        annotation = json.loads(file.read(contents.count[place]))
        where_annotation = _place(path, annotation, place)
        label = labels.get(annotation["category_id"]) if _is_key(annotation.get("category_id")) else None
        if label is None:
            raise DataError(
                f"no category {annotation.get('category_id')!r}", where=where_annotation, why="ids are not positions"
            )
        _paint(index, annotation.get("segmentation"), label, where_annotation)
    return Labelled(names.free(wish, image), image, index, where)


def _paint(index: ByteArray, segmentation: Any, label: int, where: str) -> None:
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            paint(index, ring_of(polygon, where), label)
        return
    if not isinstance(segmentation, dict):
        raise DataError("an annotation has no segmentation", where=where, why="labels for detection have only boxes")
    counts = segmentation.get("counts")
    if segmentation.get("size") != list(index.shape):
        raise DataError(
            f"run lengths for (height, width) {segmentation.get('size')} in an image of {list(index.shape)}",
            where=where,
        )
    try:
        lengths = uncompressed(counts) if isinstance(counts, str) else counts
        index[mask_of(lengths if lengths is not None else [], (index.shape[0], index.shape[1]))] = label
    except DataError as error:
        raise DataError(error.what, where=where, why=error.why) from error


def _is_key(value: Any) -> bool:
    return isinstance(value, int | str)


def _place(path: Path, annotation: Any, number: int) -> str:
    key = annotation.get("id") if isinstance(annotation, dict) else None
    return f"{path}: annotation {key!r}" if _is_key(key) else f"{path}: annotation {number + 1} from the top"
