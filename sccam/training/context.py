"""What the stages of one run share: its data, settings and folder, its networks, its training, its progress."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from sccam.artifacts import Manifest, RunFolder, read_manifest, read_weights_with_manifest, write_weights
from sccam.callbacks import Callback
from sccam.data.batches import BatchLoader, TrainingBatch
from sccam.data.transforms import AugmentConfig
from sccam.errors import Interrupted, RunFolderError
from sccam.fit import CountsOf, LossOf, fit
from sccam.nets.backbones import Backbone, build_backbone
from sccam.nets.compute import Compute
from sccam.nets.saved import Network, load_network
from sccam.origin import commit, device_name
from sccam.ranks import Ranks, device_of
from sccam.recipe import RunConfig
from sccam.runtime.network_torch import mean_colour
from sccam.runtime.pool import run_jobs, worker_count
from sccam.stages.optim import OptimiserConfig
from sccam.stop import StopRequest
from sccam.structures import ByteArray, Dataset

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


class RunContext:
    """One run, as every stage function receives it.

    Args:
        dataset: images, tags, and masks for measuring. Trainers take `train_images`, which has no masks.
        config: every setting.
        folder: the run folder, locked by the caller.
        reporter: told of stages and progress.
        stop: checked between images and steps.
        callback: told of stages and epochs.
        ranks: the processes that do the run together; the first one alone writes what is not shared.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: RunConfig,
        folder: RunFolder,
        reporter: Reporter,
        stop: StopRequest,
        callback: Callback | None = None,
        ranks: Ranks | None = None,
    ):
        self.dataset = dataset
        self.train_images = dataset.train
        self.config = config
        self.folder = folder
        self.reporter = reporter
        self.stop = stop
        self.callback = callback or Callback()
        self.ranks = ranks or Ranks()
        self.compute = Compute.resolve(device_of(config.run.device, self.ranks), config.run.precision)
        self.workers = worker_count(config.run.workers, self.ranks.beside)
        self.backends = config.backends.resolved()
        self.last_round = config.last_round
        place = {"device": device_name(self.compute.device), "precision": self.compute.precision}
        self._place = {"commit": commit(), **place} if self.ranks.first else {}

    def stage(self, name: str, work: Callable[[], None], *, shared: bool = False) -> None:
        """Does the work of a stage and marks it finished; a stage that is finished already is skipped.

        Its seconds are of all calls, as far as the earlier ones ended on request: what a kill lost is not known.

        Args:
            shared: all processes do it, each with its share; otherwise the first one does it, and the others wait.
        """
        first = self.ranks.first
        if self.ranks.told(first and self.folder.finished(name)):
            return
        self.stop.check()
        if first:
            self.reporter.stage(name)
            self.callback.on_stage_start(name)
        spent = self.folder.state().get("spent", {}) if first else {}
        started = time.monotonic() - spent.get(name, 0.0)
        try:
            if shared or first:
                work()
            self.ranks.wait()
        except Interrupted:
            if first:
                self.folder.update(spent={**spent, name: round(time.monotonic() - started, 2)})
            raise
        if first:
            seconds = round(time.monotonic() - started, 2)
            self.folder.log({"stage": name, "event": "finished", "seconds": seconds})
            self.folder.finish(name, seconds=seconds, **self._place)
            self.callback.on_stage_end(name, seconds)

    # Per-image work -------------------------------------------------------------------------------------------------

    def jobs(self, function: Callable[..., Item], jobs: Iterable[tuple[Any, ...]], total: int) -> list[Item]:
        """Results of `function(*job)`, run over the worker processes."""
        found = []
        with closing(run_jobs(function, jobs, workers=self.workers)) as results:
            for result in results:
                found.append(result)
                self.reporter.progress(len(found), total)
                self.stop.check()
        return found

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, with progress told and a stop request heard between them."""
        items = list(items)
        for done, item in enumerate(items, 1):
            yield item
            self.reporter.progress(done, len(items))
            self.stop.check()

    def missing(self, path_of: Callable[[str], Path]) -> list[tuple[Path, str]]:
        """(image path, id) of this process's share of the training images, where `path_of(id)` is not there yet."""
        pairs = list(zip(self.train_images.paths, self.train_images.ids, strict=True))
        return [(path, id) for path, id in self.ranks.share(pairs) if not path_of(id).exists()]

    # Networks -------------------------------------------------------------------------------------------------------

    def backbone(self, output_stride: int, freeze: int = -1) -> Backbone:
        """The trunk with the weights that training starts from.

        Args:
            freeze: [levels] of a stage that has a number of its own; -1: those of `network.freeze`.
        """
        network = self.config.network
        freeze = network.freeze if freeze < 0 else freeze
        return build_backbone(
            network.backbone,
            output_stride=output_stride,
            weights=network.weights,
            freeze=None if freeze < 0 else freeze,
        )

    def load(self, path: Path, kind: str) -> Network:
        """A finished network of this run, for inference on the run's device.

        Raises:
            RunFolderError: the file is damaged, or is that of another kind of network or of another run.
        """
        self._check(path, read_manifest(path), kind)
        return load_network(path, self.compute)[0]

    def load_trunk(self, backbone: Backbone, path: Path) -> None:
        """Fills a trunk from a finished classifier of this run; raises as `load`."""
        tensors, manifest = read_weights_with_manifest(path)
        self._check(path, manifest, "cam_net")
        prefix = "backbone."
        backbone.load_state_dict({name[len(prefix) :]: t for name, t in tensors.items() if name.startswith(prefix)})

    def _check(self, path: Path, manifest: Manifest, kind: str) -> None:
        expected = {"kind": kind, "backbone": self.config.network.backbone, "classes": tuple(self.dataset.classes)}
        wrong = {name: value for name, value in expected.items() if getattr(manifest, name) != value}
        if wrong:
            listed = "; ".join(f"{name} {getattr(manifest, name)!r}, not {value!r}" for name, value in wrong.items())
            raise RunFolderError(
                f"this is a network of something else: {listed}",
                where=path,
                why="files of another network or run were copied here",
                fix="copy the right ones back, or begin again with --overwrite",
            )

    def seed_heads(self, draws: str) -> None:
        """Seeds the random start of new layers by the name of their draws."""
        torch.manual_seed(self._seed(draws))

    def inputs(self, batch: TrainingBatch, backbone: Backbone) -> Tensor:
        """Normalised images [N 3 H W] of a batch."""
        return self.compute.normalised(batch.pixels, backbone.mean, backbone.std)

    def train_network(
        self,
        stage: str,
        net: nn.Module,
        backbone: Backbone,
        loss_of: LossOf,
        *,
        counts_of: CountsOf,
        draws: str,
        augment: AugmentConfig,
        batch: int,
        optimiser: OptimiserConfig,
        epochs: int,
        schedule_epochs: int,
        average: float = 0.0,
        enough: float = 0.0,
        path: Path,
        kind: str,
        stride: int,
        made_from: dict[str, Any],
        read_label: Callable[[int], ByteArray] | None = None,
    ) -> None:
        """Trains a network, or goes on from its checkpoint, and writes it; only then the checkpoint goes.

        Args:
            backbone: the trunk of `net`.
            draws: name of the random numbers (views, their order, dropout); stages of one name draw the same ones.
            loss_of, counts_of, average, enough, read_label: as `fit` and `BatchLoader` take them.
            path, kind, stride, made_from: of the finished weights and their manifest.
        """
        self.compute.place(net)
        checkpoint = self.folder / f"{stage.replace('/', '_')}.checkpoint.safetensors"
        note = ""

        def on_epoch(epoch: int, loss: float, rate: float) -> None:
            nonlocal note
            if not self.ranks.first:
                return
            metrics = {"loss": loss, "images_per_second": round(rate, 2)}
            self.folder.log({"stage": stage, "epoch": epoch, **metrics})
            self.callback.on_epoch_end(stage, epoch, metrics)
            note = f"epoch {epoch + 1}/{epochs} loss {loss:.4f}"

        loader = BatchLoader(
            self.train_images,
            augment,
            batch=batch,
            fill=mean_colour(backbone),
            seed=(self.config.run.seed, zlib.crc32(draws.encode())),
            threads=self.workers,
            read_label=read_label,
            share=(self.ranks.rank, self.ranks.count),
            parts=self.config.run.parts,
        )
        fit(
            net,
            net.parameter_groups(),  # type: ignore[operator]
            loader,
            loss_of,
            counts_of=counts_of,
            optimiser_config=optimiser,
            epochs=epochs,
            schedule_epochs=schedule_epochs,
            average=average,
            enough=enough,
            seed=self._seed(draws),
            compute=self.compute,
            checkpoint=checkpoint,
            stop=self.stop,
            on_step=lambda done, total: self.reporter.progress(done, total, note),
            on_epoch=on_epoch,
            ranks=self.ranks,
        )
        if self.ranks.first:
            self.write_network(net, backbone, path, kind=kind, stride=stride, made_from=made_from)
            checkpoint.unlink(missing_ok=True)

    def write_network(
        self, net: nn.Module, backbone: Backbone, path: Path, *, kind: str, stride: int, made_from: dict[str, Any]
    ) -> None:
        """Writes finished weights and their manifest; arguments as in `train_network`."""
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

    def _seed(self, draws: str) -> int:
        return (self.config.run.seed * 1_000_003 + zlib.crc32(draws.encode())) % 2**31
