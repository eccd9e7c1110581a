"""Pseudo labels of tagged images: the labels of the stages' chain, by either backend, with tags given or predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sccam import cli
from sccam.artifacts import read_arrays, write_text
from sccam.bench.pseudo_labels import chain, differing, paper_form
from sccam.data.masks import read_mask
from sccam.errors import ConfigError, DataError, ImageError, RunFolderError
from sccam.runtime import pseudo_labels as module
from sccam.runtime.folder import predict, predict_to
from sccam.runtime.image_tags import Tags
from sccam.runtime.network_onnxruntime import cut_to_features, open_onnx, read_onnx
from sccam.runtime.pseudo_labels import PseudoLabelJob, check_task, read_recipe
from sccam.runtime.segmenter import SegmentOptions
from sccam.runtime.sources import sources
from tests.made_run import CLASSES, TAGS, draw, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw(tmp_path / "in")
    write_text(tmp_path / "tags.csv", TAGS)
    return tmp_path / "in"


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_labels_are_those_of_the_stages(run, images, backend):
    found = list(sources(images))[:3]
    tags = Tags(images.parent / "tags.csv", CLASSES)
    expected = chain("stages", run, read_recipe(run), tags, [found], paper_form).run(0)
    job = PseudoLabelJob(run, images.parent / "tags.csv", backend)
    by_name = {result.source.name: result.labels for result in predict(job, found)}
    labels: Any = [by_name[source.name] for source in found]
    assert differing(labels, expected) < 1e-3
    assert len(np.unique(np.concatenate([one.ravel() for one in expected]))) >= 2


def test_features_and_affinities_of_the_exported_file_are_the_same_field(run, rng):
    path = run / "export/affinity_net.onnx"
    images = rng.integers(0, 256, (1, 64, 96, 3), dtype=np.uint8)
    job = PseudoLabelJob(run, None, "onnxruntime")
    size = (60, 90)  # what padding lies beyond is no neighbour
    fields = [
        job._field({name: array[0] for name, array in open_onnx(path, features=features)(images).items()}, size)
        for features in (True, False)
    ]
    assert open_onnx(path, features=True)(images).keys() == {"features"}
    np.testing.assert_allclose(fields[0].values, fields[1].values, atol=1e-5)
    assert len(cut_to_features(read_onnx(path))) < path.stat().st_size
    other = run / "export/cam_net.onnx"
    assert cut_to_features(read_onnx(other)) == read_onnx(other)  # nothing to cut


def test_an_image_tagged_with_nothing_is_background_and_one_without_a_line_an_error(run, images, tmp_path):
    Image.new("RGB", (40, 50)).save(images / "untagged.png")
    summary = predict_to(
        PseudoLabelJob(run, tmp_path / "tags.csv"), sources(images), tmp_path / "out", ("mask", "scores")
    )
    assert (summary.done, summary.failed) == (4, 1)
    assert read_mask(tmp_path / "out/masks/3.png").max() == 0
    (error,) = map(json.loads, (tmp_path / "out/errors.jsonl").read_text().splitlines())
    assert error["class"] == "DataError" and "no tags for 'untagged.png'" in error["reason"]
    records = map(json.loads, (tmp_path / "out/predictions.jsonl").read_text().splitlines())
    by_name = {record["name"]: record for record in records}
    assert by_name["1"]["tags"] == ["red fox"] and by_name["1"]["tags_from"] == "file"
    assert set(np.unique(read_mask(tmp_path / "out/masks/1.png"))) <= {0, 3, 255}
    arrays = read_arrays(tmp_path / "out" / by_name["0"]["scores"])
    assert list(arrays["classes"]) == ["background", "cat", "dog"] and len(arrays["scores"]) == 3
    assert "scores" not in by_name["3"]


def test_without_tags_the_predicted_ones_are_used_and_every_output_says_so(run, images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        ["sccam", "infer", str(run), str(images), "-o", str(tmp_path / "out"), "--task", "pseudo-label"],
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    told = capsys.readouterr()
    assert "WARNING: no tag file given" in told.err
    assert json.loads((tmp_path / "out/infer.json").read_text())["tags"] == "predicted"
    assert json.loads((tmp_path / "out/summary.json").read_text())["tags"] == "predicted"
    for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["tags_from"] == "predicted" and set(record["tags"]) <= set(CLASSES)


def test_bad_tags_bad_runs_and_settings_of_the_other_task_are_refused(run, images, tmp_path):
    write_text(tmp_path / "wrong.csv", "image,tags\n0.png,cta\n")
    with pytest.raises(DataError, match="cta") as caught:
        PseudoLabelJob(run, tmp_path / "wrong.csv")
    assert caught.value.where is not None and "wrong.csv:2" in caught.value.where
    with pytest.raises(RunFolderError, match="this is no run"):
        PseudoLabelJob(images)
    for task, options in (("pseudo-label", replace(SegmentOptions(), flip=True)), ("label", SegmentOptions())):
        with pytest.raises(ConfigError):
            check_task(task, options)
    check_task("pseudo-label", SegmentOptions())


def test_an_image_too_large_for_a_walk_is_an_error_of_its_own(run, images, monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 90 * 130 - 1)
    results = {r.source.name: r.error for r in predict(PseudoLabelJob(run), sources(images))}
    assert {name for name, error in results.items() if isinstance(error, ImageError)} == {"0", "3"}
