"""The suites of files, training and scaling at tiny sizes: what they promise is there, and a wrong result is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from sccam.bench import Options, exponents, files, merge, run_suites, scaling, training
from sccam.bench.eager import dense_walk
from sccam.bench.harness import Result
from sccam.bench.walk import drawn_case
from sccam.data.masks import coloured, write_mask
from sccam.errors import DataError
from sccam.runtime import backends, network_onnxruntime
from sccam.runtime.segmenter import SegmentJob
from sccam.stages.walk import WalkConfig, random_walk

Rows = list[Result]


@pytest.fixture
def options(rng) -> Options:
    """Three smooth images."""
    options = Options(quick=True)
    noise = gaussian_filter(rng.normal(size=(3, 60, 80, 3)), (0, 4, 4, 0))
    options.images = list(np.clip(128 + 500 * noise, 0, 255).astype(np.uint8))
    return options


def tables_of(suite: str, options: Options) -> dict[str, Rows]:
    return {table[0].case: table for table in run_suites([suite], options)}


def wrong(table: Rows) -> list[str]:
    return [row.row for row in table if row.wrong]


# Files


@pytest.fixture
def small_files(monkeypatch) -> None:
    monkeypatch.setattr(files, "SIZE", (60, 80))
    monkeypatch.setattr(files, "QUICK_FILES", 4)
    monkeypatch.setattr(files, "LARGE_TILES", 2)
    monkeypatch.setattr(files, "LARGE_FILES", 1)
    monkeypatch.setattr(files, "worker_count", lambda _: 2)
    monkeypatch.setattr(files, "_megapixels", lambda image: f"{image.shape[0]} x {image.shape[1]}")


DECODE, LARGE = "decode JPEG, 60 x 80", "decode JPEG, 120 x 160"
MASK, OVERLAY = "write mask PNG, 60 x 80", "write overlay JPEG, 60 x 80"


def test_files_are_read_and_written_alike_by_every_row(options, small_files):
    tables = tables_of("files", options)
    assert list(tables) == [DECODE, LARGE, MASK, OVERLAY]
    for (case, table), name in zip(tables.items(), ("read_image", "read_image", "write_mask", "coloured"), strict=True):
        assert [row.row for row in table][:3] == ["Pillow, 1 thread", f"{name}, 1 thread", f"{name}, 2 threads"]
        assert not wrong(table) and all(row.max_error is not None for row in table[:3])
        assert all(row.images == (2 if case == LARGE else 4) for row in table)
    assert all(row.max_error == 0 for case in (DECODE, LARGE, MASK) for row in tables[case][:3])
    assert 0 < (tables[OVERLAY][1].max_error or 0) < files.OVERLAY_LIMIT


def test_a_reader_that_gives_other_pixels_is_wrong_and_other_decoders_are_not_judged(options, small_files, monkeypatch):
    monkeypatch.setattr(files, "read_image", lambda path: files.pillow_image(path) ^ 1)
    monkeypatch.setattr(files, "other_decoders", lambda: {"other": lambda path: np.zeros((1, 1, 3), np.uint8)})
    table = tables_of("files", options)[DECODE]
    assert wrong(table) == ["read_image, 1 thread", "read_image, 2 threads"]
    assert (table[3].row, table[3].max_error) == ("other, 1 thread", None)


def test_a_mask_or_an_overlay_with_other_labels_is_wrong(options, small_files, monkeypatch):
    monkeypatch.setattr(files, "write_mask", lambda path, index: write_mask(path, np.roll(index, 1, axis=1)))
    monkeypatch.setattr(files, "coloured", lambda image, index: coloured(image, 2 * index))
    tables = tables_of("files", options)
    assert wrong(tables[MASK]) == ["write_mask, 1 thread", "write_mask, 2 threads"]
    assert wrong(tables[OVERLAY]) == ["coloured, 1 thread", "coloured, 2 threads"]


# Training


@pytest.fixture
def small_steps(monkeypatch) -> None:
    monkeypatch.setattr(training, "CROP", 64)
    monkeypatch.setattr(training, "QUICK_BATCH", 2)
    torch.set_num_threads(1)  # at this size threads only wait for each other, on a busy machine for seconds


def test_every_way_to_train_has_the_losses_of_the_first_steps(options, small_steps):
    tables = tables_of("training", options)
    networks = ("classifier", "affinity network", "segmenter")
    assert list(tables) == [f"{name}, 2 images of 64 x 64" for name in networks]
    for table in tables.values():
        assert [row.row for row in table] == ["eager fp32", "channels last", "channels last, bf16"]
        eager, last, half = (row.max_error for row in table)
        assert eager == 0.0 and last is not None and half is not None
        assert last < 1e-4 < half < training.LIMIT  # fp32 in another order; 16 bits; both after one step
        assert not wrong(table) and table[0].strong in ("channels last", "channels last, bf16")
        assert all(row.images == 2 for row in table)


def test_a_step_that_moves_no_weight_is_wrong(options, small_steps, monkeypatch):
    class Idle(training.Step):
        def _restart(self) -> None:
            super()._restart()
            for group in self._optimiser.param_groups if self._compute.precision == "bf16" else ():
                group["lr"] = 0.0

    monkeypatch.setattr(training, "Step", Idle)
    assert wrong(next(training.run(options))) == ["channels last, bf16"]


def test_a_compiled_row_is_there_where_the_compiler_works(options, small_steps, monkeypatch):
    def broken(function: Any, **settings: Any) -> Any:
        def fails(*arguments: Any) -> Any:
            raise RuntimeError("no compiler")

        return fails

    ways = (*training.WAYS["cpu"][:2], training.Way("compiled", compiled=True))
    monkeypatch.setattr(training, "WAYS", {"cpu": ways})
    monkeypatch.setattr(torch, "compile", broken)
    assert [row.row for row in next(training.run(options))] == ["eager fp32", "channels last"]
    monkeypatch.setattr(torch, "compile", lambda function, **settings: function)
    assert [row.row for row in next(training.run(options))] == ["eager fp32", "channels last", "compiled"]


def test_a_loss_that_is_not_a_number_is_wrong():
    assert training.loss_gap([1.0, float("nan")], [1.0, 1.0]) == np.inf
    assert training.loss_gap([float("nan"), 2.0], [1.0, 2.0]) == np.inf


def test_a_second_loss_is_held_against_how_far_the_step_moved_it():
    assert training.loss_gap([4.0, 1.5], [4.0, 2.0]) == 0.25
    assert training.loss_gap([4.0, 4.0], [4.0, 2.0]) == 1.0  # of a step that moved nothing
    assert training.loss_gap([5.0, 2.0], [4.0, 2.0]) == 0.25


# Scaling


def test_every_case_of_scaling_names_what_grows_and_has_an_exponent(options, monkeypatch):
    size = (60, 80)
    small = {
        "SIZE": size, "CRF_SIZES": ((15, 20), (30, 40), size), "LABELS": (2, 3, 4, 5), "CHANNELS": (1, 2, 3),
        "WALK_GRIDS": ((6, 8), (7, 8), (8, 8)), "GRIDS": {"psa": (6, 8)}, "STEPS": (4, 8, 16), "POINTS": (20, 40, 60),
        "POINT_CHANNELS": 8, "NETWORK_SIZES": ((32, 32), (32, 64), (64, 64)), "BATCH_SIZE": (32, 32),
        "IMAGES": (2, 3, 4),
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(scaling, name, value)
    monkeypatch.setattr(merge, "SIZE", size)
    tables = list(run_suites(["scaling"], options))
    found: dict[str, list[float]] = {}
    for table in tables:
        what = table[0].case.rpartition(" = ")[0]
        found.setdefault(what, []).append(table[0].x or 0)
        for row in table:
            assert row.case == f"{what} = {row.x:g}" and row.max_error is None and row.seconds.median > 0
    assert found == {
        "dense CRF, 3 labels, megapixels": [0.0003, 0.0012, 0.0048],
        "dense CRF, 60 x 80 pixels, labels": [2, 3, 4],
        "random walk, 3 channels, 256 steps, cells": [48, 56, 64],
        "random walk, 6 x 8 cells, 256 steps, channels": [1, 2, 3],
        "random walk, 6 x 8 cells, 3 channels, steps": [4, 8, 16],
        "map merging, 60 x 80 pixels, classes": [1, 2, 4],
        "k-means, 8 channels, K 5, points": [20, 40, 60],
        "DeepLab tf_efficientnet_lite0, megapixels": [0.001, 0.002, 0.0041],
        "DeepLab tf_efficientnet_lite0, 32 x 32 pixels, batch": [1, 2, 4],
        "segmentation of a folder, images": [2, 3, 4],
    }
    fits = exponents([row.as_dict() for table in tables for row in table])
    rows = {(row.case.rpartition(" = ")[0], row.row) for table in tables for row in table}
    assert {(fit["case"], fit["row"]) for fit in fits} == rows and all(fit["points"] == 3 for fit in fits)
    batches = [row.images for table in tables for row in table if " batch" in row.case or " folder" in row.case]
    assert batches == [1, 2, 4, 2, 3, 4]


def test_a_folder_whose_images_are_not_all_labelled_is_no_measurement(tmp_path, rng):
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "a.jpg")
    job = SegmentJob(scaling.stand_in())
    scaling._segment(job, tmp_path, 1)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 2"):
        scaling._segment(job, tmp_path, 2)


def test_the_stand_in_marks_what_is_bright():
    images = np.zeros((2, 16, 24, 3), np.uint8)
    images[1, :, 8:] = 255
    logits = scaling.stand_in().run(images)["logits"]
    assert logits.argmax(axis=1).tolist() == [[[0, 0, 0]] * 2, [[0, 1, 1]] * 2]


def test_rows_of_the_gpu_are_there_only_for_the_gpu(monkeypatch):
    monkeypatch.setattr(backends, "missing", lambda name: None)
    assert scaling._rows("crf", "cpu") == ["native"] and scaling._rows("crf", "cuda") == ["native", "cupy"]
    assert scaling._rows("k_means", "cuda") == ["blas"]


def test_the_segmenter_of_a_run_is_taken_with_its_exported_file(tmp_path: Path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(scaling, "open_network", lambda *_, **__: scaling.stand_in())
    monkeypatch.setattr(network_onnxruntime, "open_onnx", lambda path, device: (path, device))
    name, rows = scaling.networks(Options(run=tmp_path))
    assert (name, list(rows)) == ("DeepLab none", ["eager torch"])
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "segmenter.onnx").touch()
    rows = scaling.networks(Options(run=tmp_path))[1]
    assert list(rows) == ["eager torch", "ONNX Runtime"]
    assert rows["ONNX Runtime"] == (tmp_path / "export" / "segmenter.onnx", "cpu")  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("rule", ["fixed", "mean"])
def test_the_authors_squarings_give_the_walk_of_either_rule(rule):
    scores, affinity = drawn_case((9, 13), 3, seed=0)
    config = WalkConfig(rule=rule)
    assert np.abs(dense_walk(scores, affinity, config) - random_walk(scores, affinity, config)).max() <= 1e-4
