"""Tags from other programs' files: the folder that comes out trains, holds what the source said, and loses nothing."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sccam.data.folder import read_folder
from sccam.data.masks import read_mask
from sccam.data.sample import draw_sample
from sccam.errors import ConfigError, DataError, RunFolderError, SccamError
from sccam.importing import Columns, import_tags
from sccam.importing.files import ImageFiles
from sccam.labels.convert import convert
from sccam.structures import Dataset
from tests.conftest import Cli


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    draw_sample(folder, images=12)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four images in two folders, two of them with the same name."""
    for n, name in enumerate(["a/1.jpg", "a/2.jpg", "b/1.jpg", "b/3.JPG"]):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 6), (60 * n, 0, 0)).save(file, "JPEG")
    return tmp_path / "photos"


def tags_in(dataset: Dataset, part: str = "train") -> dict[str, set[str]]:
    images = getattr(dataset, part)
    return {
        id: {name for name, there in zip(images.classes, row, strict=True) if there}
        for id, row in zip(images.ids, images.labels.present, strict=True)
    }


def imported(source: Path, out: Path, **options: Any) -> dict[str, set[str]]:
    done = import_tags(source, out, **options)
    assert done.failed == 0 and done.out == out
    return tags_in(read_folder(out, allow_negative=True))


