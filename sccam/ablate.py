"""Variants of a recipe over seeds, from one file: what helps, by how much, and how sure that is.

    data = "photos"                      # a folder as for `sccam train`, relative to this file
    config = "photos"                    # what every variant starts from: a built-in name or a TOML file
    seeds = [0, 1, 2, 3, 4]
    baseline = "plain"                   # what the others are compared with
    ceiling = true                       # also the baseline's segmenter, trained on true masks

    [variants]
    plain = ["classify.rounds=0", "classify.epochs=[48]"]
    three-clusters = []
    ten-clusters = ["cluster.k=10"]

Stages that two variants share (the same settings, data and seed up to there) are computed once. OUT/runs/VARIANT/seedN
is a whole run, as `sccam train` leaves it; a killed ablation goes on where it stopped, by the same command. A figure
is of the last epoch; none chooses a checkpoint, and thresholds are those that a run chooses from its images alone, but
in the rows called fixed and oracle.
"""

from __future__ import annotations

import os
import re
import statistics
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from sccam import config as toml
from sccam.artifacts import RunFolder, read_arrays, read_json, write_arrays, write_json
from sccam.data.text import nearest
from sccam.errors import ConfigError, Interrupted, RunFolderError, SccamError
from sccam.measure import image_counts
from sccam.recipe import RunConfig, load_config
from sccam.run import changed_settings, data_checksum, open_data, train
from sccam.runtime.pool import worker_count
from sccam.stages.affinity_labels import AFFINITY_STRIDE
from sccam.stages.bootstrap import mean_iou, paired_bootstrap
from sccam.structures import Dataset
from sccam.training import Reporter, Silent, scores_stage
from sccam.training.references import all_background, centre_prior, supervised_rows, train_supervised
from sccam.training.sharing import stage_keys

KEYS = ("data", "config", "seeds", "baseline", "ceiling", "variants")
CEILING = "supervised"  # the folder of its runs
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Row = dict[str, Any]
RowKey = tuple[str, str, str]  # stage, column, split


@dataclass(frozen=True, slots=True)
class Ablation:
    """The plan of a file."""

    data: Path
    config: str
    seeds: tuple[int, ...]
    baseline: str
    variants: dict[str, tuple[str, ...]]  # name -> settings as "table.name=value"
    ceiling: bool = False

    def settings(self, variant: str, seed: int) -> RunConfig:
        """Of one run."""
        return load_config(self.config, [*self.variants[variant], f"run.seed={seed}"])


