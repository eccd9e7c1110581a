"""Runs every family of kernels on small inputs under a sanitizer: python run_sanitized.py SANITIZER FOLDER CASE ...

The sanitizer's library has to be loaded before Python: test_cuda_sanitizers.py sees to it. With "gpu" for SANITIZER the
kernels run on the GPU, under NVIDIA's compute-sanitizer: tests/gpu sees to that.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sccam.runtime.affinity_cupy import affinity_fields
from sccam.runtime.crf_cupy import dense_crfs
from sccam.runtime.device import Device
from sccam.runtime.device_cupy import open_device
from sccam.runtime.merge_cupy import merge_maps
from sccam.runtime.walk_cupy import random_walks
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.crf import CrfConfig
from sccam.stages.walk import WalkConfig
from tests.runtime.cuda_shim import device as shim


def run(device: Device, case: str) -> None:
    """Returns when nothing was found; else the sanitizer ends the process or reports at its end."""
    rng = np.random.default_rng(0)
    if case in ("without_barrier", "one_place", "beyond"):
        shim.KERNELS = Path(__file__).parent
        device.program("races").launch(case, 8, 32, device.empty(8, np.float32))
    elif case == "walk":
        features = [rng.random((3, *grid), dtype=np.float32) for grid in ((5, 6), (3, 9))]
        fields = affinity_fields(features, neighbour_offsets(3), 8, device=device)
        random_walks(features, fields, WalkConfig(steps=12), device=device)
    elif case == "merge":
        merge_maps([rng.random((2, 2, 4, 5), dtype=np.float32)], (6, 7), flip=True, device=device)
    else:
        images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((9, 9), (2, 3))]
        images[0][:] = 100  # so that many pixels insert one key at once, and rows become long
        # 36 labels are nine quads: mean_field_splat_longs takes them in two turns.
        scores = [[rng.random((36, 9, 9), dtype=np.float32)], [rng.random((6, 2, 3), dtype=np.float32)]]
        dense_crfs(images, scores, CrfConfig(iterations=1), device=device)


if __name__ == "__main__":
    sanitizer, folder, *cases = sys.argv[1:]
    for case in cases:
        run(open_device() if sanitizer == "gpu" else shim.ShimDevice(Path(folder), sanitizer=sanitizer), case)
