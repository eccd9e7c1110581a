"""TensorRT for RTX, whose builder needs no GPU: NVIDIA's own parser and builder, to check exported files with.

A development aid (extra `tensorrt-check`), no part of sccam.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Any

LIBRARIES = ("libtensorrt_rtx.so.1.7.1", "libtensorrt_onnxparser_rtx.so.1.7.1")


def load() -> Any | None:
    """The module, to be used like `tensorrt`; None where the extra is not installed."""
    found = importlib.util.find_spec("onnxruntime_ep_nv_tensorrt_rtx")
    if found is None or importlib.util.find_spec("tensorrt_rtx_bindings") is None:
        return None
    folder = next(iter(found.submodule_search_locations or ()))
    for library in LIBRARIES:  # loaded first, so that the bindings find them by their names
        ctypes.CDLL(str(Path(folder, library)), mode=ctypes.RTLD_GLOBAL)
    return importlib.import_module("tensorrt_rtx_bindings")
