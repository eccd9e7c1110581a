"""Engine ray: the files and lines of the local run, though a worker dies; errors as they are, and no second work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sccam.artifacts import read_json, sha256
from tests.conftest import Cli
from tests.runtime.formula import lines
from tests.runtime.test_folder import model  # noqa: F401  (a fixture: an ONNX file with its manifest)
from tests.runtime.test_stored import server  # noqa: F401  (a fixture: images over HTTP)

pytest.importorskip("ray.data", reason="needs the extra scale")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One of this machine for all tests: to begin one takes seconds."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", str(ROOT))
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(700):
        path = folder / f"{n % 7}/{n}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
        coarse.resize((50 + n % 3, 40)).save(path)
    (folder / "3/broken.jpg").write_bytes(b"no picture")
    (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "0/0.png").read_bytes())
    return folder


def files(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): sha256(path) for path in sorted((out / "masks").rglob("*.png"))}


def told(out: Path, name: str = "predictions.jsonl") -> list[dict[str, Any]]:
    found = [{key: value for key, value in line.items() if key != "ms"} for line in lines(out / name)]
    return sorted(found, key=lambda line: str(line["name"]))


def test_files_lines_and_errors_are_those_of_the_local_run(model, photos, sccam: Cli, tmp_path):  # noqa: F811
    kinds = [word for kind in ("overlay", "scores", "coco") for word in ("--save", kind)]
    assert sccam("infer", model, photos, "-o", tmp_path / "here", *kinds)[0] == 5
    code, out, err = sccam("infer", model, photos, "-o", tmp_path / "ray", "--engine", "ray", "--workers", 2, *kinds)
    assert code == 5 and "701 images in" in out and "1 failed" in out, err
    assert files(tmp_path / "here") == files(tmp_path / "ray") and len(files(tmp_path / "ray")) == 701
    for name in ("predictions.jsonl", "errors.jsonl"):
        assert told(tmp_path / "here", name) == told(tmp_path / "ray", name)
    here, there = (json.loads((tmp_path / name / "coco.json").read_text()) for name in ("here", "ray"))
    assert [len(here[key]) for key in here] == [len(there[key]) for key in here]
    for name in ("infer.json", "labelmap.txt"):
        assert sha256(tmp_path / "here" / name) == sha256(tmp_path / "ray" / name)
    code, out, _ = sccam("infer", model, photos, "-o", tmp_path / "ray", "--engine", "ray", "--json", *kinds)
    assert (json.loads(out)["done"], json.loads(out)["skipped"]) == (0, 701)
    code, out, _ = sccam("infer", model, photos, "-o", tmp_path / "here", "--engine", "ray", "--json", *kinds)
    assert json.loads(out)["skipped"] == 701, "either engine goes on with what the other began"


def test_shards_on_a_disk_and_of_a_server(model, photos, sccam: Cli, server, tmp_path):  # noqa: F811
    address, here = server
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        tar.add(photos / "1", "1")
        tar.add(photos / "3/broken.jpg", "broken.jpg")
    here.files["/t.tar"] = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "list.txt").write_text(f"s.tar\n{address}/t.tar\n{address}/gone.png")
    for out, words in (("here", ()), ("ray", ("--engine", "ray"))):
        code, _, err = sccam("infer", model, tmp_path / "list.txt", "-o", tmp_path / out, *words)
        assert code == 5, err
    assert files(tmp_path / "here") == files(tmp_path / "ray") and len(files(tmp_path / "ray")) == 200
    for name in ("predictions.jsonl", "errors.jsonl"):
        assert told(tmp_path / "here", name) == told(tmp_path / "ray", name)


def test_a_worker_that_is_killed_costs_no_result(model, photos, sccam: Cli, tmp_path):  # noqa: F811
    assert sccam("infer", model, photos, "-o", tmp_path / "here")[0] == 5
    command = [sys.executable, "-c", KILLED, str(model), str(photos), str(tmp_path / "ray")]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 5 and "killed" in done.stdout, done.stderr
    assert files(tmp_path / "here") == files(tmp_path / "ray")
    assert told(tmp_path / "here") == told(tmp_path / "ray"), "every image once"


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from sccam import cli

model, photos, out = sys.argv[1:]

def labellers():
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                    yield int(entry.name)
            except OSError:
                pass

def kill():
    log = Path(out, "predictions.jsonl")
    while not (log.exists() and log.stat().st_size):
        time.sleep(0.01)
    for pid in list(labellers())[:1]:
        os.kill(pid, signal.SIGKILL)
        print("killed", flush=True)

threading.Thread(target=kill, daemon=True).start()
os.environ.pop("RAY_ADDRESS", None)
sys.argv = ["sccam", "infer", model, photos, "-o", out, "--engine", "ray", "--workers", "2"]
cli.main()
"""


def test_what_a_worker_cannot_open_is_told_as_by_the_local_run(photos, sccam: Cli, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no model")
    local = sccam("infer", tmp_path / "net.onnx", photos, "-o", tmp_path / "out")
    found = sccam("infer", tmp_path / "net.onnx", photos, "-o", tmp_path / "out", "--engine", "ray")
    assert found[0] == local[0] and found[2] == local[2] and not (tmp_path / "out").exists()


def test_an_engine_and_workers_that_are_not_there_are_refused(model, photos, sccam: Cli, tmp_path):  # noqa: F811
    for words, code, says in (
        (("--engine", "spark"), 2, "no engine 'spark'"),
        (("--engine", "ray", "--workers", 99), 2, "99 labellers are too many for 2 cores"),
        (("--engine", "ray", "--device", "cuda"), 4, "no worker of the Ray cluster has a GPU"),
    ):
        ended, _, err = sccam("infer", model, photos, "-o", tmp_path / "out", *words)
        assert ended == code and says in err, err
        assert not (tmp_path / "out").exists()


def test_without_ray_there_is_a_hint_and_the_local_run_loads_none(model, photos, sccam: Cli, tmp_path, monkeypatch):  # noqa: F811
    script = "import sys; sys.argv[1:] = {}; from sccam.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    words = ["infer", str(model), str(photos / "0"), "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script.format(words) + "print('ray' in sys.modules, 'pyarrow' in sys.modules)"],
        capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout.endswith("False False\n") and read_json(tmp_path / "out/summary.json")["done"] == 100
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = sccam("infer", model, photos, "-o", tmp_path / "other", "--engine", "ray")
    assert code == 4 and "sccam[scale]" in err


def test_an_interrupt_ends_it_and_the_next_run_goes_on(model, photos, tmp_path):  # noqa: F811
    command = [sys.executable, "-m", "sccam", "infer", str(model), str(photos), "-o", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [*command, "--engine", "ray"], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    log, ends = tmp_path / "out/predictions.jsonl", time.monotonic() + 120
    while not (log.exists() and log.stat().st_size):
        assert process.poll() is None and time.monotonic() < ends
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode in (130, 5), told
    subprocess.run(command, env=environment, check=False, capture_output=True)
    names = [line["name"] for line in lines(log)]
    assert len(names) == len(set(names)) == 701 == len(files(tmp_path / "out"))
