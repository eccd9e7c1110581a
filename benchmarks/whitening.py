"""How many whitened components find the drawn looks: results/whitening.json, and from that a table of docs/accuracy.md.

    python benchmarks/whitening.py RUN SAMPLE     # a run on SAMPLE, with cluster.pool=map; several runs may be given
    python benchmarks/whitening.py --table        # the table again, from the JSON

The features that the run clustered for its first round are clustered anew; nothing is trained. The looks of the drawn
set are in view here, as they are in no trainer.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pages import replace_between

from sccam import config as toml
from sccam.artifacts import read_arrays, read_json, write_json
from sccam.data import open_dataset
from sccam.origin import commit
from sccam.recipe import RunConfig
from sccam.stages.cluster import ClusterConfig, cluster_subcategories
from sccam.structures import TaggedImages
from sccam.training.hidden import agreement

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "whitening.json"
PAGE = HERE.parent / "docs" / "accuracy.md"
BEGIN, END = "<!-- whitening table: begin -->", "<!-- whitening table: end -->"
COMPONENTS = (0, 16, 20, 24, 28, 32, 40, 48, 64, 96)


def main() -> None:
    """Reads the arguments, writes JSON and table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="*", type=Path, help="run folders, then the sample folder")
    parser.add_argument("--table", action="store_true", help="only write the table anew")
    arguments = parser.parse_args()
    if not arguments.table:
        *runs, sample = arguments.run
        write_json(RESULT, {"schema": 1, "commit": commit(), "rows": [measured(run, sample) for run in runs]})
    replace_between(PAGE, BEGIN, END, table(read_json(RESULT)["rows"]))


def measured(run: Path, sample: Path) -> dict[str, Any]:
    """NMI with the hidden looks of clusters of a run's features, by the number of components."""
    settings = toml.load(RunConfig, run / "config.toml")
    images, looks = open_dataset(sample).train, read_json(sample / "looks.json")
    features = read_arrays(run / "round1/features.npz")["features"].astype(np.float32)
    parts = np.split(features, np.cumsum(images.labels.present.sum(axis=0))[:-1])
    found = {str(count): _nmi(parts, images, looks, replace(settings.cluster, whiten=count)) for count in COMPONENTS}
    return {"features": len(features), "k": settings.cluster.k, "scale": settings.cluster.scale, "nmi": found}


def _nmi(parts: list[np.ndarray], images: TaggedImages, looks: dict[str, Any], settings: ClusterConfig) -> float:
    labels = cluster_subcategories(parts, images.labels, settings)
    return round(agreement(labels.present, labels.parent, images, looks)["nmi"], 4)


def table(rows: list[dict[str, Any]]) -> str:
    """A row for each run."""
    head = ["K", "scale", "features", *(f"{count} components" if count else "not whitened" for count in COMPONENTS)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for row in rows:
        cells = [f"{row['nmi'][str(count)]:.2f}" for count in COMPONENTS]
        lines.append(f"| {row['k']} | {row['scale']:g} | {row['features']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
