"""A folder of images with image-level tags becomes a Dataset; whatever is wrong with it is said before any training.

    ROOT/images/...             or the images directly in ROOT; an image's id is its path below, without suffix
    ROOT/tags.csv               header `image,tags`; several tags are separated by spaces, or by ; | or a quoted comma
    ROOT/tags.json              or this: {"image": ["tag", ...]}
    ROOT/images/CLASS/...       or neither: one folder per class
    ROOT/classes.txt            optional: class names in order, one a line; sorted by name otherwise
    ROOT/train.txt, val.txt     optional: one id a line; without them everything is for training
    ROOT/masks/ID.png           optional: true masks, for measuring only

Every check raises one DataError with the file and line. Images are not decoded here; where an image has a mask, the
two headers are compared.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sccam.data.images import IMAGE_SUFFIXES, image_size
from sccam.data.masks import check_mask, mask_size, read_mask
from sccam.errors import DataError, MaskError
from sccam.structures import MAX_CLASSES, Dataset, LabelSet, TaggedImages, TrueMasks

MASK_FOLDER = "masks"
_NOT_IMAGES = frozenset({MASK_FOLDER, "parts"})  # folders of PNGs that are no photographs


@dataclass(frozen=True, slots=True)
class TaggedRow:
    """One image with its tags, as written."""

    id: str
    tags: tuple[str, ...]
    where: str  # file:line


def read_folder(
    root: Path | str,
    *,
    classes_file: Path | str | None = None,
    tags_file: Path | str | None = None,
    allow_negative: bool = False,
) -> Dataset:
    """The images, tags and masks of a folder.

    Args:
        root: the folder, laid out as above.
        classes_file: class names in order, one a line; `ROOT/classes.txt` if it exists.
        tags_file: a CSV or JSON file; `ROOT/tags.csv` or `ROOT/tags.json` if it exists.
        allow_negative: accept images without any tag as examples of no class.

    Raises:
        DataError: the first thing that is wrong, with file and line.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError("no such folder", where=root, fix="give the folder that holds the images")
    image_root = root / "images" if (root / "images").is_dir() else root
    images = _find_images(image_root)
    classes_path = Path(classes_file) if classes_file else root / "classes.txt"
    classes = read_classes(classes_path) if classes_file or classes_path.is_file() else None

    rows, source = _read_rows(root, image_root, images, tags_file)
    if classes is None:
        classes = tuple(sorted({tag for row in rows for tag in row.tags}))
        _check_names(classes, [row.where for row in rows[:1]] * len(classes))
    rows = [_with_known_tags(row, classes, classes_path, allow_negative) for row in rows]
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{len(classes)} classes; at most {MAX_CLASSES} fit in an 8-bit mask beside background and 'ignore'",
            where=source,
            why="the tags column holds free text or file names",
            fix="merge classes, or list the ones to learn in classes.txt",
        )

    names = _Names(images, image_root)
    train_ids, val_ids = _read_splits(root, names, [row.id for row in rows], source)
    by_id = {row.id: row for row in rows}
    train = tagged_images("train", train_ids, images, by_id, classes)
    val = tagged_images("val", val_ids, images, by_id, classes)
    check_classes(train, source)
    masks = _find_masks(root, [*train_ids, *val_ids])
    _check_mask_sizes(masks, images)
    return Dataset(
        root=root,
        train=train,
        val=val,
        masks=TrueMasks(masks, classes),
        warnings=(*_left_out(images, by_id, train_ids, val_ids, source), *_everywhere(train)),
    )


def read_classes(path: Path | str) -> tuple[str, ...]:
    """Class names in the order of a text file with one a line, background not among them.

    Raises:
        DataError: a name is listed twice or cannot be used; with its line.
    """
    named = [(number, line.strip()) for number, line in enumerate(read_lines(Path(path)), 1) if line.strip()]
    if not named:
        raise DataError("no class names", where=path, fix="write one class name a line, or remove the file")
    classes = tuple(name for _, name in named)
    _check_names(classes, [f"{path}:{number}" for number, _ in named])
    return classes


