"""The formats that tags can be in, and which of them lies at a path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sccam.errors import DataError
from sccam.importing import readers, table
from sccam.importing.readers import Tags
from sccam.importing.table import Columns
from sccam.labels.items import walked
from sccam.labels.json_parts import first_character

FORMATS: dict[str, Callable[[Path, Columns], Tags]] = {
    "coco": lambda path, _: readers.read_coco(path),
    "labelstudio": lambda path, _: readers.read_labelstudio(path),
    "voc": lambda path, _: readers.read_voc(path),
    "csv": table.read,
    "folder": lambda path, _: readers.read_folders(path),
}
ANY_COLUMNS = Columns()


def detect(source: Path) -> str:
    """The name of the format that lies at `source`.

    Raises:
        DataError: none does.
    """
    if source.is_dir():
        return "voc" if next(walked(source, (".xml",)), None) is not None else "folder"
    if not source.exists():
        raise DataError("no such file or folder", where=source)
    if source.suffix.lower() in (".csv", ".tsv", ".txt"):
        return "csv"
    if source.suffix.lower() == ".json" and (name := {"{": "coco", "[": "labelstudio"}.get(first_character(source))):
        return name
    raise DataError(
        "no format that is known", where=source, why="an archive, or tags in another form",
        fix=f"unpack an archive; else name the format with --from: {', '.join(FORMATS)}",
    )  # fmt: skip
