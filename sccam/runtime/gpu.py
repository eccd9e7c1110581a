"""What GPU this is, asked of NVIDIA's driver itself: no library of ours needs to be installed for it."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from sccam.errors import BackendUnavailable

# Source: CUDA driver API, cuDeviceGetAttribute.
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """One GPU and its driver."""

    gpu: str  # "NVIDIA H100 80GB HBM3"
    compute_capability: str  # "9.0"
    cuda: str  # newest CUDA version that the driver serves, "13.0"


def gpu_facts(index: int = 0) -> GpuFacts:
    """Facts of one GPU.

    Raises:
        BackendUnavailable: there is no driver or no such GPU.
    """
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        raise BackendUnavailable(
            "no NVIDIA driver is installed", why=str(error), fix="use the onnx files on this machine"
        ) from error

    def ask(name: str, *arguments: object) -> None:
        code = getattr(driver, name)(*arguments)
        if code:
            raise BackendUnavailable(f"the NVIDIA driver finds no GPU {index}", why=f"{name} answers with error {code}")

    device, major, minor, version = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    ask("cuInit", 0)
    ask("cuDeviceGet", ctypes.byref(device), index)
    ask("cuDeviceGetName", name, len(name), device)
    ask("cuDeviceGetAttribute", ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, device)
    ask("cuDeviceGetAttribute", ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, device)
    ask("cuDriverGetVersion", ctypes.byref(version))
    return GpuFacts(
        gpu=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )
