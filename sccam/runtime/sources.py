"""Where images come from: a file, a folder, a pattern, a list file, or standard input; one after the other, each with
the name that its outputs get.

    folder     every image below it, sub-folders kept: photos/a/1.jpg -> a/1
    pattern    photos/*.jpg                                            -> 1
    list       a .txt file, one path a line, relative to the list      -> as written
    -          standard input, one path a line                         -> as written
    shard      photos-000.tar, also found by a pattern or in a list    -> photos-000.tar/a/1
    store      s3://bucket/photos, and whatever `stored` reads         -> as of a folder, pattern, file or shard
    numbers    shards/photos-{000..120}.tar                            -> as of a list, below the part before the first

Two images of one folder that differ in their suffix only keep it in their names (1.jpg, 1.png), and names that are
still alike, in case or in a list, get a number (1.jpg~2): no output overwrites another, on any file system. A folder
is read as it is walked; nothing but the names of one folder is held. Of a list or pattern, all names are.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from sccam.data.images import IMAGE_SUFFIXES
from sccam.errors import ConfigError, DataError
from sccam.runtime.output_names import downwards, free, stem_of, unlike
from sccam.runtime.stored import SHARD_SUFFIX, Store, Stored, is_address, members, shown

LIST_SUFFIX = ".txt"
NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True, slots=True)
class Source:
    """One image to read.

    Attributes:
        path: of the file; of an image that is none, what looks like it.
        name: of its outputs, without suffix, with "/" between folders.
        stored: where its bytes lie, if it is no file of its own.
    """

    path: Path
    name: str
    stored: Stored | None = None

    @property
    def where(self) -> str:
        """For people: its path, or address."""
        return str(self.path) if self.stored is None else self.stored.where

    def data(self) -> bytes | None:
        """Its bytes, if it is no file of its own.

        Raises:
            ImageError, BackendUnavailable: as `Stored.read`.
        """
        return None if self.stored is None else self.stored.read()

    def fingerprint(self) -> dict[str, int | str]:
        """By which a change is seen: its bytes and the time of its last change; nothing of a missing file."""
        if self.stored is not None:
            return self.stored.fingerprint()
        try:
            status = self.path.stat()
        except (OSError, ValueError):  # the latter for a name with a zero byte, which a list may have
            return {}
        return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


class Tree(Protocol):
    """Folders below a root, on a disk or in a store."""

    def scan(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders in a folder of the root ("" for itself), or OSError."""

    def source(self, path: str, name: str) -> Source:
        """The file at a path below the root, in the folder that was scanned last; or a folder that cannot be read."""


def sources(source: str | Path, lines: Iterable[str] | None = None) -> Iterator[Source]:
    """The images of `source`, in an order that is the same every time.

    Args:
        source: see above.
        lines: what "-" reads; standard input by default.

    Raises:
        DataError: there is nothing of that name, or no image in it.
        ConfigError, BackendUnavailable: a store that cannot be read.
    """
    text = str(source)
    if text == "-":
        return _listed(sys.stdin if lines is None else lines)
    if (numbers := NUMBERS.search(text)) and not os.path.exists(text):
        base = text[: numbers.start()].rpartition("/")[0]
        base = base if is_address(base) == is_address(text) else ""  # a bucket's name may have numbers
        found = _listed((name.removeprefix(base).lstrip("/") for name in _numbered(text)), base)
    else:
        found = _of(text)
    first = next(found, None)
    if first is None:
        raise DataError(
            "no images", where=shown(text), why="the names of images end in " + " ".join(sorted(IMAGE_SUFFIXES)),
            fix=f"name the folder that holds them, or its shards: FOLDER/*{SHARD_SUFFIX}; or list files of other "
            "names in a .txt file",
        )  # fmt: skip
    return _chained(first, found)


