"""What each lever gains: results/accuracy.json from finished ablations; from that docs/accuracy.md and README's table.

    python benchmarks/accuracy.py --restore photographs=OUT        # seeds measured before: sccam ablate skips them
    sccam ablate benchmarks/ablations/photographs.toml --data PHOTOS --out OUT
    sccam ablate benchmarks/ablations/photographs.toml --data PHOTOS --out OUT --report-only   # what is there so far
    python benchmarks/accuracy.py photographs=OUT                  # NAME is that of the file, without .toml
    python benchmarks/accuracy.py                                  # the tables again, from the JSON
    python benchmarks/accuracy.py --keep FOLDER photographs=OUT    # elsewhere: seeds to lay into results/accuracy/

A set that is not named keeps the figures that it has. Figures of single runs are kept in results/accuracy/. The ratio
of times is that of results/recipe_times.json: ladders are trained beside other work, and on several machines.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kept_runs import finished, keep, restore
from pages import LIBRARIES, difference_cell, facts, replace_between

from sccam.ablation.plan import CEILING
from sccam.artifacts import read_json, write_json

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "accuracy.json"
TIMES = HERE / "results" / "recipe_times.json"
KEPT = HERE / "results" / "accuracy"
PAGE = HERE.parent / "docs" / "accuracy.md"
TITLES = {  # in the order of the page
    "photographs": "Photographs",
    "levers": "Photographs: one lever at a time",
    "walks": "Photographs: the length of the walk",
    "drawn": "The drawn set",
}
README = HERE.parent / "README.md"
BEGIN, END = "<!-- accuracy tables: begin -->", "<!-- accuracy tables: end -->"
SUMMARY = ("photographs", "<!-- photographs table: begin -->", "<!-- photographs table: end -->")
SHOWN = {  # rows of README's table
    "published": "the paper's settings and its rounds, K = 10",
    "published-large-rate": "the same, an affinity network at four times the rate",
    "k-3-whole": "our first settings, three rounds, K = 3",
    "no-rounds": "our first settings, no rounds, 12 epochs",
    "three-lengths": "no rounds, 48 epochs, mean of three walks, balanced segmenter",
    "fast-heads": "the row above, an affinity network at four times the rate, scores not sharpened",
    "no-prototypes": "the row above, a segmenter with heads at its trunk's rate, one scale, more epochs",
    "shipped": "**`-c photos`**: the row above, maps from local prototypes",
}
COLUMNS = {  # of the tables: (stage, column, split) of a row
    "maps": ("maps", "image_only", "train"),
    "maps, best threshold": ("maps", "oracle", "train"),
    "walked": ("walk", "image_only", "train"),
    "pseudo labels": ("pseudo_labels", "labels", "train"),
    "segmenter": ("segmenter", "labels", "val"),
    "segmenter, CRF": ("segmenter+crf", "labels", "val"),
}
OF_LOOKS = ("k-3-own-map", "k-3-whitened", "k-3-whitened-going-on", "shipped")  # whose clusters are held to the looks
CHOSEN = ("image_only", "labels")  # columns whose threshold, if any, needs no masks
HIDDEN = {"nmi": "NMI", "purity": "purity", "telling": "telling part", "body": "body", "outside": "outside"}


def main() -> None:
    """Reads the arguments, writes JSON and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=OUT", help="folders of `sccam ablate`")
    parser.add_argument("--restore", action="store_true", help="only put what was measured before into OUT")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="only write what OUT has measured into FOLDER")
    arguments = parser.parse_args()
    sets: dict[str, Any] = read_json(RESULT)["sets"] if RESULT.exists() else {}
    for item in arguments.sets:
        name, _, out = item.partition("=")
        if arguments.keep:
            for seed in seeds_in(Path(out)):
                keep(Path(out), seed, arguments.keep / f"{name}-seed{seed}.tar.xz", facts())
        elif arguments.restore:
            for file in sorted(KEPT.glob(f"{name}-seed*.tar.xz")):
                restore(file, int(file.name.removeprefix(f"{name}-seed").removesuffix(".tar.xz")), Path(out))
        else:
            sets[name] = measured(name, Path(out))
    if not (arguments.restore or arguments.keep):
        names = [*TITLES, *(name for name in sets if name not in TITLES)]
        sets = {name: sets[name] for name in names if name in sets}
        write_json(RESULT, {"schema": 1, "sets": sets})
        replace_between(PAGE, BEGIN, END, "\n\n".join(section(name, found) for name, found in sets.items()))
        name, begin, end = SUMMARY
        if name in sets:
            replace_between(README, begin, end, summary(sets[name]))


