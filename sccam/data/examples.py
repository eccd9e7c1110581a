"""Which training images stand for a set, in the picture of a run."""

from __future__ import annotations

import numpy as np

from sccam.structures import Dataset

EXAMPLES = 6  # images


def example_rows(dataset: Dataset, most: int = EXAMPLES) -> list[int]:
    """A few images to look at, as rows of the training list.

    One with several tags first, then one of each class in the order of classes.
    """
    present = dataset.train.labels.present
    chosen = [int(np.argmax(present.sum(axis=1)))]
    for c in range(present.shape[1]):
        candidates = [int(n) for n in np.flatnonzero(present[:, c]) if int(n) not in chosen]
        chosen += candidates[:1]
    return chosen[:most]
