"""`sccam infer` on thousands of images: is memory flat, and does a run that is killed again and again end right?

    python benchmarks/infer_endurance.py MODEL.onnx        # writes results/infer_endurance.json

One run is left alone, its resident memory sampled; another is killed (SIGKILL) at random moments and resumed. In the
end both must hold the same masks, each image exactly once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sccam.origin import commit, device_name

RESULT = Path(__file__).resolve().parent / "results" / "infer_endurance.json"
SIDE = 48  # [px] of the images
FOLDERS = 20
SETTLED = 1000  # images after which memory may not grow any more


def main() -> None:
    """Draws the images, runs, compares, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        draw(root / "in", arguments.images)
        whole = run_watched(arguments.model, root / "in", root / "whole")
        killed = run_killed(arguments.model, root / "in", root / "killed", arguments.kills, whole["seconds"])
        names = [json.loads(line)["name"] for line in (root / "killed/predictions.jsonl").read_text().splitlines()]
        result = {
            "device": device_name(),
            "commit": commit(),
            "model": arguments.model.name,
            "images": arguments.images,
            "side": SIDE,
            **whole,
            "kills": killed,
            "results": len(names),
            "different_names": len(set(names)),
            "masks_equal": checksums(root / "whole/masks") == checksums(root / "killed/masks"),
            "left_over": [str(p.relative_to(root)) for p in (root / "killed").rglob(".*.tmp*")],
        }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def draw(folder: Path, count: int) -> None:
    """Small images of noise and colour."""
    rng = np.random.default_rng(0)
    for n in range(count):
        path = folder / f"{n % FOLDERS}" / f"{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(small).resize((SIDE, SIDE)).save(path, quality=90)


def start(model: Path, source: Path, out: Path) -> subprocess.Popen[bytes]:
    """The command in the background."""
    command = [sys.executable, "-m", "sccam.cli", "infer", str(model), str(source), "-o", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_watched(model: Path, source: Path, out: Path) -> dict[str, Any]:
    """A run left alone: seconds, and resident memory [MB] after the first images and at its highest later."""
    began, settled, highest = time.monotonic(), 0.0, 0.0
    process = start(model, source, out)
    while process.poll() is None:
        done, memory = lines_of(out), resident(process.pid)
        if done >= SETTLED:
            settled = settled or memory
            highest = max(highest, memory)
        time.sleep(0.2)
    assert process.returncode == 0, process.returncode
    seconds = time.monotonic() - began
    return {
        "seconds": round(seconds, 1),
        f"memory_mb_after_{SETTLED}": round(settled, 1),
        "memory_mb_highest_later": round(highest, 1),
    }


def run_killed(model: Path, source: Path, out: Path, kills: int, seconds: float) -> int:
    """Kills the command after random times, then lets it finish; how often it was killed while at work."""
    random.seed(0)
    killed = 0
    for _ in range(kills):
        process = start(model, source, out)
        time.sleep(random.uniform(0.5, 1.5 * seconds / kills))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    process = start(model, source, out)
    assert process.wait() == 0
    return killed


def lines_of(out: Path) -> int:
    log = out / "predictions.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


def resident(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith("VmRSS")), 0.0)


def checksums(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


if __name__ == "__main__":
    main()
