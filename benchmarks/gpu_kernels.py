"""Times the GPU kernels against eager torch on one NVIDIA GPU and prints JSON.

    python benchmarks/gpu_kernels.py > gpu_kernels.json

Needs torch with CUDA and CuPy, nothing else. All times are milliseconds between CUDA events.

    call     one call of the Python function: host work, copies in and out, waiting
    replay   the recorded graph alone, with all data on the device: the walk's steps, the CRF's mean field
    eager    the same result by plain torch on the same data on the device; for the walk as psa does it, by eight dense
             squarings of one image's matrix (building that matrix is left out), in single precision and in TF32

Inputs rotate over `ROTATED` sets so that no call finds its data in a cache, where that is possible.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch.nn.functional import interpolate

from sccam.bench.crf import library_crf
from sccam.runtime import backends
from sccam.runtime.crf_cupy import dense_crfs
from sccam.runtime.device_cupy import open_device
from sccam.runtime.merge_cupy import merge_maps
from sccam.runtime.walk_cupy import random_walks
from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.crf import CrfConfig
from sccam.stages.walk import WalkConfig, transition
from sccam.structures import AffinityField

WARM_UP, REPEATS, ROTATED = 3, 15, 3
GRIDS = ((47, 63), (94, 125))  # a 375 x 500 photo at stride 8 and 4
VOC = (375, 500)
SCALES = ((24, 32), (12, 16), (36, 47), (47, 63))  # [cells] of the four scales at stride 16


def main() -> None:
    """Prints one JSON object."""
    device = open_device()
    rows = [*walks(), *crfs(), *merges()]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    facts = {
        "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "cupy": device.cupy.__version__,
        "cuda": torch.version.cuda, "numpy": version("numpy"), "commit": commit,
        "warm_up": WARM_UP, "repeats": REPEATS, "unit": "ms",
    }  # fmt: skip
    print(json.dumps({**facts, "rows": rows}, indent=1))


def walks() -> list[dict[str, Any]]:
    """The random walk: 256 steps, beta 8, radius 5, expansion to 1e-6."""
    rows = []
    for grid in GRIDS:
        field = affinity_field(smooth_features(grid), neighbour_offsets(5), 8)
        dense = {name: dense_walk(field, grid, tf32) for name, tf32 in (("fp32", False), ("tf32", True))}
        rows += [walk_row(field, grid, channels, batch, dense) for channels in (21, 3) for batch in (1, 32)]
    return rows


def walk_row(
    field: AffinityField, grid: tuple[int, int], channels: int, batch: int, dense: dict[str, Callable[..., Any]]
) -> dict[str, Any]:
    """One batch: call, replay, and the eager walks of one image."""
    sets = [[torch.rand(channels, *grid, device="cuda") for _ in range(batch)] for _ in range(ROTATED)]
    call = timed(lambda n: random_walks(sets[n], [field] * batch, WalkConfig()))
    plan = latest_plan()
    row = {"what": "walk", "grid": grid, "channels": channels, "batch": batch, "call": call}
    row["replay"] = timed(lambda n: plan.walk(plan._steps))
    if batch == 1:
        row |= {f"eager {name}": timed(partial(walk_set, walk, sets), 5) for name, walk in dense.items()}
    return row


def walk_set(walk: Callable[..., Any], sets: list[list[torch.Tensor]], n: int) -> torch.Tensor:
    """The eager walk of the first image of a set."""
    walked: torch.Tensor = walk(sets[n][0])
    return walked


def crfs() -> list[dict[str, Any]]:
    """The dense CRF: PSA's settings, ten iterations; three labels once and with two unaries, as SC-CAM calls it."""
    return [crf_row(labels, unaries, batch) for labels, unaries in ((21, 1), (3, 1), (3, 2)) for batch in (1, 16)]


def crf_row(labels: int, unaries: int, batch: int) -> dict[str, Any]:
    """One batch: call, replay, and one image by the library."""
    images = [[torch.as_tensor(photo(16 * n + m), device="cuda") for m in range(batch)] for n in range(ROTATED)]
    scores = [[[torch.rand(labels, *VOC, device="cuda")] * unaries for _ in range(batch)] for _ in range(ROTATED)]
    call = timed(lambda n: dense_crfs(images[n], scores[n], CrfConfig()))
    plan = latest_plan()
    return {
        "what": "crf", "size": VOC, "labels": labels, "unaries": unaries, "batch": batch, "call": call,
        "replay": timed(lambda n: plan.mean_field(plan._iterations)),
        "rows of both lattices, with headroom": plan.room["rows"],
        f"{library_crf()} on the CPU, one unary of one image": library_ms(images[0][0], scores[0][0][0]),
    }  # fmt: skip


