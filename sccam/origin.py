"""Where a result comes from: the code and the device that made it."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from sccam import __version__

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 10  # [s] for git, which may wait for a disk far away


def device_name(device: str = "cpu") -> str:
    """The GPU; or the processor, and how many cores of it are used."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{cores} {'core' if cores == 1 else 'cores'} of {model}"


def commit() -> str:
    """The checkout's commit, marked where files other than results differ from it; the version outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE).stdout

    if not (ROOT / "pyproject.toml").exists():  # installed, perhaps within another project's checkout
        return f"sccam {__version__}"
    try:
        name = git("rev-parse", "--short=10", "HEAD").strip()
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":(exclude,top)benchmarks/results").strip()
    except (OSError, subprocess.SubprocessError):
        return f"sccam {__version__}"
    return name + ("-dirty" if changed else "")
