"""Tags from a CSV file as people and competitions write them: one row an image, one row a tag, or one column a class.

    image,tags            photo.jpg,cat;dog
    file_name,label       photo.jpg,cat and, in another row, photo.jpg,dog
    filename,cat,dog      photo.jpg,1,0

A column named split, subset or set tells the list of an image.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sccam.data.text import quoted, read_text
from sccam.errors import ConfigError, DataError
from sccam.importing.readers import Tagged, Tags, list_of

IMAGE_COLUMNS = (
    "image", "images", "file", "filename", "file_name", "image_name", "path", "image_path", "filepath", "file_path",
    "image_id", "imageid", "id", "name",
)  # fmt: skip
TAG_COLUMNS = (
    "tags", "tag", "labels", "label", "class", "classes", "class_name", "classname", "category", "categories",
    "labelname", "label_name", "species", "choice",
)  # fmt: skip
LIST_COLUMNS = ("split", "subset", "set")
YES, NO = frozenset({"1", "1.0", "true", "yes", "x"}), frozenset({"0", "0.0", "false", "no", ""})


@dataclass(frozen=True, slots=True)
class Columns:
    """What a CSV file is to be read by, where its header does not tell."""

    image: str | None = None
    tags: str | None = None
    separator: str = ""  # between the tags of a cell; empty for ; and | and commas


def read(path: Path, columns: Columns) -> Tags:
    """The rows of a CSV file with a header; a class for each column where all cells are 0 and 1.

    Raises:
        DataError: it is no CSV file, or no column is known to hold the images or the tags.
        ConfigError: a column that was asked for is not there.
    """
    text = read_text(path)
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[list[str], str]] = []
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                rows.append(([field.strip() for field in fields], f"{path}:{line}"))
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"not valid CSV: {error}", where=f"{path}:{line}") from error
    if len(rows) < 2:
        raise DataError("no row below a header", where=path, fix="begin it with a line such as image,tags")
    header, _ = rows[0]
    image = _column(header, columns.image, IMAGE_COLUMNS, path)
    tags = _column(header, columns.tags, TAG_COLUMNS, path)
    in_list = _column(header, None, LIST_COLUMNS, path)
    if image is None:
        raise DataError(
            f"which column names the image? There are {quoted(header)}", where=f"{path}:1",
            fix="name it with --image-column",
        )  # fmt: skip
    body = rows[1:]
    if tags is not None:
        return Tags(None, _of_cells(body, len(header), image, tags, in_list, columns.separator))
    others = [n for n in range(len(header)) if n not in (image, in_list)]
    marks = [n for n in others if _is_mark(n, body)]
    if not marks:
        raise DataError(
            f"which column holds the tags? There are {quoted(header)}", where=f"{path}:1",
            why="none has a usual name, and none has only 0 and 1", fix="name it with --tag-column",
        )  # fmt: skip
    return Tags(tuple(header[n] for n in marks), _of_marks(body, header, image, marks, in_list))


def _column(header: list[str], asked: str | None, usual: tuple[str, ...], path: Path) -> int | None:
    """The number of a column: the one that was asked for, or the first usual name that is there."""
    if asked is not None:
        if asked not in header:
            raise ConfigError(f"no column {asked!r}", where=f"{path}:1", fix=f"choose from {quoted(header)}")
        return header.index(asked)
    lower = [re.sub(r"[ .-]", "_", name.lower().removeprefix("\ufeff")) for name in header]
    return next((lower.index(name) for name in usual if name in lower), None)


def _is_mark(column: int, rows: list[tuple[list[str], str]]) -> bool:
    cells = {fields[column].lower() for fields, _ in rows if column < len(fields)}
    return cells <= YES | NO and bool(cells & YES)


def _row(fields: list[str], where: str, width: int, image: int, in_list: int | None, tags: tuple[str, ...]) -> Tagged:
    if len(fields) != width:
        raise DataError(
            f"{len(fields)} fields, the header has {width}", where=where, why="a comma that is not in quotation marks"
        )
    return Tagged(fields[image], tags, where, list_of(fields[in_list]) if in_list is not None else None)


def _of_cells(
    rows: list[tuple[list[str], str]], width: int, image: int, column: int, in_list: int | None, separator: str
) -> Iterator[Tagged | DataError]:
    for fields, where in rows:
        cell = fields[column] if column < len(fields) else ""
        parts = cell.split(separator) if separator.strip() else cell.split() if separator else re.split("[;|,]", cell)
        try:
            yield _row(fields, where, width, image, in_list, tuple(part.strip() for part in parts if part.strip()))
        except DataError as error:
            yield error


def _of_marks(
    rows: list[tuple[list[str], str]], header: list[str], image: int, marks: list[int], in_list: int | None
) -> Iterator[Tagged | DataError]:
    for fields, where in rows:
        try:
            tags = tuple(header[n] for n in marks if n < len(fields) and fields[n].lower() in YES)
            yield _row(fields, where, len(header), image, in_list, tags)
        except DataError as error:
            yield error


def spaces_hint(images_of: Counter[str]) -> str:
    """A hint where cells look as if spaces separated their tags: names that consist of other names."""
    joint = [name for name in images_of if " " in name and all(part in images_of for part in name.split())]
    return f"{joint[0]!r} consists of other tags; if spaces separate them, add --separator ' '" if joint else ""
