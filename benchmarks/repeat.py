"""Do ratios come out the same a second time? Compares two files of `sccam bench` from one machine.

sccam bench walk crf merge labels --out again.json      # the same suites and arguments as the first time
python benchmarks/repeat.py benchmarks/results/DEVICE-DATE.json again.json      # results/repeat.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from sccam.artifacts import write_json

RESULT = Path(__file__).resolve().parent / "results" / "repeat.json"
ALLOWED = 0.10  # of the first ratio


def main() -> None:
    """Compares, prints, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    arguments = parser.parse_args()
    first, second = (json.loads(path.read_text(encoding="utf-8")) for path in (arguments.first, arguments.second))
    rows = repeated(first["rows"], second["rows"])
    changes = [abs(row["change"]) for row in rows]
    summary = {
        "device": second["facts"]["device"],
        "commits": [first["facts"]["commit"], second["facts"]["commit"]],
        "rows": len(rows),
        "within_10_percent": sum(change <= ALLOWED for change in changes),
        "median_change": round(statistics.median(changes), 4),
        "largest_change": round(max(changes), 4),
    }
    print(json.dumps(summary, indent=1))
    for row in sorted(rows, key=lambda row: -abs(row["change"]))[:12]:
        name = f"{row['suite']}: {row['case']}, {row['row']}"
        print(f"{row['change']:+7.1%}  {row['first']:.3g} -> {row['second']:.3g}  {name}")
    write_json(RESULT, {**summary, "ratios": rows})


def repeated(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with a ratio in both, without the baselines, whose ratio is 1."""

    def key(row: dict[str, Any]) -> tuple[str, str, str]:
        return row["suite"], row["case"], row["row"]

    before = {key(row): row["ratio"] for row in first}
    seconds = [{key(row): row["seconds"]["median"] for row in rows} for rows in (first, second)]

    def longer(row: dict[str, Any], name: str) -> float:
        """How many times as long the same way took the second time."""
        way = row["suite"], row["case"], name
        return round(float(seconds[1][way] / seconds[0][way]), 3)

    return [
        {
            "suite": row["suite"],
            "case": row["case"],
            "row": row["row"],
            "first": round(before[key(row)], 4),
            "second": round(row["ratio"], 4),
            "change": round(row["ratio"] / before[key(row)] - 1, 4),
            "took": longer(row, row["row"]),
            "baseline_took": longer(row, row["baseline"]),
        }
        for row in second
        if key(row) in before and row["row"] != row["baseline"]
    ]


if __name__ == "__main__":
    main()