def tagged_images(
    split: str, ids: Sequence[str], images: Mapping[str, Path], rows: Mapping[str, TaggedRow], classes: tuple[str, ...]
) -> TaggedImages:
    """The images of one list with their tags as a table."""
    column = {name: c for c, name in enumerate(classes)}
    present = np.zeros((len(ids), len(classes)), bool)
    for n, image_id in enumerate(ids):
        present[n, [column[tag] for tag in rows[image_id].tags]] = True
    return TaggedImages(split, tuple(images[image_id] for image_id in ids), LabelSet(present, tuple(ids), classes))


def check_classes(train: TaggedImages, where: object) -> None:
    """Refuses tags from which no class can be learnt: a class without images, or nothing to compare a class with."""
    present = train.labels.present
    unseen = [train.classes[c] for c in np.flatnonzero(~np.any(present, axis=0))]
    if unseen:
        raise DataError(
            f"no training image has the class {_quoted(unseen)}",
            where=where,
            why="a spelling in the class list that no tag uses, or all its images are in the validation list",
            fix="tag some training images with it, or remove it from classes.txt",
        )
    if len(train.classes) == 1 and present.all():
        raise DataError(
            f"every image has the one class {train.classes[0]!r}; there is nothing to tell it apart from",
            where=where,
            fix="add images of a second class, or images without it (no tags, with allow_negative)",
        )


def check_cluster_counts(dataset: Dataset, k: int) -> tuple[str, ...]:
    """One warning for each class with fewer training images than `k` sub-categories."""
    counts = dataset.train.labels.present.sum(axis=0)
    return tuple(
        f"class {name!r} has {count} training images, fewer than K = {k}: it gets at most {count} sub-categories"
        for name, count in zip(dataset.classes, counts.tolist(), strict=True)
        if count < k
    )


def validate_masks(dataset: Dataset) -> tuple[str, ...]:
    """Reads every mask in full and returns warnings about the suspicious ones.

    A single mask of only 0 and 255 can be an object that was left unlabelled; where most are so, a 0/255 export is
    the likely reason, and that is refused.

    Raises:
        MaskError: the first wrong mask, and how many more there are.
    """
    parts = (dataset.train, dataset.val)
    images = {name: path for part in parts for name, path in zip(part.ids, part.paths, strict=True)}
    tags = {name: row for part in parts for name, row in zip(part.ids, part.labels.present, strict=True)}
    wrong: list[MaskError] = []
    binary: list[MaskError] = []
    for image_id, path in dataset.masks.paths.items():
        tagged = bool(tags[image_id].any())
        try:
            _check_mask_size(path, images[image_id])
            index = read_mask(path, class_count=len(dataset.classes))
        except MaskError as error:
            wrong.append(error)
            continue
        try:
            check_mask(index, path, len(dataset.classes), tagged)
        except MaskError as error:
            binary.append(error)
    if len(binary) > len(dataset.masks.paths) / 2:
        wrong += binary
    if wrong:
        more = f" (and {len(wrong) - 1} more masks are wrong)" if len(wrong) > 1 else ""
        raise MaskError(wrong[0].what + more, where=wrong[0].where, why=wrong[0].why, fix=wrong[0].fix)
    return tuple(f"{error.where}: {error.what}" for error in binary)


