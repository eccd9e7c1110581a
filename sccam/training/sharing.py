"""What each stage of a run depends on, so that two runs need not do the same work twice.

The key of a stage is a digest of the settings that it reads and of the keys of the stages whose output it reads. Two
runs on the same data with equal keys would write the same files, so one may take them from the other. Where and how a
run is computed (device, precision, rows of the backend table) is part of every key: other rounding makes other files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sccam.artifacts import RunFolder
from sccam.recipe import RunConfig


def stage_keys(config: RunConfig, data: str) -> dict[str, str]:
    """The key of every stage that can be shared, in the order of the stages; `data`, `segment/predict` and `scores` are
    about the run itself.

    Args:
        data: checksum of classes, ids and tags.
    """
    tables: dict[str, Any] = asdict(config)
    classify, keys = config.classify, {}
    where = {name: tables[name] for name in ("data", "network", "backends")}
    where["run"] = {name: value for name, value in tables["run"].items() if name not in ("workers", "parts", "until")}

    def key(stage: str, before: str, *settings: Any) -> str:
        text = json.dumps([stage, before, where, settings], sort_keys=True, default=str)
        keys[stage] = hashlib.sha256(text.encode()).hexdigest()
        return keys[stage]

    last = data
    for r, kind in enumerate(config.rounds):
        settings: list[Any] = [classify.batch, asdict(classify.augment_of(r)), kind]
        if kind in ("plain", "subcategories"):
            settings += [
                classify.epochs_of(r),
                asdict(classify.optimiser),
                classify.equivariance,
                classify.smaller,
                classify.dropout,
                classify.enough,
                classify.freeze,
            ]
        if kind == "subcategories":
            last = key(f"round{r}/cluster", last, tables["cluster"], config.cam.long_side)
            settings += [classify.sub_weight, classify.sub_weight_rule, classify.restart]
        elif kind == "reactivated":
            settings += [tables["reactivate"]]
        elif kind == "prototypes":
            settings += [tables["prototypes"], tables["cam"]]
            settings += [tables["threshold"]] if len(config.prototypes.subtract) > 1 else []  # maps are compared
        last = key(f"round{r}/classify", last, *settings)
        maps = key(f"round{r}/maps", last, tables["cam"], r == config.last_round)
    threshold = key(
        "threshold", maps, tables["threshold"], config.affinity.alpha_low, config.affinity.alpha_high, config.walk.alpha
    )
    labels = key("affinity/labels", threshold, asdict(config.affinity.crf))
    affinity = key("affinity/train", labels, tables["affinity"])
    before = key("walk/length", affinity, tables["walk"]) if config.walk.rule == "contrast" else affinity
    walked = key("walk", before, tables["walk"])
    pseudo = key("pseudo_labels", walked, tables["pseudo_label"])
    segment = {name: value for name, value in tables["segment"].items() if not name.startswith("self_")}
    segmenter = key("segment/train", pseudo, segment)
    if config.segment.self_epochs > 0:
        relabel = key("segment/relabel", segmenter, tables["segment"]["self_confidence"], tables["pseudo_label"]["crf"])
        key("segment/retrain", relabel, tables["segment"])
    return keys


def stage_files(stage: str) -> tuple[str, ...]:
    """Patterns of what a stage leaves in the run folder."""
    name, _, part = stage.partition("/")
    if name.startswith("round"):
        files = {"cluster": ("features.npz", "subcategories.npz"), "classify": ("cam_net.safetensors*",),
                 "maps": ("activation_maps/**/*",)}[part]  # fmt: skip
        return tuple(f"{name}/{file}" for file in files)
    return {
        "threshold": ("threshold.json",),
        "affinity/labels": ("affinity_labels/**/*",),
        "affinity/train": ("affinity_net.safetensors*",),
        "walk/length": ("walk.json",),
        "walk": ("walked_maps/**/*",),
        "pseudo_labels": ("pseudo_labels/**/*",),
        "segment/train": ("segmenter.safetensors*",),
        "segment/relabel": ("self_labels/**/*",),
        "segment/retrain": ("self_trained/*",),
    }[stage]


def take_stages(folder: RunFolder, keys: Mapping[str, str], known: Mapping[str, Path]) -> list[str]:
    """Takes the files of stages that another run has finished, as links where the file system can; the stages taken.

    Args:
        folder: a prepared run.
        keys: of its stages, in their order.
        known: key -> folder of a run that has finished a stage of that key.
    """
    taken = []
    for stage, key in keys.items():
        source = known.get(key)
        if source is None or folder.finished(stage):
            continue
        if source.resolve() == folder.path.resolve():
            continue
        for pattern in stage_files(stage):
            for file in sorted(source.glob(pattern)):
                if file.is_file():
                    _link(file, folder.path / file.relative_to(source))
        facts = RunFolder(source).state()["finished"][stage]
        folder.finish(stage, **{**facts, "taken_from": str(facts.get("taken_from", source))})
        taken.append(stage)
    return taken


def _link(source: Path, target: Path) -> None:
    """Another name for the file; files of a run are replaced, never changed, so no run sees the other's."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
