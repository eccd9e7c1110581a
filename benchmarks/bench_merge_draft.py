"""Merging the views of one image into activation maps: the compiled kernel against torch, in paired runs.

    python benchmarks/bench_merge_draft.py --threads 2

For an image of 500 x 375 at four scales with mirror images, at stride 8:
    authors    torch; all 20 + 200 channels of each of 8 views resized to the image, turned back, summed (infer_cls.py),
               then the present classes divided by their maximum
    paper      stages/cam.py: present classes only, views added before they are resized, torch
    kernel     runtime/merge_native.py: the same numbers
The network is not in it. The authors' maps are for the full image only; `paper` and `kernel` also for every 4th pixel.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn.functional import interpolate

from sccam.runtime.merge_native import merge_maps
from sccam.stages.cam import merge_maps as paper_maps
from sccam.stages.cam import normalise
from sccam.structures import FloatArray

IMAGE = (375, 500)  # [px], the most frequent size of VOC
GRIDS = {1: IMAGE, 4: (94, 125)}  # by stride
MAPS = ((47, 63), (24, 32), (71, 94), (94, 125))  # [cells] of scales 1, 0.5, 1.5, 2 at stride 8
CHANNELS = 20 + 200  # classes and sub-categories
PRESENT = 2  # classes of an image; 1.6 on average over VOC's training set


def main() -> None:
    """Prints seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    views = [rng.random((2, CHANNELS, *size), np.float32) for size in MAPS]
    present = [np.ascontiguousarray(view[:, :PRESENT]) for view in views]
    rows: dict[str, Callable[[], FloatArray]] = {"authors, stride 1": lambda: authors_maps(views, IMAGE)}
    for stride, grid in GRIDS.items():
        rows[f"paper, stride {stride}"] = lambda grid=grid: paper_maps(present, grid, flip=True)
        rows[f"kernel, stride {stride}"] = lambda grid=grid: merge_maps(
            present, grid, flip=True, threads=arguments.threads if grid == IMAGE else 0
        )
    expected = rows["authors, stride 1"]()
    for name in rows:
        stride = int(name[-1])
        against = expected if stride == 1 else rows[f"paper, stride {stride}"]()
        print(f"{name}: largest difference {np.abs(rows[name]() - against).max():.1e}")
    milliseconds = {name: np.empty(arguments.pairs) for name in rows}
    for pair in range(arguments.pairs):
        for name, row in rows.items():
            milliseconds[name][pair] = timed(row, repeats=1 if name.startswith("authors") else 20)
    for name, own in milliseconds.items():
        base = milliseconds["authors, stride 1"]
        print(f"{name}: {quartiles(own)} ms, authors / own {quartiles(base / own)}")
    for stride in GRIDS:
        ratio = milliseconds[f"paper, stride {stride}"] / milliseconds[f"kernel, stride {stride}"]
        print(f"stride {stride}: paper / kernel {quartiles(ratio)}")


def authors_maps(views: list[FloatArray], size: tuple[int, int]) -> FloatArray:
    """Pass by pass, every channel at full size; [PRESENT H W]."""
    total = torch.zeros(CHANNELS, *size)
    for view in views:
        for mirrored, maps in enumerate(torch.from_numpy(view)):
            full = interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
            total += full.flip(-1) if mirrored else full
    return normalise(total[:PRESENT].numpy())


def timed(row: Callable[[], FloatArray], repeats: int) -> float:
    """[ms] of a call: the median of some."""
    taken = np.empty(repeats)
    for n in range(repeats):
        start = time.perf_counter()
        row()
        taken[n] = 1e3 * (time.perf_counter() - start)
    return float(np.median(taken))


def quartiles(values: np.ndarray) -> str:
    """Median (first, third quartile)."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3g} ({low:.3g}, {high:.3g})"


if __name__ == "__main__":
    main()
