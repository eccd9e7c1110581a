"""Which classes an image shows, known beside its pixels: from a tag file, or as the classifier predicts them.

A segmenter's labels gain by that. Its probabilities are multiplied by those of the tags, and then belong to an image
that shows what its tags say:

    p(pixel is c | image)  ~  p_segmenter(c) p(image shows c)        background: p = 1

With given tags the second factor is 1 or 0, with predicted ones the sigmoid of the classifier's score.
Source: Pinheiro and Collobert, From Image-level to Pixel-level Labeling, CVPR 2015, whose prior of the image it is.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from sccam.data.tags import AsWritten, read_tag_file, with_known_tags
from sccam.errors import DataError, NumericError
from sccam.runtime.sources import Source
from sccam.structures import FloatArray, IntArray

PREDICTED: Final = "predicted"  # in the place of a tag file
IMPOSSIBLE = -1e4  # a logarithm of 0 that stays finite between cells


class Tags:
    """The classes of each image of a tag file.

    Args:
        path: a CSV or JSON file as for training; names are those of the images, with or without folders or suffix.
        classes: of the run.

    Raises:
        DataError: with the line; an unknown tag, an image listed twice.
    """

    def __init__(self, path: Path, classes: tuple[str, ...]):
        column = {name: c for c, name in enumerate(classes)}
        self.path = path
        self._classes: dict[str, IntArray] = {}
        for row in read_tag_file(path, AsWritten()):
            tags = with_known_tags(row, classes, path, allow_negative=True).tags
            self._classes[row.id] = np.array(sorted({column[tag] for tag in tags}), np.int32)

    def of(self, source: Source) -> IntArray:
        """[P] ascending.

        Raises:
            DataError: the file has no line for the image.
        """
        inside = source.name + source.path.suffix
        parts = PurePosixPath(source.path.as_posix()).parts
        below = ["/".join(parts[n:]) for n in range(len(parts))]  # the file's name with fewer and fewer folders
        for name in (inside, *below):
            for form in (name, name.removesuffix(source.path.suffix)):
                if form in self._classes:
                    return self._classes[form]
        raise DataError(f"no tags for {inside!r}", where=self.path, fix="add a line: IMAGE,TAGS")


def predicted(scores: FloatArray) -> IntArray:
    """Classes whose probability, the sigmoid of the classifier's score [C], is above one half.

    Raises:
        NumericError: scores that are no numbers.
    """
    if not np.isfinite(scores).all():
        raise NumericError("the classifier gave NaN or infinity", fix="use fp32, or another file")
    return np.flatnonzero(scores > 0).astype(np.int32)


def given_prior(classes: IntArray, count: int) -> FloatArray:
    """ln p(image shows c) [C+1], background first, of an image that shows these classes of `count`, and no others."""
    prior = np.full(count + 1, IMPOSSIBLE, np.float32)
    prior[0], prior[classes + 1] = 0, 0
    return prior


def predicted_prior(scores: FloatArray) -> FloatArray:
    """ln p(image shows c) [C+1], background first, from the classifier's scores [C]."""
    return np.concatenate([[0], -np.logaddexp(0, -scores)]).astype(np.float32)
