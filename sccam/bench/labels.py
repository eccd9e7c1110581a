"""Suite `labels`: all that a pseudo label takes besides the networks, for one image of 375 x 500.

    maps of 4 scales and their mirror images -> one map a class -> two CRFs, for the affinity labels
                                                             \\-> random walk -> scores at every pixel

The eager way is the authors': every channel at every pixel, a dense matrix, one CRF call after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from sccam.bench import Options, eager
from sccam.bench.crf import library_crf
from sccam.bench.harness import Contestant, Result, compare, largest_difference
from sccam.bench.inputs import of_size
from sccam.bench.merge import CLASSES, PRESENT, SIZE, STRIDE, grid_of, network_maps
from sccam.bench.walk import drawn_case
from sccam.runtime import backends
from sccam.runtime.backends import Backends
from sccam.stages.crf import PSA
from sccam.stages.walk import WalkConfig, background_score, pool_to_grid, upsample
from sccam.structures import AffinityField, ByteArray, FloatArray

ALPHAS = (4.0, 32.0, 16.0)  # low, high, of the walk
GOALS = {"native": 25.0}
LIMIT = 1e-3  # the CRF sharpens what single precision leaves open in the maps

Found = tuple[FloatArray, FloatArray, FloatArray]  # low and high posterior [P+1 H W], walked scores [P+1 H W]


def run(options: Options) -> Iterator[list[Result]]:
    """One table."""
    photos = of_size(options.images, SIZE)[:3]
    cases = [(photo, network_maps(n), drawn_case(grid_of(SIZE), 1, n)[1]) for n, photo in enumerate(photos)]
    rows = {}
    if options.device == "cpu":
        rows["portable"] = Backends("portable", "portable", "portable", "portable", "sklearn")
    if backends.missing("native") is None:
        rows["native"] = Backends("native", "native", "native", "native", "blas")
    if options.device == "cuda" and backends.missing("cupy") is None:
        rows["cupy"] = Backends("cupy", "cupy", "cupy", "cupy", "blas")
    crf = library_crf()
    way = "eager" if crf == "pydensecrf" else f"eager, but the CRF {crf}"
    contestants = [Contestant(way, lambda n: eager_labels(*cases[n], crf=crf, device=options.device))]
    contestants += [Contestant(name, _with(chosen, cases), goal=GOALS.get(name)) for name, chosen in rows.items()]
    yield compare(
        "labels", "one image, 2 classes, networks apart", contestants, inputs=len(cases), quick=options.quick,
        judge=contestants[0].run, error=largest_difference, limit=LIMIT, device=options.device,
    )  # fmt: skip


def _with(rows: Backends, cases: list[Any]) -> Callable[[int], Found]:
    return lambda n: labels_by(rows, *cases[n])


def eager_labels(
    image: ByteArray, maps: list[FloatArray], affinity: AffinityField, crf: str = "pydensecrf", device: str = "cpu"
) -> Found:
    """The authors' way."""
    merged = eager.merge_all_classes([torch.from_numpy(view).to(device) for view in maps], SIZE)[:CLASSES]
    refine = backends.row("crf", crf)
    present = merged[list(PRESENT)]
    posteriors = [refine([image], [[_with_background(present, alpha)]], PSA)[0][0] for alpha in ALPHAS[:2]]
    absent = np.zeros_like(merged)
    absent[list(PRESENT)] = present
    channels = pool_to_grid(np.concatenate([background_score(present, ALPHAS[2])[None], absent]), STRIDE)
    walked = eager.dense_walk(channels, affinity, WalkConfig(), device)
    full = torch.nn.functional.interpolate(
        torch.from_numpy(walked)[None], scale_factor=STRIDE, mode="bilinear", align_corners=False
    )[0, :, : SIZE[0], : SIZE[1]]
    return posteriors[0], posteriors[1], np.asarray(full)[[0, *(c + 1 for c in PRESENT)]]


def labels_by(rows: Backends, image: ByteArray, maps: list[FloatArray], affinity: AffinityField) -> Found:
    """The same by rows of the backend table, for the present classes only."""
    views = [np.ascontiguousarray(view[:, list(PRESENT)]) for view in maps]
    present = rows.function("merge")(views, SIZE, flip=True)
    unaries = [_with_background(present, alpha) for alpha in ALPHAS[:2]]
    ((low, high),) = rows.function("crf")([image], [unaries], PSA)
    (walked,) = rows.function("walk")(
        [pool_to_grid(_with_background(present, ALPHAS[2]), STRIDE)], [affinity], WalkConfig()
    )
    return low, high, upsample(walked, SIZE, STRIDE)


def _with_background(present: FloatArray, alpha: float) -> FloatArray:
    return np.concatenate([background_score(present, alpha)[None], present])