def _find_images(image_root: Path) -> dict[str, Path]:
    """Image id -> file, sorted by path; two files that differ in the suffix only keep it in their ids."""
    found: list[Path] = []
    for folder, folders, files in os.walk(image_root):  # links to folders are not followed, so no loop is endless
        folders[:] = [name for name in folders if not name.startswith(".") and name not in _NOT_IMAGES]
        found += [Path(folder, name) for name in files if not name.startswith(".") and _is_image(name)]
    found.sort()
    if not found:
        raise DataError(
            "no images",
            where=image_root,
            why=f"none of its files ends with {' '.join(sorted(IMAGE_SUFFIXES))}",
            fix="give the folder that holds images/ and tags.csv",
        )
    full = [_text(path.relative_to(image_root).as_posix()) for path in found]
    ids = [name.rpartition(".")[0] for name in full]
    while clashes := {name for name, count in Counter(ids).items() if count > 1}:
        ids = [whole if name in clashes else name for name, whole in zip(ids, full, strict=True)]
    return dict(zip(ids, found, strict=True))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _text(name: str) -> str:
    """The name as valid Unicode: bytes that are no UTF-8 are written out, as in a\\xff."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


class _Names:
    """Which image a name in a tag file or list means: its id, its path below the image folder or below the root."""

    def __init__(self, images: Mapping[str, Path], image_root: Path):
        self.ids: dict[str, str] = {}
        for image_id, path in images.items():
            below = _text(path.relative_to(image_root).as_posix())
            for name in (image_id, below, f"{image_root.name}/{below}"):
                self.ids.setdefault(name, image_id)
        self.ids.update({image_id: image_id for image_id in images})

    def find(self, name: str, where: str) -> str:
        for form in (name, name.strip(), name.strip().replace("\\", "/").removeprefix("./")):
            if form in self.ids:
                return self.ids[form]
        raise DataError(
            f"no image {name!r}",
            where=where,
            why=_nearest(name, self.ids) or "the file is missing, or the name is misspelt",
            fix="add the file below the image folder, or remove the line",
        )


def _check_names(classes: Sequence[str], places: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for name, place in zip(classes, places, strict=True):
        if name in first:
            raise DataError(f"class {name!r} is listed twice", where=place, why=f"first at {first[name]}")
        first[name] = place
        if name.lower() == "background":
            raise DataError(
                "background is not a class",
                where=place,
                why="masks always have background at index 0, so the first class is index 1",
                fix="remove it from the classes and tags",
            )
        if ":" in name or not name.isprintable():
            raise DataError(
                f"class name {name!r} has a character that labelmap.txt cannot hold",
                where=place,
                fix="rename the class",
            )


def _read_rows(
    root: Path, image_root: Path, images: Mapping[str, Path], tags_file: Path | str | None
) -> tuple[list[TaggedRow], Path]:
    """The rows of whichever tag source there is, and that source."""
    known = [root / name for name in ("tags.csv", "tags.json")]
    files = [Path(tags_file)] if tags_file else [path for path in known if path.is_file()]
    if len(files) > 1:
        raise DataError(
            "both tags.csv and tags.json are there", where=root, fix="remove one, or name the one to use as tags_file"
        )
    names = _Names(images, image_root)
    if not files:
        return _rows_of_class_folders(image_root, images), image_root
    path = files[0]
    rows = _rows_of_json(path, names) if path.suffix.lower() == ".json" else _rows_of_csv(path, names)
    if not rows:
        raise DataError("no image is listed", where=path, fix="add one line an image: its name and its tags")
    first: dict[str, str] = {}
    for row in rows:
        if row.id in first:
            raise DataError(
                f"image {row.id!r} is listed twice",
                where=row.where,
                why=f"first at {first[row.id]}",
                fix="put all tags of an image in one line",
            )
        first[row.id] = row.where
    return rows, path


def _rows_of_csv(path: Path, names: _Names) -> list[TaggedRow]:
    text = _read_text(path)
    first_line = text.partition("\n")[0].strip()
    delimiter = next((mark for mark in ",;\t" if mark in first_line), ",")  # spreadsheets of some countries write ;
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[TaggedRow] = []
    line, header = 1, True
    try:
        for fields in reader:
            where, line = f"{path}:{line}", reader.line_num + 1
            if header:
                _check_header(fields, first_line, where)
                header = False
            elif any(field.strip() for field in fields):
                if len(fields) != 2:
                    raise DataError(
                        f"{len(fields)} fields, expected 2: {delimiter.join(fields)!r}",
                        where=where,
                        why="no comma behind the image" if len(fields) < 2 else "tags are separated by bare commas",
                        fix="write IMAGE,TAG TAG TAG with spaces between the tags, or quote the tags",
                    )
                rows.append(TaggedRow(names.find(fields[0], where), _split_tags(fields[1]), where))
    except csv.Error as error:
        raise DataError(
            f"not valid CSV: {error}", where=f"{path}:{line}", why="a quotation mark that is never closed"
        ) from error
    if header:
        _check_header([], first_line, f"{path}:1")
    return rows


def _check_header(fields: Sequence[str], first_line: str, where: str) -> None:
    if [field.strip().lower() for field in fields] != ["image", "tags"]:
        raise DataError(
            f"the header is missing; the first line is {first_line[:80]!r}",
            where=where,
            why="the first line is already data, or the columns have other names",
            fix="begin the file with the line: image,tags",
        )


def _split_tags(cell: str) -> tuple[str, ...]:
    """A cell with ; | or commas may hold names with spaces; otherwise spaces separate."""
    marks = [mark for mark in ";|," if mark in cell]
    for mark in marks:
        cell = cell.replace(mark, ";")
    parts = cell.split(";") if marks else cell.split()
    return tuple(part.strip() for part in parts if part.strip())


def _rows_of_json(path: Path, names: _Names) -> list[TaggedRow]:
    text = _read_text(path)
    try:
        # Pairs, not a dict: of two equal keys a dict would drop the first in silence.
        pairs: Any = json.loads(text, object_pairs_hook=lambda found: found)
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from error
    except RecursionError:
        raise DataError("nested too deeply", where=path, fix='write {"IMAGE": ["TAG", ...], ...}') from None
    if not text.lstrip().startswith("{"):
        raise DataError("not a JSON object", where=path, fix='write {"IMAGE": ["TAG", ...], ...}')
    rows: list[TaggedRow] = []
    for name, tags in pairs:
        where = f"{path}:{_line_of(name, text)}"
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise DataError(
                f"the tags of {name!r} are not a list of names",
                where=where,
                fix=f'write {json.dumps(name)}: ["TAG", ...]',
            )
        rows.append(TaggedRow(names.find(name, where), tuple(tag.strip() for tag in tags if tag.strip()), where))
    return rows


def _line_of(key: str, text: str) -> int:
    place = max(text.rfind(json.dumps(key)), text.rfind(json.dumps(key, ensure_ascii=False)), 0)
    return text.count("\n", 0, place) + 1


def _rows_of_class_folders(image_root: Path, images: Mapping[str, Path]) -> list[TaggedRow]:
    inside = {image_id: path.relative_to(image_root).parts for image_id, path in images.items()}
    loose = [images[image_id] for image_id, parts in inside.items() if len(parts) == 1]
    if len(loose) == len(images):
        raise DataError(
            "no tags: neither tags.csv nor tags.json, and no folder per class",
            where=image_root,
            fix="write tags.csv with the header image,tags and one line an image, such as photo.jpg,cat dog",
        )
    if loose:
        raise DataError(
            f"{len(loose)} images lie outside the class folders",
            where=loose[0],
            why="the folders below were taken for classes, because there is no tags.csv",
            fix="move them into a class folder, or write tags.csv",
        )
    return [TaggedRow(image_id, (_text(parts[0]),), str(images[image_id])) for image_id, parts in inside.items()]


def _with_known_tags(row: TaggedRow, classes: tuple[str, ...], classes_path: Path, allow_negative: bool) -> TaggedRow:
    joined = " ".join(row.tags)
    if joined in classes:  # one name with spaces
        return TaggedRow(row.id, (joined,), row.where)
    if not row.tags and not allow_negative:
        raise DataError(
            f"image {row.id!r} has no tags",
            where=row.where,
            why="a forgotten tag, or an image that shows none of the classes",
            fix="add its tags or remove the line; use allow_negative if images without any class are meant",
        )
    for tag in row.tags:
        check_tag(tag, classes, classes_path, row.where)
    return row


def check_tag(tag: str, classes: Sequence[str], listed_in: object, where: str) -> None:
    """Refuses a tag that is no class, and offers the nearest name."""
    if tag not in classes:
        raise DataError(
            f"unknown tag {tag!r}",
            where=where,
            why=_nearest(tag, classes) or f"it is not among the {len(classes)} classes in {listed_in}",
            fix=f"correct the tag, or add it to {listed_in}",
        )


def _read_splits(
    root: Path, names: _Names, tagged: Sequence[str], source: Path
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The ids of train and val. Without train.txt, every image that val.txt does not list is for training."""
    known = set(tagged)
    train = _read_list(root / "train.txt", names, known, source)
    val = _read_list(root / "val.txt", names, known, source) or {}
    if train is None:
        return tuple(image_id for image_id in tagged if image_id not in val), tuple(val)
    for image_id in val:
        if image_id in train:
            raise DataError(
                f"image {image_id!r} is in both train.txt and val.txt",
                where=val[image_id],
                why=f"also at {train[image_id]}; scores on images that were trained on mean nothing",
                fix="remove it from one of the lists",
            )
    return tuple(train), tuple(val)


