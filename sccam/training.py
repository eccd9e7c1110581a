"""Algorithm 1 and what follows it: tags in, segmenter out, stage after stage, each resumable.

    data            every image is decoded once, every mask checked, before anything is trained
    roundR/cluster  Eq. 2 on the features of round R-1 (not in round 0)
    roundR/classify Eq. 3
    roundR/maps     Eq. 1; in rounds before the last only where a mask exists to measure them with
    threshold       the background threshold from the images alone, and the exponents that follow from it
    affinity/...    labels by two CRFs, then AffinityNet
    walk            class scores and backgrounds along the affinities
    pseudo_labels   CRF, one label index a pixel
    segment/...     DeepLab, then its masks
    scores          every stage against the true masks, if there are any

A stage that is marked finished in run.json is skipped; one that was cut off continues from its files.
Trainers receive `TaggedImages`, which has no masks; only the last stage and `data` see `TrueMasks`.
"""

from __future__ import annotations

import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sccam.artifacts import (
    RunFolder,
    read_arrays,
    read_json,
    read_weights_with_manifest,
    write_arrays,
    write_json,
    write_weights,
)
from sccam.data.batches import BatchLoader, TrainingBatch
from sccam.data.folder import check_cluster_counts, validate_masks
from sccam.data.images import read_image
from sccam.data.masks import read_mask, write_labelmap, write_mask
from sccam.errors import DataError, ImageError, RunFolderError
from sccam.fit import StopRequest, fit
from sccam.measure import Measure, ids_checksum, threshold_from_images
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import Backbone, build_backbone
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.recipe import RunConfig
from sccam.runtime.labeler import (
    Alphas,
    affinity_label_job,
    pseudo_label_job,
    refine_job,
    save_map,
    walk_job,
)
from sccam.runtime.network_torch import (
    affinity_features,
    mean_colour,
    pooled_features,
    score_views,
    segmentation_scores,
)
from sccam.runtime.pool import run_jobs, worker_count
from sccam.stages.affinity import affinity_field, pair_loss
from sccam.stages.affinity_labels import AFFINITY_STRIDE, neighbour_offsets
from sccam.stages.cam import activation_map
from sccam.stages.classify import joint_loss
from sccam.stages.cluster import cluster_subcategories
from sccam.stages.optim import OptimiserConfig
from sccam.stages.segment import segmentation_loss
from sccam.stages.threshold import alpha_of
from sccam.structures import ByteArray, Dataset, SubcategoryLabels, TaggedImages

ORACLE_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # whose alphas the walk's oracle tries
ALPHA_LIMIT = 64.0  # exponents are kept within [1/this, this]

Item = TypeVar("Item")


class Reporter(Protocol):
    """Who tells the user what happens."""

    def stage(self, name: str) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None: ...

    def message(self, text: str) -> None: ...


class Silent:
    """Tells nothing."""

    def stage(self, name: str) -> None:
        """Ignored."""

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Ignored."""

    def message(self, text: str) -> None:
        """Ignored."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen from the images alone."""

    threshold: float
    alphas: Alphas