def read_ablation(path: Path | str, folder: Path | None = None) -> Ablation:
    """The plan in a TOML file; every variant's settings are read once, so that a bad one ends before any work.

    Args:
        path: the file.
        folder: of the images, in place of the one that the file names.

    Raises:
        ConfigError: the file is missing or not TOML; an unknown key, a wrong type, an impossible setting.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no file of variants: {error}", where=path) from None
    for key in content:
        if key not in KEYS:
            raise ConfigError(
                f"unknown key {key!r}", where=path, why=nearest(key, KEYS), fix=f"known: {', '.join(KEYS)}"
            )
    data, config = content.get("data", None if folder is None else str(folder)), content.get("config", "photos")
    seeds, variants = content.get("seeds", [0]), content.get("variants")
    if not isinstance(data, str):
        raise ConfigError("data must name a folder", where=path, fix='data = "photos"')
    if not isinstance(config, str):
        raise ConfigError("config must be a name or a file", where=path)
    if not (_is_list_of(seeds, int) and len(set(seeds)) == len(seeds) and seeds and min(seeds) >= 0):
        raise ConfigError("seeds must be different whole numbers from 0", where=path, fix="seeds = [0, 1, 2]")
    if not (isinstance(variants, dict) and variants and all(_is_list_of(v, str) for v in variants.values())):
        raise ConfigError(
            "variants must be a table of lists of settings", where=path, fix='[variants]\nplain = ["cluster.k=1"]'
        )
    for name in variants:
        if name == CEILING or not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a folder", where=path, fix="use letters, digits, dot, dash")
    baseline = content.get("baseline", next(iter(variants)))
    if baseline not in variants:
        raise ConfigError(f"no variant {baseline!r}", where=path, why=nearest(str(baseline), variants))
    ceiling = content.get("ceiling", False)
    if not isinstance(ceiling, bool):
        raise ConfigError("ceiling must be true or false", where=path)
    beside = path.parent / config
    plan = Ablation(
        folder or path.parent / data, str(beside) if beside.is_file() else config, tuple(seeds), baseline,
        {name: tuple(settings) for name, settings in variants.items()}, ceiling,
    )  # fmt: skip
    for name in variants:
        try:
            plan.settings(name, 0)
        except ConfigError as error:
            error.where = f"{path}, variant {name}: {error.where or ''}".rstrip(": ")
            raise
    return plan


def ablate(
    plan: Ablation, out: Path | str, *, jobs: int = 1, reporter_of: Callable[[str], Reporter] | None = None
) -> dict[str, Any]:
    """Trains what is missing, measures, and writes OUT/ablation.json, whose content is returned.

    Args:
        jobs: seeds at a time, each in a process of its own with its share of the cores.
        reporter_of: who is told of the progress of a run, by its name; with one job only.

    Raises:
        Interrupted: by a signal; the same call goes on.
        RunFolderError: a variant of that name was trained with other settings.
        SccamError: of the data as a whole. A variant that fails has its error in the result instead of figures.
    """
    with RunFolder(out) as folder:
        open_data(plan.data, plan.settings(plan.baseline, plan.seeds[0]))  # its errors come before any work
        if jobs == 1:
            failed = [_train_seed(plan, folder.path, seed, reporter_of) for seed in plan.seeds]
        else:
            threads = max(1, worker_count(0) // jobs)
            with ProcessPoolExecutor(
                jobs, mp_context=get_context("spawn"), initializer=_few_threads, initargs=(threads,)
            ) as pool:
                waiting = [pool.submit(_train_seed, plan, folder.path, seed, None, threads) for seed in plan.seeds]
                failed = [future.result() for future in waiting]
        errors = {name: text for part in failed for name, text in part.items()}
        result = summary(plan, folder.path, errors)
        write_json(folder / "ablation.json", result)
    return result


def _few_threads(threads: int) -> None:
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _train_seed(
    plan: Ablation, out: Path, seed: int, reporter_of: Callable[[str], Reporter] | None, workers: int = 0
) -> dict[str, str]:
    """Runs every variant of a seed, one after the other; errors by variant."""
    errors = {}
    if plan.ceiling:
        free = [f"run.workers={workers}", "segment.initialise=pretrained"]  # there is no classifier to begin with
        settings = toml.override(plan.settings(plan.baseline, seed), free)
        watching = Silent() if reporter_of is None else reporter_of(f"{CEILING}, seed {seed}")
        train_supervised(open_data(plan.data, settings), settings, run_folder(out, CEILING, seed), watching)
    for variant in plan.variants:
        place, name = run_folder(out, variant, seed), f"{variant}, seed {seed}"
        until = plan.settings(variant, seed).run.until
        if (place / "config.toml").exists():  # else a finished run of other settings would pass for this variant
            changed = changed_settings(place / "config.toml", plan.settings(variant, seed))
            if changed:
                raise RunFolderError(
                    f"the variant {variant} had other settings\n" + "\n".join(f"    {line}" for line in changed),
                    where=place, fix="give the variant another name, or choose another --out",
                )  # fmt: skip
        if RunFolder(place).finished(scores_stage(until)):
            continue
        settings = toml.override(plan.settings(variant, seed), [f"run.workers={workers}"])
        reporter = None if reporter_of is None else reporter_of(name)
        try:
            train(plan.data, settings, place, resume=True, reporter=reporter, known=_known(plan, out, seed))
        except Interrupted as error:
            error.fix = "the same command goes on where it stopped"
            raise
        except SccamError as error:
            errors[name] = str(error)
    return errors


def _known(plan: Ablation, out: Path, seed: int) -> dict[str, Path]:
    """Finished stages of all variants of a seed, by their keys."""
    known: dict[str, Path] = {}
    for variant in plan.variants:
        place = run_folder(out, variant, seed)
        finished = RunFolder(place).state().get("finished", {})
        if finished:
            settings = plan.settings(variant, seed)
            keys = stage_keys(settings, data_checksum(open_data(plan.data, settings)))
            known |= {key: place for stage, key in keys.items() if stage in finished and key not in known}
    return known


def run_folder(out: Path, variant: str, seed: int) -> Path:
    """Where one run lies."""
    return out / "runs" / variant / f"seed{seed}"


def summary(plan: Ablation, out: Path, errors: Mapping[str, str]) -> dict[str, Any]:
    """Of all runs that are finished: mean and deviation over seeds, and the difference to the baseline."""
    dataset = open_data(plan.data, plan.settings(plan.baseline, plan.seeds[0]))
    scores = {variant: _scores(plan, out, variant) for variant in plan.variants}
    reference = scores[plan.baseline]
    variants = {}
    for variant, by_seed in scores.items():
        rows = []
        for key in _row_keys(by_seed):
            values = [100 * by_seed[seed][key]["miou"] for seed in by_seed]
            row: Row = dict(zip(("stage", "column", "split"), key, strict=True))
            row |= {"mean": statistics.fmean(values), "values": values}
            row["deviation"] = statistics.stdev(values) if len(values) > 1 else None
            paired = [seed for seed in by_seed if seed in reference and _same(key, reference[seed])]
            if variant != plan.baseline and paired:
                ours = _counts(plan, out, variant, paired, by_seed, key, dataset)
                theirs = _counts(plan, out, plan.baseline, paired, reference, _same(key, reference[paired[0]]), dataset)
                difference = paired_bootstrap(ours, theirs)
                points = {name: 100 * value for name, value in asdict(difference).items()}
                row["difference"] = {"seeds": len(paired), **points, "word": difference.word}
            rows.append(row)
        variants[variant] = {
            "settings": list(plan.variants[variant]),
            "seeds": sorted(by_seed),
            "seconds": _seconds(plan, out, variant),
            "rows": rows,
            "hidden": _hidden(plan, out, variant, sorted(by_seed)),
        }
    return {
        "data": plan.data.resolve().name,
        "data_sha256": data_checksum(dataset),
        "config": Path(plan.config).stem,
        "baseline": plan.baseline,
        "images": {"train": len(dataset.train), "val": len(dataset.val), "masks": len(dataset.masks.paths)},
        "references": _references(plan, out, dataset),
        "variants": variants,
        "errors": dict(errors),
    }


def _references(plan: Ablation, out: Path, dataset: Dataset) -> list[Row]:
    """What needs no method, and the ceiling where it was asked for."""
    rows: list[Row] = []
    for name, counts_of in (("all background", all_background), ("centre prior", centre_prior)):
        for part in (dataset.train, dataset.val):
            if any(id in dataset.masks.paths for id in part.ids):
                miou = 100 * float(mean_iou(counts_of(part, dataset).sum(axis=0)))
                rows.append({"name": name, "split": part.split, "tags_used": name != "all background", "mean": miou})
    values: dict[tuple[str, str], list[float]] = {}
    for seed in plan.seeds if plan.ceiling else ():
        for row in supervised_rows(run_folder(out, CEILING, seed)):
            values.setdefault((str(row["stage"]), str(row["split"])), []).append(100 * float(str(row["miou"])))
    for (stage, split), found in values.items():
        deviation = statistics.stdev(found) if len(found) > 1 else None
        rows.append({"name": f"{CEILING} {stage}", "split": split, "tags_used": False, "mean": statistics.fmean(found),
                     "deviation": deviation, "values": found})  # fmt: skip
    return rows


def _scores(plan: Ablation, out: Path, variant: str) -> dict[int, dict[RowKey, Row]]:
    """seed -> row key -> row of scores.json. The maps of the last round are called `maps`."""
    found: dict[int, dict[RowKey, Row]] = {}
    for seed in plan.seeds:
        folder = RunFolder(run_folder(out, variant, seed))
        if not folder.finished(scores_stage(plan.settings(variant, seed).run.until)):
            continue
        rows = read_json(folder / "scores.json")["rows"]
        last = f"maps/round{plan.settings(variant, seed).last_round}"
        found[seed] = {}
        for row in rows:
            found[seed][row["stage"], row["column"], row["split"]] = row
            if row["stage"] == last:
                found[seed]["maps", row["column"], row["split"]] = row
    return found


def _hidden(plan: Ablation, out: Path, variant: str, seeds: Sequence[int]) -> list[Row]:
    """Of each round the mean over seeds of what only the drawn set can tell; empty for other data."""
    found: dict[int, list[Row]] = {}
    for seed in seeds:
        for row in read_json(run_folder(out, variant, seed) / "scores.json").get("hidden", []):
            found.setdefault(row["round"], []).append(row)
    return [
        {name: round(statistics.fmean(row[name] for row in rows), 4) for name in rows[0]}
        for _, rows in sorted(found.items())
    ]


def _row_keys(by_seed: Mapping[int, Mapping[RowKey, Row]]) -> list[RowKey]:
    """What every seed has measured, in order."""
    rows = list(by_seed.values())
    return [key for key in (rows[0] if rows else {}) if all(key in other for other in rows)]


def _same(key: RowKey, rows: Mapping[RowKey, Row]) -> RowKey | None:
    """The row of the baseline that a row is compared with: its own, or the last maps for those of a round."""
    if key in rows:
        return key
    last = ("maps", key[1], key[2])
    return last if key[0].startswith("maps/") and last in rows else None


def _counts(
    plan: Ablation,
    out: Path,
    variant: str,
    seeds: Sequence[int],
    rows: Mapping[int, Mapping[RowKey, Row]],
    key: RowKey | None,
    dataset: Dataset,
) -> np.ndarray:
    """Pixel counts of every image, i64 [seeds images C+1 C+2]; kept beside the runs, since they take a while."""
    assert key is not None
    found = []
    for seed in seeds:
        folder, row = RunFolder(run_folder(out, variant, seed)), rows[seed][key]
        path = folder / "counts" / f"{'-'.join(key).replace('/', '-')}.npz"
        if path.exists():
            found.append(read_arrays(path)["counts"])
            continue
        part = dataset.train if key[2] == dataset.train.split else dataset.val
        ids = [id for id in part.ids if id in dataset.masks.paths]
        settings = plan.settings(variant, seed)
        stage = row["stage"]
        if stage.startswith("maps/"):
            files = [folder.activation_map(int(stage.removeprefix("maps/round")), id) for id in ids]
        elif stage == "walk":
            files = [folder.walked_map(id) for id in ids]
        elif stage == "pseudo_labels":
            files = [folder.pseudo_label(id) for id in ids]
        else:
            files = [folder.prediction(part.split, id, crf=stage.endswith("+crf")) for id in ids]
        masks = [dataset.masks.paths[id] for id in ids]
        stride = settings.cam.grid_stride if stage.startswith("maps/") else AFFINITY_STRIDE
        counts = image_counts(row, len(dataset.classes), masks, files, stride, worker_count(0))
        write_arrays(path, {"counts": counts})
        found.append(counts)
    return np.stack(found)


def _seconds(plan: Ablation, out: Path, variant: str) -> float:
    """Mean over seeds of what a run takes, stages that it took from another counted as if it had done them."""
    totals = []
    for seed in plan.seeds:
        finished = RunFolder(run_folder(out, variant, seed)).state().get("finished", {})
        totals.append(sum(facts.get("seconds", 0.0) for facts in finished.values()))
    return round(statistics.fmean(totals), 1)


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and lines for a person: the last maps, the walk, pseudo labels and segmenters, and what they gain."""
    columns = [
        ("maps", "fixed"), ("maps", "image_only"), ("maps", "oracle"), ("walk", "image_only"),
        ("pseudo_labels", "labels"), ("segmenter", "labels"), ("segmenter+crf", "labels"),
    ]  # fmt: skip
    header = ["variant", "seeds", "maps, fixed", "maps", "maps, oracle", "walk", "pseudo labels", "segmenter, val",
              "with CRF"]  # fmt: skip
    lines = []
    for name, variant in result["variants"].items():
        cells = [_cell(variant["rows"], stage, column) for stage, column in columns]
        lines.append([name, str(len(variant["seeds"])), *cells])
    for row in result["references"]:
        text = f"{row['mean']:.1f}" + (f" ± {row['deviation']:.1f}" if row.get("deviation") is not None else "")
        cells = [""] * len(columns)
        stage = {"train": 4, "val": 5}.get(row["split"], 4) + row["name"].endswith("+crf")
        cells[min(stage, len(cells) - 1)] = f"{text} ({row['split']})"
        lines.append([row["name"], "", *cells])
    return header, lines


def _cell(rows: Sequence[Row], stage: str, column: str) -> str:
    fitting = [row for row in rows if row["stage"] == stage and row["column"] == column]
    row = next((row for row in fitting if row["split"] == "val"), fitting[0] if fitting else None)
    if row is None:
        return "-"
    text = f"{row['mean']:.1f}" + ("" if row["deviation"] is None else f" ± {row['deviation']:.1f}")
    if "difference" in row:
        change = row["difference"]
        text += f" ({change['mean']:+.1f}, {change['low']:+.1f} to {change['high']:+.1f})"
    return text


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)
