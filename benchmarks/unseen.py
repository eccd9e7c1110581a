"""How well the chain itself labels unseen images: results/unseen.json, and from that a table of docs/accuracy.md.

    python benchmarks/unseen.py photographs PHOTOS OUT/runs/shipped/seed*    # runs of `sccam ablate` or `sccam train`
    python benchmarks/unseen.py drawn SAMPLE OUT/runs/shipped/seed*          # what the other set has is kept
    python benchmarks/unseen.py --table                                      # the table again, from the JSON

A segmenter learns the labels of training images, and is asked for those of unseen ones. Between the two lie that unseen
images may be harder, that their tags are not given, and that it learned less than its labels say. So the networks that
made the labels, classifier and affinity network, label the unseen images, too (`sccam infer --task pseudo-label`):
with given tags, and with those that the classifier predicts.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pages import difference, difference_cell, facts, miou_of_runs, parser_of_runs, replace_between

from sccam.artifacts import RunFolder, read_json, write_json
from sccam.data import open_dataset
from sccam.measure import image_counts
from sccam.runtime.folder import predict_to
from sccam.runtime.pseudo_labels import PseudoLabelJob
from sccam.runtime.sources import sources
from sccam.structures import Dataset

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "unseen.json"
PAGE = HERE.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- unseen table: begin -->", "<!-- unseen table: end -->"
OF_TRAINING = "pseudo labels of training images, tags given"
GIVEN, PREDICTED = "the chain, tags given", "the chain, tags predicted"
PLAIN, WITH_CRF = "segmenter", "segmenter, CRF"


def main() -> None:
    """Reads the arguments, labels, writes JSON and table."""
    parser = parser_of_runs(__doc__)
    arguments = parser.parse_args()
    if not arguments.table:
        if not arguments.runs:
            parser.error("name a set, its folder and finished runs; or --table")
        sets = read_json(RESULT)["sets"] if RESULT.exists() else {}
        sets[arguments.name] = measured(arguments.data, arguments.runs)
        write_json(RESULT, {"schema": 1, "sets": sets})
    replace_between(PAGE, BEGIN, END, table(read_json(RESULT)["sets"]))


def measured(data: Path, runs: list[Path]) -> dict[str, Any]:
    """mIoU of every way, and what the segmenter with a CRF gains over the others on the same images."""
    dataset = open_dataset(data)
    counts: dict[str, np.ndarray] = {}
    for way, of_run in {
        OF_TRAINING: lambda run: counted(dataset, "train", run.pseudo_label),
        GIVEN: lambda run: labelled(dataset, run, data / "tags.csv"),
        PREDICTED: lambda run: labelled(dataset, run, None),
        PLAIN: lambda run: counted(dataset, "val", lambda id: run.prediction("val", id)),
        WITH_CRF: lambda run: counted(dataset, "val", lambda id: run.prediction("val", id, crf=True)),
    }.items():
        counts[way] = np.stack([of_run(RunFolder(run)) for run in runs])
    rows = []
    for way, of_images in counts.items():
        scores = miou_of_runs(of_images)
        row: dict[str, Any] = {"way": way, "miou": round(float(np.mean(scores)), 2), "runs": scores}
        if way in (GIVEN, PREDICTED, PLAIN):
            row["gain"] = difference(counts[WITH_CRF], of_images)
        rows.append(row)
    return {**facts(), "train": len(dataset.train), "val": len(dataset.val), "rows": rows}


def labelled(dataset: Dataset, run: RunFolder, tags: Path | None) -> np.ndarray:
    """Pixels of the unseen images by true label and that of the chain [images L L+1]."""
    job = PseudoLabelJob(run.path, tags)
    with tempfile.TemporaryDirectory() as place:
        images, out = Path(place) / "images", Path(place) / "out"
        images.mkdir()
        for path in dataset.val.paths:
            (images / path.name).symlink_to(path.resolve())
        predict_to(job, sources(str(images)), out)
        return counted(dataset, "val", lambda id: out / "masks" / f"{id}.png")


def counted(dataset: Dataset, split: str, label_of: Callable[[str], Path]) -> np.ndarray:
    """Pixels by true label and that of a file of each image [images L L+1], of the images that have a true mask."""
    part = dataset.train if split == "train" else dataset.val
    ids = [id for id in part.ids if id in dataset.masks.paths]
    masks = [dataset.masks.paths[id] for id in ids]
    return image_counts({}, len(dataset.classes), masks, [label_of(id) for id in ids], 1, 1)


def table(sets: dict[str, Any]) -> str:
    """A row for each way and set."""
    lines = ["| set | | images | runs | mIoU | the segmenter with CRF gains over it |", "|" + " --- |" * 6]
    for name, found in sets.items():
        for row in found["rows"]:
            images = found["train"] if row["way"] == OF_TRAINING else found["val"]
            told = difference_cell(row["gain"]) if "gain" in row else ""
            lines.append(f"| {name} | {row['way']} | {images} | {len(row['runs'])} | {row['miou']:.1f} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
