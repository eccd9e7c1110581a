"""Tiles of single images: what every stage made of them, and how near the last mask comes to the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sccam.artifacts import RunFolder, replacing
from sccam.data.images import read_image
from sccam.data.masks import coloured, read_mask
from sccam.errors import SccamError
from sccam.report.overview import heat
from sccam.runtime.labeler import load_map, walked_scores
from sccam.runtime.pool import run_jobs
from sccam.stages.affinity_labels import AFFINITY_STRIDE
from sccam.stages.evaluate import ConfusionMatrix
from sccam.stages.walk import upsample
from sccam.structures import ByteArray, Dataset, TaggedImages

TILE = 224  # [px] longer side
QUALITY = 82  # of JPEG


@dataclass(frozen=True, slots=True)
class Item:
    """An image of the gallery.

    Attributes:
        tiles: (what it shows, file beside the page), in the order of the stages.
        score: mIoU of the last mask over the labels in truth or mask, in [0, 1]; None without truth.
        score_of: which mask that is.
    """

    id: str
    split: str
    tags: tuple[str, ...]
    tiles: tuple[tuple[str, str], ...]
    score: float | None
    score_of: str


def gallery(
    folder: RunFolder, dataset: Dataset, out: Path, *, most: int, map_stride: int, workers: int
) -> tuple[list[Item], int]:
    """Items of at most so many images, and how many there are; tiles are written into `out`/tiles.

    Half of the places go to the images whose last mask is farthest from the truth, the rest are spread over the lists.

    Args:
        map_stride: [px per cell] of stored activation maps.
    """
    candidates = [(part, n) for part in (dataset.val, dataset.train) for n in range(len(part))]
    jobs = ((folder.path, part.split, part.ids[n], dataset.masks.paths.get(part.ids[n]), part.classes)
            for part, n in candidates)  # fmt: skip
    scored = list(run_jobs(_score_job, jobs, workers=workers))
    chosen = _chosen([score for score, _ in scored], most)
    (out / "tiles").mkdir(parents=True, exist_ok=True)
    jobs_of_tiles = (
        (folder.path, out, place, _source(part, n), part.split, tuple(folder.rounds), map_stride,
         dataset.masks.paths.get(part.ids[n]))
        for place, (part, n) in enumerate(candidates[index] for index in chosen)
    )  # fmt: skip
    tiles = list(run_jobs(_tiles_job, jobs_of_tiles, workers=workers))
    items = []
    for index, found in zip(chosen, tiles, strict=True):
        part, n = candidates[index]
        tags = tuple(name for name, there in zip(part.classes, part.labels.present[n], strict=True) if there)
        items.append(Item(part.ids[n], part.split, tags, tuple(found), *scored[index]))
    return items, len(candidates)


def write_tile(path: Path, picture: ByteArray, longer: int = TILE) -> None:
    """A JPEG of the picture, with so many pixels on its longer side at most."""
    image = Image.fromarray(picture)
    image.thumbnail((longer, longer), Image.Resampling.LANCZOS)
    with replacing(path) as temporary:
        image.save(temporary, format="JPEG", quality=QUALITY)


def _source(part: TaggedImages, n: int) -> tuple[Path, str]:
    return part.paths[n], part.ids[n]


def _chosen(values: Sequence[float | None], most: int) -> list[int]:
    if len(values) <= most:
        return list(range(len(values)))
    worst = sorted((value, index) for index, value in enumerate(values) if value is not None)[: most // 2]
    hardest = {index for _, index in worst}
    others = [index for index in range(len(values)) if index not in hardest]
    wanted = most - len(hardest)
    spread = {others[(2 * k + 1) * len(others) // (2 * wanted)] for k in range(wanted)}
    return sorted(hardest | spread)


def _masks(folder: RunFolder, split: str, id: str) -> list[tuple[str, Path]]:
    named = [
        ("pseudo label", folder.pseudo_label(id)),
        ("own label", folder.self_label(id)),
        ("segmenter", folder.prediction(split, id)),
        ("segmenter, CRF", folder.prediction(split, id, crf=True)),
    ]
    return [(name, path) for name, path in named if path.exists()]


def _score_job(run: Path, split: str, id: str, truth: Path | None, classes: Sequence[str]) -> tuple[float | None, str]:
    masks = _masks(RunFolder(run), split, id)
    if truth is None or not masks:
        return None, ""
    name, path = masks[-1]
    try:
        matrix = ConfusionMatrix(len(classes))
        matrix.add(read_mask(path), read_mask(truth))
    except SccamError:  # a mask that cannot be read is the data check's to tell of
        return None, ""
    labels = len(classes) + 1
    hit, true = np.diagonal(matrix.counts), matrix.counts.sum(axis=1)
    union = true + matrix.counts[:, :labels].sum(axis=0) - hit
    there = union > 0
    return (float((hit[there] / union[there]).mean()) if there.any() else None), name


def _tiles_job(
    run: Path,
    out: Path,
    place: int,
    source: tuple[Path, str],
    split: str,
    rounds: Sequence[int],
    map_stride: int,
    truth: Path | None,
) -> list[tuple[str, str]]:
    folder, (path, id) = RunFolder(run), source
    try:
        image = read_image(path)
    except SccamError:
        return []
    pictures: list[tuple[str, ByteArray]] = [("image", image)]
    for r in rounds:
        if (file := folder.activation_map(r, id)).exists():
            activation, size = load_map(file)
            pictures.append((f"map, round {r}", heat(image, upsample(activation.scores, size, map_stride))))
    if (file := folder.walked_map(id)).exists():
        walked, _ = walked_scores(file, 0, AFFINITY_STRIDE)
        pictures.append(("walked", heat(image, walked[1:] / max(walked.max(), 1e-6))))
    masks = [*_masks(folder, split, id), *([("truth", truth)] if truth is not None else [])]
    for name, mask in masks:
        try:
            pictures.append((name, coloured(image, read_mask(mask))))
        except (SccamError, ValueError):  # broken, or of another size
            continue
    tiles = []
    for turn, (name, picture) in enumerate(pictures):
        file_name = f"tiles/{place:05d}-{turn:02d}.jpg"
        write_tile(out / file_name, picture)
        tiles.append((name, file_name))
    return tiles
