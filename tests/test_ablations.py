"""The ladders that benchmarks/ablations carries are plans that can be run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import kept_runs  # of benchmarks/
import numpy as np
import pytest

from sccam.ablation import read_ablation
from sccam.artifacts import read_arrays, write_arrays
from sccam.recipe import load_config

FILES = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "ablations").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_of_a_ladder_has_settings_that_exist(path):
    assert len(read_ablation(path).seeds) == 5  # reads the settings of every variant


@pytest.mark.parametrize("ladder", ["photographs", "drawn"])
def test_a_whole_ladder_has_what_the_goals_are_about(ladder):
    plan = read_ablation(FILES[0].parent / f"{ladder}.toml")
    assert plan.ceiling
    assert {"shipped", "all-updates", "no-rounds", "balanced", "k-3-going-on"} <= set(plan.variants)


@pytest.mark.parametrize(("ladder", "shipped"), [("photographs", "photos"), ("drawn", "demo")])
def test_the_last_rung_is_what_the_package_ships(ladder, shipped):
    plan = read_ablation(FILES[0].parent / f"{ladder}.toml")
    measured, real = plan.settings("shipped", 0), load_config(shipped, [])
    assert replace(measured, measure=real.measure, run=real.run) == real


def test_there_are_ladders():
    assert [path.stem for path in FILES] == ["drawn", "levers", "photographs", "walks"]


# Kept runs


def measured_run(folder: Path, counts: np.ndarray) -> None:
    folder.mkdir(parents=True)
    finished = {"walk": {"seconds": 3.5, "taken_from": "/somewhere/else"}}
    (folder / "run.json").write_text(json.dumps({"status": "finished", "argv": ["/a/path"], "finished": finished}))
    (folder / "scores.json").write_text('{"rows": []}')
    (folder / "config.toml").write_text("[run]\nseed = 3\n")
    write_arrays(folder / "counts" / "maps-oracle-train.npz", {"counts": counts})


def test_kept_runs_come_back_with_their_figures_and_no_path(tmp_path, rng):
    counts = rng.integers(0, 70_000, (5, 3, 4))
    measured_run(tmp_path / "out/runs/plain/seed3", counts)
    (tmp_path / "out/runs/begun/seed3").mkdir(parents=True)
    kept_runs.keep(tmp_path / "out", 3, tmp_path / "kept.tar.xz", {"commit": "abc"})
    measured_run(tmp_path / "new/runs/own/seed3", counts + 1)
    kept_runs.restore(tmp_path / "kept.tar.xz", 3, tmp_path / "new")
    run = tmp_path / "new/runs/plain/seed3"
    state = json.loads((run / "run.json").read_text())
    assert state == {"status": "finished", "finished": {"walk": {"seconds": 3.5}}, "kept": {"commit": "abc"}}
    assert (run / "config.toml").read_text() == "[run]\nseed = 3\n" and (run / "scores.json").exists()
    np.testing.assert_array_equal(read_arrays(run / "counts/maps-oracle-train.npz")["counts"], counts)
    assert sorted(path.name for path in (tmp_path / "new/runs").iterdir()) == ["own", "plain"]
    # kept once more beside a run of another commit, each has its own facts
    kept_runs.keep(tmp_path / "new", 3, tmp_path / "again.tar.xz", {"commit": "def"})
    kept_runs.restore(tmp_path / "again.tar.xz", 3, tmp_path / "third")
    commits = {
        run.parent.name: json.loads((run / "run.json").read_text())["kept"]["commit"]
        for run in kept_runs.finished(tmp_path / "third", 3)
    }
    assert commits == {"own": "def", "plain": "abc"}


def test_a_run_that_is_there_is_not_replaced_by_a_kept_one(tmp_path, rng):
    measured_run(tmp_path / "out/runs/plain/seed0", rng.integers(0, 9, (2, 3, 4)))
    kept_runs.keep(tmp_path / "out", 0, tmp_path / "kept.tar.xz", {})
    measured_run(tmp_path / "new/runs/plain/seed0", np.zeros((2, 3, 4), np.int64))
    kept_runs.restore(tmp_path / "kept.tar.xz", 0, tmp_path / "new")
    assert "kept" not in json.loads((tmp_path / "new/runs/plain/seed0/run.json").read_text())