def write_csv(path: Path, *rows: Sequence[object]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_coco(path: Path, tags: Mapping[str, Sequence[str]], names: Sequence[str] = ("cat", "dog")) -> Path:
    """Boxes only, with ids that are no positions."""
    images = [{"id": 70 + n, "file_name": file, "height": 6, "width": 8} for n, file in enumerate(tags)]
    found = [(70 + n, 5 + names.index(tag)) for n, of in enumerate(tags.values()) for tag in of]
    annotations = [{"id": n, "image_id": i, "category_id": c, "bbox": [0, 0, 2, 2]} for n, (i, c) in enumerate(found)]
    categories = [{"id": 5 + n, "name": name} for n, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


# Every format, against what is known of the sample


@pytest.mark.parametrize("to", ["coco", "labelstudio", "voc"])
def test_tags_and_masks_of_a_format_are_those_of_the_sample(to: str, sample: Path, tmp_path: Path):
    """The masks in that format are all the source; their classes are the tags."""
    source = tmp_path / (to if to == "voc" else f"{to}.json")
    convert(sample / "masks", source, to, classes=sample / "classes.txt", images=sample / "images")
    truth = read_folder(sample, lists=False)
    if to == "voc":  # tags are in annotations
        for id, tags in tags_in(truth).items():
            objects = "".join(f"<object><name>{tag}</name></object>" for tag in tags)
            (source / "Annotations").mkdir(exist_ok=True)
            (source / "Annotations" / f"{id}.xml").write_text(f"<annotation>{objects}</annotation>")
    found = imported(source, tmp_path / "out", images=sample / "images", masks=True)
    assert found == tags_in(truth)
    classes = (tmp_path / "out" / "classes.txt").read_text().split()
    assert sorted(classes) == sorted(truth.classes)
    for id, path in truth.masks.paths.items():
        expected = read_mask(path)
        order = np.array([0, *(classes.index(name) + 1 for name in truth.classes)], np.uint8)
        expected = np.where(expected == 255, 255 if to == "voc" else 0, order[np.where(expected == 255, 0, expected)])
        np.testing.assert_array_equal(read_mask(tmp_path / "out" / "masks" / f"{id}.png"), expected)


def test_coco_boxes_tag_and_ids_are_no_positions(photos: Path, tmp_path: Path):
    source = write_coco(tmp_path / "boxes.json", {"a/1.jpg": ["dog", "cat"], "b/1.jpg": ["dog"], "a/2.jpg": ["cat"]})
    assert imported(source, tmp_path / "out", images=photos) == {"a/1": {"cat", "dog"}, "b/1": {"dog"}, "a/2": {"cat"}}
    assert (tmp_path / "out/classes.txt").read_text() == "cat\ndog\n"  # the order of the file


def test_a_second_coco_file_is_val(photos: Path, tmp_path: Path):
    shutil.move(str(photos / "a"), photos / "train")
    shutil.move(str(photos / "b"), photos / "valid")
    train = write_coco(photos / "train/_annotations.coco.json", {"1.jpg": ["cat"], "2.jpg": ["dog"]})
    val = write_coco(photos / "valid/_annotations.coco.json", {"1.jpg": ["dog"]})
    done = import_tags(train, tmp_path / "out", val=val)
    dataset = read_folder(tmp_path / "out")
    assert tags_in(dataset) == {"train/1": {"cat"}, "train/2": {"dog"}}
    assert tags_in(dataset, "val") == {"valid/1": {"dog"}}
    assert done.classes == {"cat": (1, 0, 0), "dog": (1, 1, 0)} and done.images == (2, 1, 0)


def test_label_studio_choices_boxes_and_uploaded_names(photos: Path, tmp_path: Path):
    def result(kind: str, names: list[str]) -> dict[str, Any]:
        return {"type": kind, "from_name": "x", "to_name": "image", "value": {kind: names}}

    tasks = [
        {"data": {"image": "/data/upload/3/0a1b2c3d-2.jpg"}, "annotations": [
            {"was_cancelled": True, "result": [result("choices", ["wrong"])]},
            {"result": [result("choices", ["cat", "dog"]), {"type": "rating", "value": {"rating": 3}}]},
        ]},
        {"data": {"image": "/data/local-files/?d=somewhere/b/3.JPG"}, "annotations": [
            {"result": [result("rectanglelabels", ["dog"])]},
        ]},
        {"data": {"image": "s3://bucket/a/1.jpg"}, "predictions": [{"result": [result("keypointlabels", ["cat"])]}]},
    ]  # fmt: skip
    source = tmp_path / "export.json"
    source.write_text(json.dumps(tasks))
    found = imported(source, tmp_path / "out", images=photos)
    assert found == {"a/2": {"cat", "dog"}, "b/3": {"dog"}, "a/1": {"cat"}}


def test_a_task_that_nobody_has_looked_at_is_no_example_of_nothing(photos: Path, tmp_path: Path):
    cat = [{"result": [{"type": "choices", "value": {"choices": ["cat"]}}]}]
    dog = [{"result": [{"type": "choices", "value": {"choices": ["dog"]}}]}]
    tasks: list[dict[str, Any]] = [
        {"data": {"image": name}, "annotations": said}
        for name, said in (("a/1.jpg", cat), ("a/2.jpg", dog), ("b/1.jpg", [{"result": []}]), ("b/3.JPG", []))
    ]
    source = tmp_path / "export.json"
    source.write_text(json.dumps(tasks))
    found = imported(source, tmp_path / "out", images=photos, negatives=True)
    assert found == {"a/1": {"cat"}, "a/2": {"dog"}, "b/1": set()}


def test_voc_annotations_beside_their_images_and_in_a_devkit_with_lists(photos: Path, tmp_path: Path):
    for name, tag in (("a/1", "cat"), ("b/3", "dog")):
        (photos / f"{name}.xml").write_text(f"<annotation><object><name>{tag}</name></object></annotation>")
    assert imported(photos, tmp_path / "one") == {"a/1": {"cat"}, "b/3": {"dog"}}

    kit = tmp_path / "kit"
    shutil.copytree(photos / "a", kit / "JPEGImages")
    for name in ("JPEGImages/1.xml", "JPEGImages/2.xml"):
        (kit / name).unlink(missing_ok=True)
    for folder in ("Annotations", "ImageSets/Main", "SegmentationClass"):
        (kit / folder).mkdir(parents=True)
    for name, tag in (("1", "cat"), ("2", "dog")):
        text = f"<annotation><object><name>{tag}</name><part><name>head</name></part></object></annotation>"
        (kit / f"Annotations/{name}.xml").write_text(text)
        mask = np.full((6, 8), 8 if tag == "cat" else 12, np.uint8)  # VOC's own numbers
        Image.fromarray(mask).save(kit / f"SegmentationClass/{name}.png")
    (kit / "ImageSets/Main/train.txt").write_text("1\n2\n")
    assert imported(kit, tmp_path / "two", masks=True) == {"1": {"cat"}, "2": {"dog"}}
    assert (read_mask(tmp_path / "two/masks/2.png") == 2).all()


@pytest.mark.parametrize(
    "header, rows, columns",
    [
        (["image", "tags"], [["a/1.jpg", "cat;dog"], ["2.jpg", "dog"]], Columns()),
        (["File Name", "Label"], [["a/1", "cat"], ["a/1", "dog"], ["2", "dog"]], Columns()),
        (["filename", "cat", "dog", "note"], [["a/1.jpg", 1, 1, "x y"], ["a/2.jpg", 0, "1", ""]], Columns()),
        (["id", "labels"], [["C:\\mine\\a\\1.jpg", "cat dog"], ["2.jpg", "dog"]], Columns(separator=" ")),
        (["photo", "what", "label"], [["a/1.jpg", "cat|dog", "-"], ["2.jpg", "dog", "-"]], Columns("photo", "what")),
    ],
    ids=["a row an image", "a row a tag", "a column a class", "spaces", "named columns"],
)
def test_csv_as_people_write_it(
    header: list[str], rows: list[list[str]], columns: Columns, photos: Path, tmp_path: Path
):
    source = write_csv(tmp_path / "t.csv", header, *rows)
    assert imported(source, tmp_path / "out", images=photos, columns=columns) == {"a/1": {"cat", "dog"}, "a/2": {"dog"}}


def test_a_split_column_makes_the_lists(photos: Path, tmp_path: Path):
    rows = [
        ["a/1.jpg", "cat", "train"],
        ["a/2.jpg", "dog", "train"],
        ["b/1.jpg", "dog", "Valid"],
        ["3.JPG", "cat", "test"],
    ]
    source = write_csv(tmp_path / "t.csv", ["image", "tag", "split"], *rows)
    done = import_tags(source, tmp_path / "out", images=photos)
    dataset = read_folder(tmp_path / "out")
    assert tags_in(dataset) == {"a/1": {"cat"}, "a/2": {"dog"}} and tags_in(dataset, "val") == {"b/1": {"dog"}}
    assert done.images == (2, 1, 1)


def test_class_folders_join_copies_and_know_their_lists(photos: Path, tmp_path: Path):
    shutil.copyfile(photos / "a/2.jpg", photos / "b/copy.jpg")
    assert imported(photos, tmp_path / "one") == {"a/1": {"a"}, "a/2": {"a", "b"}, "b/1": {"b"}, "b/3": {"b"}}
    lists = tmp_path / "lists"
    shutil.copytree(photos, lists / "train")
    shutil.copytree(photos / "b", lists / "val/b")
    import_tags(lists, tmp_path / "two")
    dataset = read_folder(tmp_path / "two")
    assert set(tags_in(dataset, "val")) == {"val/b/1", "val/b/3", "val/b/copy"} and len(dataset.train) == 4


def test_a_class_may_be_called_masks(photos: Path, tmp_path: Path):
    (photos / "b").rename(photos / "masks")
    assert imported(photos, tmp_path / "out")["masks/1"] == {"masks"}


@given(st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=12),
                min_size=2, max_size=4, unique=True))  # fmt: skip
