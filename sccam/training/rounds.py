"""Algorithm 1: each round clusters the features of the round before (Eq. 2), trains a classifier on classes and
sub-categories (Eq. 3), and, where it is wanted, makes its activation maps (Eq. 1). Round 0 learns the classes alone.

Two more rounds may follow that make other maps of the last classifier: reactivation, and local prototypes
(prototypes.py).
"""

from __future__ import annotations

from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from sccam.artifacts import read_arrays, write_arrays
from sccam.data.batches import TrainingBatch
from sccam.data.images import read_image
from sccam.data.transforms import resize
from sccam.errors import RunFolderError
from sccam.fit import shares
from sccam.nets.cam_net import CamNet
from sccam.runtime.labeler import save_map
from sccam.runtime.network_torch import pooled_features, score_views
from sccam.stages.cam import activation_map, view_size
from sccam.stages.classify import equivariance_loss, joint_loss, sub_weight_of
from sccam.stages.cluster import cluster_subcategories
from sccam.stages.reactivate import reactivation_loss
from sccam.structures import ByteArray, SubcategoryLabels
from sccam.training.context import RunContext

DRAWS = "classify"
"""Every round draws the same views in the same order, the same head of the classes and the same dropout: two rounds
then differ in their sub-categories and in nothing else. Other seeds move the maps by a point and more
(benchmarks/results/photos.json)."""


