"""Suite `walk`: the random walk of one image, from affinities to walked scores, matrices and all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter

from sccam.bench import eager
from sccam.bench.harness import Contestant, Result, compare, largest_difference
from sccam.runtime import backends
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.walk import WalkConfig, pair_windows
from sccam.structures import AffinityField, FloatArray

LIMIT = 1e-5  # of |difference| to 256 steps in double precision
GRIDS = {"psa": (47, 63), "irn": (94, 125)}  # a 375 x 500 photo at stride 8 and 4
CHANNELS = (21, 3)  # all VOC classes with background; the usual image: two present classes and background
RADIUS = 5
INPUTS = 3


def run(*, quick: bool) -> Iterator[list[Result]]:
    """A table for each grid and number of channels."""
    for name, grid in GRIDS.items():
        for channels in CHANNELS:
            config = WalkConfig(beta=10.0 if name == "irn" else 8.0)
            cases = [drawn_case(grid, channels, seed) for seed in range(INPUTS)]
            yield _compared(f"{name} grid {grid[0]}x{grid[1]}, {channels} channels", cases, config, quick=quick)


def _compared(
    case: str, cases: list[tuple[FloatArray, AffinityField]], config: WalkConfig, *, quick: bool
) -> list[Result]:
    contestants = [Contestant("torch sparse, 256 products", lambda n: eager.sparse_walk(*cases[n], config))]
    if cases[0][0].shape[1:] == GRIDS["psa"]:  # at the irn grid: 26 TFLOP and 2 GB
        contestants.insert(0, Contestant("torch dense, 8 squarings", lambda n: eager.dense_walk(*cases[n], config)))

    def row(name: str) -> Contestant:
        walk = backends.row("walk", name)
        return Contestant(name, lambda n: walk([cases[n][0]], [cases[n][1]], config)[0])

    contestants += [row(name) for name in backends.TABLE["walk"] if backends.missing(name) is None]
    return compare(
        "walk",
        case,
        contestants,
        inputs=len(cases),
        quick=quick,
        judge=lambda n: exact_walk(*cases[n], config),
        error=largest_difference,
        limit=LIMIT,
    )


def drawn_case(grid: tuple[int, int], channels: int, seed: int) -> tuple[FloatArray, AffinityField]:
    """Smooth scores [c h w] and affinities of a field with regions and edges."""
    rng = np.random.default_rng(seed)
    regions = gaussian_filter(rng.normal(size=(8, *grid)), (0, 4, 4)).argmax(axis=0)
    field = gaussian_filter(np.eye(8)[regions], (0.5, 0.5, 0)) + 0.05 * rng.normal(size=(*grid, 8))
    offsets = neighbour_offsets(RADIUS)
    values = np.zeros((len(offsets), *grid), np.float32)
    for r, (dy, dx) in enumerate(offsets.tolist()):
        here, there = pair_windows(*grid, (dy, dx), offsets, "clean")
        values[r][here] = np.exp(-np.abs(field[here] - field[there]).mean(axis=-1))
    scores = gaussian_filter(rng.random((channels, *grid)), (0, 3, 3))
    scores -= scores.min(axis=(1, 2), keepdims=True)
    return (scores / scores.max(axis=(1, 2), keepdims=True)).astype(np.float32), AffinityField(values, offsets, 8)


def exact_walk(scores: FloatArray, affinity: AffinityField, config: WalkConfig) -> np.ndarray:
    """Every step in double precision, f64 [c h w]."""
    _, height, width = affinity.values.shape
    cells = np.arange(height * width).reshape(height, width)
    rows, columns, weights = [cells.ravel()], [cells.ravel()], [np.ones(cells.size)]
    for (dy, dx), values in zip(affinity.offsets.tolist(), affinity.values, strict=True):
        here, there = pair_windows(height, width, (dy, dx), affinity.offsets, config.border)
        for a, b in ((here, there), (there, here)):
            rows.append(cells[a].ravel())
            columns.append(cells[b].ravel())
            weights.append(values[here].ravel().astype(np.float64) ** config.beta)
    A = sparse.coo_array(
        (np.concatenate(weights), (np.concatenate(rows), np.concatenate(columns))), shape=(cells.size,) * 2
    ).tocsr()
    step = sparse.diags_array(1 / A.sum(axis=1)) @ A
    state = scores.reshape(len(scores), -1).T.astype(np.float64)
    for _ in range(config.steps):
        state = step @ state
    return state.T.reshape(scores.shape)
