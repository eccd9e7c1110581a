"""Labels of any of the formats to any other, image by image.

A bad input becomes an error and the rest goes on; an output is there whole or not at all.

    name         is                                                        read from
    masks        a folder of palette PNGs with labelmap.txt                predictions.jsonl, or PNGs
    coco         one JSON file                                             a JSON object
    yolo         a folder of YOLO-seg text files                           labels/ or data.yaml
    labelstudio  one JSON file of tasks, and its configuration as XML      a JSON list
    voc          SegmentationClass, as VOC and CVAT have it                SegmentationClass/
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from sccam.artifacts import replacing_folder
from sccam.data.checks import check_names
from sccam.data.folder import read_classes
from sccam.data.masks import check_mask
from sccam.data.text import nearest
from sccam.errors import ConfigError, DataError, Interrupted, ResourceError, RunFolderError, SccamError
from sccam.labels import coco, labelstudio, masks, voc, yolo
from sccam.labels.items import Found, Labelled, Layout
from sccam.labels.json_parts import first_character
from sccam.structures import IGNORE, MAX_CLASSES, ByteArray

# A name is too long, or that of a file is a folder's, too
NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EINVAL, errno.ENOTEMPTY)

Writer = Callable[[Labelled], int]
PLAIN = Layout()


@dataclass(frozen=True, slots=True)
class Format:
    """One format; its reader takes a path and the folder of images."""

    read: Callable[[Path, Path | None], Found]
    writing: Callable[[Path, Sequence[str], Layout], AbstractContextManager[Writer]]
    holds: frozenset[str]  # what a folder of it holds; empty for one file
    keeps_ignored: bool  # 255
    uses: frozenset[str]  # fields of `Layout` that change what is written

    @property
    def folder(self) -> bool:
        """Whether it is a folder, not one file."""
        return bool(self.holds)


SHAPES = frozenset({"polygons", "tolerance", "min_area"})
FORMATS = {
    "masks": Format(masks.read, masks.writing, masks.HOLDS, True, frozenset()),
    "coco": Format(coco.read, coco.writing, frozenset(), False, SHAPES | {"per_class", "image_root"}),
    "yolo": Format(yolo.read, yolo.writing, yolo.HOLDS, False, SHAPES),
    "labelstudio": Format(labelstudio.read, labelstudio.writing, frozenset(), False, SHAPES | {"image_root"}),
    "voc": Format(voc.read, voc.writing, voc.HOLDS, True, frozenset()),
}


@dataclass(frozen=True, slots=True)
class Converted:
    """What was done."""

    out: Path
    format: str
    images: int
    regions: int  # annotations, lines, brushes, objects, or masks
    failed: int  # inputs that are not in the output
    ignored: int  # images whose 255 the format cannot hold

    def as_dict(self) -> dict[str, str | int]:
        """For a program."""
        return {**asdict(self), "out": str(self.out)}

    def line(self) -> str:
        """For a person."""
        text = f"{self.images} images as {self.format} in {self.out}"
        text += f"; {self.regions} regions" if self.format != "masks" else ""
        text += f"; 255 (ignore) of {self.ignored} images became background" if self.ignored else ""
        return text + (f"; {self.failed} inputs failed" if self.failed else "")


def convert(
    source: Path | str,
    out: Path | str,
    to: str,
    *,
    from_: str | None = None,
    classes: Path | str | None = None,
    images: Path | str | None = None,
    values: Mapping[int, int] | None = None,
    layout: Layout = PLAIN,
    overwrite: bool = False,
    on_error: Callable[[SccamError], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Converted:
    """Writes the labels at `source` to `out` in another format.

    Args:
        source: a folder or file in one of the formats.
        out: the folder or .json file to write; new, unless `overwrite`.
        to: name of the format to write.
        from_: name of the format to read; by default what lies there.
        classes: a file of class names, one a line: names them where the source does not, else gives their order.
        images: the folder of images: gives files their suffixes, and sizes where the source has none.
        values: mask values to replace, such as {255: 1}, before anything else.
        layout: how labels are written.
        overwrite: replace an earlier output of the same format.
        on_error: told every input that fails.
        on_progress: told (done, failed) after every input.

    Raises:
        ConfigError: an unknown format, or an option that it does not have.
        DataError: the source as a whole cannot be read, or nothing of it.
        RunFolderError: there is something else at `out`.
        ResourceError: the disk is full or read-only.
        Interrupted: by Ctrl-C.

    Whatever is raised, nothing is left at `out` but what was there.
    """
    source, out = Path(source), Path(out)
    target = _format(to)
    _check_layout(to, layout)
    from_ = from_ or detect(source)
    reader = _format(from_)
    if not source.exists():
        raise DataError("no such file or folder", where=source)
    _check_out(source, out, to, overwrite)
    found = reader.read(source, None if images is None else Path(images))
    names, order = _classes(found.classes, None if classes is None else read_classes(classes), source, classes)
    replaced = np.arange(IGNORE + 1, dtype=np.uint8)
    for old, new in (values or {}).items():
        replaced[old] = new

    done = failed = regions = ignored = 0
    first_error: SccamError | None = None
    with _output(out, target.folder) as place, target.writing(place, names, layout) as write:
        for item in found.items:
            try:
                if isinstance(item, DataError):
                    raise item
                index = replaced[item.index]
                check_mask(index, item.where, len(found.classes or names), tagged=False)
                index = order[index]
                regions += _written(write, replace(item, index=index))
                ignored += not target.keeps_ignored and bool((index == IGNORE).any())
                done += 1
            except ResourceError:
                raise  # the disk is full: no later image would fare better
            except SccamError as error:
                failed += 1
                first_error = first_error or error
                if on_error is not None:
                    on_error(error)
            if on_progress is not None:
                on_progress(done, failed)
        if first_error is not None and not done:
            raise DataError(
                f"none of {failed} inputs could be converted; the first: {first_error.what}",
                where=first_error.where, why=first_error.why, fix=first_error.fix,
            )  # fmt: skip
    return Converted(out, to, done, regions, failed, ignored)


def write_formats(
    out: Path | str, formats: Sequence[str], *, on_error: Callable[[SccamError], None] | None = None
) -> list[Converted]:
    """Adds formats to the OUT folder of `sccam infer`: coco.json, labelstudio.json and .xml, yolo/, voc/.

    An earlier one is replaced. The masks must be there.

    Raises:
        As `convert`.
    """
    out = Path(out)
    if "masks" in formats:
        raise ConfigError("masks are there already", where=out, fix=f"choose from {', '.join(list(FORMATS)[1:])}")
    targets = [(name, out / (name if _format(name).folder else f"{name}.json")) for name in dict.fromkeys(formats)]
    return [convert(out, place, name, from_="masks", overwrite=True, on_error=on_error) for name, place in targets]


def detect(source: Path) -> str:
    """The name of the format that lies at `source`.

    Raises:
        DataError: nothing does.
    """
    if source.is_file():
        name = {"{": "coco", "[": "labelstudio"}.get(first_character(source))
        if name is not None:
            return name
    elif (source / masks.LOG).is_file():
        return "masks"
    elif (source / voc.CLASSES).is_dir():
        return "voc"
    elif any((source / name).exists() for name in (yolo.NAMES, yolo.LABELS, *yolo.NAME_LISTS)):
        return "yolo"
    elif source.is_dir():
        return "masks"
    else:
        raise DataError("no such file or folder", where=source)
    raise DataError(
        "neither a COCO file nor tasks of Label Studio", where=source,
        why="a file begins with { or [; other formats are folders", fix="give the folder, or the JSON file",
    )  # fmt: skip


def parse_values(texts: Sequence[str]) -> dict[int, int]:
    """Mask values to replace, from texts such as "255=1".

    Raises:
        ConfigError: one is written otherwise, or a value is replaced twice.
    """
    found: dict[int, int] = {}
    for text in texts:
        old, _, new = text.partition("=")
        if (
            not all(re.fullmatch("[0-9]{1,3}", side) and int(side) <= IGNORE for side in (old, new))
            or int(old) in found
        ):
            raise ConfigError(
                f"not a replacement: {text!r}", where="--map", fix="write OLD=NEW, both 0 to 255, OLD once"
            )
        found[int(old)] = int(new)
    return found


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"no format {name!r}", why=nearest(name, FORMATS), fix=f"choose from {', '.join(FORMATS)}")
    return FORMATS[name]


def _check_layout(to: str, layout: Layout) -> None:
    """Refuses what would change nothing."""
    changed = [name for name in Layout.__slots__ if getattr(layout, name) != getattr(PLAIN, name)]
    for name in changed:
        if name not in FORMATS[to].uses:
            raise ConfigError(f"{to} has no {name.replace('_', ' ')}", fix=f"leave out --{name.replace('_', '-')}")
    if "tolerance" in changed and to != "yolo" and not layout.polygons:
        raise ConfigError("a tolerance is of polygons, and masks are written exactly", fix="add --polygons")
    if not (layout.tolerance >= 0 and np.isfinite(layout.tolerance)) or layout.min_area < 0:
        raise ConfigError(f"tolerance {layout.tolerance} and min_area {layout.min_area} must be 0 or more")


def _check_out(source: Path, out: Path, to: str, overwrite: bool) -> None:
    target = FORMATS[to]
    if not target.folder and out.suffix.lower() != ".json":
        raise ConfigError(f"{to} is one file: {out} is no name for it", fix=f"write {out}.json")
    ours, theirs = out.resolve(), source.resolve()
    inside = theirs in ours.parents
    if inside and (source / masks.LOG).is_file():  # beside the masks of sccam infer there is room
        inside = ours.relative_to(theirs).parts[0] in masks.HOLDS
    if inside or ours == theirs or ours in theirs.parents:
        raise ConfigError(
            f"the output {out} and the input {source} lie in each other", fix="write to a folder of its own"
        )
    if not out.exists() or (out.is_dir() and target.folder and not any(out.iterdir())):
        return
    if not overwrite:
        raise RunFolderError("it is there already", where=out, fix="choose another name, or replace it by --overwrite")
    if out.is_dir() and target.folder:
        foreign = sorted({entry.name for entry in out.iterdir()} - target.holds)
    else:
        foreign = [] if out.is_file() and not target.folder and detect(out) == to else [out.name]
    if foreign:  # never delete what was not written here
        raise RunFolderError(
            f"{', '.join(foreign[:5])} would be lost, which {to} does not hold", where=out, fix="choose another name"
        )


def _classes(
    named: tuple[str, ...] | None, wanted: tuple[str, ...] | None, source: Path, file: object
) -> tuple[tuple[str, ...], ByteArray]:
    """The classes of the output, and the label there of every label of the source."""
    names = wanted if wanted is not None else named
    if names is None:
        raise DataError(
            "the class names are unknown", where=source, why="there is no labelmap.txt, and no other list of names",
            fix="give a file with one name a line with --classes",
        )  # fmt: skip
    if len(names) > MAX_CLASSES:
        raise DataError(f"{len(names)} classes; at most {MAX_CLASSES} fit in a mask", where=source)
    check_names(names, [str(source)] * len(names))
    order = np.arange(IGNORE + 1, dtype=np.uint8)
    for label, name in enumerate(named or (), 1):
        if name not in names:
            raise DataError(
                f"class {name!r} is not in the list", where=file, why=nearest(name, names), fix="add it to the list"
            )
        order[label] = names.index(name) + 1
    return names, order


def _written(write: Writer, item: Labelled) -> int:
    try:
        return write(item)
    except OSError as error:
        if error.errno not in NAME_ERRORS:
            raise
        raise DataError(f"cannot be written: {error.strerror}", where=item.where, fix="rename the image") from error


@contextmanager
def _output(out: Path, folder: bool) -> Iterator[Path]:
    """Where to write: a file itself, which its writer replaces, or a folder beside that is renamed in the end."""
    try:
        if folder:
            with replacing_folder(out) as temporary:
                yield temporary
        else:
            yield out
    except KeyboardInterrupt:
        raise Interrupted("interrupted; nothing was written", where=out) from None
