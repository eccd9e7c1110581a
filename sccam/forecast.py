"""What a run will take: time, disk and memory of each stage, from a pilot on this machine and a few of the images.

The pilot is a run: the settings' own networks, crops and batches, a few steps of each, on some images of every class
in a folder that is removed again. What is known of it is multiplied by what the whole run has of it:

    seconds of a stage = seconds before its first item + items x seconds an item

So everything but the pilot's own figures is extrapolated, linearly. With several GPUs what processes share is divided
by their number, which nobody has measured here; what the cores do, and what the first process does alone, is not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sccam import config as toml
from sccam.artifacts import RunFolder, read_arrays
from sccam.nets.compute import Compute
from sccam.recipe import RunConfig
from sccam.run import open_data, read_settings
from sccam.stop import StopRequest
from sccam.structures import Dataset, LabelSet, TaggedImages, TrueMasks
from sccam.training import Reporter, Silent, scores_stage, train_all
from sccam.training.labels import MOST_WALKED
from sccam.training.prototypes import images_of_pixels
from sccam.training.scores import peak_memory_mb
from sccam.training.segmenter import SHOWN

BATCHES = 3  # that the pilot has of each stage that is trained, at least
MOST_POINTS = 2000  # of a class, for timing its clustering
SHARED = ("classify", "maps", "cluster", "affinity/train", "segment/train", "segment/relabel", "segment/retrain",
          "segment/predict")  # fmt: skip
"""Endings of the stages whose work several GPUs divide among them; of the others the cores do most, or one process."""


@dataclass
class Pace:
    """A stage of the pilot."""

    began: float
    ticks: list[tuple[int, float]] = field(default_factory=list)  # items done, and when

    @property
    def each(self) -> float:
        """[s] an item: the median over the pilot's items; of results that come in heaps, the mean."""
        if len(self.ticks) < 2:
            return self.ticks[0][1] - self.began if self.ticks else 0.0
        steps = [(after[1] - before[1]) / (after[0] - before[0]) for before, after in pairwise(self.ticks)]
        mean = (self.ticks[-1][1] - self.ticks[0][1]) / (self.ticks[-1][0] - self.ticks[0][0])
        return float(np.median(steps)) if min(steps) > 0.2 * mean else mean

    @property
    def before(self) -> float:
        """[s] until the first item began: loading a network, starting workers."""
        return max(0.0, self.ticks[0][1] - self.began - self.each) if self.ticks else 0.0


class Stopwatch(Silent):
    """Keeps the pace of every stage, and tells another reporter of it."""

    def __init__(self, told: Reporter) -> None:
        self.paces: dict[str, Pace] = {}
        self._told, self._name = told, ""

    def stage(self, name: str) -> None:
        """Begins a stage."""
        self._name = name
        self.paces[name] = Pace(time.monotonic())
        self._told.stage(f"pilot {name}")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """One more item is done."""
        pace = self.paces[self._name]
        if not pace.ticks or done > pace.ticks[-1][0]:
            pace.ticks.append((done, time.monotonic()))
        self._told.progress(done, total, note)


