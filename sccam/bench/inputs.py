"""What suites run on: photographs of a folder or drawn ones, and scores like those of a classifier."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from sccam.data.images import IMAGE_SUFFIXES, read_image
from sccam.data.sample import draw_sample
from sccam.data.transforms import resize
from sccam.errors import DataError
from sccam.structures import ByteArray, FloatArray

SIZE = (375, 500)  # [px] the usual photo of VOC 2012
MOST = 20  # images


def photographs(folder: Path | None, most: int = MOST) -> list[ByteArray]:
    """Up to `most` images u8 [H W 3], spread evenly over a folder; drawn ones without a folder.

    Raises:
        DataError: the folder has no images.
    """
    if folder is None:
        with tempfile.TemporaryDirectory() as drawn:
            draw_sample(Path(drawn, "sample"), images=most, sizes=(320, 512))
            return photographs(Path(drawn, "sample", "images"), most)
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        raise DataError("no images", where=folder, fix="give a folder of photographs, or none to use drawn ones")
    return [read_image(path) for path in found[:: max(1, len(found) // most)][:most]]


def of_size(images: Sequence[ByteArray], size: tuple[int, int] = SIZE) -> list[ByteArray]:
    """All images at one size."""
    return [resize(image, size) for image in images]


def class_scores(image: ByteArray, labels: int, seed: int) -> FloatArray:
    """Scores f32 [labels H W] that sum to one: blurred noise and the image's own colours, unsure at the borders."""
    rng = np.random.default_rng(seed)
    height, width = image.shape[:2]
    noise = gaussian_filter(rng.normal(size=(labels, height // 8 + 1, width // 8 + 1)), (0, 3, 3))
    smooth = np.kron(noise / noise.std(), np.ones((8, 8)))[:, :height, :width]
    colours = np.tensordot(rng.normal(size=(labels, 3)), image / 255.0 - 0.5, axes=(1, 2))
    logits = gaussian_filter(1.5 * smooth + 2 * colours, (0, 2, 2))
    weights = np.exp(logits - logits.max(axis=0))
    return (weights / weights.sum(axis=0)).astype(np.float32)


def label_map(image: ByteArray, labels: int, seed: int) -> ByteArray:
    """The likeliest of `class_scores`, u8 [H W]: regions with borders like those of a segmenter."""
    return class_scores(image, labels, seed).argmax(axis=0).astype(np.uint8)
