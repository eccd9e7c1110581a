"""Converting: bad inputs are listed and the rest goes on; outputs are whole or not there; nothing foreign is lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sccam.artifacts import replacing
from sccam.data.masks import read_mask, write_mask
from sccam.errors import ConfigError, DataError, Interrupted, ResourceError, RunFolderError, SccamError
from sccam.labels import coco, json_parts
from sccam.labels.convert import FORMATS, convert, detect, parse_values, write_formats
from sccam.labels.items import Labelled, Layout
from sccam.labels.json_parts import JsonParts
from sccam.structures import ByteArray
from tests.labels.drawn import CLASSES, blob_index, write_infer_folder

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("a", "b/c", "d")

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def infer_folder(tmp_path: Path) -> Path:
    return write_infer_folder(tmp_path / "OUT", {name: blob_index(20, 30, n) for n, name in enumerate(NAMES)})


def annotations_in(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["annotations"]
    return found


def listed(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# The command


def test_the_command_converts_and_counts(sccam: Cli, infer_folder: Path, tmp_path: Path):
    code, out, err = sccam("labels", "convert", infer_folder, tmp_path / "coco.json", "--to", "coco")
    count = len(annotations_in(tmp_path / "coco.json"))
    assert (code, out) == (0, f"3 images as coco in {tmp_path / 'coco.json'}; {count} regions\n")
    code, out, err = sccam("labels", "convert", tmp_path / "coco.json", tmp_path / "back", "--to", "masks", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "out": str(tmp_path / "back"), "format": "masks", "images": 3, "regions": 3, "failed": 0, "ignored": 0,
    }  # fmt: skip
    for name in NAMES:
        assert np.array_equal(
            read_mask(tmp_path / f"back/masks/{name}.png"), read_mask(infer_folder / f"masks/{name}.png")
        )


def test_bad_inputs_are_listed_and_the_rest_is_converted(sccam: Cli, infer_folder: Path, tmp_path: Path):
    (infer_folder / "masks/b/c.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    write_mask(infer_folder / "masks/d.png", np.full((20, 30), 9, np.uint8))
    code, out, err = sccam("labels", "convert", infer_folder, tmp_path / "out.json", "--to", "coco")
    assert code == 5 and "1 images" in out and "2 inputs failed" in out
    first, second = err.splitlines()
    assert first.startswith(f"{infer_folder}/masks/b/c.png: ")
    assert second.startswith(f"{infer_folder}/masks/d.png: mask values 9 are no class")
    assert len(json.loads((tmp_path / "out.json").read_text())["images"]) == 1


def test_every_option_changes_what_is_written(sccam: Cli, infer_folder: Path, tmp_path: Path):
    def written(*options: object) -> bytes:
        out = tmp_path / "out.json"
        assert sccam("labels", "convert", infer_folder, out, "--to", "coco", "--overwrite", *options)[0] == 0
        return out.read_bytes()

    (tmp_path / "order.txt").write_text("dog\ncat\ntraffic light\nhorse\n")
    plain = written()
    polygons = written("--polygons")
    assert len({
        plain, polygons, written("--polygons", "--tolerance", 0), written("--min-area", 40), written("--per-class"),
        written("--image-root", "s3://bucket/"), written("--map", "1=3"), written("--classes", tmp_path / "order.txt"),
    }) == 8  # fmt: skip
    assert written() == plain and written("--from", "masks") == plain


@pytest.mark.parametrize(
    "to, options, text",
    [
        ("coc", [], "misspelling of 'coco'"),
        ("coco", ["--from", "png"], "no format 'png'"),
        ("coco", ["--tolerance", "2"], "add --polygons"),
        ("masks", ["--polygons"], "leave out --polygons"),
        ("voc", ["--min-area", "3"], "leave out --min-area"),
        ("yolo", ["--per-class"], "leave out --per-class"),
        ("yolo", ["--tolerance", "nan"], "must be 0 or more"),
        ("voc", ["--map", "255"], "write OLD=NEW"),
        ("voc", ["--map", "255=256"], "write OLD=NEW"),
        ("voc", ["--map", "2=1", "--map", "2=3"], "OLD once"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    sccam: Cli, infer_folder: Path, tmp_path: Path, to: str, options: list[str], text: str
):
    out = tmp_path / ("out.json" if to == "coco" else "out")
    code, _, err = sccam("labels", "convert", infer_folder, out, "--to", to, *options)
    assert code == 2 and text in err and not out.exists()


def test_converting_loads_no_torch(infer_folder: Path, tmp_path: Path):
    code = (
        "import sys; from sccam.labels.convert import convert; convert(sys.argv[1], sys.argv[2], 'coco');"
        "print(sorted({'torch', 'pycocotools', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, infer_folder, tmp_path / "out.json"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# Sources


def test_what_lies_there_is_recognised(infer_folder: Path, tmp_path: Path):
    for to, format in FORMATS.items():
        out = convert(infer_folder, tmp_path / (to if format.folder else f"{to}.json"), to).out
        assert detect(out) == to
    (tmp_path / "text").write_text("hello")
    for wrong in ("text", "nothing"):
        with pytest.raises(DataError):
            detect(tmp_path / wrong)


def test_the_last_line_of_an_image_counts(infer_folder: Path, tmp_path: Path):
    log = infer_folder / "predictions.jsonl"
    first, *rest = log.read_text().splitlines()
    before = {**json.loads(first), "size": [7, 7]}  # the image was of another size then
    log.write_text("\n".join([json.dumps(before), *rest, first, ""]))
    done = convert(infer_folder, tmp_path / "out.json", "coco")
    assert (done.images, done.failed) == (3, 0)


def test_an_infer_folder_without_masks_says_how_to_get_them(infer_folder: Path, tmp_path: Path):
    log = infer_folder / "predictions.jsonl"
    log.write_text("".join(json.dumps({"name": name, "size": [2, 3]}) + "\n" for name in NAMES))
    with pytest.raises(DataError, match="none of 3 inputs") as caught:
        convert(infer_folder, tmp_path / "out.json", "coco")
    assert "--save mask" in str(caught.value) and f"{log}:1" in str(caught.value)


def test_masks_without_class_names_need_a_list(infer_folder: Path, tmp_path: Path):
    (infer_folder / "labelmap.txt").unlink()
    with pytest.raises(DataError, match="class names are unknown"):
        convert(infer_folder, tmp_path / "out.json", "coco")
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    assert convert(infer_folder, tmp_path / "out.json", "coco", classes=tmp_path / "classes.txt").images == 3


def test_a_list_of_classes_gives_their_order(infer_folder: Path, tmp_path: Path):
    (tmp_path / "classes.txt").write_text("\n".join(reversed(CLASSES)))
    convert(infer_folder, tmp_path / "out", "masks", classes=tmp_path / "classes.txt")
    before, after = read_mask(infer_folder / "masks/a.png"), read_mask(tmp_path / "out/masks/a.png")
    assert np.array_equal(after, np.array([0, 3, 2, 1])[before])
    (tmp_path / "classes.txt").write_text("cat\ndog\nhorse\n")
    with pytest.raises(DataError, match="'traffic light' is not in the list"):
        convert(infer_folder, tmp_path / "out", "masks", classes=tmp_path / "classes.txt", overwrite=True)


def test_values_are_replaced_before_anything_else(tmp_path: Path):
    source = write_infer_folder(tmp_path / "OUT", {"a": np.array([[255, 200, 2, 0]], np.uint8)})
    convert(source, tmp_path / "out", "masks", values=parse_values(["255=1", "200=255", "2=0"]))
    assert read_mask(tmp_path / "out/masks/a.png").tolist() == [[1, 255, 0, 0]]


def test_the_line_of_broken_json_is_named(tmp_path: Path):
    (tmp_path / "in.json").write_text('{"images": [\n{"id": 1},\n{"id": 2,,}\n], "annotations": [')
    with pytest.raises(DataError, match="not valid JSON") as caught:
        convert(tmp_path / "in.json", tmp_path / "out", "masks")
    assert caught.value.where == f"{tmp_path / 'in.json'}:3"


# Outputs


@pytest.mark.parametrize("to", FORMATS)
def test_an_output_is_whole_or_not_there(to: str, infer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "made" / (to if FORMATS[to].folder else f"{to}.json")

    def ended(done: int, failed: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="nothing was written"):
        convert(infer_folder, out, to, on_progress=ended)
    assert listed(out.parent) == []

    convert(infer_folder, out, to)
    before = {name: (out.parent / name).read_bytes() for name in listed(out.parent) if (out.parent / name).is_file()}
    write_mask(infer_folder / "masks/a.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(Interrupted):
        convert(infer_folder, out, to, overwrite=True, on_progress=ended)
    assert {name: (out.parent / name).read_bytes() for name in before} == before
    assert listed(out.parent) == sorted(
        set(before) | {name for name in listed(out.parent) if (out.parent / name).is_dir()}
    )
    convert(infer_folder, out, to, overwrite=True)
    assert {name: (out.parent / name).read_bytes() for name in before} != before


def test_a_full_disk_ends_it_and_leaves_the_earlier_output(
    infer_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    convert(infer_folder, tmp_path / "out", "voc")
    before = listed(tmp_path / "out")

    def full(path: Path | str, index: ByteArray) -> None:
        with replacing(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sccam.labels.voc.write_mask", full)
    with pytest.raises(ResourceError, match="No space left"):
        convert(infer_folder, tmp_path / "out", "voc", overwrite=True)
    assert listed(tmp_path / "out") == before and sorted(path.name for path in tmp_path.iterdir()) == ["OUT", "out"]


def test_what_is_there_is_replaced_only_on_request_and_only_if_it_was_written_here(infer_folder: Path, tmp_path: Path):
    out = convert(infer_folder, tmp_path / "out", "yolo").out
    with pytest.raises(RunFolderError, match="there already"):
        convert(infer_folder, out, "yolo")
    convert(infer_folder, out, "yolo", overwrite=True)
    (out / "images").mkdir()
    with pytest.raises(RunFolderError, match="images would be lost"):
        convert(infer_folder, out, "yolo", overwrite=True)
    (tmp_path / "tasks.json").write_text("[]")
    with pytest.raises(RunFolderError, match=r"tasks\.json would be lost"):
        convert(infer_folder, tmp_path / "tasks.json", "coco", overwrite=True)
    assert (tmp_path / "tasks.json").read_text() == "[]"


@pytest.mark.parametrize("out", [".", "masks", "..", "masks/more"])
def test_an_output_never_lies_over_its_input(out: str, infer_folder: Path):
    before = listed(infer_folder)
    with pytest.raises(SccamError):
        convert(infer_folder, infer_folder / out, "masks", overwrite=True)
    assert listed(infer_folder) == before


def test_a_name_that_a_file_system_cannot_hold_is_an_error_of_its_image(tmp_path: Path):
    entries = [{"id": n, "file_name": name, "height": 1, "width": 1} for n, name in enumerate(["x" * 300, "ok"])]
    content = {"images": entries, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "in.json").write_text(json.dumps(content))
    errors: list[SccamError] = []
    done = convert(tmp_path / "in.json", tmp_path / "out", "yolo", on_error=errors.append)
    assert (done.images, done.failed) == (1, 1) and "cannot be written" in errors[0].what


# Formats beside masks


def test_formats_are_written_into_the_folder_of_infer_and_written_again(infer_folder: Path):
    formats = ("coco", "yolo", "labelstudio", "voc")
    for _ in range(2):
        done = write_formats(infer_folder, formats)
        assert [(one.format, one.images) for one in done] == [(name, 3) for name in formats]
    made = {path.name for path in infer_folder.iterdir()} - {"masks", "labelmap.txt", "predictions.jsonl"}
    assert made == {"coco.json", "labelstudio.json", "labelstudio.xml", "yolo", "voc"}
    with pytest.raises(ConfigError, match="masks are there already"):
        write_formats(infer_folder, ["masks"])


# Memory


def test_json_is_read_in_parts_wherever_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = [1, -2.5e3, "é\n🐕", {"a": [True, None, {}]}, [], 123456789, "", 0]
    (tmp_path / "in.json").write_text(
        json.dumps({"x": values, "y": 12}, indent=1, ensure_ascii=False), encoding="utf-8"
    )
    content = (tmp_path / "in.json").read_bytes()
    for chunk in range(1, 12):
        monkeypatch.setattr(json_parts, "CHUNK", chunk)
        with JsonParts(tmp_path / "in.json") as parts:
            keys = parts.members()
            assert next(keys) == "x"
            found = list(parts.array())
            assert [value for value, _, _ in found] == values
            assert [json.loads(content[first : first + count]) for _, first, count in found] == values
            assert next(keys) == "y" and parts.value()[0] == 12 and next(keys, None) is None


def test_memory_does_not_hold_a_coco_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    index = np.random.default_rng(0).integers(0, 4, (64, 64), np.uint8)
    source = write_infer_folder(tmp_path / "OUT", {str(n): index for n in range(300)})
    path = convert(source, tmp_path / "in.json", "coco", layout=Layout(per_class=True)).out
    size = path.stat().st_size
    assert size > 1_500_000
    monkeypatch.setattr(json_parts, "CHUNK", 1 << 14)
    tracemalloc.start()
    try:
        images = sum(isinstance(item, Labelled) for item in coco.read(path).items)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert images == 300 and peak < size / 4
