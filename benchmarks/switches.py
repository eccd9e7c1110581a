"""What the quality switches of `sccam infer` gain on unseen images: results/switches.json, and from that a table.

    python benchmarks/switches.py photographs PHOTOS OUT/runs/shipped/seed*  # runs of `sccam ablate` or `sccam train`
    python benchmarks/switches.py drawn SAMPLE OUT/runs/shipped/seed*        # what the other set has is kept
    python benchmarks/switches.py --times photographs PHOTOS OUT/runs/shipped/seed0  # with nothing beside it
    python benchmarks/switches.py --table                                    # the table again, from the JSON

All combinations of views, a dense CRF and tags. Tags and CRF come after the network, so that its views are run once for
the ways that share them.
"""

from __future__ import annotations

import itertools
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pages import difference, difference_cell, facts, miou_of_runs, parser_of_runs, replace_between
from unseen import counted

from sccam.artifacts import read_json, write_json
from sccam.bench.harness import Contestant, compare
from sccam.data import open_dataset
from sccam.data.masks import write_mask
from sccam.runtime.image_tags import PREDICTED, Tags
from sccam.runtime.network import open_network
from sccam.runtime.segmenter import SegmentJob, SegmentOptions, crf_of
from sccam.runtime.sources import Source, sources
from sccam.structures import Dataset

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "switches.json"
PAGE = HERE.parent / "docs" / "infer.md"
BEGIN, END = "<!-- switches table: begin -->", "<!-- switches table: end -->"
VIEWS: dict[str, dict[str, Any]] = {
    "": {},
    "--flip": {"flip": True},
    "--scale 0.75 --scale 1 --scale 1.25 --flip": {"scales": (0.75, 1.0, 1.25), "flip": True},
}
CRFS = {"": None, "--crf deeplab": "deeplab"}
TAGS = ("", f"--tags {PREDICTED}", "--tags FILE")
TIMED_IMAGES = 12


def main() -> None:
    """Reads the arguments, labels or times, writes JSON and table."""
    parser = parser_of_runs(__doc__)
    parser.add_argument("--times", action="store_true", help="how long each way takes, with the first run")
    arguments = parser.parse_args()
    if not arguments.table:
        if not arguments.runs:
            parser.error("name a set, its folder and finished runs; or --table")
        sets = read_json(RESULT)["sets"] if RESULT.exists() else {}
        found = sets.setdefault(arguments.name, {})
        if arguments.times:
            found["times"] = timed(arguments.data, arguments.runs[0])
        else:
            found |= measured(arguments.data, arguments.runs)
        write_json(RESULT, {"schema": 1, "sets": sets})
    replace_between(PAGE, BEGIN, END, table(read_json(RESULT)["sets"]))


def ways() -> list[tuple[str, str, str]]:
    """(views, CRF, tags) of every row, as they are written behind `sccam infer`."""
    return list(itertools.product(VIEWS, CRFS, TAGS))


def jobs_of(run: Path, tags: Path, views: str) -> dict[tuple[str, str, str], SegmentJob]:
    """The job of every way that has these views; they share their networks."""
    segmenter, classifier = open_network(run, "segmenter"), open_network(run, "cam_net")
    of_tags: dict[str, dict[str, Any]] = {
        "": {}, TAGS[1]: {"classifier": classifier}, TAGS[2]: {"tags": Tags(tags, segmenter.manifest.classes)},
    }  # fmt: skip
    return {
        (views, crf, known): SegmentJob(
            segmenter, SegmentOptions(crf=crf_of(CRFS[crf]), **VIEWS[views]), **of_tags[known]
        )
        for crf, known in itertools.product(CRFS, TAGS)
    }


def measured(data: Path, runs: list[Path]) -> dict[str, Any]:
    """mIoU of every way over runs, and what it gains over no switch."""
    dataset = open_dataset(data)
    each = [of_run(dataset, run, data / "tags.csv") for run in runs]
    counts = {way: np.stack([of_images[way] for of_images in each]) for way in ways()}
    rows = []
    for way, of_images in counts.items():
        scores = miou_of_runs(of_images)
        row: dict[str, Any] = {"way": way, "miou": round(float(np.mean(scores)), 2), "runs": scores}
        if any(way):
            row["gain"] = difference(of_images, counts["", "", ""])
        rows.append(row)
    return {**facts(), "val": len(dataset.val), "rows": rows}


def of_run(dataset: Dataset, run: Path, tags: Path) -> dict[tuple[str, str, str], np.ndarray]:
    """Pixels of the unseen images by true label and that of each way [images L L+1]."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        for views in VIEWS:
            jobs = jobs_of(run, tags, views)
            paths = {way: Path(place) / str(n) for n, way in enumerate(jobs)}
            for path in paths.values():
                path.mkdir(exist_ok=True)
            for image, id in zip(dataset.val.paths, dataset.val.ids, strict=True):
                for way, labels in labels_of(jobs, next(sources(image))).items():
                    write_mask(paths[way] / f"{id}.png", labels)
            for way, path in paths.items():
                found[way] = counted(dataset, "val", lambda id, path=path: path / f"{id}.png")
    return found


def labels_of(jobs: dict[tuple[str, str, str], SegmentJob], source: Source) -> dict[tuple[str, str, str], Any]:
    """One image by every way; the networks run once."""
    networks = next(job for job in jobs.values() if job.classifier is not None)
    loaded = networks.load(source)
    loaded.facts["tags"] = next(job.tags for job in jobs.values() if job.tags is not None).of(source)
    (output,) = networks.run([loaded])
    return {way: job.finish(loaded, output).labels for way, job in jobs.items()}


def timed(data: Path, run: Path, quick: bool = False) -> dict[str, Any]:
    """Seconds an image of every way over those of no switch, each by a job of its own, one image at a time."""
    images = [next(sources(path)) for path in open_dataset(data).val.paths[:TIMED_IMAGES]]
    jobs = {way: job for views in VIEWS for way, job in jobs_of(run, data / "tags.csv", views).items()}

    def label(job: SegmentJob, n: int) -> None:
        loaded = job.load(images[n])
        job.finish(loaded, job.run([loaded])[0])

    contestants = [Contestant(" ".join(filter(None, way)), partial(label, job)) for way, job in jobs.items()]
    rows = compare("switches", run.name, contestants, inputs=len(images), quick=quick, judge=None)
    cost = {row.row: round(1 / row.ratio, 2) for row in rows}
    return {**facts(), "images": len(images), "seconds": round(rows[0].seconds.median, 4), "cost": cost}


def table(sets: dict[str, Any]) -> str:
    """A row for each way, a column for each set."""
    named = [f"{name}, {found['val']} images, {len(found['rows'][0]['runs'])} runs" for name, found in sets.items()]
    timed = {name: found["times"]["cost"] for name, found in sets.items() if "times" in found}
    lines = ["| switches | " + " | ".join([*named, *(f"time, {name}" for name in timed)]) + " |"]
    lines.append("|" + " --- |" * (1 + len(named) + len(timed)))
    for n, way in enumerate(ways()):
        written = " ".join(filter(None, way))
        cells = []
        for found in sets.values():
            row = found["rows"][n]
            assert tuple(row["way"]) == way
            cells.append(f"{row['miou']:.1f}" + (f" ({difference_cell(row['gain'])})" if "gain" in row else ""))
        cells += [f"{cost[written]:.1f}" for cost in timed.values()]
        lines.append(f"| {f'`{written}`' if written else 'none'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
