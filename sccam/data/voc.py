"""PASCAL VOC 2012 as it is unpacked, with the train_aug list that the paper trains on.

    ROOT/JPEGImages/ID.jpg  Annotations/ID.xml  ImageSets/Segmentation/{train_aug,train,val}.txt
    ROOT/SegmentationClass/ID.png     masks of VOC itself
    ROOT/SegmentationClassAug/ID.png  masks of SBD, for the images that VOC has none of

Tags are the object names of the annotations, those marked difficult included, as in the authors' `cls_labels.npy`.
Lists hold bare ids, or the authors' `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png` lines.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.parsers import expat

from sccam.data.checks import check_classes, check_tag
from sccam.data.images import IMAGE_SUFFIXES
from sccam.data.tags import TaggedRow, tagged_images
from sccam.data.text import read_lines
from sccam.errors import DataError
from sccam.structures import Dataset, TaggedImages, TrueMasks

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
TRAIN_AUG_IMAGES = 10_582  # the paper's text says 10,528, a digit swap
TRAIN_AUG_CLASS_SIZES = (
    590, 504, 705, 468, 714, 393, 1150, 1005, 1228, 267, 613, 1188, 445, 492, 4155, 522, 300, 649, 503, 567,
)  # fmt: skip  # images of each class in the authors' train_aug list
MASK_FOLDERS = ("SegmentationClass", "SegmentationClassAug")  # the first that has the image's mask is taken


def read_voc(
    root: Path | str,
    *,
    train_list: str = "train_aug",
    val_list: str | None = "val",
    classes: Sequence[str] = VOC_CLASSES,
    allow_negative: bool = False,
) -> Dataset:
    """The images, tags and masks of a VOC folder.

    Args:
        root: the folder that holds JPEGImages, usually VOCdevkit/VOC2012.
        train_list: name of a list in ImageSets/Segmentation; a missing train_aug is replaced by train, with a warning.
        val_list: the same for validation; None for no validation images.
        classes: class names in mask order, for data in VOC's layout with other classes.
        allow_negative: accept images without any object.

    Raises:
        DataError: the first thing that is wrong, with file and line.
    """
    root = Path(root)
    classes = tuple(classes)
    lists = root / "ImageSets" / "Segmentation"
    warnings: list[str] = []
    if train_list == "train_aug" and not (lists / "train_aug.txt").is_file() and (lists / "train.txt").is_file():
        train_list = "train"
        warnings.append(f"{lists / 'train_aug.txt'} is missing: training on train.txt, a seventh of the images")

    files = _image_files(root / "JPEGImages")
    train_rows = _read_rows(root, lists / f"{train_list}.txt", files, classes, allow_negative)
    val_rows = _read_rows(root, lists / f"{val_list}.txt", files, classes, allow_negative) if val_list else {}
    for image_id in val_rows.keys() & train_rows.keys():
        raise DataError(
            f"image {image_id!r} is in both {train_list}.txt and {val_list}.txt",
            where=lists / f"{val_list}.txt",
            why="the list of all images (trainval) was given for training",
            fix="use train_aug or train",
        )
    train = tagged_images("train", tuple(train_rows), files, train_rows, classes)
    val = tagged_images("val", tuple(val_rows), files, val_rows, classes)
    check_classes(train, lists / f"{train_list}.txt")

    if train_list == "train_aug" and classes == VOC_CLASSES:
        warnings += train_aug_differences(train)
    masks = _find_masks(root, [*train_rows, *val_rows])
    counts = {name: sum(path.parent.name == name for path in masks.values()) for name in MASK_FOLDERS}
    if counts["SegmentationClassAug"]:
        warnings.append(
            f"{counts['SegmentationClass']} masks are VOC's own, {counts['SegmentationClassAug']} come from "
            "SegmentationClassAug; where both exist the original is taken, which marks object borders as 255"
        )
    return Dataset(root, train, val, TrueMasks(masks, classes), tuple(warnings))


def train_aug_differences(train: TaggedImages) -> list[str]:
    """What sets a train_aug list apart from the authors', as warnings: figures would not be comparable."""
    sizes = train.labels.present.sum(axis=0).tolist()
    other = [
        f"{name} {found} instead of {expected}"
        for name, found, expected in zip(train.classes, sizes, TRAIN_AUG_CLASS_SIZES, strict=True)
        if found != expected
    ]
    if len(train) == TRAIN_AUG_IMAGES and not other:
        return []
    shown = ", ".join(other[:3]) + (", ..." if len(other) > 3 else "")
    return [
        f"train_aug has {len(train)} images, the authors' has {TRAIN_AUG_IMAGES}; images by class: {shown or 'equal'}"
    ]


