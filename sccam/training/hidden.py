"""What only the drawn sample set can tell: do clusters find its hidden looks, and do maps reach past the telling part?

    NMI      = 2 I(cluster; look) / (H(cluster) + H(look))         of each class's images, averaged over classes
    purity   = share of images whose cluster is mostly of their look
    telling, body, outside = share of those pixels where the class scores above the threshold, averaged over objects

Nothing here reaches a trainer. A folder without looks.json has no rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from sccam.artifacts import read_arrays, read_json
from sccam.data.masks import read_mask
from sccam.data.sample import BODY, TELLING
from sccam.runtime.labeler import load_map
from sccam.stages.walk import upsample
from sccam.structures import BoolArray, IntArray, TaggedImages
from sccam.training.context import RunContext
from sccam.training.labels import read_choice


def hidden_rows(run: RunContext, rounds: Iterable[int]) -> list[dict[str, Any]]:
    """A row for each round whose maps were made."""
    path = run.dataset.root / "looks.json"
    if not path.exists() or not run.dataset.masks.paths:
        return []
    looks, threshold = read_json(path), read_choice(run).threshold
    rows = []
    for r in rounds:
        row: dict[str, Any] = {"round": r, **_clusters(run, r, looks)}
        shares = [
            share
            for id in run.train_images.ids
            for share in _shares(run, r, id, {item["class"] for item in looks[id]}, threshold)
        ]
        row |= {name: round(float(np.nanmean(values)), 4)
                for name, values in zip(("telling", "body", "outside"), np.array(shares).T, strict=True)}  # fmt: skip
        rows.append(row)
    return rows


def _clusters(run: RunContext, r: int, looks: dict[str, Any]) -> dict[str, Any]:
    file = run.folder / f"round{r}/subcategories.npz"
    if not file.exists():
        return {}
    arrays = read_arrays(file)
    present, parent = arrays["present"], arrays["parent"]
    found = agreement(present, parent, run.train_images, looks)
    return {name: round(value, 4) for name, value in found.items()} | {"clusters": len(parent)}


def agreement(present: BoolArray, parent: IntArray, images: TaggedImages, looks: dict[str, Any]) -> dict[str, float]:
    """NMI and purity of sub-categories.

    Args:
        present, parent: of `SubcategoryLabels`, in the order of the images.
        looks: image id -> its objects, as in looks.json.
    """
    nmi, right, counted = [], 0, 0
    for c, name in enumerate(images.classes):
        own = present[:, parent == c]
        members = np.flatnonzero(own.any(axis=1))
        truth = np.array([
            next(item["look"] for item in looks[images.ids[n]] if item["class"] == name) for n in members
        ])  # fmt: skip
        found = own[members].argmax(axis=1)
        table = np.zeros((own.shape[1], int(truth.max(initial=0)) + 1))
        np.add.at(table, (found, truth), 1)
        nmi.append(normalised_mutual_information(table))
        right, counted = right + int(table.max(axis=1).sum()), counted + len(members)
    return {"nmi": float(np.mean(nmi)), "purity": right / max(counted, 1)}


def normalised_mutual_information(table: np.ndarray) -> float:
    """In [0, 1], of counts [clusters looks]; 1 where both sides have one group only, for then they agree."""
    joint = table / max(table.sum(), 1)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)
    entropies = [-float((p[p > 0] * np.log(p[p > 0])).sum()) for p in (rows, columns)]
    if sum(entropies) == 0:
        return 1.0
    expected = np.outer(rows, columns)
    seen = joint > 0
    shared = float((joint[seen] * np.log(joint[seen] / expected[seen])).sum())
    return 2 * shared / sum(entropies)


def _shares(run: RunContext, r: int, id: str, classes: set[str], threshold: float) -> list[tuple[float, float, float]]:
    """(telling, body, outside) of each class of an image."""
    file = run.folder.activation_map(r, id)
    if not file.exists():
        return []
    activation, size = load_map(file)
    scores = upsample(activation.scores, size, run.config.cam.grid_stride)
    parts = read_mask(run.dataset.root / f"parts/{id}.png")
    index = read_mask(run.dataset.masks.paths[id])
    found = []
    for score, c in zip(scores, activation.classes.tolist(), strict=True):
        if run.dataset.classes[c] not in classes:
            continue
        own, above = index == c + 1, score > threshold
        where = (own & (parts == TELLING), own & (parts == BODY), ~own)
        telling, body, outside = (float(above[pixels].mean()) if pixels.any() else float("nan") for pixels in where)
        found.append((telling, body, outside))
    return found
