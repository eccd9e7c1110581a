"""Plain masks: a folder of PNGs with labelmap.txt, as `sccam infer` leaves it.

    FOLDER/predictions.jsonl   one line an image: its name, path, size and mask; without it, every PNG below is read
    FOLDER/masks/NAME.png      palette PNG: 0 background, c + 1 class c, 255 ignore
    FOLDER/labelmap.txt        CVAT's form: `name:r,g,b:parts:actions`; where it has colours of its own, the masks are
                               read by those

Nothing is lost: 255 stays, and regions of one class were never apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import numpy as np

from sccam.data.checks import check_names
from sccam.data.images import opened
from sccam.data.masks import MASK_FORMATS, read_mask, voc_palette, write_labelmap, write_mask
from sccam.data.text import read_lines
from sccam.errors import DataError, MaskError
from sccam.labels.items import Found, Labelled, Layout, Names, find_image, image_file, safe_name, stem, walked
from sccam.structures import BACKGROUND, IGNORE, BoolArray, ByteArray

LOG = "predictions.jsonl"
LABELMAP = "labelmap.txt"
HOLDS = frozenset({"masks", LABELMAP, LOG})  # what a folder that is written here holds
SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
COLOUR_FIELDS = 3


def read(path: Path, images: Path | None = None) -> Found:
    """The masks of a folder.

    Raises:
        DataError: there are none, or labelmap.txt is wrong.
    """
    classes, colours = read_labelmap_near(path)
    if (path / LOG).is_file():
        return Found(classes, _logged(path / LOG, colours))
    root = path / "masks" if (path / "masks").is_dir() else path
    return Found(classes, masks_below(root, colours, images))


@contextmanager
def writing(path: Path, classes: Sequence[str], layout: Layout) -> Iterator[Callable[[Labelled], int]]:
    """A folder that `read` reads; yields what takes an item and tells how many regions were written."""
    write_labelmap(path / LABELMAP, classes)
    log = path / LOG
    log.touch()

    def add(item: Labelled) -> int:
        mask = f"masks/{item.name}.png"
        write_mask(path / mask, item.index)
        size = list(item.index.shape)
        log_line = {"name": item.name, "path": item.file_name, "size": size, "mask": mask}
        with log.open("a", encoding="ascii") as file:
            file.write(json.dumps(log_line) + "\n")
        return 1

    yield add


def masks_below(root: Path, colours: ByteArray | None, images: Path | None) -> Iterator[Labelled | DataError]:
    """Every mask below a folder, or its error.

    Raises:
        DataError: there is none.
    """
    files = walked(root, SUFFIXES)
    first = next(files, None)
    if first is None:
        raise DataError("no masks", where=root, why="no file there ends with " + " ".join(SUFFIXES))

    def each() -> Iterator[Labelled | DataError]:
        names = Names()
        for file in chain((first,), files):
            name = names.free(stem(file), file)
            try:
                yield Labelled(name, find_image(images, name), read_coloured(root / file, colours), str(root / file))
            except DataError as error:
                yield error

    return each()


def read_labelmap_near(path: Path) -> tuple[tuple[str, ...] | None, ByteArray | None]:
    """Class names and colours of labelmap.txt in a folder or the one above it; None and None where there is none."""
    for folder in (path, path.parent):
        if (folder / LABELMAP).is_file():
            return read_labelmap(folder / LABELMAP)
    return None, None


def read_labelmap(path: Path) -> tuple[tuple[str, ...], ByteArray | None]:
    """The classes of a label map, and the colours [C + 1, 3] of background and classes; None if those are VOC's.

    Raises:
        DataError: with the line.
    """
    names: list[str] = []
    places: list[str] = []
    colours: list[list[int]] = []
    background = [0, 0, 0]
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        where = f"{path}:{number}"
        name, *fields = line.rsplit(":", COLOUR_FIELDS)
        if not name or len(fields) != COLOUR_FIELDS:
            raise DataError(f"not a label: {line!r}", where=where, fix="write name:r,g,b:parts:actions")
        if name.lower() == "background":
            background = _colour(fields[0], where)
            continue
        names.append(name)
        places.append(where)
        colours.append(_colour(fields[0], where) if fields[0] else voc_palette()[len(names) % 256].tolist())
    if not names:
        raise DataError("no class names", where=path, fix="write name:r,g,b:parts:actions, one line a class")
    check_names(names, places)
    table = np.array([background, *colours], np.uint8)
    return tuple(names), None if np.array_equal(table, voc_palette(len(table))) else table


def read_coloured(path: Path, colours: ByteArray | None) -> ByteArray:
    """The class indices [H W] of a mask in the colours [C + 1, 3] of its label map, or in VOC's.

    Raises:
        MaskError: the file is broken, or has a colour that is no class.
    """
    if colours is None:
        return read_mask(path)
    with opened(path, formats=MASK_FORMATS, error=MaskError) as image:
        image.load()
        if image.mode in ("L", "1"):  # grey values are indices
            return np.array(image, np.uint8)
        shown = np.array(image.convert("RGB"))
    table = np.concatenate([colours, voc_palette()[IGNORE:]])
    index = np.full(shown.shape[:2], -1, np.int16)
    for label in reversed(range(len(table))):  # of two equal colours, the first label
        meant = IGNORE if label == len(colours) else label
        index[(shown == table[label]).all(axis=-1)] = meant
    unknown = np.argwhere(index < BACKGROUND)
    if len(unknown):
        y, x = unknown[0].tolist()
        raise MaskError(
            f"colour {tuple(shown[y, x].tolist())} at x {x}, y {y} is not in {LABELMAP} ({len(unknown)} such pixels)",
            where=path,
            why="the mask was drawn with another label map, or passed through JPEG",
            fix=f"add the colour to {LABELMAP}, or export the masks again",
        )
    return index.astype(np.uint8)


def _logged(log: Path, colours: ByteArray | None) -> Iterator[Labelled | DataError]:
    try:
        newest = _newest(log)
        with log.open("rb") as file:
            for number, (line, wanted) in enumerate(zip(file, newest, strict=False), 1):
                if not wanted:
                    continue
                try:
                    yield _of_line(log.parent, line, f"{log}:{number}", colours)
                except DataError as error:
                    yield error
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=log) from error


def _newest(log: Path) -> BoolArray:
    """Whether each line is the last of its image: an image that had changed was done again. Keeps 8 bytes a line."""

    def key(line: bytes) -> int:
        try:
            return hash(json.loads(line)["name"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return hash(line)  # a bad line, which is told later

    with log.open("rb") as file:
        keys = np.fromiter(map(key, file), np.int64)
    newest = np.zeros(len(keys), bool)
    newest[len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]] = True
    return newest


def _of_line(path: Path, line: bytes, where: str, colours: ByteArray | None) -> Labelled:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not a line of JSON: {error}", where=where, why="the run that wrote it was killed here", fix="run it again"
        ) from error
    if not isinstance(record, dict):
        raise DataError("not the record of an image", where=where)
    name = safe_name(record.get("name"), where)
    if "mask" not in record:
        raise DataError("the image has no mask", where=where, fix="run sccam infer with --save mask")
    mask = path / safe_name(record["mask"], where)
    index = read_coloured(mask, colours)
    if record.get("size", list(index.shape)) != list(index.shape):
        raise MaskError(
            f"the mask is {index.shape[1]} x {index.shape[0]} px, its line says (height, width) {record['size']}",
            where=mask,
            why=f"it was replaced after {where} was written",
        )
    return Labelled(name, image_file(name, record.get("path"), where), index, str(mask))


def _colour(text: str, where: str) -> list[int]:
    values = text.split(",")
    if len(values) != 3 or not all(re.fullmatch(r"\s*[0-9]{1,3}\s*", value) and int(value) <= 255 for value in values):
        raise DataError(f"not a colour: {text!r}", where=where, fix="write red,green,blue from 0 to 255")
    return [int(value) for value in values]
