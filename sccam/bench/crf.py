"""Suite `crf`: the dense CRF of PSA on images of 375 x 500, against pydensecrf, which is also the judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from sccam.bench.harness import Contestant, Result, compare, largest_difference
from sccam.bench.inputs import class_scores, of_size
from sccam.runtime import backends
from sccam.stages.crf import PSA
from sccam.structures import ByteArray, FloatArray

LIMIT = 1e-4  # of |difference| of the posterior
LABELS = (21, 3, 2)
WIDTHS = (500, 499, 498, 497)  # with 375 rows: pixels modulo 4 are 0, 1, 2, 3
PROCESSES = 2
BATCH = 4  # images at once, where images are counted and not the time of one

Scores = list[FloatArray]


def run(*, quick: bool, images: Sequence[ByteArray]) -> Iterator[list[Result]]:
    """One image with 21 labels, one with two unaries of 3, a batch; then agreement on every image and label count."""
    if error := backends.missing("pydensecrf"):
        raise error
    photos = of_size(images)
    yield _compared("one image, 21 labels", photos, [[class_scores(p, 21, n)] for n, p in enumerate(photos)], quick)
    two = [[class_scores(p, 3, 2 * n + k) for k in range(2)] for n, p in enumerate(photos)]
    yield _compared("one image, 2 unaries of 3 labels", photos, two, quick)
    for labels in LABELS[:2]:
        scores = [[class_scores(photo, labels, n)] for n, photo in enumerate(photos)]
        yield _batches(f"batch of {BATCH} images, {labels} labels", photos, scores, quick)
    for labels in LABELS:
        yield _agreement(images[: 4 if quick else len(images)], labels)


def _row(name: str) -> Callable[[Sequence[ByteArray], Sequence[Scores]], list[Scores]]:
    crf = backends.row("crf", name)
    return lambda images, scores: crf(images, scores, PSA)


def _rows() -> list[str]:
    return [name for name in backends.TABLE["crf"] if backends.missing(name) is None]


def _compared(case: str, photos: list[ByteArray], scores: list[Scores], quick: bool) -> list[Result]:
    def contestant(name: str) -> Contestant:
        crf = _row(name)
        return Contestant(name, lambda n: crf([photos[n]], [scores[n]])[0])

    oracle = contestant("pydensecrf")
    others = [contestant(name) for name in _rows() if name != "pydensecrf"]
    return compare(
        "crf", case, [oracle, *others], inputs=len(photos), quick=quick, judge=oracle.run,
        error=largest_difference, agreement=same_labels, limit=LIMIT,
    )  # fmt: skip


def _batches(case: str, photos: list[ByteArray], scores: list[Scores], quick: bool) -> list[Result]:
    """Images a second: pydensecrf in two processes, since it holds the interpreter; a row with its own threads."""
    batches = [range(n, n + BATCH) for n in range(0, len(photos) - BATCH + 1, BATCH)]

    def contestant(name: str) -> Contestant:
        crf = _row(name)
        return Contestant(name, lambda n: crf([photos[k] for k in batches[n]], [scores[k] for k in batches[n]]))

    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:

        def in_processes(n: int) -> list[Scores]:
            return list(pool.map(_one_by_pydensecrf, [photos[k] for k in batches[n]], [scores[k] for k in batches[n]]))

        oracle = Contestant(f"pydensecrf, {PROCESSES} processes", in_processes)
        others = [contestant(name) for name in _rows() if name != "pydensecrf"]
        return compare(
            "crf", case, [oracle, *others], inputs=len(batches), quick=quick,
            judge=in_processes, error=largest_difference, agreement=same_labels, limit=LIMIT,
        )  # fmt: skip


def _one_by_pydensecrf(image: ByteArray, scores: Scores) -> Scores:
    return _row("pydensecrf")([image], [scores])[0]


def _agreement(images: Sequence[ByteArray], labels: int) -> list[Result]:
    """Every image once, at widths that leave every remainder modulo 4."""
    photos = [of_size([image], (375, WIDTHS[n % len(WIDTHS)]))[0] for n, image in enumerate(images)]
    scores = [[class_scores(photo, labels, n)] for n, photo in enumerate(photos)]
    oracle = _row("pydensecrf")

    def contestant(name: str) -> Contestant:
        crf = _row(name)
        return Contestant(name, lambda n: crf([photos[n]], [scores[n]])[0])

    return compare(
        "crf", f"{len(photos)} images of 375 x {WIDTHS[-1]} to {WIDTHS[0]}, {labels} labels",
        [contestant("pydensecrf"), *(contestant(name) for name in _rows() if name not in ("pydensecrf", "portable"))],
        inputs=len(photos), quick=True, every_input=True, judge=lambda n: oracle([photos[n]], [scores[n]])[0],
        error=largest_difference, agreement=same_labels, limit=LIMIT,
    )  # fmt: skip


def same_labels(found: Any, expected: Any) -> float:
    """Share of pixels with the same arg-max, over lists of posteriors [c H W], nested or not."""
    if isinstance(expected, np.ndarray):
        return float((found.argmax(axis=0) == expected.argmax(axis=0)).mean())
    return min(same_labels(a, b) for a, b in zip(found, expected, strict=True))
