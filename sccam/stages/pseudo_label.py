"""Pseudo labels: walked scores as probabilities, the dense CRF, one label index a pixel.

    p_c = s_c^gamma / sum over c' of s_c'^gamma,   label = argmax over c of CRF(p)_c

Source: Chang et al., CVPR 2020 §4.1 ("common practice": random walk, then dense CRF); no code or numbers of it are
published. The CRF runs on background + present classes.
Differs: gamma can sharpen. With 1, the default, the CRF sees what the walk gives, as psa's users feed it; one walk of
256 steps leaves scores so close to each other that the CRF's pairwise terms overrule them and small objects vanish. And
a pixel whose best posterior stays below `confidence` becomes 255, so that the segmenter need not learn it; 0 keeps
every pixel, as psa's label files do.

    symbol   name here         shape
    s        scores            [P+1 H W], background first
    gamma    gamma
    p        probabilities     [P+1 H W]
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sccam.stages.crf import CrfConfig
from sccam.structures import BACKGROUND, IGNORE, ByteArray, FloatArray, IntArray

SCORE_FLOOR = 1e-8  # keeps a pixel without any score from dividing by zero


@dataclass(frozen=True, slots=True)
class PseudoLabelConfig:
    """Settings of the pseudo labels."""

    use_crf: bool = True  # false: labels straight from the walked scores
    crf: CrfConfig = CrfConfig()  # psa's numbers
    pamr_steps: int = field(default=0, metadata={"min": 0})  # of pamr.py, before the CRF or in its place; 0: none
    sharpen: float = field(default=1.0, metadata={"min": 0.1})  # gamma
    confidence: float = field(default=0.0, metadata={"min": 0.0, "max": 1.0})  # posterior below which a pixel is 255


def sharpened(scores: FloatArray, gamma: float) -> FloatArray:
    """Scores [P+1 H W] as probabilities that sum to one over the first axis, each raised to `gamma` before."""
    powers = np.maximum(scores, SCORE_FLOOR) ** gamma
    return (powers / powers.sum(axis=0)).astype(np.float32)


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
