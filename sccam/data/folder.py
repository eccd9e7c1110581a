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

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from sccam.data.checks import check_classes, check_mask_sizes, check_names, everywhere
from sccam.data.images import IMAGE_SUFFIXES
from sccam.data.tags import Names, TaggedRow, read_rows, tagged_images, tags_in_use, with_known_tags
from sccam.data.text import as_text, read_lines
from sccam.errors import DataError
from sccam.structures import MAX_CLASSES, Dataset, TrueMasks

MASK_FOLDER = "masks"
LONGEST_ID = 250  # [bytes] of a part; file systems allow 255, and five go to a suffix
_NOT_IMAGES = frozenset({MASK_FOLDER, "parts"})  # folders of PNGs that are no photographs


def read_folder(
    root: Path | str,
    *,
    classes_file: Path | str | None = None,
    tags_file: Path | str | None = None,
    allow_negative: bool = False,
    lists: bool = True,
) -> Dataset:
    """The images, tags and masks of a folder.

    Args:
        root: the folder, laid out as above.
        classes_file: class names in order, one a line; `ROOT/classes.txt` if it exists.
        tags_file: a CSV or JSON file; `ROOT/tags.csv` or `ROOT/tags.json` if it exists.
        allow_negative: accept images without any tag as examples of no class.
        lists: heed train.txt and val.txt; else every image is for training.

    Raises:
        DataError: the first thing that is wrong, with file and line.
    """
    root = Path(root)
    if not os.path.isdir(root):
        raise DataError("no such folder", where=root, fix="give the folder that holds the images")
    image_root = root / "images" if (root / "images").is_dir() else root
    images = find_images(image_root, _NOT_IMAGES if image_root == root else frozenset())
    classes_path = Path(classes_file) if classes_file else root / "classes.txt"
    classes = read_classes(classes_path) if classes_file or classes_path.is_file() else None

    rows, source = read_rows(root, image_root, images, tags_file)
    if classes is None:
        places = tags_in_use(rows)
        classes = tuple(sorted(places))
        check_names(classes, [places[name] for name in classes])
    rows = [with_known_tags(row, classes, classes_path, allow_negative) for row in rows]
    if len(classes) > MAX_CLASSES:
        raise DataError(
            f"{len(classes)} classes; at most {MAX_CLASSES} fit in an 8-bit mask beside background and 'ignore'",
            where=source,
            why="the tags column holds free text or file names",
            fix="merge classes, or list the ones to learn in classes.txt",
        )

    names = Names(images, image_root)
    every = tuple(row.id for row in rows)
    train_ids, val_ids = _read_splits(root, names, every, source) if lists else (every, ())
    by_id = {row.id: row for row in rows}
    _check_lengths([*train_ids, *val_ids], images)
    train = tagged_images("train", train_ids, images, by_id, classes)
    val = tagged_images("val", val_ids, images, by_id, classes)
    check_classes(train, source)
    masks = _find_masks(root, [*train_ids, *val_ids])
    check_mask_sizes(masks, images)
    return Dataset(
        root=root,
        train=train,
        val=val,
        masks=TrueMasks(masks, classes),
        warnings=(*_left_out(images, by_id, train_ids, val_ids, source), *everywhere(train)),
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
    check_names(classes, [f"{path}:{number}" for number, _ in named])
    return classes


def find_images(image_root: Path, leave_out: Collection[str] = ()) -> dict[str, Path]:
    """Image id -> file, sorted by path; two files that differ in the suffix only keep it in their ids.

    Folders of the names `leave_out` directly below `image_root` are no images, and hidden ones nowhere are.
    """
    found: list[Path] = []
    # Links to folders are not followed, so no loop is endless.
    for folder, folders, files in os.walk(image_root, onerror=_refuse_folder):
        unwanted = leave_out if Path(folder) == image_root else ()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in unwanted]
        found += [Path(folder, name) for name in files if not name.startswith(".") and _is_image(name)]
    found.sort()
    if not found:
        raise DataError(
            "no images",
            where=image_root,
            why=f"none of its files ends with {' '.join(sorted(IMAGE_SUFFIXES))}",
            fix="give the folder that holds images/ and tags.csv",
        )
    full = _made_different([as_text(path.relative_to(image_root).as_posix()) for path in found])
    stems = [name.rpartition(".")[0] for name in full]
    taken = Counter(stems) + Counter(full)  # a.png must not be the id of a.png.jpg beside a.png
    ids = [stem if taken[stem] == 1 else whole for stem, whole in zip(stems, full, strict=True)]
    return dict(zip(ids, found, strict=True))


def _made_different(names: list[str]) -> list[str]:
    """Names of files that read alike once their bytes are written out get a number behind them."""
    seen: Counter[str] = Counter()
    for n, name in enumerate(names):
        seen[name] += 1
        names[n] = name if seen[name] == 1 else f"{name}~{seen[name]}"
    return names


def _refuse_folder(error: OSError) -> None:
    raise DataError(f"the folder cannot be read: {error.strerror}", where=error.filename) from error


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _read_splits(
    root: Path, names: Names, tagged: Sequence[str], source: Path
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


def _read_list(path: Path, names: Names, tagged: set[str], source: Path) -> dict[str, str] | None:
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


def _check_lengths(ids: Sequence[str], images: Mapping[str, Path]) -> None:
    """Refuses names that would not do for the files of a run, which would fail in the middle of it."""
    for image_id in ids:
        longest = max(len(part.encode()) for part in image_id.split("/"))
        if longest > LONGEST_ID:
            raise DataError(
                f"a name of {longest} bytes is too long for the files of a run; at most {LONGEST_ID} will do",
                where=images[image_id],
                why="bytes that are no UTF-8 count four each" if "\\x" in image_id else None,
                fix="give the file a shorter name",
            )


def _find_masks(root: Path, ids: Iterable[str]) -> dict[str, Path]:
    masks = {image_id: root / MASK_FOLDER / f"{image_id}.png" for image_id in ids}
    return {image_id: path for image_id, path in masks.items() if os.path.isfile(path)}


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
