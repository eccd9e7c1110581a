"""Names of outputs from names of images: without suffix, and no two that some file system takes for one."""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np


def unlike(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name, name of its outputs): without suffix where no other image's output could have that name, and with a number
    where they are alike with it. Eight bytes are held of either, so that a folder of a million stays small."""
    both = (_number(text) for name in names for text in (stem_of(name), name))
    taken = np.sort(np.fromiter(both, np.uint64, 2 * len(names)))
    twice = frozenset(taken[1:][taken[1:] == taken[:-1]].tolist())
    given: set[int] = set()
    for name in names:
        stem = stem_of(name)
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


def free(taken: set[str], *wanted: str) -> str:
    """The first of the names that is like none of `taken`, or the last one with a number; it is taken from then on."""
    numbered = (f"{wanted[-1]}~{n}" for n in itertools.count(2))
    name = next(name for name in itertools.chain(wanted, numbered) if _alike(name) not in taken)
    taken.add(_alike(name))
    return name


def downwards(path: str) -> str:
    """A path that leads nowhere but downwards."""
    parts = [part.replace(":", "") for part in Path(path).as_posix().split("/")]
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "_"


def stem_of(name: str) -> str:
    """Without its last suffix."""
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
