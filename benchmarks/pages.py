"""What the scripts here share: replacing a table of a page, cells of it, and the facts that a result names."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sccam.nets.compute import Compute
from sccam.origin import commit, device_name
from sccam.stages.bootstrap import mean_iou, paired_bootstrap

WORDS = {"better": "**+**", "worse": "**-**", "no difference": "="}  # of a difference, in tables
LIBRARIES = ("torch", "timm", "scikit-learn", "pydensecrf2", "numpy")


def facts() -> dict[str, str]:
    """Where a result was made: code, and the device that "auto" takes here."""
    return {"commit": commit(), "device": device_name(Compute.resolve("auto", "auto").device)}


def miou_of_runs(counts: np.ndarray) -> list[float]:
    """[points] of each run, from pixels by true and predicted label [runs images L L+1]."""
    return [round(100 * float(mean_iou(run.sum(axis=0))), 2) for run in counts]


def difference(counts: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    """What one way gains over another on the same images [points], with its interval and the word for it."""
    found = paired_bootstrap(counts, baseline)
    return {"word": found.word, **{name: round(100 * getattr(found, name), 2) for name in ("mean", "low", "high")}}


def difference_cell(found: Mapping[str, Any]) -> str:
    """A difference [points] as a cell has it: word, mean, and the ends of its interval."""
    return f"{WORDS[found['word']]} {found['mean']:+.1f}, {found['low']:+.1f} to {found['high']:+.1f}"


def parser_of_runs(doc: str | None) -> argparse.ArgumentParser:
    """For a script that measures finished runs of a set, one set after the other: name, data, runs, --table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="of the set")
    parser.add_argument("data", nargs="?", type=Path, help="its folder, with tags.csv and masks")
    parser.add_argument("runs", nargs="*", type=Path, help="finished runs on it, one a seed, with their networks")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    return parser


def replace_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
