"""A device for the GPU's kernels without a GPU, shared by all tests of this folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.runtime.cuda_shim.device import ShimDevice


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where .cu files are compiled to, for the CPU, once in a session."""
    if shutil.which("g++") is None:
        pytest.skip("the kernels are compiled for the CPU by g++, which is not installed")
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def device(kernel_folder: Path) -> ShimDevice:
    """A CPU that runs the GPU's kernels."""
    return ShimDevice(kernel_folder)
