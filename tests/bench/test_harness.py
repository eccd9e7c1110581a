"""Paired timing: ratios of what was timed together, wrong results named, rows recorded."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest

from sccam import cli
from sccam.bench import SUITES, Options, kmeans, machine, merge, record, run_suites, walk
from sccam.bench.harness import Contestant, Result, Work, compare, largest_difference, of_ceiling
from sccam.errors import BackendUnavailable, ConfigError, RunFolderError


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


def test_rows_say_how_near_they_came_to_what_the_machine_can_do(clock):
    rates = {"gflops": 10.0, "gbytes": 1.0}
    base = Contestant("base", lambda n: clock.work(2.0, n))

    def share(work: Work) -> float | None:
        return of_ceiling(compared([base], work=work)[0].as_dict(), rates)

    assert share(Work(gflop=5.0, gbyte=0.1)) == 0.25  # bound by its operations
    assert share(Work(gflop=5.0, gbyte=1.0)) == 0.5  # bound by memory
    assert share(Work()) is None


def test_the_fastest_tuned_eager_way_is_a_second_baseline(clock):
    ways = {"eager": 8.0, "tuned": 4.0, "tuned more": 2.0, "ours": 1.0}
    rows = compared(
        [Contestant(name, lambda n, s=s: clock.work(s, n), strong="tuned" in name) for name, s in ways.items()]  # type: ignore[misc]
    )
    assert [row.strong for row in rows] == ["tuned more"] * 4
    assert [row.strong_ratio for row in rows] == pytest.approx([0.25, 0.5, 1.0, 2.0])
    assert rows[3].ratio == pytest.approx(8.0)


def test_memory_that_a_run_takes_is_seen():
    with machine.PeakMemory("cpu") as peak:
        block = np.ones(100 << 20, np.uint8)
        del block
    assert peak.mb is None or 90 < peak.mb < 150


def test_a_machine_tells_its_rates_and_versions():
    found = machine.facts("cpu")
    assert all(rate > 0.1 for rate in found["ceilings"].values()) and "torch" in found["versions"]
    assert found["commit"] and found["device"] and machine.file_name("cpu").endswith(f"{found['date']}.json")
    with pytest.raises(BackendUnavailable):
        machine.facts("cuda:99")


FACTS = {"device": "a machine", "commit": "abc", "ceilings": {"gflops": 10.0, "gbytes": 1.0}}


def test_recorded_rows_replace_those_of_their_case_and_leave_the_others(tmp_path, clock):
    path = tmp_path / "machine.json"
    base = Contestant("base", lambda n: clock.work(2.0, n))
    record(compared([base], x=None), path, FACTS)
    record(compare("walk", "small", [base], inputs=1, quick=True, judge=None), path, FACTS)
    record(compared([base, Contestant("row", lambda n: clock.work(1.0, n))]), path, {**FACTS, "commit": "def"})
    written = json.loads(path.read_text())
    assert [(row["suite"], row["row"], row["commit"]) for row in written["rows"]] == [
        ("walk", "base", "abc"), ("suite", "base", "def"), ("suite", "row", "def"),
    ]  # fmt: skip
    with pytest.raises(RunFolderError, match="figures of a machine"):
        record([], path, {**FACTS, "device": "another"})


def test_exponents_are_those_of_the_cost(tmp_path, clock):
    path = tmp_path / "machine.json"
    for side in (1.0, 2.0, 4.0):
        square = Contestant("square", lambda n, side=side: clock.work(side**2, n))  # type: ignore[misc]
        record(
            compare("scaling", f"side = {side:g}", [square], inputs=1, quick=True, judge=None, x=side), path, FACTS
        )  # fmt: skip
    (fit,) = json.loads(path.read_text())["exponents"]
    assert fit == {"case": "side", "row": "square", "exponent": 2.0, "r2": 1.0, "points": 3}


def test_an_unknown_suite_is_refused_before_any_work():
    with pytest.raises(ConfigError, match="no suite 'speed'") as caught:
        next(run_suites(["walk", "speed"], Options(quick=True)))
    assert "walk" in str(caught.value) and "walk" in SUITES


def test_the_suite_of_the_walk_runs_on_a_small_grid_and_no_row_is_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(walk, "GRIDS", {"psa": (9, 12), "irn": (11, 13)})
    out = tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["sccam", "bench", "walk", "--quick", "--json", "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    written = json.loads(out.read_text())
    rates = written["facts"]["ceilings"]
    added = [{"commit": written["facts"]["commit"], "of_ceiling": of_ceiling(row, rates)} for row in printed]
    assert [{**row, **more} for row, more in zip(printed, added, strict=True)] == written["rows"]
    assert all(0 < row["of_ceiling"] < 1 for row in written["rows"])
    assert {row["row"] for row in printed} >= {"torch dense, 8 squarings", "torch sparse, 256 products", "portable"}
    assert not any(row["wrong"] for row in printed) and all(0 < row["max_error"] < 1e-5 for row in printed)


def test_the_suites_of_merging_and_of_k_means_run_on_small_input_and_no_row_is_wrong(monkeypatch):
    monkeypatch.setattr(merge, "SIZE", (45, 60))
    monkeypatch.setattr(kmeans, "CASES", {"small": (60, 32, 3)})
    monkeypatch.setattr(kmeans, "SEPARATION", 3.0)  # clusters that every start finds
    tables = list(run_suites(["merge", "kmeans"], Options(quick=True)))
    assert [table[0].suite for table in tables] == ["merge", "merge", "kmeans"]
    for table in tables:
        assert len(table) >= 2 and not any(row.wrong for row in table)
        assert all(row.baseline == table[0].row for row in table)
