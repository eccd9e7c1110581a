"""YOLO-seg: a text file for each image, a line for each region: class from 0, then x y x y ... divided by the size.

    FOLDER/labels/NAME.txt   holes are joined in by doubled edges; empty where nothing is labelled
    FOLDER/data.yaml         names of the classes; images are to lie in FOLDER/images/ under the same names
    FOLDER/images.jsonl      one line an image: its name, file and size. Ours: the format itself has no sizes, and
                             a reader needs them; other folders must have their images beside

255 has no place and is left out: it reads back as background.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from sccam.artifacts import write_text
from sccam.data.folder import read_classes
from sccam.data.images import image_size
from sccam.data.text import read_lines
from sccam.errors import DataError
from sccam.labels.items import Found, Labelled, Layout, Names, find_image, image_file, safe_name, walked
from sccam.labels.paint import checked_size, paint, ring_of
from sccam.labels.polygons import polygons, regions
from sccam.labels.yaml_names import names_in, names_text
from sccam.structures import MAX_CLASSES, ByteArray

LABELS, SIZES, NAMES = "labels", "images.jsonl", "data.yaml"
HOLDS = frozenset({LABELS, SIZES, NAMES})  # what a folder that is written here holds
NAME_LISTS = ("classes.txt", "obj.names")  # of other programs
BOX_NUMBERS = 4  # centre and size: labels for detection
DIGITS = 6  # of a share of the size: exact for images of less than a million pixels a side


def read(path: Path, images: Path | None = None) -> Found:
    """The labels of a YOLO-seg folder.

    Args:
        images: where the images are, for their sizes; FOLDER/images by default.

    Raises:
        DataError: there are no labels, or the names of the classes are written in an unknown way.
    """
    root = path / LABELS if (path / LABELS).is_dir() else path
    sizes = _sizes(path / SIZES) if (path / SIZES).is_file() else {}
    files = (file for file in walked(root, (".txt",)) if root != path or file not in (*NAME_LISTS, "train.txt"))
    first = next(files, None)
    if first is None:
        raise DataError("no labels", where=root, why="no file there ends with .txt")
    folder = images or (path / "images" if (path / "images").is_dir() else None)

    def each() -> Iterator[Labelled | DataError]:
        names = Names()
        yield from (_item(root, file, names, sizes, folder) for file in chain((first,), files))

    return Found(_classes(path), each())


@contextmanager
def writing(path: Path, classes: Sequence[str], layout: Layout) -> Iterator[Callable[[Labelled], int]]:
    """A YOLO-seg folder; yields what takes an item and tells how many lines were written."""
    write_text(path / NAMES, f"path: .\ntrain: images\nval: images\n{names_text(classes)}")
    (path / LABELS).mkdir()
    with (path / SIZES).open("w", encoding="ascii") as sizes:

        def add(item: Labelled) -> int:
            height, width = item.index.shape
            found = regions(item.index, layout.min_area)
            rings = polygons(found, layout.tolerance)
            lines = [
                f"{label - 1} " + " ".join(f"{value:.{DIGITS}f}" for value in (ring / (width, height)).ravel())
                for label, ring in zip(found.label.tolist(), rings, strict=True)
            ]
            write_text(path / LABELS / f"{item.name}.txt", "".join(f"{line}\n" for line in lines))
            sizes.write(json.dumps({"name": item.name, "path": item.file_name, "size": [height, width]}) + "\n")
            return len(lines)

        yield add


def _item(
    root: Path, file: str, names: Names, sizes: dict[str, tuple[str, list[int]]], images: Path | None
) -> Labelled | DataError:
    path = root / file
    name = file[: -len(".txt")]
    try:
        if name in sizes:
            image, (height, width) = sizes[name]
        elif image := find_image(images, name):
            height, width = image_size(images / image) if images else (0, 0)
        else:
            raise DataError(
                "the size of its image is unknown", where=path, why="YOLO's shares are of a size that it does not keep",
                fix="give the folder of images with --images",
            )  # fmt: skip
        index = np.zeros(checked_size(height, width, str(path)), np.uint8)
        for number, line in enumerate(read_lines(path), 1):
            if line.strip():
                _paint_line(index, line, f"{path}:{number}")
    except DataError as error:
        return error
    return Labelled(names.free(name, file), image, index, str(path))


def _paint_line(index: ByteArray, line: str, where: str) -> None:
    first, *rest = line.split()
    if not re.fullmatch("[0-9]{1,3}", first) or int(first) >= MAX_CLASSES:
        raise DataError(f"{first!r} is no class index", where=where, fix="write the index of a class, from 0")
    if len(rest) == BOX_NUMBERS:
        raise DataError("a box, not a polygon", where=where, why="labels for detection, not for segmentation")
    try:
        shares = [float(value) for value in rest]
    except ValueError:
        raise DataError("a coordinate is not a number", where=where) from None
    height, width = index.shape
    paint(index, ring_of(shares, where) * (width, height), int(first) + 1)


def _sizes(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Image file and (height, width) of each name; lines that say anything else are refused."""
    found = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
            name, size = safe_name(record["name"], where), list(record["size"])
            image = image_file(name, record["path"], where)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise DataError(
                "not the name, path and size of an image", where=where, fix=f"remove {path.name}, and give --images"
            ) from error
        if len(size) != 2:
            raise DataError(f"not a (height, width): {size}", where=where)
        found[name] = (image, size)
    return found


def _classes(path: Path) -> tuple[str, ...] | None:
    if (path / NAMES).is_file():
        return names_in(path / NAMES)
    lists = [path / name for name in NAME_LISTS if (path / name).is_file()]
    return read_classes(lists[0]) if lists else None