@settings(max_examples=40)
def test_any_printable_name_survives(names: list[str]):
    names = [name.replace(":", "-") + str(n) for n, name in enumerate(names)]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for n in range(len(names)):
            Image.new("RGB", (4, 4)).save(root / f"{n}.png")
        source = write_coco(root / "x.json", {f"{n}.png": [name] for n, name in enumerate(names)}, names)
        assert imported(source, root / "out") == {str(n): {name} for n, name in enumerate(names)}


# What is kept, what is left out


def test_only_the_wanted_classes_in_the_wanted_order(photos: Path, tmp_path: Path):
    source = write_csv(
        tmp_path / "t.csv", ["image", "tags"], ["a/1.jpg", "cat;sky"], ["a/2.jpg", "sky"], ["3.JPG", "bee"]
    )
    wanted = tmp_path / "classes.txt"
    wanted.write_text("cat\nbee\n")
    done = import_tags(source, tmp_path / "out", images=photos, classes=wanted)
    assert tags_in(read_folder(tmp_path / "out")) == {"a/1": {"cat"}, "b/3": {"bee"}}
    assert (done.untagged, done.other_tags) == (1, {"sky": 2})
    assert (tmp_path / "out/classes.txt").read_text() == "cat\nbee\n"
    found = imported(source, tmp_path / "with", images=photos, classes=wanted, negatives=True)
    assert found["a/2"] == set()


