"""Paired timing: ratios of what was timed together, wrong results named, rows recorded."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from sccam import cli
from sccam.bench import SUITES, kmeans, merge, record, run_suites, walk
from sccam.bench.harness import Contestant, Result, compare, largest_difference
from sccam.errors import ConfigError


class Clock:
    """A clock that moves only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def work(self, seconds: float, result: Any) -> Any:
        self.now += seconds
        return result


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def compared(contestants: list[Contestant], **options: Any) -> list[Result]:
    every: dict[str, Any] = {"inputs": 3, "quick": False, "judge": float, "error": largest_difference, "limit": 0.1}
    return compare("suite", "case", contestants, **(every | options))


def test_the_ratio_is_the_baselines_time_over_the_rows(clock):
    slow = Contestant("slow", lambda n: clock.work(2.0, n))
    fast = Contestant("fast", lambda n: clock.work(0.01, n + 0.05))
    first, second = compared([slow, fast])
    assert first.ratio == 1.0 and second.ratio == pytest.approx(200.0)
    assert [second.seconds.q1, second.seconds.median, second.seconds.q3] == pytest.approx([0.01] * 3)
    assert (second.row, second.baseline) == ("fast", "slow") and not second.wrong
    assert second.max_error == pytest.approx(0.05)


def test_a_ratio_is_taken_from_pairs_so_that_a_slow_spell_of_the_machine_cancels(clock):
    spell = iter([1, 1, 1, 1, 1, *range(2, 60)])
    state = {"factor": 1}

    def base(n: int) -> int:
        state["factor"] = next(spell)
        return clock.work(2.0 * state["factor"], n)

    row = Contestant("row", lambda n: clock.work(0.5 * state["factor"], n))
    assert compared([Contestant("base", base), row])[1].ratio == pytest.approx(4.0)


def test_a_fast_row_with_another_result_is_reported_as_wrong(clock):
    rows = compared(
        [Contestant("base", lambda n: clock.work(2.0, n)), Contestant("wrong", lambda n: clock.work(0.1, n + (n == 2)))]
    )
    assert [row.wrong for row in rows] == [False, True] and rows[1].max_error == 1.0


def test_nan_is_as_wrong_as_can_be():
    assert largest_difference([np.array([np.nan])], [np.array([1.0])]) == np.inf
    assert largest_difference(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0


def test_every_row_says_device_commit_and_spread(clock):
    row = compared([Contestant("base", lambda n: clock.work(2.0, n))])[0].as_dict()
    assert set(row) == {
        "suite", "case", "row", "baseline", "seconds", "ratio", "max_error", "agreement", "wrong", "device", "commit",
    }  # fmt: skip
    assert set(row["seconds"]) == {"median", "q1", "q3"} and row["device"] and row["commit"]


def test_recorded_rows_replace_those_of_their_suite_and_leave_the_others(tmp_path, clock):
    path = tmp_path / "kernels.json"
    path.write_text(json.dumps([{"suite": "suite", "case": "old"}, {"suite": "other", "case": "kept"}]))
    record(compared([Contestant("base", lambda n: clock.work(2.0, n))]), path)
    assert [(row["suite"], row["case"]) for row in json.loads(path.read_text())] == [
        ("other", "kept"),
        ("suite", "case"),
    ]


def test_an_unknown_suite_is_refused_before_any_work():
    with pytest.raises(ConfigError, match="no suite 'speed'") as caught:
        next(run_suites(["walk", "speed"], quick=True))
    assert "walk" in str(caught.value) and "walk" in SUITES


def test_the_suite_of_the_walk_runs_on_a_small_grid_and_no_row_is_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(walk, "GRIDS", {"psa": (9, 12), "irn": (11, 13)})
    out = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["sccam", "bench", "walk", "--quick", "--json", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == json.loads(out.read_text())
    assert {row["row"] for row in printed} >= {"torch dense, 8 squarings", "torch sparse, 256 products", "portable"}
    assert not any(row["wrong"] for row in printed) and all(0 < row["max_error"] < 1e-5 for row in printed)


def test_the_suites_of_merging_and_of_k_means_run_on_small_input_and_no_row_is_wrong(monkeypatch):
    monkeypatch.setattr(merge, "SIZE", (45, 60))
    monkeypatch.setattr(kmeans, "CASES", {"small": (60, 32, 3)})
    monkeypatch.setattr(kmeans, "SEPARATION", 3.0)  # clusters that every start finds
    tables = list(run_suites(["merge", "kmeans"], quick=True))
    assert [table[0].suite for table in tables] == ["merge", "merge", "kmeans"]
    for table in tables:
        assert len(table) >= 2 and not any(row.wrong for row in table)
        assert all(row.baseline == table[0].row for row in table)
