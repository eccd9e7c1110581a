"""No kernel has a data race or touches memory beyond its buffers, as far as g++'s sanitizers see on small inputs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "cuda_shim" / "run_sanitized.py"
PROOF = {"thread": ("one_place", "data race"), "address": ("beyond", "heap-buffer-overflow")}
"""What is wrong in races.cu, and the word with which each sanitizer says so."""
LIBRARIES = {"thread": "libtsan.so", "address": "libasan.so"}


def run(sanitizer: str, folder: Path, *cases: str) -> subprocess.CompletedProcess[str]:
    """Cases in a process of its own, the sanitizer's library loaded first, at fixed addresses where that can be."""
    library = subprocess.run(["g++", f"-print-file-name={LIBRARIES[sanitizer]}"], capture_output=True, text=True)
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []  # ThreadSanitizer wants its own address ranges
    environment = {
        **os.environ,
        "LD_PRELOAD": library.stdout.strip(),
        "PYTHONPATH": str(ROOT),
        "PYTHONMALLOC": "malloc",
        "OPENBLAS_NUM_THREADS": "1",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps much until its end
    }
    command = [*fixed, sys.executable, str(SCRIPT), sanitizer, str(folder), *cases]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


@pytest.fixture(scope="module")
def reports(kernel_folder):
    """(sanitizer, what) -> a finished process; "proof" shows whether the sanitizer works here. Both run at once."""

    def both(sanitizer: str) -> list[tuple[tuple[str, str], subprocess.CompletedProcess[str]]]:
        proof, _ = PROOF[sanitizer]
        found = [((sanitizer, "proof"), run(sanitizer, kernel_folder, proof))]
        return [*found, ((sanitizer, "kernels"), run(sanitizer, kernel_folder, "walk", "merge", "crf"))]

    with ThreadPoolExecutor(len(PROOF)) as pool:
        return dict(pair for pairs in pool.map(both, PROOF) for pair in pairs)


@pytest.mark.parametrize("sanitizer", PROOF)
def test_all_kernels_are_clean(sanitizer, reports):
    proof, found = reports[sanitizer, "proof"], reports[sanitizer, "kernels"]
    if PROOF[sanitizer][1] not in proof.stderr:
        pytest.skip(f"g++'s {sanitizer} sanitizer does not work here: {proof.stderr[-300:]}")
    assert found.returncode == 0, found.stderr[-3000:]
    assert "Sanitizer:" not in found.stderr, found.stderr[-3000:]


def test_a_missing_barrier_is_found(reports, kernel_folder):
    if "data race" not in reports["thread", "proof"].stderr:
        pytest.skip("g++'s thread sanitizer does not work here")
    assert "data race" in run("thread", kernel_folder, "without_barrier").stderr
