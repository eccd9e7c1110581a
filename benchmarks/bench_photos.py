"""The whole chain on a folder of photographs, over several seeds: one JSON, and the README's table from it.

    python benchmarks/bench_photos.py DATA            # trains seed 0, 1, 2 and writes results/photos.json
    python benchmarks/bench_photos.py --tables        # writes the README's table anew from the JSON

A run that is there already is resumed, so the script can be stopped and started again. Seconds are wall seconds of
the machine that the JSON names; nothing else should run on it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sccam.bench.machine import commit, device_name

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "photos.json"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- photos table: begin -->", "<!-- photos table: end -->"
COLUMNS = ("fixed", "image_only", "oracle")
LIBRARIES = ("torch", "timm", "scikit-learn", "pydensecrf2", "numpy")


def main() -> None:
    """Reads the arguments; trains and writes the JSON, or only the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--config", default="photos")
    parser.add_argument("--runs", type=Path, default=Path("runs/photos"))
    parser.add_argument("--note", default="", help="what a reader must know, printed under the table")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if arguments.data is not None:
        scores = [train(arguments.data, arguments.config, arguments.runs, seed) for seed in arguments.seeds]
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(
            json.dumps({"note": arguments.note, **summary(scores, arguments.config)}, indent=1) + "\n", encoding="utf-8"
        )
    elif not arguments.tables:
        parser.error("give a folder of photographs, or --tables")
    write_table()


def train(data: Path, config: str, runs: Path, seed: int) -> dict[str, Any]:
    """The scores of one seed."""
    out = runs / f"seed{seed}"
    command = [sys.executable, "-m", "sccam.cli", "train", str(data), "-c", config, "--out", str(out), "--resume"]
    subprocess.run([*command, "--set", f"run.seed={seed}"], check=True)
    return dict(json.loads((out / "scores.json").read_text(encoding="utf-8")))


def summary(scores: list[dict[str, Any]], config: str) -> dict[str, Any]:
    """Mean and deviation over seeds of every (stage, column, split), with what was measured on what."""
    rows = []
    for same in zip(*(run["rows"] for run in scores), strict=True):
        first = same[0]
        if any(
            (row["stage"], row["column"], row["split"]) != (first["stage"], first["column"], first["split"])
            for row in same
        ):
            raise SystemExit("the runs have different rows; train them with the same configuration")
        row = {key: first[key] for key in ("stage", "column", "split", "images", "ids_sha256", "tags_used")}
        for metric in ("miou", "f_score", "mean_precision", "mean_recall"):
            row[metric] = spread([run[metric] for run in same])
        for setting in ("threshold", "alpha"):
            if setting in first:
                row[setting] = [round(run[setting], 4) for run in same]
        row["iou"] = {name: round(statistics.mean(run["iou"][name] for run in same), 4) for name in first["iou"]}
        rows.append(row)
    return {
        "config": config,
        "seeds": [run["seed"] for run in scores],
        "supervision": scores[0]["supervision"],
        "device": device_name(),
        "commit": commit(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "minutes": spread([sum(run["seconds"].values()) / 60 for run in scores]),
        "seconds_by_stage": {name: spread([run["seconds"][name] for run in scores]) for name in scores[0]["seconds"]},
        "rows": rows,
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean, sample deviation and the values themselves."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {
        "mean": round(statistics.mean(values), 4),
        "sd": round(deviation, 4),
        "values": [round(v, 4) for v in values],
    }


def write_table() -> None:
    """Replaces what stands between the two marks of the README by the table of the JSON."""
    replace_between(README, BEGIN, END, table(json.loads(RESULT.read_text(encoding="utf-8"))))


def replace_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def table(result: dict[str, Any]) -> str:
    """The Markdown table: stages down, the three columns across; labels and masks need no threshold."""
    lines = [
        "| stage | split, images | tags given | fixed | from images alone | oracle |",
        "|---|---|---|---|---|---|",
    ]
    rows = result["rows"]
    for stage, split in dict.fromkeys((row["stage"], row["split"]) for row in rows):
        here = {row["column"]: row for row in rows if (row["stage"], row["split"]) == (stage, split)}
        first = next(iter(here.values()))
        if "labels" in here:
            cells = ["", cell(here["labels"]), ""]
        else:
            cells = [cell(here[column]) for column in COLUMNS]
        tags = "yes" if first["tags_used"] else "no"
        lines.append(f"| {stage} | {split}, {first['images']} | {tags} | {' | '.join(cells)} |")
    minutes, seeds = result["minutes"], ", ".join(map(str, result["seeds"]))
    over = "mean ± deviation over seeds" if len(result["seeds"]) > 1 else "seed"
    lines.append("")
    lines.append(
        f"mIoU in %, {over} {seeds}; configuration `{result['config']}`; "
        f"{minutes['mean']:.1f} minutes a seed on {result['device']}."
    )
    if result["note"]:
        lines.append(result["note"])
    return "\n".join(lines)


def cell(row: dict[str, Any]) -> str:
    """One figure, with the threshold or exponent it was taken at."""
    text = f"{100 * row['miou']['mean']:.1f}"
    if len(row["miou"]["values"]) > 1:
        text += f" ± {100 * row['miou']['sd']:.1f}"
    for setting in ("threshold", "alpha"):
        if setting in row:
            text += f" ({setting} {statistics.mean(row[setting]):.2f})"
    return text


if __name__ == "__main__":
    main()
