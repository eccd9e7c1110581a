"""The compiled CPU kernels: one shared library for each instruction set, called through ctypes.

    kernels.cpp    includes all; compiled for every processor, for AVX2 and for AVX-512 when the package is built
    common.h       threads, memory, the C boundary        simd.h    vectors
    walk.h  ...    one kernel a file; crf.h has its parts in crf_rows.h, lattice.h and simplex.h

The library that fits the processor is chosen when the first kernel is called. Where none was compiled, because no
compiler was there when the package was installed, `library()` says so and slower rows of the backend tables remain.
Kernels check nothing: their Python callers do.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sccam.errors import BackendUnavailable, ResourceError, ShapeError

Result = TypeVar("Result")

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")  # worst first; the numbers of sccam_instruction_set()
CHOICE = "SCCAM_INSTRUCTION_SET"  # environment variable: one of the names, to use less than the processor has

_OUT_OF_MEMORY, _FAILED, _KEY_OVERFLOW = 1, 2, 3  # common.h, Status


@functools.cache
def available() -> tuple[str, ...]:
    """Names of the instruction sets that were compiled and that this processor has, worst first."""
    first = _path("baseline")
    if first is None:
        return ()
    best = int(ctypes.CDLL(str(first)).sccam_instruction_set())
    return tuple(name for name in INSTRUCTION_SETS[: best + 1] if _path(name) is not None)


def library(name: str | None = None) -> ctypes.CDLL:
    """The kernels for one instruction set; by default the best, or what the environment variable names.

    Raises:
        BackendUnavailable: the kernels are not compiled, or not for this instruction set or processor.
    """
    names = available()
    if not names:
        raise unavailable()
    chosen = name or os.environ.get(CHOICE) or names[-1]
    if chosen not in names:
        raise BackendUnavailable(f"no kernels for {chosen!r} here", fix=f"there are: {', '.join(names)}")
    return _loaded(chosen)


def unavailable() -> BackendUnavailable:
    """What to raise where no kernels were compiled."""
    return BackendUnavailable(
        "the compiled kernels are not there",
        where=Path(__file__).parent,
        why="no C++17 compiler was found when sccam was installed",
        fix="install g++ or clang++ and reinstall sccam, or name other rows, such as backends.walk=portable",
    )


def call(function: str, *arguments: Any, name: str | None = None) -> None:
    """Calls a kernel; arrays go as pointers, Python integers as int64, floats as double.

    Args:
        function: its name in C.
        arguments: contiguous arrays of the type that the kernel expects, numbers, or None for a null pointer.
        name: an instruction set; the best by default.

    Raises:
        ResourceError: out of memory.
        ShapeError: the lattice has more cells along an axis than its keys can count.
    """
    status = getattr(library(name), function)(*map(_argument, arguments))
    if status == _OUT_OF_MEMORY:
        raise ResourceError("out of memory in a kernel", where=function, fix="use smaller images or fewer threads")
    if status == _KEY_OVERFLOW:
        raise ShapeError(f"{function}: a kernel's range is too small for an image of this size; make it larger")
    if status != 0:
        raise ResourceError(f"a kernel failed with status {status}", where=function)


def thread_count() -> int:
    """Threads for a kernel: the cores of this process, or OMP_NUM_THREADS where that is set."""
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    except (KeyError, ValueError):
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def for_images(function: Callable[[int, int], Result], count: int, threads: int = 0) -> list[Result]:
    """Results of `function(n, threads)` for n below `count`, which calls kernels.

    One image at a time with all threads, or, where there are at least as many images as threads, as many images at
    once with one thread each: the same results, and no waiting between threads. ctypes lets go of the interpreter.
    """
    threads = threads or thread_count()
    if count < threads or threads == 1:
        return [function(n, threads) for n in range(count)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, range(count), [1] * count))


def _argument(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        assert value.flags.c_contiguous, "kernels take contiguous arrays"
        return ctypes.c_void_p(value.ctypes.data)
    if isinstance(value, float):
        return ctypes.c_double(value)
    if value is None:
        return ctypes.c_void_p(None)
    return ctypes.c_int64(int(value))


@functools.cache
def _loaded(name: str) -> ctypes.CDLL:
    path = _path(name)
    assert path is not None
    return ctypes.CDLL(str(path))


def _path(name: str) -> Path | None:
    here = Path(__file__).parent
    return next((path for suffix in EXTENSION_SUFFIXES if (path := here / f"_{name}{suffix}").exists()), None)
