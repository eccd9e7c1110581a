"""The kernels on a real GPU: the paper forms' numbers, the same bits each time, graphs, streams and full memory.

Skipped without CuPy and a GPU. A GPU machine needs no pydensecrf: its posteriors are stored in crf_golden.npz.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sccam.runtime import device_cupy
from sccam.runtime.affinity_cupy import affinity_fields
from sccam.runtime.crf_cupy import dense_crfs
from sccam.runtime.merge_cupy import merge_maps
from sccam.runtime.walk_cupy import random_walks
from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.crf import PSA, CrfConfig
from sccam.stages.walk import BORDERS, WalkConfig, random_walk
from tests.gpu.make_golden import CASES, SOFT, read_golden
from tests.runtime.cuda_cases import (
    ERROR,
    crf_scores,
    difference,
    field_of,
    in_half,
    merged,
    photo,
    views_of,
    walk_scores,
)

ROOT = Path(__file__).parents[2]
OFFSETS = neighbour_offsets(5)
REPEATS = 4  # of a call: plain launches, a capture, two replays
VOC = (375, 500)

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def gpu() -> Any:
    """The device, or a skip with its reason."""
    if error := device_cupy.missing():
        pytest.skip(str(error))
    return device_cupy.open_device()


def on_gpu(array: Any) -> torch.Tensor:
    """As a CUDA tensor; skipped where torch was built without CUDA."""
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    return torch.as_tensor(array).cuda()


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize(("steps", "rule"), [(0, "fixed"), (1, "fixed"), (7, "fixed"), (256, "fixed"), (256, "mean")])
def test_a_ragged_batch_of_walks_equals_the_paper_form(border, steps, rule):
    grids = [(1, 1), (5, 7), (16, 20), (47, 63)]
    fields = [in_half(field_of(grid, seed=n)) for n, grid in enumerate(grids)]
    scores = [walk_scores(grid, 1 + 5 * n, n) for n, grid in enumerate(grids)]
    config = WalkConfig(beta=1, steps=steps, rule=rule, border=border)
    for _ in range(REPEATS):
        for walked, one, field in zip(random_walks(scores, fields, config), scores, fields, strict=True):
            assert difference(walked, random_walk(one, field, config)) <= ERROR["walk"]


@pytest.mark.parametrize("radius", [2, 5, 9])
def test_a_large_batch_of_walks_equals_the_paper_form(radius):
    field = field_of((47, 63), radius)
    scores = [walk_scores((47, 63), 21, n) for n in range(16)]
    walked = random_walks(scores, [field] * 16, WalkConfig())
    for n in (0, 15):
        assert difference(walked[n], random_walk(scores[n], field, WalkConfig())) <= ERROR["walk, weights in half"]


def test_walks_repeat_to_the_bit_in_any_batch():
    fields = [field_of((47, 63), seed=n) for n in range(20)]  # enough for walk_step_many
    scores = [on_gpu(walk_scores((47, 63), 21, n)) for n in range(20)]
    first = random_walks(scores, fields, WalkConfig())
    for _ in range(REPEATS):
        assert all(map(np.array_equal, random_walks(scores, fields, WalkConfig()), first))
    alone = [random_walks([one], [field], WalkConfig())[0] for one, field in zip(scores, fields, strict=True)]
    assert all(map(np.array_equal, alone, first))


def test_affinities_equal_the_paper_form():
    features = [torch.randn(448, 47, 63), torch.randn(7, 5, 9)]
    tensors = [on_gpu(one) for one in features]
    first = affinity_fields(tensors, OFFSETS, 8)
    for field, again, one in zip(first, affinity_fields(tensors, OFFSETS, 8), features, strict=True):
        assert difference(field.values, affinity_field(one, OFFSETS, 8).values) <= ERROR["affinity"]
        assert np.array_equal(field.values, again.values)


@pytest.mark.parametrize("flip", [True, False])
def test_merged_maps_equal_the_paper_form(flip):
    views = views_of(3, flip)
    tensors = [on_gpu(one) for one in views]
    for grid in ((19, 27), (94, 125)):
        assert difference(merge_maps(tensors, grid, flip=flip), merged(views, grid, flip)) <= ERROR["merge"]


@pytest.mark.parametrize("name", CASES)
def test_posteriors_equal_those_of_pydensecrf(name):
    image, scores, config, expected = read_golden(name)
    for _ in range(REPEATS):
        ((found,),) = dense_crfs([image], [[scores]], config)
        assert difference(found, expected) <= ERROR["crf"]


@pytest.mark.parametrize("noise", [0, 30, 120], ids=["flat", "photo", "noise"])
def test_posteriors_of_a_photo_repeat_to_the_bit(noise):
    """A thousand threads insert the same keys at once; which slot a key gets differs, the result does not."""
    image, scores = photo(*VOC, noise=noise), crf_scores(*VOC, 21)
    ((first,),) = dense_crfs([image], [[scores]], PSA)
    assert np.abs(first.sum(axis=0) - 1).max() <= 1e-5  # 21 roundings
    for _ in range(REPEATS):
        ((found,),) = dense_crfs([image], [[scores]], PSA)
        assert np.array_equal(found, first)


def test_posteriors_do_not_depend_on_the_batch():
    sizes = [VOC, (500, 375), (333, 500), VOC, (7, 9), (281, 500)]
    images = [photo(*size, seed=n) for n, size in enumerate(sizes)]
    scores = [[crf_scores(*size, 3 + n, seed=n)] * (1 + n % 2) for n, size in enumerate(sizes)]
    together = dense_crfs(images, scores, SOFT)
    for image, each, found in zip(images, scores, together, strict=True):
        (alone,) = dense_crfs([on_gpu(image)], [[on_gpu(one) for one in each]], SOFT)
        assert all(map(np.array_equal, alone, found))


def test_a_crowded_table_is_replaced():
    image, scores = photo(200, 300, noise=120), crf_scores(200, 300, 2)
    config = CrfConfig(gaussian_compat=0.5, bilateral_sxy=2.0, bilateral_srgb=2.0)  # nearly six vertices a pixel
    ((first,),) = dense_crfs([image], [[scores]], config)
    ((again,),) = dense_crfs([image], [[scores]], config)
    assert np.array_equal(first, again)
    assert np.isfinite(first).all()


def test_what_torch_still_computes_is_waited_for():
    scores = on_gpu(walk_scores((47, 63), 21))
    field = field_of((47, 63))
    (expected,) = random_walks([scores * 2], [field], WalkConfig())
    side = torch.cuda.Stream()
    for _ in range(REPEATS):
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)  # about ten milliseconds before the scores are there
            late = scores * 2
            (found,) = random_walks([late], [field], WalkConfig())
        assert np.array_equal(found, expected)


def test_a_full_gpu_halves_the_batch(gpu):
    images, scores = [photo(*VOC, n) for n in range(8)], [[crf_scores(*VOC, 21, n)] for n in range(8)]
    expected = dense_crfs(images, scores, SOFT)
    gpu.release()
    pool = gpu.cupy.get_default_memory_pool()
    pool.set_limit(size=pool.used_bytes() + (1 << 29))  # [bytes] room for some of the eight
    try:
        found = dense_crfs(images, scores, SOFT)
    finally:
        pool.set_limit(size=0)
        gpu.release()
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(tool):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("compute-sanitizer is not on the path: it comes with the CUDA toolkit")
    script = ROOT / "tests" / "runtime" / "cuda_shim" / "run_sanitized.py"
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, str(script), "gpu", "."]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [*command, "walk", "merge", "crf"], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=280
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
