"""Paired timing: every contestant runs in turn, round after round, on the same inputs, and is checked in the same run.

A ratio is the median over rounds of (seconds of the baseline / seconds of the row), both taken seconds apart, so that
what else the machine does hits both. A row whose result differs by more than its limit is reported as wrong, whatever
its speed. The first contestant is the baseline, the eager way; where others are marked as strong, the fastest of them
is what somebody gets who tunes PyTorch, and every row has a ratio to it, too.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sccam.bench.machine import PeakMemory, waiter

ROUNDS = {"cpu": 9, "cuda": 7}  # after one round of warm-up
QUICK_ROUNDS = 3
SHORTEST = {"cpu": 0.5, "cuda": 0.1}  # [s] a faster contestant is run several times within a round
MOST_REPEATS = 300


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the work.

    Attributes:
        name: for the table.
        run: does the work on input n; inputs rotate, so that nothing is learned by heart.
        judged: what is compared of its result; None where only time counts.
        strong: a tuned eager way.
        goal: how many times as fast as the baseline it should be.
        limit: largest error that is not wrong, in place of the suite's.
        steps: milliseconds by step, asked for after all rounds.
    """

    name: str
    run: Callable[[int], Any]
    judged: bool = True
    strong: bool = False
    goal: float | None = None
    limit: float | None = None
    steps: Callable[[], dict[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What one run does, and what it cannot do without.

    Attributes:
        images: that one run serves, for a rate.
        gflop: operations of the best method known here, a multiplication with an addition counted as two; in 1e9.
        gbyte: that must be read and written once; in 1e9.
    """

    images: float = 1.0
    gflop: float | None = None
    gbyte: float | None = None


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one run."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True, slots=True)
class Result:
    """One row of a table; also the object in the JSON."""

    suite: str
    case: str
    row: str
    baseline: str
    images: float  # a run
    seconds: Seconds
    ratio: float  # how many times as fast as the baseline
    ratio_q1: float
    ratio_q3: float
    strong: str | None  # the fastest tuned eager way
    strong_ratio: float | None  # how many times as fast as that
    goal: float | None  # of the ratio
    gflop: float | None  # that a run needs, see `Work`
    gbyte: float | None
    peak_mb: float | None  # that the first run added
    max_error: float | None  # against the judge; None for rows that are not judged
    agreement: float | None  # share of equal decisions, the lowest of the inputs; where the suite has one
    wrong: bool  # max_error is beyond its limit
    x: float | None  # what a scaling suite varies
    steps: dict[str, float] | None  # milliseconds by step, where a suite tells

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def compare(
    suite: str,
    case: str,
    contestants: Sequence[Contestant],
    *,
    inputs: int,
    quick: bool,
    judge: Callable[[int], Any] | None,
    error: Callable[[Any, Any], float] = lambda found, expected: 0.0,
    limit: float = math.inf,
    agreement: Callable[[Any, Any], float] | None = None,
    every_input: bool = False,
    work: Work = Work(),
    device: str = "cpu",
    x: float | None = None,
    rounds: int | None = None,
) -> list[Result]:
    """Times all contestants in turn; the first is the baseline.

    Args:
        suite, case: for the record.
        inputs: how many there are; round n takes input n modulo this.
        quick: fewer rounds.
        judge: the exact result for input n; None where only time counts.
        error: of a result against the judge's.
        limit: largest error that is not wrong.
        agreement: share of equal decisions of a result and the judge's.
        every_input: judge all inputs, even where `quick`.
        work: of one run.
        device: that is waited for before a clock is read; events on it would say the same, for every run ends there.
        x: what a scaling suite varies.
        rounds: of timing, where not `quick`; those of the device by default.
    """
    wait, kind = waiter(device), "cuda" if device.startswith("cuda") else "cpu"
    peaks: dict[str, float | None] = {}
    repeats: dict[str, int] = {}
    for contestant in contestants:  # warm-up, memory, and how long each takes
        with PeakMemory(device) as peak:
            contestant.run(0)
            wait()
        peaks[contestant.name] = peak.mb
        started = time.perf_counter()
        contestant.run(0)
        wait()
        once = time.perf_counter() - started
        repeats[contestant.name] = max(1, min(MOST_REPEATS, int(SHORTEST[kind] / max(once, 1e-9))))
    errors: dict[str, float] = {}
    agreements: dict[str, float] = {}
    for n in range(0 if judge is None else min(inputs, 2) if quick and not every_input else inputs):
        assert judge is not None
        expected = judge(n)
        for contestant in contestants:
            if contestant.judged:
                found = contestant.run(n)
                errors[contestant.name] = max(errors.get(contestant.name, 0.0), error(found, expected))
                if agreement is not None:
                    agreements[contestant.name] = min(agreements.get(contestant.name, 1.0), agreement(found, expected))
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for round_ in range(QUICK_ROUNDS if quick else rounds or ROUNDS[kind]):
        for contestant in contestants:
            count = repeats[contestant.name]
            wait()
            started = time.perf_counter()
            for k in range(count):
                contestant.run((round_ + k) % inputs)
            wait()
            times[contestant.name].append((time.perf_counter() - started) / count)
    base = contestants[0].name
    tuned = [c.name for c in contestants if c.strong]
    strong = min(tuned, key=lambda name: statistics.median(times[name])) if tuned else None

    def result(contestant: Contestant) -> Result:
        name = contestant.name
        seconds, ratio = _spread(times[name]), _ratios(times[base], times[name])
        return Result(
            suite=suite,
            case=case,
            row=name,
            baseline=base,
            images=work.images,
            seconds=seconds,
            ratio=ratio.median,
            ratio_q1=ratio.q1,
            ratio_q3=ratio.q3,
            strong=strong,
            strong_ratio=None if strong is None else _ratios(times[strong], times[name]).median,
            goal=contestant.goal,
            gflop=work.gflop,
            gbyte=work.gbyte,
            peak_mb=peaks[name],
            max_error=errors.get(name),
            agreement=agreements.get(name),
            wrong=not errors.get(name, 0.0) <= (limit if contestant.limit is None else contestant.limit),
            x=x,
            steps=None if contestant.steps is None else contestant.steps(),
        )

    return [result(contestant) for contestant in contestants]


def of_ceiling(row: Mapping[str, Any], rates: Mapping[str, float]) -> float | None:
    """Share of what the device can do: the least time that the work of a row needs over the time it took.

    Args:
        row: of `Result.as_dict`.
        rates: of `machine.ceilings`; operations at the fp32 rate or bytes at that of a copy, whichever takes longer.
    """
    if row["gflop"] is None and row["gbyte"] is None:
        return None
    least = max((row["gflop"] or 0.0) / rates["gflops"], (row["gbyte"] or 0.0) / rates["gbytes"])
    return round(least / float(row["seconds"]["median"]), 4)


def largest_difference(found: Any, expected: Any) -> float:
    """max |found - expected| over arrays, or lists of arrays."""
    if isinstance(expected, list | tuple):
        return max(largest_difference(a, b) for a, b in zip(found, expected, strict=True))
    gap = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def _ratios(base: Sequence[float], row: Sequence[float]) -> Seconds:
    return _spread([b / t for b, t in zip(base, row, strict=True)])


def _spread(values: Sequence[float]) -> Seconds:
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Seconds(median, q1, q3)
