"""Every format gives back what it can hold, and other programs' readers see the same labels in it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sccam.data.masks import read_mask, voc_palette, write_mask
from sccam.errors import DataError, SccamError
from sccam.labels.convert import FORMATS, Converted, convert
from sccam.labels.items import Layout
from sccam.labels.rle import brush_mask
from sccam.structures import IGNORE, ByteArray
from tests.labels.drawn import CLASSES, LABELS, blob_index, index_masks, write_infer_folder

KEEP_255 = ("masks", "voc")
EXACT_POLYGONS = Layout(polygons=True, tolerance=0)
LAYOUTS = {
    "masks": [Layout()],
    "coco": [Layout(), Layout(per_class=True), EXACT_POLYGONS, Layout(polygons=True, tolerance=0, per_class=True)],
    "yolo": [Layout(tolerance=0)],
    "labelstudio": [Layout(), EXACT_POLYGONS],
    "voc": [Layout()],
}
EXACT = [pytest.param(to, layout, id=f"{to}{n}") for to, layouts in LAYOUTS.items() for n, layout in enumerate(layouts)]


def target(folder: Path, to: str) -> Path:
    return folder / (to if FORMATS[to].folder else f"{to}.json")


def write(folder: Path, masks: Mapping[str, ByteArray], to: str, layout: Layout = LAYOUTS["masks"][0]) -> Path:
    """The masks in a format, by way of what `sccam infer` leaves."""
    source = write_infer_folder(folder / "infer", masks)
    done = convert(source, target(folder, to), to, layout=layout)
    assert (done.images, done.failed) == (len(masks), 0)
    return done.out


def masks_in(path: Path, out: Path, **options: Any) -> dict[str, ByteArray]:
    """The masks that are read from a format, by name."""
    convert(path, out, "masks", **options)
    log = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    return {record["name"]: read_mask(out / record["mask"]) for record in log}


def same(found: Mapping[str, ByteArray], wanted: Mapping[str, ByteArray]) -> bool:
    return list(found) == list(wanted) and all(np.array_equal(found[name], wanted[name]) for name in wanted)


# There and back


@pytest.mark.parametrize("to, layout", EXACT)
@given(masks=st.lists(index_masks(), min_size=1, max_size=3))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_there_and_back_changes_no_pixel(to: str, layout: Layout, masks: list[ByteArray]):
    named = {f"{'a/' * (n % 2)}{n}": mask for n, mask in enumerate(masks)}
    with tempfile.TemporaryDirectory() as folder:
        there = write(Path(folder), named, to, layout)
        found = masks_in(there, Path(folder, "back"))
    # Folders are read in order: files of the folder itself first.
    names = sorted(named, key=lambda name: ("/" in name, name)) if to in ("yolo", "voc") else list(named)
    assert same(found, {name: named[name] for name in names})


@pytest.mark.parametrize("to", FORMATS)
def test_255_stays_or_is_counted_and_becomes_background(to: str, tmp_path: Path):
    index = blob_index(40, 50)
    index[10:20, 10:30] = IGNORE
    source = write_infer_folder(tmp_path / "infer", {"a": index})
    done = convert(source, target(tmp_path, to), to, layout=LAYOUTS[to][-1])
    assert done.ignored == (to not in KEEP_255)
    assert ("255 (ignore)" in done.line()) == (to not in KEEP_255)
    kept = index if to in KEEP_255 else np.where(index == IGNORE, 0, index)
    assert np.array_equal(masks_in(done.out, tmp_path / "back")["a"], kept)


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_any_format_becomes_any_other(first: str, second: str, tmp_path: Path):
    masks = {"a/1": blob_index(30, 41), "b": np.zeros((5, 7), np.uint8), "full": np.full((6, 4), 3, np.uint8)}
    one = write(tmp_path / "first", masks, first, LAYOUTS[first][-1])
    two = convert(one, target(tmp_path / "second", second), second, layout=LAYOUTS[second][-1]).out
    found = masks_in(two, tmp_path / "back")
    assert same({name: found[name] for name in masks}, masks)


# Other programs' readers


@pytest.fixture
def blobs_by_name() -> dict[str, ByteArray]:
    return {"a/1": blob_index(60, 80), "b": blob_index(61, 47, 1), "nothing": np.zeros((8, 9), np.uint8)}


@pytest.mark.parametrize("layout", LAYOUTS["coco"])
def test_pycocotools_reads_the_same_labels(layout: Layout, blobs_by_name: dict[str, ByteArray], tmp_path: Path):
    coco_library = pytest.importorskip("pycocotools.coco")
    path = write(tmp_path, blobs_by_name, "coco", layout)
    coco = coco_library.COCO(str(path))
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == ["a/1.jpg", "b.jpg", "nothing.jpg"]
    for image, (_, index) in zip(images, blobs_by_name.items(), strict=True):
        assert (image["height"], image["width"]) == index.shape
        painted = np.zeros_like(index)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(annotation).astype(bool)
            assert not painted[mask].any()
            painted[mask] = annotation["category_id"]
            assert annotation["area"] == mask.sum()
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            left, top, width, height = annotation["bbox"]
            assert [left, top] == [columns[0], rows[0]]
            assert [left + width - 1, top + height - 1] == [columns[-1], rows[-1]]
        assert np.array_equal(painted, index)


def test_a_coco_annotation_is_a_connected_component_or_a_class(tmp_path: Path):
    index = np.array([[1, 0, 1, 0, 2]], np.uint8)
    counts = [len(json.loads(write(tmp_path / str(per), {"a": index}, "coco", Layout(per_class=per)).read_text())
              ["annotations"]) for per in (False, True)]  # fmt: skip
    assert counts == [3, 2]


def test_the_tasks_of_label_studio_name_the_tags_of_their_configuration(
    blobs_by_name: dict[str, ByteArray], tmp_path: Path
):
    for polygons in (False, True):
        path = write(tmp_path / str(polygons), blobs_by_name, "labelstudio", Layout(polygons=polygons))
        view = ElementTree.parse(path.with_suffix(".xml")).getroot()
        image, labels = view[0], view[1]
        assert labels.tag == ("PolygonLabels" if polygons else "BrushLabels")
        assert labels.get("toName") == image.get("name") and image.get("value") == "$image"
        assert [label.get("value") for label in labels] == list(CLASSES)
        assert [label.get("background") for label in labels] == [f"#{bytes(c).hex()}" for c in voc_palette(4)[1:]]
        tasks = json.loads(path.read_text())
        assert [task["data"]["image"] for task in tasks] == [
            f"/data/local-files/?d={name}.jpg" for name in ("a/1", "b", "nothing")
        ]
        for task, index in zip(tasks, blobs_by_name.values(), strict=True):
            for region in task["predictions"][0]["result"]:
                assert region["from_name"] == labels.get("name") and region["to_name"] == image.get("name")
                assert (region["original_height"], region["original_width"]) == index.shape
                kind = region["type"]
                assert kind == labels.tag.lower()
                (label,) = region["value"][kind]
                if not polygons:
                    mask = brush_mask(region["value"]["rle"], index.shape)
                    assert np.array_equal(mask, index == 1 + CLASSES.index(label))
                    assert region["value"]["format"] == "rle"


def test_yolo_lines_are_a_class_and_shares_of_the_size(tmp_path: Path):
    index = np.zeros((10, 20), np.uint8)
    index[2:4, 5:15] = 2
    path = write(tmp_path, {"a": index}, "yolo")
    numbers = [float(number) for number in (path / "labels/a.txt").read_text().split()]
    assert numbers[0] == 1  # dog: classes count from 0
    corners = set(zip(numbers[1::2], numbers[2::2], strict=True))
    assert corners == {(0.25, 0.2), (0.75, 0.2), (0.75, 0.4), (0.25, 0.4)}
    assert (path / "data.yaml").read_text().endswith('names:\n  0: "cat"\n  1: "dog"\n  2: "traffic light"\n')


def test_a_voc_folder_is_that_of_cvat(tmp_path: Path):
    index = np.array([[1, 0, 1, 255, 2]], np.uint8)
    path = write(tmp_path, {"a/1": index}, "voc")
    with Image.open(path / "SegmentationClass/a/1.png") as image:
        assert image.mode == "P" and np.array_equal(np.array(image), index)
        assert np.array_equal(np.array(image.convert("RGB")), voc_palette()[index])
    assert read_mask(path / "SegmentationObject/a/1.png").tolist() == [[1, 0, 2, 255, 3]]
    assert (path / "ImageSets/Segmentation/default.txt").read_text() == "a/1\n"
    lines = (path / "labelmap.txt").read_text().splitlines()
    assert lines[1:] == ["background:0,0,0::", "cat:128,0,0::", "dog:0,128,0::", "traffic light:128,128,0::"]


def test_more_objects_than_a_mask_can_number_leave_the_smallest_ones_as_255(tmp_path: Path):
    index = np.zeros((40, 40), np.uint8)
    index[::2, ::2] = 1  # 400 objects of a pixel
    index[0, 0:2] = 1
    path = write(tmp_path, {"a": index}, "voc")
    objects = read_mask(path / "SegmentationObject/a.png")
    assert set(np.unique(objects).tolist()) == {0, *range(1, 255), 255}
    assert (objects > 0).sum() == (index > 0).sum() and objects[0, 1] != 255
    assert np.array_equal(read_mask(path / "SegmentationClass/a.png"), index)


# What other programs write


def test_a_labelmap_with_colours_of_its_own_is_read_by_those_colours(tmp_path: Path):
    colours = np.array([[0, 0, 0], [250, 50, 83], [51, 221, 255], [224, 224, 192]], np.uint8)
    index = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    (tmp_path / "in/SegmentationClass").mkdir(parents=True)
    Image.fromarray(colours[index]).save(tmp_path / "in/SegmentationClass/a.png")
    Image.fromarray(colours[[[3]]]).save(tmp_path / "in/SegmentationClass/void.png")
    (tmp_path / "in/labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:51,221,255::\n"
    )
    found = masks_in(tmp_path / "in", tmp_path / "out")
    assert found["a"].tolist() == index.tolist() and found["void"].tolist() == [[IGNORE]]


YAML_FORMS = [
    "names: [cat, dog]\nnc: 2\n",
    "nc: 2\nnames: ['cat', \"dog\"]  # two\n",
    "names:\n  0: cat\n  1: dog\n",
    "names:\n- cat\n- dog\nnc: 2\n",
    "names: {0: cat, 1: dog}\n",
    "names: [\n  cat,\n  dog,\n]\n",
]


@pytest.mark.parametrize("text", YAML_FORMS)
def test_the_names_of_a_data_yaml_are_read_in_the_forms_that_programs_write(text: str, tmp_path: Path):
    (tmp_path / "in/labels").mkdir(parents=True)
    (tmp_path / "in/data.yaml").write_text("train: images\n" + text)
    (tmp_path / "in/labels/a.txt").write_text("1 0 0 1 0 1 1 0 1\n")
    (tmp_path / "in/images").mkdir()
    Image.new("RGB", (6, 4)).save(tmp_path / "in/images/a.png")
    assert masks_in(tmp_path / "in", tmp_path / "out")["a"].tolist() == np.full((4, 6), 2).tolist()
    assert (tmp_path / "out/labelmap.txt").read_text().splitlines()[2].startswith("cat:")


def test_a_yolo_folder_without_sizes_needs_its_images(tmp_path: Path):
    (tmp_path / "in/labels").mkdir(parents=True)
    (tmp_path / "in/classes.txt").write_text("cat\n")
    (tmp_path / "in/labels/a.txt").write_text("0 0 0 1 0 1 1\n")
    with pytest.raises(DataError, match="size of its image is unknown") as caught:
        convert(tmp_path / "in", tmp_path / "out", "masks")
    assert "--images" in str(caught.value)


def test_a_coco_file_of_others_is_read_by_ids_not_by_positions(tmp_path: Path):
    square = [[1, 1, 3, 1, 3, 3, 1, 3]]
    content = {
        "annotations": [
            {"id": 7, "image_id": "x", "category_id": 90, "segmentation": square},
            {"id": 8, "image_id": "x", "category_id": 3, "segmentation": {"size": [4, 5], "counts": [0, 4, 16]}},
        ],
        "images": [
            {"id": "y", "file_name": "y.png", "height": 2, "width": 2},
            {"id": "x", "file_name": "sub/x.png", "height": 4, "width": 5},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    (tmp_path / "in.json").write_text(json.dumps(content, indent=1))
    found = masks_in(tmp_path / "in.json", tmp_path / "out")
    assert list(found) == ["y", "sub/x"] and not found["y"].any()
    assert found["sub/x"].tolist() == [[2, 0, 0, 0, 0], [2, 1, 1, 0, 0], [2, 1, 1, 0, 0], [2, 0, 0, 0, 0]]


def test_the_first_annotation_that_counts_goes_before_predictions(tmp_path: Path):
    index = np.full((2, 2), 1, np.uint8)
    path = write(tmp_path, {"a": index}, "labelstudio")
    (task,) = json.loads(path.read_text())
    other = json.loads(json.dumps(task["predictions"][0]).replace("cat", "dog"))
    choice = {"type": "choices", "value": {"choices": ["good"]}, "from_name": "quality", "to_name": "image"}
    task["annotations"] = [{"result": [], "was_cancelled": True}, {"result": [choice, *other["result"]]}]
    path.write_text(json.dumps([task]))
    assert masks_in(path, tmp_path / "out")["a"].tolist() == [[2, 2], [2, 2]]


# Names


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", ["ein Hund & eine Katze", "🐕/🐈", "a.b", "1.jpg", "100%?d=#1", "caf\udce9"])
def test_names_come_back_as_they_were(to: str, name: str, tmp_path: Path):
    index = blob_index(12, 17)
    there = write(tmp_path, {name: index}, to, LAYOUTS[to][-1])
    assert same(masks_in(there, tmp_path / "back"), {name: index})


def test_names_that_lead_out_of_the_folder_stay_in_it(tmp_path: Path):
    image = {"id": 1, "file_name": "../../../etc/x.png", "height": 1, "width": 1}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "in.json").write_text(json.dumps(content))
    assert list(masks_in(tmp_path / "in.json", tmp_path / "out")) == ["etc/x"]


def test_images_of_one_name_get_masks_of_their_own(tmp_path: Path):
    rows = [("1.jpg", 1), ("1.png", 2), ("sub/1.jpg", 3), ("1.jpg", 2)]
    content = {
        "images": [{"id": n, "file_name": file, "height": 1, "width": 1} for n, (file, _) in enumerate(rows)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": label, "segmentation": {"size": [1, 1], "counts": [0, 1]}}
            for n, (_, label) in enumerate(rows)
        ],
        "categories": [{"id": c, "name": name} for c, name in enumerate(CLASSES, 1)],
    }
    (tmp_path / "in.json").write_text(json.dumps(content))
    found = masks_in(tmp_path / "in.json", tmp_path / "out")
    assert {name: int(mask[0, 0]) for name, mask in found.items()} == {
        "1": 1, "1.png": 2, "sub/1": 3, "1.jpg": 2,
    }  # fmt: skip


def test_masks_of_one_name_and_different_suffixes_do_not_overwrite_each_other(tmp_path: Path):
    write_mask(tmp_path / "in/a.png", np.full((1, 1), 1, np.uint8))
    Image.fromarray(np.full((1, 1), 2, np.uint8)).save(tmp_path / "in/a.bmp")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    found = masks_in(tmp_path / "in", tmp_path / "out", classes=tmp_path / "classes.txt")
    assert {name: int(mask[0, 0]) for name, mask in found.items()} == {"a": 2, "a.png": 1}


# Garbage


def _all_of(masks: Mapping[str, ByteArray]) -> dict[str, dict[str, bytes]]:
    """What each format writes: the bytes of its files by path."""
    with tempfile.TemporaryDirectory() as folder:
        contents = {}
        for to in FORMATS:
            path = write(Path(folder, to), masks, to, LAYOUTS[to][0])
            files = (
                [file for file in path.rglob("*") if file.is_file()]
                if path.is_dir()
                else [path, path.with_suffix(".xml")]
            )
            contents[to] = {str(file.relative_to(path.parent)): file.read_bytes() for file in files if file.is_file()}
        return contents


WHOLE = _all_of({"a": blob_index(9, 12), "b/c": np.full((3, 2), 2, np.uint8)})


TOKENS = b'[ ] { } " : \n -1 1e999 NaN null \\ud800 99999999999999999999'.split(b" ")


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with some bytes replaced, inserted, doubled or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        other = draw(st.binary(max_size=4) | st.sampled_from(TOKENS))
        data[at : at + draw(st.sampled_from([0, 1, 5, 10**6]))] = other
    return bytes(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=6,
)


@st.composite
def rewritten(draw: st.DrawFn, content: Any) -> Any:
    """A JSON value with one part of it replaced by anything, or left out."""
    if isinstance(content, dict) and content and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(content)))
        rest = {k: v for k, v in content.items() if k != key}
        return {**rest, key: draw(rewritten(content[key]))} if draw(st.integers(0, 5)) else rest
    if isinstance(content, list) and content and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(content) - 1))
        return [*content[:at], draw(rewritten(content[at])), *content[at + 1 :]]
    return draw(values)


def convert_files(files: Mapping[str, bytes], start: str, from_: str) -> Converted | SccamError:
    """The result of converting files, or the error: only those of the package are caught."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            path = Path(folder, "in", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        out = Path(folder, "out")
        try:
            done = convert(Path(folder, "in", start), out, "masks", from_=from_, on_error=told)
        except DataError as error:
            assert error.where
            assert not out.exists()
            return error
        assert len(list(out.rglob("*.png"))) == done.images
        return done


