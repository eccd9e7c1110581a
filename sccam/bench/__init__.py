"""Benchmarks that run where `sccam` runs: `sccam bench SUITE`. Each suite is a file; harness.py times, eager.py is what
they are measured against."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sccam.artifacts import write_text
from sccam.bench.harness import Result
from sccam.bench.inputs import photographs
from sccam.errors import ConfigError

SUITES = ("walk", "crf", "merge", "kmeans", "labels")
ON_IMAGES = ("crf", "labels")  # suites that read images


def run_suites(names: Sequence[str], *, quick: bool, images: Path | None = None) -> Iterator[list[Result]]:
    """The tables of the given suites, one after the other.

    Args:
        quick: fewer rounds.
        images: a folder of photographs for the suites that read images; drawn ones by default.

    Raises:
        ConfigError: an unknown suite.
    """
    for name in names:
        if name not in SUITES:
            raise ConfigError(f"no suite {name!r}", fix=f"choose from {', '.join(SUITES)}")
    pictures = photographs(images) if set(names) & set(ON_IMAGES) else []
    for name in names:
        run = importlib.import_module(f"sccam.bench.{name}").run
        yield from run(quick=quick, images=pictures) if name in ON_IMAGES else run(quick=quick)


def record(rows: Sequence[Result], path: Path) -> None:
    """Writes the rows to a JSON list, one object a line; rows of other suites that stand there stay."""
    suites = {row.suite for row in rows}
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    kept = [row for row in kept if row["suite"] not in suites] + [row.as_dict() for row in rows]
    write_text(path, "[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")
