"""Paired timing: every contestant runs in turn, round after round, on the same inputs, and is checked in the same run.

A ratio is the median over rounds of (seconds of the baseline / seconds of the row), both taken seconds apart, so that
what else the machine does hits both. A row whose result differs by more than its limit is reported as wrong, whatever
its speed.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROUNDS = 9  # after one round of warm-up
QUICK_ROUNDS = 3
SHORTEST = 0.05  # [s] a faster contestant is run several times within a round
MOST_REPEATS = 20


@dataclass(frozen=True, slots=True)
class Contestant:
    """One way to do the work.

    Attributes:
        name: for the table.
        run: does the work on input n; inputs rotate, so that nothing is learned by heart.
        judged: what is compared of its result; None where only time counts.
    """

    name: str
    run: Callable[[int], Any]
    judged: bool = True


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
    seconds: Seconds
    ratio: float  # how many times as fast as the baseline
    max_error: float | None  # against the judge; None for rows that are not judged
    agreement: float | None  # share of equal decisions, the lowest of the inputs; where the suite has one
    wrong: bool  # max_error is beyond its limit
    device: str
    commit: str

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
    judge: Callable[[int], Any],
    error: Callable[[Any, Any], float],
    limit: float,
    agreement: Callable[[Any, Any], float] | None = None,
    every_input: bool = False,
) -> list[Result]:
    """Times all contestants in turn; the first is the baseline.

    Args:
        suite, case: for the record.
        inputs: how many there are; round n takes input n modulo this.
        quick: fewer rounds.
        judge: the exact result for input n.
        error: of a result against the judge's.
        limit: largest error that is not wrong.
        agreement: share of equal decisions of a result and the judge's.
        every_input: judge all inputs, even where `quick`.
    """
    errors: dict[str, float] = {}
    agreements: dict[str, float] = {}
    repeats: dict[str, int] = {}
    for contestant in contestants:  # warm-up, and how long each takes
        started = time.perf_counter()
        contestant.run(0)
        once = time.perf_counter() - started
        repeats[contestant.name] = max(1, min(MOST_REPEATS, int(SHORTEST / max(once, 1e-9))))
    for n in range(min(inputs, 2) if quick and not every_input else inputs):
        expected = judge(n)
        for contestant in contestants:
            if contestant.judged:
                found = contestant.run(n)
                errors[contestant.name] = max(errors.get(contestant.name, 0.0), error(found, expected))
                if agreement is not None:
                    agreements[contestant.name] = min(agreements.get(contestant.name, 1.0), agreement(found, expected))
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    for round_ in range(QUICK_ROUNDS if quick else ROUNDS):
        for contestant in contestants:
            count = repeats[contestant.name]
            started = time.perf_counter()
            for k in range(count):
                contestant.run((round_ + k) % inputs)
            times[contestant.name].append((time.perf_counter() - started) / count)
    base = contestants[0].name
    return [
        Result(
            suite=suite,
            case=case,
            row=contestant.name,
            baseline=base,
            seconds=_spread(times[contestant.name]),
            ratio=statistics.median(b / t for b, t in zip(times[base], times[contestant.name], strict=True)),
            max_error=errors.get(contestant.name),
            agreement=agreements.get(contestant.name),
            wrong=errors.get(contestant.name, 0.0) > limit,
            device=device_name(),
            commit=commit(),
        )
        for contestant in contestants
    ]


def largest_difference(found: Any, expected: Any) -> float:
    """max |found - expected| over arrays, or lists of arrays."""
    if isinstance(expected, list | tuple):
        return max(largest_difference(a, b) for a, b in zip(found, expected, strict=True))
    gap = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64))
    return float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0))


def device_name() -> str:
    """The processor, and how many cores of it are used."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{cores} cores of {model}"


def commit() -> str:
    """The checkout's commit, marked where files differ from it; the version outside a checkout."""
    from sccam import __version__

    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return f"sccam {__version__}"
    return done.stdout.strip()


def _spread(times: list[float]) -> Seconds:
    q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
    return Seconds(median, q1, q3)
