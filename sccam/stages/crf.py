"""Dense CRF: label posteriors that follow the colours of the image.

Source: Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs", NeurIPS 2011; the numbers of
`crf_inference` in PSA (which SC-CAM shares), of IRN's `crf_inference_label` and of DeepLab-v2's test.
Differs: nothing for PSA and DeepLab, which call pydensecrf: the same sums are written out here. IRN takes hard labels
for its unary (score 0.7 for the label, the rest shared), so its preset gives only the numbers of the kernels.

    symbol   name here                          shape
    phi      unary = -log score                 [HW c]
    k1       smoothness, Gaussian of            positions
    k2       appearance, Gaussian of            positions and colours
    D        diagonal of K 1                    [HW]
    Q        posterior                          [c H W], sums to one over c

Q = softmax(-phi), then `iterations` times Q = softmax(-phi + sum_k w_k D^-1/2 K_k D^-1/2 Q). A pixel's message to
itself is kept. The rows of the table `crf` (sccam/runtime/crf_*.py) give the same numbers faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sccam.errors import NumericError, ShapeError
from sccam.stages.permutohedral import Lattice, permutohedral_lattice
from sccam.structures import ByteArray, FloatArray

SCORE_FLOOR = 1e-5  # pydensecrf.utils.unary_from_softmax; keeps the logarithm finite
NORM_FLOOR = 1e-20  # densecrf, pairwise.cpp; keeps the division finite


@dataclass(frozen=True, slots=True)
class CrfConfig:
    """Settings of the dense CRF; the defaults are PSA's, made for photos of about 500 x 375 pixels."""

    iterations: int = field(default=10, metadata={"min": 0})
    """Mean-field updates. All three authors: 10."""

    gaussian_sxy: float = field(default=3.0, metadata={"min": 1e-3})
    """Range of the smoothness kernel [px]."""

    gaussian_compat: float = field(default=3.0, metadata={"min": 0.0})
    """Weight of the smoothness kernel."""

    bilateral_sxy: float = field(default=80.0, metadata={"min": 1e-3})
    """Range of the appearance kernel [px]; smaller images want a smaller one."""

    bilateral_srgb: float = field(default=13.0, metadata={"min": 1e-3})
    """Range of the appearance kernel in colour [grey levels of 255]."""

    bilateral_compat: float = field(default=10.0, metadata={"min": 0.0})
    """Weight of the appearance kernel."""


PSA = CrfConfig()
IRN = CrfConfig(bilateral_sxy=50.0, bilateral_srgb=5.0)
DEEPLAB = CrfConfig(gaussian_sxy=1.0, gaussian_compat=3.0, bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_compat=4.0)
PRESETS = {"psa": PSA, "irn": IRN, "deeplab": DEEPLAB}


@dataclass(frozen=True, slots=True)
class Kernel:
    """One pairwise kernel: weight * D^-1/2 K D^-1/2."""

    lattice: Lattice
    scale: FloatArray  # D^-1/2, [HW 1]
    weight: float

    def message(self, posterior: FloatArray) -> FloatArray:
        """What every pixel hears from all pixels, f32 [HW c]."""
        return np.float32(self.weight) * self.scale * self.lattice.filter(self.scale * posterior)


def dense_crf(image: ByteArray, scores: FloatArray, config: CrfConfig = PSA) -> FloatArray:
    """Posterior f32 [c H W]: non-negative, sums to one over the labels of each pixel.

    Args:
        image: u8 [H W 3] RGB, as read (not mean-subtracted).
        scores: [c H W] in [0, 1], background first; they need not sum to one.
        config: kernels and iterations.

    Raises:
        ShapeError: image and scores differ in size, the image is not u8 RGB, or a kernel's range is too small for it.
        NumericError: a score is NaN or infinite.

    Source: PSA tool/imutils.py, crf_inference.
    """
    check_inputs([image], [[scores]])
    return mean_field(pairwise_kernels(image, config), scores, config)


def check_inputs(images: Sequence[ByteArray], scores: Sequence[Sequence[FloatArray]]) -> None:
    """Refuses what no row of the table `crf` can work on.

    Args:
        images: each u8 [H W 3].
        scores: for each image any number of unaries, each [c H W].
    """
    if len(images) != len(scores):
        raise ShapeError(f"there are {len(images)} images, but scores for {len(scores)}; give one list for each image")
    for image, unaries in zip(images, scores, strict=True):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ShapeError(f"image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
        if image.size == 0:
            raise ShapeError(f"image has shape {image.shape}; a CRF needs at least one pixel")
        for unary in unaries:
            if unary.ndim != 3 or unary.shape[1:] != image.shape[:2]:
                raise ShapeError(
                    f"scores have shape {unary.shape}, the image {image.shape[:2]}; upsample the scores first"
                )
            if len(unary) == 0:
                raise ShapeError("scores have no label; give the background's at least")
            if not (np.isfinite(unary.min()) and np.isfinite(unary.max())):  # NaN is minimum and maximum, too
                raise NumericError("scores for the CRF hold NaN or infinity", fix="check the maps before this stage")


def pairwise_kernels(image: ByteArray, config: CrfConfig) -> tuple[Kernel, Kernel]:
    """Smoothness and appearance of one image; they do not depend on the scores."""
    height, width, _ = image.shape
    rows, columns = np.indices((height, width), np.float32).reshape(2, -1)
    positions = np.stack([columns, rows])
    colours = image.reshape(-1, 3).T.astype(np.float32)
    appearance = [positions / np.float32(config.bilateral_sxy), colours / np.float32(config.bilateral_srgb)]
    return (
        _normalised(positions / np.float32(config.gaussian_sxy), config.gaussian_compat),
        _normalised(np.concatenate(appearance), config.bilateral_compat),
    )


def mean_field(kernels: Sequence[Kernel], scores: FloatArray, config: CrfConfig) -> FloatArray:
    """Posterior f32 [c H W] of scores [c H W] under some kernels."""
    unary = -np.log(np.clip(scores.astype(np.float32), SCORE_FLOOR, 1.0)).reshape(len(scores), -1).T
    posterior = _softmax(-unary)
    for _ in range(config.iterations):
        posterior = _softmax(sum((kernel.message(posterior) for kernel in kernels), start=-unary))
    return np.ascontiguousarray(posterior.T).reshape(scores.shape)


def _normalised(features: FloatArray, weight: float) -> Kernel:
    lattice = permutohedral_lattice(features)
    row_sums = lattice.filter(np.ones((features.shape[1], 1), np.float32))
    return Kernel(lattice, 1 / np.sqrt(row_sums + np.float32(NORM_FLOOR)), weight)


def _softmax(logits: FloatArray) -> FloatArray:
    """Over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
