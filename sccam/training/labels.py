"""From the last round's maps to pseudo labels: threshold, affinity labels, AffinityNet, random walk, CRF."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sccam.artifacts import read_record, write_json
from sccam.data.batches import TrainingBatch
from sccam.data.images import read_image
from sccam.data.masks import read_mask
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.boundary_net import BoundaryNet, PairNet
from sccam.records import THRESHOLD
from sccam.runtime.labeler import (
    Alphas,
    affinity_label_job,
    chosen_walk,
    pseudo_label_job,
    threshold_from_images,
    walk_job,
    walk_length_job,
)
from sccam.runtime.network_torch import affinity_features
from sccam.stages.affinity import pair_counts, pair_loss
from sccam.stages.affinity_labels import AFFINITY_STRIDE, neighbour_offsets
from sccam.stages.boundary import boundary_field
from sccam.stages.threshold import alpha_of
from sccam.stages.walk import halved_lengths
from sccam.stages.walk_length import best_length
from sccam.structures import AffinityField, ByteArray
from sccam.training.context import RunContext

ORACLE_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # whose alphas the walk's oracle tries
MOST_WALKED = 200  # images that the length of the walk is chosen from
ALPHA_LIMIT = 64.0  # exponents are kept within [1/this, this]


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen from the images alone."""

    threshold: float
    alphas: Alphas


def choose_threshold(run: RunContext) -> None:
    """The threshold from the last round's maps and the images; the exponents keep the paper's distance to it."""
    config = run.config
    path_of = partial(run.folder.activation_map, run.last_round)
    threshold = threshold_from_images(run.train_images, path_of, config.threshold)
    # The paper's exponents belong to its threshold: each is moved as far as the threshold's own exponent moved.
    factor = 1.0 if config.threshold.rule == "fixed" else alpha_of(threshold) / alpha_of(config.threshold.fixed)
    low, high, walk = (
        float(np.clip(alpha * factor, 1 / ALPHA_LIMIT, ALPHA_LIMIT))
        for alpha in (config.affinity.alpha_low, config.affinity.alpha_high, config.walk.alpha)
    )
    run.reporter.message(
        f"threshold {threshold:.2f} by rule {config.threshold.rule!r}; "
        f"alphas: low {low:.2f}, walk {walk:.2f}, high {high:.2f}"
    )
    chosen = {"rule": config.threshold.rule, "threshold": threshold}
    write_json(run.folder / "threshold.json", {**chosen, "alpha_low": low, "alpha_high": high, "alpha_walk": walk})


def read_choice(run: RunContext) -> Choice:
    """What `choose_threshold` wrote."""
    chosen = read_record(run.folder / "threshold.json", THRESHOLD)
    alphas = Alphas(low=chosen["alpha_low"], high=chosen["alpha_high"], walk=chosen["alpha_walk"])
    return Choice(chosen["threshold"], alphas)


def walk_alphas(run: RunContext) -> tuple[float, ...]:
    """The exponent in use first; more only where masks can measure them."""
    used = read_choice(run).alphas.walk
    if not run.dataset.masks.paths:
        return (used,)
    return tuple(dict.fromkeys((used, run.config.walk.alpha, *map(alpha_of, ORACLE_THRESHOLDS))))


def make_affinity_labels(run: RunContext) -> None:
    """Two CRFs an image; where they agree, a label for the affinity network."""
    folder, config, alphas = run.folder, run.config, read_choice(run).alphas
    jobs = [
        (
            path,
            folder.activation_map(run.last_round, id),
            folder.affinity_label(id),
            config.cam.grid_stride,
            AFFINITY_STRIDE,
            alphas,
            config.affinity.crf,
            run.backends,
        )
        for path, id in run.missing(folder.affinity_label)
    ]
    run.jobs(affinity_label_job, jobs, len(jobs))