def measured(name: str, out: Path) -> dict[str, Any]:
    """The content of OUT/ablation.json and where its runs were made; keeps those runs."""
    result = dict(read_json(out / "ablation.json"))
    where, here = {}, facts()
    steps: dict[str, dict[str, int]] = {}
    KEPT.mkdir(exist_ok=True)
    for seed in sorted({seed for variant in result["variants"].values() for seed in variant["seeds"]}):
        keep(out, seed, KEPT / f"{name}-seed{seed}.tar.xz", here)
        runs = [run for run in finished(out, seed) if run.parent.name != CEILING]
        where[str(seed)] = sorted({place for run in runs for place in _places_of(run, here)})
        for run in runs:
            if (run / "walk.json").exists():
                steps.setdefault(run.parent.name, {})[str(seed)] = read_json(run / "walk.json")["steps"]
    return {"where": where, "libraries": {n: version(n) for n in LIBRARIES}, "walk_steps": steps, **result}


def _places_of(run: Path, here: dict[str, str]) -> set[str]:
    """Where the stages of a run were done: code, device and precision."""
    state, precision = read_json(run / "run.json"), read_json(run / "scores.json")["precision"]
    run_wide = {"precision": precision, **state.get("kept", here)}
    stages = [{**run_wide, **found} for found in state["finished"].values()]
    return {f"commit {found['commit']}, {found['device']}, {found['precision']}" for found in stages}


def seeds_in(out: Path) -> list[int]:
    """Seeds of which a variant is finished."""
    return sorted({int(path.parent.name.removeprefix("seed")) for path in out.glob("runs/*/seed*/scores.json")})


def section(name: str, found: dict[str, Any]) -> str:
    """One set of images: what was run, and its tables; variants of which no seed is finished are left out."""
    found = {**found, "variants": {key: value for key, value in found["variants"].items() if value["seeds"]}}
    images, baseline = found["images"], found["baseline"]
    seeds = sorted({seed for variant in found["variants"].values() for seed in variant["seeds"]})
    parts = [
        f"## {TITLES.get(name, name)}",
        f"{images['train']} training images, {images['val']} unseen; configuration `{found['config']}`, "
        f"{_seeds(map(str, seeds))}. Differences are to `{baseline}`. Recorded at {_places(found['where'])}.",
        goal_table(found),
        variant_table(found),
        pair_table(found),
    ]
    if found["references"]:
        parts.append(reference_table(found["references"]))
    if any(variant["hidden"] for variant in found["variants"].values()):
        parts.append(hidden_table(found["variants"]))
    parts += [
        f"Steps of the walk that `{key}` chose: {', '.join(f'{n} (seed {seed})' for seed, n in chosen.items())}."
        for key, chosen in found.get("walk_steps", {}).items()
    ]
    settings = "\n".join(f"- `{key}`: {_settings(variant['settings'])}" for key, variant in found["variants"].items())
    return "\n\n".join([*filter(None, parts), "Settings:", settings])


def _places(where: dict[str, list[str]]) -> str:
    """Where seeds were trained, those of one place together."""
    seeds: dict[str, list[str]] = {}
    for seed, places in where.items():
        for place in places:
            seeds.setdefault(place, []).append(seed)
    return "; ".join(f"{place} ({_seeds(found)})" for place, found in seeds.items())


