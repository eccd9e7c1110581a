"""What each lever gains: results/accuracy.json from finished ablations, and the tables of docs/accuracy.md from that.

    sccam ablate benchmarks/ablations/photographs.toml --data PHOTOS --out runs/a
    sccam ablate benchmarks/ablations/drawn.toml --data runs/sample --out runs/b
    python benchmarks/accuracy.py photographs=runs/a "drawn set"=runs/b
    python benchmarks/accuracy.py                     # the tables again, from the JSON

A set that is not named keeps the figures that it has.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench_photos import LIBRARIES, replace_between

from sccam.artifacts import read_json, write_json
from sccam.bench.machine import commit, device_name

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "accuracy.json"
PAGE = HERE.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- accuracy tables: begin -->", "<!-- accuracy tables: end -->"
COLUMNS = {  # of the tables: (stage, column, split) of a row
    "maps": ("maps", "image_only", "train"),
    "maps, best threshold": ("maps", "oracle", "train"),
    "walked": ("walk", "image_only", "train"),
    "pseudo labels": ("pseudo_labels", "labels", "train"),
    "segmenter": ("segmenter", "labels", "val"),
    "segmenter, CRF": ("segmenter+crf", "labels", "val"),
}
WORDS = {"better": "**+**", "worse": "**-**", "no difference": "="}
HIDDEN = {"nmi": "NMI", "purity": "purity", "telling": "telling part", "body": "body", "outside": "outside"}


def main() -> None:
    """Reads the arguments, writes JSON and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=OUT", help="folders of `sccam ablate`")
    sets: dict[str, Any] = read_json(RESULT)["sets"] if RESULT.exists() else {}
    for item in parser.parse_args().sets:
        name, _, out = item.partition("=")
        facts = {"commit": commit(), "device": device_name("cpu"), "libraries": {n: version(n) for n in LIBRARIES}}
        sets[name] = {**facts, **read_json(Path(out) / "ablation.json")}
    write_json(RESULT, {"schema": 1, "sets": sets})
    replace_between(PAGE, BEGIN, END, "\n\n".join(section(name, found) for name, found in sets.items()))


def section(name: str, found: dict[str, Any]) -> str:
    """One set of images: what was run, and its tables; variants of which no seed is finished are left out."""
    found = {**found, "variants": {key: value for key, value in found["variants"].items() if value["seeds"]}}
    images, baseline = found["images"], found["baseline"]
    seeds = sorted({seed for variant in found["variants"].values() for seed in variant["seeds"]})
    parts = [
        f"## {name[0].upper()}{name[1:]}",
        f"{images['train']} training images, {images['val']} unseen; configuration `{found['config']}`, seeds "
        f"{', '.join(map(str, seeds))}; {found['device']}, written at commit "
        f"{found['commit']}. Differences are to `{baseline}`.",
        variant_table(found),
    ]
    if found["references"]:
        parts.append(reference_table(found["references"]))
    if any(variant["hidden"] for variant in found["variants"].values()):
        parts.append(hidden_table(found["variants"]))
    settings = "\n".join(f"- `{key}`: {_settings(variant['settings'])}" for key, variant in found["variants"].items())
    return "\n\n".join([*parts, "Settings:", settings])


def variant_table(found: dict[str, Any]) -> str:
    """A row for each variant; a column that no variant has is left out."""
    rows = {
        name: {(row["stage"], row["column"], row["split"]): row for row in variant["rows"]}
        for name, variant in found["variants"].items()
    }
    columns = [title for title, key in COLUMNS.items() if any(key in row for row in rows.values())]
    head = ["variant", "seeds", *columns, "minutes"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for name, variant in found["variants"].items():
        cells = [_cell(rows[name].get(COLUMNS[title])) for title in columns]
        minutes = f"{variant['seconds'] / 60:.1f}"
        lines.append(f"| `{name}` | {len(variant['seeds'])} | {' | '.join(cells)} | {minutes} |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    text = f"{row['mean']:.1f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.1f}")
    change = row.get("difference")
    if change is None:
        return text
    return f"{text} ({WORDS[change['word']]} {change['mean']:+.1f}, {change['low']:+.1f} to {change['high']:+.1f})"


def reference_table(rows: list[dict[str, Any]]) -> str:
    """What needs no method, and the ceiling."""
    lines = ["| reference | images | tags given | mIoU |", "| --- | --- | --- | --- |"]
    for row in rows:
        deviation = row.get("deviation")
        value = f"{row['mean']:.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")
        lines.append(f"| {row['name']} | {row['split']} | {'yes' if row['tags_used'] else 'no'} | {value} |")
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
