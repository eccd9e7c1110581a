"""Reading a folder: each layout, and for each thing that can be wrong one message with its file and line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sccam.data import open_dataset, read_folder
from sccam.data.checks import check_cluster_counts, validate_masks
from sccam.data.masks import write_mask
from sccam.errors import DataError, ImageError, MaskError
from sccam.structures import Dataset, TaggedImages

NAMES = ("a.png", "b.png", "c.png", "d.png")
TAGS = "image,tags\na.png,cat\nb.png,dog\nc.png,cat dog\nd.png,dog\n"


def draw(path: Path, size: tuple[int, int] = (6, 4), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        draw(tmp_path / "images" / name)
    (tmp_path / "tags.csv").write_text(TAGS)
    return tmp_path


def tags_of(part: TaggedImages) -> dict[str, list[str]]:
    rows = zip(part.ids, part.labels.present, strict=True)
    return {image_id: [part.classes[c] for c in np.flatnonzero(row)] for image_id, row in rows}


EXPECTED = {"a": ["cat"], "b": ["dog"], "c": ["cat", "dog"], "d": ["dog"]}


def refused(root: Path, message: str, where: str, **options: Any) -> str:
    """The whole text of the DataError that reading `root` raises; `where` is relative to `root`."""
    with pytest.raises(DataError) as caught:
        read_folder(root, **options)
    assert message in caught.value.what
    assert caught.value.where == str(root / where)
    return str(caught.value)


# Layouts


def test_tags_csv_is_read(root: Path) -> None:
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog") and tags_of(dataset.train) == EXPECTED
    assert dataset.train.paths[0] == root / "images" / "a.png"
    assert len(dataset.val) == 0 and dataset.masks.paths == {} and dataset.warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + TAGS,
        TAGS.replace("\n", "\r\n"),
        TAGS.rstrip("\n"),
        TAGS.replace("cat dog", "cat;dog"),
        TAGS.replace("cat dog", "cat|dog"),
        TAGS.replace("cat dog", '"cat, dog"'),
        TAGS.replace(",", ";"),
        TAGS.replace(",", "\t"),
        TAGS.replace("image,tags", "Image, Tags").replace("b.png", ' "b.png"'.strip()),
        TAGS.replace("a.png", "images/a.png").replace("b.png", "b").replace("c.png", "./c.png"),
        TAGS.replace("b.png,dog", "\n\nb.png,dog"),
    ],
)
def test_the_ways_in_which_tools_write_csv_are_read(root: Path, text: str) -> None:
    (root / "tags.csv").write_bytes(text.encode())
    assert tags_of(read_folder(root).train) == EXPECTED


def test_tags_json_is_read(root: Path) -> None:
    (root / "tags.csv").unlink()
    (root / "tags.json").write_text(json.dumps({f"{name}.png": tags for name, tags in EXPECTED.items()}))
    assert tags_of(read_folder(root).train) == EXPECTED


@pytest.mark.parametrize("below", ["", "images"])
def test_one_folder_per_class_is_read(tmp_path: Path, below: str) -> None:
    for name in ("cat/1.png", "cat/2.png", "traffic light/1.png"):
        draw(tmp_path / below / name)
    train = read_folder(tmp_path).train
    assert tags_of(train) == {"cat/1": ["cat"], "cat/2": ["cat"], "traffic light/1": ["traffic light"]}


def test_images_may_lie_in_the_root(tmp_path: Path) -> None:
    for name in NAMES:
        draw(tmp_path / name)
    (tmp_path / "tags.csv").write_text(TAGS)
    assert tags_of(read_folder(tmp_path).train) == EXPECTED


def test_classes_txt_gives_the_order(root: Path) -> None:
    (root / "classes.txt").write_text("dog\ncat\n")
    dataset = read_folder(root)
    assert dataset.classes == ("dog", "cat") and tags_of(dataset.train)["c"] == ["dog", "cat"]


def test_class_names_may_hold_spaces(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ntraffic light\n")
    (root / "tags.csv").write_text("image,tags\na.png,cat\nb.png,traffic light\nc.png,cat;traffic light\n")
    assert tags_of(read_folder(root).train)["c"] == ["cat", "traffic light"]


def test_lists_split_the_images(root: Path) -> None:
    (root / "val.txt").write_text("b.png\n")
    dataset = read_folder(root)
    assert dataset.train.ids == ("a", "c", "d") and dataset.val.ids == ("b",)
    (root / "train.txt").write_text("d\na")  # the last line has no newline
    dataset = read_folder(root)
    assert dataset.train.ids == ("d", "a") and dataset.val.ids == ("b",)
    assert dataset.warnings == ("1 tagged images are in no list and are left out, such as 'c'",)
    (root / "val.txt").unlink()
    assert read_folder(root).val.ids == ()


def test_two_files_of_one_name_keep_their_suffixes(tmp_path: Path) -> None:
    for name in ("x/1.jpg", "y/1.jpg", "y/1.png", "y/1.jpg.png", "x/2.png"):
        draw(tmp_path / name)
    (tmp_path / "tags.csv").write_text("image,tags\nx/1.jpg,p\ny/1.jpg,q\ny/1.png,q\ny/1.jpg.png,q\nx/2,p\n")
    dataset = read_folder(tmp_path)
    assert dataset.train.ids == ("x/1", "y/1.jpg", "y/1.png", "y/1.jpg.png", "x/2")
    assert dataset.train.paths[2] == tmp_path / "y" / "1.png"


def test_untagged_images_are_left_out_with_a_warning(root: Path) -> None:
    draw(root / "images" / "e.png")
    assert "1 images have no line" in read_folder(root).warnings[0]


def test_names_that_are_not_utf8_get_a_printable_id(tmp_path: Path) -> None:
    for name in (b"cat/\xff.png", "dog/猫 1.png".encode()):
        path = Path(str(tmp_path)) / name.decode("utf-8", "surrogateescape")
        draw(path)
    ids = read_folder(tmp_path).train.ids
    assert ids == ("cat/\\xff", "dog/猫 1")
    json.dumps(ids, ensure_ascii=False).encode()


def test_a_link_that_points_upwards_is_not_followed(root: Path) -> None:
    (root / "images" / "loop").symlink_to(root)
    assert len(read_folder(root).train) == 4


def test_masks_are_found_and_do_not_count_as_images(tmp_path: Path) -> None:
    for name in NAMES:
        draw(tmp_path / name)
    (tmp_path / "tags.csv").write_text(TAGS)
    write_mask(tmp_path / "masks" / "a.png", np.ones((4, 6), np.uint8))
    dataset = read_folder(tmp_path)
    assert dataset.masks.paths == {"a": tmp_path / "masks" / "a.png"} and dataset.warnings == ()


def test_trainers_cannot_reach_masks(root: Path) -> None:
    write_mask(root / "masks" / "a.png", np.ones((4, 6), np.uint8))
    train = read_folder(root).train
    assert {field.name for field in dataclasses.fields(train)} == {"split", "paths", "labels"}
    assert {field.name for field in dataclasses.fields(train.labels)} == {"present", "ids", "classes"}
    assert not any("masks" in str(path.relative_to(root)) for path in train.paths)
    assert not hasattr(train, "__dict__")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_tags_written_as_csv_come_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = tmp_path_factory.mktemp("csv")
    stems = data.draw(st.lists(st.text(string.ascii_letters + " ,;'\"é-", min_size=1, max_size=8), min_size=2,
                               max_size=6, unique_by=lambda stem: stem.strip()))  # fmt: skip
    classes = ["cat", "dog", "é", "x-1"]
    tags = {f"_{stem}_": data.draw(st.sets(st.sampled_from(classes), min_size=1)) for stem in stems}
    tags["all"] = set(classes)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator=data.draw(st.sampled_from(["\n", "\r\n"])))
    writer.writerow(["image", "tags"])
    for stem, own in tags.items():
        (root / f"{stem}.png").touch()
        writer.writerow([f"{stem}.png", data.draw(st.sampled_from([" ", ";", "|", ", "])).join(sorted(own))])
    (root / "tags.csv").write_bytes(text.getvalue().encode())
    assert {name: set(own) for name, own in tags_of(read_folder(root).train).items()} == tags


# What can be wrong


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "no", "no such folder", "")
    refused(tmp_path, "no images", "")


def test_images_without_any_tags_are_refused_and_told_the_format(tmp_path: Path) -> None:
    draw(tmp_path / "a.png")
    assert "header image,tags" in refused(tmp_path, "no tags", "")


def test_an_image_outside_the_class_folders_is_refused(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png", "2.png"):
        draw(tmp_path / name)
    refused(tmp_path, "1 images lie outside the class folders", "2.png")


@pytest.mark.parametrize(
    ("old", "new", "message", "line"),
    [
        ("c.png,cat dog", "c.png,cat dgo", "unknown tag 'dgo'", 4),
        ("d.png,dog", "a.png,dog", "image 'a' is listed twice", 5),
        ("b.png", "bb.png", "no image 'bb.png'", 3),
        ("a.png,cat\n", "a.png,\n", "image 'a' has no tags", 2),
        ("image,tags\n", "", "the header is missing", 1),
        ("image,tags", "file,label", "the header is missing", 1),
        ("cat dog", "cat,dog", "3 fields, expected 2", 4),
        ("b.png,dog", "b.png", "1 fields, expected 2", 3),
        ("cat dog", '"cat dog', "not valid CSV", 4),
    ],
)
def test_a_wrong_line_in_tags_csv_is_named(root: Path, old: str, new: str, message: str, line: int) -> None:
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "tags.csv").write_text(TAGS.replace(old, new, 1))
    text = refused(root, message, f"tags.csv:{line}")
    assert "fix" in text or "likely" in text


def test_the_nearest_name_is_offered(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\n")
    (root / "tags.csv").write_text(TAGS.replace("cat dog", "cat Dog"))
    assert "a misspelling of 'dog'" in refused(root, "unknown tag 'Dog'", "tags.csv:4")


def test_a_duplicate_tells_both_lines(root: Path) -> None:
    (root / "tags.csv").write_text(TAGS + "a.png,dog\n")
    assert f"first at {root / 'tags.csv'}:2" in refused(root, "listed twice", "tags.csv:6")


def test_bytes_that_are_not_utf8_are_named_with_their_line(root: Path) -> None:
    (root / "tags.csv").write_bytes(TAGS.replace("cat dog", "katze hündin").encode("latin-1"))
    refused(root, "not UTF-8: byte 0xfc", "tags.csv:4")
    (root / "tags.csv").write_bytes(TAGS.encode("utf-16"))
    refused(root, "not UTF-8", "tags.csv:1")


@pytest.mark.parametrize("text", ["", "image,tags\n"])
def test_an_empty_tag_file_is_refused(root: Path, text: str) -> None:
    (root / "tags.csv").write_text(text)
    with pytest.raises(DataError, match=r"header is missing|no image is listed"):
        read_folder(root)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ('{\n"a": ["cat"],\n"b": "dog"}', "the tags of 'b' are not a list", ":3"),
        ('{\n"a": ["cat"],\n"a": ["dog"]}', "listed twice", ":3"),
        ('{\n"a": ["cat"],\n"x": ["dog"]}', "no image 'x'", ":3"),
        ('{\n"a": ["cat"],\n"b"', "not valid JSON", ":3"),
        ("[1]", "not a JSON object", ""),
        ("[" * 100_000, "nested too deeply", ""),
    ],
)
def test_a_wrong_tags_json_is_named(root: Path, text: str, message: str, line: str) -> None:
    (root / "tags.csv").unlink()
    (root / "tags.json").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_folder(root)
    assert str(caught.value.where).startswith(f"{root / 'tags.json'}{line}")


def test_two_tag_files_are_refused_unless_one_is_named(root: Path) -> None:
    (root / "tags.json").write_text('{"a": ["cat"], "b": ["dog"]}')
    refused(root, "both tags.csv and tags.json", "")
    assert len(read_folder(root, tags_file=root / "tags.json").train) == 2


def test_images_without_tags_need_allow_negative(root: Path) -> None:
    (root / "tags.csv").write_text(TAGS.replace("d.png,dog", "d.png,"))
    refused(root, "has no tags", "tags.csv:5")
    assert tags_of(read_folder(root, allow_negative=True).train)["d"] == []


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("cat\ndog\ncat\n", "class 'cat' is listed twice", ":3"),
        ("background\ncat\ndog\n", "background is not a class", ":1"),
        ("cat\ndog:big\n", "labelmap.txt cannot hold", ":2"),
        ("\n", "no class names", ""),
    ],
)
def test_a_wrong_class_list_is_named(root: Path, text: str, message: str, line: str) -> None:
    (root / "classes.txt").write_text(text)
    refused(root, message, f"classes.txt{line}")


def test_a_class_never_seen_in_training_is_refused(root: Path) -> None:
    (root / "classes.txt").write_text("cat\ndog\nemu\n")
    refused(root, "no training image has the class 'emu'", "tags.csv")
    (root / "classes.txt").unlink()
    (root / "train.txt").write_text("b\nd\n")
    refused(root, "no training image has the class 'cat'", "tags.csv")


def test_one_class_alone_is_refused_but_not_beside_negatives(root: Path) -> None:
    (root / "tags.csv").write_text("image,tags\na.png,cat\nb.png,cat\n")
    refused(root, "nothing to tell it apart from", "tags.csv")
    (root / "tags.csv").write_text("image,tags\na.png,cat\nb.png,\n")
    assert read_folder(root, allow_negative=True).classes == ("cat",)


def test_a_class_in_every_image_is_warned_about(root: Path) -> None:
    (root / "tags.csv").write_text("image,tags\na.png,cat dog\nb.png,cat\n")
    assert any("every training image has the class 'cat'" in text for text in read_folder(root).warnings)


def test_more_classes_than_a_mask_can_hold_are_refused(root: Path) -> None:
    (root / "tags.csv").write_text("image,tags\na.png," + " ".join(f"c{n}" for n in range(255)) + "\n")
    refused(root, "255 classes; at most 254", "tags.csv")


@pytest.mark.parametrize(
    ("train", "val", "message", "where"),
    [
        ("a\nbb\n", "", "no image 'bb'", "train.txt:2"),
        ("a\nb\n", "c\nb\n", "in both train.txt and val.txt", "val.txt:2"),
        ("a\nb\na.png\n", "", "image 'a' is listed twice", "train.txt:3"),
        ("a\ne\n", "", "image 'e' has no line in tags.csv", "train.txt:2"),
        ("\n", "", "the list is empty", "train.txt"),
    ],
)
def test_a_wrong_list_is_named(root: Path, train: str, val: str, message: str, where: str) -> None:
    draw(root / "images" / "e.png")
    (root / "train.txt").write_text(train)
    if val:
        (root / "val.txt").write_text(val)
    refused(root, message, where)


def test_a_mask_of_another_size_is_refused(root: Path) -> None:
    write_mask(root / "masks" / "b.png", np.ones((4, 7), np.uint8))
    refused(root, "the mask is 7 x 4 px, its image 6 x 4 px", "masks/b.png")


def test_a_mask_of_the_raw_orientation_is_told_so(root: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    draw(root / "images" / "b.png", exif=turned)
    write_mask(root / "masks" / "b.png", np.ones((6, 4), np.uint8))
    read_folder(root)
    write_mask(root / "masks" / "b.png", np.ones((4, 6), np.uint8))
    assert "EXIF orientation" in refused(root, "the mask is 6 x 4 px", "masks/b.png")


def test_a_broken_image_with_a_mask_is_an_image_error(root: Path) -> None:
    write_mask(root / "masks" / "b.png", np.ones((4, 6), np.uint8))
    (root / "images" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(ImageError):
        read_folder(root)


def with_masks(root: Path, **indices: list[int]) -> Dataset:
    for name, row in indices.items():
        write_mask(root / "masks" / f"{name}.png", np.array([row] * 4, np.uint8))
    return read_folder(root)


def test_every_mask_is_read_and_the_first_wrong_one_named(root: Path) -> None:
    good, bad = [0, 0, 1, 2, 255, 0], [0, 0, 1, 3, 7, 0]
    assert validate_masks(with_masks(root, a=good, b=good)) == ()
    with pytest.raises(MaskError, match=r"values 3, 7 are no class; .*and 1 more masks are wrong") as caught:
        validate_masks(with_masks(root, a=good, b=bad, c=bad))
    assert caught.value.where == str(root / "masks" / "b.png")


def test_one_unlabelled_object_is_a_warning_and_a_binary_export_is_an_error(root: Path) -> None:
    good, binary = [0, 0, 1, 2, 255, 0], [0, 0, 255, 255, 0, 0]
    (warning,) = validate_masks(with_masks(root, a=good, b=good, c=binary))
    assert "c.png" in warning
    with pytest.raises(MaskError, match="0/255 binary mask"):
        validate_masks(with_masks(root, a=binary, b=good, c=binary))


def test_classes_with_fewer_images_than_clusters_are_named(root: Path) -> None:
    dataset = read_folder(root)
    assert check_cluster_counts(dataset, 2) == ()
    (warning,) = check_cluster_counts(dataset, 3)
    assert "class 'cat' has 2 training images, fewer than K = 3" in warning
