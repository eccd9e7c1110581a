"""Metrics: one confusion matrix over all images, and the scores read off it.

Source: PASCAL VOC segmentation; the confusion matrix of the authors' infer_cls.py.
Differs: the paper reports an F-score without code. Here F is the harmonic mean of mean precision and mean recall;
the mean of per-class F-scores cannot be meant, since it is bounded below what the paper's table shows.

    symbol   name here     shape
    n_ij     counts        [C+1 C+2]: true label i, predicted label j; the last column collects predicted 255
    IoU_i    iou           n_ii / (sum_j n_ij + sum_k n_ki - n_ii), pixels whose truth is 255 left out

A predicted 255 is a miss: it lowers recall and IoU of the true label and charges no other label.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sccam.errors import DataError, ShapeError
from sccam.structures import BACKGROUND, IGNORE, MAX_CLASSES, ActivationMap, ByteArray

BACKGROUND_NAME = "background"
EXAMPLES = 3  # names shown in a message


@dataclass(slots=True)
class ConfusionMatrix:
    """Pixel counts by true and predicted label, filled image by image in any order."""

    class_count: int  # C, without background
    counts: NDArray[np.int64] = field(init=False)  # [C+1 C+2]
    images: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.class_count + 1, self.class_count + 2), np.int64)

    def add(self, predicted: ByteArray, true: ByteArray) -> None:
        """Counts one image.

        Args:
            predicted: u8 [H W]; 255 is "no label", a miss.
            true: u8 [H W]; 255 is left out.

        Raises:
            ShapeError: the two differ in size.
            DataError: a label is neither 255 nor known.
        """
        if predicted.shape != true.shape:
            raise ShapeError(f"predicted mask has size {predicted.shape}, true mask {true.shape}; they must be equal")
        pairs = true.ravel().astype(np.int64) * 256 + predicted.ravel()
        joint = np.bincount(pairs, minlength=256 * 256).reshape(256, 256)
        self._check(joint.sum(axis=1), "true")
        self._check(joint.sum(axis=0), "predicted")
        labels = self.class_count + 1
        self.counts[:, :labels] += joint[:labels, :labels]
        self.counts[:, labels] += joint[:labels, IGNORE]
        self.images += 1

    def merge(self, other: ConfusionMatrix) -> None:
        """Adds the counts of another matrix over the same classes."""
        if other.class_count != self.class_count:
            raise ShapeError(f"matrices count {self.class_count} and {other.class_count} classes")
        self.counts += other.counts
        self.images += other.images

    def _check(self, pixels: NDArray[np.int64], kind: str) -> None:
        unknown = np.flatnonzero(pixels[self.class_count + 1 : IGNORE]) + self.class_count + 1
        if len(unknown):
            raise DataError(
                f"{kind} mask holds label {unknown[0]}, but there are {self.class_count} classes",
                why="the mask belongs to another set of classes, or is not an index mask",
            )


@dataclass(frozen=True, slots=True)
class Scores:
    """What a confusion matrix says, each in [0, 1]; None where the truth lacks the label."""

    miou: float | None  # mean over the labels in the truth, background included
    miou_without_background: float | None
    mean_precision: float | None
    mean_recall: float | None
    f_score: float | None  # harmonic mean of the two above
    pixel_accuracy: float | None
    iou: dict[str, float | None]  # by label name, background first
    precision: dict[str, float | None]
    recall: dict[str, float | None]
    images: int

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def scores(matrix: ConfusionMatrix, classes: Sequence[str]) -> Scores:
    """All metrics of `matrix`; means run over the labels present in the truth.

    Args:
        matrix: counts over all images.
        classes: C names, without background.

    A label of the truth that was never predicted has precision 0.
    """
    if len(classes) != matrix.class_count:
        raise ShapeError(f"{len(classes)} class names for a matrix of {matrix.class_count} classes")
    names = (BACKGROUND_NAME, *classes)
    hit = np.diagonal(matrix.counts).astype(float)
    true, predicted = matrix.counts.sum(axis=1), matrix.counts[:, : len(names)].sum(axis=0)
    present = true > 0
    iou = hit / np.maximum(true + predicted - hit, 1)
    precision = hit / np.maximum(predicted, 1)
    recall = hit / np.maximum(true, 1)

    def mean(values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> float | None:
        return float(values[chosen].mean()) if chosen.any() else None

    def by_name(values: NDArray[np.float64]) -> dict[str, float | None]:
        return {name: float(v) if there else None for name, v, there in zip(names, values, present, strict=True)}

    P, R = mean(precision, present), mean(recall, present)
    return Scores(
        miou=mean(iou, present),
        miou_without_background=mean(iou, present & (np.arange(len(names)) != BACKGROUND)),
        mean_precision=P,
        mean_recall=R,
        f_score=None if P is None or R is None else 2 * P * R / (P + R) if P + R > 0 else 0.0,
        pixel_accuracy=float(hit.sum() / true.sum()) if present.any() else None,
        iou=by_name(iou),
        precision=by_name(precision),
        recall=by_name(recall),
        images=matrix.images,
    )


def sweep(
    maps: Iterable[tuple[ActivationMap, ByteArray]], thresholds: Sequence[float], class_count: int
) -> list[ConfusionMatrix]:
    """One matrix for each threshold, the same as `seed_labels` followed by `add`, in one pass over the pixels.

    Args:
        maps: activation maps at full size, each with its true mask u8 [H W].
        thresholds: ascending, in [0, 1].
        class_count: C, without background.

    Raises:
        ShapeError: a map and its mask differ in size, or the thresholds do not ascend.

    The best of the list is an oracle: it has looked at the truth, and a table must say so.
    """
    levels = np.asarray(thresholds, np.float32)
    if (np.diff(levels) <= 0).any():
        raise ShapeError("thresholds must ascend")
    matrices = [ConfusionMatrix(class_count) for _ in levels]
    for activation, true in maps:
        if activation.scores.shape[1:] != true.shape:
            raise ShapeError(f"map has size {activation.scores.shape[1:]}, true mask {true.shape}; upsample the map")
        above = _pixels_above(activation, true, levels, class_count)  # [C+1 P T+1]
        pixels = np.bincount(true[true != IGNORE], minlength=class_count + 1)
        for k, matrix in enumerate(matrices):
            foreground = above[:, :, k + 1]  # its score exceeds threshold k
            matrix.counts[:, activation.classes + 1] += foreground
            matrix.counts[:, BACKGROUND] += pixels - foreground.sum(axis=1)
            matrix.images += 1
    return matrices


def evaluate_folders(
    predicted_dir: Path | str, true_dir: Path | str, classes: Sequence[str] | None = None
) -> dict[str, Any]:
    """Scores of a folder of index PNGs against another, as plain values: `miou`, `iou` by class name, `images`, …

    Args:
        predicted_dir, true_dir: masks of the same relative name are compared; the names that only one folder has are
            listed in `without_prediction` and `without_truth` and scored nowhere.
        classes: C names without background; None counts as many as occur and names them "label 1", …

    Raises:
        DataError: a folder is missing, nothing matches, or a mask and its prediction differ in size.
    """
    from sccam.data.masks import read_mask

    predicted, true = _masks_in(predicted_dir), _masks_in(true_dir)
    both = sorted(true.keys() & predicted.keys())
    if not both:
        raise DataError(
            f"no mask in one folder has its namesake in the other: predicted {_some(predicted)}; true {_some(true)}",
            where=f"{predicted_dir} and {true_dir}",
            fix="give two folders of PNG masks with equal names and equal subfolders",
        )
    class_count = MAX_CLASSES if classes is None else len(classes)
    matrix = ConfusionMatrix(class_count)
    for name in both:
        guess, truth = (read_mask(path, class_count=class_count) for path in (predicted[name], true[name]))
        if guess.shape != truth.shape:
            raise DataError(
                f"mask sizes differ: predicted {guess.shape}, true {truth.shape}",
                where=f"{predicted[name]} and {true[name]}",
                fix="write predictions at the size of the original image",
            )
        matrix.add(guess, truth)
    if classes is None:
        matrix = _without_empty_tail(matrix)
        classes = [f"label {label}" for label in range(1, matrix.class_count + 1)]
    return {
        **scores(matrix, classes).as_dict(),
        "without_prediction": sorted(true.keys() - predicted.keys()),
        "without_truth": sorted(predicted.keys() - true.keys()),
    }


def _pixels_above(
    activation: ActivationMap, true: ByteArray, levels: NDArray[np.float32], class_count: int
) -> NDArray[np.int64]:
    """[C+1 P T+1]: pixels by true label and winning class whose score exceeds at least so many of the levels."""
    known = true != IGNORE
    shape = (class_count + 1, len(activation.classes), len(levels) + 1)
    if known.any() and true[known].max() > class_count:
        raise DataError(f"true mask holds label {true[known].max()}, but there are {class_count} classes")
    if 0 in shape:
        return np.zeros(shape, np.int64)
    score = activation.scores[:, known]  # [P known pixels]
    exceeded = np.searchsorted(levels, score.max(axis=0), side="left")
    joint = np.ravel_multi_index((true[known], score.argmax(axis=0), exceeded), shape)
    counts = np.bincount(joint, minlength=int(np.prod(shape))).reshape(shape)
    return counts[..., ::-1].cumsum(axis=-1)[..., ::-1]


def _masks_in(folder: Path | str) -> dict[str, Path]:
    """Relative name without ending -> PNG file, in all subfolders; hidden files are left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("no such folder of masks", where=folder)
    found = {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() == ".png" and not path.name.startswith(".")
    }
    if not found:
        raise DataError("the folder holds no PNG mask", where=folder, fix="give the folder that holds the index PNGs")
    return found


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:EXAMPLES]) + (", …" if len(ordered) > EXAMPLES else "")


def _without_empty_tail(matrix: ConfusionMatrix) -> ConfusionMatrix:
    """The same counts with classes up to the highest label that occurs."""
    used = matrix.counts[:, : matrix.class_count + 1].sum(axis=0) + matrix.counts.sum(axis=1)
    kept = ConfusionMatrix(int(np.flatnonzero(used).max(initial=0)))
    labels = kept.class_count + 1
    kept.counts[:, :labels] = matrix.counts[:labels, :labels]
    kept.counts[:, labels] = matrix.counts[:labels, -1]
    kept.images = matrix.images
    return kept
