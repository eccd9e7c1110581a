"""A segmenter that knows what an image shows: given tags draw no other class, predicted ones weigh the classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sccam
from sccam import cli
from sccam.artifacts import read_arrays, write_text
from sccam.data.masks import read_mask
from sccam.errors import ConfigError, DataError, ModelFileError, NumericError, RunFolderError
from sccam.runtime import image_tags
from sccam.runtime.folder import predict, predict_to
from sccam.runtime.image_tags import Tags
from sccam.runtime.network import OpenedNetwork
from sccam.runtime.segmenter import CLASSIFIED_SIDE, SegmentJob, SegmentOptions, crf_of
from sccam.runtime.sources import Source, sources
from sccam.structures import TensorSpec
from tests.made_run import CLASSES as RUN_CLASSES
from tests.made_run import TAGS, draw, make_run
from tests.runtime.formula import CLASSES, STRIDE, lines, manifest, network


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three ramps from dark to bright, and one of another size."""
    (tmp_path / "in").mkdir()
    for n in range(4):
        ramp = np.linspace(0, 255, 50 + 7 * (n == 3)).astype(np.uint8)
        Image.fromarray(np.broadcast_to(ramp[None, :, None], (20, len(ramp), 3)).copy()).save(tmp_path / f"in/{n}.png")
    return tmp_path / "in"


def job(tags: Tags | None = None, classifier: Any = None, options: SegmentOptions | None = None) -> SegmentJob:
    opened = OpenedNetwork(network, manifest(), "onnxruntime", Path("net.onnx"))
    other = classifier and OpenedNetwork(classifier, replace(manifest(), sha256="1" * 64), "onnxruntime", Path("cam"))
    return SegmentJob(opened, options or SegmentOptions(), tags=tags, classifier=other)


def scores_of(*scores: float) -> Any:
    return lambda images: {"scores": np.tile(np.array(scores, np.float32), (len(images), 1))}


def labels_of(job: SegmentJob, images: Path) -> dict[str, set[int]]:
    found = {}
    for result in predict(job, sources(images)):
        assert result.labels is not None, result.error
        found[result.source.name] = set(np.unique(result.labels).tolist())
    return found


def test_only_given_classes_are_drawn_with_views_and_a_crf_too(images, tmp_path):
    write_text(tmp_path / "tags.csv", "image,tags\n0,dark\n1,bright\n2,\n3,dark bright\n")
    tags = Tags(tmp_path / "tags.csv", CLASSES)
    expected = {"0": {0, 1}, "1": {0, 2}, "2": {0}, "3": {0, 1, 2}}
    assert labels_of(job(), images) == {name: {0, 1, 2} for name in "0123"}
    for options in (SegmentOptions(), SegmentOptions((0.5, 1.0), flip=True), SegmentOptions(crf=crf_of("psa"))):
        found = labels_of(job(tags, options=options), images)
        assert all(found[name] <= expected[name] for name in found)
        assert options.crf or found == expected


def test_predicted_classes_count_as_much_as_they_are_likely(images):
    scores = (0.3, -2.0)
    source = next(sources(images / "0.png"))
    plain, weighed = job(), job(classifier=scores_of(*scores))
    (logits,) = plain.run([plain.load(source)])
    loaded = weighed.load(source)
    (output,) = weighed.run([loaded])
    likely = np.array([1, *(1 / (1 + np.exp(-np.array(scores))))])
    products = np.exp(logits) * likely[:, None, None]
    found = weighed.finish(loaded, output)
    assert found.facts == {"tags": ["dark"], "tags_from": "predicted"}
    assert found.scores is not None
    np.testing.assert_allclose(found.scores()["scores"], products / products.sum(axis=0), atol=1e-3)
    assert labels_of(job(classifier=scores_of(-30, 30)), images) == {name: {0, 2} for name in "0123"}


