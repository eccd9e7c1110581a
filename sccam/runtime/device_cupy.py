"""The GPU as `device.py` asks for it, by CuPy: kernels compiled by NVRTC, one stream, CUDA graphs for loops.

Needs a GPU of compute capability 7.0 (Volta) or newer. The .cu files include nothing, so no CUDA toolkit has to be
installed beside CuPy.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import numpy as np

from sccam.errors import BackendUnavailable, ShapeError
from sccam.runtime.device import KERNELS, PLANS, Buffer, MemoryFull, Recorder

OLDEST = 70  # compute capability: `ld.relaxed` and independent threads of a warp
MEMORY_ALLOCATION = 2  # cudaErrorMemoryAllocation; CUDA runtime API
CUDA_MEMORY = (2, 13)  # DLPack device types: CUDA, CUDA managed


def missing() -> BackendUnavailable | None:
    """Why the GPU kernels cannot work here; None where they can."""
    try:
        open_device()
    except BackendUnavailable as error:
        return error
    return None


@functools.cache
def open_device() -> CupyDevice:
    """The current GPU, with a stream of its own.

    Raises:
        BackendUnavailable: CuPy is not installed, or there is no GPU that it can use.
    """
    return CupyDevice(_cupy())


class CupyDevice:
    """See `device.Device`."""

    def __init__(self, cupy: Any, stream: Any = None) -> None:
        """Args:
        cupy: the module.
        stream: a CuPy stream to queue on, such as `cupy.cuda.ExternalStream(torch_stream.cuda_stream)`; its own
            by default.
        """
        self.cupy = cupy
        self.gpu = cupy.cuda.Device()
        self.stream = stream or cupy.cuda.Stream(non_blocking=True)
        self._lock = threading.RLock()  # plans own buffers: one batch at a time
        self._programs: dict[Hashable, _Program] = {}
        self._plans: OrderedDict[Hashable, Any] = OrderedDict()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        with self._lock, self.gpu, self.stream:
            try:
                yield
            except MemoryError as error:  # CuPy's own error is one, and what Thrust throws becomes one
                raise MemoryFull(str(error)) from None
            except self.cupy.cuda.runtime.CUDARuntimeError as error:
                if error.status != MEMORY_ALLOCATION:
                    raise
                raise MemoryFull(str(error)) from None

    def program(self, file: str, defines: tuple[tuple[str, str], ...] = ()) -> _Program:
        if (file, defines) not in self._programs:
            options = ("--std=c++17", *(f"-D{name}={value}" for name, value in defines))
            module = self.cupy.RawModule(code=(KERNELS / f"{file}.cu").read_text(encoding="utf-8"), options=options)
            self._programs[file, defines] = _Program(module, self.cupy)
        return self._programs[file, defines]

    def upload(self, array: np.ndarray) -> Buffer:
        return self.cupy.asarray(np.ascontiguousarray(array))

    def borrow(self, array: Any, dtype: Any) -> Buffer:
        if hasattr(array, "detach"):  # torch: gradients are not exported, and NumPy knows no bfloat16
            array = array.detach()
            array = array.float() if array.is_floating_point() else array
        if not hasattr(array, "__dlpack_device__") or array.__dlpack_device__()[0] not in CUDA_MEMORY:
            return self.upload(np.asarray(array, dtype))
        found = self.cupy.from_dlpack(array)
        if found.device.id != self.gpu.id:
            raise ShapeError(f"an array lies on GPU {found.device.id}, the kernels run on GPU {self.gpu.id}")
        return self.cupy.ascontiguousarray(found, dtype)

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Buffer:
        return self.cupy.empty(shape, dtype)

    def filled(self, shape: int | tuple[int, ...], dtype: Any, value: int) -> Buffer:
        return self.cupy.full(shape, value, dtype)

    def fill(self, buffer: Buffer, value: int) -> None:
        buffer.fill(value)

    def write(self, buffer: Buffer, array: Any) -> None:
        buffer[: len(array)] = self.borrow(array, buffer.dtype)

    def download(self, buffer: Buffer) -> np.ndarray:
        host = self._host_array(buffer.shape, buffer.dtype)
        self.cupy.asnumpy(buffer, stream=self.stream, out=host)
        self.stream.synchronize()
        return host

    def _host_array(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """In locked memory, which CuPy's pool keeps for the next call: copies into fresh pages take many times as long.

        Where the system locks no more, in memory as usual.
        """
        size = math.prod(shape) * dtype.itemsize
        try:
            memory = self.cupy.cuda.alloc_pinned_memory(max(size, 1))
        except (MemoryError, self.cupy.cuda.runtime.CUDARuntimeError):
            return np.empty(shape, dtype)
        return np.ndarray(shape, dtype, memory)

    def pointer(self, buffer: Buffer) -> int:
        return int(buffer.data.ptr)

    def sorted(self, keys: Buffer) -> Buffer:
        return self.cupy.sort(keys)

    def running_sum(self, counts: Buffer) -> Buffer:
        sums = self.cupy.zeros(len(counts) + 1, np.int32)
        if len(counts):
            sums[1:] = self.cupy.cumsum(counts, dtype=np.int32)
        return sums

    def recorder(self) -> Recorder:
        return _Recorder(self.stream)

    def plan(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._plans:
            while len(self._plans) >= PLANS:
                self._plans.popitem(last=False)
            self._plans[key] = make()
        self._plans.move_to_end(key)
        return self._plans[key]

    def release(self) -> None:
        self.stream.synchronize()
        self._plans.clear()
        gc.collect()  # a traceback may hold buffers in a cycle
        self.cupy.get_default_memory_pool().free_all_blocks()
        self.cupy.get_default_pinned_memory_pool().free_all_blocks()


class _Program:
    def __init__(self, module: Any, cupy: Any) -> None:
        self._module, self._cupy = module, cupy
        self._kernels: dict[str, Any] = {}

    def launch(self, kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
        if blocks == 0:
            return
        if kernel not in self._kernels:
            try:
                self._kernels[kernel] = self._module.get_function(kernel)
            except self._cupy.cuda.compiler.CompileException as error:
                raise BackendUnavailable(
                    f"CuPy could not compile {kernel}", why=str(error), fix="install the CuPy that fits your driver"
                ) from error
        self._kernels[kernel]((blocks,), (threads,), tuple(map(_argument, arguments)))


class _Recorder:
    """Plain launches the first time, which also loads the kernels; then a graph, captured the second time."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._calls = 0
        self._graph: Any = None

    def __call__(self, work: Callable[[], None]) -> None:
        self._calls += 1
        if self._calls == 1:
            work()
            return
        if self._graph is None:
            self._stream.begin_capture()
            try:
                work()
            finally:  # also after an error, so that the stream can be used again
                graph = self._stream.end_capture()
            self._graph = graph
        self._graph.launch(self._stream)


def _argument(value: Any) -> Any:
    if isinstance(value, int):
        return np.int32(value)  # refuses what does not fit
    return np.float32(value) if isinstance(value, float) else value


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailable(
            f"the GPU kernels need CuPy: {error}", fix="pip install cupy-cuda13x (or cupy-cuda12x), as your driver"
        ) from error
    try:
        found = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailable(
            "CuPy finds no GPU", why=str(error), fix="install NVIDIA's driver, or choose kernels for the CPU"
        ) from error
    if found == 0 or int(cupy.cuda.Device().compute_capability) < OLDEST:
        raise BackendUnavailable(
            "CuPy finds no GPU of compute capability 7.0 or newer", fix="choose kernels for the CPU"
        )
    return cupy
