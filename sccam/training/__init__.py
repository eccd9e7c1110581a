"""The whole method in its order: tags in, segmenter out, stage after stage, each resumable.

    data            every image is decoded once, every mask checked, before anything is trained
    roundR/cluster  Eq. 2 on the features of round R-1 (not in round 0)                           rounds.py
    roundR/classify Eq. 3; after the paper's rounds, where they are on, reactivation and local prototypes
    roundR/maps     Eq. 1; in rounds before the last only where a mask exists to measure them with
    threshold       the background threshold from the images alone, and the exponents from it     labels.py
    affinity/...    labels by two CRFs, then AffinityNet
    walk/length     how many steps suit these images, where `walk.rule` asks for it
    walk            class scores and backgrounds along the affinities
    pseudo_labels   CRF, one label index a pixel
    segment/...     DeepLab, then its masks                                                       segmenter.py
    scores          every stage against the true masks, if there are any                          scores.py

With `run.until` a run ends after the maps or the pseudo labels, and may go on later. Where several processes do a run,
they share what is trained and what is done image by image; the first one alone checks the data, clusters, chooses
threshold and length of the walk, and measures.

A stage that is marked finished in run.json is skipped; one that was cut off continues from its files.
Trainers receive `TaggedImages`, which has no masks; only the last stage and `data` see `TrueMasks`.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from sccam.artifacts import RunFolder, read_json
from sccam.callbacks import Callback
from sccam.ranks import Ranks
from sccam.recipe import RunConfig
from sccam.stop import StopRequest
from sccam.structures import Dataset
from sccam.training.context import Reporter, RunContext, Silent
from sccam.training.data_check import check_data
from sccam.training.labels import (
    choose_threshold,
    choose_walk_length,
    make_affinity_labels,
    make_pseudo_labels,
    train_affinity,
    walk,
)
from sccam.training.prototypes import find_prototypes
from sccam.training.rounds import classify, cluster, make_maps, reactivate
from sccam.training.scores import measure
from sccam.training.segmenter import label_by_itself, predict, train_by_itself, train_segmenter

__all__ = ["Reporter", "RunContext", "Silent", "scores_stage", "train_all"]


def scores_stage(until: str) -> str:
    """The name of the last stage: a run that goes farther than before measures anew."""
    return "scores" if until == "segmenter" else f"scores/{until}"


def train_all(
    dataset: Dataset,
    config: RunConfig,
    folder: RunFolder,
    reporter: Reporter,
    stop: StopRequest,
    callback: Callback | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Runs what is not finished yet and returns the content of scores.json; arguments as in `RunContext`."""
    run = RunContext(dataset, config, folder, reporter, stop, callback, ranks)
    reporter.message(f"kernels: {run.backends.line()}")
    if run.ranks.first:
        folder.update(backends=asdict(run.backends))
    rounds = range(run.last_round + 1)
    measured_rounds = rounds if config.measure.every_round else rounds[-1:]
    run.stage("data", partial(check_data, run))
    for r, kind in enumerate(config.rounds):
        if kind == "subcategories":
            run.stage(f"round{r}/cluster", partial(cluster, run, r), shared=True)
        work = {"reactivated": reactivate, "prototypes": find_prototypes}.get(kind, classify)
        run.stage(f"round{r}/classify", partial(work, run, r), shared=kind != "prototypes")
        if r in measured_rounds:
            run.stage(f"round{r}/maps", partial(make_maps, run, r), shared=True)
    run.stage("threshold", partial(choose_threshold, run))
    until = config.run.until
    if until != "maps":
        run.stage("affinity/labels", partial(make_affinity_labels, run), shared=True)
        run.stage("affinity/train", partial(train_affinity, run), shared=True)
        if config.walk.rule == "contrast":
            run.stage("walk/length", partial(choose_walk_length, run))
        run.stage("walk", partial(walk, run), shared=True)
        run.stage("pseudo_labels", partial(make_pseudo_labels, run), shared=True)
    if until == "segmenter":
        run.stage("segment/train", partial(train_segmenter, run), shared=True)
        if config.segment.self_epochs > 0:
            run.stage("segment/relabel", partial(label_by_itself, run), shared=True)
            run.stage("segment/retrain", partial(train_by_itself, run), shared=True)
        run.stage("segment/predict", partial(predict, run), shared=True)
    run.stage(scores_stage(until), partial(measure, run, measured_rounds))
    return dict(read_json(folder / "scores.json"))
