"""Writes the tables of docs/guarantees.md from results/faults.json, the counts of `make faults`.

make faults                       # takes long; then this
python benchmarks/faults.py       # the tables again
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pages import replace_between

from sccam.artifacts import read_json

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "faults.json"
PAGE = HERE.parent / "docs" / "guarantees.md"
COUNTS = ("injected", "survived", "lost", "crashed", "fired")


def main() -> None:
    """Fills the page."""
    measured = read_json(RESULT)
    for name, text in (("promises", promises(measured)), ("faults", faults(measured))):
        replace_between(PAGE, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", text)


def promises(measured: Any) -> str:
    """A row for each promise: what it says, which tests hold the program to it, and what came of them."""
    lines = []
    for name, promise in measured["promises"].items():
        numbers = set(promise["faults"])
        tests = [test for test in measured["tests"] if name in test["promises"] or numbers & set(test["faults"])]
        lines.append([promise["words"], ", ".join(files(tests)), *(f"{total(tests, count):,}" for count in COUNTS)])
    return table(["promise", "proved by", *COUNTS], lines)


def faults(measured: Any) -> str:
    """A row for each fault, and a line on the run that counted them."""
    lines = []
    for number, words in measured["faults"].items():
        tests = [test for test in measured["tests"] if int(number) in test["faults"]]
        lines.append([number, words, ", ".join(files(tests)), *(f"{total(tests, count):,}" for count in COUNTS)])
    kind = "the full run" if measured["full"] else "a quick run"
    facts = f"{measured['machine']}, Python {measured['python']}, commit {measured['commit']}: {kind}, `make faults`."
    sums = ", ".join(f"{measured['sums'][count]:,} {count}" for count in COUNTS)
    failed = f" **{measured['failed']} tests failed.**" if measured["failed"] else ""
    return f"{table(['', 'fault', 'in', *COUNTS], lines)}\n\nTogether: {sums}. {facts}{failed}"


def files(tests: Iterable[Any]) -> list[str]:
    """Names of the test files, each once; a test may stand in several rows."""
    return [f"`{name}`" for name in sorted({test["test"].split("::")[0].rpartition("/")[2] for test in tests})]


def total(tests: Iterable[Any], count: str) -> int:
    """Sum of one count."""
    return sum(int(test[count]) for test in tests)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [header, ["---"] * len(header), *rows])


if __name__ == "__main__":
    main()
