"""k-means with all restarts in one product against scikit-learn's, in paired runs.

    python benchmarks/bench_kmeans_draft.py --points 600 --channels 4096 --clusters 10 --threads 1 2

Points are rectified, as pooled features of a trunk are: K planted clusters, `--separation` apart in units of the
noise within (0: none are planted). Each pair has data and a seed of its own. scikit-learn runs with the same number of
threads, OpenMP's and BLAS's; the seconds of both contain everything from the points to the labels.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from sccam.runtime.kmeans_blas import inertia_of, k_means
from sccam.stages.cluster import KMeansFit
from sccam.stages.cluster import k_means as sklearn_k_means

RESTARTS, PASSES = 10, 300  # ClusterConfig's


def main() -> None:
    """Prints a line for each number of points, channels, clusters and threads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, nargs="+", default=[600])
    parser.add_argument("--channels", type=int, nargs="+", default=[4096])
    parser.add_argument("--clusters", type=int, nargs="+", default=[10])
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--separation", type=float, nargs="+", default=[0.5])
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    print("N, D, K, threads, separation: ours [ms] | scikit-learn [ms] | ratio | inertia ours / theirs - 1 [%]")
    print("median (quartiles); of the inertia median (least, greatest)")
    for threads in arguments.threads:
        for n in arguments.points:
            for d in arguments.channels:
                for k in arguments.clusters:
                    for separation in arguments.separation:
                        line(n, d, k, threads, separation, arguments.pairs)


def line(n: int, d: int, k: int, threads: int, separation: float, pairs: int) -> None:
    """Measures one case and prints it."""
    seconds, inertia = np.empty((pairs, 2)), np.empty(pairs)
    k_means(planted(n, d, k, separation, seed=pairs), k, n_init=RESTARTS, max_iterations=2, seed=0)  # warm-up
    with threadpool_limits(threads):
        sklearn_k_means(planted(50, 8, 2, 1, seed=0), 2, n_init=1, max_iterations=2, seed=0)
    for pair in range(pairs):
        points = planted(n, d, k, separation, seed=pair)
        seconds[pair, 0], ours = timed(partial(k_means, threads=threads), points, k, pair)
        with threadpool_limits(threads):
            seconds[pair, 1], theirs = timed(sklearn_k_means, points, k, pair)
        inertia[pair] = 100 * (ours.inertia / inertia_of(points, theirs.assignment, k) - 1)
    ours_ms, theirs_ms, ratio = (quartiles(of) for of in (*(1e3 * seconds.T), seconds[:, 1] / seconds[:, 0]))
    low, middle, high = np.quantile(inertia, [0, 0.5, 1])
    print(
        f"{n:6d} {d:5d} {k:3d} {threads:2d} {separation:4.2f}: {ours_ms} | {theirs_ms} | {ratio} | "
        f"{middle:+.4f} ({low:+.4f}, {high:+.4f})",
        flush=True,
    )


def planted(n: int, d: int, k: int, separation: float, seed: int) -> np.ndarray:
    """Rectified points [n d] around k random centres."""
    rng = np.random.default_rng(seed)
    centres = separation * rng.standard_normal((k, d), np.float32)
    return np.maximum(centres[rng.integers(k, size=n)] + rng.standard_normal((n, d), np.float32), 0)


def timed(fit: Callable[..., KMeansFit], points: np.ndarray, k: int, seed: int) -> tuple[float, KMeansFit]:
    """Seconds of a fit, and the fit."""
    start = time.perf_counter()
    found = fit(points, k, n_init=RESTARTS, max_iterations=PASSES, seed=seed)
    return time.perf_counter() - start, found


def quartiles(values: np.ndarray) -> str:
    """Median (first, third quartile)."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.1f} ({low:.1f}, {high:.1f})"


if __name__ == "__main__":
    main()
