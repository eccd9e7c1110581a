"""How long what ships takes against the paper's numbers: results/recipe_times.json, then a line of docs/accuracy.md.

    python benchmarks/recipe_times.py PHOTOS      # with nothing beside it; then python benchmarks/accuracy.py

Both are variants of ablations/photographs.toml, and are trained in turn, from images to scores of the segmenter, on
every sixth photograph: a machine's speed changes within the half hour that one run on all of them takes, and all that
a run does for an image or an epoch it does as often for one as for the next. Two limits of local prototypes, the pixels
of a class and the images that maps are compared on, are a sixth of what they are, as they would not be reached.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pages import facts

from sccam.ablation.plan import read_ablation
from sccam.artifacts import read_json, write_json
from sccam.recipe import RunConfig
from sccam.run import train
from sccam.training import prototypes

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "recipe_times.json"
OURS, THEIRS = "shipped", "published"
EVERY = 6
ORDER = (THEIRS, OURS, OURS, THEIRS)


def main() -> None:
    """Reads the arguments, trains, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="a folder with tags, masks, train.txt and val.txt")
    photos = parser.parse_args().photos.resolve()
    prototypes.MOST_COMPARED = -(-prototypes.MOST_COMPARED // EVERY)
    plan = read_ablation(HERE / "ablations/photographs.toml", photos)
    runs: dict[str, list[dict[str, Any]]] = {OURS: [], THEIRS: []}
    with tempfile.TemporaryDirectory() as place:
        images = thinned(photos, Path(place) / "images")
        for n, name in enumerate(ORDER):
            started = time.perf_counter()
            train(images, thinned_limits(plan.settings(name, 0)), Path(place) / str(n))
            seconds = round(time.perf_counter() - started, 1)
            stages = read_json(Path(place) / str(n) / "scores.json")["seconds"]
            runs[name].append({"seconds": seconds, "stages": {stage: round(s, 1) for stage, s in stages.items()}})
            print(name, seconds, flush=True)
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in zip(runs[OURS], runs[THEIRS], strict=True)]
    result = {"every": EVERY, "order": ORDER, "runs": runs, "ratios": [round(ratio, 3) for ratio in ratios]}
    write_json(RESULT, {"schema": 1, **facts(), **result, "ratio": round(statistics.median(ratios), 3)})


def thinned_limits(settings: RunConfig) -> RunConfig:
    """Settings with a sixth of the pixels of a class that are clustered."""
    return replace(settings, prototypes=replace(settings.prototypes, most=-(-settings.prototypes.most // EVERY)))


def thinned(photos: Path, place: Path) -> Path:
    """The same folder with every sixth image of each list."""
    place.mkdir()
    for entry in photos.iterdir():
        (place / entry.name).symlink_to(entry)
    for name in ("train.txt", "val.txt"):
        lines = (photos / name).read_text().split()
        (place / name).unlink()
        (place / name).write_text("\n".join(lines[::EVERY]) + "\n")
    return place


if __name__ == "__main__":
    main()
