"""JSON files that are too large for memory: read one element at a time, each with its place in the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from sccam.errors import DataError

CHUNK = 1 << 20  # characters read at a time
LONGEST = 1 << 28  # characters of one element; a larger one is no annotation


class JsonParts:
    """A UTF-8 file of JSON; reads forwards, value by value. Use as a context manager.

    Everything that is wrong with the file is a DataError with its line.
    """

    def __init__(self, path: Path):
        self.path = path
        self._decoder = json.JSONDecoder()
        self._text = ""
        self._at = 0  # in the text
        self._counted = 0  # the same, up to where bytes are counted
        self._byte = 0  # of the file, there
        self._line = 1  # where the text begins
        try:
            self._file = path.open(encoding="utf-8", newline="")
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=path) from error

    def __enter__(self) -> JsonParts:
        if self.peek() == "\ufeff":
            self._at += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def array(self) -> Iterator[tuple[Any, int, int]]:
        """The elements of an array, each with the bytes of the file that hold it: value, first, count."""
        self._expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self._expect(",", "]") == "]":
                return

    def members(self) -> Iterator[str]:
        """The keys of an object; the caller reads the value of each before it asks for the next."""
        self._expect("{")
        if self.peek() == "}":
            self._at += 1
            return
        while True:
            key, *_ = self.value()
            if not isinstance(key, str):
                raise self._error("a key is not a text")
            self._expect(":")
            yield key
            if self._expect(",", "}") == "}":
                return

    def value(self) -> tuple[Any, int, int]:
        """The next value: itself, its first byte in the file, and how many bytes it has."""
        self.peek()
        first = self._byte_here()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or not self._read():  # else a number may go on
                    break
            except RecursionError:
                raise self._error("nested too deeply") from None
            except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
                if len(self._text) - self._at > LONGEST:
                    raise self._error("an element is larger than any annotation") from None
                if not isinstance(error, json.JSONDecodeError) or not self._read():
                    raise self._error(f"not valid JSON: {getattr(error, 'msg', error)}") from error
        self._at = end
        return value, first, self._byte_here() - first

    def peek(self) -> str:
        """The next character that is no space; empty at the end of the file."""
        while self._at < len(self._text) or self._read():
            character = self._text[self._at]
            if not character.isspace():
                return character
            self._at += 1
        return ""

    def _expect(self, *wanted: str) -> str:
        found = self.peek()
        if found not in wanted:
            raise self._error(
                f"not valid JSON: expected {' or '.join(wanted)}, found {found or 'the end of the file'!r}"
            )
        self._at += 1
        return found

    def _read(self) -> bool:
        """Reads on, as much again as is waiting; False at the end of the file."""
        waiting = len(self._text) - self._at
        try:
            more = self._file.read(max(CHUNK, waiting))
        except UnicodeDecodeError as error:
            raise self._error(f"not UTF-8: byte 0x{error.object[error.start]:02x}") from error
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=self.path) from error
        self._byte_here()
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at, self._counted = self._text[self._at :] + more, 0, 0
        return bool(more)

    def _byte_here(self) -> int:
        """The byte of the file where the next character begins."""
        self._byte += len(self._text[self._counted : self._at].encode())
        self._counted = self._at
        return self._byte

    def _error(self, what: str) -> DataError:
        line = self._line + self._text.count("\n", 0, self._at)
        return DataError(what, where=f"{self.path}:{line}", why="the file was cut off, or is not what it is named")


def first_character(path: Path) -> str:
    """The first character of a JSON file that is no space."""
    with JsonParts(path) as parts:
        return parts.peek()


def line_of(value: Any) -> str:
    """A value as one line of ASCII: a name that is not UTF-8 is escaped, not refused."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
