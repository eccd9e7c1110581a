"""Dense CRF by the pydensecrf library: one image and one unary after the other, on one core.

A row of the table `crf`: what it computes is written out in sccam/stages/crf.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sccam.errors import BackendUnavailable
from sccam.stages.crf import PSA, SCORE_FLOOR, CrfConfig, check_inputs
from sccam.structures import ByteArray, FloatArray


def dense_crfs(
    images: Sequence[ByteArray], scores: Sequence[Sequence[FloatArray]], config: CrfConfig = PSA, *, threads: int = 0
) -> list[list[FloatArray]]:
    """Posteriors f32 [c H W], for each image one for each of its unaries.

    Args:
        images: each u8 [H W 3] RGB.
        scores: for each image its unaries, each [c H W] in [0, 1] with its own number of labels c.
        config: kernels and iterations.
        threads: not used; the library has one.

    Raises:
        ShapeError, NumericError: as `sccam.stages.crf.check_inputs`.
        BackendUnavailable: pydensecrf is not installed.
    """
    check_inputs(images, scores)
    library = _library()
    return [
        [_posterior(library, image, unary, config) for unary in unaries]
        for image, unaries in zip(images, scores, strict=True)
    ]


def _posterior(library: Any, image: ByteArray, scores: FloatArray, config: CrfConfig) -> FloatArray:
    labels, height, width = scores.shape
    if labels == 1:
        return np.ones(scores.shape, np.float32)  # nothing to choose from
    unary = -np.log(np.clip(scores, SCORE_FLOOR, 1.0))
    model = library.DenseCRF2D(width, height, labels)
    model.setUnaryEnergy(np.ascontiguousarray(unary.reshape(labels, -1), dtype=np.float32))
    model.addPairwiseGaussian(sxy=config.gaussian_sxy, compat=config.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=config.bilateral_sxy,
        srgb=config.bilateral_srgb,
        rgbim=np.array(image, order="C"),  # a copy: the library refuses memory that is read-only
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