def test_the_classifier_sees_the_whole_image_once_and_large_ones_made_smaller(images, tmp_path):
    seen = []

    def classifier(images: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(images.shape)
        return {"scores": np.zeros((len(images), len(CLASSES)), np.float32)}

    Image.new("RGB", (1300, 40)).save(tmp_path / "wide.png")
    views = SegmentOptions((0.5, 1.0), flip=True)
    for path in (tmp_path / "wide.png", images / "0.png"):
        weighed = job(classifier=classifier, options=views)
        weighed.run([weighed.load(next(sources(path)))])
    assert seen[0] == (1, 2 * 16, CLASSIFIED_SIDE, 3)
    assert seen[1][1] % STRIDE == 0 and seen[1][1:3] == (32, 64)


def test_every_record_says_which_tags_and_a_folder_made_without_them_is_refused(images, tmp_path):
    write_text(tmp_path / "tags.csv", "image,tags\n0,dark\n1,bright\n2,\n")
    out = tmp_path / "out"
    summary = predict_to(job(Tags(tmp_path / "tags.csv", CLASSES)), sources(images), out, ("mask", "scores"))
    assert (summary.done, summary.failed) == (3, 1)
    (error,) = lines(out / "errors.jsonl")
    assert error["class"] == "DataError" and "no tags for '3.png'" in error["reason"]
    by_name = {line["name"]: line for line in lines(out / "predictions.jsonl")}
    assert by_name["1"]["tags"] == ["bright"] and by_name["1"]["tags_from"] == "file" and by_name["2"]["tags"] == []
    assert read_arrays(out / by_name["1"]["scores"])["scores"][1].max() == 0
    assert json.loads((out / "infer.json").read_text())["tags"] == "given"
    for other in (job(), job(classifier=scores_of(1, 1))):
        with pytest.raises(RunFolderError, match="tags: given -> "):
            predict_to(other, sources(images), out, ("mask", "scores"))
    assert job(classifier=scores_of(1, 1)).plan()["classifier"] == "1" * 64
    assert "tags" not in job().plan()  # folders that were made before there were any


def test_scores_that_are_no_numbers_are_an_error_of_their_image(images):
    def classifier(images: np.ndarray) -> dict[str, np.ndarray]:
        return {"scores": np.full((len(images), 2), np.nan if images.shape[2] > 64 else 1.0, np.float32)}

    Image.new("RGB", (90, 20)).save(images / "long.png")
    errors = {result.source.name: result.error for result in predict(job(classifier=classifier), sources(images))}
    assert isinstance(errors["long"], NumericError) and errors["0"] is None


def test_only_classes_that_are_more_likely_than_not_are_predicted():
    assert image_tags.predicted(np.array([-0.1, 0.1, 3], np.float32)).tolist() == [1, 2]
    with pytest.raises(NumericError, match="NaN"):
        image_tags.predicted(np.array([np.nan, 1], np.float32))


def test_priors_stay_finite_however_sure_the_classifier_is():
    prior = image_tags.predicted_prior(np.array([-1e4, 0, 1e4], np.float32))
    np.testing.assert_allclose(prior, [0, -1e4, -np.log(2), 0], atol=1e-6)
    assert image_tags.given_prior(np.array([1], np.int32), 2).tolist() == [0, image_tags.IMPOSSIBLE, 0]


def test_a_file_that_gives_labels_only_takes_no_tags(tmp_path):
    write_text(tmp_path / "tags.csv", "image,tags\n0,dark\n")
    outputs = (TensorSpec("labels", "uint8", ("N", "H", "W")),)
    opened = OpenedNetwork(network, replace(manifest(), outputs=outputs), "onnxruntime", Path("net.onnx"))
    with pytest.raises(ModelFileError, match="labels, not logits"):
        SegmentJob(opened, tags=Tags(tmp_path / "tags.csv", CLASSES))
    with pytest.raises(ModelFileError, match="labels, not logits"):
        SegmentJob(opened, classifier=opened)


def test_a_name_is_found_with_and_without_folders_and_suffix(tmp_path):
    write_text(tmp_path / "tags.json", json.dumps({"a/1.jpg": ["cat"], "2": ["dog"], "b/3": ["red fox"]}))
    tags = Tags(tmp_path / "tags.json", RUN_CLASSES)
    for name, path, expected in (("a/1", "x/a/1.jpg", 0), ("c/2", "c/2.png", 1), ("b/3", "b/3.png", 2)):
        assert tags.of(Source(Path(path), name)).tolist() == [expected]
    with pytest.raises(DataError, match="no tags"):
        tags.of(Source(Path("b/1.png"), "b/1"))


@pytest.mark.slow
def test_a_run_gives_its_classifier_to_the_command_and_to_a_program(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", ("cam_net", "segmenter"))
    draw(tmp_path / "in")
    write_text(tmp_path / "tags.csv", TAGS)
    model = sccam.load(run)
    for tags, of in (("predicted", "predicted"), (tmp_path / "tags.csv", "file")):
        out = tmp_path / str(of)
        words = ["sccam", "infer", str(run), str(tmp_path / "in"), "-o", str(out), "--tags", str(tags)]
        monkeypatch.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        assert ("cam_net.onnx by" in capsys.readouterr().err) == (of == "predicted")
        assert {line["tags_from"] for line in lines(out / "predictions.jsonl")} == {of}
        for result in model.predict(tmp_path / "in", tags=tags):
            assert result.labels is not None
            np.testing.assert_array_equal(read_mask(out / f"masks/{result.source.name}.png"), result.labels)
    with pytest.raises(ConfigError, match="this is no run"):
        list(sccam.load(run / "export/segmenter.onnx").predict(tmp_path / "in", tags="predicted"))
    file = sccam.load(run / "export/segmenter.onnx").predict(tmp_path / "in", tags=tmp_path / "tags.csv")
    assert {r.source.name: r.labels.max() for r in file if r.labels is not None}["3"] == 0
