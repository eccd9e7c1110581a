"""Suite `crf`: the dense CRF of PSA on images of 375 x 500, against pydensecrf, which is also the judge.

Where pydensecrf is not installed, the compiled CRF of the CPU takes its place; the names of the rows say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from sccam.bench import Options
from sccam.bench.harness import Contestant, Result, Work, compare, largest_difference
from sccam.bench.inputs import class_scores, of_size
from sccam.runtime import backends
from sccam.stages.crf import PSA
from sccam.structures import ByteArray, FloatArray

LIMIT = 1e-4  # of |difference| of the posterior
LABELS = (21, 3, 2)
WIDTHS = (500, 499, 498, 497)  # with 375 rows: pixels modulo 4 are 0, 1, 2, 3
BATCH = 4  # images at once, where images are counted and not the time of one
PROCESSES = min(BATCH, os.cpu_count() or 1)
FEW = 8  # images, each of another remainder

Scores = list[FloatArray]


GOALS = {"native": {21: 6.0, 3: 8.0}, "cupy": {21: 200.0}}  # one image, by labels, against pydensecrf
BATCH_GOALS = {"native": 5.0}  # against as many processes of pydensecrf
ROW_OPERATIONS = 18  # a pixel, iteration and label: vertices of both lattices read and added to, 3 + 6 each


def run(options: Options) -> Iterator[list[Result]]:
    """One image with 21 labels, one with two unaries of 3, a batch; then agreement on every image and label count."""
    photos = of_size(options.images)
    scores = [[class_scores(photo, 21, n)] for n, photo in enumerate(photos)]
    yield _compared("one image, 21 labels", photos, scores, options)
    two = [[class_scores(photo, 3, 2 * n + k) for k in range(2)] for n, photo in enumerate(photos)]
    yield _compared("one image, 2 unaries of 3 labels", photos, two, options)
    for labels in LABELS[:2]:
        scores = [[class_scores(photo, labels, n)] for n, photo in enumerate(photos)]
        yield _batches(f"batch of {BATCH} images, {labels} labels", photos, scores, options)
    for labels in LABELS:
        yield _agreement(labels, options)


def library_crf() -> str:
    """pydensecrf; where it is not installed, the fastest CRF of this package on the CPU."""
    return next(name for name in ("pydensecrf", "native", "portable") if backends.missing(name) is None)


def work(pixels: int, labels: int, unaries: int, images: int = 1) -> Work:
    """Mean field on the lattices' rows, without their making and without exponentials; unaries in, posteriors out."""
    values = 1e-9 * pixels * labels * unaries * images
    return Work(images, gflop=2 * ROW_OPERATIONS * PSA.iterations * values, gbyte=8 * values)


def _row(name: str) -> Callable[[Sequence[ByteArray], Sequence[Scores]], list[Scores]]:
    crf = backends.row("crf", name)
    return lambda images, scores: crf(images, scores, PSA)


def _others(options: Options) -> list[str]:
    return [name for name in options.rows("crf") if name != library_crf()]


def _compared(case: str, photos: list[ByteArray], scores: list[Scores], options: Options) -> list[Result]:
    labels = len(scores[0][0])

    def contestant(name: str) -> Contestant:
        crf = _row(name)
        goal = GOALS.get(name, {}).get(labels) if library_crf() == "pydensecrf" else None
        return Contestant(name, lambda n: crf([photos[n]], [scores[n]])[0], goal=goal)

    oracle = contestant(library_crf())
    return compare(
        "crf", case, [oracle, *map(contestant, _others(options))], inputs=len(photos), quick=options.quick,
        judge=oracle.run, error=largest_difference, agreement=same_labels, limit=LIMIT, device=options.device,
        work=work(photos[0].size // 3, labels, len(scores[0])),
    )  # fmt: skip


def _batches(case: str, photos: list[ByteArray], scores: list[Scores], options: Options) -> list[Result]:
    """Images a second: pydensecrf in a process a core, since it holds the interpreter; a row with its own threads."""
    batches = [range(n, n + BATCH) for n in range(0, len(photos) - BATCH + 1, BATCH)]

    def contestant(name: str) -> Contestant:
        crf = _row(name)
        goal = BATCH_GOALS.get(name) if library_crf() == "pydensecrf" else None
        return Contestant(
            name, lambda n: crf([photos[k] for k in batches[n]], [scores[k] for k in batches[n]]), goal=goal
        )

    with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:

        def in_processes(n: int) -> list[Scores]:
            return list(pool.map(_one_by_pydensecrf, [photos[k] for k in batches[n]], [scores[k] for k in batches[n]]))

        if library_crf() == "pydensecrf":
            oracle = Contestant(f"pydensecrf, {PROCESSES} processes", in_processes)
        else:
            oracle = contestant(library_crf())
        return compare(
            "crf", case, [oracle, *map(contestant, _others(options))], inputs=len(batches), quick=options.quick,
            judge=oracle.run, error=largest_difference, agreement=same_labels, limit=LIMIT, device=options.device,
            work=work(photos[0].size // 3, len(scores[0][0]), len(scores[0]), BATCH),
        )  # fmt: skip


def _one_by_pydensecrf(image: ByteArray, scores: Scores) -> Scores:
    return _row("pydensecrf")([image], [scores])[0]


def _agreement(labels: int, options: Options) -> list[Result]:
    """Every image once, at widths that leave every remainder modulo 4; on a GPU some, for the judge needs the CPU."""
    images = options.images[: 4 if options.quick else FEW if options.device == "cuda" else len(options.images)]
    photos = [of_size([image], (375, WIDTHS[n % len(WIDTHS)]))[0] for n, image in enumerate(images)]
    scores = [[class_scores(photo, labels, n)] for n, photo in enumerate(photos)]

    def contestant(name: str) -> Contestant:
        crf = _row(name)
        return Contestant(name, lambda n: crf([photos[n]], [scores[n]])[0])

    oracle = contestant(library_crf())
    return compare(
        "crf", f"{len(photos)} images of 375 x {WIDTHS[-1]} to {WIDTHS[0]}, {labels} labels",
        [oracle, *(contestant(name) for name in _others(options) if name != "portable")],
        inputs=len(photos), quick=True, every_input=True, judge=oracle.run, error=largest_difference,
        agreement=same_labels, limit=LIMIT, device=options.device,
    )  # fmt: skip


def same_labels(found: Any, expected: Any) -> float:
    """Share of pixels with the same arg-max, over lists of posteriors [c H W], nested or not."""
    if isinstance(expected, np.ndarray):
        return float((found.argmax(axis=0) == expected.argmax(axis=0)).mean())
    return min(same_labels(a, b) for a, b in zip(found, expected, strict=True))
