"""What a run knows of itself in figures, as plain values for a page; what is not there yet is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import RunFolder, manifest_path, read_arrays, read_json, read_manifest
from sccam.data.masks import read_mask
from sccam.records import EPOCH, PARITY, check
from sccam.report.charts import Series, chart
from sccam.stages.evaluate import ConfusionMatrix
from sccam.structures import Dataset

Row = dict[str, Any]
MAPS = {"parent": "the classifier's weights", "reactivated": "reactivated weights", "prototypes": "local prototypes"}
COLUMNS = {"fixed": "fixed", "image_only": "from images alone", "oracle": "oracle", "labels": ""}


def score_rows(folder: RunFolder) -> list[Row]:
    """The rows of scores.json."""
    return list(folder.scores()["rows"])


def round_table(folder: RunFolder) -> list[Row]:
    """A row for each round: mIoU of its maps by column, its clusters, what the drawn set knows of them (Table 2)."""
    scores = folder.scores()
    hidden = {row["round"]: row for row in scores.get("hidden", [])}
    table = []
    for r in folder.rounds:
        row: Row = {"round": r, "clusters": _clusters(folder, r), "maps": _maps(folder, r)}
        for found in scores["rows"]:
            if found["stage"] == f"maps/round{r}":
                row[found["column"]] = found["miou"]
        table.append({**hidden.get(r, {}), **row})
    return table


def threshold_charts(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(title, SVG) of mIoU over the threshold of maps, and over the exponent of the walk's background."""
    charts = []
    for name, title, axis in (("threshold", "Maps", "threshold"), ("alpha", "Walked maps", "exponent alpha")):
        with_curve = [row for row in rows if "curve" in row and name in row]
        if not with_curve:
            continue
        series = [Series(row["stage"], [(x, 100 * y) for x, y in row["curve"]]) for row in with_curve]
        last = with_curve[-1]["stage"]
        rules = [(row[name], COLUMNS[row["column"]]) for row in rows if row["stage"] == last and name in row]
        charts.append((f"{title}: mIoU over the {axis}", chart(series, x=axis, y="mIoU [%]", rules=rules)))
    return charts


def loss_charts(folder: RunFolder) -> list[tuple[str, str]]:
    """(title, SVG) of the losses of every trained stage over its epochs."""
    losses: dict[str, list[tuple[float, float]]] = {}
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # the last line of a run that was killed while it wrote it
            continue
        check(record, EPOCH, f"{path}:{number}")
        if "epoch" in record and math.isfinite(record.get("loss", math.nan)):
            losses.setdefault(record["stage"], []).append((record["epoch"] + 1, record["loss"]))
    groups: dict[str, list[Series]] = {}
    for stage, points in losses.items():
        group = "Classifier" if "classify" in stage else stage.partition("/")[0].capitalize()
        groups.setdefault(group, []).append(Series(stage, points))
    return [(f"{group}: loss over epochs", chart(series, x="epoch", y="loss")) for group, series in groups.items()]


def class_table(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
    """Titles of stages, and for each label its IoU in every stage."""
    chosen = [row for row in rows if row["column"] in ("image_only", "labels")]
    maps = [row["stage"] for row in chosen if row["stage"].startswith("maps/")]
    chosen = [row for row in chosen if not row["stage"].startswith("maps/") or row["stage"] == maps[-1]]
    if not chosen:
        return [], []
    titles = [f"{row['stage']}, {row['split']}" for row in chosen]
    return titles, [(name, [row["iou"].get(name) for row in chosen]) for name in chosen[0]["iou"]]


def confusion(folder: RunFolder, dataset: Dataset | None) -> Row | None:
    """Shares of every true label's pixels by predicted label, of the last masks that can be measured."""
    if dataset is None:
        return None
    for part, crf in ((dataset.val, True), (dataset.val, False), (dataset.train, False)):
        files = [(folder.prediction(part.split, id, crf=crf), id) for id in part.ids if id in dataset.masks.paths]
        files = [(path, id) for path, id in files if path.exists()]
        if files:
            title = f"segmenter{' with CRF' if crf else ''}, {part.split}, {len(files)} images"
            break
    else:
        files = [(folder.pseudo_label(id), id) for id in dataset.train.ids if id in dataset.masks.paths]
        files, title = [(path, id) for path, id in files if path.exists()], "pseudo labels"
        if not files:
            return None
    matrix = ConfusionMatrix(len(dataset.classes))
    for path, id in files:
        matrix.add(read_mask(path), read_mask(dataset.masks.paths[id]))
    counts = matrix.counts.astype(float)
    present = np.flatnonzero(counts.sum(axis=1))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = ["background", *dataset.classes, "no label"]
    columns = [j for j in range(len(names)) if j < len(names) - 1 or counts[:, j].any()]
    return {
        "title": title,
        "columns": [names[j] for j in columns],
        "rows": [(names[i], [float(shares[i, j]) for j in columns], i) for i in present.tolist()],
        "indices": columns,
    }


def parity_table(folder: RunFolder) -> list[Row]:
    """Exported files with how near they come to the network they were made from."""
    rows = []
    for path in sorted((folder / "export").glob("*.json")):
        manifest = read_json(path)
        if isinstance(manifest, dict) and manifest.get("parity"):
            check(manifest["parity"], PARITY, path, "parity")
            rows.append({"file": path.name.removesuffix(".json"), **manifest["parity"]})
    return rows


def bench_table(path: Path | None) -> tuple[str, list[Row]]:
    """The device, and rows of a JSON file of `sccam bench`."""
    if path is None:
        return "", []
    content = read_json(path)
    return str(content["facts"]["device"]), list(content["rows"])


def k_ablation(path: Path | None) -> list[tuple[str, str]]:
    """(title, SVG) of maps over K, from an ablation whose variants set `cluster.k` (Figure 4)."""
    if path is None:
        return []
    result = read_json(path / "ablation.json" if path.is_dir() else path)
    clusters = {name: _only_k(variant["settings"]) for name, variant in result["variants"].items()}
    if 1 not in clusters.values():  # no rounds are the next best
        clusters[result["baseline"]] = 1
    points = []
    for name, variant in result["variants"].items():
        k = clusters[name]
        row = next((r for r in variant["rows"] if (r["stage"], r["column"]) == ("maps", "image_only")), None)
        if k is not None and row is not None:
            points.append((float(k), row["mean"], f"{name}: {row['mean']:.1f}"))
    points.sort()
    if len(points) < 2:
        return []
    series = Series("maps", [(k, miou) for k, miou, _ in points], marks=True, texts=[text for *_, text in points])
    return [("Maps of the last round over the clusters of a class", chart([series], x="K", y="mIoU [%]"))]


def _only_k(settings: Sequence[str]) -> int | None:
    values = dict(item.partition("=")[::2] for item in settings)
    free = {"run.until", "classify.rounds", "measure.every_round", "measure.train_segmenter"}
    others = set(values) - free - {"cluster.k"}
    return int(values["cluster.k"]) if "cluster.k" in values and not others else None


def _maps(folder: RunFolder, r: int) -> str | None:
    """What a round's maps are made of."""
    path = folder.classifier(r)
    if not manifest_path(path).exists():
        return None
    made_from = read_manifest(path).made_from
    share = made_from.get("subtract")
    return MAPS[made_from.get("maps", "parent")] + (f", less {share:g} of the context" if share else "")


def _clusters(folder: RunFolder, r: int) -> int | None:
    path = folder / f"round{r}/subcategories.npz"
    return len(read_arrays(path, {"parent": "S"})["parent"]) if path.exists() else None
