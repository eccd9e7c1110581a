"""The segmenter: DeepLab learns the pseudo labels, where it is wanted its own masks after that, and then predicts
without tags: where its masks can be measured, and some images of lists where they cannot, to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sccam.data.batches import TrainingBatch
from sccam.data.examples import example_rows
from sccam.data.images import read_image
from sccam.data.masks import read_mask, write_mask
from sccam.nets.deeplab import DeepLab
from sccam.runtime.labeler import own_label_job, refine_job
from sccam.runtime.network_torch import segmentation_scores
from sccam.stages.pseudo_label import sharpened
from sccam.stages.segment import labelled_cells, prior_shift, segmentation_loss
from sccam.structures import IGNORE, ByteArray, TaggedImages
from sccam.training.context import RunContext

SHOWN = 24  # images that are predicted of a list without true masks


def train_segmenter(run: RunContext) -> None:
    """DeepLab on the pseudo labels."""
    config, stage = run.config.segment, "segment/train"
    run.seed_heads(stage)
    net = DeepLab(run.backbone(config.output_stride), len(run.dataset.classes) + 1, config.rates, config.scales)
    if config.initialise == "classifier":  # the trunk of the last round instead of the pretrained one
        run.load_trunk(net.backbone, run.folder.classifier(run.last_round))
    _learn(run, stage, net, run.folder.pseudo_label, config.epochs, run.folder.segmenter)


def label_by_itself(run: RunContext) -> None:
    """The segmenter's masks of the training images, of the classes that each one's tags allow, after a CRF."""
    net = run.load(run.folder.segmenter, "segmenter")
    assert isinstance(net, DeepLab)
    scores_of = segmentation_scores(net, run.compute, run.config.segment.long_side)
    missing, settings = run.missing(run.folder.self_label), run.config.pseudo_label.crf
    classes_of = dict(zip(run.train_images.ids, map(np.flatnonzero, run.train_images.labels.present), strict=True))

    def jobs() -> Iterator[tuple[Any, ...]]:
        for path, id in missing:
            classes = classes_of[id].astype(np.int32)
            scores = scores_of(read_image(path))[np.concatenate([[0], classes + 1])]
            probabilities = sharpened(scores, 1.0)  # where all of them are 0 none is likelier
            out, least = run.folder.self_label(id), run.config.segment.self_confidence
            yield path, probabilities, classes, out, settings, least, run.backends

    run.jobs(own_label_job, jobs(), len(missing))


def train_by_itself(run: RunContext) -> None:
    """The segmenter learns on from `label_by_itself`."""
    net = run.load(run.folder.segmenter, "segmenter")
    assert isinstance(net, DeepLab)
    net.backbone.freeze(net.backbone.default_freeze if run.config.network.freeze < 0 else run.config.network.freeze)
    _learn(run, "segment/retrain", net, run.folder.self_label, run.config.segment.self_epochs, run.folder.self_trained)


def _learn(run: RunContext, stage: str, net: DeepLab, label_of: Callable[[str], Path], epochs: int, path: Path) -> None:
    config = run.config.segment

    def read_label(n: int) -> ByteArray:
        return read_mask(label_of(run.train_images.ids[n]))

    shift = None
    if config.balance > 0:
        pixels = np.zeros(IGNORE + 1, np.int64)
        for n in range(len(run.train_images)):
            pixels += np.bincount(read_label(n).ravel(), minlength=len(pixels))
        shift = torch.from_numpy(prior_shift(pixels[: len(run.dataset.classes) + 1], config.balance))
        shift = shift.to(run.compute.device)

    grids: list[torch.Size] = []  # of the loss; views are all of one size

    def counts_of(batch: TrainingBatch) -> Tensor:
        assert batch.labels is not None
        if not grids:
            with torch.no_grad():
                grids.extend(logits.shape[-2:] for logits in net.multi_scale(run.inputs(batch, net.backbone)))
        return labelled_cells(torch.from_numpy(batch.labels), grids)

    def loss_of(batch: TrainingBatch, counts: Tensor | None) -> Tensor:
        assert batch.labels is not None
        logits = net.multi_scale(run.inputs(batch, net.backbone))
        return segmentation_loss(logits, torch.from_numpy(batch.labels).to(run.compute.device), shift, counts)

    run.train_network(
        stage,
        net,
        net.backbone,
        loss_of,
        counts_of=counts_of,
        draws=stage,
        augment=config.augment,
        batch=config.batch,
        optimiser=config.optimiser,
        epochs=epochs,
        schedule_epochs=epochs,
        average=config.average,
        path=path,
        kind="segmenter",
        stride=config.output_stride,
        made_from={"rates": list(config.rates), "scales": list(config.scales), "long_side": config.long_side},
        read_label=read_label,
    )


def predict(run: RunContext) -> None:
    """The segmenter's masks, without tags, where they can be measured and of some more to look at; and with a CRF."""
    net = run.load(run.folder.weights("segmenter"), "segmenter")
    assert isinstance(net, DeepLab)
    scores_of = segmentation_scores(net, run.compute, run.config.segment.long_side)
    with_crf = run.config.measure.crf_at_test
    items = [(part.paths[n], part.ids[n], part.split) for part in segmented_parts(run) for n in _predicted(run, part)]
    items = [
        (path, id, split)
        for path, id, split in run.ranks.share(items)
        if not run.folder.prediction(split, id, crf=with_crf).exists()
    ]

    def jobs() -> Iterator[tuple[Any, ...]]:
        for path, id, split in items:
            probabilities = scores_of(read_image(path))
            write_mask(run.folder.prediction(split, id), probabilities.argmax(axis=0).astype(np.uint8))
            run.stop.check()
            if with_crf:
                out = run.folder.prediction(split, id, crf=True)
                yield path, probabilities, out, run.config.measure.crf, run.backends

    run.jobs(refine_job, jobs(), len(items))


def _predicted(run: RunContext, part: TaggedImages) -> list[int]:
    """Rows of a list: those with true masks; of a list without any, some that the picture and the report show."""
    measured = [n for n, id in enumerate(part.ids) if id in run.dataset.masks.paths]
    if measured or not len(part):
        return measured
    first = example_rows(run.dataset) if part is run.dataset.train else []
    spread = np.linspace(0, len(part) - 1, min(SHOWN, len(part))).astype(int).tolist()
    return list(dict.fromkeys([*first, *spread]))


def segmented_parts(run: RunContext) -> list[TaggedImages]:
    """The lists of images that the segmenter is measured on."""
    parts = [run.dataset.val]
    if run.config.measure.train_segmenter:
        parts.insert(0, run.dataset.train)
    return parts
