"""Benchmarks that run where `sccam` runs: `sccam bench SUITE`. Each suite is a file; harness.py times, eager.py is what
they are measured against."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sccam.artifacts import write_text
from sccam.bench.harness import Result
from sccam.errors import ConfigError

SUITES = ("walk",)


def run_suites(names: Sequence[str], *, quick: bool) -> Iterator[list[Result]]:
    """The tables of the given suites, one after the other.

    Raises:
        ConfigError: an unknown suite.
    """
    for name in names:
        if name not in SUITES:
            raise ConfigError(f"no suite {name!r}", fix=f"choose from {', '.join(SUITES)}")
    for name in names:
        yield from importlib.import_module(f"sccam.bench.{name}").run(quick=quick)


def record(rows: Sequence[Result], path: Path) -> None:
    """Writes the rows to a JSON list, one object a line; rows of other suites that stand there stay."""
    suites = {row.suite for row in rows}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [row for row in kept if row["suite"] not in suites] + [row.as_dict() for row in rows]
    write_text(path, "[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")
