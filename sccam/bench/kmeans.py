"""Suite `kmeans`: 10 restarts of k-means on pooled features, against scikit-learn's. The error is the inertia's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sccam.bench import Options
from sccam.bench.harness import Contestant, Result, Work, compare
from sccam.runtime import backends
from sccam.stages.cluster import ClusterConfig, KMeansFit
from sccam.structures import FloatArray

CASES = {  # points, channels, clusters
    "600 x 4096, K 10": (600, 4096, 10),  # a usual class of VOC 2012 with ResNet-38
    "100 x 1280, K 5": (100, 1280, 5),  # a class of a small set with EfficientNet-Lite0
    "4000 x 4096, K 10": (4000, 4096, 10),  # persons in VOC 2012
}
SLOW = "4000 x 4096, K 10"  # left out of the quick suite
SEPARATION = 1.0
"""Of the planted centres, in units of the noise around them: ten starts find these clusters. At half of it the two
sometimes end in different optima, either of them the better one, and the comparison of their inertias says nothing."""
INPUTS = 5
GOALS = {"600 x 4096, K 10": 8.0}
LIMIT = 1e-3  # of the inertia, relative: the two draw other starts


def run(options: Options) -> Iterator[list[Result]]:
    """A table for each size. No row runs on a GPU."""
    for name, (points, channels, clusters) in CASES.items():
        if not (options.quick and name == SLOW):
            yield _compared(name, points, channels, clusters, options.quick)


def _compared(case: str, points: int, channels: int, clusters: int, quick: bool) -> list[Result]:
    config = ClusterConfig(k=clusters)
    sets = [planted(points, channels, clusters, seed) for seed in range(INPUTS)]

    def contestant(name: str) -> Contestant:
        k_means = backends.row("k_means", name)
        return Contestant(
            name,
            lambda n: k_means(sets[n], clusters, n_init=config.n_init, max_iterations=config.max_iterations, seed=0),
            goal=GOALS.get(case) if name == "blas" else None,
        )

    oracle = contestant("sklearn")
    names = [name for name in backends.TABLE["k_means"] if name != "sklearn" and backends.missing(name) is None]
    return compare(
        "kmeans", case, [oracle, *map(contestant, names)], inputs=INPUTS, quick=quick,
        judge=oracle.run, error=inertia_gap, limit=LIMIT,
        work=Work(gflop=1e-9 * points**2 * channels, gbyte=4e-9 * points * channels),  # all inner products, once
    )  # fmt: skip


def inertia_gap(found: KMeansFit, expected: KMeansFit) -> float:
    """How much more inertia was left, as a share; negative where there is less."""
    return found.inertia / expected.inertia - 1


def planted(points: int, channels: int, clusters: int, seed: int) -> FloatArray:
    """Rectified points [points channels] around random centres, as pooled features are."""
    rng = np.random.default_rng(seed)
    centres = SEPARATION * rng.standard_normal((clusters, channels), np.float32)
    noise = rng.standard_normal((points, channels), np.float32)
    return np.maximum(centres[rng.integers(clusters, size=points)] + noise, 0)