def test_a_class_without_a_training_image_is_left_out_and_told(photos: Path, tmp_path: Path):
    source = write_coco(tmp_path / "x.json", {"a/1.jpg": ["cat"], "a/2.jpg": ["dog"]}, ["bee", "cat", "dog"])
    done = import_tags(source, tmp_path / "out", images=photos)
    assert done.unseen == ("bee",) and read_folder(tmp_path / "out").classes == ("cat", "dog")


def test_images_are_links_or_copies_and_the_source_is_as_before(photos: Path, tmp_path: Path):
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    assert import_tags(photos, tmp_path / "one").copied == 0
    assert os.path.samefile(tmp_path / "one/images/a/1.jpg", photos / "a/1.jpg")
    assert import_tags(photos, tmp_path / "two", copy=True).copied == 4
    assert not os.path.samefile(tmp_path / "two/images/a/1.jpg", photos / "a/1.jpg")
    assert before == {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}


def test_where_links_are_impossible_images_are_copied(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_link(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_link)
    assert import_tags(photos, tmp_path / "out").copied == 4 and len(read_folder(tmp_path / "out").train) == 4


def test_tags_that_look_separated_by_spaces_are_told(photos: Path, tmp_path: Path):
    source = write_csv(
        tmp_path / "t.csv", ["image", "tags"], ["a/1.jpg", "cat dog"], ["2.jpg", "dog"], ["3.JPG", "cat"]
    )
    assert "--separator ' '" in import_tags(source, tmp_path / "out", images=photos).hint


def test_of_more_categories_than_a_mask_holds_a_few_may_be_chosen_and_unused_names_do_not_matter(
    photos: Path, tmp_path: Path
):
    names = ["cat", "dog", "odd:name", *(f"c{n}" for n in range(400))]
    source = write_coco(tmp_path / "x.json", {"a/1.jpg": ["cat"], "a/2.jpg": ["dog"]}, names)
    assert imported(source, tmp_path / "out", images=photos) == {"a/1": {"cat"}, "a/2": {"dog"}}
    source = write_coco(tmp_path / "y.json", {"a/1.jpg": names[3:], "a/2.jpg": ["c5"]}, names)
    with pytest.raises(DataError, match="400 classes"):
        import_tags(source, tmp_path / "many", images=photos)
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("c5\nc6\n")
    assert imported(source, tmp_path / "few", images=photos, classes=wanted) == {"a/1": {"c5", "c6"}, "a/2": {"c5"}}


# Bad input


def failures(source: Path, out: Path, **options: Any) -> list[str]:
    errors: list[SccamError] = []
    assert import_tags(source, out, on_error=errors.append, **options).failed == len(errors)
    return [error.line() for error in errors]


def test_bad_rows_are_told_with_their_line_and_the_rest_is_imported(photos: Path, tmp_path: Path):
    source = write_csv(
        tmp_path / "t.csv", ["image", "tags"], ["a/1.jpg", "cat"], ["a/2.jpgg", "cat"], ["1.jpg", "dog"], ["", "dog"],
        ["b/3.JPG", "dog", "more"], ["b/3.JPG", "dog"],
    )  # fmt: skip
    lines = failures(source, tmp_path / "out", images=photos)
    expected = ["t.csv:3: no image 'a/2.jpgg'", "t.csv:4: '1.jpg' may be", "t.csv:5: the name", "t.csv:6: 3 fields"]
    assert len(lines) == len(expected)
    for line, part in zip(lines, expected, strict=True):
        assert part in line
    assert tags_in(read_folder(tmp_path / "out")) == {"a/1": {"cat"}, "b/3": {"dog"}}


def test_bad_coco_entries_are_told(photos: Path, tmp_path: Path):
    source = write_coco(tmp_path / "x.json", {"a/1.jpg": ["cat"], "a/2.jpg": ["dog"], "3.JPG": ["cat"]})
    content = json.loads(source.read_text())
    content["annotations"] += [
        {"image_id": 70},
        3,
        {"image_id": 999, "category_id": 5},
        {"image_id": 72, "category_id": 1},
    ]
    content["images"] += [{"id": 80}, "x"]
    source.write_text(json.dumps(content))
    lines = failures(source, tmp_path / "out", images=photos)
    assert len(lines) == 6 and any("999" in line for line in lines)
    assert tags_in(read_folder(tmp_path / "out")) == {"a/1": {"cat"}, "a/2": {"dog"}}


def test_a_link_that_leads_nowhere_fails_alone(photos: Path, tmp_path: Path):
    (photos / "a/4.jpg").symlink_to(tmp_path / "gone.jpg")
    [line] = failures(photos, tmp_path / "out")
    assert "4.jpg" in line and "cannot be read" in line
    assert set(tags_in(read_folder(tmp_path / "out"))) == {"a/1", "a/2", "b/1", "b/3"}


def test_an_image_in_two_lists_fails(photos: Path, tmp_path: Path):
    source = write_csv(
        tmp_path / "t.csv", ["image", "tag", "split"],
        ["a/1.jpg", "cat", "train"], ["a/2.jpg", "dog", "train"], ["a/1.jpg", "cat", "val"],
    )  # fmt: skip
    [line] = failures(source, tmp_path / "out", images=photos)
    assert "t.csv:4" in line and "two lists" in line


def test_a_broken_annotation_and_a_document_type_are_errors_of_their_image(photos: Path, tmp_path: Path):
    (photos / "a/1.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    (photos / "b/3.xml").write_text("<annotation><object><name>dog</name></object></annotation>")
    (photos / "a/2.xml").write_text("<annotation><object>")
    (photos / "b/1.xml").write_text('<!DOCTYPE a [<!ENTITY x "y">]><annotation/>')
    lines = failures(photos, tmp_path / "out")
    assert len(lines) == 2 and "document type" in lines[1]


def test_a_label_studio_file_with_odd_tasks(photos: Path, tmp_path: Path):
    choice = {"type": "choices", "value": {"choices": ["cat"]}}
    tasks: list[Any] = [
        {"data": {"image": "a/1.jpg"}, "annotations": [{"result": [choice]}]}, 7,
        {"data": {"image": "a/2.jpg"}, "annotations": [{"result": [{"type": "choices", "value": {"choices": "cat"}}]}]},
        {"data": {"image": "a/2.jpg"}, "annotations": "x"}, {"data": {}, "annotations": [{"result": [choice]}]},
        {"data": {"image": "../../etc/passwd"}, "annotations": [{"result": [choice]}]},
    ]  # fmt: skip
    source = tmp_path / "x.json"
    source.write_text(json.dumps(tasks))
    assert len(failures(source, tmp_path / "out", images=photos)) == 5
    assert (tmp_path / "out/tags.json").read_text().count("cat") == 1


@pytest.mark.parametrize(
    "name, content, error, part",
    [
        ("x.csv", "image,tags\n", DataError, "no row below a header"),
        ("x.csv", "what,ever\n1,2\n", DataError, "which column names the image"),
        ("x.csv", "image,ever\na/1.jpg,2\n", DataError, "which column holds the tags"),
        ("x.csv", "image,tags\nnone.jpg,cat\n", DataError, "no image 'none.jpg'"),
        ("x.csv", "image,tags\na/1.jpg,\n", DataError, "no training image carries any"),
        ("x.csv", "image,tags\na/1.jpg,background\n", DataError, "background is not a class"),
        ("x.csv", b"image,tags\na/1.jpg,caf\xe9\n", DataError, "not UTF-8"),
        ("x.csv", 'image,tags\n"a/1.jpg,cat\n', DataError, "not valid CSV"),
        ("x.json", "{}", DataError, "annotations, categories, images are missing"),
        ("x.json", '{"images": [', DataError, "not valid JSON"),
        ("x.json", "3", DataError, "no format that is known"),
        ("x.zip", "PK", DataError, "no format that is known"),
        ("gone.csv", None, DataError, "no such file"),
    ],
)
def test_a_source_that_is_none_leaves_nothing(
    name: str, content: str | bytes | None, error: type[SccamError], part: str, photos: Path, tmp_path: Path
):
    source = tmp_path / name
    if content is not None:
        source.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as caught:
        import_tags(source, tmp_path / "out", images=photos)
    assert part in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"photos", name} if content is not None else {"photos"}
    )


