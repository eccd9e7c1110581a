"""Suite `merge`: the maps of all scales and mirror images of one image, after the network, to one map a class."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sccam.bench import Options, eager
from sccam.bench.harness import Contestant, Result, Work, compare, largest_difference
from sccam.runtime import backends
from sccam.structures import FloatArray

SIZE = (375, 500)  # [px] the usual photo of VOC 2012
STRIDE = 8  # [px per cell] of the network
SCALES = (1.0, 0.5, 1.5, 2.0)
CLASSES, SUBCATEGORIES = 20, 200  # of VOC 2012 with 10 clusters a class: what the authors' code enlarges
PRESENT = (4, 11)  # classes of the image; VOC has 1.6 an image
INPUTS = 3
GOAL = 15.0
LIMIT = 1e-5  # of maps in [0, 1]


def run(options: Options) -> Iterator[list[Result]]:
    """Maps at every pixel, where all can be compared; then on the grid that `sccam train` keeps."""
    maps = [network_maps(seed) for seed in range(INPUTS)]
    present = [[np.ascontiguousarray(view[:, list(PRESENT)]) for view in views] for views in maps]
    tensors = [[torch.from_numpy(view).to(options.device) for view in views] for views in maps]
    on_gpu = [
        [view[:, list(PRESENT)].contiguous() for view in views] for views in tensors
    ]  # as the network leaves them
    baseline = Contestant(
        "eager, 220 channels at every pixel", lambda n: eager.merge_all_classes(tensors[n], SIZE)[list(PRESENT)]
    )

    def row(name: str, grid: tuple[int, int]) -> Contestant:
        merge = backends.row("merge", name)
        goal = GOAL if grid == SIZE and name != "portable" else None
        taken = on_gpu if name == "cupy" else present
        return Contestant(f"{name}, {len(PRESENT)} classes", lambda n: merge(taken[n], grid, flip=True), goal=goal)

    def work(grid: tuple[int, int]) -> Work:
        values = sum(view.size for view in present[0]) + len(PRESENT) * grid[0] * grid[1]
        return Work(gbyte=4e-9 * values)  # maps of the present classes in, merged ones out

    names = options.rows("merge")
    yield compare(
        "merge", "at every pixel", [baseline, *(row(name, SIZE) for name in names)], inputs=INPUTS, quick=options.quick,
        judge=baseline.run, error=largest_difference, limit=LIMIT, work=work(SIZE), device=options.device,
    )  # fmt: skip
    grid = (-(-SIZE[0] // 4), -(-SIZE[1] // 4))
    yield compare(
        "merge", "on a grid of 4 pixels", [Contestant(baseline.name, baseline.run, judged=False),
        *(row(name, grid) for name in names)], inputs=INPUTS, quick=options.quick,
        judge=row("portable", grid).run, error=largest_difference, limit=LIMIT, work=work(grid), device=options.device,
    )  # fmt: skip


def network_maps(seed: int) -> list[FloatArray]:
    """Rectified scores [2 channels h w] of every scale, as a classifier with all its channels gives them."""
    rng = np.random.default_rng(seed)
    return [
        np.maximum(rng.standard_normal((2, CLASSES + SUBCATEGORIES, *grid_of(SIZE, scale)), np.float32), 0)
        for scale in SCALES
    ]


def grid_of(size: tuple[int, int], scale: float = 1.0) -> tuple[int, int]:
    """Cells of the network for an image of `size` at a scale."""
    return -(-round(size[0] * scale) // STRIDE), -(-round(size[1] * scale) // STRIDE)
