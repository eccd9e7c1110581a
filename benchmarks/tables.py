"""Writes every table of speed from results/DEVICE-DATE.json, the files of `sccam bench`.

    sccam bench && make bench-tables

benchmarks/README.md gets all figures, docs/kernels.md those of the kernels on a CPU and, from results/gpu_kernels.json,
on a GPU, README.md one line for each kind of work; each between two marks, and nothing else of the pages changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from measured import Device, Headline, Row, devices, headlines, images_a_second, met
from pages import replace_between

from sccam.artifacts import read_json
from sccam.bench import exponents

HERE = Path(__file__).resolve().parent
PAGE = "benchmarks/README.md"
NOT_MEASURED = "not measured"
PLOTS = {  # file name after the device's, what a reader who cannot see it is told
    "speed-up": "times as fast as the eager way, by kind of work",
    "throughput": "images a second against the batch, by network and way",
    "ceiling": "share of what the device can do at most, by case and way",
    "scaling": "seconds against the size of the work, with the fitted exponents",
}
TITLES = {  # of the suites; another one goes by its name
    "networks": "Networks",
    "walk": "Random walk",
    "crf": "Dense CRF",
    "merge": "Merging the maps of all scales",
    "kmeans": "k-means",
    "labels": "A pseudo label, networks apart",
    "pseudo_labels": "Pseudo labels, networks included",
    "folder": "Whole folders",
    "files": "Reading and writing files",
    "training": "A training step",
    "scaling": "Scaling",
}
KERNELS = ("walk", "crf", "merge", "kmeans", "labels")  # suites of docs/kernels.md
RATED = ("networks", "pseudo_labels", "folder", "files", "training")  # suites that count images


def main() -> None:
    """Writes the pages and says what they rest on."""
    found = devices()
    for device in found:
        print(f"{device.name}: {len(device.rows)} rows of {', '.join(facts['date'] for facts in device.facts)}")
    if not found:
        print("no DEVICE-DATE.json in benchmarks/results: run `sccam bench` first. The pages say 'not measured'.")
    write(found, HERE.parent)


def write(found: Sequence[Device], root: Path) -> None:
    """Fills the pages of the repository at `root`; without figures of kernels on a CPU their page stays as it is."""
    _fill(root / PAGE, "bench tables", page(found, root / "benchmarks" / "plots"))
    _fill(root / "README.md", "speed table", summary(found))
    kernels = kernel_table(found)
    if kernels is not None:
        _fill(root / "docs" / "kernels.md", "kernel table", kernels)
    events = root / "benchmarks" / "results" / "gpu_kernels.json"
    if events.exists():
        _fill(root / "docs" / "kernels.md", "gpu table", gpu_table(read_json(events)))


def _fill(path: Path, name: str, text: str) -> None:
    replace_between(path, f"<!-- {name}: begin -->", f"<!-- {name}: end -->", text)


def page(found: Sequence[Device], plots: Path) -> str:
    """Everything: of each device its facts, pictures, goals, and a table a suite."""
    parts = [] if any(not device.gpu for device in found) else [f"CPU: {NOT_MEASURED}."]
    for device in found:
        parts += [f"## {device.name}", facts_table(device)]
        parts += [
            f"![{text}](plots/{device.slug}-{name}.png)"
            for name, text in PLOTS.items()
            if (plots / f"{device.slug}-{name}.png").exists()
        ]
        parts += ["### Goals", goal_table(device)]
        for suite, rows in device.suites():
            parts += [f"### {TITLES.get(suite, suite)}", made_by(rows, suite), suite_table(rows)]
            parts += step_table(rows)
        fits = exponents(device.rows)
        if fits:
            parts += ["### Exponents", "Seconds grow as size to the power of the exponent.", exponent_table(fits)]
    return "\n\n".join([*parts, absent(found)])


def summary(found: Sequence[Device]) -> str:
    """One line for each kind of work, a table a device."""
    parts = [] if any(not device.gpu for device in found) else [f"CPU: {NOT_MEASURED}."]
    for device in found:
        lines = headlines(device)
        if lines:
            header = ["work", "case", "way", "eager [ms]", "ms", "× eager", "× tuned"]
            parts += [f"{device.name}, ms an image (of k-means, a class):", table(header, map(_summary_cells, lines))]
    return "\n\n".join([*parts, absent(found)])


def _summary_cells(line: Headline) -> list[str]:
    row, eager = line.row, line.eager
    return [
        line.work,
        row["case"],
        row["row"],
        number(1e3 / images_a_second(eager)),
        number(1e3 / images_a_second(row)),
        number(row["ratio"]),
        "" if line.tuned is None else number(row["strong_ratio"]),
    ]


def kernel_table(found: Sequence[Device]) -> str | None:
    """The suites of kernels on the CPU that was measured last; None where none was."""
    measured = [device for device in found if not device.gpu and any(row["suite"] in KERNELS for row in device.rows)]
    if not measured:
        return None
    device = max(measured, key=lambda device: str(device.facts[0]["date"]))
    rows = [row for row in device.rows if row["suite"] in KERNELS]
    header = ["suite", "case", "way", "ms, median (quartiles)", "× eager", "× tuned", "largest error", "same labels"]
    lines = [
        [row["suite"], row["case"], row["row"], _times(row), _eager(row, quartiles=False), _tuned(row), _error(row),
         _agreement(row)] for row in rows
    ]  # fmt: skip
    gpu = next((f"GPU: [{PAGE}](../{PAGE})." for device in found if device.gpu), f"GPU: {NOT_MEASURED}.")
    return f"{table(header, lines)}\n\n{device.name}: {made_by(rows)} {gpu}"


def gpu_table(measured: Any) -> str:
    """What gpu_kernels.py printed: milliseconds an image of a call and of its graph alone, and of what they replace."""
    lines = []
    for row in measured["rows"]:
        told = {key: value["median"] if isinstance(value, dict) else value for key, value in row.items()}
        images = told.get("batch", 1)
        case = ", ".join(
            f"{key} {value}" for key, value in told.items() if key in ("labels", "unaries", "channels", "classes")
        )
        place = " x ".join(map(str, told.get("grid", told.get("size"))))
        others = {key: value for key, value in told.items() if key.startswith(("eager", "pydensecrf", "native"))}
        lines.append([
            told["what"], f"{place}, {case}", str(images), number(told["call"] / images),
            number(told["replay"] / images) if "replay" in told else "",
            "; ".join(f"{key.split(', one')[0]} {number(value)}" for key, value in others.items()),
        ])  # fmt: skip
    header = ["work", "case", "images", "a call [ms an image]", "its graph alone", "in place of [ms]"]
    facts = f"{measured['gpu']}, CUDA {measured['cuda']}, CuPy {measured['cupy']}, torch {measured['torch']}"
    return f"{table(header, lines)}\n\n{facts}: `python benchmarks/gpu_kernels.py`, commit {measured['commit'][:10]}."


def facts_table(device: Device) -> str:
    """What the files say of the machine, a column a file."""
    lines = [
        ("commit", "commit"), ("system", "system"), ("Python", "python"), ("CUDA", "cuda"), ("driver", "driver"),
    ]  # fmt: skip
    rows = [[label, *(str(facts[key]) for facts in device.facts)] for label, key in lines if key in device.facts[0]]
    rows.append(["memory [GB]", *(number(facts["memory_gb"]) for facts in device.facts)])
    for label, key in (("fp32 [GFLOP/s]", "gflops"), ("bf16 [GFLOP/s]", "gflops_bf16"), ("copy [GB/s]", "gbytes")):
        rows.append([label, *(number(facts["ceilings"][key]) for facts in device.facts)])
    for package in dict.fromkeys(package for facts in device.facts for package in facts["versions"]):
        rows.append([package, *(facts["versions"].get(package, "") for facts in device.facts)])
    return table(["measured on", *(facts["date"] for facts in device.facts)], rows)


def suite_table(rows: Sequence[Row]) -> str:
    """One line a way, the baseline of each case first; columns that stay empty are left out."""
    columns = {
        "case": [row["case"] for row in rows],
        "way": [row["row"] for row in rows],
        "ms, median (quartiles)": [_times(row) for row in rows],
        "images/s": [number(images_a_second(row)) if row["suite"] in RATED else "" for row in rows],
        "× eager (quartiles)": [_eager(row) for row in rows],
        "× tuned": [_tuned(row) for row in rows],
        "goal": ["" if row["goal"] is None else f"{row['goal']:g}: {_met(row)}" for row in rows],
        "of ceiling": ["" if row["of_ceiling"] is None else f"{number(100 * row['of_ceiling'])} %" for row in rows],
        "MB": ["" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}" for row in rows],
        "error": [_error(row) for row in rows],
        "same labels": [_agreement(row) for row in rows],
    }
    filled = [name for name, cells in columns.items() if any(cells)]
    return table(filled, zip(*(columns[name] for name in filled), strict=True))


def goal_table(device: Device) -> str:
    """Every goal, and whether it was met."""
    goals = [row for row in device.rows if row["goal"] is not None]
    if not goals:
        return "None of these ways has a goal."
    lines = [
        [row["suite"], row["case"], row["row"], f"{row['goal']:g}", number(row["ratio"]), _met(row)] for row in goals
    ]
    counted = f"{sum(met(row) for row in goals)} of {len(goals)} met."
    return f"{counted}\n\n{table(['suite', 'case', 'way', 'goal, × eager', '× eager', ''], lines)}"


def step_table(rows: Sequence[Row]) -> list[str]:
    """Where the time goes, a column a step; nothing where no row tells."""
    told = [row for row in rows if row["steps"]]
    names = dict.fromkeys(name for row in told for name in row["steps"])
    lines = [[row["case"], row["row"], *(number(row["steps"].get(name, 0)) for name in names)] for row in told]
    words = "Where the time goes, in milliseconds of one thread an image; threads and steps overlap:"
    return [words, table(["case", "way", *names], lines)] if told else []


def exponent_table(fits: Sequence[dict[str, object]]) -> str:
    """Fitted exponents of the cost."""
    lines = [
        [fit["case"], fit["row"], f"{fit['exponent']:.2f}", f"{fit['r2']:.3f}", str(fit["points"])] for fit in fits
    ]
    return table(["what grows", "way", "exponent", "R²", "points"], lines)


def made_by(rows: Sequence[Row], suite: str = "") -> str:
    """The command, and from which commit and day the figures are."""
    runs = dict.fromkeys(f"commit {row['commit']}, {row['date']}" for row in rows)
    return f"`sccam bench{suite and ' ' + suite}`, {'; '.join(runs)}."


def absent(found: Sequence[Device]) -> str:
    """What no file tells of."""
    lines = [] if any(device.gpu for device in found) else [f"GPU: {NOT_MEASURED}."]
    if not any("tensorrt" in row["row"].lower() for device in found for row in device.rows):
        lines.append(f"TensorRT: {NOT_MEASURED}.")
    return " ".join(lines)


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float) -> str:
    """Three digits, all that stand before the point, and no exponent."""
    if not 0 < value < math.inf:
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _times(row: Row) -> str:
    median, q1, q3 = (number(1e3 * row["seconds"][key]) for key in ("median", "q1", "q3"))
    return f"{median} ({q1} to {q3})"


def _eager(row: Row, quartiles: bool = True) -> str:
    if row["row"] == row["baseline"]:
        return "baseline"
    return number(row["ratio"]) + (f" ({number(row['ratio_q1'])} to {number(row['ratio_q3'])})" if quartiles else "")


def _tuned(row: Row) -> str:
    if row["strong"] is None:
        return ""
    return "tuned" if row["row"] == row["strong"] else number(row["strong_ratio"])


def _met(row: Row) -> str:
    return "met" if met(row) else "**missed**"


def _error(row: Row) -> str:
    return "" if row["max_error"] is None else f"{row['max_error']:.1e}" + (" **wrong**" if row["wrong"] else "")


def _agreement(row: Row) -> str:
    return "" if row["agreement"] is None else f"{100 * row['agreement']:.3f} %"


if __name__ == "__main__":
    main()
