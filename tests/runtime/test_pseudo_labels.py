"""Pseudo labels of tagged images: the labels of the stages' chain, by either backend, with tags given or predicted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pseudo_labels import chain, differing, paper_form

from sccam import cli
from sccam import config as toml
from sccam.artifacts import RunFolder, read_arrays, write_json, write_text, write_weights
from sccam.data.masks import read_mask
from sccam.errors import ConfigError, DataError, ImageError, NumericError, RunFolderError
from sccam.export.run import export_run
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import build_backbone
from sccam.nets.cam_net import CamNet
from sccam.recipe import load_config
from sccam.runtime import pseudo_labels as module
from sccam.runtime.folder import predict, predict_to
from sccam.runtime.network_onnxruntime import cut_to_features, open_onnx, read_onnx
from sccam.runtime.pseudo_labels import PseudoLabelJob, Tags, check_task, read_recipe
from sccam.runtime.segmenter import SegmentOptions
from sccam.runtime.sources import Source, sources

CLASSES = ("cat", "dog", "red fox")
SIZES = ((90, 130), (64, 96), (131, 77), (90, 130))
RADIUS = 3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves for the job, its networks untrained, and its exported files."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    # A few steps: untrained affinities average everything away, and labels of ties would be decided by rounding.
    walk = ["walk.steps=4", "walk.normalise=false"]
    settings = load_config("demo", ["cam.scales=[1.0, 0.5]", f"affinity.radius={RADIUS}", *walk])
    write_text(folder / "config.toml", toml.dump(settings))
    write_json(folder / "run.json", {"schema": 1, "status": "finished"})
    write_json(folder / "threshold.json", {"alpha_walk": 2.5})
    torch.manual_seed(3)
    for kind, path in (("cam_net", folder.classifier(0)), ("affinity_net", folder.affinity_net)):
        backbone = build_backbone("test_resnet", output_stride=16, weights="none")
        net: Any = CamNet(backbone, len(CLASSES), 3) if kind == "cam_net" else AffinityNet(backbone, 8)
        write_weights(
            path, net.state_dict(), kind=kind, backbone="test_resnet", classes=CLASSES, mean=tuple(backbone.mean),
            std=tuple(backbone.std), stride=16 if kind == "cam_net" else 8,
            made_from={"output_stride": 16, "subcategory_parent": [0, 1, 2], "radius": RADIUS},
        )  # fmt: skip
    draw(folder / "pictures")
    export_run(
        folder.path, networks=("cam_net", "affinity_net"), precisions=("fp32",), images=folder / "pictures",
        tell=lambda text: None,
    )  # fmt: skip
    return folder.path


def draw(folder: Path) -> None:
    """Smooth random pictures."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for n, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{n}.png")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw(tmp_path / "in")
    write_text(tmp_path / "tags.csv", "image,tags\n0.png,cat dog\nin/1.png,red fox\n2,cat\n3.png,\n")
    return tmp_path / "in"


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_the_labels_are_those_of_the_stages(run, images, backend):
    found = list(sources(images))[:3]
    tags = Tags(images.parent / "tags.csv", CLASSES)
    (expected,) = [chain(run, read_recipe(run), tags, [found], paper_form)(0)]
    job = PseudoLabelJob(run, images.parent / "tags.csv", backend)
    by_name = {result.source.name: result.labels for result in predict(job, found)}
    labels = [by_name[source.name] for source in found]
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
    assert "WARNING: no --tags given" in told.err
    assert json.loads((tmp_path / "out/infer.json").read_text())["tags"] == "predicted"
    assert json.loads((tmp_path / "out/summary.json").read_text())["tags"] == "predicted"
    for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["tags_from"] == "predicted" and set(record["tags"]) <= set(CLASSES)


def test_only_classes_that_are_more_likely_than_not_are_predicted():
    assert module._predicted(np.array([-0.1, 0.1, 3], np.float32)).tolist() == [1, 2]
    with pytest.raises(NumericError, match="NaN"):
        module._predicted(np.array([np.nan, 1], np.float32))


def test_bad_tags_bad_runs_and_settings_of_the_other_task_are_refused(run, images, tmp_path):
    write_text(tmp_path / "wrong.csv", "image,tags\n0.png,cta\n")
    with pytest.raises(DataError, match="cta") as caught:
        PseudoLabelJob(run, tmp_path / "wrong.csv")
    assert caught.value.where is not None and "wrong.csv:2" in caught.value.where
    with pytest.raises(RunFolderError, match="this is no run"):
        PseudoLabelJob(images)
    for task, options, tags in (
        ("pseudo-label", replace(SegmentOptions(), flip=True), None),
        ("segment", SegmentOptions(), Path("tags.csv")),
        ("label", SegmentOptions(), None),
    ):
        with pytest.raises(ConfigError):
            check_task(task, options, tags)
    check_task("pseudo-label", SegmentOptions(), Path("tags.csv"))


def test_an_image_too_large_for_a_walk_is_an_error_of_its_own(run, images, monkeypatch):
    monkeypatch.setattr(module, "MOST_PIXELS", 90 * 130 - 1)
    results = {r.source.name: r.error for r in predict(PseudoLabelJob(run), sources(images))}
    assert {name for name, error in results.items() if isinstance(error, ImageError)} == {"0", "3"}


def test_a_name_is_found_with_and_without_folders_and_suffix(tmp_path):
    write_text(tmp_path / "tags.json", json.dumps({"a/1.jpg": ["cat"], "2": ["dog"], "b/3": ["red fox"]}))
    tags = Tags(tmp_path / "tags.json", CLASSES)
    for name, path, expected in (("a/1", "x/a/1.jpg", 0), ("c/2", "c/2.png", 1), ("b/3", "b/3.png", 2)):
        assert tags.of(Source(Path(path), name)).tolist() == [expected]
    with pytest.raises(DataError, match="no tags"):
        tags.of(Source(Path("b/1.png"), "b/1"))
