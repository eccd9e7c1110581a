"""Reading VOC: both kinds of list, both mask folders, tags from the annotations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam.data import open_dataset, read_voc
from sccam.data.masks import write_mask
from sccam.data.voc import (
    TRAIN_AUG_CLASS_SIZES,
    TRAIN_AUG_IMAGES,
    VOC_CLASSES,
    object_names,
    train_aug_differences,
)
from sccam.errors import DataError
from sccam.structures import LabelSet, TaggedImages

OBJECT = "<object><name>{}</name><difficult>{}</difficult><part><name>head</name></part></object>"
CLASSES = ("cat", "dog")


def annotation(*names: str, difficult: int = 0) -> str:
    objects = "".join(OBJECT.format(name, difficult) for name in names)
    return f"<annotation><folder>VOC2012</folder>{objects}</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
        (tmp_path / folder).mkdir(parents=True)
    for n, names in enumerate([("cat",), ("dog", "dog"), ("cat", "dog"), ("dog",)], 1):
        Image.new("RGB", (6, 4)).save(tmp_path / "JPEGImages" / f"2007_{n:06d}.jpg")
        (tmp_path / "Annotations" / f"2007_{n:06d}.xml").write_text(annotation(*names, difficult=n % 2))
    write(tmp_path, "train_aug", "2007_000001\n2007_000002\n2007_000003")
    write(tmp_path, "val", "2007_000004\n")
    return tmp_path


def write(root: Path, name: str, text: str) -> None:
    (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text(text)


def test_the_classes_are_twenty_in_alphabetical_order() -> None:
    assert len(VOC_CLASSES) == 20 and list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_bare_ids_are_read_and_the_last_line_needs_no_newline(root: Path) -> None:
    dataset = read_voc(root, classes=CLASSES)
    assert dataset.train.ids == ("2007_000001", "2007_000002", "2007_000003") and dataset.val.ids == ("2007_000004",)
    assert dataset.train.labels.present.tolist() == [[True, False], [False, True], [True, True]]


def test_a_voc_folder_is_recognised_and_has_its_twenty_classes(root: Path) -> None:
    (root / "Annotations" / "2007_000001.xml").write_text(annotation(*VOC_CLASSES))
    dataset = open_dataset(root)
    assert dataset.classes == VOC_CLASSES and dataset.train.labels.present[0].all()


def test_the_lists_of_the_authors_are_read_as_the_same(root: Path) -> None:
    bare = read_voc(root, classes=CLASSES)
    line = "/JPEGImages/2007_{0:06d}.jpg /SegmentationClassAug/2007_{0:06d}.png"
    write(root, "train_aug", "\r\n".join(line.format(n) for n in (1, 2, 3)))
    write(root, "val", "/JPEGImages/2007_000004.jpg")
    pairs = read_voc(root, classes=CLASSES)
    assert (pairs.train.ids, pairs.train.paths, pairs.val.ids) == (bare.train.ids, bare.train.paths, bare.val.ids)


def test_original_masks_are_preferred_and_counted(root: Path) -> None:
    mask = np.ones((4, 6), np.uint8)
    for folder, n in [("SegmentationClass", 1), ("SegmentationClassAug", 1), ("SegmentationClassAug", 2)]:
        write_mask(root / folder / f"2007_{n:06d}.png", mask)
    dataset = read_voc(root, classes=CLASSES)
    assert [path.parent.name for path in dataset.masks.paths.values()] == ["SegmentationClass", "SegmentationClassAug"]
    assert "1 masks are VOC's own, 1 come from SegmentationClassAug" in dataset.warnings[0]


def test_a_missing_train_aug_falls_back_to_train_with_a_warning(root: Path) -> None:
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train_aug.txt").rename(lists / "train.txt")
    dataset = read_voc(root, classes=CLASSES)
    assert len(dataset.train) == 3 and "training on train.txt" in dataset.warnings[0]


def test_difficult_objects_count_and_parts_do_not(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(annotation("dog", "cat", difficult=1))
    assert object_names(tmp_path / "a.xml") == ("dog", "cat")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_document_types_are_refused_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "cat">]>' + annotation("&b;")
    (tmp_path / "a.xml").write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match="document type"):
        object_names(tmp_path / "a.xml")


def test_broken_xml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("<annotation>\n<object>\n</annotation>")
    with pytest.raises(DataError, match="not valid XML") as caught:
        object_names(tmp_path / "a.xml")
    assert caught.value.where == f"{tmp_path / 'a.xml'}:3"


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("2007_000001\n2007_000009\n", "no image '2007_000009'", ":2"),
        ("2007_000001\n2007_000001\n", "listed twice", ":2"),
        ("\n", "the list is empty", ""),
    ],
)
def test_a_wrong_line_in_a_list_is_named(root: Path, text: str, message: str, line: str) -> None:
    write(root, "train_aug", text)
    with pytest.raises(DataError, match=message) as caught:
        read_voc(root, classes=CLASSES)
    assert caught.value.where == f"{root / 'ImageSets' / 'Segmentation' / 'train_aug.txt'}{line}"


def test_a_missing_list_names_the_lists_there_are(root: Path) -> None:
    with pytest.raises(DataError, match="lists there are: train_aug, val"):
        read_voc(root, classes=CLASSES, train_list="trian")


def test_an_unknown_object_an_empty_and_a_missing_annotation_are_named(root: Path) -> None:
    path = root / "Annotations" / "2007_000002.xml"
    for text, message in [(annotation("dgo"), "unknown tag 'dgo'"), (annotation(), "has no object")]:
        path.write_text(text)
        with pytest.raises(DataError, match=message) as caught:
            read_voc(root, classes=CLASSES)
        assert caught.value.where == str(path)
    path.unlink()
    with pytest.raises(DataError, match="the annotation is missing"):
        read_voc(root, classes=CLASSES)


def test_an_image_in_both_lists_is_refused(root: Path) -> None:
    write(root, "val", "2007_000001\n")
    with pytest.raises(DataError, match=r"in both train_aug\.txt and val\.txt"):
        read_voc(root, classes=CLASSES)


def test_the_folder_above_is_told_which_one_to_give(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    above = tmp_path_factory.mktemp("VOCdevkit")
    (above / "VOC2012").symlink_to(root)
    with pytest.raises(DataError, match=r"give .*VOC2012"):
        open_dataset(above)


def test_the_authors_class_sizes_are_16458_image_and_class_pairs() -> None:
    assert sum(TRAIN_AUG_CLASS_SIZES) == 16_458
    assert len(TRAIN_AUG_CLASS_SIZES) == len(VOC_CLASSES)
    assert min(TRAIN_AUG_CLASS_SIZES) == TRAIN_AUG_CLASS_SIZES[VOC_CLASSES.index("cow")] == 267


def test_a_train_aug_list_of_the_authors_sizes_is_silent_and_any_other_is_told() -> None:
    present = np.zeros((TRAIN_AUG_IMAGES, len(VOC_CLASSES)), bool)
    for c, size in enumerate(TRAIN_AUG_CLASS_SIZES):
        present[:size, c] = True
    ids = tuple(str(n) for n in range(TRAIN_AUG_IMAGES))
    same = TaggedImages("train", tuple(map(Path, ids)), LabelSet(present, ids, VOC_CLASSES))
    assert train_aug_differences(same) == []
    present[0, 0] = False
    (warning,) = train_aug_differences(same)
    assert "aeroplane 589 instead of 590" in warning
