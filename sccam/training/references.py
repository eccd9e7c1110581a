"""What the figures of a run are held against: the least that anything should reach, and the most that this network can.

    all background     every pixel is background
    centre prior       every pixel of an ellipse in the middle of the image is its tagged class, the rest background
    supervised         the run's segmenter, trained on the true masks of the training images: the ceiling

The supervised network is the one trainer that is given masks. It is a run of its own, which says so in run.json and
scores.json, and nothing of it can be taken by another run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sccam import config as toml
from sccam.artifacts import RunFolder, read_json, write_json, write_text
from sccam.data.masks import mask_size, read_mask, write_mask
from sccam.recipe import RunConfig
from sccam.stages.evaluate import ConfusionMatrix
from sccam.stop import StopRequest
from sccam.structures import ByteArray, Dataset, TaggedImages
from sccam.training.context import Reporter, RunContext
from sccam.training.data_check import check_data
from sccam.training.scores import rows_without_tags
from sccam.training.segmenter import predict, train_segmenter

SUPERVISION = "true masks of the training images: a ceiling, not a result"
CENTRE = 0.5  # of the image's area inside the ellipse


def all_background(images: TaggedImages, dataset: Dataset) -> np.ndarray:
    """Pixel counts of every measured image, i64 [images C+1 C+2]."""
    return _counts(images, dataset, lambda n, size: np.zeros(size, np.uint8))


def centre_prior(images: TaggedImages, dataset: Dataset) -> np.ndarray:
    """As above; of several tags each gets a vertical share of the ellipse, in their order."""

    def label(n: int, size: tuple[int, int]) -> ByteArray:
        classes = np.flatnonzero(images.labels.present[n]) + 1
        inside = ellipse(size)
        if not len(classes):
            return np.zeros(size, np.uint8)
        columns = np.flatnonzero(inside.any(axis=0))
        share = np.clip((np.arange(size[1]) - columns[0]) * len(classes) // len(columns), 0, len(classes) - 1)
        return np.where(inside, classes[share][None], 0).astype(np.uint8)

    return _counts(images, dataset, label)


def ellipse(size: tuple[int, int]) -> np.ndarray:
    """Pixels of the ellipse that has the image's proportions and `CENTRE` of its area [H W]."""
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in size)
    return (y[:, None] ** 2 + x[None] ** 2) * np.pi <= CENTRE


def _counts(images: TaggedImages, dataset: Dataset, label) -> np.ndarray:  # type: ignore[no-untyped-def]
    found = []
    for n, id in enumerate(images.ids):
        if id in dataset.masks.paths:
            path = dataset.masks.paths[id]
            matrix = ConfusionMatrix(len(dataset.classes))
            matrix.add(label(n, mask_size(path)), read_mask(path))
            found.append(matrix.counts)
    return np.stack(found)


def train_supervised(dataset: Dataset, config: RunConfig, out: Path, reporter: Reporter) -> None:
    """The ceiling of a configuration: a run folder with a segmenter, its masks and its rows of scores.json.

    Only training images with a mask are learned from. A folder that was left half done is gone on with.
    """
    ids = [id for id in dataset.train.ids if id in dataset.masks.paths]
    with RunFolder(out) as folder, StopRequest().listening() as stop:
        if folder.state().get("status") == "finished":
            return
        folder.update(schema=0, status="running", supervision=SUPERVISION, finished=folder.state().get("finished", {}))
        if not (folder / "config.toml").exists():
            write_text(folder / "config.toml", toml.dump(config))
        run = RunContext(dataset, config, folder, reporter, stop)
        run.train_images = dataset.train.only(ids)
        run.stage("data", lambda: check_data(run))
        for id in ids:
            if not folder.pseudo_label(id).exists():
                write_mask(folder.pseudo_label(id), read_mask(dataset.masks.paths[id]))
        run.stage("segment/train", lambda: train_segmenter(run))
        run.stage("segment/predict", lambda: predict(run))
        rows = [{**row, "supervision": SUPERVISION} for row in rows_without_tags(run)]
        write_json(folder / "scores.json", {"rows": rows, "supervision": SUPERVISION, "seed": config.run.seed})
        folder.update(status="finished")


def supervised_rows(out: Path) -> list[dict[str, object]]:
    """Of a finished ceiling."""
    return list(read_json(out / "scores.json")["rows"])