def forecast(
    data: Path | str,
    config: RunConfig | str = "photos",
    overrides: list[str] | None = None,
    *,
    gpus: int = 1,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """What `sccam train` with these settings will take; nothing is written beside a folder that is removed.

    Args:
        data, config, overrides: as in `run.train`.
        gpus: processes that share the run.
        reporter: told of the pilot.

    Returns:
        `stages`: for each its name, items, what they are, [s] an item, [s] in all, and whether GPUs share it;
        `seconds`, `disk_mb`, `memory_mb` and `gpu_memory_mb` (None without one) of the run; `pilot`: what was measured.

    Raises:
        DataError, ConfigError, BackendUnavailable: as `run.train`.
    """
    settings = read_settings(config, overrides)
    dataset = open_data(data, settings)
    device = Compute.resolve(settings.run.device, settings.run.precision).device
    with tempfile.TemporaryDirectory(prefix="sccam-plan-") as place, RunFolder(Path(place) / "run") as folder:
        watch, stop = Stopwatch(reporter or Silent()), StopRequest()
        small = pilot_settings(settings)
        images = pilot_images(dataset, small, root=Path(place))
        began = time.monotonic()
        with stop.listening():
            train_all(images, small, folder, watch, stop)
        measured = {
            "images": len(images.train), "files": len(set(images.train.paths)), "device": device,
            "seconds": round(time.monotonic() - began, 1),
        }  # fmt: skip
        stages = list(_stages(settings, dataset, images, watch.paces, folder, gpus))
        disk = _disk_mb(folder, settings, dataset, images)
    return {
        "stages": stages,
        "seconds": round(sum(stage["seconds"] for stage in stages)),
        "disk_mb": round(disk),
        "memory_mb": peak_memory_mb(),
        "gpu_memory_mb": round(torch.cuda.max_memory_allocated() / 1e6) if device.startswith("cuda") else None,
        "gpus": gpus,
        "pilot": measured,
    }


def pilot_settings(settings: RunConfig) -> RunConfig:
    """The same networks, crops and batches, for one epoch of each and one round of sub-categories."""
    few = {
        "classify.rounds": min(1, settings.classify.rounds), "classify.epochs": "[1]", "classify.schedule_epochs": "[]",
        "classify.enough": 0.0, "reactivate.epochs": min(1, settings.reactivate.epochs), "affinity.epochs": 1,
        "segment.epochs": 1, "segment.self_epochs": min(1, settings.segment.self_epochs), "measure.oracle_steps": 2,
        "measure.train_segmenter": "true",
    }  # fmt: skip
    return toml.override(settings, [f"{name}={value}" for name, value in few.items()])


def pilot_images(dataset: Dataset, settings: RunConfig, *, root: Path) -> Dataset:
    """Some images of every class, as often under other names as a few batches need; of no folder of theirs."""
    batch = max(settings.classify.batch, settings.affinity.batch, settings.segment.batch)
    train = dataset.train
    of_class = max(1, min(len(train), BATCHES * batch) // len(train.classes))
    chosen = [np.flatnonzero(row)[:of_class] for row in train.labels.present.T]
    rows = np.unique(np.concatenate(chosen)).tolist()
    rows = [rows[n % len(rows)] for n in range(max(len(rows), BATCHES * batch))]
    ids = tuple(f"{k}" for k in range(len(rows)))
    masks = {id: dataset.masks.paths[train.ids[n]] for id, n in zip(ids, rows, strict=True)
             if train.ids[n] in dataset.masks.paths}  # fmt: skip
    labels = LabelSet(train.labels.present[rows], ids, train.classes)
    images = TaggedImages("train", tuple(train.paths[n] for n in rows), labels)
    none = replace(images.only(()), split="val")
    return Dataset(root, images, none, TrueMasks(masks, dataset.classes))


def _stages(
    settings: RunConfig, dataset: Dataset, pilot: Dataset, paces: dict[str, Pace], folder: RunFolder, gpus: int
) -> Iterator[dict[str, Any]]:
    """Each stage of the whole run."""
    train, masks = len(dataset.train), len(dataset.masks.paths)
    measured = sum(id in dataset.masks.paths for id in dataset.train.ids)

    def entry(name: str, like: str, items: int, what: str, extra: float = 0.0) -> dict[str, Any]:
        pace = paces[like]
        shared = gpus > 1 and name.endswith(SHARED)
        seconds = pace.before + items * pace.each / (gpus if shared else 1) + extra
        return {
            "stage": name, "items": items, "what": what, "seconds_each": round(pace.each, 5),
            "seconds": round(seconds, 1), "shared": shared,
        }  # fmt: skip

    def steps(epochs: int, batch: int) -> int:
        return epochs * (train // min(batch, train))

    yield entry("data", "data", train + len(dataset.val), "images")
    kinds = settings.rounds
    seen = {kind: r for r, kind in enumerate(pilot_settings(settings).rounds)}  # round of the pilot of each kind
    for r, kind in enumerate(kinds):
        like = f"round{seen[kind]}"
        if kind == "subcategories":
            yield entry(f"round{r}/cluster", f"{like}/cluster", train, "images", _clustering(settings, dataset, folder))
        if kind == "prototypes":
            looked_at = len(images_of_pixels(dataset.train.labels.present))
            yield entry(f"round{r}/classify", f"{like}/classify", looked_at, "images")
        else:
            batches = steps(settings.epochs_of(r), settings.classify.batch)
            yield entry(f"round{r}/classify", f"{like}/classify", batches, "steps")
        last = r == len(kinds) - 1
        if last or settings.measure.every_round:
            mapped = next(name for name in reversed(paces) if name.endswith("/maps"))
            yield entry(f"round{r}/maps", mapped, train if last else measured, "images")
    yield entry("threshold", "threshold", 0, "")
    if settings.run.until != "maps":
        affinity, epochs = settings.affinity, settings.affinity.epochs
        yield entry("affinity/labels", "affinity/labels", train, "images")
        yield entry("affinity/train", "affinity/train", steps(epochs, affinity.batch), "steps")
        if settings.walk.rule == "contrast":
            yield entry("walk/length", "walk/length", min(train, MOST_WALKED), "images")
        yield entry("walk", "walk", train, "images")
        yield entry("pseudo_labels", "pseudo_labels", train, "images")
    if settings.run.until == "segmenter":
        segment = settings.segment
        yield entry("segment/train", "segment/train", steps(segment.epochs, segment.batch), "steps")
        if segment.self_epochs > 0:
            yield entry("segment/relabel", "segment/relabel", train, "images")
            yield entry("segment/retrain", "segment/retrain", steps(segment.self_epochs, segment.batch), "steps")
        predicted = masks if settings.measure.train_segmenter else masks - measured
        yield entry("segment/predict", "segment/predict", predicted or 2 * SHOWN, "images")
    name = scores_stage(settings.run.until)
    own = max(1, len(pilot.masks.paths))
    seconds = folder.state()["finished"][name]["seconds"] * masks / own if masks else 0.0
    yield {
        "stage": "scores", "items": masks, "what": "masks", "seconds_each": round(seconds / max(1, masks), 5),
        "seconds": round(seconds, 1), "shared": False,
    }  # fmt: skip


def _clustering(settings: RunConfig, dataset: Dataset, folder: RunFolder) -> float:
    """[s] of one round's k-means over all classes, from one run on random points of the features' width."""
    width = read_arrays(next(iter(sorted(folder.path.glob("round*/features.npz")))))["features"].shape[1]
    counts = dataset.train.labels.present.sum(axis=0)
    points = int(min(MOST_POINTS, counts.max()))
    fit: Callable[..., Any] = settings.backends.resolved().function("k_means")
    k, config = min(settings.cluster.k, points), settings.cluster
    drawn = np.random.default_rng(0).normal(size=(points, width)).astype(np.float32)
    began = time.monotonic()
    fit(drawn, k, n_init=config.n_init, max_iterations=config.max_iterations, seed=0)
    return (time.monotonic() - began) * float(counts.sum()) / points


def _disk_mb(folder: RunFolder, settings: RunConfig, dataset: Dataset, pilot: Dataset) -> float:
    """[MB] of the finished run, and of the largest checkpoint beside it."""
    images, fixed, weights = 0, 0, [0]
    ids = set(pilot.train.ids)
    for path in folder.path.rglob("*"):
        if not path.is_file():
            continue
        size = path.stat().st_size
        if path.stem in ids:  # a file of an image
            images += size
        elif path.name == "cam_net.safetensors":
            weights.append(size)
        else:
            fixed += size
    rounds = len(settings.rounds)
    largest = max(path.stat().st_size for path in folder.path.rglob("*.safetensors"))
    whole = images / len(pilot.train) * len(dataset.train) + fixed + max(weights) * rounds + 3 * largest
    return whole / 1e6
