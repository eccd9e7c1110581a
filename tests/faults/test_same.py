"""The same seed gives the same bits, whatever else of the machine changes between two runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sccam.artifacts import RunFolder, read_json, sha256
from sccam.data.sample import draw_sample
from tests.faults.conftest import Tally
from tests.test_run import OVERRIDES, ROOT, WEIGHTS

NETWORK = ["network.backbone=test_resnet", "network.weights=none"]


@pytest.mark.promise("same")
@pytest.mark.timeout(1800)
def test_runs_of_one_seed_are_equal_to_the_bit_and_those_of_another_are_not(tmp_path: Path, tally: Tally, full: bool):
    data = tmp_path / "sample"
    draw_sample(data, images=16, sizes=(48, 80))
    first = trained(data, tmp_path / "first", 0)
    for n in range(5 if full else 2):
        tally.injected += 1
        again = trained(
            data, tmp_path / f"again{n}", 0, f"run.workers={1 + n % 3}", PYTHONHASHSEED=str(n + 1), TZ="Asia/Tokyo"
        )
        unequal = [name for name, value in again.items() if first[name] != value]
        tally.lost += len(unequal)
        assert not unequal and again.keys() == first.keys()
        tally.survived += 1
    other = trained(data, tmp_path / "other", 1)
    assert all(other[name] != first[name] for name in WEIGHTS)


def trained(data: Path, out: Path, seed: int, *settings: str, **environment: str) -> dict[str, str]:
    """Checksums of all weights, labels, predictions and of the figures of a run in a process of its own."""
    chosen = [*OVERRIDES, *NETWORK, f"run.seed={seed}", *settings]
    command = [sys.executable, "-m", "sccam", "train", str(data), "-c", "demo", "--out", str(out), "--deterministic"]
    command += [word for setting in chosen for word in ("--set", setting)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    folder = RunFolder(out)
    files = [out / name for name in WEIGHTS]
    files += [path for kind in ("pseudo_labels", "predictions") for path in sorted((out / kind).rglob("*.png"))]
    files += sorted(path for r in folder.rounds for path in (out / f"round{r}").rglob("*.npz"))
    figures = [
        (row["stage"], row["split"], row["column"], row["miou"]) for row in read_json(out / "scores.json")["rows"]
    ]
    return {path.relative_to(out).as_posix(): sha256(path) for path in files} | {"figures": repr(figures)}