def _seeds(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{'seed' if len(listed) == 1 else 'seeds'} {', '.join(listed)}"


def summary(found: dict[str, Any]) -> str:
    """The few rows that a reader wants first, without differences; the ceiling last."""
    columns = {title: key for title, key in COLUMNS.items() if key[1] in CHOSEN}
    head = ["", "seeds", *columns]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, words in SHOWN.items():
        variant = found["variants"].get(name)
        if not variant or not variant["seeds"]:
            continue
        rows = {(row["stage"], row["column"], row["split"]): {**row, "difference": None} for row in variant["rows"]}
        cells = [_cell(rows.get(key)) for key in columns.values()]
        lines.append(f"| {words} | {len(variant['seeds'])} | {' | '.join(cells)} |")
    unseen = {row["name"]: row for row in found["references"] if row["split"] == "val"}
    ceiling = [unseen.get(f"supervised {stage}") for stage in ("segmenter", "segmenter+crf")]
    if all(ceiling):
        seeds = len(ceiling[0].get("values", []))
        lines.append(f"| trained on true masks | {seeds} | | | | {' | '.join(_cell(row) for row in ceiling)} |")
    return "\n".join(lines)


def goal_table(found: dict[str, Any]) -> str:
    """What the method is expected to reach, and whether it did, as far as the variants are there; empty without any."""
    rows: dict[str, dict[str, dict[str, Any]]] = {
        name: {row["stage"]: row for row in variant["rows"] if row["column"] in CHOSEN}
        for name, variant in found["variants"].items()
    }
    pairs = {(pair["variant"], pair["against"]): pair for pair in found["pairs"]}
    lines: list[tuple[str, str, str, bool]] = []

    def difference(ours: str, theirs: str, stage: str) -> dict[str, Any] | None:
        for row in pairs.get((ours, theirs), {"rows": []})["rows"]:
            if row["stage"] == stage and row["column"] in CHOSEN:
                return dict(row["difference"])
        return None

    for name in [pair["variant"] for pair in found["pairs"] if pair["against"] == "all-updates"]:
        if name not in found["variants"] or "cluster.k=1" in found["variants"][name]["settings"]:
            continue  # nothing measured yet; or a control, with nothing to discover
        change = difference(name, "all-updates", "maps")
        if change and any(row["stage"] == "maps/round3" for row in found["variants"][name]["rows"]):
            what = f"maps of round 3 (`{name}`) over plain maps with as many updates"
            lines.append((what, _points(change), "+2.8, interval above 0", change["mean"] >= 2.8 and change["low"] > 0))
    shipped = rows.get("shipped", {})
    unseen = {row["name"]: row["mean"] for row in found["references"] if row["split"] == "val"}
    ceiling = unseen.get("supervised segmenter+crf")
    if "walk" in shipped and ceiling is not None:
        maps, walked = shipped["maps"]["mean"], shipped["walk"]["mean"]
        share = (walked - maps) / (ceiling - maps)
        what = "walked maps over maps (`shipped`)"
        measured = f"{walked - maps:+.1f}, {100 * share:.0f} % of the way to the ceiling's {ceiling:.1f}"
        lines.append((what, measured, "+12.5, or 50 % of the way", walked - maps >= 12.5 or share >= 0.5))
    if "segmenter" in shipped:
        labels = shipped["pseudo_labels"]["mean"]
        for stage, words in (("segmenter", "as it is"), ("segmenter+crf", "with CRF")):
            what = f"segmenter on unseen images, {words}, over pseudo labels of training images (`shipped`)"
            gain = shipped[stage]["mean"] - labels
            lines.append((what, f"{gain:+.1f}", "at least 0", gain >= 0))
    times = read_json(TIMES) if TIMES.exists() else {"ratio": None}
    for published in [theirs for ours, theirs in pairs if ours == "shipped" and theirs.startswith("published")]:
        change = difference("shipped", published, "segmenter")
        if not change:
            continue  # nothing measured yet
        ratio = times["ratio"]
        what = f"segmenter of the default configuration over that of the paper's numbers (`{published}`), unseen images"
        met = change["mean"] >= 5 and ratio is not None and ratio <= 1.0
        each = " and ".join(f"{pair:.2f}" for pair in times.get("ratios", []))
        time = "time not measured" if ratio is None else f"in {ratio:.2f} of its time{each and f' ({each})'}"
        lines.append((what, f"{_points(change)}, {time}", "+5 in at most its time", met))
    for name, variant in found["variants"].items():
        hidden = variant["hidden"]
        if name in OF_LOOKS and hidden and "nmi" in hidden[-1]:
            nmi, first, last = hidden[-1]["nmi"], hidden[0]["telling"], hidden[-1]["telling"]
            lines.append((f"NMI of clusters and hidden looks, last round (`{name}`)", f"{nmi:.2f}", "0.80", nmi >= 0.8))
            what = f"telling part covered by maps, round 0 to the last (`{name}`)"
            lines.append((what, f"{first:.2f} to {last:.2f}", "rises", last > first))
    if not lines:
        return ""
    table = ["| expected | measured | goal | |", "| --- | --- | --- | --- |"]
    return "\n".join([*table, *(f"| {w} | {m} | {g} | {'met' if met else '**missed**'} |" for w, m, g, met in lines)])


def _points(change: dict[str, Any]) -> str:
    return f"{change['mean']:+.1f} ({change['low']:+.1f} to {change['high']:+.1f})"


def variant_table(found: dict[str, Any]) -> str:
    """A row for each variant; a column that no variant has is left out."""
    rows = {
        name: {(row["stage"], row["column"], row["split"]): row for row in variant["rows"]}
        for name, variant in found["variants"].items()
    }
    columns = [title for title, key in COLUMNS.items() if any(key in row for row in rows.values())]
    head = ["variant", "seeds", *columns]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, variant in found["variants"].items():
        cells = [_cell(rows[name].get(COLUMNS[title])) for title in columns]
        lines.append(f"| `{name}` | {len(variant['seeds'])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def pair_table(found: dict[str, Any]) -> str:
    """Variants against others than the baseline, in what both have; empty without any."""
    columns = {title: key for title, key in COLUMNS.items() if key[1] in CHOSEN}
    lines = []
    for pair in found["pairs"]:
        rows = {(row["stage"], row["column"], row["split"]): row["difference"] for row in pair["rows"]}
        cells = [difference_cell(rows[key]) if key in rows else "" for key in columns.values()]
        if any(cells):
            lines.append(f"| `{pair['variant']}` | `{pair['against']}` | {' | '.join(cells)} |")
    if not lines:
        return ""
    head = ["variant", "against", *columns]
    return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines])


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{row['mean']:.1f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.1f}")
    difference = row.get("difference")
    return text if difference is None else f"{text} ({difference_cell(difference)})"


def reference_table(rows: list[dict[str, Any]]) -> str:
    """What needs no method, and the ceiling."""
    lines = ["| reference | images | tags given | seeds | mIoU |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        deviation = row.get("deviation")
        value = f"{row['mean']:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
        seeds = len(row["values"]) if "values" in row else ""
        lines.append(f"| {row['name']} | {row['split']} | {'yes' if row['tags_used'] else 'no'} | {seeds} | {value} |")
    return "\n".join(lines)


def hidden_table(variants: dict[str, Any]) -> str:
    """Clusters against the hidden looks, and maps against the parts, round by round."""
    head = ["variant", "round", *HIDDEN.values()]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, variant in variants.items():
        for row in variant["hidden"]:
            cells = [f"{row[key]:.2f}" if key in row else "" for key in HIDDEN]
            lines.append(f"| `{name}` | {row['round']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _settings(settings: list[str]) -> str:
    return ", ".join(f"`{item}`" for item in settings) or "as the configuration has them"


if __name__ == "__main__":
    main()
