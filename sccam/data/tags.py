"""Image-level tags as written: tags.csv, tags.json, or one folder for each class. Every row keeps its file and line."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from sccam.data.checks import check_tag
from sccam.data.text import as_text, nearest, one_line, read_text
from sccam.errors import DataError, short
from sccam.structures import LabelSet, TaggedImages

_DECODER = json.JSONDecoder(parse_int=float)  # int() refuses numbers of thousands of digits
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class TaggedRow:
    """One image with its tags, as written."""

    id: str
    tags: tuple[str, ...]
    where: str  # file:line
    by_spaces: bool = False  # the tags were told apart by spaces alone, so they may be one name with spaces


class FindsImage(Protocol):
    """What tells the id of the image that a name means."""

    def find(self, name: str, where: str) -> str:
        """The id; `where` is the line that names it."""


class AsWritten:
    """Names of images that nobody has listed: the id is the name, with "/" between folders."""

    def find(self, name: str, where: str) -> str:
        """The id."""
        return name.strip().replace("\\", "/").removeprefix("./")


class Names:
    """Which image a name in a tag file or list means: its id, its path below the image folder or below the root."""

    def __init__(self, images: Mapping[str, Path], image_root: Path):
        below = {image_id: as_text(path.relative_to(image_root).as_posix()) for image_id, path in images.items()}
        self.ids: dict[str, str] = {image_id: image_id for image_id in images}
        for image_id, name in below.items():
            self.ids.setdefault(name, image_id)
        for image_id, name in below.items():
            self.ids.setdefault(f"{image_root.name}/{name}", image_id)
        for name in [name for name in self.ids if one_line(name) != name]:
            self.ids.setdefault(one_line(name), self.ids[name])

    def find(self, name: str, where: str) -> str:
        """The id of the image that `name` means; DataError with the place if there is none."""
        for form in (name, name.strip(), name.strip().replace("\\", "/").removeprefix("./")):
            if form in self.ids:
                return self.ids[form]
        raise DataError(
            f"no image {short(name)}",
            where=where,
            why=nearest(name, self.ids) or "the file is missing, or the name is misspelt",
            fix="add the file below the image folder, or remove the line",
        )


def read_rows(
    root: Path, image_root: Path, images: Mapping[str, Path], tags_file: Path | str | None
) -> tuple[list[TaggedRow], Path]:
    """The rows of whichever tag source there is, and that source."""
    known = [root / name for name in ("tags.csv", "tags.json")]
    files = [Path(tags_file)] if tags_file else [path for path in known if path.is_file()]
    if len(files) > 1:
        raise DataError(
            "both tags.csv and tags.json are there", where=root, fix="remove one, or name the one to use as tags_file"
        )
    names = Names(images, image_root)
    if not files:
        return _rows_of_class_folders(image_root, images), image_root
    path = files[0]
    return read_tag_file(path, names), path


def read_tag_file(path: Path, names: FindsImage) -> list[TaggedRow]:
    """The rows of a CSV or JSON file, each image once.

    Raises:
        DataError: the first thing that is wrong, with its line.
    """
    rows = _rows_of_json(path, names) if path.suffix.lower() == ".json" else _rows_of_csv(path, names)
    if not rows:
        raise DataError("no image is listed", where=path, fix="add one line an image: its name and its tags")
    first: dict[str, str] = {}
    for row in rows:
        if row.id in first:
            raise DataError(
                f"image {row.id!r} is listed twice",
                where=row.where,
                why=f"first at {first[row.id]}",
                fix="put all tags of an image in one line",
            )
        first[row.id] = row.where
    return rows


def _rows_of_csv(path: Path, names: FindsImage) -> list[TaggedRow]:
    text = read_text(path)
    first_line = re.split("[\r\n]", text, maxsplit=1)[0].strip()  # a lone \r ended lines on old Macs
    delimiter = next((mark for mark in ",;\t" if mark in first_line), ",")  # spreadsheets of some countries write ;
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[TaggedRow] = []
    line, header = 1, True
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if header:
                _check_header(fields, first_line, where)
                header = False
            elif any(field.strip() for field in fields):
                if len(fields) != 2:
                    raise DataError(
                        f"{len(fields)} fields, expected 2: {short(delimiter.join(fields))}",
                        where=where,
                        why="no comma behind the image" if len(fields) < 2 else "tags are separated by bare commas",
                        fix="write IMAGE,TAG TAG TAG with spaces between the tags, or quote the tags",
                    )
                tags, by_spaces = _split_tags(fields[1])
                rows.append(TaggedRow(names.find(fields[0], where), tags, where, by_spaces))
    except csv.Error as error:
        raise DataError(
            f"not valid CSV: {error}", where=f"{path}:{line}", why="a quotation mark that is never closed"
        ) from error
    if header:
        _check_header([], first_line, f"{path}:1")
    return rows


def _check_header(fields: Sequence[str], first_line: str, where: str) -> None:
    if [field.strip().lower() for field in fields] != ["image", "tags"]:
        raise DataError(
            f"the header is missing; the first line is {first_line[:80]!r}",
            where=where,
            why="the first line is already data, or the columns have other names",
            fix="begin the file with the line: image,tags",
        )


def _split_tags(cell: str) -> tuple[tuple[str, ...], bool]:
    """The tags of a cell: one with ; | or commas may hold names with spaces; otherwise spaces separate, and it is
    told that they did."""
    marks = [mark for mark in ";|," if mark in cell]
    for mark in marks:
        cell = cell.replace(mark, ";")
    parts = cell.split(";") if marks else cell.split()
    return tuple(part.strip() for part in parts if part.strip()), not marks


def _rows_of_json(path: Path, names: FindsImage) -> list[TaggedRow]:
    text = read_text(path)
    rows: list[TaggedRow] = []
    try:
        if not text.lstrip().startswith("{"):
            _DECODER.decode(text)
            raise DataError("not a JSON object", where=path, fix='write {"IMAGE": ["TAG", ...], ...}')
        for name, tags, line in _members(text):
            where = f"{path}:{line}"
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise DataError(
                    f"the tags of {short(name)} are not a list of names",
                    where=where,
                    fix='write "IMAGE": ["TAG", ...]',
                )
            rows.append(TaggedRow(names.find(name, where), tuple(tag.strip() for tag in tags if tag.strip()), where))
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    except RecursionError:
        raise DataError("nested too deeply", where=path, fix='write {"IMAGE": ["TAG", ...], ...}') from None
    return rows


def _members(text: str) -> Iterator[tuple[str, Any, int]]:
    """Name, value and line of each member of a JSON object; of equal names, a dict would keep the last in silence."""

    def space(at: int) -> int:
        found = _SPACE.match(text, at)
        return found.end() if found else at

    def behind(at: int, mark: str) -> int:
        if not text.startswith(mark, space(at)):
            raise json.JSONDecodeError(f"expected {mark}", text, space(at))
        return space(space(at) + 1)

    at, line, counted = behind(0, "{"), 1, 0
    while not text.startswith("}", at):
        line, counted = line + text.count("\n", counted, at), at
        if not text.startswith('"', at):
            raise json.JSONDecodeError("expected a name in double quotation marks", text, at)
        name, at = _DECODER.raw_decode(text, at)
        value, at = _DECODER.raw_decode(text, behind(at, ":"))
        yield name, value, line
        at = space(at)
        if not text.startswith("}", at):
            at = behind(at, ",")
            if text.startswith("}", at):
                raise json.JSONDecodeError("a comma before the end", text, at)
    if behind(at, "}") < len(text):
        raise json.JSONDecodeError("text behind the end", text, behind(at, "}"))


def _rows_of_class_folders(image_root: Path, images: Mapping[str, Path]) -> list[TaggedRow]:
    inside = {image_id: path.relative_to(image_root).parts for image_id, path in images.items()}
    loose = [images[image_id] for image_id, parts in inside.items() if len(parts) == 1]
    if len(loose) == len(images):
        raise DataError(
            "no tags: neither tags.csv nor tags.json, and no folder per class",
            where=image_root,
            fix="write tags.csv with the header image,tags and one line an image, such as photo.jpg,cat dog",
        )
    if loose:
        raise DataError(
            f"{len(loose)} images lie outside the class folders",
            where=loose[0],
            why="the folders below were taken for classes, because there is no tags.csv",
            fix="move them into a class folder, or write tags.csv",
        )
    return [TaggedRow(image_id, (as_text(parts[0]),), str(images[image_id])) for image_id, parts in inside.items()]


def tags_in_use(rows: Sequence[TaggedRow]) -> dict[str, str]:
    """Every tag and where it is first written; a cell that is elsewhere one name with spaces is that name."""
    named = {tag for row in rows if not row.by_spaces for tag in row.tags}
    places: dict[str, str] = {}
    for row in rows:
        joined = " ".join(row.tags)
        for tag in (joined,) if row.by_spaces and joined in named else row.tags:
            places.setdefault(tag, row.where)
    return places


def with_known_tags(row: TaggedRow, classes: tuple[str, ...], classes_path: Path, allow_negative: bool) -> TaggedRow:
    """The row with its tags checked; a class name with spaces is put together again, where spaces separated it."""
    joined = " ".join(row.tags)
    if row.by_spaces and joined in classes:
        return TaggedRow(row.id, (joined,), row.where)
    if not row.tags and not allow_negative:
        raise DataError(
            f"image {row.id!r} has no tags",
            where=row.where,
            why="a forgotten tag, or an image that shows none of the classes",
            fix="add its tags or remove the line; use allow_negative if images without any class are meant",
        )
    for tag in row.tags:
        check_tag(tag, classes, classes_path, row.where)
    return row


def tagged_images(
    split: str, ids: Sequence[str], images: Mapping[str, Path], rows: Mapping[str, TaggedRow], classes: tuple[str, ...]
) -> TaggedImages:
    """The images of one list with their tags as a table."""
    column = {name: c for c, name in enumerate(classes)}
    present = np.zeros((len(ids), len(classes)), bool)
    for n, image_id in enumerate(ids):
        present[n, [column[tag] for tag in rows[image_id].tags]] = True
    return TaggedImages(split, tuple(images[image_id] for image_id in ids), LabelSet(present, tuple(ids), classes))
