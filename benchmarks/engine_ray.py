"""What the engine "ray" costs on one machine: the same folder by the local pipeline and by two labellers, in turn.

python benchmarks/engine_ray.py runs/demo/export/segmenter.onnx     # 5,000 drawn images, minutes; results/ray.json
python benchmarks/engine_ray.py                                     # the lines of docs/scale.md again, from the JSON

Whole commands are timed, so that what Ray takes to begin is in it. Masks of all runs are compared, byte for byte; in
the last run a labeller is killed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from pages import replace_between
from PIL import Image

from sccam.artifacts import read_json, sha256, write_json
from sccam.origin import commit, device_name

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "scale.md"
SIZE = (320, 240)  # [px]
ENGINES = {"local": (), "ray": ("--engine", "ray", "--workers", "2")}


def main() -> None:
    """Measures, where a model is given; writes result and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results/ray.json")
    options = parser.parse_args()
    if options.model is not None:
        write_json(options.out, measured(options))
    replace_between(PAGE, "<!-- ray: begin -->", "<!-- ray: end -->", told(read_json(options.out)))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Times and compares."""
    with tempfile.TemporaryDirectory() as place:
        photos = Path(place) / "photos"
        draw(photos, options.images)
        seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
        kept: dict[str, str] = {}
        for round_ in range(options.rounds):
            for name, words in ENGINES.items():
                found = run(options.model, photos, Path(place) / name, words, seconds[name])
                kept = kept or found
                assert found == kept, f"masks of {name} differ"
                print(f"{round_} {name}: {seconds[name][-1]:.1f} s")
        killed = run(options.model, photos, Path(place) / "ray", ENGINES["ray"], [], kill=True)
        assert killed == kept and len(kept) == options.images, "a worker that was killed has cost a result"
    middle = {name: round(statistics.median(times), 1) for name, times in seconds.items()}
    return {
        "machine": device_name(), "commit": commit(), "images": options.images, "model": options.model.name,
        "seconds": {name: [round(time, 1) for time in times] for name, times in seconds.items()}, "median": middle,
        "overhead": round(middle["ray"] / middle["local"] - 1, 3), "identical": True, "identical_after_a_kill": True,
    }  # fmt: skip


def told(result: Any) -> str:
    """For the page."""
    local, ray = (result["median"][name] for name in ENGINES)
    runs = len(result["seconds"]["ray"])
    return (
        f"{result['images']:,} images of {SIZE[0]} x {SIZE[1]} px took {result['overhead']:.1%} longer by two "
        f"labellers than by the local engine ({ray:.0f} s and {local:.0f} s, medians of {runs} runs each, "
        f"{result['machine']}). Masks were the same, byte for byte, also after a labeller was killed in the middle."
    )


def draw(folder: Path, count: int) -> None:
    """JPEG files of the size of photographs for the web."""
    rng = np.random.default_rng(0)
    for n in range(count):
        path = folder / f"{n // 1000}/{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize(SIZE).save(path, quality=85)


def run(
    model: Path, photos: Path, out: Path, words: tuple[str, ...], seconds: list[float], kill: bool = False
) -> dict[str, str]:
    """Checksum of every mask, after a command whose seconds are added to the list."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sccam", "infer", model, photos, "-o", out, *words], stdout=subprocess.DEVNULL
    )
    victims: list[int] = []
    if kill:
        threading.Thread(target=kill_one, args=(out / "predictions.jsonl", victims), daemon=True).start()
    assert process.wait() == 0 and len(victims) == kill
    seconds.append(time.perf_counter() - started)
    return {str(path.relative_to(out)): sha256(path) for path in sorted((out / "masks").rglob("*.png"))}


def kill_one(log: Path, victims: list[int]) -> None:
    """Kills a labeller when the first lines are there; its number is a victim then."""
    while not (log.exists() and log.stat().st_size):
        time.sleep(0.05)
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                os.kill(int(entry.name), signal.SIGKILL)
                victims.append(int(entry.name))
                return
        except OSError:
            continue


if __name__ == "__main__":
    main()
