"""Jobs over processes: results in order, errors as they were raised, a dead worker told in words."""

from __future__ import annotations

import multiprocessing
import operator
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sccam.data.masks import read_mask
from sccam.errors import MaskError, ResourceError
from sccam.runtime.pool import run_jobs, worker_count

ROOT = str(Path(__file__).resolve().parents[2])

# Jobs are functions of the standard library and of sccam, which a fresh process can import without the tests.


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_jobs(workers):
    jobs = [(2, n) for n in range(25)]
    assert list(run_jobs(pow, jobs, workers=workers)) == [2**n for n in range(25)]


@pytest.mark.parametrize("workers", [1, 2])
def test_no_jobs_give_no_results(workers):
    assert list(run_jobs(pow, [], workers=workers)) == []


def test_one_worker_is_this_process_and_two_are_not():
    assert set(run_jobs(os.getpid, [(), ()], workers=1)) == {os.getpid()}
    assert os.getpid() not in set(run_jobs(os.getpid, [(), ()], workers=2))


@pytest.mark.parametrize(("workers", "most"), [(1, 1), (2, 8)])
def test_jobs_are_drawn_only_as_fast_as_results_are_taken(workers, most):
    drawn = []

    def jobs() -> Iterator[tuple[int, int]]:
        for n in range(100):
            drawn.append(n)
            yield n, 1

    results = run_jobs(operator.add, jobs(), workers=workers)
    assert next(results) == 1
    assert len(drawn) <= most
    results.close()
    assert len(drawn) <= most


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_job_raises_is_raised_here(workers):
    results = run_jobs(operator.truediv, [(6, 3), (1, 0), (4, 2)], workers=workers)
    assert next(results) == 2
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_error_of_ours_comes_through_with_all_of_its_lines(tmp_path: Path):
    with pytest.raises(MaskError, match="the file is missing") as caught:
        list(run_jobs(read_mask, [(tmp_path / "none.png",)], workers=2))
    assert caught.value.where == str(tmp_path / "none.png") and caught.value.why and caught.value.exit_code == 3


def test_what_the_maker_of_jobs_raises_is_raised_here():
    def jobs() -> Iterator[tuple[int, int]]:
        yield 1, 1
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        list(run_jobs(operator.add, jobs(), workers=2))


def test_a_worker_that_dies_is_a_resource_error_that_says_what_to_do():
    with pytest.raises(ResourceError, match="a worker process died") as caught:
        list(run_jobs(os._exit, [(1,)], workers=2))
    assert "memory" in str(caught.value) and "run.workers=1" in str(caught.value)


def test_workers_do_not_outlive_a_parent_that_is_killed(tmp_path: Path):
    """The jobs sleep for a minute, and leave their process id."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom sccam.runtime.pool import run_jobs\n"
        "if __name__ == '__main__':\n"
        "    code = 'import os, sys, time; open(sys.argv[1] + str(os.getpid()), \"w\").close(); time.sleep(60)'\n"
        "    list(run_jobs(exec, [(code,)] * 2, workers=2))\n"
    )
    parent = subprocess.Popen([sys.executable, script, f"{tmp_path}/pid"], env={**os.environ, "PYTHONPATH": ROOT})
    pids = wait_for(lambda: [int(path.name[3:]) for path in tmp_path.glob("pid*")], lambda found: len(found) == 2)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: [pid for pid in pids if Path(f"/proc/{pid}").exists()], lambda alive: not alive) == []


def wait_for(look: Callable[[], list[int]], done: Callable[[list[int]], bool]) -> list[int]:
    """What is seen once it is as it should be, or after half a minute."""
    ends = time.monotonic() + 30
    while not done(look()) and time.monotonic() < ends:
        time.sleep(0.1)
    return look()


def test_a_worker_computes_on_one_thread():
    assert list(run_jobs(os.getenv, [("OMP_NUM_THREADS",), ("OPENBLAS_NUM_THREADS",)], workers=2)) == ["1", "1"]


# How many


def test_a_number_that_is_asked_for_is_used():
    assert worker_count(3) == 3


def test_no_number_means_the_cores_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert worker_count(0) == 3


def test_without_affinities_the_number_asked_for_still_counts(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert (worker_count(0), worker_count(3)) == (8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_a_worker_that_is_killed_while_others_begin_ends_the_pool(seed):
    """The library may lose the worker that it begins at that moment, and wait for it for ever."""

    def kill() -> None:
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.0005)
        time.sleep(0.01 * seed)
        workers[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ResourceError, match="a worker process died"):
        list(run_jobs(time.sleep, ((0.05,) for _ in range(400)), workers=2))
    killer.join()
    assert not multiprocessing.active_children()
