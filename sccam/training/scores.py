"""scores.json: every stage of a run against the true masks, where there are any."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import partial
from typing import Any

from sccam.artifacts import write_json
from sccam.measure import Measure
from sccam.runtime.labeler import threshold_from_images
from sccam.stages.affinity_labels import AFFINITY_STRIDE
from sccam.training.context import RunContext
from sccam.training.hidden import hidden_rows
from sccam.training.labels import read_choice, walk_alphas
from sccam.training.segmenter import segmented_parts


def measure(run: RunContext, rounds: Iterable[int]) -> None:
    """Writes scores.json: a row for each stage, column and split.

    Args:
        rounds: whose maps were made.
    """
    rounds = list(rounds)
    rows = _rows_with_tags(run, rounds)
    if run.config.run.until == "segmenter":
        rows += rows_without_tags(run)
    if not rows:
        run.reporter.message("note: there are no masks, so nothing could be measured")
    network = run.config.network
    write_json(
        run.folder / "scores.json",
        {
            "rows": rows,
            "hidden": hidden_rows(run, rounds),
            "classes": list(run.dataset.classes),
            "threshold": read_choice(run).threshold,
            "threshold_rule": run.config.threshold.rule,
            "supervision": f"image-level tags; trunk {network.backbone}, weights {network.weights}",
            "seed": run.config.run.seed,
            "device": run.compute.device,
            "precision": run.compute.precision,
            "seconds": {name: facts["seconds"] for name, facts in run.folder.state().get("finished", {}).items()},
            "peak_memory_mb": peak_memory_mb(),
        },
    )


def _rows_with_tags(run: RunContext, rounds: Iterable[int]) -> list[dict[str, Any]]:
    """Maps, walked maps and pseudo labels of the training images, whose tags were given."""
    config, choice = run.config, read_choice(run)
    on_train = Measure(run.dataset.train, run.dataset.masks, run.workers)
    if not on_train.ids:
        return []
    rows: list[dict[str, Any]] = []
    measurable = run.dataset.train.only(on_train.ids)
    for r in rounds:
        paths, chosen = partial(run.folder.activation_map, r), choice.threshold
        if r != run.last_round:
            chosen = threshold_from_images(measurable, paths, config.threshold)
        rows += on_train.maps(
            f"maps/round{r}",
            paths,
            config.cam.grid_stride,
            config.threshold.fixed,
            chosen,
            config.measure.oracle_steps,
        )
    if config.run.until == "maps":
        return rows
    alphas = walk_alphas(run)
    rows += on_train.walked(run.folder.walked_map, AFFINITY_STRIDE, alphas, config.walk.alpha, alphas[0])
    return [*rows, on_train.labels("pseudo_labels", run.folder.pseudo_label, tags_used=True)]


def rows_without_tags(run: RunContext) -> list[dict[str, Any]]:
    """The segmenter's masks, with and without a CRF."""
    rows = []
    for part in segmented_parts(run):
        on_part = Measure(part, run.dataset.masks, run.workers)
        for name, crf in (("segmenter", False), ("segmenter+crf", True)):
            if on_part.ids and (run.config.measure.crf_at_test or not crf):
                paths = partial(run.folder.prediction, part.split, crf=crf)
                rows.append(on_part.labels(name, paths, tags_used=False))
    return rows


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process [MB], without its workers; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)
