"""Suites of networks and of whole runs, on the smallest networks there are: every way gives the eager results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sccam import cli
from sccam.bench import Options, folder, networks, pseudo_labels, run_suites
from sccam.errors import ConfigError
from sccam.runtime.folder import Summary, predict_to
from tests.made_run import TAGS, draw, make_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """A run with its exported files, images in a folder `in`, and their tags."""
    place = tmp_path_factory.mktemp("suites")
    run = make_run(place / "run", ("cam_net", "affinity_net", "segmenter"))
    draw(place / "in")
    (place / "tags.csv").write_text(TAGS)
    return Options(quick=True, folder=place / "in", run=run, tags=place / "tags.csv")


def test_every_way_to_run_a_network_gives_the_eager_outputs(monkeypatch):
    tiny = replace(networks.NETWORKS["EfficientNet-Lite0, maps"], backbone="test_resnet", cpu=((64, 2),))
    monkeypatch.setattr(networks, "NETWORKS", {"tiny": tiny})
    monkeypatch.setattr(networks, "QUICK", ("tiny",))
    (table,) = run_suites(["networks"], Options(quick=True))
    rows = {row.row: row for row in table}
    assert {"eager", "eager, channels_last", "eager, channels_last, bf16"} <= rows.keys()
    assert {"onnxruntime fp32", "onnxruntime fp16", "onnxruntime int8"} <= rows.keys()
    assert not any(row.wrong for row in table)
    exact = rows["onnxruntime fp32"]
    assert exact.max_error is not None and exact.max_error < 1e-4 and exact.images == 2 and exact.gflop
    assert exact.strong is not None and exact.strong.startswith("eager, channels_last")


def test_the_job_gives_the_labels_of_the_stages_and_every_way_tells_its_steps(options, monkeypatch):
    monkeypatch.setattr(pseudo_labels, "QUICK_IMAGES", 3)
    (table,) = run_suites(["pseudo_labels"], options)
    assert [row.row for row in table] == ["stages", "authors", "job, onnxruntime", "job, torch"]
    assert not any(row.wrong for row in table) and all(row.images == 3 for row in table)
    for row in table:
        steps = {"maps", "walk", "crf", "affinity network"} if row.row in ("stages", "authors") else {"walk", "network"}
        assert row.steps is not None and steps <= row.steps.keys() and all(ms > 0 for ms in row.steps.values())


def test_a_folder_gets_the_masks_of_the_loop_that_people_write(options):
    (table,) = run_suites(["folder"], options)
    assert [row.row for row in table] == ["eager loop", "tuned loop, bf16", "infer, torch", "infer, onnxruntime fp32"]
    assert not any(row.wrong for row in table) and table[0].images == 4


def test_a_mask_that_is_missing_or_another_makes_a_row_wrong(options, monkeypatch):
    def fewer(job: Any, found: list[Any], out: Path) -> Summary:
        return replace(predict_to(job, found[1:], out), done=len(found))

    monkeypatch.setattr(folder, "predict_to", fewer)
    (table,) = run_suites(["folder"], options)
    assert [row.wrong for row in table] == [False, False, True, True]


def test_suites_of_a_run_say_what_they_need(options):
    for missing in ({"run": None}, {"folder": None}):
        with pytest.raises(ConfigError, match="needs a finished run"):
            next(run_suites(["folder"], replace(options, **missing)))
    with pytest.raises(ConfigError, match="tags"):
        next(run_suites(["pseudo_labels"], replace(options, tags=None)))


def test_a_row_with_wrong_results_ends_the_command_with_an_error(options, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(folder, "LIMITS", {"fp32": -1.0, "half": -1.0, "int8": -1.0})
    arguments = ["bench", "folder", "--quick", "--run", str(options.run), "--images", str(options.folder)]
    monkeypatch.setattr("sys.argv", ["sccam", *arguments, "--json", "--out", str(tmp_path / "rows.json")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 6 and "differ from the reference" in capsys.readouterr().err
    written = json.loads((tmp_path / "rows.json").read_text())
    assert all(row["wrong"] for row in written["rows"])
