"""A folder of images through a segmenter: every image once, bad ones as lines, resumed after any end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sccam
from sccam import cli
from sccam.artifacts import read_arrays, write_json
from sccam.data.masks import read_mask, write_mask
from sccam.errors import (
    ConfigError,
    ImageError,
    ModelFileError,
    NumericError,
    ResourceError,
    RunFolderError,
    ShapeError,
)
from sccam.runtime import folder as folder_module
from sccam.runtime import pipeline
from sccam.runtime.folder import checked_saves, predict, predict_to
from sccam.runtime.network import open_network
from sccam.runtime.network_onnxruntime import has_cuda
from sccam.runtime.segmenter import SegmentJob, SegmentOptions, crf_of
from sccam.runtime.sources import Source, sources
from sccam.runtime.tiling import windows
from sccam.runtime.upsampling import pixel_labels
from sccam.stages.crf import PSA
from sccam.structures import TensorSpec
from tests.runtime.formula import CLASSES, STRIDE, job_of, lines, manifest, network


@pytest.fixture
def segmenter() -> SegmentJob:
    return job_of()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve images of five sizes, dark on the left and bright on the right."""
    for n in range(12):
        height, width = 20 + 7 * (n % 5), 50 + 3 * (n % 5)
        ramp = np.linspace(0, 255, width).astype(np.uint8)
        path = tmp_path / "in" / f"{'ab'[n % 2]}/{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()).save(path)
    return tmp_path / "in"