class Training:
    """One run: the whole method on one dataset.

    Args:
        dataset: images, tags, and masks for measuring.
        config: every setting.
        folder: the run folder, locked by the caller.
        reporter: told of stages and progress.
        stop: checked between images and steps.
    """

    def __init__(self, dataset: Dataset, config: RunConfig, folder: RunFolder, reporter: Reporter, stop: StopRequest):
        self.dataset = dataset
        self.train_images = dataset.train
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self.stop = stop
        self.compute = Compute.resolve(config.run.device, config.run.precision)
        self.workers = worker_count(config.run.workers)
        self.last_round = config.classify.rounds

    def run(self) -> dict[str, Any]:
        """Runs what is not finished yet and returns the content of scores.json."""
        measured_rounds = range(self.last_round + 1) if self.config.measure.every_round else [self.last_round]
        self._stage("data", self.check_data)
        for r in range(self.last_round + 1):
            if r > 0:
                self._stage(f"round{r}/cluster", partial(self.cluster, r))
            self._stage(f"round{r}/classify", partial(self.classify, r))
            if r in measured_rounds:
                self._stage(f"round{r}/maps", partial(self.make_maps, r))
        self._stage("threshold", self.choose)
        self._stage("affinity/labels", self.make_affinity_labels)
        self._stage("affinity/train", self.train_affinity)
        self._stage("walk", self.walk)
        self._stage("pseudo_labels", self.make_pseudo_labels)
        self._stage("segment/train", self.train_segmenter)
        self._stage("segment/predict", self.predict)
        self._stage("scores", lambda: self.measure(measured_rounds))
        return dict(read_json(self.folder / "scores.json"))

    # Data -----------------------------------------------------------------------------------------------------------

    def check_data(self) -> None:
        """Decodes every image and mask once, and writes data.json and labelmap.txt.

        Raises:
            DataError: images that cannot be read, named together; a mask that does not fit.
        """
        images = [*self.dataset.train.paths, *self.dataset.val.paths]
        broken: list[ImageError] = []
        with ThreadPoolExecutor(self.workers) as pool:
            for done, error in enumerate(pool.map(self._broken, images), 1):
                broken += [error] if error else []
                self.reporter.progress(done, len(images))
                self.stop.check()
        if broken:
            listed = "\n".join(f"    {error.where}: {error.what}" for error in broken[:20])
            raise DataError(
                f"{len(broken)} of {len(images)} images cannot be read\n{listed}",
                where=self.dataset.root,
                fix="repair or remove these files and their tags; nothing was trained",
            )
        warnings = [*self.dataset.warnings, *validate_masks(self.dataset)]
        if self.last_round > 0:
            warnings += check_cluster_counts(self.dataset, self.config.cluster.k)
        for warning in warnings:
            self.reporter.message(f"note: {warning}")
        lists = {part.split: list(part.ids) for part in (self.dataset.train, self.dataset.val)}
        write_json(
            self.folder / "data.json",
            {
                "root": str(self.dataset.root),
                "classes": list(self.dataset.classes),
                "images_per_class": dict(
                    zip(self.dataset.classes, self.train_images.labels.present.sum(axis=0).tolist(), strict=True)
                ),
                "masks": len(self.dataset.masks.paths),
                "warnings": warnings,
                "lists": {name: {"sha256": ids_checksum(ids), "ids": ids} for name, ids in lists.items()},
            },
        )
        write_labelmap(self.folder / "labelmap.txt", self.dataset.classes)

    def _broken(self, path: Path) -> ImageError | None:
        try:
            read_image(path)
        except ImageError as error:
            return error
        return None

    # Algorithm 1 ----------------------------------------------------------------------------------------------------

    def cluster(self, r: int) -> None:
        """Features of round r-1's classifier, clustered into the sub-categories of round r."""
        features_of = pooled_features(self._cam_net(r - 1), self.compute, self.config.network.output_stride)
        paths = self._watched(self.train_images.paths)
        features = np.stack([features_of(read_image(path)) for path in paths])
        labels = cluster_subcategories(
            features, self.train_images.labels, self.config.cluster, seed=self.config.run.seed
        )
        write_arrays(self.folder / f"round{r}/features.npz", {"features": features.astype(np.float16)})
        write_arrays(
            self.folder / f"round{r}/subcategories.npz",
            {"present": labels.present, "parent": labels.parent, "ids": np.array(labels.ids)},
        )

    def classify(self, r: int) -> None:
        """The classifier of round r; round 0 learns the classes alone."""
        config = self.config.classify
        subcategories = self._subcategories(r) if r > 0 else None
        self._seed_heads(f"round{r}/classify")
        net = CamNet(
            self._backbone(self.config.network.train_stride or self.config.network.output_stride),
            len(self.dataset.classes),
            0 if subcategories is None else len(subcategories.parent),
        )
        if r > 0 and config.restart == "previous":
            _load_trunk(net.backbone, self.folder.classifier(r - 1))
        parent_targets = torch.from_numpy(self.train_images.labels.present).float().to(self.compute.device)
        sub_targets = None
        if subcategories is not None:
            sub_targets = torch.from_numpy(subcategories.present).float().to(self.compute.device)

        def loss_of(batch: TrainingBatch) -> Tensor:
            parent_logits, sub_logits = net(self._inputs(batch, net.backbone))
            rows = torch.from_numpy(batch.rows).to(self.compute.device)
            return joint_loss(
                parent_logits.float(),
                None if sub_logits is None else sub_logits.float(),
                parent_targets[rows],
                None if sub_targets is None else sub_targets[rows],
                config.sub_weight,
            )

        epochs, schedule = config.epochs_of(r)
        loader = self._loader(f"round{r}/classify", net.backbone, config.augment_of(r), config.batch)
        self._fit(f"round{r}/classify", net, loader, loss_of, config.optimiser, epochs, schedule)
        self._write_net(
            self.folder.classifier(r),
            net,
            "cam_net",
            net.backbone,
            self.config.network.output_stride,
            {
                "subcategory_parent": [] if subcategories is None else subcategories.parent.tolist(),
                "round": r,
            },
        )

    def make_maps(self, r: int) -> None:
        """Activation maps of the training images: all in the last round, the measurable ones before."""
        views = score_views(self._cam_net(r), self.compute)
        rows = range(len(self.train_images))
        if r < self.last_round:
            rows = [n for n in rows if self.train_images.ids[n] in self.dataset.masks.paths]  # type: ignore[assignment]
        for n in self._watched(rows):
            path = self.folder.activation_map(r, self.train_images.ids[n])
            if path.exists():
                continue
            image = read_image(self.train_images.paths[n])
            classes = np.flatnonzero(self.train_images.labels.present[n]).astype(np.int32)
            activation = activation_map(
                image, classes, views, self.config.cam, multiple=self.config.network.output_stride
            )
            save_map(path, activation, (image.shape[0], image.shape[1]))

    # From maps to pseudo labels -------------------------------------------------------------------------------------

    def choose(self) -> None:
        """The threshold from the last round's maps and the images; the exponents keep the paper's distance to it."""
        config = self.config
        threshold = threshold_from_images(
            self.train_images, lambda id: self.folder.activation_map(self.last_round, id), config.threshold
        )
        # The paper's exponents belong to its threshold: each is moved as far as the threshold's own exponent moved.
        factor = 1.0 if config.threshold.rule == "fixed" else alpha_of(threshold) / alpha_of(config.threshold.fixed)
        low, high, walk = (
            float(np.clip(alpha * factor, 1 / ALPHA_LIMIT, ALPHA_LIMIT))
            for alpha in (config.affinity.alpha_low, config.affinity.alpha_high, config.walk.alpha)
        )
        self.reporter.message(
            f"threshold {threshold:.2f} by rule {config.threshold.rule!r}; "
            f"alphas: low {low:.2f}, walk {walk:.2f}, high {high:.2f}"
        )
        write_json(
            self.folder / "threshold.json",
            {
                "rule": config.threshold.rule,
                "threshold": threshold,
                "alpha_low": low,
                "alpha_high": high,
                "alpha_walk": walk,
            },
        )

    def make_affinity_labels(self) -> None:
        """Two CRFs an image; where they agree, a label for the affinity network."""
        alphas = self._choice().alphas
        jobs = [
            (
                path,
                self.folder.activation_map(self.last_round, id),
                self.folder.affinity_label(id),
                self.config.cam.grid_stride,
                AFFINITY_STRIDE,
                alphas,
                self.config.affinity.crf,
            )
            for path, id in self._missing(self.folder.affinity_label)
        ]
        self._jobs(affinity_label_job, jobs, len(jobs))

    def train_affinity(self) -> None:
        """AffinityNet on the labels of the stage before."""
        config = self.config.affinity
        self._seed_heads("affinity/train")
        net = AffinityNet(self._backbone(self.config.network.output_stride), AFFINITY_STRIDE)
        offsets = neighbour_offsets(config.radius)

        def read_label(n: int) -> ByteArray:
            grid = read_mask(self.folder.affinity_label(self.train_images.ids[n]))
            return np.kron(grid, np.ones((AFFINITY_STRIDE, AFFINITY_STRIDE), dtype=np.uint8))

        def loss_of(batch: TrainingBatch) -> Tensor:
            features = net(self._inputs(batch, net.backbone)).float()
            assert batch.labels is not None
            # One label a cell, read at its centre: crops need not begin on a cell's border.
            half = AFFINITY_STRIDE // 2
            labels = torch.from_numpy(batch.labels[:, half::AFFINITY_STRIDE, half::AFFINITY_STRIDE].copy())
            return pair_loss(features, labels.to(self.compute.device), offsets, config.border).total

        loader = self._loader("affinity/train", net.backbone, config.augment, config.batch, read_label)
        self._fit("affinity/train", net, loader, loss_of, config.optimiser, config.epochs, config.epochs)
        self._write_net(
            self.folder.affinity_net,
            net,
            "affinity_net",
            net.backbone,
            AFFINITY_STRIDE,
            {"radius": config.radius},
        )

    def walk(self) -> None:
        """Walks the last round's maps along the learned affinities."""
        net = AffinityNet(self._backbone(self.config.network.output_stride, pretrained=False), AFFINITY_STRIDE)
        _load(net, self.folder.affinity_net, self.compute)
        features_of = affinity_features(net, self.compute)
        offsets = neighbour_offsets(self.config.affinity.radius)
        missing = list(self._missing(self.folder.walked_map))

        def jobs() -> Iterator[tuple[Any, ...]]:
            for path, id in missing:
                field = affinity_field(features_of(read_image(path)), offsets, AFFINITY_STRIDE)
                yield (
                    field,
                    self.folder.activation_map(self.last_round, id),
                    self.folder.walked_map(id),
                    self.config.cam.grid_stride,
                    self._walk_alphas(),
                    self.config.walk,
                )

        self._jobs(walk_job, jobs(), len(missing))

    def make_pseudo_labels(self) -> None:
        """Dense CRF on the walked scores."""
        jobs = [
            (
                path,
                self.folder.walked_map(id),
                self.folder.pseudo_label(id),
                AFFINITY_STRIDE,
                self.config.pseudo_label,
            )
            for path, id in self._missing(self.folder.pseudo_label)
        ]
        self._jobs(pseudo_label_job, jobs, len(jobs))

    # The segmenter --------------------------------------------------------------------------------------------------

    def train_segmenter(self) -> None:
        """DeepLab on the pseudo labels."""
        config = self.config.segment
        self._seed_heads("segment/train")
        net = self._deeplab()
        if config.initialise == "classifier":  # the trunk of the last round instead of the pretrained one
            _load_trunk(net.backbone, self.folder.classifier(self.last_round))

        def read_label(n: int) -> ByteArray:
            return read_mask(self.folder.pseudo_label(self.train_images.ids[n]))

        def loss_of(batch: TrainingBatch) -> Tensor:
            assert batch.labels is not None
            logits = net.multi_scale(self._inputs(batch, net.backbone))
            return segmentation_loss(logits, torch.from_numpy(batch.labels).to(self.compute.device))

        loader = self._loader("segment/train", net.backbone, config.augment, config.batch, read_label)
        self._fit("segment/train", net, loader, loss_of, config.optimiser, config.epochs, config.epochs)
        self._write_net(
            self.folder.segmenter,
            net,
            "segmenter",
            net.backbone,
            config.output_stride,
            {"rates": list(config.rates), "scales": list(config.scales)},
        )

    def predict(self) -> None:
        """The segmenter's masks where they can be measured, without tags; and with a CRF behind it."""
        net = self._deeplab(pretrained=False)
        _load(net, self.folder.segmenter, self.compute)
        scores_of = segmentation_scores(net, self.compute)
        items = [
            (path, id, part.split)
            for part in self._segmented_parts()
            for path, id in _pairs(part)
            if id in self.dataset.masks.paths
            and not self.folder.prediction(part.split, id, crf=self.config.measure.crf_at_test).exists()
        ]

        def jobs() -> Iterator[tuple[Any, ...]]:
            for path, id, split in items:
                probabilities = scores_of(read_image(path))
                write_mask(self.folder.prediction(split, id), probabilities.argmax(axis=0).astype(np.uint8))
                self.stop.check()
                if self.config.measure.crf_at_test:
                    yield path, probabilities, self.folder.prediction(split, id, crf=True), self.config.measure.crf

        self._jobs(refine_job, jobs(), len(items))

    # Scores ---------------------------------------------------------------------------------------------------------

    def measure(self, rounds: Iterable[int]) -> None:
        """Writes scores.json: a row for each stage, column and split."""
        config, choice = self.config, self._choice()
        on_train = Measure(self.dataset.train, self.dataset.masks, self.workers)
        rows: list[dict[str, Any]] = []
        if on_train.ids:
            measurable = _only(self.dataset.train, on_train.ids)
            for r in rounds:
                paths = partial(self.folder.activation_map, r)
                chosen = choice.threshold
                if r != self.last_round:
                    chosen = threshold_from_images(measurable, paths, config.threshold)
                rows += on_train.maps(
                    f"maps/round{r}",
                    paths,
                    config.cam.grid_stride,
                    config.threshold.fixed,
                    chosen,
                    config.measure.oracle_steps,
                )
            alphas = self._walk_alphas()
            rows += on_train.walked(self.folder.walked_map, AFFINITY_STRIDE, alphas, config.walk.alpha, alphas[0])
            rows.append(on_train.labels("pseudo_labels", self.folder.pseudo_label, tags_used=True))
        for part in self._segmented_parts():
            measure = Measure(part, self.dataset.masks, self.workers)
            if measure.ids:
                for name, crf in (("segmenter", False), ("segmenter+crf", True)):
                    if not crf or config.measure.crf_at_test:
                        paths = partial(self.folder.prediction, part.split, crf=crf)
                        rows.append(measure.labels(name, paths, tags_used=False))
        if not rows:
            self.reporter.message("note: there are no masks, so nothing could be measured")
        write_json(
            self.folder / "scores.json",
            {
                "rows": rows,
                "classes": list(self.dataset.classes),
                "threshold": choice.threshold,
                "threshold_rule": config.threshold.rule,
                "supervision": f"image-level tags; trunk {config.network.backbone}, weights {config.network.weights}",
                "seed": config.run.seed,
                "device": self.compute.device,
                "precision": self.compute.precision,
                "seconds": {name: facts["seconds"] for name, facts in self.folder.state().get("finished", {}).items()},
                "peak_memory_mb": peak_memory_mb(),
            },
        )

    # Pieces that several stages share -------------------------------------------------------------------------------

    def _stage(self, name: str, work: Callable[[], None]) -> None:
        if self.folder.finished(name):
            return
        self.stop.check()
        self.reporter.stage(name)
        started = time.monotonic()
        work()
        seconds = round(time.monotonic() - started, 2)
        self.folder.log({"stage": name, "event": "finished", "seconds": seconds})
        self.folder.finish(name, seconds=seconds)

    def _fit(
        self,
        stage: str,
        net: nn.Module,
        loader: BatchLoader,
        loss_of: Callable[[TrainingBatch], Tensor],
        optimiser: OptimiserConfig,
        epochs: int,
        schedule: int,
    ) -> None:
        self.compute.place(net)
        checkpoint = self.folder / f"{stage.replace('/', '_')}.checkpoint.safetensors"

        def on_epoch(epoch: int, loss: float, rate: float) -> None:
            self.folder.log({"stage": stage, "epoch": epoch, "loss": loss, "images_per_second": round(rate, 2)})
            self._note = f"epoch {epoch + 1}/{epochs} loss {loss:.4f}"

        self._note = ""
        fit(
            net,
            net.parameter_groups(),  # type: ignore[operator]
            loader,
            loss_of,
            optimiser_config=optimiser,
            epochs=epochs,
            schedule_epochs=schedule,
            seed=self._seed(stage),
            compute=self.compute,
            checkpoint=checkpoint,
            stop=self.stop,
            on_step=lambda done, total: self.reporter.progress(done, total, self._note),
            on_epoch=on_epoch,
        )
        self._spent_checkpoint = checkpoint

    def _write_net(
        self, path: Path, net: nn.Module, kind: str, backbone: Backbone, stride: int, made_from: dict[str, Any]
    ) -> None:
        """Writes the finished network; only then its checkpoint goes."""
        write_weights(
            path,
            net.state_dict(),
            kind=kind,
            backbone=backbone.name,
            classes=self.dataset.classes,
            mean=tuple(backbone.mean),
            std=tuple(backbone.std),
            stride=stride,
            made_from={"output_stride": backbone.output_stride, **made_from},
        )
        self._spent_checkpoint.unlink(missing_ok=True)

    def _jobs(self, function: Callable[..., Any], jobs: Iterable[tuple[Any, ...]], total: int) -> None:
        for done, _ in enumerate(run_jobs(function, jobs, workers=self.workers), 1):
            self.reporter.progress(done, total)
            self.stop.check()

    def _watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with progress told and a stop request heard between them."""
        items = list(items)
        for done, item in enumerate(items, 1):
            yield item
            self.reporter.progress(done, len(items))
            self.stop.check()

    def _missing(self, path_of: Callable[[str], Path]) -> Iterator[tuple[Path, str]]:
        """(image path, id) of the training images whose file at `path_of(id)` is not there yet."""
        return ((path, id) for path, id in _pairs(self.train_images) if not path_of(id).exists())

    def _loader(
        self,
        stage: str,
        backbone: Backbone,
        augment: Any,
        batch: int,
        read_label: Callable[[int], ByteArray] | None = None,
    ) -> BatchLoader:
        return BatchLoader(
            self.train_images,
            augment,
            batch=batch,
            fill=mean_colour(backbone),
            seed=(self.config.run.seed, zlib.crc32(stage.encode())),
            threads=self.workers,
            read_label=read_label,
        )

    def _inputs(self, batch: TrainingBatch, backbone: Backbone) -> Tensor:
        return self.compute.normalised(batch.pixels, backbone.mean, backbone.std)

    def _seed(self, stage: str) -> int:
        return (self.config.run.seed * 1_000_003 + zlib.crc32(stage.encode())) % 2**31

    def _seed_heads(self, stage: str) -> None:
        """Seeds the random start of new layers."""
        torch.manual_seed(self._seed(stage))

    def _backbone(self, output_stride: int, *, pretrained: bool = True) -> Backbone:
        """The trunk; not pretrained where the weights of a finished network are loaded next."""
        network = self.config.network
        return build_backbone(
            network.backbone,
            output_stride=output_stride,
            weights=network.weights if pretrained else "none",
            freeze=None if network.freeze < 0 else network.freeze,
        )

    def _cam_net(self, r: int) -> CamNet:
        subcategories = len(self._subcategories(r).parent) if r > 0 else 0
        backbone = self._backbone(self.config.network.output_stride, pretrained=False)
        net = CamNet(backbone, len(self.dataset.classes), subcategories)
        _load(net, self.folder.classifier(r), self.compute)
        return net

    def _deeplab(self, *, pretrained: bool = True) -> DeepLab:
        config = self.config.segment
        backbone = self._backbone(config.output_stride, pretrained=pretrained)
        return DeepLab(backbone, len(self.dataset.classes) + 1, config.rates, config.scales)

    def _subcategories(self, r: int) -> SubcategoryLabels:
        path = self.folder / f"round{r}/subcategories.npz"
        arrays = read_arrays(path)
        if arrays["ids"].tolist() != list(self.train_images.ids):
            raise RunFolderError("the sub-categories belong to another list of images", where=path)
        return SubcategoryLabels(arrays["present"], arrays["parent"], tuple(arrays["ids"].tolist()))

    def _choice(self) -> Choice:
        chosen = read_json(self.folder / "threshold.json")
        alphas = Alphas(low=chosen["alpha_low"], high=chosen["alpha_high"], walk=chosen["alpha_walk"])
        return Choice(chosen["threshold"], alphas)

    def _walk_alphas(self) -> tuple[float, ...]:
        """The exponent in use first; more only where masks can measure them."""
        used = self._choice().alphas.walk
        if not self.dataset.masks.paths:
            return (used,)
        return tuple(dict.fromkeys((used, self.config.walk.alpha, *map(alpha_of, ORACLE_THRESHOLDS))))

    def _segmented_parts(self) -> list[TaggedImages]:
        parts = [self.dataset.val]
        if self.config.measure.train_segmenter:
            parts.insert(0, self.dataset.train)
        return parts


def peak_memory_mb() -> float | None:
    """Peak resident memory of this process [MB], without its workers; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


def _pairs(images: TaggedImages) -> Iterator[tuple[Path, str]]:
    return zip(images.paths, images.ids, strict=True)


def _only(images: TaggedImages, ids: Sequence[str]) -> TaggedImages:
    """The images with the given ids, in their order."""
    wanted = set(ids)
    rows = [n for n, id in enumerate(images.ids) if id in wanted]
    labels = replace(images.labels, present=images.labels.present[rows], ids=tuple(images.ids[n] for n in rows))
    return replace(images, paths=tuple(images.paths[n] for n in rows), labels=labels)


def _load(net: nn.Module, path: Path, compute: Compute) -> None:
    tensors, _ = read_weights_with_manifest(path)
    net.load_state_dict(tensors)
    compute.place(net)
    net.eval()


def _load_trunk(backbone: Backbone, path: Path) -> None:
    """The trunk of a finished network of this run."""
    tensors, _ = read_weights_with_manifest(path)
    prefix = "backbone."
    backbone.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})
