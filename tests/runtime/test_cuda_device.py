"""The host side of the GPU: batches that fit, blocks of ragged batches, and CuPy's answers turned into ours."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sccam.errors import BackendUnavailable, ResourceError, ShapeError
from sccam.runtime import device_cupy
from sccam.runtime.affinity_cupy import affinity_fields
from sccam.runtime.crf_cupy import dense_crfs
from sccam.runtime.device import KERNELS, PLANS, Device, MemoryFull, before, block_table, in_batches
from sccam.runtime.device_cupy import CupyDevice
from sccam.runtime.merge_cupy import merge_maps
from sccam.runtime.walk_cupy import random_walks
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.crf import PSA
from sccam.stages.walk import WalkConfig
from tests.runtime.cuda_cases import crf_scores, field_of, photo, views_of, walk_scores
from tests.runtime.cuda_shim.device import ShimDevice


def test_blocks_of_a_ragged_batch_serve_one_part_each():
    table = block_table([5, 0, 4, 1], 4, capacity=6)
    assert table.tolist() == [[0, 0], [0, 4], [2, 0], [3, 0], [-1, -1], [-1, -1]]
    assert block_table([5, 4], [2, 4]).tolist() == [[0, 0], [0, 2], [0, 4], [1, 0]]
    assert block_table([], 4).shape == (0, 2)


def test_offsets_do_not_overflow_32_bits():
    assert before(np.array([2**31 - 1, 2**31 - 1], np.int64)) == [0, 2**31 - 1, 2**32 - 2]


class Room:
    """A device of which only the memory matters."""

    def __init__(self, room: int) -> None:
        self.room, self.released = room, 0
        self.batches: list[list[int]] = []

    def release(self) -> None:
        self.released += 1

    def run(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        if sum(batch) > self.room:
            raise MemoryFull("full")
        return [-item for item in batch]


def test_batches_are_as_large_as_fits_and_results_keep_their_order():
    device: Any = Room(100)
    assert in_batches(device, [3, 4, 9, 1, 1], device.run, lambda batch: sum(batch) <= 7) == [-3, -4, -9, -1, -1]
    assert device.batches == [[3, 4], [9], [1, 1]]
    assert in_batches(device, [], device.run, lambda batch: True) == []


def test_a_batch_that_finds_no_room_is_tried_on_a_clean_device_then_halved():
    device: Any = Room(5)
    assert in_batches(device, [3, 2, 4], device.run, lambda batch: True) == [-3, -2, -4]
    assert device.batches == [[3, 2, 4], [3, 2, 4], [3], [2, 4], [2, 4], [2], [4]]
    assert device.released == 4
    with pytest.raises(ResourceError, match="no room for one image"):
        in_batches(device, [6], device.run, lambda batch: True)


def test_without_cupy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    device_cupy.open_device.cache_clear()
    error = device_cupy.missing()
    assert isinstance(error, BackendUnavailable)
    assert "pip install cupy-cuda13x" in str(error)


class CudaError(RuntimeError):
    """As `cupy.cuda.runtime.CUDARuntimeError`."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Stream(contextlib.nullcontext):
    """Keeps what is launched while a graph is captured."""

    def __init__(self, non_blocking: bool = False) -> None:
        super().__init__()
        self.captured: list[str] | None = None
        self.log: list[str] = []

    def synchronize(self) -> None:
        pass

    def begin_capture(self) -> None:
        self.captured = []  # kernels of the stand-in run at once: only what is launched by name is kept

    def end_capture(self) -> Any:
        captured, self.captured = self.captured, None
        return SimpleNamespace(launch=lambda stream: stream.log.append(f"graph of {captured}"))

    def launch(self, name: str) -> None:
        (self.log if self.captured is None else self.captured).append(name)


class Array(np.ndarray):
    """A NumPy array with the address where CuPy keeps it."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)


def as_array(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The same function, whose result is an Array."""
    return lambda *arguments, **keywords: function(*arguments, **keywords).view(Array)


class Module:
    """As `cupy.RawModule`, with kernels that g++ compiled."""

    def __init__(self, folder: Path, code: str, options: tuple[str, ...]) -> None:
        (source,) = [path for path in KERNELS.glob("*.cu") if path.read_text(encoding="utf-8") == code]
        assert options[0] == "--std=c++17"
        macros = [option.removeprefix("-D").split("=") for option in options[1:]]
        self.program = ShimDevice(folder).program(source.stem, tuple((name, value) for name, value in macros))

    def get_function(self, name: str) -> Callable[..., None]:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert all(isinstance(value, Array | np.int32 | np.float32) for value in arguments)
            plain = [value if isinstance(value, np.ndarray) else value.item() for value in arguments]
            self.program.launch(name, *grid, *block, *plain)

        return launch