def told(error: SccamError) -> None:
    assert isinstance(error, DataError) and error.where


@pytest.mark.parametrize("from_", FORMATS)
@given(data=st.data())
@settings(max_examples=150)
def test_damaged_files_are_errors_that_say_where(from_: str, data: st.DataObject):
    files = dict(WHOLE[from_])
    name = data.draw(st.sampled_from(sorted(files)))
    files[name] = data.draw(damaged(files[name]))
    convert_files(files, sorted(files)[0].split("/")[0], from_)


@pytest.mark.parametrize("from_, name", [("coco", "coco.json"), ("labelstudio", "labelstudio.json")])
@given(data=st.data())
@settings(max_examples=300)
def test_json_with_other_values_in_it_is_an_error_that_says_where(from_: str, name: str, data: st.DataObject):
    content = data.draw(rewritten(json.loads(WHOLE[from_][name])))
    files = {**WHOLE[from_], name: json.dumps(content).encode()}
    convert_files(files, name, from_)


@given(data=st.data())
@settings(max_examples=150)
def test_lines_of_an_infer_folder_with_other_values_are_errors_that_say_where(data: st.DataObject):
    first, *rest = WHOLE["masks"]["masks/predictions.jsonl"].splitlines()
    line = json.dumps(data.draw(rewritten(json.loads(first)))).encode()
    files = {**WHOLE["masks"], "masks/predictions.jsonl": b"\n".join([line, *rest, b""])}
    convert_files(files, "masks", "masks")


@pytest.mark.parametrize("from_, begin", [("coco", '{"images": '), ("labelstudio", "")])
def test_endless_nesting_is_an_error(from_: str, begin: str, tmp_path: Path):
    (tmp_path / "deep.json").write_text(begin + "[" * 200_000)
    with pytest.raises(DataError, match="nested too deeply"):
        convert(tmp_path / "deep.json", tmp_path / "out", "masks", from_=from_)


def test_a_configuration_with_entities_is_refused(tmp_path: Path):
    path = write(tmp_path, {"a": np.ones((1, 1), np.uint8)}, "labelstudio")
    path.with_suffix(".xml").write_text('<!DOCTYPE x [<!ENTITY a "b">]><View><Label value="&a;"/></View>')
    with pytest.raises(DataError, match="document type"):
        convert(path, tmp_path / "out", "masks")


def test_labels_of_a_mask_are_no_more_than_its_classes():
    assert max(LABELS) == len(CLASSES)
