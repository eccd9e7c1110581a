"""What an ablation found: mean and deviation over seeds, and the paired difference to the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sccam.ablation.plan import CEILING, Ablation, run_folder
from sccam.artifacts import RunFolder, read_arrays, read_json, write_arrays
from sccam.measure import image_counts
from sccam.run import data_checksum, open_data
from sccam.runtime.pool import worker_count
from sccam.stages.affinity_labels import AFFINITY_STRIDE
from sccam.stages.bootstrap import mean_iou, paired_bootstrap
from sccam.structures import Dataset
from sccam.training import scores_stage
from sccam.training.references import all_background, centre_prior, supervised_rows

Row = dict[str, Any]
RowKey = tuple[str, str, str]
SeedRows = Mapping[int, Mapping[RowKey, Row]]  # seed -> row key -> row
KEY = ("stage", "column", "split")  # of a row


def summary(plan: Ablation, out: Path, errors: Mapping[str, str]) -> dict[str, Any]:
    """Of all runs that are finished: mean and deviation over seeds, and the difference to the baseline."""
    dataset = open_data(plan.data, plan.settings(plan.baseline, plan.seeds[0]))
    scores = {variant: _scores(plan, out, variant) for variant in plan.variants}
    variants = {}
    for variant, by_seed in scores.items():
        rows = []
        for key in _row_keys(by_seed):
            values = [100 * by_seed[seed][key]["miou"] for seed in by_seed]
            row: Row = dict(zip(KEY, key, strict=True))
            row |= {"mean": statistics.fmean(values), "values": values}
            row["deviation"] = statistics.stdev(values) if len(values) > 1 else None
            if variant != plan.baseline:
                difference = _difference(plan, out, (variant, plan.baseline), scores, key, dataset)
                row |= {"difference": difference} if difference else {}
            rows.append(row)
        variants[variant] = {
            "settings": list(plan.variants[variant]),
            "seeds": sorted(by_seed),
            "seconds": _seconds(out, variant, sorted(by_seed)),
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
        "pairs": [_pair(plan, out, pair, scores, dataset) for pair in plan.pairs],
        "errors": dict(errors),
    }


def _pair(
    plan: Ablation, out: Path, pair: tuple[str, str], scores: Mapping[str, SeedRows], dataset: Dataset
) -> dict[str, Any]:
    """Two variants that the plan compares, beside all being compared with the baseline."""
    rows = []
    for key in _row_keys(scores[pair[0]]):
        difference = _difference(plan, out, pair, scores, key, dataset)
        if difference:
            rows.append({**dict(zip(KEY, key, strict=True)), "difference": difference})
    seconds = [
        [_seconds(out, variant, [seed]) for variant in pair] for seed in scores[pair[0]] if seed in scores[pair[1]]
    ]
    ratio = statistics.fmean(ours / theirs for ours, theirs in seconds) if seconds else None
    return {"variant": pair[0], "against": pair[1], "seconds_ratio": ratio, "rows": rows}


def _difference(
    plan: Ablation, out: Path, pair: tuple[str, str], scores: Mapping[str, SeedRows], key: RowKey, dataset: Dataset
) -> Row | None:
    """In points of mIoU, of a row of the first to that row of the second, over the seeds that both have."""
    ours, theirs = scores[pair[0]], scores[pair[1]]
    seeds = [seed for seed in ours if seed in theirs and _same(key, theirs[seed])]
    if not seeds:
        return None
    difference = paired_bootstrap(
        _counts(plan, out, pair[0], seeds, ours, key, dataset),
        _counts(plan, out, pair[1], seeds, theirs, _same(key, theirs[seeds[0]]), dataset),
    )
    points = {name: 100 * value for name, value in asdict(difference).items()}
    return {"seeds": len(seeds), **points, "word": difference.word}


def _references(plan: Ablation, out: Path, dataset: Dataset) -> list[Row]:
    """What needs no method, and the ceiling where it was asked for."""
    rows: list[Row] = []
    for name, counts_of in (("all background", all_background), ("centre prior", centre_prior)):
        for part in (dataset.train, dataset.val):
            if any(id in dataset.masks.paths for id in part.ids):
                miou = 100 * float(mean_iou(counts_of(part, dataset).sum(axis=0)))
                rows.append({"name": name, "split": part.split, "tags_used": name != "all background", "mean": miou})
    values: dict[tuple[str, str], list[float]] = {}
    ended = [seed for seed in plan.seeds if (run_folder(out, CEILING, seed) / "scores.json").exists()]
    for seed in ended if plan.ceiling else ():
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


def _row_keys(by_seed: SeedRows) -> list[RowKey]:
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
    rows: SeedRows,
    key: RowKey | None,
    dataset: Dataset,
) -> np.ndarray:
    """Pixel counts of every image, i64 [seeds images C+1 C+2]; kept beside the runs, since they take a while."""
    assert key is not None
    return np.stack([_counts_of(plan, out, variant, seed, rows[seed][key], dataset, worker_count(0)) for seed in seeds])


def count_run(plan: Ablation, out: Path, variant: str, seed: int, workers: int) -> None:
    """Counts what `summary` needs of a finished run, so that runs of several processes are counted there, too."""
    dataset = open_data(plan.data, plan.settings(variant, seed))
    for row in read_json(run_folder(out, variant, seed) / "scores.json")["rows"]:
        _counts_of(plan, out, variant, seed, row, dataset, workers)


def _counts_of(
    plan: Ablation, out: Path, variant: str, seed: int, row: Row, dataset: Dataset, workers: int
) -> np.ndarray:
    """Of one row of scores.json, i64 [images C+1 C+2]."""
    folder, stage = RunFolder(run_folder(out, variant, seed)), row["stage"]
    name = "-".join(row[part] for part in KEY).replace("/", "-")
    path = folder / "counts" / f"{name}.npz"
    if path.exists():
        return read_arrays(path)["counts"]
    part = dataset.train if row["split"] == dataset.train.split else dataset.val
    ids = [id for id in part.ids if id in dataset.masks.paths]
    if stage.startswith("maps/"):
        files = [folder.activation_map(int(stage.removeprefix("maps/round")), id) for id in ids]
    elif stage == "walk":
        files = [folder.walked_map(id) for id in ids]
    elif stage == "pseudo_labels":
        files = [folder.pseudo_label(id) for id in ids]
    else:
        files = [folder.prediction(part.split, id, crf=stage.endswith("+crf")) for id in ids]
    masks = [dataset.masks.paths[id] for id in ids]
    stride = plan.settings(variant, seed).cam.grid_stride if stage.startswith("maps/") else AFFINITY_STRIDE
    counts = image_counts(row, len(dataset.classes), masks, files, stride, workers)
    write_arrays(path, {"counts": counts})
    return counts


def _seconds(out: Path, variant: str, seeds: Sequence[int]) -> float:
    """Mean over finished seeds of what a run takes; stages taken from another one count as if it had done them."""
    totals = []
    for seed in seeds:
        finished = RunFolder(run_folder(out, variant, seed)).state().get("finished", {})
        totals.append(sum(facts.get("seconds", 0.0) for facts in finished.values()))
    return round(statistics.fmean(totals), 1) if totals else 0.0


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