@pytest.fixture
def stub(kernel_folder) -> Any:
    """The words of CuPy that we use, on NumPy arrays."""
    gpu = contextlib.nullcontext()
    gpu.id = 0  # type: ignore[attr-defined]
    gpu.compute_capability = "90"  # type: ignore[attr-defined]
    return SimpleNamespace(
        cuda=SimpleNamespace(
            Device=lambda: gpu,
            Stream=Stream,
            alloc_pinned_memory=bytearray,
            runtime=SimpleNamespace(CUDARuntimeError=CudaError, getDeviceCount=lambda: 1),
        ),
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
        get_default_pinned_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
        asarray=as_array(np.array), empty=as_array(np.empty), full=as_array(np.full), zeros=as_array(np.zeros),
        sort=as_array(np.sort), cumsum=as_array(np.cumsum), ascontiguousarray=as_array(np.ascontiguousarray),
        asnumpy=lambda array, stream, out: np.copyto(out, array), RawModule=partial(Module, kernel_folder),
        __version__="14",
    )  # fmt: skip


def test_cupy_gets_the_calls_that_it_understands(stub, device):
    """Whole calls through CupyDevice, whose every word a stand-in answers: the numbers of the other stand-in."""
    cupy = CupyDevice(stub)
    field, scores = field_of((6, 9)), walk_scores((6, 9), 2)
    image, unary = photo(9, 11), crf_scores(9, 11, 3)
    views = views_of(2, True)

    def results(one: Device) -> list[np.ndarray]:
        return [
            random_walks([scores], [field], WalkConfig(steps=30), device=one)[0],
            dense_crfs([image], [[unary]], PSA, device=one)[0][0],
            merge_maps(views, (8, 9), flip=True, device=one),
            affinity_fields([scores], neighbour_offsets(3), 8, device=one)[0].values,
        ]

    expected = results(device)
    for _ in range(2):  # plainly, then from plans that are kept
        assert all(map(np.array_equal, results(cupy), expected))


def test_where_no_memory_can_be_locked_results_lie_in_other_memory(stub):
    def refuses(size: int) -> None:
        raise CudaError(2)

    stub.cuda.alloc_pinned_memory = refuses
    assert CupyDevice(stub).download(np.arange(6, dtype=np.int32).reshape(2, 3)).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_loop_is_launched_once_then_captured_then_replayed(stub):
    device = CupyDevice(stub)
    stream, replay = device.stream, device.recorder()
    for _ in range(3):
        replay(lambda: stream.launch("step"))
    assert stream.log == ["step", "graph of ['step']", "graph of ['step']"]


def test_an_error_while_capturing_ends_the_capture(stub):
    device = CupyDevice(stub)
    replay = device.recorder()
    replay(lambda: None)

    def failing() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        replay(failing)
    assert device.stream.captured is None


@pytest.mark.parametrize("error", [MemoryError("full"), CudaError(2)])
def test_every_way_of_running_out_of_memory_is_one(stub, error):
    with pytest.raises(MemoryFull), CupyDevice(stub).active():
        raise error


def test_other_errors_of_cuda_stay_what_they_are(stub):
    with pytest.raises(CudaError), CupyDevice(stub).active():
        raise CudaError(700)


def test_the_oldest_plan_is_dropped(stub):
    device = CupyDevice(stub)
    made: list[int] = []
    for key in [*range(PLANS), 0, PLANS, 0, 1]:
        device.plan(key, partial(made.append, key))
    assert made == [*range(PLANS), PLANS, 1]


def test_host_arrays_are_uploaded_and_foreign_gpus_refused(stub):
    device = CupyDevice(stub)
    taken = device.borrow(torch.ones(3, requires_grad=True, dtype=torch.bfloat16), np.float32)
    assert taken.dtype == np.float32
    assert device.running_sum(np.array([2, 0, 3], np.int32)).tolist() == [0, 2, 2, 5]
    stub.from_dlpack = lambda array: SimpleNamespace(device=SimpleNamespace(id=1))
    elsewhere = SimpleNamespace(__dlpack_device__=lambda: (2, 1))
    with pytest.raises(ShapeError, match="GPU 1, the kernels run on GPU 0"):
        device.borrow(elsewhere, np.float32)


@pytest.mark.parametrize("found", ["none", "old", "error"])
def test_without_a_usable_gpu_the_error_says_so(stub, monkeypatch, found):
    def broken() -> int:
        raise CudaError(35)

    if found == "old":
        stub.cuda.Device().compute_capability = "61"
    else:
        stub.cuda.runtime.getDeviceCount = broken if found == "error" else lambda: 0
    monkeypatch.setitem(sys.modules, "cupy", stub)
    device_cupy.open_device.cache_clear()
    assert "CuPy finds no GPU" in str(device_cupy.missing())


def test_the_gpu_rows_load_neither_torch_nor_cupy():
    modules = ["walk_cupy", "affinity_cupy", "crf_cupy", "merge_cupy"]
    code = (
        f"import sys; from sccam.runtime import {', '.join(modules)}; assert not {{'torch', 'cupy'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
