"""The whole chain on a tiny set: what a run leaves, that it can be cut off anywhere, that no trainer sees a mask.

One run is done whole; one without masks; one is interrupted, then killed, then resumed.
All three must end with the same weights, to the bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sccam import cli
from sccam.artifacts import (
    RunFolder,
    manifest_path,
    read_arrays,
    read_json,
    read_weights_with_manifest,
    sha256,
    write_json,
)
from sccam.data import open_dataset
from sccam.data.examples import example_rows
from sccam.data.images import read_image
from sccam.data.masks import read_mask
from sccam.data.sample import draw_sample
from sccam.data.transforms import resize
from sccam.errors import DataError, Interrupted, MaskError, RunFolderError
from sccam.measure import ids_checksum
from sccam.nets.cam_net import CamNet
from sccam.origin import device_name
from sccam.recipe import load_config
from sccam.report.facts import round_table
from sccam.report.overview import GAP, TILE
from sccam.run import plan, train
from sccam.runtime.backends import Backends
from sccam.stages.threshold import colour_contrast
from sccam.stop import StopRequest
from sccam.structures import Dataset, TaggedImages
from sccam.training import Silent, context, prototypes
from sccam.training.segmenter import SHOWN

ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = [
    "run.workers=1",
    "network.output_stride=16",
    "network.train_stride=32",
    "cluster.k=2",
    "cluster.n_init=2",
    "classify.rounds=1",
    "classify.epochs=[1]",
    "classify.batch=4",
    "classify.round0_crop=64",
    "classify.augment.crop=64",
    "classify.augment.long_side=[56, 72]",
    "cam.scales=[1.0]",
    "cam.long_side=0",
    "prototypes.k=0",
    "affinity.epochs=1",
    "affinity.batch=4",
    "affinity.augment.crop=64",
    "walk.steps=16",
    "affinity.crf.iterations=2",
    "pseudo_label.crf.iterations=2",
    "measure.crf.iterations=2",
    "segment.epochs=1",
    "segment.batch=4",
    "segment.augment.crop=64",
    "measure.oracle_steps=10",
]
STAGES = [
    "data",
    "round0/classify",
    "round0/maps",
    "round1/cluster",
    "round1/classify",
    "round1/maps",
    "threshold",
    "affinity/labels",
    "affinity/train",
    "walk",
    "pseudo_labels",
    "segment/train",
    "segment/predict",
    "scores",
]
WEIGHTS = [
    "round0/cam_net.safetensors",
    "round1/cam_net.safetensors",
    "affinity_net.safetensors",
    "segmenter.safetensors",
]
READING = "reading the folder"  # before the first stage; the sizes of masks are compared with those of images
ROUNDED_MAPS = 2e-2  # stored maps have half precision: of these few pixels, some cross the threshold
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:torch")]


@pytest.fixture(autouse=True)
def _one_thread(_same_numbers_every_time: None) -> None:
    """As in the other processes of this file: the order of sums depends on it."""
    torch.set_num_threads(1)


class PowerCut(BaseException):
    """What no code of ours catches."""


@dataclass
class Watcher(Silent):
    """Notes stages and steps; loses its power at the beginning of stage `cut_at`."""

    cut_at: str = ""
    stages: list[str] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def stage(self, name: str) -> None:
        self.stages.append(name)
        if name == self.cut_at:
            raise PowerCut

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.totals[self.stages[-1]] = total

    def message(self, text: str) -> None:
        self.messages.append(text)


@dataclass
class Finished:
    """A run that came to its end."""

    folder: Path
    scores: dict[str, Any]
    watcher: Watcher
    opened: set[tuple[str, str]]  # (stage, name of the mask file that was opened in it)


_on_open: list[Any] = []  # who is told of opened files; an audit hook cannot be taken back, this list can


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _on_open:
        _on_open[-1](arguments[0])


sys.addaudithook(_hook)


@contextlib.contextmanager
def told_of_opened_files(listener: Any) -> Iterator[None]:
    _on_open.append(listener)
    try:
        yield
    finally:
        _on_open.pop()


def run(data: Path, out: Path, *, overrides: list[str] = OVERRIDES, **options: Any) -> Finished:
    torch.set_num_threads(1)  # for the fixtures of the module, which come before those of a test
    watcher, opened = options.pop("reporter", None) or Watcher(), set()

    def note(path: Any) -> None:
        if isinstance(path, str | os.PathLike) and Path(path).parent.name == "masks":
            opened.add((watcher.stages[-1] if watcher.stages else READING, Path(path).name))

    with told_of_opened_files(note):
        scores = train(data, "photos", out, overrides, reporter=watcher, **options)
    return Finished(out, scores, watcher, opened)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample set"  # a space, as folders of people have
    draw_sample(folder, images=15, sizes=(49, 66))
    return folder


@pytest.fixture(scope="module")
def dataset(sample: Path) -> Dataset:
    return open_dataset(sample)


@pytest.fixture(scope="module")
def whole(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(sample, tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copy(whole: Finished, tmp_path: Path) -> Path:
    """The finished run once more, to do things to."""
    shutil.copytree(whole.folder, tmp_path / "copy")
    return tmp_path / "copy"


def images_of(folder: Path, below: str) -> set[str]:
    return {str(path.relative_to(folder / below).with_suffix("")) for path in (folder / below).rglob("*.*")}


def digests(folder: Path) -> dict[str, str]:
    return {name: sha256(folder / name) for name in WEIGHTS}


# What a run leaves


def test_every_stage_runs_once_in_the_order_of_the_method(whole):
    assert whole.watcher.stages == STAGES
    assert list(read_json(whole.folder / "run.json")["finished"]) == STAGES


def test_every_file_of_a_run_is_there(whole, dataset):
    for name in ("config.toml", "data.json", "metrics.jsonl", "labelmap.txt", "threshold.json", "scores.json"):
        assert (whole.folder / name).is_file()
    for name in WEIGHTS:
        assert (whole.folder / name).is_file() and (whole.folder / f"{name}.json").is_file()
    train_ids, val_ids = set(dataset.train.ids), set(dataset.val.ids)
    for below in (
        "round0/activation_maps",
        "round1/activation_maps",
        "affinity_labels",
        "walked_maps",
        "pseudo_labels",
    ):
        assert images_of(whole.folder, below) == train_ids, below
    for below in ("predictions", "predictions_crf"):
        assert images_of(whole.folder, f"{below}/train") == train_ids
        assert images_of(whole.folder, f"{below}/val") == val_ids


def test_no_checkpoint_and_no_half_written_file_is_left(whole):
    left = [path.name for path in whole.folder.rglob("*") if "checkpoint" in path.name or path.name.startswith(".")]
    assert left == []


def test_the_run_says_that_it_is_finished_and_how_it_was_started(whole, sample):
    state = read_json(whole.folder / "run.json")
    assert state["status"] == "finished" and state["schema"] == 1
    assert state["data"]["root"] == str(sample.resolve()) and len(state["data"]["sha256"]) == 64
    assert state["started"] <= state["ended"]
    assert all(facts["seconds"] >= 0 for facts in state["finished"].values())
    assert {facts["device"] for facts in state["finished"].values()} == {device_name()}
    code = {facts["commit"] for facts in state["finished"].values()}
    assert len(code) == 1 and re.fullmatch(r"[0-9a-f]{10}(-dirty)?|sccam [0-9].*", code.pop())


def test_the_data_file_holds_lists_classes_and_counts(whole, dataset):
    data = read_json(whole.folder / "data.json")
    assert data["classes"] == list(dataset.classes) and data["masks"] == 15
    for part in (dataset.train, dataset.val):
        assert data["lists"][part.split] == {"sha256": ids_checksum(part.ids), "ids": list(part.ids)}
    present = dataset.train.labels.present.sum(axis=0)
    assert data["images_per_class"] == dict(zip(dataset.classes, present.tolist(), strict=True))


def test_training_was_logged_epoch_by_epoch(whole):
    lines = [json.loads(line) for line in (whole.folder / "metrics.jsonl").read_text().splitlines()]
    trained = [line["stage"] for line in lines if "epoch" in line]
    assert trained == ["round0/classify", "round1/classify", "affinity/train", "segment/train"]
    assert all(np.isfinite(line["loss"]) for line in lines if "epoch" in line)
    assert [line["stage"] for line in lines if line.get("event") == "finished"] == STAGES


def test_the_plan_foretold_the_steps(whole, sample):
    foretold = plan(sample, "photos", OVERRIDES)
    steps = [whole.watcher.totals[stage] for stage in ("round0/classify", "round1/classify")]
    assert foretold["classifier_steps"] == steps
    assert foretold["affinity_steps"] == whole.watcher.totals["affinity/train"]
    assert foretold["segmenter_steps"] == whole.watcher.totals["segment/train"]


def test_weights_say_what_they_are(whole, dataset):
    kinds = ["cam_net", "cam_net", "affinity_net", "segmenter"]
    for name, kind in zip(WEIGHTS, kinds, strict=True):
        tensors, manifest = read_weights_with_manifest(whole.folder / name)
        assert (manifest.kind, manifest.backbone) == (kind, "tf_efficientnet_lite0")
        assert tuple(manifest.classes) == dataset.classes and len(manifest.mean) == 3
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())


def test_each_stage_changed_the_weights_it_began_with(whole):
    last_layers = set()
    for name in WEIGHTS:
        tensors, _ = read_weights_with_manifest(whole.folder / name)
        (last_layer,) = (tensor for key, tensor in tensors.items() if key.endswith("conv_head.weight"))
        last_layers.add(last_layer.numpy().tobytes())
    assert len(last_layers) == len(WEIGHTS)


def test_without_weight_on_the_subcategories_a_round_repeats_round_0(sample, tmp_path):
    watcher = Watcher(cut_at="round1/maps")
    with pytest.raises(PowerCut):
        train(sample, "photos", tmp_path / "run", [*OVERRIDES, "classify.sub_weight=0.0"], reporter=watcher)
    first, second = (read_weights_with_manifest(tmp_path / f"run/round{r}/cam_net.safetensors")[0] for r in range(2))
    assert second.keys() - first.keys() == {"sub.weight"}
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_subcategories_follow_the_tags(whole, dataset):
    arrays = read_arrays(whole.folder / "round1/subcategories.npz")
    assert tuple(arrays["ids"].tolist()) == dataset.train.ids
    for c in range(len(dataset.classes)):
        own = arrays["present"][:, arrays["parent"] == c]
        assert np.array_equal(own.sum(axis=1), dataset.train.labels.present[:, c]) and own.shape[1] <= 2


def test_maps_hold_the_tagged_classes_and_lie_between_0_and_1(whole, dataset):
    for id, present in zip(dataset.train.ids, dataset.train.labels.present, strict=True):
        arrays = read_arrays(whole.folder / f"round1/activation_maps/{id}.npz")
        assert arrays["classes"].tolist() == np.flatnonzero(present).tolist()
        assert arrays["scores"].min() >= 0 and arrays["scores"].max() <= 1
        assert tuple(arrays["size"]) == read_mask(dataset.masks.paths[id]).shape


def test_pseudo_labels_show_tagged_classes_background_and_ignore_only(whole, dataset):
    for id, present in zip(dataset.train.ids, dataset.train.labels.present, strict=True):
        index = read_mask(whole.folder / f"pseudo_labels/{id}.png")
        assert set(np.unique(index)) <= {0, 255, *(np.flatnonzero(present) + 1)}
        assert index.shape == read_mask(dataset.masks.paths[id]).shape


def test_the_drawn_set_tells_what_its_clusters_and_maps_reach(whole):
    first, second = whole.scores["hidden"]
    assert set(first) == {"round", "telling", "body", "outside"}
    assert set(second) == {*first, "nmi", "purity", "clusters"}
    assert (first["round"], second["round"], second["clusters"]) == (0, 1, 10)
    assert all(0 <= row[name] <= 1 for row in (first, second) for name in row if name not in ("round", "clusters"))
    assert 1 / 3 <= second["purity"] <= 1


# Levers beyond the paper

LEVERS = [
    *OVERRIDES,
    "cluster.features=pretrained",
    "classify.equivariance=1.0",
    "classify.freeze=4",
    "reactivate.epochs=1",
    "prototypes.k=2",
    "prototypes.margin=10.0",
    "prototypes.subtract=[0.0, 1.0]",
    "affinity.source=boundary",
    "walk.rule=contrast",
    "segment.average=0.9",
    "segment.self_epochs=1",
    "segment.self_confidence=0.5",
]


@pytest.fixture(scope="module")
def levered(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(sample, tmp_path_factory.mktemp("levered") / "run", overrides=LEVERS)


def test_rounds_follow_the_last_one_and_their_maps_become_the_labels(levered, dataset):
    more = ["round2/classify", "round2/maps", "round3/classify", "round3/maps"]
    own = ["segment/relabel", "segment/retrain"]
    expected = [*STAGES[:6], *more, *STAGES[6:9], "walk/length", *STAGES[9:12], *own, *STAGES[12:]]
    assert levered.watcher.stages == expected
    made_from = [
        read_weights_with_manifest(levered.folder / f"round{r}/cam_net.safetensors")[1].made_from for r in (2, 3)
    ]
    assert [facts["maps"] for facts in made_from] == ["reactivated", "prototypes"]
    rows = {row["stage"] for row in levered.scores["rows"]}
    assert {f"maps/round{r}" for r in range(4)} <= rows
    first, last = (
        [read_arrays(levered.folder / f"round{r}/activation_maps/{id}.npz")["scores"] for id in dataset.train.ids]
        for r in (2, 3)
    )
    assert not all(np.array_equal(a, b) for a, b in zip(first, last, strict=True))


@pytest.mark.parametrize("best", [0, 1, 2])
def test_the_last_round_has_the_maps_that_tell_colours_apart_best(levered, dataset, tmp_path, monkeypatch, best):
    """The classifier's own, here those of the reactivated one, or prototypes less one of the shares of the context."""
    before, own = read_weights_with_manifest(levered.folder / "round2/cam_net.safetensors")
    assert own.made_from["maps"] == "reactivated"
    watcher, contrasts = Watcher(stages=["round3/classify"]), [0.1, 0.1, 0.1]
    contrasts[best] = 0.2
    monkeypatch.setattr(prototypes, "_contrasts", lambda run, net, weights: contrasts)
    with RunFolder(tmp_path / "run") as folder:
        shutil.copytree(levered.folder / "round2", folder / "round2")
        prototypes.find_prototypes(
            context.RunContext(dataset, load_config("photos", LEVERS), folder, watcher, StopRequest()), 3
        )
        after, found = read_weights_with_manifest(folder / "round3/cam_net.safetensors")
    assert found.made_from["maps"] == ("reactivated" if best == 0 else "prototypes")
    assert found.made_from["subtract"] == [None, 0.0, 1.0][best]
    assert found.made_from["contrasts"] == contrasts
    same = [name for name in before if torch.equal(before[name], after[name])]
    assert set(before) - set(same) == (set() if best == 0 else {"second.weight"})
    assert f"maps: {['the classifier', 'prototypes less 0', 'prototypes less 1'][best]}" in watcher.messages[-1]


