"""What every test shares: one table of tolerances, fixed seeds, two threads."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import settings

from sccam import cli

# Two processes of tests have more threads than cores; one that waits for another must not keep it from running.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

# Largest allowed |difference| for values of the order of 1. A test that needs another number says why beside it.
TOLERANCE = MappingProxyType(
    {
        "exact": 0.0,  # labels, counts, and the same operations in the same order
        "float64": 1e-10,  # about a million roundings of 1e-16: one formula written in two ways
        "float32": 1e-5,  # about a hundred roundings of 6e-8: sums of some thousand terms in another order
        "network": 1e-4,  # a whole trunk in float32: another kernel or batch size rounds every layer differently
        "half": 2e-2,  # 16-bit floats round at 5e-4 (fp16) to 4e-3 (bf16), some layers of it
        "uint8": 1 / 255,  # one grey level: resizing rounds to the nearest
    }
)

Cli = Callable[..., tuple[int, str, str]]

# The same examples in every run, and no deadline: a slow shared machine is not a failure.
settings.register_profile("sccam", derandomize=True, deadline=None)
settings.load_profile("sccam")


@pytest.fixture
def tolerance() -> MappingProxyType[str, float]:
    """The table above, for tests that take it as an argument."""
    return TOLERANCE


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that gives the same numbers in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def sccam(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sccam", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Seeds torch where a test file has imported it; two threads, since the order of sums depends on their number."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)
        torch.set_num_threads(2)