def cluster(run: RunContext, r: int) -> None:
    """Features of round r-1's classifier, or of the trunk as it came, clustered into the sub-categories of round r."""
    settings, stride, images = run.config.cluster, run.config.network.output_stride, run.train_images
    before = classifier_of(run, r - 1)
    trunk = before.backbone
    if settings.features == "pretrained":
        trunk = run.backbone(stride).eval()
        run.compute.place(trunk)
    net = before if settings.pool == "map" else None
    features_of = pooled_features(trunk, run.compute, partial(view_of, run, settings.scale), net)
    found: list[tuple[int, int, np.ndarray]] = []  # class, row, feature
    every = np.arange(len(images.classes), dtype=np.int32)
    for n in run.watched(run.ranks.share(range(len(images)))):
        classes = every[images.labels.present[n]] if settings.pool == "map" else every[:1]
        for c, row in zip(classes.tolist(), features_of(read_image(images.paths[n]), classes), strict=True):
            found.append((c, n, row))
    everywhere = [entry for entries in run.ranks.gathered(found) for entry in entries]
    if not run.ranks.first:
        return
    everywhere.sort(key=lambda entry: entry[:2])
    parts = [np.stack([row for _, _, row in rows]) for _, rows in groupby(everywhere, key=lambda entry: entry[0])]
    features = np.concatenate(parts)
    labels = cluster_subcategories(
        parts if settings.pool == "map" else features,
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
    stride = network.train_stride or network.output_stride
    net = CamNet(
        run.backbone(stride, config.freeze),
        len(run.dataset.classes),
        0 if subcategories is None else len(subcategories.parent),
    )
    if config.dropout >= 0:
        net.dropout.p = config.dropout
    if r > 0 and config.restart == "previous":
        run.load_trunk(net.backbone, run.folder.classifier(r - 1))
    parent_targets = torch.from_numpy(run.train_images.labels.present).float().to(run.compute.device)
    sub_targets = None
    if subcategories is not None:
        sub_targets = torch.from_numpy(subcategories.present).float().to(run.compute.device)

    weight = 0.0
    if subcategories is not None:
        weight = sub_weight_of(config, len(run.dataset.classes), len(subcategories.parent))

    def counts_of(batch: TrainingBatch) -> Tensor:
        """Images, and classes of images."""
        return torch.stack([torch.tensor(float(len(batch.rows))), parent_targets[batch.rows].sum().cpu()])

    def loss_of(batch: TrainingBatch, counts: Tensor | None) -> Tensor:
        inputs = run.inputs(batch, net.backbone)
        images, present = shares(counts_of(batch), counts)
        features = net.features(inputs)
        parent_logits, sub_logits = net.logits(features)
        rows = torch.from_numpy(batch.rows).to(run.compute.device)
        loss = images * joint_loss(
            parent_logits.float(),
            None if sub_logits is None else sub_logits.float(),
            parent_targets[rows],
            None if sub_targets is None else sub_targets[rows],
            weight,
        )
        if config.equivariance > 0:
            small = interpolate(
                inputs, view_size((inputs.shape[-2], inputs.shape[-1]), config.smaller, stride), mode="area"
            )
            maps = [net.parent(values).float() for values in (features, net.features(small))]
            loss = loss + present * config.equivariance * equivariance_loss(maps[0], maps[1], parent_targets[rows])
        return loss

    epochs, schedule_epochs = config.epochs_of(r)
    run.train_network(
        f"round{r}/classify",
        net,
        net.backbone,
        loss_of,
        counts_of=counts_of,
        draws=DRAWS,
        augment=config.augment_of(r),
        batch=config.batch,
        optimiser=config.optimiser,
        epochs=epochs,
        schedule_epochs=schedule_epochs,
        enough=config.enough,
        path=run.folder.classifier(r),
        kind="cam_net",
        stride=network.output_stride,
        made_from={"subcategory_parent": [] if subcategories is None else subcategories.parent.tolist(), "round": r},
    )


def reactivate(run: RunContext, r: int) -> None:
    """Round r: the last classifier learns on, with a second head that sees each class where its map is."""
    config, network = run.config.reactivate, run.config.network
    run.seed_heads("reactivate")
    net = CamNet(
        run.backbone(network.train_stride or network.output_stride, run.config.classify.freeze),
        len(run.dataset.classes),
        0,
        "reactivated",
    )
    before = classifier_of(run, r - 1)
    net.backbone.load_state_dict(before.backbone.state_dict())
    net.parent.load_state_dict(before.parent.state_dict())
    targets = torch.from_numpy(run.train_images.labels.present).float().to(run.compute.device)

    def counts_of(batch: TrainingBatch) -> Tensor:
        """Images, and classes of images."""
        return torch.stack([torch.tensor(float(len(batch.rows))), targets[batch.rows].sum().cpu()])

    def loss_of(batch: TrainingBatch, counts: Tensor | None) -> Tensor:
        features = net.features(run.inputs(batch, net.backbone))
        images, present = shares(counts_of(batch), counts)
        target = targets[torch.from_numpy(batch.rows).to(run.compute.device)]
        assert net.second is not None
        parent, second = (head.weight.flatten(1).float() for head in (net.parent, net.second))
        loss = joint_loss(net.logits(features)[0].float(), None, target, None, 0.0)
        again = reactivation_loss(features.float(), parent, second, target)
        return images * loss + present * config.weight * again

    run.train_network(
        f"round{r}/classify",
        net,
        net.backbone,
        loss_of,
        counts_of=counts_of,
        draws="reactivate",
        augment=run.config.classify.augment_of(r),
        batch=run.config.classify.batch,
        optimiser=config.optimiser,
        epochs=config.epochs,
        schedule_epochs=config.epochs,
        path=run.folder.classifier(r),
        kind="cam_net",
        stride=network.output_stride,
        made_from={"subcategory_parent": [], "round": r, "maps": net.maps},
    )


def view_of(run: RunContext, scale: float, image: ByteArray) -> ByteArray:
    """The image as maps see it at a scale, its sides a multiple of the stride."""
    size = (image.shape[0], image.shape[1])
    factor = scale * run.config.cam.enlargement(size)
    return resize(image, view_size(size, factor, run.config.network.output_stride))


def make_maps(run: RunContext, r: int) -> None:
    """Activation maps of the training images: all in the last round, the measurable ones before."""
    views = score_views(classifier_of(run, r), run.compute)
    images, config, merge = run.train_images, run.config, run.backends.function("merge")
    stride = config.network.output_stride
    rows = [n for n, id in enumerate(images.ids) if r == run.last_round or id in run.dataset.masks.paths]
    for n in run.watched(run.ranks.share(rows)):
        path = run.folder.activation_map(r, images.ids[n])
        if path.exists():
            continue
        image = read_image(images.paths[n])
        classes = np.flatnonzero(images.labels.present[n]).astype(np.int32)
        activation = activation_map(image, classes, views, config.cam, multiple=stride, merge=merge)
        save_map(path, activation, (image.shape[0], image.shape[1]))


def classifier_of(run: RunContext, r: int) -> CamNet:
    """The finished classifier of round r, at the stride of maps."""
    net = run.load(run.folder.classifier(r), "cam_net")
    assert isinstance(net, CamNet)
    return net


def _subcategories(run: RunContext, r: int) -> SubcategoryLabels:
    path = run.folder / f"round{r}/subcategories.npz"
    arrays = read_arrays(path, {"present": "N S", "parent": "S", "ids": "N text"})
    if arrays["ids"].tolist() != list(run.train_images.ids):
        raise RunFolderError("the sub-categories belong to another list of images", where=path)
    return SubcategoryLabels(arrays["present"], arrays["parent"], tuple(arrays["ids"].tolist()))
