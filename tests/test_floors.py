"""The house stands: links, what an installation holds, imports downwards, nothing heavy where it must start fast."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def lint_imports(cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; sys.path.insert(0, '.'); from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    return run(sys.executable, "-c", code, cwd=cwd)


@pytest.mark.parametrize("name", ["export", "runtime"])
def test_the_link_at_the_root_leads_into_the_package(name: str) -> None:
    link = ROOT / name
    assert link.is_symlink()
    assert os.readlink(link) == f"sccam/{name}"  # relative, so that it holds in every clone
    assert (link / "__init__.py").is_file()


def test_an_installation_holds_sccam_and_nothing_else_at_the_top() -> None:
    setuptools = pytest.importorskip("setuptools")
    found = setuptools.find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {name.split(".")[0] for name in found} == {"sccam"}
    assert "py-modules" not in PROJECT["tool"]["setuptools"]


def test_every_folder_of_code_is_a_package_that_gets_installed() -> None:
    folders = {path.parent for path in (ROOT / "sccam").rglob("*.py")}
    assert [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_every_file_beside_the_code_gets_installed() -> None:
    package = ROOT / "sccam"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["sccam"]
    installed = {path for pattern in patterns for path in package.glob(pattern)}
    made = (".py", ".pyc", ".so", ".pyd")  # the last two: what the build makes of ext-modules
    beside = {path for path in package.rglob("*") if path.is_file() and path.suffix not in made}
    assert sorted(str(path.relative_to(ROOT)) for path in beside - installed) == []


@pytest.mark.parametrize("name", ["export", "runtime", "cli"])
def test_the_names_at_the_root_are_not_to_be_imported(name: str, tmp_path: Path) -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent)) or shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    (tmp_path / "user.py").write_text(f"import {name}\n")
    config = str(ROOT / "pyproject.toml")
    result = run(ruff, "check", "--no-cache", "--config", config, "--select", "TID251", str(tmp_path / "user.py"))
    assert result.returncode == 1 and "TID251" in result.stdout


def test_imports_go_downwards_and_each_foreign_library_has_one_home() -> None:
    pytest.importorskip("importlinter")
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("stages/upwards.py", "from sccam.runtime import anything", "Imports go downwards only"),
        ("nets/home.py", "def late():\n    import sklearn.cluster", "scikit-learn lives in"),
        ("data/home.py", "from pydensecrf import densecrf", "pydensecrf lives in"),
        ("stages/home.py", "from rich.progress import track", "typer and rich live in"),
        ("runtime/home.py", "def late():\n    import cupy", "tensorrt and cupy live in"),
        ("runtime/other.py", "import onnxruntime", "onnx and onnxruntime live in"),
        ("unplaced.py", "", "Imports go downwards only"),
    ],
)
def test_an_import_that_breaks_a_rule_is_found(module: str, line: str, broken: str, tmp_path: Path) -> None:
    pytest.importorskip("importlinter")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "sccam", tmp_path / "sccam", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "sccam" / module).write_text(line + "\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert any(broken in text and "BROKEN" in text for text in result.stdout.splitlines()), result.stdout


@pytest.mark.parametrize(
    "module",
    [
        "sccam",
        "sccam.errors",
        "sccam.structures",
        "sccam.config",
        "sccam.artifacts",
        "sccam.runtime",
        "sccam.cli",
        "sccam.runtime.network_onnxruntime",
        "sccam.runtime.network_tensorrt",
        "sccam.runtime.gpu",
    ],
)
def test_importing_it_loads_no_heavy_library(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there yet")
    heavy = ["torch", "torchvision", "timm", "sklearn", "scipy", "onnx", "onnxruntime", "tensorrt", "cupy"]
    code = f"import json, sys, {module}; print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == []


def test_the_root_script_and_the_installed_command_are_the_same_function() -> None:
    assert PROJECT["project"]["scripts"] == {"sccam": "sccam.cli:main"}
    assert "from sccam.cli import main" in (ROOT / "cli.py").read_text(encoding="utf-8")
