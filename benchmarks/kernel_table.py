"""Writes the table of docs/kernels.md from results/kernels.json.

sccam bench --images PHOTOGRAPHS --out benchmarks/results/kernels.json
python benchmarks/kernel_table.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench_photos import replace_between

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "kernels.json"
PAGE = HERE.parent / "docs" / "kernels.md"
BEGIN, END = "<!-- kernel table: begin -->", "<!-- kernel table: end -->"


def main() -> None:
    """Replaces what stands between the two marks of the page."""
    replace_between(PAGE, BEGIN, END, table(json.loads(RESULT.read_text(encoding="utf-8"))))


def table(rows: list[dict[str, Any]]) -> str:
    """One line a row, the baseline of each case first."""
    lines = [
        "| suite | case | way | ms, median (quartiles) | speed | largest error | same labels |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds = row["seconds"]
        times = f"{number(1e3 * seconds['median'])} ({number(1e3 * seconds['q1'])} to {number(1e3 * seconds['q3'])})"
        error = "" if row["max_error"] is None else f"{row['max_error']:.1e}" + (" **wrong**" if row["wrong"] else "")
        agreement = row.get("agreement")
        same = "" if agreement is None else f"{100 * agreement:.3f} %"
        speed = "baseline" if row["row"] == row["baseline"] else f"{number(row['ratio'])}x"
        lines.append(f"| {row['suite']} | {row['case']} | {row['row']} | {times} | {speed} | {error} | {same} |")
    devices = sorted({f"{row['device']}, commit {row['commit']}" for row in rows})
    lines += ["", f"Made by `sccam bench` on {'; '.join(devices)}. GPU: not measured."]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
