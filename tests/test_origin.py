"""Which code made a result: the checkout's commit, and never that of a project around it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sccam import __version__, origin


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with one commit, which `origin` takes for its own."""
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    for file in ("pyproject.toml", "code.py", "benchmarks/results/rates.json"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("first")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "first")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout


def test_a_checkout_has_its_commit_and_a_mark_when_code_differs_from_it(project):
    name = git(project, "rev-parse", "HEAD")[:10]
    assert origin.commit() == name
    (project / "benchmarks/results/rates.json").write_text("measured again")
    (project / "runs.txt").write_text("not of the checkout")
    assert origin.commit() == name
    (project / "code.py").write_text("second")
    assert origin.commit() == f"{name}-dirty"


def test_what_is_installed_within_another_checkout_has_its_version(project, monkeypatch):
    monkeypatch.setattr(origin, "ROOT", project / "benchmarks")
    assert origin.commit() == f"sccam {__version__}"


def test_a_copy_without_git_has_its_version(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    (tmp_path / "pyproject.toml").write_text("")
    assert origin.commit() == f"sccam {__version__}"


def test_a_git_that_does_not_answer_is_not_waited_for(project, tmp_path, monkeypatch):
    place = tmp_path / "bin"
    place.mkdir()
    (place / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (place / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(place), prepend=os.pathsep)
    monkeypatch.setattr(origin, "PATIENCE", 0.1)
    assert origin.commit() == f"sccam {__version__}"


def test_a_device_says_how_many_cores_are_used(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert origin.device_name().startswith("1 core of ")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert origin.device_name().startswith("2 cores of ")