def train_affinity(run: RunContext) -> None:
    """AffinityNet on the labels of the stage before."""
    config, stage = run.config.affinity, "affinity/train"
    run.seed_heads(stage)
    trunk = run.backbone(run.config.network.output_stride)
    net: PairNet = (BoundaryNet if config.source == "boundary" else AffinityNet)(trunk, AFFINITY_STRIDE)
    offsets = neighbour_offsets(config.radius)

    def read_label(n: int) -> ByteArray:
        grid = read_mask(run.folder.affinity_label(run.train_images.ids[n]))
        return np.kron(grid, np.ones((AFFINITY_STRIDE, AFFINITY_STRIDE), dtype=np.uint8))

    def labels_of(batch: TrainingBatch) -> Tensor:
        """One label a cell, read at its centre: crops need not begin on a cell's border."""
        assert batch.labels is not None
        half = AFFINITY_STRIDE // 2
        return torch.from_numpy(batch.labels[:, half::AFFINITY_STRIDE, half::AFFINITY_STRIDE].copy())

    def loss_of(batch: TrainingBatch, counts: Tensor | None) -> Tensor:
        features = net(run.inputs(batch, net.backbone)).float()
        labels = labels_of(batch).to(run.compute.device)
        return pair_loss(features, labels, offsets, config.border, config.source, counts).total

    run.train_network(
        stage,
        net,
        net.backbone,
        loss_of,
        counts_of=lambda batch: pair_counts(labels_of(batch), offsets, config.border),
        draws=stage,
        augment=config.augment,
        batch=config.batch,
        optimiser=config.optimiser,
        epochs=config.epochs,
        schedule_epochs=config.epochs,
        path=run.folder.affinity_net,
        kind="affinity_net",
        stride=AFFINITY_STRIDE,
        made_from={"radius": config.radius, "affinity": config.source},
        read_label=read_label,
    )


def choose_walk_length(run: RunContext) -> None:
    """The number of steps that suits these images, from maps, affinities and colours of some of them."""
    config, alpha, steps = run.config.walk, read_choice(run).alphas.walk, halved_lengths(run.config.walk)
    tagged = np.flatnonzero(run.train_images.labels.present.any(axis=1))
    tagged = tagged[np.linspace(0, len(tagged) - 1, min(len(tagged), MOST_WALKED)).astype(int)]
    some = [(run.train_images.paths[n], run.train_images.ids[n]) for n in tagged.tolist()]
    jobs = (
        (path, field, run.folder.activation_map(run.last_round, id), run.config.cam.grid_stride, alpha, config,
         run.backends)
        for path, id, field in _affinities(run, some)
    )  # fmt: skip
    best, merits = best_length(steps, run.jobs(walk_length_job, jobs, len(some)))
    run.reporter.message(f"walk of {best} steps by rule {config.rule!r}")
    shares = {str(n): round(merit, 6) for n, merit in zip(steps, merits, strict=True)}
    write_json(run.folder / "walk.json", {"rule": config.rule, "steps": best, "merits": shares})


def walk(run: RunContext) -> None:
    """Walks the last round's maps along the learned affinities."""
    missing, alphas = run.missing(run.folder.walked_map), walk_alphas(run)
    config = chosen_walk(run.config.walk, run.folder.path)
    jobs = (
        (field, run.folder.activation_map(run.last_round, id), run.folder.walked_map(id), run.config.cam.grid_stride,
         alphas, config, run.backends)
        for _, id, field in _affinities(run, missing)
    )  # fmt: skip
    run.jobs(walk_job, jobs, len(missing))


def _affinities(run: RunContext, images: Iterable[tuple[Path, str]]) -> Iterator[tuple[Path, str, AffinityField]]:
    """Images given by path and id, with the learned affinities of their cells."""
    net = run.load(run.folder.affinity_net, "affinity_net")
    assert isinstance(net, PairNet)
    features_of = affinity_features(net, run.compute)
    affinity_fields = run.backends.function("affinity")
    offsets = neighbour_offsets(run.config.affinity.radius)
    for path, id in images:
        features = np.asarray(features_of(read_image(path)).cpu())
        if run.config.affinity.source == "boundary":
            yield path, id, boundary_field(features[0], offsets, AFFINITY_STRIDE)
        else:
            (field,) = affinity_fields([features], offsets, AFFINITY_STRIDE)
            yield path, id, field


def make_pseudo_labels(run: RunContext) -> None:
    """Dense CRF on the walked scores."""
    folder = run.folder
    jobs = [
        (path, folder.walked_map(id), folder.pseudo_label(id), AFFINITY_STRIDE, run.config.pseudo_label, run.backends)
        for path, id in run.missing(folder.pseudo_label)
    ]
    run.jobs(pseudo_label_job, jobs, len(jobs))
