"""Dense CRF: label posteriors that follow the colours of the image.

Source: Krähenbühl & Koltun, "Efficient Inference in Fully Connected CRFs", NeurIPS 2011; the numbers of
`crf_inference` in PSA (which SC-CAM shares), of IRN's `crf_inference_label` and of DeepLab-v2's test.
Differs: nothing for PSA and DeepLab; the pydensecrf library does the inference. IRN takes hard labels for its unary
(score 0.7 for the label, the rest shared), so its preset gives only the numbers of the kernels.

    symbol   name here                 shape
    phi      unary = -log score        [c HW]
    k1       Gaussian, smoothness      positions
    k2       bilateral, appearance     positions and colours
    Q        posterior                 [c H W], sums to one over c

Q0 = softmax(-phi), then `iterations` times Q = softmax(-phi + w1 K1 Q + w2 K2 Q), kernels normalised on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sccam.errors import BackendUnavailable, NumericError, ShapeError
from sccam.structures import ByteArray, FloatArray

SCORE_FLOOR = 1e-5  # pydensecrf.utils.unary_from_softmax; keeps the logarithm finite


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


def dense_crf(image: ByteArray, scores: FloatArray, config: CrfConfig = PSA) -> FloatArray:
    """Posterior f32 [c H W]: non-negative, sums to one over the labels of each pixel.

    Args:
        image: u8 [H W 3] RGB, as read (not mean-subtracted).
        scores: [c H W] in [0, 1], background first; they need not sum to one.
        config: kernels and iterations.

    Raises:
        ShapeError: image and scores differ in size, or the image is not u8 RGB.
        NumericError: a score is NaN or infinite.
        BackendUnavailable: pydensecrf is not installed.

    Source: PSA tool/imutils.py, crf_inference.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ShapeError(f"image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)")
    if scores.ndim != 3 or scores.shape[1:] != image.shape[:2]:
        raise ShapeError(f"scores have shape {scores.shape}, the image {image.shape[:2]}; upsample the scores first")
    if not np.isfinite(scores).all():
        raise NumericError("scores for the CRF hold NaN or infinity", fix="check the maps before this stage")
    labels, height, width = scores.shape
    if labels == 1:
        return np.ones(scores.shape, np.float32)  # nothing to choose from

    unary = -np.log(np.clip(scores, SCORE_FLOOR, 1.0))
    model = _library().DenseCRF2D(width, height, labels)
    model.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), dtype=np.float32))
    model.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=config.bilateral_sxy,
        srgb=config.bilateral_srgb,
        rgbim=np.ascontiguousarray(image),
        compat=config.bilateral_compat,
    )
    return np.array(model.inference(config.iterations), np.float32).reshape(scores.shape)


def _library() -> Any:
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise BackendUnavailable(
            f"the CRF needs pydensecrf: {error}", where="crf = pydensecrf", fix='pip install "sccam[crf]"'
        ) from error
    return pydensecrf.densecrf