@torch.inference_mode()
def test_pixels_of_all_classes_fit_into_memory(levered, dataset, monkeypatch):
    kept: list[int] = []
    monkeypatch.setattr(prototypes, "kinds_of", lambda pixels, *_, **__: kept.append(len(pixels)))
    run = context.RunContext(dataset, load_config("photos", LEVERS), RunFolder(levered.folder), Silent(), StopRequest())
    net = run.load(levered.folder / "round2/cam_net.safetensors", "cam_net")
    assert isinstance(net, CamNet)
    prototypes._kinds(run, net)
    all_of_them = sum(kept)
    kept.clear()
    monkeypatch.setattr(prototypes, "MOST_BYTES", 7 * 4 * net.parent.weight.numel())
    prototypes._kinds(run, net)
    images = int(dataset.train.labels.present.sum())  # of each class; what an image gives is rounded up
    assert sum(kept) <= 7 * len(dataset.classes) + images
    assert sum(kept) < all_of_them / 2


@torch.inference_mode()
def test_pixels_come_from_some_images_of_every_class(levered, dataset, monkeypatch):
    seen: list[Path] = []

    def noted(path: Path) -> np.ndarray:
        seen.append(path)
        return read_image(path)

    monkeypatch.setattr(prototypes, "MOST_IMAGES", 2)
    monkeypatch.setattr(prototypes, "read_image", noted)
    run = context.RunContext(dataset, load_config("photos", LEVERS), RunFolder(levered.folder), Silent(), StopRequest())
    net = run.load(levered.folder / "round2/cam_net.safetensors", "cam_net")
    assert isinstance(net, CamNet)
    prototypes._kinds(run, net)
    present = dataset.train.labels.present[[dataset.train.paths.index(path) for path in seen]]
    assert present.any(axis=0).all() and len(seen) <= 2 * len(dataset.classes) < len(dataset.train)


