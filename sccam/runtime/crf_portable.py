"""Dense CRF in NumPy and SciPy, where no compiler was: the paper form of sccam/stages/crf.py on a batch.

A row of the table `crf`. The kernels of an image are built once for all its unaries.
"""

from __future__ import annotations

from collections.abc import Sequence

from sccam.stages.crf import PSA, CrfConfig, check_inputs, mean_field, pairwise_kernels
from sccam.structures import ByteArray, FloatArray


def dense_crfs(
    images: Sequence[ByteArray], scores: Sequence[Sequence[FloatArray]], config: CrfConfig = PSA, *, threads: int = 0
) -> list[list[FloatArray]]:
    """Posteriors f32 [c H W], for each image one for each of its unaries.

    Args:
        images: each u8 [H W 3] RGB.
        scores: for each image its unaries, each [c H W] in [0, 1] with its own number of labels c.
        config: kernels and iterations.
        threads: not used; there is one.

    Raises:
        ShapeError, NumericError: as `sccam.stages.crf.dense_crf`.
    """
    check_inputs(images, scores)
    posteriors = []
    for image, unaries in zip(images, scores, strict=True):
        kernels = pairwise_kernels(image, config)
        posteriors.append([mean_field(kernels, unary, config) for unary in unaries])
    return posteriors
