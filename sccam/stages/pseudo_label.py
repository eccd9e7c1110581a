"""Pseudo labels: walked scores, sharpened by the dense CRF, one label index a pixel.

Source: Chang et al., CVPR 2020 §4.1 ("common practice": random walk, then dense CRF); no code or numbers of it are
published. The CRF runs on background + present classes with the parameters of crf.py.
Differs: a pixel whose best posterior stays below `confidence` becomes 255, so that the segmenter need not learn it;
0 keeps every pixel, as psa's label files do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sccam.structures import BACKGROUND, IGNORE, ByteArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True)
class PseudoLabelConfig:
    """Settings of the pseudo labels."""

    confidence: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})  # posterior below which a pixel is 255
    crf: bool = True  # false: labels straight from the walked scores


def label_index(posterior: FloatArray, classes: IntArray, confidence: float) -> ByteArray:
    """Label of every pixel: 0 background, c + 1 class c, 255 where the best posterior is below `confidence`.

    Args:
        posterior: [P+1 H W], background first, sums to one over its first axis.
        classes: [P] the class of each further channel.
    """
    label_of_channel = np.concatenate([[BACKGROUND], classes + 1]).astype(np.uint8)
    index = label_of_channel[posterior.argmax(axis=0)]
    index[posterior.max(axis=0) < confidence] = IGNORE
    return index
