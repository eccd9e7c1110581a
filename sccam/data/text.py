"""Names and lines as people write them: UTF-8 text with line numbers, and the nearest known name for a misspelt one."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from sccam.errors import DataError


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without their ends; a last line needs none."""
    # Not splitlines(): it also splits at form feeds and U+2028, and the line numbers would be wrong.
    return [line.removesuffix("\r") for line in read_text(path).split("\n")]


def read_text(path: Path) -> str:
    """The content of a UTF-8 file, with or without a byte order mark; anything else is refused with its line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x}",
            where=f"{path}:{data.count(bytes([10]), 0, error.start) + 1}",
            why="saved by a spreadsheet or editor in another encoding",
            fix="save it again as UTF-8 ('CSV UTF-8' in a spreadsheet)",
        ) from error


def as_text(name: str) -> str:
    """The name as valid Unicode: bytes that are no UTF-8 are written out, as in a\\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def nearest(name: str, known: Iterable[str]) -> str | None:
    """A phrase that offers the known name closest to a misspelt one, for an error's `why`; None if none is close."""
    lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.strip().lower(), lower, n=1)
    return f"a misspelling of {lower[found[0]]!r}" if found else None


def one_line(name: str) -> str:
    """The name as lists have it, which are one name a line: line breaks in it are written out."""
    return name.replace("\n", "\\n").replace("\r", "\\r")


def quoted(names: Sequence[str]) -> str:
    """The names in quotation marks, for a message."""
    return ", ".join(map(repr, names))