def merges() -> list[dict[str, Any]]:
    """Maps of four scales and their mirror images onto a grid of 4 pixels."""
    return [merge_row(classes) for classes in (2, 20)]


def merge_row(classes: int) -> dict[str, Any]:
    """One image: call, and torch on the grid and at every pixel."""
    views = [[torch.rand(2, classes, *size, device="cuda") for size in SCALES] for _ in range(ROTATED)]
    return {
        "what": "merge", "classes": classes, "grid": GRIDS[1],
        "call": timed(lambda n: merge_maps(views[n], GRIDS[1], flip=True)),
        "eager": timed(lambda n: eager_merge(views[n], GRIDS[1]).cpu()),
        "eager, every view at image size": timed(lambda n: full_size_merge(views[n]).cpu()),
    }  # fmt: skip


def timed(work: Callable[[int], object], repeats: int = REPEATS) -> dict[str, float]:
    """Median, fastest and slowest of `repeats` runs [ms], after WARM_UP runs that also compile and capture."""
    cupy, stream = open_device().cupy, open_device().stream
    times = []
    for n in range(WARM_UP + repeats):
        torch.cuda.synchronize()
        stream.synchronize()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        outer = torch.cuda.ExternalStream(stream.ptr)
        start.record(outer)
        with cupy.cuda.Device(), stream, torch.cuda.stream(outer):
            work(n % ROTATED)
        stop.record(outer)
        stop.synchronize()
        if n >= WARM_UP:
            times.append(start.elapsed_time(stop))
    return {
        "median": round(statistics.median(times), 4),
        "fastest": round(min(times), 4),
        "slowest": round(max(times), 4),
    }


def latest_plan() -> Any:
    """Buffers and graph of the call before."""
    return next(reversed(open_device()._plans.values()))


def dense_walk(field: AffinityField, grid: tuple[int, int], tf32: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """psa's way: T by eight squarings, then scores T."""
    T = torch.as_tensor(transition(field, WalkConfig()).toarray(), device="cuda")

    def walk(scores: torch.Tensor) -> torch.Tensor:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        power = T
        for _ in range(8):
            power = power @ power
        return (scores.reshape(len(scores), -1) @ power).reshape(-1, *grid)

    return walk


def eager_merge(views: list[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    """As stages/cam.py, left on the device."""
    total = sum(
        interpolate((maps[0] + maps[1].flip(-1))[None], grid, mode="bilinear", align_corners=False)[0] for maps in views
    )
    assert isinstance(total, torch.Tensor)
    return total / (total.amax(dim=(1, 2), keepdim=True) + 1e-5)


def full_size_merge(views: list[torch.Tensor]) -> torch.Tensor:
    """As the authors: every view resized to every pixel, then added."""
    total = torch.zeros(views[0].shape[1], *VOC, device="cuda")
    for maps in views:
        full = interpolate(maps, VOC, mode="bilinear", align_corners=False)
        total += full[0] + full[1].flip(-1)
    return total / (total.amax(dim=(1, 2), keepdim=True) + 1e-5)


def library_ms(image: torch.Tensor, scores: torch.Tensor) -> float:
    """One run of pydensecrf on one core [ms]; where it is not installed, of the compiled CRF."""
    crf, arrays = backends.row("crf", library_crf()), ([image.cpu().numpy()], [[scores.cpu().numpy()]])
    crf(*arrays, CrfConfig())
    start = time.perf_counter()
    crf(*arrays, CrfConfig())
    return round(1000 * (time.perf_counter() - start), 1)


def smooth_features(grid: tuple[int, int]) -> torch.Tensor:
    """Features that vary slowly, with a sharp edge down the middle."""
    features = torch.as_tensor(np.random.default_rng(0).normal(size=(12, *grid)).cumsum(axis=1).cumsum(axis=2))
    features = 4 * features / features.abs().max()
    features[:, :, grid[1] // 2 :] += 1
    return features


def photo(seed: int) -> np.ndarray:
    """u8 [H W 3]: smooth fields of colour with edges and noise: about 15 thousand vertices, as photos have."""
    rng = np.random.default_rng(seed)
    coarse = torch.as_tensor(rng.random((1, 3, 12, 16)) * 60 + 98)
    image = interpolate(coarse, VOC, mode="bicubic", align_corners=False)[0].permute(1, 2, 0).numpy()
    blocks = rng.integers(-60, 60, (6, 8, 3)).repeat(63, axis=0)[: VOC[0]].repeat(63, axis=1)[:, : VOC[1]]
    return np.clip(image + blocks + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
