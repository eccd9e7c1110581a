"""Counts what is injected and what comes of it: a `tally` for each test, written as JSON after the last one.

python -m pytest tests/faults                                            # few of each, as in every run of the tests
FAULTS=full FAULTS_JSON=counts.json python -m pytest tests/faults        # as many as are promised; their counts

Counts travel with the reports of the tests, so that they come together from several processes (pytest-xdist).
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sccam.origin import commit, device_name
from tests.faults.table import FAULTS, PROMISES

FULL = os.environ.get("FAULTS") == "full"


@dataclass
class Tally:
    """What one test injected.

    A test adds to `injected` before each fault and to `survived` after all that is promised was seen to hold, so a test
    that fails leaves survived < injected. What is lost, crashed or fired is counted before it is asserted to be zero.
    """

    test: str
    faults: tuple[int, ...] = ()
    promises: tuple[str, ...] = ()
    injected: int = 0
    survived: int = 0
    lost: int = 0  # results that should be there and are not, or are not what they should be
    crashed: int = 0  # processes that ended by a signal that nobody sent, or with a traceback
    fired: int = 0  # canaries
    seconds: float = 0.0
    notes: dict[str, float | int | str] = field(default_factory=dict)  # other figures for the page, by name


RECORDS: list[dict[str, Any]] = []
"""Tallies of the tests that have ended, as dictionaries."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps the counts of a test that has ended."""
    if report.when == "teardown":
        for name, value in report.user_properties:
            if name == "tally":
                assert isinstance(value, dict)
                RECORDS.append(value)


@pytest.fixture
def full() -> bool:
    """Whether as many faults as are promised are asked for."""
    return FULL


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The counts of this test, whose marks `fault(1, 2)` and `promise("quiet")` say what they count for."""
    faults = tuple(n for mark in request.node.iter_markers("fault") for n in mark.args)
    promises = tuple(name for mark in request.node.iter_markers("promise") for name in mark.args)
    assert faults or promises, "mark the test with fault(NUMBER) or promise(NAME) of table.py"
    assert set(faults) <= FAULTS.keys() and set(promises) <= PROMISES.keys()
    counts = Tally(request.node.nodeid, faults, promises)
    started = time.perf_counter()
    yield counts
    counts.seconds = round(time.perf_counter() - started, 1)
    request.node.user_properties.append(("tally", asdict(counts)))
    assert counts.injected > 0, "nothing was injected"
    assert counts.survived == counts.injected
    assert counts.lost == counts.crashed == counts.fired == 0


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Writes the counts, where a file is asked for."""
    path = os.environ.get("FAULTS_JSON")
    if not path or "PYTEST_XDIST_WORKER" in os.environ:
        return
    records = sorted(RECORDS, key=lambda record: str(record["test"]))
    sums = {
        name: sum(record[name] for record in records) for name in ("injected", "survived", "lost", "crashed", "fired")
    }
    facts = {
        "schema": 1, "machine": device_name(), "python": platform.python_version(), "commit": commit(),
        "full": FULL, "failed": session.testsfailed, "faults": dict(FAULTS),
        "promises": {name: {"words": words, "faults": numbers} for name, (words, numbers) in PROMISES.items()},
    }  # fmt: skip
    Path(path).write_text(json.dumps({**facts, "sums": sums, "tests": records}, indent=1) + "\n", encoding="utf-8")
