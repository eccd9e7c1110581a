"""The backend table: every row exists, "auto" means what is there, and nothing falls back in silence."""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect

import pytest

from sccam.errors import BackendUnavailable, ConfigError
from sccam.runtime import native
from sccam.runtime.backends import TABLE, Backends, missing, row


@pytest.mark.parametrize(("work", "name"), [(work, name) for work in TABLE for name in TABLE[work]])
def test_rows_of_one_work_take_the_same_arguments(work, name):
    def required(function):
        return [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]

    assert required(row(work, name)) == required(row(work, next(iter(TABLE[work]))))


def test_the_settings_have_one_field_for_each_work():
    assert [item.name for item in dataclasses.fields(Backends)] == list(TABLE)


def test_auto_takes_the_first_row_that_is_there_and_names_it():
    chosen = Backends().resolved()
    assert chosen.walk == ("native" if native.available() else "portable")
    assert "auto" not in chosen.line() and f"walk {chosen.walk}" in chosen.line()
    assert chosen.function("walk") is row("walk", chosen.walk)


def test_without_compiled_kernels_auto_is_portable_and_native_by_name_is_an_error(monkeypatch):
    monkeypatch.setattr(native, "available", tuple)
    assert Backends().resolved().walk == "portable"
    with pytest.raises(BackendUnavailable, match="compiled kernels are not there") as caught:
        Backends(walk="native").resolved()
    assert "reinstall" in str(caught.value)
    with pytest.raises(BackendUnavailable, match="compiled kernels are not there"):
        native.library()


def test_an_unknown_row_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="no walk by 'magic'") as caught:
        row("walk", "magic")
    assert "portable" in str(caught.value)


def test_a_library_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "sccam[crf]"' in str(missing("pydensecrf"))
