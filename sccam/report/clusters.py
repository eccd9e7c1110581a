"""What the sub-categories of a run look like: members nearest to each centre, sizes, silhouettes (the paper's
Figure 5), and the weights of classes and sub-categories in two dimensions (its Figure 6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import RunFolder, manifest_path, read_arrays, read_json, read_manifest, read_tensors
from sccam.data.images import read_image
from sccam.errors import RunFolderError, SccamError
from sccam.report.charts import RADIUS, Series, chart
from sccam.report.gallery import write_tile
from sccam.runtime.pool import run_jobs
from sccam.stages.choose_k import pairwise_distances, silhouette
from sccam.structures import Dataset, FloatArray

MEMBERS = 6  # pictures of a cluster
SIDE = 72  # [px]


@dataclass(frozen=True, slots=True)
class Cluster:
    """One sub-category: how many images, its pictures, and on the drawn set the hidden look of most of its members."""

    size: int
    pictures: tuple[tuple[str, str], ...]  # (id, file beside the page)
    look: str = ""


@dataclass(frozen=True, slots=True)
class ClassClusters:
    """The clusters of a class in a round."""

    name: str
    silhouette: float | None  # mean over images, in [-1, 1]; None where there is one cluster
    clusters: tuple[Cluster, ...]


def montages(folder: RunFolder, dataset: Dataset, out: Path, *, workers: int) -> list[tuple[int, list[ClassClusters]]]:
    """(round, its classes) for every round with sub-categories; pictures are written into `out`/members."""
    looks = _looks(dataset)
    paths = dict(zip(dataset.train.ids, dataset.train.paths, strict=True))
    file_of: dict[str, str] = {}
    found = []
    for r in folder.rounds:
        files = folder / f"round{r}/subcategories.npz", folder / f"round{r}/features.npz"
        if not all(file.exists() for file in files):
            continue
        labels = read_arrays(files[0], {"present": "N S", "parent": "S", "ids": "N text"})
        features = read_arrays(files[1], {"features": "M D"})["features"].astype(np.float32)
        pairs = sum(labels["present"][:, labels["parent"] == c].any(axis=1).sum() for c in range(len(dataset.classes)))
        if len(features) not in (len(labels["ids"]), int(pairs)):
            problem = f"{len(features)} rows of features for {len(labels['ids'])} images"
            raise RunFolderError(problem, where=files[1], fix="delete it and resume the run")
        found.append((r, _round(labels, features, dataset, looks, file_of)))
    (out / "members").mkdir(parents=True, exist_ok=True)
    jobs = ((paths[id], out / file) for id, file in file_of.items() if id in paths)
    for _ in run_jobs(_member_job, jobs, workers=workers):
        pass
    return found


def weight_map(folder: RunFolder, classes: Sequence[str]) -> tuple[str, str] | None:
    """(title, SVG) of t-SNE over the rows of both heads of the last round with sub-categories; None without one."""
    needed = ("subcategories.npz", "cam_net.safetensors")
    rounds = [r for r in folder.rounds if all((folder / f"round{r}/{name}").exists() for name in needed)]
    if not rounds:
        return None
    path = folder.classifier(rounds[-1])
    if manifest_path(path).exists():
        read_manifest(path)  # refuses weights that are not those it speaks of
    tensors = read_tensors(path)
    parent = read_arrays(folder / f"round{rounds[-1]}/subcategories.npz", {"parent": "S"})["parent"]
    heads = [np.asarray(tensors[name]) for name in ("parent.weight", "sub.weight") if name in tensors]
    if [head.shape[:1] for head in heads] != [(len(classes),), (len(parent),)]:
        found = [list(head.shape) for head in heads]
        problem = f"heads {found} for {len(classes)} classes and {len(parent)} sub-categories"
        raise RunFolderError(problem, where=path)
    rows = np.concatenate([head.reshape(len(head), -1) for head in heads])
    places = _embedded(rows.astype(np.float32))
    owner = np.concatenate([np.arange(len(classes)), parent])
    series = []
    for c, name in enumerate(classes):
        own = np.flatnonzero(owner == c)
        texts = [name if row < len(classes) else f"{name}, sub-category {row - len(classes)}" for row in own]
        points = [(float(x), float(y)) for x, y in places[own]]
        radii = [6.0 if row < len(classes) else RADIUS for row in own]
        series.append(Series(name, points, marks=True, line=False, texts=texts, radii=radii))
    title = f"Weights of classes and sub-categories of round {rounds[-1]} in two dimensions (t-SNE); large: classes"
    return title, chart(series, x="", y="")


def _embedded(rows: FloatArray) -> FloatArray:
    """[M D] -> [M 2]; rows are compared by their angle."""
    from sklearn.manifold import TSNE

    if len(rows) < 4:
        return np.stack([np.arange(len(rows)), np.zeros(len(rows))], axis=1).astype(np.float32)
    perplexity = min(15.0, (len(rows) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0)
    return np.asarray(tsne.fit_transform(rows), np.float32)


def _round(
    labels: Mapping[str, np.ndarray],
    features: FloatArray,
    dataset: Dataset,
    looks: Mapping[str, Mapping[str, int]],
    file_of: dict[str, str],
) -> list[ClassClusters]:
    present, parent, ids = labels["present"], labels["parent"], [str(id) for id in labels["ids"]]
    tagged = np.stack([present[:, parent == c].any(axis=1) for c in range(len(dataset.classes))], axis=1)
    own_features = len(features) == int(tagged.sum()) and len(features) != len(ids)  # a row for each class of an image
    start, found = 0, []
    for c, name in enumerate(dataset.classes):
        members = np.flatnonzero(tagged[:, c])
        rows = features[start : start + len(members)] if own_features else features[members]
        start += len(members)
        own = present[members][:, parent == c]
        if not len(members):
            continue
        partition = own.argmax(axis=1).astype(np.int32)
        clusters = []
        for k in range(own.shape[1]):
            inside = np.flatnonzero(partition == k)
            if not len(inside):
                continue
            distance = ((rows[inside] - rows[inside].mean(axis=0)) ** 2).sum(axis=1)
            nearest = [ids[members[inside[n]]] for n in np.argsort(distance, kind="stable")[:MEMBERS]]
            pictures = tuple((id, file_of.setdefault(id, f"members/{len(file_of):05d}.jpg")) for id in nearest)
            clusters.append(Cluster(len(inside), pictures, _look([ids[members[n]] for n in inside], name, looks)))
        value = silhouette(pairwise_distances(rows), partition) if len(clusters) > 1 else None
        found.append(ClassClusters(name, value, tuple(clusters)))
    return found


def _looks(dataset: Dataset) -> dict[str, dict[str, int]]:
    """Image id -> class -> hidden look, of the drawn set."""
    path = dataset.root / "looks.json"
    if not path.exists():
        return {}
    content: dict[str, Any] = read_json(path)
    return {id: {item["class"]: int(item["look"]) for item in items} for id, items in content.items()}


def _look(ids: Sequence[str], name: str, looks: Mapping[str, Mapping[str, int]]) -> str:
    known = [looks[id][name] for id in ids if name in looks.get(id, {})]
    if not known:
        return ""
    values, counts = np.unique(known, return_counts=True)
    return f"{counts.max()} of {len(known)} are look {values[counts.argmax()]}"


def _member_job(source: Path, out: Path) -> None:
    try:
        write_tile(out, read_image(source), SIDE * 2)  # twice as dense as shown, for sharp screens
    except SccamError:
        return
