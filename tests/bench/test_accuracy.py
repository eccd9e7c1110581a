"""The page of levers is written from ablation.json alone, and a set that is not named keeps its figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import accuracy as module
import pytest

from sccam.artifacts import read_json, write_json


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{module.BEGIN}\n{module.END}\nafter\n")
    monkeypatch.setattr(module, "RESULT", tmp_path / "accuracy.json")
    monkeypatch.setattr(module, "PAGE", page)
    return module


def row(stage: str, split: str, mean: float, word: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {"stage": stage, "column": "labels", "split": split, "mean": mean, "deviation": 1.25}
    if word:
        found["difference"] = {"mean": 2.0, "low": 0.5, "high": 3.5, "word": word}
    return found


def ablation(tmp_path: Path) -> Path:
    variants = {
        "plain": {
            "settings": [], "seeds": [0, 1], "seconds": 90.0, "rows": [row("segmenter", "val", 50.0)], "hidden": [],
        },
        "lever": {
            "settings": ["cluster.k=3"], "seeds": [0], "seconds": 120.0,
            "rows": [row("segmenter", "val", 52.0, "better")],
            "hidden": [{"round": 0, "telling": 0.8, "body": 0.7, "outside": 0.1},
                       {"round": 1, "nmi": 0.91, "purity": 0.95, "telling": 0.7, "body": 0.8, "outside": 0.05}],
        },
    }  # fmt: skip
    variants["waiting"] = {"settings": [], "seeds": [], "seconds": 0.0, "rows": [], "hidden": []}
    references = [{"name": "all background", "split": "val", "tags_used": False, "mean": 4.5}]
    write_json(tmp_path / "ablation.json", {
        "config": "photos", "baseline": "plain", "images": {"train": 300, "val": 90, "masks": 390},
        "references": references, "variants": variants,
    })  # fmt: skip
    return tmp_path


def test_every_figure_of_a_set_is_on_the_page(accuracy, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", f"photographs={ablation(tmp_path)}"])
    accuracy.main()
    page = accuracy.PAGE.read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "## Photographs" in page
    assert "| `plain` | 2 | 50.0 ± 1.2 | 1.5 |" in page
    assert "| `lever` | 1 | 52.0 ± 1.2 (**+** +2.0, +0.5 to +3.5) | 2.0 |" in page
    assert "waiting" not in page
    assert "| all background | val | no | 4.5 |" in page
    assert "| `lever` | 0 |  |  | 0.80 | 0.70 | 0.10 |" in page
    assert "| `lever` | 1 | 0.91 | 0.95 | 0.70 | 0.80 | 0.05 |" in page
    assert "- `lever`: `cluster.k=3`" in page and "- `plain`: as the configuration has them" in page


def test_a_set_that_is_not_named_stays(accuracy, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", f"photographs={ablation(tmp_path)}"])
    accuracy.main()
    monkeypatch.setattr(sys, "argv", ["accuracy.py", f"drawn set={tmp_path}"])
    accuracy.main()
    assert list(read_json(accuracy.RESULT)["sets"]) == ["photographs", "drawn set"]
    assert accuracy.PAGE.read_text().count("| `lever` | 1 | 52.0") == 2
