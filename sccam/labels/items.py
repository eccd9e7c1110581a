"""What passes between formats: one image's labels after the other, each with a name that is safe as a path.

A reader gives class names and a stream of items; an item is an image's labels or the error that it has instead. A
writer takes them one by one. So memory is that of one image, plus what a file format makes a reader keep.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sccam.data.images import IMAGE_SUFFIXES
from sccam.errors import DataError
from sccam.structures import ByteArray

NAME_KEY = "mask_name"  # where a JSON format keeps the name beside the image that it belongs to
UNKNOWN_SUFFIX = ".jpg"  # of an image, where only its mask is known
DEFAULT_TOLERANCE = 1.0  # [px]; below 0.71 the stairs of a slanted border stay


@dataclass(frozen=True, slots=True)
class Labelled:
    """One image's labels."""

    name: str  # of its outputs, without suffix, with "/" between folders
    image: str  # its file, relative to the folder of images; empty if only the mask is known
    index: ByteArray  # [H W]: 0 background, c + 1 class c, 255 ignore
    where: str  # what it was read from, for messages

    @property
    def file_name(self) -> str:
        """The image's file as a format names it."""
        return self.image or self.name + UNKNOWN_SUFFIX


@dataclass(frozen=True, slots=True)
class Found:
    """What a reader gives; `classes` is None where the format does not name them."""

    classes: tuple[str, ...] | None
    items: Iterator[Labelled | DataError]


@dataclass(frozen=True, slots=True)
class Layout:
    """How labels are written, where a format leaves a choice."""

    polygons: bool = False  # not run lengths
    tolerance: float = DEFAULT_TOLERANCE  # [px] that a polygon's border may move; 0 for exactly the pixels
    min_area: int = 0  # [px] smaller regions are left out
    per_class: bool = False  # one region for a class of an image, not one for each connected component
    image_root: str = ""  # goes before the file name of every image


class Names:
    """Names that are taken: two inputs never get the same output."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def free(self, *wishes: str) -> str:
        """The first wish that is free, or the last with a number behind."""
        for wish in wishes:
            if wish not in self._taken:
                self._taken.add(wish)
                return wish
        count = 2
        while f"{wishes[-1]}_{count}" in self._taken:
            count += 1
        return self.free(f"{wishes[-1]}_{count}")


def safe_name(text: object, where: str) -> str:
    """A name from a file that anybody may have written, as a path that stays below its folder.

    Raises:
        DataError: it is empty, no text, or cannot be a path.
    """
    if not isinstance(text, str):
        raise DataError(f"a name is not text but {type(text).__name__}", where=where)
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    name = "/".join(parts[1:] if parts and re.fullmatch("[A-Za-z]:", parts[0]) else parts)  # a drive of Windows
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        name = ""
    if not name or "\0" in name:
        raise DataError(f"{text!r} cannot be the name of a file", where=where, fix="rename the image")
    return name


def stem(file: str) -> str:
    """A file without the suffix of an image; other dots belong to its name."""
    head, _, suffix = file.rpartition(".")
    return head if f".{suffix.lower()}" in IMAGE_SUFFIXES and PurePosixPath(file).stem else file


def image_file(name: str, path: object, where: str) -> str:
    """The image's file below the folder of images, from its name there and the path by which it was read."""
    suffix = PurePosixPath(path).suffix if isinstance(path, str) else ""
    return "" if not suffix else safe_name(name if name.endswith(suffix) else name + suffix, where)


def find_image(images: Path | None, name: str) -> str:
    """The file of an image below a folder, from its name with or without suffix; empty if there is none."""
    if images is not None:
        for suffix in ("", *sorted(IMAGE_SUFFIXES), *(suffix.upper() for suffix in sorted(IMAGE_SUFFIXES))):
            if (images / (name + suffix)).is_file():
                return name + suffix
    return ""


def walked(root: Path, suffixes: Iterable[str]) -> Iterator[str]:
    """Files below a folder with one of the suffixes, as relative paths in order; hidden ones and links to folders not.

    Raises:
        DataError: a folder cannot be read.
    """
    endings = tuple(suffixes)
    pending = [""]
    while pending:
        folder = pending.pop()
        before = f"{folder}/" if folder else ""
        try:
            with os.scandir(root / folder) as entries:
                shown = [entry for entry in entries if not entry.name.startswith(".")]
                folders = sorted(entry.name for entry in shown if entry.is_dir(follow_symlinks=False))
                files = sorted(entry.name for entry in shown if not entry.is_dir())
        except OSError as error:
            raise DataError(f"cannot be read: {error.strerror}", where=root / folder) from error
        yield from (before + name for name in files if name.lower().endswith(endings))
        pending += [before + name for name in reversed(folders)]
