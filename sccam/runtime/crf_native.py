"""Dense CRF by the compiled kernels: all unaries of an image on one lattice, images on threads.

A row of the table `crf`: what it computes is written out in sccam/stages/crf.py, the kernel is native/crf.h.
For one number of threads repeats agree to the bit, and an image's posteriors do not depend on the rest of the batch.
Another number of threads, up to MOST_PARTS, splits the image into other parts, so sums round differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from sccam.runtime import native
from sccam.stages.crf import PSA, SCORE_FLOOR, CrfConfig, check_inputs
from sccam.structures import ByteArray, FloatArray

MOST_PARTS = 4  # of an image, each with values at the vertices of its own; more threads need more images


def dense_crfs(
    images: Sequence[ByteArray],
    scores: Sequence[Sequence[FloatArray]],
    config: CrfConfig = PSA,
    *,
    threads: int = 0,
    instruction_set: str | None = None,
) -> list[list[FloatArray]]:
    """Posteriors f32 [c H W], for each image one for each of its unaries.

    Args:
        images: each u8 [H W 3] RGB.
        scores: for each image its unaries, each [c H W] in [0, 1] with its own number of labels c.
        config: kernels and iterations.
        threads: 0 for all cores. Up to MOST_PARTS of them work on one image; with more, several images at once.
        instruction_set: one of `native.available()`; the best by default.

    Raises:
        ShapeError, NumericError: as `sccam.stages.crf.dense_crf`.
        BackendUnavailable: the kernels are not compiled.
    """
    check_inputs(images, scores)
    native.library(instruction_set)  # so that an empty batch complains, too
    threads = threads if threads > 0 else native.thread_count()
    parts = min(threads, MOST_PARTS)  # threads of one image: together they stay within the cache longer than apart
    images_at_once = max(1, min(threads // parts, len(images)))

    def posteriors(image: ByteArray, unaries: Sequence[FloatArray]) -> list[FloatArray]:
        return _dense_crf(image, unaries, config, parts, instruction_set) if unaries else []

    if images_at_once == 1:
        return [posteriors(image, unaries) for image, unaries in zip(images, scores, strict=True)]
    with ThreadPoolExecutor(images_at_once) as pool:  # a kernel runs without Python's lock
        return list(pool.map(posteriors, images, scores))


def _dense_crf(
    image: ByteArray,
    unaries: Sequence[FloatArray],
    config: CrfConfig,
    parts: int,
    instruction_set: str | None,
) -> list[FloatArray]:
    inputs = [np.ascontiguousarray(unary, np.float32) for unary in unaries]
    outputs = [np.empty(unary.shape, np.float32) for unary in unaries]
    native.call(
        "sccam_dense_crf",
        np.ascontiguousarray(image),
        *image.shape[:2],
        len(inputs),
        np.array([len(unary) for unary in inputs], np.int64),
        np.array([unary.ctypes.data for unary in inputs], np.uintp),
        np.array([output.ctypes.data for output in outputs], np.uintp),
        SCORE_FLOOR,
        config.iterations,
        float(config.gaussian_sxy),
        float(config.gaussian_compat),
        float(config.bilateral_sxy),
        float(config.bilateral_srgb),
        float(config.bilateral_compat),
        parts,
        parts,  # threads
        name=instruction_set,
    )
    return outputs
