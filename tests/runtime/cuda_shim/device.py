"""The CPU as `sccam.runtime.device` asks for a GPU: the same .cu files compiled by g++, buffers in NumPy arrays.

New buffers are full of rubbish, blocks and threads run in an order drawn from a seed, and the sanitizers of g++ can be
asked for, so that what a GPU would punish shows here.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sccam.runtime.device import KERNELS, MemoryFull, Recorder

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++20", "-march=native", "-ffp-contract=off", "-fPIC", "-shared",
    "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-clobbered",
)  # fmt: skip
SANITIZERS = {
    "": ("-O1",),
    "thread": ("-O0", "-fsanitize=thread", "-DSHIM_THREADS"),
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}
RUBBISH = 0x5A  # large positive integers, large floats
KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\(\d+\)\s+)?(\w+)\(')


class ShimDevice:
    """See `sccam.runtime.device.Device`.

    Args:
        folder: for the compiled files.
        seed: of the order of blocks and threads.
        sanitizer: a key of SANITIZERS.
        room: [bytes] a batch may allocate between two calls of `release`; no limit by default.
    """

    def __init__(self, folder: Path, seed: int = 0, sanitizer: str = "", room: int | None = None) -> None:
        self.folder, self.seed, self.sanitizer, self.room = folder, seed, sanitizer, room
        self.used = 0
        self.launches = 0
        self._programs: dict[Hashable, ShimProgram] = {}
        self._plans: dict[Hashable, Any] = {}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self.used = 0
        yield

    def program(self, file: str, defines: tuple[tuple[str, str], ...] = ()) -> ShimProgram:
        if (file, defines) not in self._programs:
            library = compiled(KERNELS / f"{file}.cu", defines, self.folder, self.sanitizer)
            self._programs[file, defines] = ShimProgram(self, ctypes.CDLL(str(library)), KERNELS / f"{file}.cu")
        return self._programs[file, defines]

    def upload(self, array: np.ndarray) -> np.ndarray:
        buffer = self.empty(array.shape, array.dtype)
        buffer[...] = array
        return buffer

    def borrow(self, array: Any, dtype: Any) -> np.ndarray:
        if hasattr(array, "detach"):
            array = array.detach().float()
        return self.upload(np.asarray(array, dtype))

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.used += size
        if self.room is not None and self.used > self.room:
            raise MemoryFull(f"{self.used} bytes asked for, {self.room} there")
        # Of ctypes, not of NumPy, which keeps small blocks and so hides them from AddressSanitizer.
        memory = np.frombuffer((ctypes.c_char * max(size, 1))(), np.uint8)
        memory.fill(RUBBISH)
        assert memory.ctypes.data % 16 == 0, "Python aligns to 16 bytes"
        return memory[:size].view(dtype).reshape(shape)

    def filled(self, shape: int | tuple[int, ...], dtype: Any, value: int) -> np.ndarray:
        buffer = self.empty(shape, dtype)
        buffer[...] = value
        return buffer

    def fill(self, buffer: np.ndarray, value: int) -> None:
        buffer[...] = value

    def write(self, buffer: np.ndarray, array: Any) -> None:
        array = np.asarray(array)
        assert buffer.dtype == array.dtype and buffer.shape[1:] == array.shape[1:] and len(array) <= len(buffer)
        buffer[: len(array)] = array

    def download(self, buffer: np.ndarray) -> np.ndarray:
        return buffer.copy()

    def pointer(self, buffer: np.ndarray) -> int:
        assert buffer.flags.c_contiguous
        return buffer.ctypes.data

    def sorted(self, keys: np.ndarray) -> np.ndarray:
        assert keys.dtype == np.uint64
        return self.upload(np.sort(keys))

    def running_sum(self, counts: np.ndarray) -> np.ndarray:
        assert counts.dtype == np.int32
        return self.upload(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))

    def recorder(self) -> Recorder:
        return lambda work: work()

    def plan(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._plans:
            self._plans[key] = make()
        return self._plans[key]

    def release(self) -> None:
        self._plans.clear()


class ShimProgram:
    """One .cu file as a shared library."""

    def __init__(self, device: ShimDevice, library: ctypes.CDLL, source: Path) -> None:
        self._device, self._library = device, library
        parts = KERNEL.split(source.read_text(encoding="utf-8"))
        self._barriers = {name: "__syncthreads" in body for name, body in zip(parts[1::2], parts[2::2], strict=True)}

    def launch(self, kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
        wanted = getattr(self._library, f"arguments_{kernel}")()
        assert len(arguments) == wanted, f"{kernel} takes {wanted} arguments, {len(arguments)} given"
        assert 0 < threads <= 1024 and 0 <= blocks < 2**31
        values = [_argument(value) for value in arguments]
        places = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self._device.launches += 1
        seed = self._device.seed * 7919 + self._device.launches
        getattr(self._library, f"launch_{kernel}")(blocks, threads, self._barriers[kernel], seed % 2**31, places)


def kernel_names(source: Path) -> list[str]:
    """Of all kernels in a .cu file."""
    return KERNEL.findall(source.read_text(encoding="utf-8"))


def compiled(source: Path, defines: tuple[tuple[str, str], ...], folder: Path, sanitizer: str = "") -> Path:
    """A shared library with a function `launch_NAME` for each kernel; compiled once in a folder."""
    lines = ['#include "shim.h"', f'#include "{source}"', *(f"SHIM_KERNEL({name})" for name in kernel_names(source))]
    command = [
        shutil.which("g++") or "g++", *FLAGS, *SANITIZERS[sanitizer],
        *(f"-D{name}={value}" for name, value in defines), f"-I{HERE}",
    ]  # fmt: skip
    name = hashlib.sha256(" ".join([*command, str(source)]).encode()).hexdigest()[:16]
    library = folder / f"{source.stem}-{name}.so"
    if not library.exists():
        code = library.with_suffix(".cpp")
        code.write_text("\n".join(lines) + "\n")
        subprocess.run([*command, str(code), "-o", str(library), "-pthread"], check=True)
    return library


def _argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous, "kernels take contiguous buffers"
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, float):
        return ctypes.c_float(value)
    assert isinstance(value, int) and -(2**31) <= value < 2**31, value
    return ctypes.c_int32(value)