def _of(text: str) -> Iterator[Source]:
    """The images of one file, folder, pattern, list or shard, or of an address."""
    if text.lower().endswith((f"{SHARD_SUFFIX}.gz", ".tgz")):
        raise DataError("a compressed shard cannot be read in parts", where=shown(text), fix="decompress it: gunzip")
    if is_address(text):
        if text.lower().endswith(LIST_SUFFIX):
            raise DataError("a list has to be on this machine", where=shown(text), fix="copy it here, or give it to -")
        return _in_store(text)
    path = Path(text)
    if os.path.isdir(path):  # Path.is_dir() raises on a name that is too long
        return walked(_Disk(path))
    if os.path.isfile(path) and path.suffix.lower() == LIST_SUFFIX:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            return _listed(file.readlines(), str(path.parent))
    if os.path.isfile(path):
        return _members(text, path.name) if _is_shard(text) else iter([Source(path, path.stem)])
    if glob.has_magic(text):
        return _matched(text)
    raise DataError("no such image, folder or list", where=text, fix="give a file, a folder, a pattern, or -")


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n".

    Raises:
        ConfigError: it is not written so, or i is not below n.
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
        raise ConfigError(f"not a shard: {text!r}", fix="write i/n with 0 <= i < n, such as 0/4 to 3/4")
    return int(first), int(second)


def part_of(
    found: Iterator[Source], out: Path, shard: str | None, environment: Mapping[str, str] = os.environ
) -> tuple[Iterator[Source], Path]:
    """What this process does of all images, and where its results go: shards share a folder, in folders of their own.

    Args:
        shard: "i/n"; None takes RANK and WORLD_SIZE, where a launcher such as torchrun has set them.

    Raises:
        ConfigError: as `parse_shard`.
    """
    if shard is None and "RANK" in environment and "WORLD_SIZE" in environment:
        shard = f"{environment['RANK']}/{environment['WORLD_SIZE']}"
    index, count = parse_shard(shard or "0/1")
    found = outside(found, out)  # before it is dealt, so that the number of an image stays the same
    return (found, out) if count == 1 else (shard_of(found, index, count), out / f"shard-{index}-of-{count}")


def outside(found: Iterable[Source], out: Path) -> Iterator[Source]:
    """Without what lies in the folder that results go to, where that is a part of the folder of the images."""
    start = os.path.join(os.path.abspath(out), "")
    return (source for source in found if source.stored or not os.path.abspath(source.path).startswith(start))


def shard_of(found: Iterable[Source], index: int, count: int) -> Iterator[Source]:
    """Every `count`-th source, beginning with number `index` (from 0): shards are disjoint and together all."""
    return (source for n, source in enumerate(found) if n % count == index)


def walked(tree: Tree) -> Iterator[Source]:
    """Every image below a root: depth first, names in order.

    Raises:
        OSError: the root cannot be read. A folder below it is a source that will tell so.
    """
    pending = [("", "")]  # folders below the root, and their names among the outputs
    while pending:
        folder, output_folder = pending.pop()
        files: list[str] = []
        folders: list[str] = []
        try:
            files, folders = tree.scan(folder)
        except OSError:
            if not folder:
                raise
            yield tree.source(folder, output_folder)
        images = sorted(name for name in files if _is_image(name) and not _is_hidden(name))
        for name, output in unlike(images):
            yield tree.source(_joined(folder, name), _joined(output_folder, output))
        taken: set[str] = set()
        folders = sorted(name for name in folders if not _is_hidden(name))
        below = [(_joined(folder, name), _joined(output_folder, free(taken, name))) for name in folders]
        pending += reversed(below)


