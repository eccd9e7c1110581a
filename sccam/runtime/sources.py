"""Where images come from: a file, a folder, a pattern, a list file, or standard input; one after the other, each with
the name that its outputs get.

    folder     every image below it, sub-folders kept: photos/a/1.jpg -> a/1
    pattern    photos/*.jpg                                            -> 1
    list       a .txt file, one path a line, relative to the list      -> as written
    -          standard input, one path a line                         -> as written

Two images of one folder that differ in their suffix only keep it in their names (1.jpg, 1.png), and names that are
still alike, in case or in a list, get a number (1.jpg~2): no output overwrites another, on any file system. A folder
is read as it is walked; nothing but the names of one folder is held. Of a list or pattern, all names are.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import itertools
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from sccam.data.images import IMAGE_SUFFIXES
from sccam.errors import ConfigError, DataError

LIST_SUFFIX = ".txt"


@dataclass(frozen=True, slots=True)
class Source:
    """One image to read."""

    path: Path
    name: str  # of its outputs, without suffix, with "/" between folders


def sources(source: str | Path, lines: Iterable[str] | None = None) -> Iterator[Source]:
    """The images of `source`, in an order that is the same every time.

    Args:
        source: see above.
        lines: what "-" reads; standard input by default.

    Raises:
        DataError: there is nothing of that name, or no image in it.
    """
    text = str(source)
    if text == "-":
        return _listed(sys.stdin if lines is None else lines, Path())
    path = Path(text)
    if os.path.isdir(path):  # Path.is_dir() raises on a name that is too long
        found = _walked(path)
    elif os.path.isfile(path) and path.suffix.lower() == LIST_SUFFIX:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            return _listed(file.readlines(), path.parent)
    elif os.path.isfile(path):
        found = iter([Source(path, path.stem)])
    elif glob.has_magic(text):
        found = _matched(text)
    else:
        raise DataError("no such image, folder or list", where=text, fix="give a file, a folder, a pattern, or -")
    first = next(found, None)
    if first is None:
        raise DataError(
            "no images", where=text, why="the names of images end in " + " ".join(sorted(IMAGE_SUFFIXES)),
            fix="name the folder that holds them; or list files of other names in a .txt file",
        )  # fmt: skip
    return _chained(first, found)


def fingerprint(path: Path) -> dict[str, int]:
    """By which a change of a file is seen: its bytes and the time of its last change; nothing of a missing file."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # the latter for a name with a zero byte, which a list may have
        return {}
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


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
    return (source for source in found if not os.path.abspath(source.path).startswith(start))


def shard_of(found: Iterable[Source], index: int, count: int) -> Iterator[Source]:
    """Every `count`-th source, beginning with number `index` (from 0): shards are disjoint and together all."""
    return (source for n, source in enumerate(found) if n % count == index)


def _walked(root: Path) -> Iterator[Source]:
    """Depth first, names in order; links to folders are not followed, since they may lead round in circles."""
    pending = [("", "")]  # folders below the root, and their names among the outputs
    while pending:
        folder, output_folder = pending.pop()
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif PurePosixPath(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                        files.append(entry.name)
        except OSError:
            if not folder:
                raise
            yield Source(root / folder, output_folder)  # to be told of as what cannot be read
        for name, output in _named(sorted(files)):
            yield Source(root / folder / name, _joined(output_folder, output))
        taken: set[str] = set()
        below = [(_joined(folder, name), _joined(output_folder, _free(taken, name))) for name in sorted(folders)]
        pending += reversed(below)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _free(taken: set[str], *wanted: str) -> str:
    """The first of the names that is like none of `taken`, or the last one with a number; it is taken from then on."""
    numbered = (f"{wanted[-1]}~{n}" for n in itertools.count(2))
    name = next(name for name in itertools.chain(wanted, numbered) if _alike(name) not in taken)
    taken.add(_alike(name))
    return name


def _matched(pattern: str) -> Iterator[Source]:
    """What a pattern finds; names are relative to its part before the first wildcard."""
    parts = Path(pattern).parts
    first = next(n for n, part in enumerate(parts) if glob.has_magic(part))
    fixed = Path(*parts[:first])
    found = sorted(set(_expanded(fixed, parts[first:])))
    images = _each_once([path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path)])
    relative = [path.relative_to(fixed).as_posix() for path in images]
    for path, (_, output) in zip(images, _named(relative), strict=True):
        yield Source(path, output)


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


def _listed(lines: Iterable[str], base: Path) -> Iterator[Source]:
    """One path a line; the name is the path as written, without suffix, root and steps upwards."""
    paths: set[str] = set()
    names: set[str] = set()
    for line in lines:
        text = line.rstrip("\r\n")
        path = Path(text).as_posix()
        if not text.strip() or path in paths:
            continue
        paths.add(path)
        parts = [part.replace(":", "") for part in path.split("/")]
        full = "/".join(part for part in parts if part not in ("", ".", "..")) or "_"
        yield Source(base / text, _free(names, _stem(full), full))


def _named(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, name of its outputs): without suffix where no other image's output could have that name, and with a number
    where they are alike with it. Eight bytes are held of either, so that a folder of a million stays small."""
    both = (_number(text) for name in names for text in (_stem(name), name))
    taken = np.sort(np.fromiter(both, np.uint64, 2 * len(names)))
    twice = frozenset(taken[1:][taken[1:] == taken[:-1]].tolist())
    given: set[int] = set()
    for name in names:
        stem = _stem(name)
        if _number(stem) not in twice:
            yield name, stem
            continue
        output = name
        for n in itertools.count(2):
            number = _number(output)
            if number not in given and (output == name or not _holds(taken, number)):
                break
            output = f"{name}~{n}"
        given.add(number)
        yield name, output


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _alike(name: str) -> str:
    """The same for names that some file system does not tell apart: by case, or by how an accent is written."""
    return unicodedata.normalize("NFC", name.casefold())


def _number(name: str) -> int:
    """The same for names that are alike, and for two others once in many millions of folders."""
    digest = hashlib.blake2b(_alike(name).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _holds(ordered: np.ndarray, number: int) -> bool:
    at = int(np.searchsorted(ordered, np.uint64(number)))
    return at < len(ordered) and int(ordered[at]) == number


def _chained(first: Source, rest: Iterator[Source]) -> Iterator[Source]:
    yield first
    yield from rest
