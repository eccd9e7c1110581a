"""What docs/deploy.md shows: programs without sccam give the labels that sccam gives."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import sccam
from sccam.export.run import export_run
from tests.made_run import CLASSES, SIZES, make_run

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/photos, whose segmenter gives labels, and photos/new."""
    here = tmp_path_factory.mktemp("deploy")
    run = make_run(here / "runs/photos", ["segmenter"])
    images = run / "pictures"
    export_run(run, networks=["segmenter"], precisions=["fp32"], images=images, labels=True, tell=lambda _: None)
    (here / "photos").mkdir()
    images.rename(here / "photos/new")
    return here


def expected(here: Path) -> dict[str, np.ndarray]:
    segmenter = sccam.load(here / "runs/photos/export/segmenter.onnx")
    found = {Path(result.source.path).name: result.labels for result in segmenter.predict(here / "photos/new")}
    assert len(found) == len(SIZES) and {int(labels.max()) for labels in found.values()} <= set(range(len(CLASSES) + 1))
    assert any(len(np.unique(labels)) > 1 for labels in found.values())  # else anything would agree
    return found


def blocks(word: str) -> str:
    """The Python block of the page that holds a word."""
    [block] = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if word in block]
    return block


def test_python_with_nothing_but_onnx_runtime(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(here)
    space: dict[str, Any] = {}
    exec(compile(blocks("exif_transpose"), "deploy.md", "exec"), space)
    for name, labels in expected(here).items():
        np.testing.assert_array_equal(space["segment"](here / "photos/new" / name), labels)


def test_python_with_sccam(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(here)
    exec(compile(blocks("sccam.load"), "deploy.md", "exec"), {})
    printed = capsys.readouterr().out
    assert all(f"{name} {labels.shape}" in printed for name, labels in expected(here).items())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docs/segment.cpp, compiled against the stand-in header and the library of the Python package."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"), None)
    if library is None:
        pytest.skip("this package of ONNX Runtime has no shared library of its own")
    out = tmp_path_factory.mktemp("program") / "segment"
    warnings = ["-Wall", "-Wextra", "-Werror", "-Wno-sign-compare"]
    headers = Path(__file__).parent / "ort_stand_in"
    command = ["g++", "-std=c++17", "-O1", *warnings, ROOT / "docs/segment.cpp", "-I", headers, library, "-o", out]
    soname = library.parent / "libonnxruntime.so.1"
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not soname.exists():  # the linker asks for the short name, the package has the long one
        (out.parent / soname.name).symlink_to(library)
    return out


def segment(program: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command, paths = [str(program), *map(str, arguments)], {"LD_LIBRARY_PATH": str(program.parent)}
    return subprocess.run(command, capture_output=True, text=True, env=paths)


def test_cpp(here: Path, program: Path, tmp_path: Path):
    model = here / "runs/photos/export/segmenter.onnx"
    for name, labels in expected(here).items():
        Image.open(here / "photos/new" / name).convert("RGB").save(tmp_path / "image.ppm")
        done = segment(program, model, tmp_path / "image.ppm", tmp_path / "labels.pgm")
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "labels.pgm")), labels)


def test_cpp_says_what_is_wrong(here: Path, program: Path, tmp_path: Path):
    model = here / "runs/photos/export/segmenter.onnx"
    (tmp_path / "image.ppm").write_bytes(b"P6\n9 9\n255\nshort")
    for image, part in ((tmp_path / "image.ppm", "cut off"), (tmp_path / "none.ppm", "no binary PPM")):
        done = segment(program, model, image, tmp_path / "labels.pgm")
        assert done.returncode == 1 and part in done.stderr
    done = segment(program, tmp_path / "none.onnx", tmp_path / "image.ppm", tmp_path / "labels.pgm")
    assert done.returncode == 1 and "none.onnx" in done.stderr
