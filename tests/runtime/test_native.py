"""The way to the compiled kernels: which library, what a status becomes, how images share threads."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sccam.errors import ResourceError, ShapeError
from sccam.runtime import native


@pytest.mark.parametrize(
    ("status", "error", "text"),
    [
        (1, ResourceError, "out of memory in a kernel"),
        (2, ResourceError, "failed with status 2"),
        (3, ShapeError, "range is too small"),
    ],
)
def test_a_status_becomes_an_error_that_names_the_kernel(monkeypatch, status, error, text):
    monkeypatch.setattr(native, "library", lambda name=None: SimpleNamespace(sccam_walk=lambda *arguments: status))
    with pytest.raises(error, match=text) as caught:
        native.call("sccam_walk", 1, 2.0, np.zeros(3), None)
    assert "sccam_walk" in str(caught.value)


def test_arguments_arrive_as_pointers_integers_and_doubles(monkeypatch):
    seen: list[Any] = []

    def kernel(*arguments):
        seen.extend(arguments)
        return 0

    monkeypatch.setattr(native, "library", lambda name=None: SimpleNamespace(kernel=kernel))
    array = np.arange(3.0)
    native.call("kernel", array, 7, 0.5, None, np.int32(2))
    assert [value.value for value in seen] == [array.ctypes.data, 7, 0.5, None, 2]


def test_an_array_that_is_not_contiguous_never_reaches_a_kernel(monkeypatch):
    monkeypatch.setattr(native, "library", lambda name=None: SimpleNamespace(kernel=lambda *a: 0))
    with pytest.raises(AssertionError, match="contiguous"):
        native.call("kernel", np.zeros((4, 4))[:, ::2])


def test_few_images_take_all_threads_and_many_take_one_each():
    def told(n: int, threads: int) -> tuple[int, int, bool]:
        return n, threads, threading.current_thread() is threading.main_thread()

    assert native.for_images(told, 1, 2) == [(0, 2, True)]
    assert native.for_images(told, 3, 2) == [(0, 1, False), (1, 1, False), (2, 1, False)]
    assert native.for_images(told, 2, 1) == [(0, 1, True), (1, 1, True)]
    assert native.for_images(told, 0, 2) == []


def test_what_an_image_raises_is_raised():
    def fails(n: int, threads: int) -> None:
        if n == 1:
            raise ResourceError("out of memory in a kernel")

    with pytest.raises(ResourceError, match="out of memory"):
        native.for_images(fails, 4, 2)


def test_the_number_of_threads_follows_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert native.thread_count() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert native.thread_count() >= 1


@pytest.mark.skipif(not native.available(), reason="no compiler was there to build the kernels")
def test_the_best_instruction_set_is_taken_unless_the_environment_names_another(monkeypatch):
    monkeypatch.delenv(native.CHOICE, raising=False)
    assert native.library() is native.library(native.available()[-1])
    monkeypatch.setenv(native.CHOICE, "baseline")
    assert native.library() is native.library("baseline")