def _read_list(path: Path, names: _Names, tagged: set[str], source: Path) -> dict[str, str] | None:
    """Image id -> place in the list, or None if there is no such list."""
    if not path.is_file():
        return None
    places: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        image_id = names.find(line, where)
        if image_id in places:
            raise DataError(f"image {image_id!r} is listed twice", where=where, why=f"first at {places[image_id]}")
        if image_id not in tagged:
            raise DataError(f"image {image_id!r} has no line in {source.name}", where=where, fix=f"add it to {source}")
        places[image_id] = where
    if not places:
        raise DataError("the list is empty", where=path, fix="write one image id a line, or remove the file")
    return places


def _find_masks(root: Path, ids: Iterable[str]) -> dict[str, Path]:
    masks = {image_id: root / MASK_FOLDER / f"{image_id}.png" for image_id in ids}
    return {image_id: path for image_id, path in masks.items() if path.is_file()}


def _check_mask_sizes(masks: Mapping[str, Path], images: Mapping[str, Path]) -> None:
    for image_id, path in masks.items():
        _check_mask_size(path, images[image_id])


def _check_mask_size(mask: Path, image: Path) -> None:
    found, expected = mask_size(mask), image_size(image)
    if found != expected:
        turned = found == image_size(image, raw_orientation=True)
        raise MaskError(
            f"the mask is {found[1]} x {found[0]} px, its image {expected[1]} x {expected[0]} px",
            where=mask,
            why="the mask was drawn on the image as stored, without its EXIF orientation"
            if turned
            else "the mask belongs to another image or was resized",
            fix=f"{'turn' if turned else 'redraw'} the mask to fit {image}",
        )


