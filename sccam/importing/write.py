"""A folder that `sccam train` reads, from tags in another form.

    OUT/images/...      hard links to the images, or copies where the disk is another one
    OUT/tags.json       {"image.jpg": ["tag", ...]}
    OUT/classes.txt     the classes in the order of the source
    OUT/train.txt, val.txt   where the source has lists
    OUT/masks/ID.png    if asked for: masks, for measuring only

OUT is there whole or not at all.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from sccam.artifacts import replacing_folder, write_text
from sccam.data.checks import check_names
from sccam.data.folder import find_images, read_classes
from sccam.data.masks import write_mask
from sccam.data.text import as_text, nearest, one_line
from sccam.data.voc import VOC_CLASSES
from sccam.errors import ConfigError, DataError, RunFolderError, SccamError
from sccam.importing import table
from sccam.importing.files import ImageFiles
from sccam.importing.formats import ANY_COLUMNS, FORMATS, detect
from sccam.importing.readers import TEST, TRAIN, VAL, Tagged, Tags
from sccam.importing.table import Columns
from sccam.labels.convert import FORMATS as LABEL_FORMATS
from sccam.structures import BACKGROUND, IGNORE, MAX_CLASSES


@dataclass(slots=True)
class Imported:
    """What was written.

    Attributes:
        classes: class -> images of train, val and neither. Without lists all are of train.
        images: the same of all images.
        untagged: images that no class of the list tags; they are examples of no class, or left out.
        other_tags: tag -> images, of tags outside the classes that were asked for.
        unseen: classes of the source that tag no training image.
        masks: written.
        copied: images that could not be linked.
        failed: entries that are not in the output.
        hint: what looks wrong, or nothing.
    """

    out: Path
    format: str
    classes: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    images: tuple[int, int, int] = (0, 0, 0)
    untagged: int = 0
    other_tags: dict[str, int] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    masks: int = 0
    copied: int = 0
    failed: int = 0
    hint: str = ""

    def as_dict(self) -> dict[str, object]:
        """For a program."""
        return {**asdict(self), "out": str(self.out)}


@dataclass(slots=True)
class _Image:
    path: Path
    tags: dict[str, None]  # in the order of the source
    list: str | None
    where: str


def import_tags(
    source: Path | str,
    out: Path | str,
    *,
    from_: str | None = None,
    val: Path | str | None = None,
    images: Path | str | None = None,
    classes: Path | str | None = None,
    columns: Columns = ANY_COLUMNS,
    negatives: bool = False,
    masks: bool = False,
    copy: bool = False,
    on_error: Callable[[SccamError], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Writes a folder of images with tags.

    Args:
        source: a file or folder in one of `FORMATS`.
        out: the folder to write; new or empty.
        from_: the format; by default what lies at `source`.
        val: a second source of the same format, whose images become val.txt.
        images: the folder of the images; by default that of the source.
        classes: a file of class names, one a line: only these, in this order.
        columns: of a CSV file.
        negatives: keep images without any of the classes, as examples of none.
        masks: write the masks as well (coco, labelstudio, voc).
        copy: copies, where hard links would do.
        on_error: told every entry that fails; the others are written.
        on_progress: told (done, failed) after every image.

    Raises:
        ConfigError: an unknown format, or an option that it does not have.
        DataError: a source as a whole cannot be read, or nothing of it.
        RunFolderError: there is something at `out`.
        ResourceError: `out` cannot be written.
    """
    sources = [Path(source)] + ([Path(val)] if val is not None else [])
    out = Path(out)
    format = from_ or detect(sources[0])
    _check(format, sources, out, masks, columns)
    asked = None if classes is None else read_classes(classes)
    files = [ImageFiles(Path(images) if images is not None else _folder_of(path)) for path in sources]
    base = Path(os.path.commonpath([one.root.resolve() for one in files]))
    done = Imported(out, format)
    first_error: list[SccamError] = []

    def fail(error: SccamError) -> None:
        done.failed += 1
        first_error.append(error) if not first_error else None
        if on_error is not None:
            on_error(error)

    read = [FORMATS[format](path, columns) for path in sources]
    found: dict[str, _Image] = {}
    lists = (None,) if val is None else (TRAIN, VAL)
    for one, tags, which in zip(files, read, lists, strict=True):
        for item in tags.items:
            try:
                _add(found, item, one, base, which)
            except DataError as error:
                fail(error)
    if not found:
        raise first_error[0] if first_error else DataError("no image is listed", where=source)

    tagged = Counter(tag for image in found.values() for tag in image.tags)
    done.hint = table.spaces_hint(tagged) if format == "csv" and not columns.separator else ""
    names = asked if asked is not None else _in_order(read, tagged)
    has_lists = any(image.list is not None for image in found.values())
    seen = {tag for image in found.values() if not has_lists or image.list == TRAIN for tag in image.tags}
    done.unseen = tuple(name for name in names if name not in seen)
    names = tuple(name for name in names if name in seen)
    _check_classes(names, tagged, source, classes)
    done.other_tags = {tag: count for tag, count in tagged.most_common() if tag not in {*names, *done.unseen}}

    kept: dict[str, _Image] = {}
    for name, image in found.items():
        image.tags = {tag: None for tag in names if tag in image.tags}
        done.untagged += not image.tags
        if image.tags or negatives:
            kept[name] = image
    with replacing_folder(out) as folder:
        for name in list(kept):
            try:
                done.copied += _place(kept[name], folder / "images" / name, copy)
            except DataError as error:
                fail(error)
                del kept[name]
            if on_progress is not None:
                on_progress(len(kept), done.failed)
        if not kept:
            raise first_error[0] if first_error else DataError("no image carries any of the classes", where=source)
        _write_lists(folder, kept, names, has_lists)
        if masks:
            for path, one in zip(sources, files, strict=True):
                done.masks += _write_masks(folder, path, format, one, base, kept, names, fail)
    _count(done, kept, names, has_lists)
    return done