@torch.inference_mode()
def test_maps_of_large_images_are_compared_on_a_coarser_grid(levered, dataset, monkeypatch):
    sizes: list[tuple[int, ...]] = []

    def noted(pairs: list[tuple[np.ndarray, np.ndarray]], config: Any) -> float:
        sizes.extend(highest.shape for highest, _ in pairs)
        return 0.5

    monkeypatch.setattr(prototypes, "MOST_CELLS", 8)
    monkeypatch.setattr(prototypes, "colour_contrast", noted)
    run = context.RunContext(dataset, load_config("photos", LEVERS), RunFolder(levered.folder), Silent(), StopRequest())
    net = run.load(levered.folder / "round2/cam_net.safetensors", "cam_net")
    assert isinstance(net, CamNet)
    assert prototypes._contrasts(run, net, np.asarray(net.map_weight())[None]) == [0.5, 0.5]
    assert len(sizes) == 2 * len(dataset.train) and 5 <= max(max(size) for size in sizes) <= 8


def test_maps_are_compared_as_they_will_be_made(levered, dataset):
    """Contrasts of the last round's choice, from the maps that were then stored."""
    _, found = read_weights_with_manifest(levered.folder / "round3/cam_net.safetensors")
    contrasts, subtract = found.made_from["contrasts"], found.made_from["subtract"]
    assert len(contrasts) == 3
    assert subtract == [None, 0.0, 1.0][int(np.argmax(contrasts))]
    pairs = []
    for path, id in zip(dataset.train.paths, dataset.train.ids, strict=True):
        highest = read_arrays(levered.folder / f"round3/activation_maps/{id}.npz")["scores"].max(axis=0)
        pairs.append((highest, resize(read_image(path), (highest.shape[0], highest.shape[1]))))
    chosen = colour_contrast(pairs, load_config("photos", LEVERS).threshold)
    assert chosen == pytest.approx(max(contrasts), rel=ROUNDED_MAPS)


