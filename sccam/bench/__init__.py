"""Benchmarks that run where `sccam` runs: `sccam bench SUITE`. Each suite is a file; harness.py times, eager.py is what
they are measured against, machine.py says on what."""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import write_text
from sccam.bench.harness import Result, of_ceiling
from sccam.bench.inputs import photographs
from sccam.errors import ConfigError, RunFolderError
from sccam.runtime import backends
from sccam.structures import ByteArray

SCHEMA = 1
SUITES = (
    "networks", "walk", "crf", "merge", "kmeans", "labels", "pseudo_labels", "folder", "files", "training", "scaling",
)  # fmt: skip
OF_A_RUN = ("pseudo_labels", "folder")  # suites that need a finished run with its exported files, and images


@dataclass
class Options:
    """What the suites run on.

    Attributes:
        quick: fewer rounds and smaller inputs: to see that it works.
        device: "cpu" or "cuda".
        folder: of photographs; drawn ones by default.
        run: a finished run with its exported files, for the suites `OF_A_RUN`.
        tags: of the photographs, for the suite of pseudo labels.
    """

    quick: bool = False
    device: str = "cpu"
    folder: Path | None = None
    run: Path | None = None
    tags: Path | None = None

    def rows(self, work: str) -> list[str]:
        """Rows of a line of `backends.TABLE` that are measured on the device; on a GPU no plain forms of the CPU."""
        left_out = "portable" if self.device == "cuda" else "cupy"
        return [name for name in backends.TABLE[work] if name != left_out and backends.missing(name) is None]

    @cached_property
    def images(self) -> list[ByteArray]:
        """A few images of the folder u8 [H W 3], or drawn ones."""
        return photographs(self.folder)


def run_suites(names: Sequence[str], options: Options) -> Iterator[list[Result]]:
    """The tables of the given suites, one after the other.

    Raises:
        ConfigError: an unknown suite, or one that needs a run where none is given.
    """
    for name in names:
        if name not in SUITES:
            raise ConfigError(f"no suite {name!r}", fix=f"choose from {', '.join(SUITES)}")
        if name in OF_A_RUN and (options.run is None or options.folder is None):
            raise ConfigError(
                f"the suite {name} needs a finished run and images", fix="give --run RUN and --images FOLDER"
            )
        if name == "pseudo_labels" and options.tags is None:
            raise ConfigError("the suite pseudo_labels needs the tags of the images", fix="give --tags FILE")
    for name in names:
        yield from importlib.import_module(f"sccam.bench.{name}").run(options)


def record(rows: Sequence[Result], path: Path, facts: dict[str, Any]) -> None:
    """Writes rows and facts of the machine as JSON; rows of other cases that stand there stay.

    Raises:
        RunFolderError: the file is of another device.
    """
    kept: list[dict[str, Any]] = []
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["facts"]["device"] != facts["device"]:
            raise RunFolderError(
                f"the file holds figures of {before['facts']['device']}, this is {facts['device']}", where=path,
                fix="choose another --out",
            )  # fmt: skip
        kept = before["rows"]
        rates = {name: max(rate, before["facts"]["ceilings"][name]) for name, rate in facts["ceilings"].items()}
        facts = {**facts, "ceilings": rates}  # the best that was ever seen is nearest to what the device can do
    new = {(row.suite, row.case) for row in rows}
    plain = [row for row in kept if (row["suite"], row["case"]) not in new]
    plain += [{**row.as_dict(), "commit": facts["commit"]} for row in rows]
    plain = [{**row, "of_ceiling": of_ceiling(row, facts["ceilings"])} for row in plain]
    plain.sort(key=lambda row: SUITES.index(row["suite"]) if row["suite"] in SUITES else len(SUITES))
    body = ",\n".join("  " + json.dumps(row) for row in plain)
    fits = json.dumps(exponents(plain))
    head = json.dumps(facts, indent=1)
    write_text(path, f'{{"schema": {SCHEMA}, "facts": {head},\n "exponents": {fits},\n "rows": [\n{body}\n]}}\n')


def exponents(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each scaling case and row: e in seconds ~ x^e, by least squares of the logarithms; and the fit's R^2."""
    points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row["x"] is not None:
            points[row["case"].rpartition(" = ")[0], row["row"]].append((row["x"], row["seconds"]["median"]))
    found = []
    for (case, name), pairs in points.items():
        if len(pairs) > 2:
            x, y = np.log(np.array(pairs)).T
            slope = float(np.polyfit(x, y, 1)[0])
            r2 = float(np.corrcoef(x, y)[0, 1] ** 2)
            found.append({"case": case, "row": name, "exponent": round(slope, 3), "r2": round(r2, 4), "points": len(x)})
    return found
