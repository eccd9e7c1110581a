"""How long to walk: the number of steps after which the labels tell an image's colours apart best.

    J(t) = mean over images of  sum over labels of n |c - m|^2  /  sum over pixels of |I - m|^2

Source: ours. PSA walks 256 steps for every image of VOC; on a coarser grid the same number blurs small things away, and
a number searched on masks would use what the weakly supervised setting does not have. J(t) is the merit `contrast` of
threshold.py for labels of all classes instead of two regions. The candidates are the powers that PSA's squarings of T
pass last, so trying all of them takes no more steps than the longest.

    symbol   name here   shape
    t        steps       T^t: 256, 128, 64, 32, 16 where `walk.steps` is 256 and `walk.halvings` 4
    I        image       u8 [H W 3]
    c, n     means and numbers of the pixels of a label
    m        mean colour of the image
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sccam.structures import ByteArray, IntArray


def region_contrast(image: ByteArray, labels: IntArray) -> float:
    """Share of the image's colour variance that lies between its labels; 0 for an image of one colour.

    Args:
        image: u8 [H W 3].
        labels: [H W], any integers from 0.
    """
    regions = np.unique(labels, return_inverse=True)[1].ravel()
    colours = image.reshape(-1, image.shape[-1]).astype(np.float64)
    colours -= colours.mean(axis=0)
    whole = float(np.square(colours).sum())
    if whole == 0:
        return 0.0
    totals = np.stack([np.bincount(regions, channel) for channel in colours.T])  # [3 labels]
    return float((np.square(totals) / np.bincount(regions)).sum() / whole)


def best_length(steps: Sequence[int], merits: Sequence[Sequence[float]]) -> tuple[int, list[float]]:
    """The number of steps with the largest mean merit, the longest of equal ones, and the means.

    Args:
        steps: ascending.
        merits: of each image, one for each number of steps; without any image the longest walk is taken.
    """
    if not merits:
        return steps[-1], [0.0] * len(steps)
    means = np.mean(np.asarray(merits, np.float64), axis=0)
    best = len(steps) - 1 - int(np.argmax(means[::-1]))
    return steps[best], means.tolist()
