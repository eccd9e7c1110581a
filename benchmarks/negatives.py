"""What images of no class teach: results/negatives.json, and from that a table of docs/accuracy.md.

    python benchmarks/negatives.py drawn=SAMPLE --seeds 3
    python benchmarks/negatives.py photographs=PHOTOS --seeds 1    # what the other set has is kept
    python benchmarks/negatives.py --table        # the table again, from the JSON

Neither set has an image without a class, so one is made of it: the last half of its classes loses its tags, and its
masks become background. What shows nothing else is then left out, or kept as an example of no class
(`data.allow_negative`). Maps are scored on the images that still have tags, in both cases the same ones; since more
images make more steps, leaving them out is also tried with as many steps.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pages import difference, difference_cell, facts, miou_of_runs, replace_between

from sccam.ablation import ablate
from sccam.ablation.plan import Ablation, run_folder
from sccam.artifacts import read_arrays, read_json, write_json
from sccam.data import open_dataset
from sccam.data.masks import read_mask, write_mask
from sccam.recipe import load_config
from sccam.structures import Dataset

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "negatives.json"
PAGE = HERE.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- negatives table: begin -->", "<!-- negatives table: end -->"
LEFT_OUT, AS_MANY_STEPS, KEPT = "left out", "left out, as many steps", "kept as examples of no class"
COUNTS = "counts/maps-round0-image_only-train.npz"


def main() -> None:
    """Reads the arguments, trains, writes JSON and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="NAME=FOLDER", help="drawn and photographs, and where they lie")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    arguments = parser.parse_args()
    if not arguments.table:
        found = read_json(RESULT)["sets"] if RESULT.exists() else {}
        for item in arguments.sets:
            name, _, folder = item.partition("=")
            with tempfile.TemporaryDirectory() as place:
                found[name] = measured(name, Path(folder).resolve(), Path(place), range(arguments.seeds))
        write_json(RESULT, {"schema": 1, "sets": found})
    replace_between(PAGE, BEGIN, END, table(read_json(RESULT)["sets"]))


def measured(name: str, source: Path, place: Path, seeds: range) -> dict[str, Any]:
    """Maps of a plain classifier, trained in the three ways."""
    whole = open_dataset(source)
    classes = whole.classes[: len(whole.classes) - len(whole.classes) // 2]
    counts_of_tags = whole.train.labels.present[:, : len(classes)].sum(axis=1).tolist()
    tagged = [id for id, tags in zip(whole.train.ids, counts_of_tags, strict=True) if tags]
    kept, left = place / "kept", place / "left out"
    with_fewer_classes(source, kept, whole, classes, whole.train.ids)
    with_fewer_classes(source, left, whole, classes, tagged)
    config = str(HERE / f"ablations/base/{name}.toml")
    epochs = load_config(config, []).classify.epochs[0]
    more = round(epochs * len(whole.train.ids) / len(tagged))
    ways = {
        LEFT_OUT: (left, ("run.until=maps",)),
        AS_MANY_STEPS: (left, ("run.until=maps", f"classify.epochs=[{more}]")),
        KEPT: (kept, ("run.until=maps", "data.allow_negative=true")),
    }
    counts = {
        way: counted(data, config, settings, place / way, tagged, seeds) for way, (data, settings) in ways.items()
    }
    rows = []
    for way, of_images in counts.items():
        scores = miou_of_runs(of_images)
        row: dict[str, Any] = {"way": way, "miou": round(float(np.mean(scores)), 2), "seeds": scores}
        if way != KEPT:
            row["gain"] = difference(counts[KEPT], of_images)
        rows.append(row)
    return {**facts(), "classes": len(classes), "images": len(whole.train.ids), "tagged": len(tagged), "rows": rows}


def with_fewer_classes(
    source: Path, place: Path, whole: Dataset, classes: tuple[str, ...], train: list[str] | tuple[str, ...]
) -> None:
    """The same folder without the tags of the other classes; their pixels are background in its masks."""
    (place / "masks").mkdir(parents=True)
    (place / "images").symlink_to(source / "images")
    lines = ["image,tags"]
    val = []
    for part in (whole.train, whole.val):
        for id, path, present in zip(part.ids, part.paths, part.labels.present.tolist(), strict=True):
            tags = [name for name, is_there in zip(classes, present, strict=False) if is_there]
            if id in train or (part is whole.val and tags):
                lines.append(f"{path.name},{';'.join(tags)}")
                val += [id] if part is whole.val else []
                mask = read_mask(whole.masks.paths[id])
                mask[(mask > len(classes)) & (mask != 255)] = 0
                write_mask(place / "masks" / f"{id}.png", mask)
    for name, content in (("tags.csv", lines), ("classes.txt", classes), ("train.txt", train), ("val.txt", val)):
        (place / name).write_text("\n".join(content) + "\n", encoding="utf-8")


def counted(data: Path, config: str, settings: tuple[str, ...], out: Path, ids: list[str], seeds: range) -> np.ndarray:
    """Pixels of the maps of these images by true and chosen label [seeds images L L+1]."""
    ablate(Ablation(data, config, tuple(seeds), "maps", {"maps": settings}), out)
    order = {id: n for n, id in enumerate(open_dataset(data, allow_negative=True).train.ids)}
    rows = [order[id] for id in ids]
    return np.stack([read_arrays(run_folder(out, "maps", seed) / COUNTS)["counts"][rows] for seed in seeds])


def table(sets: dict[str, Any]) -> str:
    """A row for each way and set."""
    lines = ["| set | images | of them without a class | | seeds | maps | keeping them gains over it |"]
    lines.append("|" + " --- |" * 7)
    for name, found in sets.items():
        for row in found["rows"]:
            told = difference_cell(row["gain"]) if "gain" in row else ""
            none, score = found["images"] - found["tagged"], f"{len(row['seeds'])} | {row['miou']:.1f}"
            lines.append(
                f"| {name}, {found['classes']} classes | {found['images']} | {none} | {row['way']} | {score} | {told} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
