"""Suite `walk`: the random walk of one image, from affinities to walked scores, matrices and all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse
from scipy.ndimage import gaussian_filter

from sccam.bench import Options, eager
from sccam.bench.harness import Contestant, Result, Work, compare, largest_difference
from sccam.runtime import backends
from sccam.runtime.walk_native import TOLERANCE, chebyshev_coefficients
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.walk import WalkConfig, pair_windows, walk_lengths
from sccam.structures import AffinityField, FloatArray

LIMIT = 1e-5  # of |difference| to 256 steps in double precision
GRIDS = {"psa": (47, 63), "irn": (94, 125)}  # a 375 x 500 photo at stride 8 and 4
CHANNELS = (21, 3)  # all VOC classes with background; the usual image: two present classes and background
RADIUS = 5
GOALS = {"native": 300.0, "cupy": 25.0}  # at the psa grid with 21 channels, against the dense matrix on the same device
INPUTS = 3


def run(options: Options) -> Iterator[list[Result]]:
    """A table for each grid and number of channels."""
    for name, grid in GRIDS.items():
        for channels in CHANNELS:
            config = WalkConfig(beta=10.0 if name == "irn" else 8.0)
            cases = [drawn_case(grid, channels, seed) for seed in range(INPUTS)]
            yield _compared(f"{name} grid {grid[0]}x{grid[1]}, {channels} channels", cases, config, options)


def _compared(
    case: str, cases: list[tuple[FloatArray, AffinityField]], config: WalkConfig, options: Options
) -> list[Result]:
    device = options.device
    contestants = [
        Contestant("torch sparse, 256 products", lambda n: eager.sparse_walk(*cases[n], config, device), strong=True)
    ]
    dense = cases[0][0].shape[1:] == GRIDS["psa"]  # at the irn grid: 26 TFLOP and 2 GB
    if dense:
        contestants.insert(
            0, Contestant("torch dense, 8 squarings", lambda n: eager.dense_walk(*cases[n], config, device))
        )

    def row(name: str) -> Contestant:
        walk = backends.row("walk", name)
        goal = GOALS.get(name) if dense and len(cases[0][0]) == CHANNELS[0] else None
        return Contestant(name, lambda n: walk([cases[n][0]], [cases[n][1]], config)[0], goal=goal)

    contestants += map(row, options.rows("walk"))
    return compare(
        "walk",
        case,
        contestants,
        inputs=len(cases),
        quick=options.quick,
        judge=lambda n: exact_walk(*cases[n], config),
        error=largest_difference,
        limit=LIMIT,
        work=work(cases[0][0].shape, config),
        device=device,
    )


def work(shape: tuple[int, ...], config: WalkConfig) -> Work:
    """A stencil of all neighbours, as many times as the expansion has terms; affinities and scores moved once."""
    channels, cells = shape[0], shape[1] * shape[2]
    neighbours = len(neighbour_offsets(RADIUS))
    coefficients = chebyshev_coefficients(walk_lengths(config), TOLERANCE)
    terms = config.steps if coefficients is None else len(coefficients) - 1
    return Work(
        gflop=2e-9 * (2 * neighbours + 1) * cells * channels * terms,
        gbyte=4e-9 * cells * (neighbours + 2 * channels),
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
