"""Algorithm 1: each round clusters the features of the round before (Eq. 2), trains a classifier on classes and
sub-categories (Eq. 3), and, where it is wanted, makes its activation maps (Eq. 1). Round 0 learns the classes alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sccam.artifacts import read_arrays, write_arrays
from sccam.data.batches import TrainingBatch
from sccam.data.images import read_image
from sccam.errors import RunFolderError
from sccam.nets.cam_net import CamNet
from sccam.runtime.labeler import save_map
from sccam.runtime.network_torch import pooled_features, score_views
from sccam.stages.cam import activation_map
from sccam.stages.classify import joint_loss, sub_weight_of
from sccam.stages.cluster import cluster_subcategories
from sccam.structures import SubcategoryLabels
from sccam.training.context import RunContext

DRAWS = "classify"
"""Every round draws the same views in the same order, the same head of the classes and the same dropout: two rounds
then differ in their sub-categories and in nothing else. Other seeds move the maps by a point and more
(benchmarks/results/photos.json)."""


def cluster(run: RunContext, r: int) -> None:
    """Features of round r-1's classifier, clustered into the sub-categories of round r."""
    features_of = pooled_features(_classifier(run, r - 1), run.compute, run.config.network.output_stride)
    paths = run.watched(run.train_images.paths)
    features = np.stack([features_of(read_image(path)) for path in paths])
    labels = cluster_subcategories(
        features,
        run.train_images.labels,
        run.config.cluster,
        seed=run.config.run.seed,
        fit=run.backends.function("k_means"),
    )
    write_arrays(run.folder / f"round{r}/features.npz", {"features": features.astype(np.float16)})
    write_arrays(
        run.folder / f"round{r}/subcategories.npz",
        {"present": labels.present, "parent": labels.parent, "ids": np.array(labels.ids)},
    )


def classify(run: RunContext, r: int) -> None:
    """The classifier of round r; round 0 learns the classes alone."""
    config, network = run.config.classify, run.config.network
    subcategories = _subcategories(run, r) if r > 0 else None
    run.seed_heads(DRAWS)
    net = CamNet(
        run.backbone(network.train_stride or network.output_stride),
        len(run.dataset.classes),
        0 if subcategories is None else len(subcategories.parent),
    )
    if r > 0 and config.restart == "previous":
        run.load_trunk(net.backbone, run.folder.classifier(r - 1))
    parent_targets = torch.from_numpy(run.train_images.labels.present).float().to(run.compute.device)
    sub_targets = None
    if subcategories is not None:
        sub_targets = torch.from_numpy(subcategories.present).float().to(run.compute.device)

    weight = 0.0
    if subcategories is not None:
        weight = sub_weight_of(config, len(run.dataset.classes), len(subcategories.parent))

    def loss_of(batch: TrainingBatch) -> Tensor:
        parent_logits, sub_logits = net(run.inputs(batch, net.backbone))
        rows = torch.from_numpy(batch.rows).to(run.compute.device)
        return joint_loss(
            parent_logits.float(),
            None if sub_logits is None else sub_logits.float(),
            parent_targets[rows],
            None if sub_targets is None else sub_targets[rows],
            weight,
        )

    epochs, schedule_epochs = config.epochs_of(r)
    run.train_network(
        f"round{r}/classify",
        net,
        net.backbone,
        loss_of,
        draws=DRAWS,
        augment=config.augment_of(r),
        batch=config.batch,
        optimiser=config.optimiser,
        epochs=epochs,
        schedule_epochs=schedule_epochs,
        path=run.folder.classifier(r),
        kind="cam_net",
        stride=network.output_stride,
        made_from={"subcategory_parent": [] if subcategories is None else subcategories.parent.tolist(), "round": r},
    )


def make_maps(run: RunContext, r: int) -> None:
    """Activation maps of the training images: all in the last round, the measurable ones before."""
    views = score_views(_classifier(run, r), run.compute)
    images, config, merge = run.train_images, run.config, run.backends.function("merge")
    stride = config.network.output_stride
    rows = [n for n, id in enumerate(images.ids) if r == run.last_round or id in run.dataset.masks.paths]
    for n in run.watched(rows):
        path = run.folder.activation_map(r, images.ids[n])
        if path.exists():
            continue
        image = read_image(images.paths[n])
        classes = np.flatnonzero(images.labels.present[n]).astype(np.int32)
        activation = activation_map(image, classes, views, config.cam, multiple=stride, merge=merge)
        save_map(path, activation, (image.shape[0], image.shape[1]))


def _classifier(run: RunContext, r: int) -> CamNet:
    """The finished classifier of round r, at the stride of maps."""
    net = run.load(run.folder.classifier(r))
    assert isinstance(net, CamNet)
    return net


def _subcategories(run: RunContext, r: int) -> SubcategoryLabels:
    path = run.folder / f"round{r}/subcategories.npz"
    arrays = read_arrays(path)
    if arrays["ids"].tolist() != list(run.train_images.ids):
        raise RunFolderError("the sub-categories belong to another list of images", where=path)
    return SubcategoryLabels(arrays["present"], arrays["parent"], tuple(arrays["ids"].tolist()))
