"""What `sccam bench` measured, from its files: of each device, and of each case the newest figures.

results/DEVICE-DATE.json -> devices -> rows -> headlines, the best row of each kind of work
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sccam.artifacts import read_json
from sccam.bench import SCHEMA, SUITES

RESULTS = Path(__file__).resolve().parent / "results"
NAME = re.compile(r"(?P<device>.+)-\d{4}-\d{2}-\d{2}\.json")  # other results lie in the same folder

HEADLINES = (  # work, its suite, what its case says; of several cases the first
    ("pseudo label, end to end", "pseudo_labels", ""),
    ("pseudo label, post-processing", "labels", ""),
    ("random walk", "walk", ""),
    ("dense CRF", "crf", "21 labels"),
    ("dense CRF, two unaries", "crf", "2 unaries"),
    ("maps of all scales merged", "merge", ""),
    ("k-means", "kmeans", "600 x 4096"),
)
NETWORKS = "networks"  # the suite whose cases are "NETWORK, SIZE, batch N"
PRECISIONS = ("fp32", "int8")  # a headline each
FOLDER = ("folder, images in, masks out", "folder", "")
EAGER = ("eager", "compiled")  # first word of a way that anybody has who has PyTorch

Row = dict[str, Any]  # sccam.bench.harness.Result.as_dict(), with commit and date


@dataclass(frozen=True, slots=True)
class Device:
    """A processor or a GPU, and all that was measured on it.

    Attributes:
        name: as it calls itself.
        slug: of its files.
        facts: of every file that has rows in use, the newest first.
        rows: in the order of the suites.
    """

    name: str
    slug: str
    facts: list[dict[str, Any]]
    rows: list[Row]

    @property
    def gpu(self) -> bool:
        """Only facts of a GPU name its CUDA."""
        return "cuda" in self.facts[0]

    def suites(self) -> Iterable[tuple[str, list[Row]]]:
        """Name and rows of each."""
        for suite, rows in groupby(self.rows, key=lambda row: row["suite"]):
            yield suite, list(rows)


@dataclass(frozen=True, slots=True)
class Headline:
    """The best row for some work, and the ways that it is measured against."""

    work: str
    row: Row
    eager: Row
    tuned: Row | None


def devices(folder: Path = RESULTS) -> list[Device]:
    """All that files named DEVICE-DATE.json tell; processors first, then GPUs.

    Raises:
        RunFolderError: a file is not JSON.
        SystemExit: a file of another form.
    """
    files: dict[str, list[tuple[str, Any]]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        name = NAME.fullmatch(path.name)
        if name is None:
            continue
        content = read_json(path)
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise SystemExit(f"{path}: not a file of `sccam bench` of schema {SCHEMA}; measure again, or rename it")
        files[content["facts"]["device"]].append((name["device"], content))
    found = [_device(name, contents) for name, contents in files.items()]
    return sorted(found, key=lambda device: (device.gpu, device.name))


def _device(name: str, files: list[tuple[str, Any]]) -> Device:
    files = sorted(files, key=lambda file: str(file[1]["facts"]["date"]), reverse=True)
    cases: dict[tuple[str, str], list[Row]] = {}
    facts = []
    for _, content in files:
        new: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in content["rows"]:
            if (row["suite"], row["case"]) not in cases:
                new[row["suite"], row["case"]].append(row | {"date": content["facts"]["date"]})
        cases |= new
        if new or not facts:
            facts.append(content["facts"])
    rows = [row for case in cases.values() for row in case]
    known = {suite: n for n, suite in enumerate(dict.fromkeys((*SUITES, *(row["suite"] for row in rows))))}
    return Device(name, files[0][0], facts, sorted(rows, key=lambda row: known[row["suite"]]))


def cases(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each case of one suite."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["case"], []).append(row)
    return found


PEERS = ("openvino",)  # what a user would pick instead; in the tables, and no headline


def headlines(device: Device) -> list[Headline]:
    """What there is of `HEADLINES`, of each network its best row in each of `PRECISIONS`, and of `FOLDER`."""
    suites = {suite: cases(rows) for suite, rows in device.suites()}

    def first(work: str, suite: str, said: str) -> Headline | None:
        ways = next((rows for case, rows in suites.get(suite, {}).items() if said in case), [])
        return best(work, ways)

    found = [first(*headline) for headline in HEADLINES]
    networks: dict[str, list[Row]] = {}
    for case, rows in suites.get(NETWORKS, {}).items():
        networks.setdefault(re.split(r", (?=\d+ x \d+|batch )", case)[0], rows)
    found += [best(f"network, {precision}", rows, precision) for rows in networks.values() for precision in PRECISIONS]
    found.append(first(*FOLDER))
    return [headline for headline in found if headline is not None]


def best(work: str, rows: list[Row], said: str = "") -> Headline | None:
    """The fastest right way of one case that is no eager one and whose name says `said`; None where there is none."""
    ours = [row for row in rows if not is_eager(row) and not row["wrong"] and said in row["row"]]
    ours = [row for row in ours if not row["row"].startswith(PEERS)]
    if not ours:
        return None
    named = {row["row"]: row for row in rows}
    row = max(ours, key=lambda row: float(row["ratio"]))
    return Headline(work, row, named[row["baseline"]], named.get(row["strong"]))


def is_eager(row: Row) -> bool:
    """The baseline, the fastest tuned way, or another that is named as one."""
    return row["row"] in (row["baseline"], row["strong"]) or row["row"].split()[0].rstrip(",") in EAGER


def met(row: Row) -> bool:
    """A wrong result meets no goal, whatever its speed."""
    return bool(row["ratio"] >= row["goal"] and not row["wrong"])


def images_a_second(row: Row) -> float:
    """Of one row."""
    return float(row["images"] / row["seconds"]["median"])
