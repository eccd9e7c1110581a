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

GRACE = 60.0  # [s] that a worker whose parent is gone may take to end

Result = TypeVar("Result")


def worker_count(requested: int) -> int:
    """`requested`, or the cores this process may use when it is 0."""
    if requested:
        return requested
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_quiet_worker) as pool:
        in_flight: deque[Future[Result]] = deque()
        try:
            for job in jobs:
                in_flight.append(pool.submit(function, *job))
                if len(in_flight) >= 4 * workers:
                    yield in_flight.popleft().result()
            while in_flight:
                yield in_flight.popleft().result()
        except BrokenProcessPool as error:
            raise ResourceError(
                "a worker process died",
                why='it ran out of memory or was killed; or a script calls this without `if __name__ == "__main__":`',
                fix="resume with fewer workers (--set run.workers=1)",
            ) from error
        finally:
            for future in in_flight:
                future.cancel()


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
