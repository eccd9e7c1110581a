"""Where images come from: a file, a folder, a pattern, a list file, or standard input; one after the other, each with
the name that its outputs get.

    folder     every image below it, sub-folders kept: photos/a/1.jpg -> a/1
    pattern    photos/*.jpg                                            -> 1
    list       a .txt file, one path a line, relative to the list      -> as written
    -          standard input, one path a line                         -> as written

Two images of one folder that differ in their suffix only keep it in their names (1.jpg, 1.png), so that no output
overwrites another. A folder is read as it is walked; nothing but the names of one folder is held.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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
    if path.is_dir():
        found = _walked(path)
    elif path.is_file() and path.suffix.lower() == LIST_SUFFIX:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            return _listed(file.readlines(), path.parent)
    elif path.is_file():
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
    except OSError:
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
    return (found, out) if count == 1 else (shard_of(found, index, count), out / f"shard-{index}-of-{count}")


def shard_of(found: Iterable[Source], index: int, count: int) -> Iterator[Source]:
    """Every `count`-th source, beginning with number `index` (from 0): shards are disjoint and together all."""
    return (source for n, source in enumerate(found) if n % count == index)


def _walked(root: Path) -> Iterator[Source]:
    """Depth first, names in order; links to folders are not followed, since they may lead round in circles."""
    pending = [""]
    while pending:
        folder = pending.pop()
        files, folders = [], []
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif PurePosixPath(entry.name).suffix.lower() in IMAGE_SUFFIXES:
                    files.append(entry.name)
        for name, output in _named(sorted(files)):
            yield Source(root / folder / name, f"{folder}/{output}" if folder else output)
        pending += [f"{folder}/{name}" if folder else name for name in sorted(folders, reverse=True)]


def _matched(pattern: str) -> Iterator[Source]:
    """What a pattern finds; names are relative to its part before the first wildcard."""
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(n for n, part in enumerate(parts) if glob.has_magic(part))])
    found = sorted(Path(path) for path in glob.iglob(pattern, recursive=True))
    images = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    relative = [path.relative_to(fixed).as_posix() for path in images]
    for path, (_, output) in zip(images, _named(relative), strict=True):
        yield Source(path, output)


def _listed(lines: Iterable[str], base: Path) -> Iterator[Source]:
    """One path a line; the name is the path as written, without suffix, root and steps upwards."""
    lines_seen: set[str] = set()
    names: set[str] = set()
    for line in lines:
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        parts = [part for part in PurePosixPath(Path(text).as_posix()).parts if part not in ("/", "..", ".")]
        parts = [part.replace(":", "") for part in parts]
        full = "/".join(parts)
        if full in lines_seen:
            continue
        lines_seen.add(full)
        name = str(PurePosixPath(full).with_suffix(""))
        name = full if name in names else name  # the same but for its suffix
        names.add(name)
        yield Source(base / text, name)


def _named(names: list[str]) -> Iterator[tuple[str, str]]:
    """(name, name of its outputs): without suffix where no other image's output could have that name, on file systems
    that ignore case, too."""
    stems = [str(PurePosixPath(name).with_suffix("")) for name in names]
    taken = Counter(stem.casefold() for stem in stems) + Counter(name.casefold() for name in names)
    for name, stem in zip(names, stems, strict=True):
        yield name, stem if taken[stem.casefold()] == 1 else name


def _chained(first: Source, rest: Iterator[Source]) -> Iterator[Source]:
    yield first
    yield from rest