def test_the_report_says_what_a_round_s_maps_are_of(levered, tmp_path):
    with RunFolder(tmp_path / "run") as folder:
        shutil.copytree(levered.folder, folder.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lock"))
        path = manifest_path(folder.classifier(3))
        manifest = read_json(path)
        manifest["made_from"] |= {"maps": "prototypes", "subtract": 0.25}
        write_json(path, manifest)
        rows = [row["maps"] for row in round_table(folder)]
    of_class = "the classifier's weights"
    assert rows == [of_class, of_class, "reactivated weights", "local prototypes, less 0.25 of the context"]


def test_levels_of_the_classifiers_that_are_frozen_learn_in_the_other_networks(levered):
    names = [f"round{r}/cam_net.safetensors" for r in range(3)] + ["affinity_net.safetensors", "segmenter.safetensors"]
    networks = [read_weights_with_manifest(levered.folder / name)[0] for name in names]
    kernels = [key for key in networks[0] if key.startswith("backbone.") and networks[0][key].ndim == 4]
    changed = [{key for key in kernels if not torch.equal(networks[0][key], network[key])} for network in networks[1:]]
    assert changed[0] == changed[1]  # the levels behind, in every round
    assert changed[0] and changed[0] < changed[2] and changed[0] < changed[3]


def test_the_walk_has_the_length_that_tells_the_colours_apart_best(levered, dataset):
    chosen = read_json(levered.folder / "walk.json")
    merits = {int(steps): merit for steps, merit in chosen["merits"].items()}
    assert list(merits) == [4, 8, 16] and all(0 <= merit <= 1 for merit in merits.values())
    assert merits[chosen["steps"]] == max(merits.values()) > 0
    found = read_arrays(levered.folder / f"walked_maps/{dataset.train.ids[0]}.npz")["scores"]
    assert found.shape[0] == dataset.train.labels.present[0].sum()


def test_own_labels_show_tagged_classes_and_the_segmenter_learned_on_from_them(levered, dataset):
    for id, present in zip(dataset.train.ids, dataset.train.labels.present, strict=True):
        index = read_mask(levered.folder / f"self_labels/{id}.png")
        assert set(np.unique(index)) <= {0, 255, *(np.flatnonzero(present) + 1)}
        assert index.shape == read_mask(dataset.masks.paths[id]).shape
    first, second = (
        sha256(levered.folder / name) for name in ("segmenter.safetensors", "self_trained/segmenter.safetensors")
    )
    assert first != second
    assert RunFolder(levered.folder).weights("segmenter") == levered.folder / "self_trained/segmenter.safetensors"


@pytest.mark.parametrize(
    "stage", ["round2/classify", "round3/maps", "walk/length", "segment/relabel", "segment/retrain"]
)
def test_a_run_with_levers_that_is_cut_off_ends_as_one_that_was_not(levered, sample, tmp_path, stage):
    with pytest.raises(PowerCut):
        run(sample, tmp_path / "run", overrides=LEVERS, reporter=Watcher(cut_at=stage))
    run(sample, tmp_path / "run", overrides=LEVERS, resume=True)
    for name in ("round2/cam_net.safetensors", "round3/cam_net.safetensors", "self_trained/segmenter.safetensors"):
        assert sha256(tmp_path / "run" / name) == sha256(levered.folder / name), name


# Scores


def test_every_row_of_the_scores_says_what_it_measured(whole, dataset):
    rows = whole.scores["rows"]
    assert rows == read_json(whole.folder / "scores.json")["rows"]
    found = [(row["stage"], row["column"], row["split"], row["tags_used"]) for row in rows]
    columns = ("fixed", "image_only", "oracle")
    assert found == [
        *(("maps/round0", column, "train", True) for column in columns),
        *(("maps/round1", column, "train", True) for column in columns),
        *(("walk", column, "train", True) for column in columns),
        ("pseudo_labels", "labels", "train", True),
        ("segmenter", "labels", "train", False),
        ("segmenter+crf", "labels", "train", False),
        ("segmenter", "labels", "val", False),
        ("segmenter+crf", "labels", "val", False),
    ]
    parts = {part.split: part for part in (dataset.train, dataset.val)}
    for row in rows:
        assert row["ids_sha256"] == ids_checksum(parts[row["split"]].ids)
        assert row["images"] == len(parts[row["split"]]) and 0 <= row["miou"] <= 1


def test_the_oracle_is_never_beaten(whole):
    rows = whole.scores["rows"]
    for stage in ("maps/round0", "maps/round1", "walk"):
        mious = {row["column"]: row["miou"] for row in rows if row["stage"] == stage}
        assert mious["oracle"] >= max(mious.values())


def test_the_thresholds_in_use_are_those_of_the_table(whole):
    chosen = read_json(whole.folder / "threshold.json")
    rows = {(row["stage"], row["column"]): row for row in whole.scores["rows"]}
    assert rows["maps/round1", "image_only"]["threshold"] == chosen["threshold"]
    assert rows["walk", "image_only"]["alpha"] == chosen["alpha_walk"]
    assert rows["maps/round1", "fixed"]["threshold"] == 0.15 and rows["walk", "fixed"]["alpha"] == 16.0
    assert chosen["alpha_low"] < chosen["alpha_walk"] < chosen["alpha_high"]


def test_the_scores_say_how_they_came_about(whole):
    scores = whole.scores
    assert (scores["seed"], scores["device"], scores["precision"]) == (0, "cpu", "fp32")
    assert "image-level tags" in scores["supervision"] and scores["peak_memory_mb"] > 100
    assert set(scores["seconds"]) == set(STAGES) - {"scores"}


# No trainer sees a mask


def test_masks_are_opened_to_check_the_data_and_to_measure_and_at_no_other_time(whole):
    assert {stage for stage, _ in whole.opened} == {READING, "data", "scores"}
    assert len({name for _, name in whole.opened}) == 15


def test_the_record_that_trainers_get_has_no_mask(dataset):
    assert set(TaggedImages.__slots__) == {"split", "paths", "labels"}
    assert not any("mask" in str(path) for path in (*dataset.train.paths, *dataset.val.paths))


@pytest.fixture(scope="module")
def without_masks(sample: Path, whole: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The same images and tags without masks, over a run of other settings that is overwritten."""
    folder = tmp_path_factory.mktemp("without")
    shutil.copytree(sample, folder / "data", ignore=shutil.ignore_patterns("masks", "parts"))
    shutil.copytree(whole.folder, folder / "run")
    (folder / "run/config.toml").write_text("")
    (folder / "run/round0/old.txt").touch()
    return run(folder / "data", folder / "run", overwrite=True)


def test_without_masks_a_run_finishes_all_the_same(without_masks):
    assert without_masks.watcher.stages == STAGES and without_masks.opened == set()
    assert without_masks.scores["rows"] == []
    assert any("no masks" in message for message in without_masks.watcher.messages)
    assert read_json(without_masks.folder / "run.json")["status"] == "finished"


def test_without_masks_some_images_are_segmented_to_be_looked_at(without_masks, dataset):
    folder = RunFolder(without_masks.folder)
    for part in (dataset.train, dataset.val):
        made = [id for id in part.ids if folder.prediction(part.split, id).exists()]
        assert len(made) >= min(SHOWN, len(part))
    shown = {dataset.train.ids[n] for n in example_rows(dataset)}
    assert all(folder.prediction("train", id).exists() for id in shown)
    with Image.open(without_masks.folder / "overview.png") as picture:
        assert picture.width == GAP + 5 * (TILE + GAP)  # no column for the masks that are not there


def test_with_and_without_masks_the_weights_and_labels_are_the_same_bytes(whole, without_masks, dataset):
    assert digests(without_masks.folder) == digests(whole.folder)
    for id in dataset.train.ids:
        names = [folder / f"pseudo_labels/{id}.png" for folder in (whole.folder, without_masks.folder)]
        assert names[0].read_bytes() == names[1].read_bytes()


def test_overwriting_removes_the_run_that_was_there(without_masks):
    assert not (without_masks.folder / "round0/old.txt").exists()
    assert not (without_masks.folder / "round0/activation_maps").exists()  # only masks could measure these


# Cut off and resumed

KILLER = """
import os, signal, sys
from pathlib import Path
import torch
from sccam import fit
from sccam.run import train
from sccam.training import Silent
from sccam.training.segmenter import SHOWN

class Killer(Silent):
    def stage(self, name):
        self.name = name
    def progress(self, done, total, note=""):
        if self.name == "round1/classify" and done == 2:
            os.kill(os.getpid(), signal.SIGKILL)

fit.CHECKPOINT_SECONDS = 0.0
torch.set_num_threads(1)
data, out, *overrides = sys.argv[1:]
train(data, "photos", out, overrides, resume=True, reporter=Killer())
"""


@dataclass
class CutOff:
    """A run that was interrupted, then killed, then resumed."""

    folder: Path
    resuming: list[str]  # arguments that resume it
    interrupted: subprocess.CompletedProcess[str]
    state_when_interrupted: dict[str, Any]
    killed: int
    files_when_killed: list[str]
    resumed: int | str | None


@pytest.fixture(scope="module")
def cut_off(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> CutOff:
    folder = tmp_path_factory.mktemp("cut off") / "run"
    settings = [word for text in OVERRIDES for word in ("--set", text)]
    arguments = ["train", str(sample), "-c", "photos", "--out", str(folder), *settings]
    command = [sys.executable, "-m", "sccam.cli", *arguments]
    process = subprocess.Popen(command, env=ONE_THREAD, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)  # the first line there says that the data is checked: now comes training
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    interrupted = subprocess.CompletedProcess(command, process.returncode, out, err)
    state = read_json(folder / "run.json")

    killed = subprocess.run(
        [sys.executable, "-c", KILLER, str(sample), str(folder), *OVERRIDES], env=ONE_THREAD, timeout=120, check=False
    )
    files = [path.name for path in folder.iterdir()]

    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["sccam", *arguments, "--resume"])
        cli.main()
    return CutOff(folder, [*arguments, "--resume"], interrupted, state, killed.returncode, files, ended.value.code)


def test_an_interrupt_ends_with_130_and_prints_the_command_to_go_on_with(cut_off):
    assert cut_off.interrupted.returncode == 130, cut_off.interrupted.stderr
    assert "go on with: sccam train" in cut_off.interrupted.stderr
    assert "Traceback" not in cut_off.interrupted.stderr
    assert cut_off.state_when_interrupted["status"] == "interrupted"
    assert "scores" not in cut_off.state_when_interrupted["finished"]


def test_the_printed_command_means_the_same_arguments_to_a_shell(cut_off):
    printed = re.search(r"go on with: sccam (.*)", cut_off.interrupted.stderr)
    assert printed and shlex.split(printed[1]) == cut_off.resuming


def test_a_kill_in_the_middle_of_training_leaves_its_checkpoint(cut_off):
    assert cut_off.killed == -signal.SIGKILL
    assert "round1_classify.checkpoint.safetensors" in cut_off.files_when_killed


def test_a_run_that_was_interrupted_and_killed_and_resumed_ends_with_the_same_weights(cut_off, whole):
    assert cut_off.resumed in (0, None)
    assert digests(cut_off.folder) == digests(whole.folder)
    assert read_json(cut_off.folder / "scores.json")["rows"] == whole.scores["rows"]
    assert read_json(cut_off.folder / "run.json")["status"] == "finished"


def test_the_seconds_of_a_stage_are_those_of_all_calls_that_were_asked_to_stop(dataset, tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(context, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with RunFolder(tmp_path / "run") as folder:
        run = context.RunContext(dataset, load_config("photos", OVERRIDES), folder, Silent(), StopRequest())

        def work(seconds: float, *, stopped: bool) -> None:
            now[0] += seconds
            if stopped:
                raise Interrupted("stopped")

        for seconds in (5.0, 2.0):
            with pytest.raises(Interrupted):
                run.stage("walk", partial(work, seconds, stopped=True))
        run.stage("walk", partial(work, 4.0, stopped=False))
        run.stage("pseudo_labels", partial(work, 1.0, stopped=False))
        finished = folder.state()["finished"]
    assert {stage: facts["seconds"] for stage, facts in finished.items()} == {"walk": 11.0, "pseudo_labels": 1.0}


def test_a_finished_run_that_is_resumed_does_nothing(whole, sample, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    again = run(sample, copy, resume=True)
    assert again.watcher.stages == [] and again.scores == whole.scores
    changed = {path.name for path in copy.rglob("*") if path.is_file() and before.get(path) != path.stat().st_mtime_ns}
    assert changed <= {"run.json", "overview.png", "lock"}


def test_a_resumed_run_makes_the_missing_files_of_a_stage_only(whole, sample, copy, dataset):
    """Labels, walked maps and pseudo labels are made image by image; those that are there stay."""
    state = read_json(copy / "run.json")
    for stage in STAGES[STAGES.index("affinity/labels") :]:
        if stage not in ("affinity/train", "segment/train"):
            del state["finished"][stage]
    (copy / "run.json").write_text(json.dumps(state))
    gone = dataset.train.ids[3]
    for below in (f"affinity_labels/{gone}.png", f"walked_maps/{gone}.npz", f"pseudo_labels/{gone}.png"):
        (copy / below).unlink()
    again = run(sample, copy, resume=True)
    assert again.watcher.totals["walk"] == again.watcher.totals["pseudo_labels"] == 1
    assert again.scores["rows"] == whole.scores["rows"]
    for id in dataset.train.ids:
        assert sha256(copy / f"pseudo_labels/{id}.png") == sha256(whole.folder / f"pseudo_labels/{id}.png")


# What is refused


def test_a_folder_with_a_run_needs_a_word_on_what_to_do_with_it(sample, copy):
    with pytest.raises(RunFolderError, match="there is a run in this folder already"):
        run(sample, copy)


def test_another_plan_is_refused_with_each_difference_named(sample, copy):
    with pytest.raises(RunFolderError, match="follows another plan") as caught:
        run(sample, copy, overrides=[*OVERRIDES, "cluster.k=3", "walk.beta=4"], resume=True)
    assert "cluster.k: 2 -> 3" in str(caught.value) and "walk.beta: 8.0 -> 4.0" in str(caught.value)
    assert read_json(copy / "run.json")["status"] == "finished"


def test_the_number_of_workers_may_change(sample, copy):
    assert run(sample, copy, overrides=[*OVERRIDES, "run.workers=2"], resume=True).watcher.stages == []


def test_the_kernels_may_change_and_the_run_names_those_in_use(sample, copy):
    assert read_json(copy / "run.json")["backends"] == asdict(Backends().resolved())
    assert run(sample, copy, overrides=[*OVERRIDES, "backends.walk=portable"], resume=True).watcher.stages == []
    assert read_json(copy / "run.json")["backends"]["walk"] == "portable"


def test_other_data_is_refused(sample, copy, tmp_path):
    shutil.copytree(sample, tmp_path / "other")
    with pytest.raises(RunFolderError, match="follows another plan") as caught:
        run(tmp_path / "other", copy, resume=True)
    assert str(tmp_path / "other") in str(caught.value)


@pytest.mark.parametrize("change", ["another image", "another tag"])
def test_data_that_changed_since_the_run_began_is_refused(sample, tmp_path, change):
    """Else the sub-categories of the old list would be taken for those of the new one, row by row."""
    shutil.copytree(sample, tmp_path / "data")
    with pytest.raises(PowerCut):
        run(tmp_path / "data", tmp_path / "run", reporter=Watcher(cut_at="round0/classify"))
    tags = (tmp_path / "data/tags.csv").read_text()
    if change == "another image":
        (tmp_path / "data/train.txt").write_text((tmp_path / "data/train.txt").read_text().replace("0000\n", ""))
    else:
        (tmp_path / "data/tags.csv").write_text(tags.replace("0000.png,", "0000.png,house "))
    with pytest.raises(RunFolderError):
        run(tmp_path / "data", tmp_path / "run", resume=True, reporter=Watcher(cut_at="round0/classify"))


def test_overwriting_deletes_nothing_in_a_folder_that_holds_no_run(sample, tmp_path):
    """Such as the working directory of someone whose settings are called config.toml."""
    for name in ("config.toml", "thesis.tex"):
        (tmp_path / name).write_text("")
    with pytest.raises(RunFolderError):
        run(sample, tmp_path, overwrite=True, reporter=Watcher(cut_at="data"))
    assert (tmp_path / "thesis.tex").exists() and (tmp_path / "config.toml").exists()


def test_a_run_that_another_process_works_on_is_refused(sample, copy):
    with RunFolder(copy), pytest.raises(RunFolderError, match="another process"):
        run(sample, copy, resume=True)


def test_images_that_cannot_be_read_are_named_together_before_anything_is_trained(sample, tmp_path):
    shutil.copytree(sample, tmp_path / "data")
    for id in ("0001", "0004"):
        path = tmp_path / f"data/images/{id}.png"
        path.write_bytes(path.read_bytes()[:200])
    watcher = Watcher()
    with pytest.raises(DataError, match="2 of 15 images cannot be read") as caught:
        run(tmp_path / "data", tmp_path / "run", reporter=watcher)
    assert "0001.png" in str(caught.value) and "0004.png" in str(caught.value)
    assert watcher.stages == ["data"] and read_json(tmp_path / "run/run.json")["status"] == "failed"


def test_a_wrong_mask_is_found_before_anything_is_trained(sample, tmp_path):
    shutil.copytree(sample, tmp_path / "data")
    shutil.copy(tmp_path / "data/images/0002.png", tmp_path / "data/masks/0002.png")
    watcher = Watcher()
    with pytest.raises(MaskError) as caught:
        run(tmp_path / "data", tmp_path / "run", reporter=watcher)
    assert "0002.png" in str(caught.value) and watcher.stages == ["data"]