def _check(format: str, sources: list[Path], out: Path, masks: bool, columns: Columns) -> None:
    if format not in FORMATS:
        raise ConfigError(
            f"no format {format!r}", why=nearest(format, FORMATS), fix=f"choose from {', '.join(FORMATS)}"
        )
    for path in sources:
        if not path.exists():
            raise DataError("no such file or folder", where=path)
        if path.is_dir() != (format in ("voc", "folder")):
            raise DataError(f"{format} is {'one file' if path.is_dir() else 'a folder'}", where=path)
    if masks and format not in LABEL_FORMATS:
        raise ConfigError(f"{format} has no masks", fix="leave out --masks")
    if format != "csv" and columns != ANY_COLUMNS:
        raise ConfigError(f"{format} has no columns", fix="leave out --image-column, --tag-column and --separator")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RunFolderError("it is there already", where=out, fix="choose another name; nothing is replaced")


def _folder_of(path: Path) -> Path:
    """Where the images of a source are, if nobody says otherwise."""
    photographs = path / "JPEGImages"  # of VOC, whose masks have the same names beside it
    return photographs if photographs.is_dir() else path if path.is_dir() else path.parent


def _add(
    found: dict[str, _Image], item: Tagged | DataError, files: ImageFiles, base: Path, which: str | None
) -> None:  # fmt: skip
    """Joins an entry with what is known of its image."""
    if isinstance(item, DataError):
        raise item
    path = files.root.resolve() / files.find(item.name, item.where)
    name = path.relative_to(base).as_posix()
    if len(as_text(name).splitlines()) > 1:
        raise DataError(f"a list of images cannot hold {name!r}", where=item.where, fix="rename the image")
    tagged_list = which or item.list
    image = found.setdefault(name, _Image(path, {}, tagged_list, item.where))
    if image.list != tagged_list:
        raise DataError(
            f"image {name!r} is in two lists, {image.list or 'none'} and {tagged_list or 'none'}", where=item.where,
            why=f"first at {image.where}", fix="remove it from one of them",
        )  # fmt: skip
    image.tags |= dict.fromkeys(item.tags)


