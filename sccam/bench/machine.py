"""What a benchmark ran on: names, versions, and the rates that nothing on this machine can beat.

The rates are measured, not looked up: the fastest of a few large matrix products and convolutions, and of a few copies.
What a row's work takes at these rates is its floor, and `of_ceiling` says how near it came.
"""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sccam.origin import commit, device_name

PACKAGES = ("torch", "timm", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "scikit-learn", "pydensecrf2",
            "cupy-cuda13x", "cupy-cuda12x", "tensorrt", "pillow")  # fmt: skip
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices
IMAGES = {"cpu": 4, "cuda": 64}  # of the convolution
BYTES = {"cpu": 128 << 20, "cuda": 2 << 30}  # of the array that is copied; far beyond any cache
TRIES = 5
PROCESS_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def facts(device: str) -> dict[str, Any]:
    """All that a reader of the figures must know of the machine.

    Raises:
        BackendUnavailable: there is no such device.
    """
    import torch

    from sccam.nets.compute import Compute

    Compute.resolve(device, "fp32")
    found = {
        "device": device_name(device),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "versions": {name: text for name in PACKAGES if (text := _version(name)) is not None},
        "memory_gb": round(_memory(device) / 2**30, 1),
        "ceilings": ceilings(device),
    }
    if device == "cuda":
        found |= {"cuda": torch.version.cuda, "driver": _driver()}
    return found


@cache
def ceilings(device: str) -> dict[str, float]:
    """Measured rates: `gflops` in fp32 (TF32 off), `gflops_bf16`, and `gbytes` a second read and written."""
    import torch

    kind = "cuda" if device.startswith("cuda") else "cpu"
    count = BYTES[kind] // 4
    rates = {}
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name, dtype in (("gflops", torch.float32), ("gflops_bf16", torch.bfloat16)):
        rates[name] = round(
            max(_product_rate(SIDES[kind], dtype, device), _convolution_rate(IMAGES[kind], dtype, device)), 1
        )
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
    source, target = torch.ones(count, device=device), torch.zeros(count, device=device)
    rates["gbytes"] = round(8e-9 * count / _fastest(lambda: target.copy_(source), device), 1)
    return rates


def _product_rate(side: int, dtype: Any, device: str) -> float:
    """[GFLOP/s] of a square matrix product."""
    import torch

    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2e-9 * side**3 / _fastest(lambda: a @ b, device)


def _convolution_rate(images: int, dtype: Any, device: str) -> float:
    """[GFLOP/s] of a 3x3 convolution of 256 channels: on some processors another library, and a faster one."""
    import torch

    def tensor(*shape: int) -> Any:
        return torch.rand(*shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)

    channels, side = 256, 64
    x, weight = tensor(images, channels, side, side), tensor(channels, channels, 3, 3)
    with torch.inference_mode():
        seconds = _fastest(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device)
    return 2e-9 * 9 * channels**2 * side**2 * images / seconds


def file_name(device: str) -> str:
    """Of the JSON file of today's figures, such as "nvidia-h100-2026-11-25.json"."""
    words = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return f"{words}-{datetime.date.today().isoformat()}.json"


def waiter(device: str) -> Callable[[], object]:
    """Waits until the device has done all that it was given."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.synchronize
    return lambda: None


class PeakMemory:
    """The most memory that a block held over what was held before [MB]: of this process, or of the GPU by torch.

    As a context manager; `mb` is None where the system does not tell.
    """

    def __init__(self, device: str):
        self._gpu = device.startswith("cuda")
        self.mb: float | None = None

    def __enter__(self) -> PeakMemory:
        if self._gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()
            self._before = torch.cuda.memory_allocated()
        else:
            _give_back()
            try:
                PROCESS_PEAK[1].write_text("5", encoding="ascii")  # the peak begins anew
            except OSError:
                pass
            self._before = _status("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        if self._gpu:
            import torch

            self.mb = round((torch.cuda.max_memory_allocated() - self._before) / 1e6, 1)
        elif self._before:
            self.mb = round(max(0, _status("VmHWM") - self._before) / 1e6, 1)


def _give_back() -> None:
    """Has the C library return what was freed to the system, where it can: kept memory would hide what a run takes."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _status(field: str) -> int:
    """[bytes] of a line of /proc/self/status; 0 where there is none."""
    try:
        text = PROCESS_PEAK[0].read_text(encoding="ascii")
    except OSError:
        return 0
    match = re.search(rf"^{field}:\s*(\d+) kB", text, re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


def _fastest(work: Callable[[], object], device: str) -> float:
    wait, times = waiter(device), []
    for _ in range(TRIES):
        wait()
        started = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - started)
    return min(times)


def _memory(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return None