def object_names(annotation: Path | str) -> tuple[str, ...]:
    """The names of the objects in a VOC annotation, difficult ones included, in the order of the file.

    Document types are refused: VOC needs none, and entities can expand to gigabytes or name other files.

    Raises:
        DataError: the file is missing, is not XML, or declares a document type.
    """
    annotation = Path(annotation)
    open_tags: list[str] = []
    names: list[str] = []

    def refuse(*_: object) -> None:
        raise DataError("the annotation declares a document type", where=annotation, fix="remove its <!DOCTYPE>")

    def start(tag: str, _: dict[str, str]) -> None:
        open_tags.append(tag)
        if _is_object_name(open_tags):
            names.append("")

    def text(piece: str) -> None:
        if _is_object_name(open_tags):
            names[-1] += piece

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = lambda _: open_tags.pop()
    parser.CharacterDataHandler = text
    try:
        parser.Parse(annotation.read_bytes(), True)
    except FileNotFoundError:
        raise DataError("the annotation is missing", where=annotation, fix="unpack the archive again") from None
    except (expat.ExpatError, ValueError, LookupError) as error:
        line = getattr(error, "lineno", parser.CurrentLineNumber)
        raise DataError(f"not valid XML: {error}", where=f"{annotation}:{line}") from error
    return tuple(name.strip() for name in names)


def _is_object_name(open_tags: Sequence[str]) -> bool:
    return open_tags[1:] == ["object", "name"]  # persons also have <object><part><name>head


def _image_files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(
            "no such folder", where=folder, fix="give the folder that holds JPEGImages, such as VOCdevkit/VOC2012"
        )
    names = sorted(entry.name for entry in os.scandir(folder))
    return {Path(name).stem: folder / name for name in names if Path(name).suffix.lower() in IMAGE_SUFFIXES}


def _read_rows(
    root: Path, path: Path, files: dict[str, Path], classes: tuple[str, ...], allow_negative: bool
) -> dict[str, TaggedRow]:
    if not path.is_file():
        raise DataError(
            "the list is missing", where=path, why="its name is misspelt, or the devkit is incomplete",
            fix="lists there are: " + (", ".join(sorted(found.stem for found in path.parent.glob("*.txt"))) or "none"),
        )  # fmt: skip
    rows: dict[str, TaggedRow] = {}
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        image_id = _image_id(line)
        if image_id in rows:
            raise DataError(f"image {image_id!r} is listed twice", where=where, why=f"first at {rows[image_id].where}")
        if image_id not in files:
            raise DataError(f"no image {image_id!r} in JPEGImages", where=where, fix="unpack the archive again")
        rows[image_id] = TaggedRow(image_id, _tags(root, image_id, classes, allow_negative, where), where)
    if not rows:
        raise DataError("the list is empty", where=path, fix="write one image id a line")
    return rows


def _image_id(line: str) -> str:
    name = line.split()[0].rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def _tags(root: Path, image_id: str, classes: tuple[str, ...], allow_negative: bool, where: str) -> tuple[str, ...]:
    annotation = root / "Annotations" / f"{image_id}.xml"
    try:
        tags = tuple(dict.fromkeys(object_names(annotation)))
    except DataError as error:
        raise DataError(error.what, where=error.where, why=error.why or f"listed at {where}", fix=error.fix) from error
    for tag in tags:
        check_tag(tag, classes, "the class list", str(annotation))
    if not tags and not allow_negative:
        raise DataError(
            f"image {image_id!r} has no object",
            where=annotation,
            why=f"listed at {where}",
            fix="remove it from the list; use allow_negative if images without any class are meant",
        )
    return tags


def _find_masks(root: Path, ids: Iterable[str]) -> dict[str, Path]:
    masks: dict[str, Path] = {}
    for image_id in ids:
        candidates = [root / name / f"{image_id}.png" for name in MASK_FOLDERS]
        if path := next(filter(Path.is_file, candidates), None):
            masks[image_id] = path
    return masks
