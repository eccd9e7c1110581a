"""Per-image jobs over worker processes, with a bounded number in flight.

Processes, because the CRF library holds the interpreter lock; started afresh ("spawn"), because a process that has
run PyTorch must not be forked. Workers leave Ctrl-C to the parent, which lets the jobs in flight finish.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from sccam.errors import ResourceError

LOOK = 2.0  # [s] between looks at workers whose result does not come
GRACE = 60.0  # [s] that a worker whose parent is gone may take to end

Result = TypeVar("Result")


def worker_count(requested: int, beside: int = 1) -> int:
    """`requested`, or the cores this process may use when it is 0, its share of them among so many processes."""
    if requested:
        return requested
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // beside)


def run_jobs(
    function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], *, workers: int
) -> Generator[Result, None, None]:
    """Results of `function(*job)` in the order of the jobs; jobs are drawn only as fast as results are taken.

    Args:
        function: a module-level function; arguments and result must be picklable.
        workers: processes; 1 runs the jobs in this process.

    Raises:
        ResourceError: a worker process died (out of memory, most likely).
    """
    if workers == 1:
        for job in jobs:
            yield function(*job)
        return
    context, watch = multiprocessing.get_context("spawn"), _Watch()
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker) as pool:
        in_flight: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                in_flight.append(watch.submit(pool, function, job))
                if len(in_flight) >= 4 * workers:
                    yield watch.result(in_flight.popleft())
            while in_flight:
                yield watch.result(in_flight.popleft())
        except BrokenProcessPool as error:
            watch.end()
            raise ResourceError(
                "a worker process died",
                why='it ran out of memory or was killed; or a script calls this without `if __name__ == "__main__":`',
                fix="resume with fewer workers (--set run.workers=1)",
            ) from error
        finally:
            for future in in_flight:
                future.cancel()


class _Watch:
    """Sees to it that a worker's death ends its pool: the library loses sight of a worker that it begins just then,
    and of the job that it is given, and would wait for both for ever."""

    def __init__(self) -> None:
        self._before = set(multiprocessing.active_children())
        self._workers: set[multiprocessing.process.BaseProcess] = set()

    def submit(
        self, pool: ProcessPoolExecutor, function: Callable[..., Result], job: tuple[Any, ...]
    ) -> Future[Result]:
        """Hands a job to the pool.

        Raises:
            BrokenProcessPool: a worker has died.
        """
        try:
            future = pool.submit(function, *job)
        except (OSError, RuntimeError) as error:  # its queues may be closed already, or no process can be started
            raise BrokenProcessPool(str(error)) from error
        self._seen()
        return future

    def result(self, future: Future[Result]) -> Result:
        """What a job gives.

        Raises:
            BrokenProcessPool: a worker has died.
        """
        while True:
            try:
                return future.result(timeout=LOOK)
            except TimeoutError:
                if future.done():  # the job's own
                    raise
                if self._died():
                    raise BrokenProcessPool("a worker has died, and nobody has noticed") from None

    def end(self) -> None:
        """Kills the workers that are left."""
        for worker in self._seen():
            if worker.is_alive():
                worker.kill()

    def _died(self) -> bool:
        return any(worker.exitcode for worker in self._seen())

    def _seen(self) -> set[multiprocessing.process.BaseProcess]:
        self._workers |= set(multiprocessing.active_children()) - self._before
        return self._workers


def end_with_parent() -> None:
    """In a worker: a parent that was killed takes this process with it, as SIGTERM would; else it would work on."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)  # for a checkpoint; what waits in the queue is not to be begun
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _quiet_worker() -> None:
    """One computing thread per worker; stop signals are the parent's business."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
