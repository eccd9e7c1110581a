"""Measures every stage of a run where true masks exist. No trainer reads a mask: only the data check, this file and
the overview picture do.

Maps and walked maps get three columns, always named: `fixed` (the configured threshold or exponent), `image_only`
(chosen from maps and colours, no mask seen) and `oracle` (the best of a sweep against the masks: not reachable in
practice). Each row names its stage, column, split, the list of ids with its checksum, and whether tags were given.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import read_arrays
from sccam.data.masks import read_mask
from sccam.runtime.labeler import load_map, walked_scores
from sccam.runtime.pool import run_jobs
from sccam.stages.evaluate import ConfusionMatrix, scores, sweep
from sccam.stages.walk import upsample
from sccam.structures import ActivationMap, ByteArray, TaggedImages, TrueMasks

Row = dict[str, Any]


class Measure:
    """Rows for one list of images.

    Args:
        images: the list; only those with a true mask are measured.
        masks: ground truth.
        workers: processes.
    """

    def __init__(self, images: TaggedImages, masks: TrueMasks, workers: int):
        self.images = images
        self.classes = masks.classes
        self.workers = workers
        self.masks = masks
        self.ids = tuple(id for id in images.ids if id in masks.paths)

    def maps(
        self, stage: str, path_of: Callable[[str], Path], stride: int, fixed: float, chosen: float, steps: int
    ) -> list[Row]:
        """The three rows of stored activation maps.

        Args:
            stride: [px per cell] of the maps.
            fixed, chosen: the two thresholds that no mask has seen.
            steps: thresholds of the oracle's sweep, evenly spread over (0, 1).
        """
        grid = np.arange(1, steps) / steps
        thresholds = sorted({*np.round(grid, 4).tolist(), fixed, chosen})
        jobs = ((path_of(id), self.masks.paths[id], stride, thresholds, len(self.classes)) for id in self.ids)
        matrices = self._merged(run_jobs(_sweep_job, jobs, workers=self.workers), len(thresholds))
        return self._three(stage, matrices, thresholds, fixed, chosen, "threshold")

    def walked(
        self, path_of: Callable[[str], Path], stride: int, alphas: Sequence[float], fixed: float, chosen: float
    ) -> list[Row]:
        """The three rows of stored walked maps, one background channel for each of `alphas`.

        Args:
            fixed, chosen: the two entries of `alphas` that no mask has seen.
        """
        jobs = ((path_of(id), self.masks.paths[id], stride, len(alphas), len(self.classes)) for id in self.ids)
        matrices = self._merged(run_jobs(_walked_job, jobs, workers=self.workers), len(alphas))
        return self._three("walk", matrices, list(alphas), fixed, chosen, "alpha")

    def labels(self, stage: str, path_of: Callable[[str], Path], *, tags_used: bool) -> Row:
        """The row of a folder of index PNGs."""
        jobs = ((path_of(id), self.masks.paths[id], len(self.classes)) for id in self.ids)
        (matrix,) = self._merged(([counts] for counts in run_jobs(_label_job, jobs, workers=self.workers)), 1)
        return self._row(stage, "labels", matrix, tags_used=tags_used)

    def _merged(self, results: Iterable[list[ConfusionMatrix]], count: int) -> list[ConfusionMatrix]:
        totals = [ConfusionMatrix(len(self.classes)) for _ in range(count)]
        for matrices in results:
            for total, matrix in zip(totals, matrices, strict=True):
                total.merge(matrix)
        return totals

    def _three(
        self, stage: str, matrices: list[ConfusionMatrix], values: list[float], fixed: float, chosen: float, name: str
    ) -> list[Row]:
        mious = [scores(matrix, self.classes).miou or 0.0 for matrix in matrices]
        best = int(np.argmax(mious))
        columns = {"fixed": values.index(fixed), "image_only": values.index(chosen), "oracle": best}
        rows = [
            {**self._row(stage, column, matrices[index], tags_used=True), name: values[index]}
            for column, index in columns.items()
        ]
        rows[-1]["curve"] = sorted([round(value, 4), round(miou, 5)] for value, miou in zip(values, mious, strict=True))
        return rows

    def _row(self, stage: str, column: str, matrix: ConfusionMatrix, *, tags_used: bool) -> Row:
        return {
            "stage": stage,
            "column": column,
            "split": self.images.split,
            "ids_sha256": ids_checksum(self.ids),
            "tags_used": tags_used,
            **scores(matrix, self.classes).as_dict(),
        }


def image_counts(
    row: Row, class_count: int, masks: Sequence[Path], files: Sequence[Path], stride: int, workers: int
) -> np.ndarray:
    """Pixel counts of every image for a row of scores.json, i64 [images C+1 C+2], as `ConfusionMatrix` has them.

    Args:
        row: of maps (with its threshold), of walked maps (with its alpha) or of labels.
        masks: ground truth of the images.
        files: the stored maps, walked maps or labels of the same images.
        stride: [px per cell] of stored maps.
    """
    pairs = zip(files, masks, strict=True)
    if "threshold" in row:
        jobs: Any = ((file, mask, stride, (row["threshold"],), class_count) for file, mask in pairs)
        found = [matrices[0] for matrices in run_jobs(_sweep_job, jobs, workers=workers)]
    elif "alpha" in row:
        jobs = ((file, mask, stride, row["alpha"], class_count) for file, mask in pairs)
        found = list(run_jobs(_walked_once_job, jobs, workers=workers))
    else:
        jobs = ((file, mask, class_count) for file, mask in pairs)
        found = list(run_jobs(_label_job, jobs, workers=workers))
    return np.stack([matrix.counts for matrix in found])


def ids_checksum(ids: Sequence[str]) -> str:
    """SHA-256 of the ids, one a line, in order."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()


def _sweep_job(
    map_path: Path, mask_path: Path, stride: int, thresholds: Sequence[float], class_count: int
) -> list[ConfusionMatrix]:
    activation, size = load_map(map_path)
    full = ActivationMap(upsample(activation.scores, size, stride), activation.classes)
    return sweep([(full, read_mask(mask_path, class_count=class_count))], thresholds, class_count)


def _walked_job(path: Path, mask_path: Path, stride: int, alphas: int, class_count: int) -> list[ConfusionMatrix]:
    true = read_mask(mask_path, class_count=class_count)
    return [_walked_matrix(path, true, stride, index, class_count) for index in range(alphas)]


def _walked_once_job(path: Path, mask_path: Path, stride: int, alpha: float, class_count: int) -> ConfusionMatrix:
    index = int(np.argmin(np.abs(read_arrays(path)["alphas"] - alpha)))
    return _walked_matrix(path, read_mask(mask_path, class_count=class_count), stride, index, class_count)


def _walked_matrix(path: Path, true: ByteArray, stride: int, alpha: int, class_count: int) -> ConfusionMatrix:
    """Of one walked map with the background of number `alpha`."""
    walked, classes = walked_scores(path, alpha, stride)
    matrix = ConfusionMatrix(class_count)
    matrix.add(np.concatenate([[0], classes + 1]).astype(np.uint8)[walked.argmax(axis=0)], true)
    return matrix


def _label_job(path: Path, mask_path: Path, class_count: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(class_count)
    matrix.add(read_mask(path, class_count=class_count), read_mask(mask_path, class_count=class_count))
    return matrix
