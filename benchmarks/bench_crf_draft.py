"""Dense CRF: the compiled kernel against pydensecrf, paired, and how close the two are on photographs.

    python benchmarks/bench_crf_draft.py FOLDER [--pairs 7] [--photos 20]

Every pair runs both sides directly after each other on one photograph, resized to 500 x 375; printed are medians of
the ratios and of the seconds. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from sccam.runtime import crf_native, crf_pydensecrf, native
from sccam.structures import ByteArray, FloatArray

SIZE = (375, 500)


def main() -> None:
    """Reads the arguments and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--photos", type=int, default=20)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.iterdir() if path.suffix.lower() in (".jpg", ".png"))
    paths = paths[:: max(1, len(paths) // arguments.photos)][: arguments.photos]
    print(f"instruction sets {native.available()}, {native.thread_count()} threads")
    speed([photo(path, SIZE) for path in paths[: arguments.pairs]])
    throughput([photo(path, SIZE) for path in paths[:4]])
    parity(paths)


def photo(path: Path, size: tuple[int, int]) -> ByteArray:
    return np.asarray(Image.open(path).convert("RGB").resize((size[1], size[0])))


def soft_scores(size: tuple[int, int], labels: int, seed: int) -> FloatArray:
    """Smooth random maps with noise, as activation maps are."""
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(rng.random((6, 8), np.float32)) for _ in range(labels)]
    smooth = np.stack([np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC)) for image in coarse])
    return np.clip(smooth + 0.1 * rng.random(smooth.shape, np.float32), 0, 1).astype(np.float32)


def speed(images: list[ByteArray]) -> None:
    unaries = {"21 labels": [soft_scores(SIZE, 21, 0)], "3 labels x 2": [soft_scores(SIZE, 3, n) for n in (1, 2)]}
    for name, scores in unaries.items():
        for threads in (1, native.thread_count()):
            crf_native.dense_crfs(images[:1], [scores], threads=threads)  # warm up
            ours, theirs = [], []
            for image in images:
                ours.append(seconds(lambda: crf_native.dense_crfs([image], [scores], threads=threads)))  # noqa: B023
                theirs.append(seconds(lambda: crf_pydensecrf.dense_crfs([image], [scores])))  # noqa: B023
            print_pair(f"{name}, {threads} threads", ours, theirs)


def throughput(images: list[ByteArray]) -> None:
    """A batch on two threads, against two processes of pydensecrf."""
    for labels, unaries in ((21, 1), (3, 2)):
        scores = [[soft_scores(SIZE, labels, n) for n in range(unaries)]] * len(images)
        ours, theirs = [], []
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(one_pydensecrf, images[:2], scores[:2]))
            for _ in range(3):
                ours.append(seconds(lambda: crf_native.dense_crfs(images, scores, threads=2)))  # noqa: B023
                theirs.append(seconds(lambda: list(pool.map(one_pydensecrf, images, scores))))  # noqa: B023
        print_pair(f"{labels} labels x {unaries}, {len(images)} images, 2 threads against 2 processes", ours, theirs)


def one_pydensecrf(image: ByteArray, scores: list[FloatArray]) -> None:
    crf_pydensecrf.dense_crfs([image], [scores])


def parity(paths: list[Path]) -> None:
    for labels in (2, 3, 21):
        furthest, agreeing, pixels = 0.0, 0, 0
        for n, path in enumerate(paths):
            size = [(212, 320), (213, 321), (214, 319), (213, 319)][n % 4]  # 0, 1, 2, 3 pixels modulo 4
            image, scores = photo(path, size), soft_scores(size, labels, n)
            ((found,),) = crf_native.dense_crfs([image], [[scores]])
            ((expected,),) = crf_pydensecrf.dense_crfs([image], [[scores]])
            furthest = max(furthest, float(np.abs(found - expected).max()))
            agreeing += int((found.argmax(axis=0) == expected.argmax(axis=0)).sum())
            pixels += image.shape[0] * image.shape[1]
        print(f"parity, {labels} labels, {len(paths)} photos: max |dQ| {furthest:.1e}, arg-max {agreeing / pixels:.6%}")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def print_pair(name: str, ours: list[float], theirs: list[float]) -> None:
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(
        f"{name}: {ratio:.1f}x, {statistics.median(ours) * 1e3:.0f} ms against {statistics.median(theirs) * 1e3:.0f} ms"
    )


if __name__ == "__main__":
    main()