class _Disk:
    """Folders of a disk; links to folders are not followed, since they may lead round in circles."""

    def __init__(self, root: Path):
        self.root = root

    def scan(self, folder: str) -> tuple[list[str], list[str]]:
        files: list[str] = []
        folders: list[str] = []
        with os.scandir(self.root / folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif _is_image(entry.name):
                    files.append(entry.name)
        return files, folders

    def source(self, path: str, name: str) -> Source:
        return Source(self.root / path, name)


class _StoreTree(Store):
    """Folders of a store."""

    def source(self, path: str, name: str) -> Source:
        return _of_store(self.stored(path), name)


def _of_store(stored: Stored, name: str) -> Source:
    return Source(Path(stored.where), name, stored)


def _in_store(address: str) -> Iterator[Source]:
    """What an address names: images below it, those that a pattern finds, one of them, or those of a shard."""
    pattern = glob.has_magic(address) and not address.startswith("http")  # where ? begins a query
    name = PurePosixPath(shown(address))
    if _is_shard(name.name) and not pattern:
        return _members(address, name.name)
    tree = _StoreTree(address)
    if pattern:
        found = {path: stored for path, stored in tree.matched() if not _is_hidden(path)}
        return _those(list(found), lambda path, output: _of_store(found[path], output))
    return walked(tree) if tree.is_folder() else iter([_of_store(tree.stored(), name.stem)])


def _those(paths: Sequence[str], source_of: Callable[[str, str], Source]) -> Iterator[Source]:
    """The images among the paths that a pattern found, and those of the shards among them."""
    for path, output in unlike([path for path in paths if _is_image(path)]):
        yield source_of(path, output)
    taken: set[str] = set()
    for path in filter(_is_shard, paths):
        source = source_of(path, free(taken, path))
        yield from _members(source.stored.address if source.stored else str(source.path), source.name)


def _members(address: str, name: str) -> Iterator[Source]:
    """The images of a shard, below its name; what of it cannot be read is one, too, and will tell so."""
    taken: set[str] = set()
    for inside, stored in members(address):
        if not inside:
            yield _of_store(stored, name)
        elif _is_image(inside) and not _is_hidden(inside):
            full = downwards(inside)
            yield _of_store(stored, f"{name}/{free(taken, stem_of(full), full)}")


def _numbered(text: str) -> Iterator[str]:
    """The names that one with {000..120} in it stands for."""
    found = NUMBERS.search(text)
    if not found:
        yield text
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _numbered(f"{text[: found.start()]}{number:0{len(first)}d}{text[found.end() :]}")


def _is_image(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES


def _is_hidden(name: str) -> bool:
    return name.rpartition("/")[2].startswith(".")


def _is_shard(name: str) -> bool:
    return name.lower().endswith(SHARD_SUFFIX)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _matched(pattern: str) -> Iterator[Source]:
    """What a pattern finds; names are relative to its part before the first wildcard."""
    parts = Path(pattern).parts
    first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    fixed = Path(*parts[:first])
    found = sorted(set(_expanded(fixed, parts[first:])))
    wanted = [path for path in found if (_is_image(path.name) or _is_shard(path.name)) and not os.path.isdir(path)]
    images = {path.relative_to(fixed).as_posix(): path for path in _each_once(wanted)}
    return _those(list(images), lambda path, output: Source(images[path], output))


def _expanded(folder: Path, parts: Sequence[str]) -> Iterator[Path]:
    """As glob, but ** follows no link: two that lead in circles would take it for ever."""
    if not parts:
        yield folder
        return
    part, rest = parts[0], parts[1:]
    if not glob.has_magic(part):
        if os.path.lexists(folder / part):
            yield from _expanded(folder / part, rest)
        return
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if part.startswith(".") or not entry.name.startswith(".")]
    except OSError:  # a file, or a folder that is gone
        return
    if part == "**":
        yield from _expanded(folder, rest or ("*",))
        for entry in shown:
            if entry.is_dir(follow_symlinks=False):
                yield from _expanded(folder / entry.name, parts)
        return
    for entry in shown:
        if fnmatch.fnmatch(entry.name, part):
            yield from _expanded(folder / entry.name, rest)


def _each_once(paths: list[Path]) -> list[Path]:
    """Without those that a link to a folder leads to a second time."""
    real = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    shortest: dict[tuple[str, str], Path] = {}
    for path in sorted(paths, key=lambda path: len(path.parts)):
        shortest.setdefault((real[path.parent], path.name), path)
    return sorted(shortest.values())


def _listed(lines: Iterable[str], base: str = "") -> Iterator[Source]:
    """One path or address a line; the name is that as written, without suffix, root and steps upwards."""
    paths: set[str] = set()
    names: set[str] = set()
    for line in lines:
        text = line.rstrip("\r\n")
        path = Path(text).as_posix()
        if not text.strip() or path in paths:
            continue
        paths.add(path)
        full = downwards(shown(text))
        place = (
            text if is_address(text) or not base else f"{base}/{text}" if is_address(base) else str(Path(base, text))
        )
        if _is_shard(full):
            yield from _members(place, free(names, full))
            continue
        name = free(names, stem_of(full), full)
        yield _of_store(Stored(shown(place), place), name) if is_address(place) else Source(Path(place), name)


def _chained(first: Source, rest: Iterator[Source]) -> Iterator[Source]:
    yield first
    yield from rest
