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
    readme = tmp_path / "README.md"
    readme.write_text("\n".join(("first", *module.SUMMARY[1:], "last\n")))
    monkeypatch.setattr(module, "README", readme)
    monkeypatch.setattr(module, "RESULT", tmp_path / "accuracy.json")
    monkeypatch.setattr(module, "PAGE", page)
    monkeypatch.setattr(module, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(module, "TIMES", tmp_path / "times.json")
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
    variants["no-rounds"] = {**variants["plain"], "rows": [row("segmenter", "val", 61.0, "better")]}
    variants["waiting"] = {"settings": [], "seeds": [], "seconds": 0.0, "rows": [], "hidden": []}
    references = [{"name": "all background", "split": "val", "tags_used": False, "mean": 4.5}]
    write_json(tmp_path / "ablation.json", {
        "config": "photos", "baseline": "plain", "images": {"train": 300, "val": 90, "masks": 390},
        "references": references, "variants": variants, "pairs": [],
    })  # fmt: skip
    return tmp_path


def test_every_figure_of_a_set_is_on_the_page(accuracy, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["accuracy.py", f"photographs={ablation(tmp_path)}"])
    accuracy.main()
    page = accuracy.PAGE.read_text()
    assert page.startswith("before\n") and page.endswith("after\n") and "## Photographs" in page
    assert "| `plain` | 2 | 50.0 ± 1.2 |" in page
    assert "| `lever` | 1 | 52.0 ± 1.2 (**+** +2.0, +0.5 to +3.5) |" in page
    assert "waiting" not in page
    assert "| expected |" not in page and "| against |" not in page  # nothing of goals and pairs is there
    readme = accuracy.README.read_text()
    assert readme.startswith("first\n") and readme.endswith("last\n") and "no rounds, 12 epochs" in readme
    assert "| 61.0 ± 1.2 |" in readme and "48 epochs" not in readme  # a variant that is not there
    assert "| all background | val | no |  | 4.5 |" in page
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


def test_goals_are_met_or_missed_by_the_figures_alone(accuracy):
    def rows(maps: float, walked: float, labels: float, segmenter: float, crf: float) -> list[dict[str, Any]]:
        return [row(stage, split, value) | ({"column": "image_only"} if stage in ("maps", "walk") else {})
                for stage, split, value in (("maps", "train", maps), ("walk", "train", walked),
                                            ("pseudo_labels", "train", labels), ("segmenter", "val", segmenter),
                                            ("segmenter+crf", "val", crf))]  # fmt: skip

    def pair(ours: str, theirs: str, stage: str, column: str, *points: float) -> dict[str, Any]:
        difference = dict(zip(("mean", "low", "high"), points, strict=True))
        found = {"stage": stage, "column": column, "split": "val", "difference": difference}
        oracle = {**found, "column": "fixed", "difference": {"mean": 99.0, "low": 99.0, "high": 99.0}}
        return {"variant": ours, "against": theirs, "seconds_ratio": 1.6, "rows": [oracle, found]}

    rounds = [row("maps/round3", "train", 53.0) | {"column": "image_only"}, *rows(53.0, 0, 0, 0, 0)[:1]]
    hidden = [{"round": 0, "telling": 0.8}, {"round": 3, "telling": 0.7, "nmi": 0.85}]
    found = {
        "variants": {"shipped": {"rows": rows(50.0, 63.0, 64.0, 63.0, 65.0), "hidden": []},
                     "k-3-three-rounds": {"settings": ["classify.rounds=3"], "rows": rounds, "hidden": []},
                     "k-1": {"settings": ["classify.rounds=3", "cluster.k=1"], "rows": rounds, "hidden": []},
                     "k-3-own-map": {"rows": [], "hidden": hidden}},
        "references": [{"name": "supervised segmenter+crf", "split": "val", "mean": 76.0}],
        "pairs": [pair("k-1", "all-updates", "maps", "image_only", 3.0, 1.0, 6.0),  # a control: no goal is its
                  pair("k-3-three-rounds", "all-updates", "maps", "image_only", 3.0, -0.1, 6.0),
                  pair("published-again", "published", "segmenter", "labels", 7.0, 4.0, 8.0),  # of no concern
                  pair("shipped", "published", "segmenter", "labels", 6.0, 4.0, 8.0),
                  pair("shipped", "published-again", "segmenter", "labels", 4.0, 3.0, 5.0)],
    }  # fmt: skip
    assert "time not measured | +5 in at most its time | **missed** |" in accuracy.goal_table(found)
    write_json(accuracy.TIMES, {"ratio": 0.8, "ratios": [0.7, 0.9]})
    lines = accuracy.goal_table(found).splitlines()[2:]
    told = {line.split(" | ")[0].strip("| "): line for line in lines}
    assert [line.rstrip(" |").rpartition("| ")[2] for line in lines] == [
        "**missed**",  # its interval reaches below 0
        "met", "**missed**", "met", "met", "**missed**", "met", "**missed**",
    ]  # fmt: skip
    assert "+13.0, 50 % of the way to the ceiling's 76.0" in told["walked maps over maps (`shipped`)"]
    assert "+6.0 (+4.0 to +8.0), in 0.80 of its time (0.70 and 0.90)" in "".join(lines) and "99" not in "".join(lines)
    assert "0.80 to 0.70" in lines[-1]


def test_seeds_of_another_machine_come_with_where_they_were_trained(accuracy, monkeypatch, tmp_path):
    for seed, device in ((0, None), (1, "a GPU"), (2, "a GPU")):
        run = tmp_path / f"ladder/runs/plain/seed{seed}"
        kept = {"kept": {"commit": "c0ffee", "device": device}} if device else {}
        stages = {"maps": {"seconds": 1.0}, "scores": {"seconds": 1.0, **({"commit": "later"} if seed == 2 else {})}}
        write_json(run / "run.json", {"status": "finished", "finished": stages, **kept})
        write_json(run / "scores.json", {"rows": [], "precision": "bf16" if device else "fp32"})
        if seed:
            write_json(run / "walk.json", {"steps": 64 * seed})
    monkeypatch.setattr(accuracy, "facts", lambda: {"commit": "beef", "device": "a CPU"})
    (tmp_path / "away").mkdir()
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--keep", str(tmp_path / "away"), f"set={tmp_path / 'ladder'}"])
    accuracy.main()
    assert not accuracy.RESULT.exists() and "Recorded" not in accuracy.PAGE.read_text()
    (tmp_path / "away").rename(accuracy.KEPT)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", "--restore", f"set={tmp_path / 'here'}"])
    accuracy.main()
    result = read_json(ablation(tmp_path) / "ablation.json")
    result["variants"] = {"plain": {**result["variants"]["plain"], "seeds": [0, 1, 2]}}
    write_json(tmp_path / "here/ablation.json", result)
    monkeypatch.setattr(sys, "argv", ["accuracy.py", f"set={tmp_path / 'here'}"])
    accuracy.main()
    gpu = "commit c0ffee, a GPU, bf16 (seeds 1, 2); commit later, a GPU, bf16 (seed 2)."
    assert f"commit beef, a CPU, fp32 (seed 0); {gpu}" in accuracy.PAGE.read_text()
    assert "that `plain` chose: 64 (seed 1), 128 (seed 2)." in accuracy.PAGE.read_text()
