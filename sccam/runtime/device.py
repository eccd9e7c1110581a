"""What the GPU code asks of a device: memory, kernels, a sort, a sum. `device_cupy.py` is the real one.

The host side of every kernel (`walk_cupy.py`, `affinity_cupy.py`, `crf_cupy.py`, `merge_cupy.py`) is written against
this interface alone. The tests give it a device that compiles the same .cu files with g++ and runs them on the CPU, so
that whole batches are computed without a GPU.

A buffer is an array of the device: `shape`, `dtype`, slices of the first axis, nothing else. Work is queued in order;
only `download` waits.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from sccam.errors import ResourceError
from sccam.structures import IntArray

KERNELS = Path(__file__).parent / "kernels"  # one .cu file for each family
PLANS = 8  # batches of how many shapes are kept ready: buffers and a recorded loop each

Buffer = Any
Recorder = Callable[[Callable[[], None]], None]
Item = TypeVar("Item")
Result = TypeVar("Result")


class MemoryFull(Exception):
    """The device has no room for a buffer. Callers halve the batch; users never see it."""


class Program(Protocol):
    """One compiled .cu file."""

    def launch(self, kernel: str, blocks: int, threads: int, *arguments: Any) -> None:
        """Queues a kernel on a 1-D grid; nothing where `blocks` is 0.

        Args:
            kernel: its name in the file.
            blocks, threads: of the grid and of each block.
            arguments: buffers as pointers, int as 32-bit integers, float as single precision.
        """


class Device(Protocol):
    """Memory and an ordered queue of work. Methods that make a buffer raise MemoryFull where there is no room."""

    def active(self) -> AbstractContextManager[Any]:
        """Everything below is called inside of this."""

    def program(self, file: str, defines: tuple[tuple[str, str], ...] = ()) -> Program:
        """The compiled `kernels/FILE.cu`, kept for the next call; `defines` are (macro, value)."""

    def upload(self, array: np.ndarray) -> Buffer:
        """A new buffer with the contents of a host array."""

    def borrow(self, array: Any, dtype: Any) -> Buffer:
        """An array of NumPy, torch or CuPy as a buffer; without a copy where it lies on the device in that type."""

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Buffer:
        """A new buffer whose contents are undefined."""

    def filled(self, shape: int | tuple[int, ...], dtype: Any, value: int) -> Buffer:
        """A new buffer that holds one value."""

    def fill(self, buffer: Buffer, value: int) -> None:
        """One value everywhere in an existing buffer."""

    def write(self, buffer: Buffer, array: Any) -> None:
        """Array of NumPy, torch or CuPy into the beginning of an existing buffer of the same type and trailing axes."""

    def download(self, buffer: Buffer) -> np.ndarray:
        """Contents as a host array, once all work queued before is done."""

    def pointer(self, buffer: Buffer) -> int:
        """Address on the device, valid while the buffer lives."""

    def sorted(self, keys: Buffer) -> Buffer:
        """u64 [n] ascending, as a new buffer."""

    def running_sum(self, counts: Buffer) -> Buffer:
        """i32 [n + 1] of i32 [n]: how much lies before each entry, the total last."""

    def recorder(self) -> Recorder:
        """Called with work that only launches, always the same: does it, and later replays it at little cost.

        The buffers of the work must stay where they are. The work is not kept, so that a plan that owns its recorder
        is freed when it is dropped.
        """

    def plan(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What `make` returned when this key was last seen, else a new one. The oldest of PLANS is dropped."""

    def release(self) -> None:
        """Drops plans and unused memory."""


def in_batches(
    device: Device,
    items: Sequence[Item],
    run: Callable[[Sequence[Item]], list[Result]],
    fits: Callable[[Sequence[Item]], bool],
) -> list[Result]:
    """Results of `run` for all items, in as few batches as fit; where memory runs out, batches are halved.

    Before that, a batch is tried once more on a device without the plans of other batches.

    Args:
        items: of the call, in order.
        run: takes a batch, gives a result for each of its items.
        fits: whether a batch is small enough to be tried; one item always is.

    Raises:
        ResourceError: there is no room for a single item.
    """
    waiting = list(_split(items, fits))
    results: list[Result] = []
    clean = False
    while waiting:
        batch = waiting.pop(0)
        try:
            results += run(batch)
            clean = False
            continue
        except MemoryFull as error:
            message = str(error)
        # Outside of the except block, whose traceback would keep the buffers of the failed batch alive.
        device.release()
        if not clean:
            clean = True
            waiting.insert(0, batch)
            continue
        if len(batch) == 1:
            raise ResourceError(
                "the GPU has no room for one image", why=message, fix="free GPU memory or use smaller images"
            )
        middle = len(batch) // 2
        waiting[:0] = [batch[:middle], batch[middle:]]
    return results


def block_table(items: Sequence[int], per_block: int | Sequence[int], capacity: int = 0) -> IntArray:
    """i32 [blocks 2]: which part of a batch each block works on, and the first of its items there.

    A batch is ragged: part n has items[n] items, and no block serves two parts. The rows behind the last block, up to
    `capacity`, say -1.

    Args:
        items: of each part.
        per_block: how many items a block takes, one number for all parts or one for each.
    """
    counts, shares = np.asarray(items, np.int64), np.broadcast_to(np.asarray(per_block, np.int64), len(items))
    blocks = -(-counts // shares)
    total = int(blocks.sum())
    table = np.full((max(total, capacity), 2), -1, np.int32)
    table[:total, 0] = np.repeat(np.arange(len(counts)), blocks)
    table[:total, 1] = (np.arange(total) - np.repeat(np.cumsum(blocks) - blocks, blocks)) * np.repeat(shares, blocks)
    return table


def check_size(size: int) -> None:
    """Raises MemoryFull for a buffer of so many values: places in it would not fit in 32 bits."""
    if size >= 1 << 31:
        raise MemoryFull(f"{size} values in one buffer; kernels count up to {1 << 31}")


def before(counts: Sequence[int] | np.ndarray) -> list[int]:
    """How much lies before each entry, the total last."""
    return [0, *np.cumsum(np.asarray(counts, np.int64)).tolist()]


def _split(items: Sequence[Item], fits: Callable[[Sequence[Item]], bool]) -> list[Sequence[Item]]:
    batches: list[Sequence[Item]] = []
    first = 0
    for last in range(1, len(items) + 1):
        if last - first > 1 and not fits(items[first:last]):
            batches.append(items[first : last - 1])
            first = last - 1
    return [*batches, items[first:]] if items else []
