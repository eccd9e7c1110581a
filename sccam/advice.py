"""What the data say about the settings, before anything is trained: counts and sizes only, no mask, no pixel decoded.

Each line names what was seen, why it matters, and a setting to try. Nothing is changed by itself.
"""

from __future__ import annotations

import numpy as np

from sccam.data.images import image_size
from sccam.data.text import quoted
from sccam.recipe import RunConfig
from sccam.structures import Dataset

FEW_A_CLUSTER = 8  # images; fewer, and a sub-category is a handful of single images
ROWS_A_COMPONENT = 4  # features for each whitened component; with fewer, looks are lost (benchmarks/whitening.py)
FEW_VIEWS, MANY_VIEWS = 200, 4000  # of a class in a round
UNEQUAL = 10.0  # images of the largest class over those of the smallest
COARSE = 7  # cells along a side of the map in training
MOST_SIZES = 200  # image headers that are read


def advice(dataset: Dataset, settings: RunConfig) -> list[str]:
    """Lines for a person; empty where nothing stands out."""
    present = dataset.train.labels.present
    counts, names = present.sum(axis=0), dataset.classes
    return [
        *_clusters(present, names, settings),
        *_views(counts, names, settings),
        *_companions(present, names),
        *_balance(counts, names),
        *_background(present),
        *_sizes(dataset, settings),
    ]


def _clusters(present: np.ndarray, names: tuple[str, ...], settings: RunConfig) -> list[str]:
    cluster, counts = settings.cluster, present.sum(axis=0)
    if settings.classify.rounds == 0 or cluster.k == 1:
        return []
    found = []
    rows = int(counts.sum()) if cluster.pool == "map" else len(present)
    if cluster.whiten * ROWS_A_COMPONENT > rows:
        found.append(
            f"{cluster.whiten} whitened components of {rows} features are mostly noise, made as large as the rest. Try "
            f"cluster.whiten={rows // (ROWS_A_COMPONENT + 1)}."
        )
    most = np.maximum(1, np.minimum(cluster.k, counts // cluster.min_size))
    few = np.flatnonzero((counts / most < FEW_A_CLUSTER) & (most > 1))
    if not len(few):
        return found
    worst = few[np.argmin(counts[few])]
    return [
        *found,
        f"{len(few)} of {len(names)} classes have fewer than {FEW_A_CLUSTER} images a sub-category, the least "
        f"{names[worst]!r}: {counts[worst]} images for {most[worst]}. Try cluster.min_size={FEW_A_CLUSTER}, or fewer: "
        f"cluster.k={max(1, int(np.median(counts)) // FEW_A_CLUSTER)}.",
    ]


def _views(counts: np.ndarray, names: tuple[str, ...], settings: RunConfig) -> list[str]:
    epochs, _ = settings.classify.epochs_of(0)
    views = counts * epochs
    least, most = int(np.argmin(views)), int(np.argmax(views))
    found = []
    if views[least] < FEW_VIEWS:
        found.append(
            f"a round shows the classifier {views[least]} views of {names[least]!r} ({epochs} epochs of "
            f"{counts[least]} images), which is little. Try classify.epochs=[{-(-FEW_VIEWS // max(1, counts[least]))}]."
        )
    if views[most] > MANY_VIEWS and settings.classify.optimiser.name != "sgd":
        found.append(
            f"a round shows the classifier {views[most]} views of {names[most]!r}; fewer epochs may do: maps suffer "
            "when the tags are known by heart."
        )
    return found


def _companions(present: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """Classes that never come without another one."""
    together = present.T.astype(np.int64) @ present.astype(np.int64)
    found = []
    for c, name in enumerate(names):
        always = [names[d] for d in np.flatnonzero((together[c] == together[c, c]) & (together[c, c] > 0)) if d != c]
        if always:
            found.append(
                f"{name!r} never comes without {quoted(always)}: tags alone cannot tell the two apart. Add images of "
                f"{name!r} alone, or join the classes."
            )
    return found


def _balance(counts: np.ndarray, names: tuple[str, ...]) -> list[str]:
    least, most = int(np.argmin(counts)), int(np.argmax(counts))
    if counts[most] < UNEQUAL * max(1, counts[least]):
        return []
    return [f"{names[most]!r} has {counts[most]} images, {names[least]!r} {counts[least]}: tag more of the latter."]


def _background(present: np.ndarray) -> list[str]:
    if present.shape[1] > 1 or not present.all():
        return []
    return ["there is one class and no image without it: add images without any tag and data.allow_negative=true."]


def _sizes(dataset: Dataset, settings: RunConfig) -> list[str]:
    paths = dataset.train.paths[:: max(1, len(dataset.train) // MOST_SIZES)]
    sides = np.array([image_size(path) for path in paths])
    long, short = int(np.median(sides.max(axis=1))), int(np.median(sides.min(axis=1)))
    stride = settings.network.train_stride or settings.network.output_stride
    augment, found = settings.classify.augment, []
    if augment.crop // stride < COARSE:
        found.append(
            f"a crop of {augment.crop} px gives the net {augment.crop // stride} cells a side at stride {stride}:"
            f" Try classify.augment.crop={COARSE * stride}, or a smaller network.train_stride."
        )
    if augment.long_side and augment.long_side[0] > 2 * long:
        found.append(
            f"images are about {long} x {short} px and are enlarged to {augment.long_side[0]} px and more; smaller "
            f"views are cheaper and lose nothing: classify.augment.long_side=[{long}, {2 * long}]."
        )
    if augment.long_side and augment.long_side[1] < long // 3:
        found.append(
            f"images are about {long} x {short} px and are shrunk to at most {augment.long_side[1]} px: things smaller "
            f"than {stride * long // augment.long_side[1]} px fall within one cell of the maps."
        )
    return found
