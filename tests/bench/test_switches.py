"""Every combination of the switches of `sccam infer`, on the same unseen images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import switches

from sccam.bench import harness
from sccam.data import open_dataset
from sccam.runtime.folder import predict
from sccam.runtime.jobs import open_job
from sccam.runtime.segmenter import SegmentOptions, crf_of
from sccam.runtime.sources import sources
from tests.made_run import SIZES, labelled, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), ("cam_net", "segmenter"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    labelled(tmp_path / "data")
    return tmp_path / "data"


def test_networks_that_run_once_give_the_labels_of_the_command(run, data):
    source = next(sources(data / "images/2.png"))
    for views in switches.VIEWS:
        found = switches.labels_of(switches.jobs_of(run, data / "tags.csv", views), source)
        for (_, crf, known), labels in found.items():
            tags = {"": None, "--tags predicted": "predicted", "--tags FILE": data / "tags.csv"}[known]
            options = SegmentOptions(crf=crf_of(switches.CRFS[crf]), **switches.VIEWS[views])
            (alone,) = predict(open_job(run, options, tags=tags), [source])
            np.testing.assert_array_equal(labels, alone.labels)


def test_every_way_is_counted_and_has_a_row(run, data, monkeypatch):
    monkeypatch.setitem(harness.SHORTEST, "cpu", 0.0)
    counts = switches.of_run(open_dataset(data), run, data / "tags.csv")
    assert list(counts) == switches.ways() and len(counts) == 18
    pixels = [SIZES[n][0] * SIZES[n][1] for n in (2, 3)]
    assert all(of_images.sum(axis=(1, 2)).tolist() == pixels for of_images in counts.values())
    given = [of_images for way, of_images in counts.items() if way[2] == "--tags FILE"]
    assert not any(of_images[0, :, 1:3].any() for of_images in given)  # a cat or a dog where the fox is the only tag
    found = switches.measured(data, [run, run])
    found["times"] = switches.timed(data, run, quick=True)
    assert found["times"]["cost"][""] == 1.0 and len(found["times"]["cost"]) == 18
    lines = switches.table({"made": found}).splitlines()
    assert len(lines) == 2 + 18 and lines[0] == "| switches | made, 2 images, 2 runs | time, made |"
    assert lines[2] == f"| none | {found['rows'][0]['miou']:.1f} | 1.0 |"
    assert lines[4].startswith("| `--tags FILE` | ") and "to" in lines[4]