def _in_order(read: list[Tags], tagged: Counter[str]) -> tuple[str, ...]:
    """The classes in the order of the sources, or else of the alphabet."""
    listed = list(dict.fromkeys(chain.from_iterable(tags.classes or () for tags in read)))
    return tuple(listed) if listed else tuple(sorted(tagged))


def _check_classes(names: tuple[str, ...], tagged: Counter[str], source: object, file: object) -> None:
    """Refuses what no folder could be trained on: of all that the source names, only what is used is looked at."""
    if not names:
        shown = ", ".join(name for name, _ in tagged.most_common(5))
        raise DataError(
            "no training image carries any of the classes", where=file or source,
            why=f"the most frequent tags are {shown}" if shown else "no image has a tag",
        )  # fmt: skip
    check_names(names, [str(file or source)] * len(names))
    if len(names) > MAX_CLASSES:
        raise DataError(
            f"{len(names)} classes; at most {MAX_CLASSES} fit in an 8-bit mask", where=file or source,
            fix="list the ones to learn in a file and give it with --classes",
        )  # fmt: skip


def _place(image: _Image, target: Path, copy: bool) -> bool:
    """Puts the image at `target`; tells whether it had to be copied.

    Raises:
        DataError: it cannot be read.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    source = image.path.resolve()  # of a symbolic link, what it names
    if not copy:
        try:
            os.link(source, target)
            return False
        except OSError:  # another disk, a file system without hard links, or no such file: copying tells
            pass
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        if error.filename == str(source):
            raise DataError(f"the image cannot be read: {error.strerror}", where=image.path) from error
        raise
    return True


def _write_lists(folder: Path, kept: dict[str, _Image], names: tuple[str, ...], has_lists: bool) -> None:
    lines = [
        f"{json.dumps(as_text(name), ensure_ascii=False)}: {json.dumps(list(image.tags), ensure_ascii=False)}"
        for name, image in kept.items()
    ]
    write_text(folder / "tags.json", "{\n" + ",\n".join(lines) + "\n}\n")
    write_text(folder / "classes.txt", "".join(f"{name}\n" for name in names))
    for which in (TRAIN, VAL) if has_lists else ():
        if listed := [as_text(name) for name, image in kept.items() if image.list == which]:
            write_text(folder / f"{which}.txt", "".join(f"{one_line(name)}\n" for name in listed))


def _write_masks(
    folder: Path, source: Path, format: str, files: ImageFiles, base: Path, kept: dict[str, _Image],
    names: tuple[str, ...], fail: Callable[[SccamError], None],
) -> int:  # fmt: skip
    """Masks of the images that were imported, in the order of their classes; other classes become background."""
    ids = {path: image_id for image_id, path in find_images(folder / "images").items()}
    labels = LABEL_FORMATS[format].read(source, files.root)
    listed = labels.classes or (VOC_CLASSES if set(names) <= set(VOC_CLASSES) else None)
    if listed is None:
        raise DataError(
            "the classes of the masks are unknown", where=source, why="there is no labelmap.txt",
            fix="leave out --masks, or write labelmap.txt with a line name:r,g,b:: for each class",
        )  # fmt: skip
    to = np.full(IGNORE + 1, IGNORE, np.uint8)
    to[: len(listed) + 1] = [BACKGROUND, *(names.index(name) + 1 if name in names else BACKGROUND for name in listed)]
    written = 0
    for item in labels.items:
        try:
            if isinstance(item, DataError):
                raise item
            path = files.root.resolve() / files.find(item.image or item.name, item.where)
            name = path.relative_to(base).as_posix()
            if name in kept:
                write_mask(folder / "masks" / f"{ids[folder / 'images' / name]}.png", to[item.index])
                written += 1
        except DataError as error:
            fail(error)
    return written


def _count(done: Imported, kept: dict[str, _Image], names: tuple[str, ...], has_lists: bool) -> None:
    def sides(images: Iterator[_Image]) -> tuple[int, int, int]:
        found = Counter((image.list if has_lists else TRAIN) for image in images)
        return found[TRAIN], found[VAL], found[None] + found[TEST]

    done.classes = {name: sides(image for image in kept.values() if name in image.tags) for name in names}
    done.images = sides(iter(kept.values()))
