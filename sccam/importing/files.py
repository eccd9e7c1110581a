"""Which file a name means that another program wrote, on another machine: its folders there are not those here."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from sccam.data.images import IMAGE_SUFFIXES
from sccam.data.text import as_text, nearest
from sccam.errors import DataError
from sccam.labels.items import stem, walked

GUESSES = 20  # missing names for which a similar one is looked up; that takes a tenth of a second among 10,000
# Label Studio puts eight hex digits and a hyphen before the name of an uploaded file.
UPLOADED = re.compile("[0-9a-f]{8}-(.+)")


class ImageFiles:
    """The images below a folder, found by the end of their path; `root` is that folder.

    Raises:
        DataError: the folder does not exist or holds no image.
    """

    def __init__(self, root: Path):
        if not root.is_dir():
            raise DataError("no such folder of images", where=root)
        self.root = root
        self.all = tuple(walked(root, IMAGE_SUFFIXES))
        if not self.all:
            raise DataError(
                "no images", where=root, why=f"none of its files ends with {' '.join(sorted(IMAGE_SUFFIXES))}",
                fix="name the folder that holds them with --images",
            )  # fmt: skip
        self._by_last: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
        for file in self.all:
            parts = tuple(as_text(file).split("/"))
            for last in {parts[-1], stem(parts[-1])}:
                self._by_last[last].append(parts)
        self._names = {as_text(file): file for file in self.all}
        self._missed = 0

    def find(self, name: str, where: str) -> str:
        """The image's path below `root`: the one that agrees with most of the end of `name`, with or without a suffix.

        Raises:
            DataError: there is none, or several agree with equally much.
        """
        wanted = [part for part in as_text(name).strip().replace("\\", "/").split("/") if part not in ("", ".")]
        if not wanted:
            raise DataError("the name of the image is empty", where=where)
        found = self._by_last.get(wanted[-1], [])
        if not found and (uploaded := UPLOADED.fullmatch(wanted[-1])):
            wanted[-1] = uploaded[1]
            found = self._by_last.get(wanted[-1], [])
        if not found:
            self._missed += 1
            likely = nearest(wanted[-1], self._by_last) if self._missed <= GUESSES else None
            raise DataError(
                f"no image {name!r} below {self.root}", where=where, why=likely,
                fix="name the folder that holds it with --images",
            )  # fmt: skip
        agreement = [_agreement(parts, wanted) for parts in found]
        best = [parts for parts, count in zip(found, agreement, strict=True) if count == max(agreement)]
        if len(best) > 1:
            shown = " and ".join(repr("/".join(parts)) for parts in best[:2])
            raise DataError(
                f"{name!r} may be {shown}", where=where, why="folders in front of the name are missing",
                fix="name the folder of these images alone with --images",
            )  # fmt: skip
        return self._names["/".join(best[0])]


def _agreement(parts: tuple[str, ...], wanted: list[str]) -> int:
    """How many parts agree from the end, the last of which is known to; where all do it is one more."""
    count = 1
    while count < min(len(parts), len(wanted)) and parts[-1 - count] == wanted[-1 - count]:
        count += 1
    return count + (count == len(parts) == len(wanted))