def _left_out(
    images: Mapping[str, Path],
    rows: Mapping[str, TaggedRow],
    train: Sequence[str],
    val: Sequence[str],
    source: Path,
) -> tuple[str, ...]:
    untagged = [image_id for image_id in images if image_id not in rows]
    listed = {*train, *val}
    unlisted = [image_id for image_id in rows if image_id not in listed]
    warnings = []
    if untagged:
        warnings.append(f"{len(untagged)} images have no line in {source} and are left out, such as {untagged[0]!r}")
    if unlisted:
        warnings.append(f"{len(unlisted)} tagged images are in no list and are left out, such as {unlisted[0]!r}")
    return tuple(warnings)


def _everywhere(train: TaggedImages) -> tuple[str, ...]:
    return tuple(
        f"every training image has the class {train.classes[c]!r}: it cannot be told apart from the background"
        for c in np.flatnonzero(np.all(train.labels.present, axis=0))
    )


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text file, without their ends; a last line needs none."""
    # Not splitlines(): it also splits at form feeds and U+2028, and the line numbers would be wrong.
    return [line.removesuffix("\r") for line in _read_text(path).split("\n")]


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{data[error.start]:02x}",
            where=f"{path}:{data.count(bytes([10]), 0, error.start) + 1}",
            why="saved by a spreadsheet or editor in another encoding",
            fix="save it again as UTF-8 ('CSV UTF-8' in a spreadsheet)",
        ) from error


def _nearest(name: str, known: Iterable[str]) -> str | None:
    lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(name.strip().lower(), lower, n=1)
    return f"a misspelling of {lower[found[0]]!r}" if found else None


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
