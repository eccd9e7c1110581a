"""Class activation maps of one image merged on the GPU: scales and mirror images added, divided by their maximum.

The numbers of `stages/cam.py`, Eq. 1, for maps that lie on the GPU already; only the merged map is copied back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sccam.errors import NumericError, ResourceError, ShapeError
from sccam.runtime.device import Device, MemoryFull
from sccam.runtime.device_cupy import open_device
from sccam.stages.cam import MAX_EPSILON
from sccam.structures import FloatArray

THREADS = 256  # of a block
MOST_VALUES = (1 << 31) - THREADS  # of the merged map: threads are counted in 32 bits


def merge_maps(views: Sequence[Any], grid: tuple[int, int], *, flip: bool, device: Device | None = None) -> FloatArray:
    """f32 [P h w]: maps of all scales, each resized to the grid; summed; divided by (spatial maximum + 1e-5).

    Args:
        views: one for each scale, [V P h_s w_s] of NumPy, torch or CuPy, rectified: the image's maps and, with `flip`,
            those of its mirror image, still mirrored.
        grid: (h, w) of the merged map [cells].
        flip: whether V is 2; else it is 1.
        device: the current GPU by default.

    Raises:
        ShapeError: a scale has another number of views or classes.
        NumericError: a map holds NaN or infinity.
        ResourceError: the GPU has no room.
        BackendUnavailable: CuPy is not installed, or there is no GPU.
    """
    height, width = grid
    shapes = [tuple(one.shape) for one in views]
    if not shapes or any(len(shape) != 4 for shape in shapes) or min(grid) < 1:
        raise ShapeError(f"maps have shapes {shapes} for grid {grid}, expected (V, P, h, w) of at least one scale")
    classes = shapes[0][1]
    for shape in shapes:
        if shape[:2] != (1 + flip, classes) or min(shape[2:]) < 1:
            raise ShapeError(f"maps have shape {shape}, expected ({1 + flip}, {classes}, h, w) as of the first scale")
    if classes * height * width > MOST_VALUES:
        raise ShapeError(f"{classes} maps of {height}x{width} cells are too many for one launch; use a coarser grid")
    if classes == 0:
        return np.zeros((0, height, width), np.float32)
    device = device or open_device()
    program = device.program("merge")
    try:
        with device.active():
            held = [device.borrow(one, np.float32) for one in views]  # alive until the download
            merged = device.empty((classes, height, width), np.float32)
            program.launch(
                "merge", -(-classes * height * width // THREADS), THREADS,
                device.upload(np.array([(h, w, v, 0) for v, _, h, w in shapes], np.int32)),
                device.upload(np.array([device.pointer(one) for one in held], np.uint64)),
                len(views), classes, height, width, merged,
            )  # fmt: skip
            program.launch("divide_by_maximum", classes, THREADS, height * width, MAX_EPSILON, merged)
            found = device.download(merged)
    except MemoryFull as error:
        raise ResourceError("the GPU has no room for the maps of one image", why=str(error)) from None
    if not np.isfinite(found).all():
        raise NumericError("maps of the classifier hold NaN or infinity", fix="check the network before this stage")
    return found
