"""Any number of images through three steps that overlap: read, network, finish. Never stopped by a bad image.

    read threads          load(source)           decode, resize, pad; a read that hangs is given up
    lanes                 run(group)             the network on a batch of images of the same shapes
    finish threads        finish(loaded, output) labels, CRF, files

A GPU has one lane. On a CPU a folder goes quickest with several batches at a time, one core for each.

Memory is that of the images on their way, whatever their number: every queue has a length. A batch that fails, for
lack of memory or whatever else, is halved until only the guilty image is an error.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from threadpoolctl import threadpool_limits

from sccam.errors import ImageError, ResourceError, SccamError, ShapeError
from sccam.runtime.pool import worker_count
from sccam.runtime.sources import Source
from sccam.structures import ByteArray

AHEAD = 2  # images that each read thread is ahead, and batches a lane that are not finished yet
FINISHERS = 2  # threads for each that reads: half of them wait for the disk
WAITING_PIXELS = 16 << 20  # [px] of images that wait for others of their shapes
READ_SECONDS = 60.0  # after which a read that hangs is an error of its image
TRIES = 2  # runs of a batch size before its speed is known: the first one also makes room
GAIN = 1.1  # a batch twice as large must be this much faster an image to stay

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


@dataclass(slots=True)
class Loaded:
    """One image on its way.

    Attributes:
        source: where it came from.
        image: u8 [H W 3] as decoded, upright.
        inputs: what the network takes, each u8 [V h w 3]; images with the same shapes may share a batch.
        facts: what a job needs of it later on, such as its tags.
        ms: milliseconds by step, for its line.
    """

    source: Source
    image: ByteArray
    inputs: tuple[ByteArray, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    ms: dict[str, float] = field(default_factory=dict)

    @property
    def shapes(self) -> Hashable:
        """What must be alike in a batch."""
        return tuple(array.shape for array in self.inputs)

    @property
    def pixels(self) -> int:
        """[px] of network input."""
        return sum(array.size // 3 for array in self.inputs)


class Job(Protocol[Result_co]):
    """What is done with each image."""

    @property
    def lanes(self) -> int:
        """Batches that `run` takes at a time."""

    @property
    def batch_pixels(self) -> int:
        """[px] of network input that a batch has at most, unless one image has more."""

    def load(self, source: Source) -> Loaded:
        """Reads an image; on a read thread. An `SccamError` is an error of this image."""

    def run(self, group: Sequence[Loaded]) -> Sequence[Any]:
        """The network on images of the same shapes; for each an output, or its `SccamError`."""

    def finish(self, loaded: Loaded, output: Any) -> Result_co:
        """The result of one image; on a finish thread. An `SccamError` is an error of this image."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """One image that left: with a result, or with the error that kept it from one."""

    loaded: Loaded | None  # None where it could not be read
    source: Source
    result: Result | None
    error: SccamError | None


def stream(
    job: Job[Result], found: Iterable[Source], *, batch: int = 0, threads: int = 0
) -> Generator[Done[Result], None, None]:
    """Every image, done or failed; in the order in which batches are done.

    Args:
        batch: images a batch; 0 tries which number is fastest, where there is one lane.
        threads: that read, and `FINISHERS` times as many that finish; 0 for the cores.

    Raises:
        ResourceError: from `finish`: the disk is full, so no later image would fare better.
    """
    threads, lanes = worker_count(threads), job.lanes
    sizes = BatchSizes(batch or (1 if lanes > 1 else 0), job.batch_pixels)  # a core of its own is as quick with one
    ending: deque[Future[list[Future[Done[Result]]]]] = deque()

    def run(group: list[Loaded]) -> list[Future[Done[Result]]]:
        finishing = []
        for part, outputs, error in _run(job, group, sizes):
            results = [error] if error is not None else outputs
            finishing += [finishers.submit(_finished, job, *pair) for pair in zip(part, results, strict=True)]
        return finishing

    def ended() -> Iterator[Done[Result]]:
        for future in ending.popleft().result():
            yield future.result()

    # One thread a BLAS call: images are on as many threads as there are cores, and those of a BLAS would spin there.
    with (
        threadpool_limits(1, user_api="blas"),
        ThreadPoolExecutor(FINISHERS * threads) as finishers,
        ThreadPoolExecutor(lanes) as networks,
    ):
        try:
            for group in _grouped(_read_ahead(job.load, found, threads), sizes):
                if isinstance(group, Done):
                    yield group
                    continue
                ending.append(networks.submit(run, group))
                while len(ending) > AHEAD * lanes:
                    yield from ended()
            while ending:
                yield from ended()
        finally:
            for future in ending:
                future.cancel()


def _finished(job: Job[Result], loaded: Loaded, output: Any) -> Done[Result]:
    try:
        if isinstance(output, SccamError):  # of this image alone, known only after its batch had run
            raise output
        return Done(loaded, loaded.source, job.finish(loaded, output), None)
    except ResourceError:
        raise
    except SccamError as error:
        return Done(loaded, loaded.source, None, error)
    except (OSError, MemoryError) as error:  # such as a name that is too long for the file system
        wrong = ResourceError(f"its result cannot be made or written: {error}", where=loaded.source.where)
        return Done(loaded, loaded.source, None, wrong)


class BatchSizes:
    """How many images a batch has, for each kind of image.

    With no number given, sizes are doubled from 1 while that makes an image faster; measured on the work itself.
    """

    def __init__(self, fixed: int, batch_pixels: int):
        self.fixed, self.batch_pixels = fixed, batch_pixels
        self._kinds: dict[Hashable, _Size] = {}
        self._lock = threading.Lock()

    def of(self, loaded: Loaded) -> int:
        """Images a batch for images like this one."""
        size = self._kinds.setdefault(loaded.shapes, _Size(self.fixed or 1))
        return max(1, min(size.now, size.most, self.batch_pixels // max(1, loaded.pixels)))

    def ran(self, loaded: Loaded, images: int, seconds: float) -> None:
        """A batch of so many images like this one took so long."""
        with self._lock:
            self._ran(self._kinds[loaded.shapes], loaded.pixels, images, seconds)

    def _ran(self, size: _Size, pixels: int, images: int, seconds: float) -> None:
        if self.fixed or size.settled or images != size.now:
            return
        size.times.append(seconds / images)
        if len(size.times) < TRIES:
            return
        now, size.times = min(size.times), []
        if size.before and size.before < GAIN * now:  # no longer worth it
            size.now, size.settled = max(1, size.now // 2), True
        elif 2 * size.now > size.most or 2 * size.now * pixels > self.batch_pixels:
            size.settled = True
        else:
            size.before, size.now = now, 2 * size.now

    def failed(self, loaded: Loaded, images: int) -> None:
        """A batch of so many was too much; larger ones are not tried again."""
        with self._lock:
            size = self._kinds[loaded.shapes]
            size.most = max(1, min(size.most, images // 2))


@dataclass(slots=True)
class _Size:
    now: int
    most: int = 1 << 20
    before: float = 0.0  # [s an image] of half the size
    times: list[float] = field(default_factory=list)
    settled: bool = False


def _read_ahead(
    load: Callable[[Source], Loaded], found: Iterable[Source], threads: int
) -> Iterator[tuple[Source, Loaded | SccamError]]:
    """Images in their order, some of them on the way.

    Threads of our own, that end with the program: one that hangs in a read cannot be stopped, only replaced.
    """
    tasks: queue.SimpleQueue[tuple[Source, Future[Loaded]] | None] = queue.SimpleQueue()
    reading: deque[tuple[Source, Future[Loaded]]] = deque()

    def work() -> None:
        while task := tasks.get():
            source, future = task
            if future.set_running_or_notify_cancel():
                started = time.perf_counter()
                try:
                    loaded = load(source)
                    loaded.ms.setdefault("read", _ms_since(started))
                    future.set_result(loaded)
                except BaseException as error:
                    future.set_exception(error)

    def start() -> None:
        threading.Thread(target=work, name="sccam-read", daemon=True).start()

    def taken() -> tuple[Source, Loaded | SccamError]:
        source, future = reading.popleft()
        try:
            return source, future.result(timeout=READ_SECONDS)
        except SccamError as error:
            return source, error
        except TimeoutError:
            start()
            return source, ImageError(
                f"reading it took longer than {READ_SECONDS:.0f} s", where=source.where,
                why="the disk or network drive that it lies on does not answer",
            )  # fmt: skip
        except MemoryError:
            return source, ImageError("there is not enough memory to read it", where=source.where)

    for _ in range(threads):
        start()
    try:
        for source in found:
            future: Future[Loaded] = Future()
            reading.append((source, future))
            tasks.put((source, future))
            if len(reading) >= AHEAD * threads:
                yield taken()
        while reading:
            yield taken()
    finally:
        for _, future in reading:
            future.cancel()
        for _ in range(threads):
            tasks.put(None)


def _grouped(
    images: Iterable[tuple[Source, Loaded | SccamError]], sizes: BatchSizes
) -> Iterator[list[Loaded] | Done[Any]]:
    """Groups of the same shapes, and images that could not be read."""
    waiting: dict[Hashable, list[Loaded]] = {}
    for source, loaded in images:
        if isinstance(loaded, SccamError):
            yield Done(None, source, None, loaded)
            continue
        group = waiting.setdefault(loaded.shapes, [])
        group.append(loaded)
        if len(group) >= sizes.of(loaded):
            yield waiting.pop(loaded.shapes)
        elif sum(one.pixels for group in waiting.values() for one in group) > WAITING_PIXELS:
            yield waiting.pop(next(iter(waiting)))  # the shapes that have waited longest
    yield from waiting.values()


def _run(
    job: Job[Any], group: list[Loaded], sizes: BatchSizes
) -> Iterator[tuple[list[Loaded], Sequence[Any], SccamError | None]]:
    """Parts of a group with their outputs, or one image with its error."""
    started = time.perf_counter()
    try:
        outputs = job.run(group)
    except Exception as error:  # out of memory has another class in every runtime; a size may have no bucket
        if len(group) > 1:
            sizes.failed(group[0], len(group))
            for part in (group[: len(group) // 2], group[len(group) // 2 :]):
                yield from _run(job, part, sizes)
            return
        known = error if isinstance(error, SccamError) else ShapeError(f"the network failed: {error}")
        yield group, (), known
        return
    seconds = time.perf_counter() - started
    sizes.ran(group[0], len(group), seconds)
    for loaded in group:
        loaded.ms["network"] = round(1e3 * seconds / len(group), 2)
    yield group, outputs, None


def _ms_since(started: float) -> float:
    return round(1e3 * (time.perf_counter() - started), 2)
