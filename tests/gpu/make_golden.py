"""Writes crf_golden.npz: posteriors of pydensecrf, for machines that cannot install it.

    python -m tests.gpu.make_golden

tests/runtime/test_cuda_crf.py compares the file with the library wherever that is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sccam.stages.crf import DEEPLAB, PSA, CrfConfig, dense_crf
from tests.runtime.cuda_cases import crf_scores, photo

GOLDEN = Path(__file__).parent / "crf_golden.npz"
SOFT = CrfConfig(gaussian_compat=0.4, bilateral_compat=0.6)
CASES: dict[str, tuple[tuple[int, int], int, CrfConfig]] = {
    "two": ((37, 43), 2, SOFT),
    "three": ((30, 41), 3, CrfConfig(iterations=3)),
    "psa": ((33, 35), 4, PSA),
    "deeplab": ((20, 23), 21, DEEPLAB),
}
"""name -> (size, labels, config)"""


def golden_input(name: str) -> tuple[np.ndarray, np.ndarray, CrfConfig]:
    """Image, scores in steps of 1/255, config."""
    (height, width), labels, config = CASES[name]
    image = photo(height, width, seed=len(name))
    scores = 0.4 * crf_scores(height, width, labels, seed=len(name))
    scores[image[..., 0] // 64 % labels, np.arange(height)[:, None], np.arange(width)] += 0.5
    return image, (np.round(scores * 255) / 255).astype(np.float32), config


def main() -> None:
    """Asks the library and writes the file."""
    arrays: dict[str, Any] = {}
    for name in CASES:
        image, scores, config = golden_input(name)
        arrays |= {
            f"{name}_image": image,
            f"{name}_scores": np.round(scores * 255).astype(np.uint8),
            f"{name}_posterior": dense_crf(image, scores, config),
        }
    np.savez_compressed(GOLDEN, **arrays)


def read_golden(name: str) -> tuple[np.ndarray, np.ndarray, CrfConfig, np.ndarray]:
    """Image, scores, config and posterior of a case, as stored."""
    with np.load(GOLDEN) as file:
        scores = (file[f"{name}_scores"] / 255).astype(np.float32)
        return file[f"{name}_image"], scores, CASES[name][2], file[f"{name}_posterior"]


if __name__ == "__main__":
    main()
