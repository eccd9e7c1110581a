# ruff: noqa: F811 (fixtures of other files are arguments here)
"""One of several processes that train together is killed or fails: the others end, and the run goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sccam.artifacts import read_json, write_json
from tests.faults.conftest import Tally
from tests.faults.test_kills import unsound
from tests.test_ranks import ROOT, SETTINGS, STEPPING, Started, alone, apart, data, start, until  # noqa: F401

PATIENCE = 120.0  # [s] for a process whose partner is gone; the limit of a step is ten minutes

IMPATIENT = """
import datetime
from sccam import ranks
ranks.STEP_PATIENCE = datetime.timedelta(seconds=10)
"""

pytestmark = [pytest.mark.slow, pytest.mark.fault(36), pytest.mark.promise("whole")]


def checkpoints(out: Path) -> list[Path]:
    return list(out.glob("*.checkpoint.safetensors"))


@pytest.mark.timeout(3600)
def test_without_one_process_the_other_ends_and_the_run_goes_on(
    start: Callable[..., Started], alone: Path, tally: Tally, full: bool, tmp_path: Path
) -> None:
    rng = random.Random(0)
    for n in range(8 if full else 2):
        out, victim = tmp_path / f"{n}", n % 2
        started = start(out, 2, hook=STEPPING)
        until(partial(checkpoints, out), started)
        time.sleep(rng.uniform(0, 3.0))
        tally.injected += 1
        started.processes[victim].kill()
        killed = time.monotonic()
        code, told = started.ended()[1 - victim]
        tally.crashed += "Traceback" in told or code < 0
        assert time.monotonic() - killed < PATIENCE
        assert code == 7 and f"process {1 - victim} of 2 has lost another one" in told and "--resume" in told, told
        assert not unsound(out)
        again = partial(start, out, 1 + n // 2 % 2, "--resume")
        for code, told in again().ended():
            assert code == 0, told
        different = apart(alone, out, again)
        tally.lost += bool(different)
        assert not different
        tally.survived += 1


def test_a_process_that_hangs_is_waited_for_so_long_and_no_longer(
    start: Callable[..., Started], tally: Tally, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    started = start(out, 2, hook=STEPPING + IMPATIENT)
    until(partial(checkpoints, out), started)
    hanging, other = started.processes
    tally.injected += 1
    hanging.send_signal(signal.SIGSTOP)
    try:
        told = other.communicate(timeout=PATIENCE)[1]
    finally:
        hanging.send_signal(signal.SIGCONT)
        hanging.kill()
    assert other.returncode == 7 and "process 1 of 2 has lost another one" in told, told
    assert not unsound(out)
    tally.survived += 1


def test_a_process_that_fails_says_why_and_torchrun_ends_the_others(
    data: Path, alone: Path, tally: Tally, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(alone, out)
    state = read_json(out / "run.json")
    finished = dict(list(state["finished"].items())[: list(state["finished"]).index("affinity/labels") + 1])
    write_json(out / "run.json", {**state, "finished": finished, "status": "interrupted"})
    (out / "affinity_net.safetensors").unlink()
    for path in sorted((out / "affinity_labels").glob("*.png"))[:6]:
        path.write_bytes(b"no label")
    settings = [word for text in SETTINGS for word in ("--set", text)]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    tally.injected += 1
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sccam",
         "train", data, "-c", "photos", "--out", out, *settings, "--resume"],
        cwd=ROOT, capture_output=True, text=True, timeout=600, env={**kept, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "of 2: error: " in done.stderr and "affinity_labels" in done.stderr, done.stderr
    assert read_json(out / "run.json")["status"] == "failed"
    tally.survived += 1