def test_options_that_a_format_does_not_have_are_refused(photos: Path, tmp_path: Path):
    for options in ({"masks": True}, {"columns": Columns("x")}, {"from_": "coc"}):
        with pytest.raises(ConfigError):
            import_tags(photos, tmp_path / "out", **options)
    source = write_csv(tmp_path / "t.csv", ["image", "tags"], ["a/1.jpg", "cat"])
    with pytest.raises(ConfigError, match="no column"):
        import_tags(source, tmp_path / "out", images=photos, columns=Columns("photo"))


def test_a_folder_with_something_in_it_is_left_alone(photos: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="there already"):
        import_tags(photos, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_an_interrupted_import_leaves_nothing(photos: Path, tmp_path: Path):
    def stop(done: int, failed: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_tags(photos, tmp_path / "out", on_progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_images_elsewhere_are_asked_for(tmp_path: Path):
    source = write_csv(tmp_path / "t.csv", ["image", "tags"], ["a/1.jpg", "cat"])
    with pytest.raises(DataError, match="--images"):
        import_tags(source, tmp_path / "out")


def test_the_longest_agreement_wins(photos: Path):
    files = ImageFiles(photos)
    assert files.find("/somewhere/else/b/1.jpg", "") == "b/1.jpg"
    assert files.find("b\\1.jpg", "") == "b/1.jpg"
    assert files.find("./a/1", "") == "a/1.jpg"
    with pytest.raises(DataError, match="may be"):
        files.find("1.jpg", "")


def test_the_command(photos: Path, tmp_path: Path, sccam: Cli):
    source = write_csv(tmp_path / "t.csv", ["image", "tags"], ["a/1.jpg", "[red]"], ["2.jpg", "dog"], ["9.jpg", "dog"])
    code, out, err = sccam("data", "import", source, tmp_path / "out", "--images", photos)
    assert code == 5 and "no image '9.jpg'" in err and "1 entries failed" in out and "[red]" in out
    code, out, _ = sccam("data", "import", source, tmp_path / "json", "--images", photos, "--json")
    assert code == 5 and json.loads(out)["classes"] == {"[red]": [1, 0, 0], "dog": [1, 0, 0]}