def test_every_image_gets_a_mask_of_its_size_and_a_line(segmenter, images, tmp_path):
    summary = predict_to(segmenter, sources(images), tmp_path / "out", ("mask", "overlay"))
    assert (summary.done, summary.skipped, summary.failed) == (12, 0, 0)
    found = lines(tmp_path / "out/predictions.jsonl")
    assert sorted(line["name"] for line in found) == sorted(source.name for source in sources(images))
    for line in found:
        mask = read_mask(tmp_path / "out" / line["mask"], class_count=2)
        assert list(mask.shape) == line["size"] == list(np.asarray(Image.open(line["path"])).shape[:2])
        assert mask[0, 0] == 1 and mask[0, -1] == 2 and mask[0, mask.shape[1] // 2] == 0
        assert line["pixels"] == {"dark": int((mask == 1).sum()), "bright": int((mask == 2).sum())}
        assert Image.open(tmp_path / "out" / line["overlay"]).size == mask.shape[::-1]
    assert "bright" in (tmp_path / "out/labelmap.txt").read_text()
    assert json.loads((tmp_path / "out/summary.json").read_text())["done"] == 12


def test_a_result_does_not_depend_on_batch_or_threads(segmenter, images):
    def all_labels(**options: Any) -> dict[str, bytes]:
        found = predict(segmenter, sources(images), **options)
        return {result.source.name: result.labels.tobytes() for result in found if result.labels is not None}

    expected = all_labels(batch=1, threads=1)
    assert len(expected) == 12
    for options in ({"batch": 5, "threads": 3}, {"batch": 100, "threads": 2}):
        assert all_labels(**options) == expected


def test_bad_files_become_lines_and_the_rest_goes_on(segmenter, images, tmp_path):
    (images / "empty.jpg").write_bytes(b"")
    (images / "text.png").write_text("no picture")
    good = next(images.glob("a/*.png")).read_bytes()
    (images / "cut.png").write_bytes(good[: len(good) // 2])
    (images / "folder.jpg").mkdir()
    found = [*sources(images), Source(images / "gone.jpg", "gone")]
    summary = predict_to(segmenter, found, tmp_path / "out")
    assert (summary.done, summary.failed) == (12, 4)
    errors = {line["name"]: line for line in lines(tmp_path / "out/errors.jsonl")}
    assert set(errors) == {"empty", "text", "cut", "gone"}
    assert all(line["class"] == "ImageError" and line["reason"] for line in errors.values())
    results = list(predict(segmenter, found))
    assert sum(isinstance(r.error, ImageError) and r.labels is None for r in results) == 4 and len(results) == 16


def test_a_second_run_does_only_what_is_missing_and_tries_failed_ones_again(segmenter, images, tmp_path):
    bad = images / "a/0.png"
    good = bad.read_bytes()
    bad.write_bytes(b"broken")
    assert predict_to(segmenter, sources(images), tmp_path / "out").failed == 1
    bad.write_bytes(good)
    seen = []
    watched = job_of(lambda batch: seen.append(len(batch)) or network(batch))  # type: ignore[func-returns-value]
    summary = predict_to(watched, sources(images), tmp_path / "out")
    assert (summary.done, summary.skipped, summary.failed, sum(seen)) == (1, 11, 0, 1)
    assert (tmp_path / "out/errors.jsonl").read_text() == ""
    assert len(lines(tmp_path / "out/predictions.jsonl")) == 12


def test_half_a_line_that_a_kill_left_is_done_again(segmenter, images, tmp_path):
    predict_to(segmenter, sources(images), tmp_path / "out")
    log = tmp_path / "out/predictions.jsonl"
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    summary = predict_to(segmenter, sources(images), tmp_path / "out")
    assert (summary.done, summary.skipped) == (1, 11)
    before = {line["name"]: {**line, "ms": None} for line in map(json.loads, whole.splitlines())}
    assert {line["name"]: {**line, "ms": None} for line in lines(log)} == before


def test_another_model_or_option_is_refused_with_the_difference(segmenter, images, tmp_path):
    predict_to(segmenter, sources(images), tmp_path / "out")
    other = job_of(sha256="1" * 64)
    with pytest.raises(RunFolderError, match=r"sha256: 0+ -> 1+"):
        predict_to(other, sources(images), tmp_path / "out")
    with pytest.raises(RunFolderError, match="crf: None ->"):
        predict_to(job_of(options=SegmentOptions(crf=PSA)), sources(images), tmp_path / "out")
    few = list(sources(images))[:5]
    summary = predict_to(other, few, tmp_path / "out", overwrite=True)
    assert (summary.done, summary.skipped) == (5, 0)
    assert len(list((tmp_path / "out/masks").rglob("*.png"))) == 5  # none of the other model's is left


def test_a_folder_with_other_files_is_left_alone(segmenter, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.doc").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"other files: thesis\.doc"):
        predict_to(segmenter, sources(images), tmp_path / "out", overwrite=True)
    assert (tmp_path / "out/thesis.doc").read_text() == "years of work"


def test_a_batch_that_fails_is_halved_until_only_the_guilty_image_fails(segmenter, images):
    def picky(batch: np.ndarray) -> dict[str, np.ndarray]:
        if len(batch) > 2:
            raise MemoryError("out of memory")
        if any(image.shape[0] == 32 and image[:20].shape == (20, 64, 3) for image in batch):
            raise RuntimeError("no kernel for this size")
        return network(batch)

    results = list(predict(job_of(picky), sources(images), batch=8))
    failed = [result for result in results if result.error is not None]
    assert len(results) == 12 and 0 < len(failed) < 12
    assert all(isinstance(r.error, ShapeError) and "no kernel for this size" in r.error.what for r in failed)


def test_nan_from_the_network_is_an_error_of_its_image_and_no_label(segmenter, images):
    def broken(batch: np.ndarray) -> dict[str, np.ndarray]:
        logits = network(batch)["logits"]
        logits[0, 1, 0, 0] = np.nan
        return {"logits": logits}

    results = list(predict(job_of(broken), sources(images), batch=1))
    assert len(results) == 12 and all(isinstance(r.error, NumericError) and r.labels is None for r in results)


def test_a_full_disk_ends_the_run_and_keeps_what_is_there(segmenter, images, tmp_path, monkeypatch):
    write, count = write_mask, iter(range(100))

    def full(path: Path, labels: np.ndarray) -> None:
        if next(count) >= 5:
            raise ResourceError("cannot write: No space left on device", where=path)
        write(path, labels)

    monkeypatch.setattr(folder_module, "write_mask", full)
    with pytest.raises(ResourceError, match="No space left"):
        predict_to(segmenter, sources(images), tmp_path / "out", threads=1)
    kept = lines(tmp_path / "out/predictions.jsonl")
    assert 0 < len(kept) <= 5 and all((tmp_path / "out" / line["mask"]).is_file() for line in kept)
    monkeypatch.setattr(folder_module, "write_mask", write)
    assert predict_to(segmenter, sources(images), tmp_path / "out").done == 12 - len(kept)


def test_a_long_name_is_written_and_one_that_is_too_long_is_a_line(segmenter, images, tmp_path):
    good = next(images.glob("a/*.png"))
    found = [Source(good, "x" * 251), Source(good, "y" * 300), Source(good, "z")]  # with ".png", 255 bytes may be used
    summary = predict_to(segmenter, found, tmp_path / "out")
    assert (summary.done, summary.failed) == (2, 1)
    assert (tmp_path / "out/masks" / ("x" * 251 + ".png")).is_file()
    (line,) = lines(tmp_path / "out/errors.jsonl")
    assert line["name"] == "y" * 300 and "cannot be made or written" in line["reason"]


def test_images_on_their_way_are_few_however_many_there_are(segmenter, images):
    one = next(images.glob("a/*.png"))
    drawn = []

    def endless() -> Any:
        for n in range(10_000):
            drawn.append(n)
            yield Source(one, f"{n}")

    results: Any = predict(segmenter, endless(), batch=2, threads=2)
    for _ in range(10):
        next(results)
    assert len(drawn) < 60
    results.close()


def test_the_crf_follows_the_image(segmenter, images):
    plain = {p.source.name: p.labels for p in predict(segmenter, sources(images))}
    refined = {p.source.name: p.labels for p in predict(job_of(options=SegmentOptions(crf=PSA)), sources(images))}
    assert plain.keys() == refined.keys()
    assert any(not np.array_equal(plain[name], refined[name]) for name in plain)  # type: ignore[arg-type]


def test_a_folder_that_another_process_works_on_is_refused(segmenter, images, tmp_path):
    entered, leave = threading.Event(), threading.Event()

    def slow(batch: np.ndarray) -> dict[str, np.ndarray]:
        entered.set()
        leave.wait(30)
        return network(batch)

    worker = threading.Thread(target=predict_to, args=(job_of(slow), sources(images), tmp_path / "out"))
    worker.start()
    entered.wait(30)
    with pytest.raises(RunFolderError, match="another process"):
        predict_to(segmenter, sources(images), tmp_path / "out")
    leave.set()
    worker.join()


def test_unknown_names_are_refused():
    assert checked_saves(["mask", "mask"]) == ("mask",) and crf_of("psa") == PSA and crf_of(None) is None
    with pytest.raises(ConfigError, match="nothing is saved as 'video'"):
        checked_saves(["video"])
    with pytest.raises(ConfigError, match="no CRF 'best'"):
        crf_of("best")
    for wrong in ({"scales": ()}, {"scales": (0.0,)}, {"size": 8}, {"tile": 100}):
        with pytest.raises(ConfigError):
            SegmentOptions(**wrong)


def labels_by(job: SegmentJob, images: Path) -> dict[str, np.ndarray]:
    found = {result.source.name: result.labels for result in predict(job, sources(images))}
    return {name: labels for name, labels in found.items() if labels is not None}


def watching() -> tuple[list[tuple[int, ...]], Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """The shapes that the network has seen, and the network."""
    seen: list[tuple[int, ...]] = []

    def watched(batch: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(batch.shape)
        return network(batch)

    return seen, watched


def test_tiles_give_the_labels_of_the_whole_image(images):
    rng = np.random.default_rng(0)
    for n, (height, width) in enumerate([(700, 300), (257, 900), (40, 800)]):
        blocks = rng.integers(0, 256, (height // 20 + 1, width // 20 + 1), np.uint8)
        large = np.kron(blocks, np.ones((20, 20), np.uint8))[:height, :width]
        Image.fromarray(large).convert("RGB").save(images / f"large{n}.png")
    seen, watched = watching()

    whole, tiled = labels_by(job_of(), images), labels_by(job_of(watched, SegmentOptions(tile=256)), images)
    assert max(max(shape[1:3]) for shape in seen) == 256 and whole.keys() == tiled.keys()
    for name, labels in whole.items():  # this network sees no farther than a cell, so only rounding may differ
        assert (labels == tiled[name]).mean() > 0.9999


def test_windows_cover_everything_overlap_and_begin_at_multiples():
    for length in range(32, 3000, 32):
        found = windows(length, 256, 64, 32)
        assert found[0].start == 0 and found[-1].stop == length and all(len(one) <= 256 for one in found)
        assert all(a.stop - b.start >= 64 and b.start % 32 == 0 for a, b in itertools.pairwise(found))


def test_a_mirrored_image_gives_the_mirrored_labels_with_views(images, tmp_path):
    views = job_of(options=SegmentOptions(scales=(0.75, 1.0, 1.5), flip=True))
    path = next(images.glob("a/*.png"))
    image = np.asarray(Image.open(path))[:16, :48]  # sides without padding, which would lie on another side
    Image.fromarray(image).save(tmp_path / "one.png")
    Image.fromarray(image[:, ::-1]).save(tmp_path / "two.png")
    found = labels_by(job_of(options=SegmentOptions(flip=True)), tmp_path)
    assert np.array_equal(found["one"], found["two"][:, ::-1]) and len(np.unique(found["one"])) == 3
    for name, labels in labels_by(views, images).items():  # near the labels of one view: the network is local
        assert (labels == labels_by(job_of(), images)[name]).mean() > 0.8
    assert views.options.price() == "6 views an image: the network has 7.6 times the pixels of one"


def test_a_smaller_size_gives_masks_of_the_images_own_size(images):
    seen, watched = watching()

    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (300, 400)).copy()).save(images / "large.png")
    small, whole = labels_by(job_of(watched, SegmentOptions(size=100)), images), labels_by(job_of(), images)
    assert small["large"].shape == (300, 400) and max(max(shape[1:3]) for shape in seen) <= 112
    assert (small["large"] == whole["large"]).mean() > 0.95


def test_a_model_with_a_long_side_of_its_own_sees_every_image_at_it(images):
    seen, watched = watching()

    ramp = np.linspace(0, 255, 400).astype(np.uint8)
    Image.fromarray(np.broadcast_to(ramp, (300, 400)).copy()).save(images / "large.png")
    Image.fromarray(np.broadcast_to(ramp[::4], (60, 100)).copy()).save(images / "small.png")
    made_from = {"pad_multiple": 16, "long_side": 192}
    found, whole = labels_by(job_of(watched, made_from=made_from), images), labels_by(job_of(), images)
    assert {max(shape[1:3]) for shape in seen} == {192}
    assert {name: labels.shape for name, labels in found.items()} == {n: labels.shape for n, labels in whole.items()}
    for name in ("large", "small"):
        assert (found[name] == whole[name]).mean() > 0.95
    seen.clear()
    labels_by(job_of(watched, SegmentOptions(size=96), made_from=made_from), images)
    assert max(max(shape[1:3]) for shape in seen) == 96  # what is asked for goes before the recipe

    def labels_only(batch: np.ndarray) -> dict[str, np.ndarray]:
        return {"labels": network(batch)["logits"].argmax(1).astype(np.uint8).repeat(8, 1).repeat(8, 2)}

    outputs = (TensorSpec("labels", "uint8", ("N", "H", "W")),)
    coarse = labels_by(job_of(labels_only, made_from=made_from, outputs=outputs), images)
    for name in ("large", "small"):
        assert coarse[name].shape == whole[name].shape and (coarse[name] == whole[name]).mean() > 0.9


def test_scores_are_stored_on_the_grid_and_sum_to_one(segmenter, images, tmp_path):
    predict_to(segmenter, sources(images), tmp_path / "out", ("mask", "scores"))
    for line in lines(tmp_path / "out/predictions.jsonl"):
        arrays = read_arrays(tmp_path / "out" / line["scores"])
        assert arrays["scores"].dtype == np.float16 and list(arrays["classes"]) == ["background", *CLASSES]
        np.testing.assert_allclose(arrays["scores"].astype(np.float32).sum(axis=0), 1, atol=2e-3)
        labels = pixel_labels(arrays["scores"], tuple(arrays["size"]), tuple(arrays["cells_per_pixel"]))
        assert (labels == read_mask(tmp_path / "out" / line["mask"])).mean() > 0.98


def test_formats_of_labelling_tools_are_written_at_the_end_and_go_with_another_model(segmenter, images, tmp_path):
    out = tmp_path / "out"
    predict_to(segmenter, sources(images), out, ("coco", "yolo", "labelstudio", "voc"))
    coco = json.loads((out / "coco.json").read_text())
    assert len(coco["images"]) == 12 and [c["name"] for c in coco["categories"]] == list(CLASSES)
    assert len(json.loads((out / "labelstudio.json").read_text())) == 12 and (out / "labelstudio.xml").is_file()
    assert (
        len(list((out / "yolo").rglob("[0-9]*.txt"))) == len(list((out / "voc/SegmentationClass").rglob("*.png"))) == 12
    )
    some = list(sources(images))[:5]
    predict_to(job_of(sha256="1" * 64), some, out, overwrite=True)
    assert not any(
        (out / name).exists() for name in ("coco.json", "yolo", "labelstudio.json", "labelstudio.xml", "voc")
    )


def test_an_image_that_has_changed_is_done_again(segmenter, images, tmp_path):
    predict_to(segmenter, sources(images), tmp_path / "out")
    changed = images / "a/0.png"
    Image.new("RGB", (9, 9), "white").save(changed)
    summary = predict_to(segmenter, sources(images), tmp_path / "out")
    assert (summary.done, summary.skipped) == (1, 11)
    assert read_mask(tmp_path / "out/masks/a/0.png").shape == (9, 9)


def test_a_read_that_hangs_is_given_up_and_the_rest_goes_on(segmenter, images, monkeypatch):
    monkeypatch.setattr(pipeline, "READ_SECONDS", 0.3)
    load, leave = segmenter.load, threading.Event()

    def hanging(source: Source) -> Any:
        if source.name in ("a/0", "b/3"):
            leave.wait(30)
        return load(source)

    segmenter.load = hanging
    results = list(predict(segmenter, sources(images), threads=1))
    leave.set()
    failed = {r.source.name: r.error for r in results if r.error}
    assert len(results) == 12 and set(failed) == {"a/0", "b/3"}
    assert all("took longer" in error.what for error in failed.values())


def test_batches_grow_while_that_makes_images_faster_and_stay_small_after_a_lack_of_memory():
    def settled(seconds_of: Any) -> int:
        one = np.zeros((1, 64, 64, 3), np.uint8)
        sizes, image = pipeline.BatchSizes(0, 8 << 20), pipeline.Loaded(Source(Path(), ""), one[0], (one,))
        for _ in range(60):
            n = sizes.of(image)
            try:
                sizes.ran(image, n, seconds_of(n))
            except MemoryError:
                sizes.failed(image, n)
        return sizes.of(image)

    def up_to_eight(n: int) -> float:
        if n > 8:
            raise MemoryError
        return 1.0

    assert settled(lambda n: n) == 1  # nothing gained: a CPU that is busy with one
    assert settled(lambda n: 1.0 + 0.001 * n) == 512 * 4  # all gained, up to the limit of pixels
    assert settled(lambda n: max(1.0, n / 16)) == 16
    assert settled(up_to_eight) == 8


# From the command line, with a real exported file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file that computes `network`, with its manifest."""
    onnx = pytest.importorskip("onnx")
    from sccam.artifacts import write_manifest

    helper, types = onnx.helper, onnx.TensorProto
    path = tmp_path_factory.mktemp("model") / "net.onnx"
    pool = {"kernel_shape": [STRIDE, STRIDE], "strides": [STRIDE, STRIDE]}
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=types.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weight", "bias"], ["fine"]),
        helper.make_node("AveragePool", ["fine"], ["logits"], **pool),
    ]
    weight = np.array([0, -2, 2], np.float32)[:, None, None, None] * np.full((1, 3, 1, 1), 1 / 765, np.float32)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("image", types.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info("logits", types.FLOAT, ["N", 3, "h", "w"])],
        [onnx.numpy_helper.from_array(weight, "weight"),
         onnx.numpy_helper.from_array(np.array([0.3, 1, -1], np.float32), "bias")],
    )  # fmt: skip
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )
    known = manifest()
    write_manifest(
        path, kind=known.kind, backbone=known.backbone, classes=known.classes, mean=known.mean, std=known.std,
        stride=known.stride, made_from=known.made_from, backend="onnx",
    )  # fmt: skip
    return path


def infer(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sccam.cli", "infer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_writes_masks_and_ends_with_5_where_some_files_failed(model, images, tmp_path):
    done = infer(model, images, "-o", tmp_path / "out")
    assert done.returncode == 0 and "12 images in" in done.stdout, done.stderr
    assert "by onnxruntime" in done.stderr
    (images / "broken.jpg").write_bytes(b"x")
    done = infer(model, images, "-o", tmp_path / "out", "--json")
    assert done.returncode == 5 and json.loads(done.stdout)["failed"] == 1
    assert json.loads(done.stdout)["skipped"] == 12


def test_a_gpu_that_is_asked_for_and_does_not_work_is_an_error_unless_the_cpu_is_allowed(model, images, tmp_path):
    if has_cuda():
        pytest.skip("this ONNX Runtime has CUDA")
    done = infer(model, images, "-o", tmp_path / "out", "--device", "cuda")
    assert done.returncode == 4 and "CUDAExecutionProvider was asked for, CPUExecutionProvider would run" in done.stderr
    done = infer(model, images, "-o", tmp_path / "out", "--device", "cuda", "--allow-fallback")
    assert done.returncode == 0 and "by onnxruntime on cpu" in done.stderr
    with pytest.raises(ConfigError, match="no device"):
        open_network(model, "segmenter", device="tpu")


@pytest.mark.parametrize(
    ("backend", "file", "fix"),
    [
        ("auto", "segmenter.safetensors", "sccam train ... --out RUN --resume"),
        ("torch", "segmenter.safetensors", "sccam train ... --out RUN --resume"),
        ("onnxruntime", "export/segmenter.onnx", "sccam export RUN --network segmenter"),
        ("tensorrt", "export/segmenter.engine", "sccam export RUN --network segmenter --engine"),
    ],
)
def test_a_network_that_a_run_does_not_have_is_named_with_what_makes_it(tmp_path, backend, file, fix):
    write_json(tmp_path / "run.json", {"schema": 1, "status": "killed"})
    with pytest.raises(ModelFileError) as error:
        open_network(tmp_path, "segmenter", backend)
    assert error.value.where == str(tmp_path / file)
    assert str(error.value.fix).endswith(fix.replace("RUN", str(tmp_path)))


def test_a_folder_that_is_no_run_is_not_called_one(tmp_path):
    with pytest.raises(ModelFileError, match="give a run folder"):
        open_network(tmp_path, "segmenter")


def test_running_an_onnx_file_loads_no_torch(model, images, tmp_path):
    code = (
        "import sys; from sccam import cli; sys.argv = ['sccam', 'infer', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(model), str(images), "-o", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert len(lines(tmp_path / "out/predictions.jsonl")) == 12


def test_shards_share_a_folder_and_a_launchers_rank_is_one(model, images, tmp_path, monkeypatch):
    assert infer(model, images, "-o", tmp_path / "out", "--shard", "0/2").returncode == 0
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert infer(model, images, "-o", tmp_path / "out").returncode == 0
    names = [line["name"] for n in (0, 1) for line in lines(tmp_path / f"out/shard-{n}-of-2/predictions.jsonl")]
    assert sorted(names) == sorted(source.name for source in sources(images))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_request_ends_after_the_image_and_the_same_command_goes_on(model, images, tmp_path, number, code):
    source = next(images.glob("a/*.png")).read_bytes()
    (tmp_path / "many").mkdir()
    for n in range(400):
        (tmp_path / f"many/{n}.png").write_bytes(source)
    arguments = [str(model), str(tmp_path / "many"), "-o", str(tmp_path / "out")]
    command = [sys.executable, "-m", "sccam.cli", "infer", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    log, deadline = tmp_path / "out/predictions.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and not (log.exists() and log.read_bytes().count(b"\n") >= 20):
        time.sleep(0.002)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code and "what was finished is saved" in told
    assert 20 <= len(lines(log)) < 400 and not list((tmp_path / "out").rglob(".*.tmp*"))
    assert infer(*arguments).returncode == 0 and len(lines(log)) == 400


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_every_result_once_and_equal(model, images, tmp_path):
    source = next(images.glob("a/*.png")).read_bytes()
    many = tmp_path / "many"
    for n in range(300):
        (many / f"{n % 3}").mkdir(parents=True, exist_ok=True)
        (many / f"{n % 3}/{n}.png").write_bytes(source)
    assert infer(model, many, "-o", tmp_path / "whole").returncode == 0
    command = [sys.executable, "-m", "sccam.cli", "infer", str(model), str(many), "-o", str(tmp_path / "out")]
    log = tmp_path / "out/predictions.jsonl"
    killed = 0
    for target in (20, 90, 170, 240):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= target:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.002)
        process.wait()
    assert killed >= 2  # a fast machine may finish before the last
    assert infer(model, many, "-o", tmp_path / "out").returncode == 0
    names = [line["name"] for line in lines(log)]
    assert len(names) == len(set(names)) == 300
    for path in (tmp_path / "whole/masks").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "out/masks" / path.relative_to(tmp_path / "whole/masks")).read_bytes()
    assert not list((tmp_path / "out").rglob("*.tmp*"))


def test_errors_of_the_command_line(model, images, tmp_path, capsys, monkeypatch):
    for arguments, code, text in (
        ((model, images, "--backend", "magic"), 2, "no backend 'magic'"),
        ((model, images, "--backend", "torch"), 2, "torch runs net.onnx"),
        ((tmp_path / "gone.onnx", images), 3, "no such file"),
        ((model, tmp_path / "gone"), 3, "no such image"),
        ((model, images, "--shard", "3/3"), 2, "not a shard"),
    ):
        monkeypatch.setattr("sys.argv", ["sccam", "infer", *map(str, arguments), "-o", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == code and text in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


# From a program


def test_a_loaded_model_predicts_from_folders_and_paths_and_one_bad_image_is_no_exception(model, images, tmp_path):
    (images / "broken.jpg").write_bytes(b"x")
    loaded = sccam.load(model)
    assert loaded.classes == CLASSES and loaded.backend == "onnxruntime"
    results = list(loaded.predict(images))
    assert len(results) == 13 and sum(result.error is not None for result in results) == 1
    some = list(loaded.predict(sorted(images.glob("a/*.png"))[:2], crf="psa"))
    assert len(some) == 2 and all(result.labels is not None for result in some)
    summary = loaded.predict_to(images, tmp_path / "out", save=("mask", "overlay"))
    assert (summary.done, summary.failed) == (12, 1)
    assert loaded.predict_to(images, tmp_path / "out", save=("mask", "overlay")).skipped == 12
