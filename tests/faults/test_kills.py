"""Runs that are killed, interrupted, terminated and begun twice, at moments that nobody chose.

A run that was disturbed in any of these ways and then goes on ends with the bytes of one that was not, and with no
file more than that.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sccam.artifacts import read_arrays, read_json, read_tensors, sha256
from sccam.data.sample import draw_sample
from tests.faults.conftest import Tally
from tests.faults.processes import Program, Programs, until
from tests.runtime import test_folder
from tests.test_run import OVERRIDES

SETTINGS = [*OVERRIDES, "network.backbone=test_resnet", "network.weights=none"]
EVERY_STEP = "from sccam import fit; fit.CHECKPOINT_SECONDS = 0.0\n"
"""Hook: a checkpoint after every step, so that most kills find one."""

model = test_folder.model  # a fixture: an ONNX file that labels by brightness
pytestmark = pytest.mark.slow


@dataclass
class Whole:
    """What nobody disturbed: its folder, and how long it took [s]."""

    folder: Path
    seconds: float


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Programs]:
    with Programs(tmp_path_factory.mktemp("programs")) as found:
        yield found


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    draw_sample(folder, images=15, sizes=(49, 66))
    return folder


def training(sample: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of the tiny run."""
    settings = [word for text in SETTINGS for word in ("--set", text)]
    return ["train", str(sample), "--out", str(folder), *settings, *more]


@pytest.fixture(scope="module")
def whole(programs: Programs, sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run in peace; hooked like the others, so that it takes as long."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    program = programs.run(*training(sample, folder), hook=EVERY_STEP)
    assert program.wait() == 0, program.told
    return Whole(folder, program.seconds)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images for inference, of a few sizes, in folders."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(250):
        path = folder / f"{n % 5}/{n}.png"
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
        coarse.resize((70 + n % 3, 50)).save(path)
    return folder


@pytest.fixture(scope="module")
def inferred(
    programs: Programs,
    model: Path,
    photos: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Whole:
    folder = tmp_path_factory.mktemp("inferred") / "out"
    program = programs.run(*inference(model, photos, folder))
    assert program.wait() == 0, program.told
    return Whole(folder, program.seconds)


def inference(network: Path, photos: Path, folder: Path) -> list[str]:
    """Arguments that write files of every kind."""
    kinds = [word for kind in ("overlay", "scores", "coco", "yolo", "voc") for word in ("--save", kind)]
    return ["infer", str(network), str(photos), "--out", str(folder), *kinds]


# What must hold


def content(folder: Path) -> dict[str, Any]:
    """Every file below the folder, by what two runs must have in common of it: all bytes, but for clocks."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if name == "run.json":
            state = read_json(path)
            found[name] = (state["status"], list(state["finished"]))
        elif name == "scores.json":
            scores = read_json(path)
            found[name] = [scores["rows"], scores["hidden"]]
        elif name == "metrics.jsonl":
            found[name] = {(r["stage"], r["epoch"], r["loss"]) for r in records(path) if "epoch" in r}
        elif name == "predictions.jsonl":
            lines = [{**record, "ms": None} for record in records(path)]
            found[name] = sorted(json.dumps(line, sort_keys=True) for line in lines)
        elif name == "summary.json":
            found[name] = {key: value for key, value in read_json(path).items() if key not in COUNTS}
        elif name != "lock":
            found[name] = sha256(path)
    return found


COUNTS = ("done", "skipped", "seconds", "ms")  # of the last process of several


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def unsound(folder: Path) -> list[str]:
    """Files under their own names that are not whole."""
    readers = {".safetensors": read_tensors, ".npz": read_arrays, ".json": read_json, ".png": whole_picture,
               ".jpg": whole_picture}  # fmt: skip
    wrong = []
    for path in folder.rglob("*"):
        if path.is_file() and ".tmp" not in str(path.relative_to(folder)) and path.suffix in readers:
            try:
                readers[path.suffix](path)
            except Exception as error:
                wrong.append(f"{path}: {error}")
    return wrong


def whole_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def settle(tally: Tally, program: Program, folder: Path, expected: dict[str, Any], injected: int) -> None:
    """Counts what a chain of faults came to, and asserts that it came to nothing."""
    tally.crashed += program.crashed
    assert program.wait() == 0, program.told
    found = content(folder)
    wrong = {name for name in {*found, *expected} if found.get(name) != expected.get(name)}
    tally.lost += len(wrong)
    assert not wrong, sorted(wrong)
    tally.survived += injected


# Kills


@pytest.mark.fault(12)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_was_not(
    programs, whole, sample, tmp_path, tally, full
):
    rng, expected, chains = random.Random(0), content(whole.folder), 0
    wanted = 30 if full else 3
    while tally.injected < wanted:
        chains += 1
        folder, hits = tmp_path / f"{chains}", 0
        for _ in range(3):  # of one run; each comes a little farther
            program = programs.start(*training(sample, folder, "--resume"), hook=EVERY_STEP)
            time.sleep(rng.uniform(0.05, 0.8) * whole.seconds / (1 + hits))
            if not program.kill():
                break
            hits += 1
            tally.injected += 1
            assert not unsound(folder)
        done = programs.run(*training(sample, folder, "--resume"), hook=EVERY_STEP)
        settle(tally, done, folder, expected, hits)
        assert chains < 3 * wanted
    tally.notes["runs"] = chains


HOLD = """
import os, time
from pathlib import Path
number, suffix, half, flag = {number}, {suffix!r}, {half}, {flag!r}
replace = os.replace

def held(source, target):
    global number
    if ".tmp" in str(source) and str(target).endswith(suffix):
        number -= 1
        if number == 0:
            if half:
                os.truncate(source, os.path.getsize(source) // 2)
            Path(flag).write_text(str(source) + "\\n" + str(target))
            time.sleep(600)
    replace(source, target)

os.replace = held
"""
"""Hook: the process holds still between a temporary file and its name, or where half of the file was written."""


def killed_while_it_held(program: Program, flag: Path) -> Path | None:
    """The file whose new content had no name yet when the kill came; None if the program ended before."""
    until(lambda: flag.exists() or not program.running())
    if not flag.exists():
        return None
    temporary, target = map(Path, until(flag.read_text).split("\n"))
    before = sha256(target) if target.exists() else None
    assert program.kill() and temporary.exists()
    assert (sha256(target) if target.exists() else None) == before
    return target


@pytest.mark.fault(12)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
def test_a_kill_between_a_half_or_whole_file_and_its_name_leaves_the_file_before_it(
    programs, whole, sample, tmp_path, tally, full
):
    rng, expected, chains = random.Random(1), content(whole.folder), 0
    wanted, checkpoints = (30 if full else 3), 0
    while tally.injected < wanted:
        chains += 1
        folder, hits = tmp_path / f"{chains}", 0
        for turn in range(3):
            flag = tmp_path / f"flag{chains}-{turn}"
            suffix = "" if turn == 1 else ".safetensors"  # weights and checkpoints above all
            number = rng.randint(1, 30) if turn == 1 else rng.randint(1, 4)
            hook = EVERY_STEP + HOLD.format(number=number, suffix=suffix, half=rng.random() < 0.5, flag=str(flag))
            program = programs.start(*training(sample, folder, "--resume"), hook=hook)
            target = killed_while_it_held(program, flag)
            if target is None:
                break
            hits += 1
            tally.injected += 1
            checkpoints += "checkpoint" in target.name
            assert not unsound(folder)
        done = programs.run(*training(sample, folder, "--resume"), hook=EVERY_STEP)
        settle(tally, done, folder, expected, hits)
        assert chains < 3 * wanted
    tally.notes["of checkpoints"] = checkpoints
    assert checkpoints > 0


@pytest.mark.fault(13)
@pytest.mark.promise("whole", "again")
@pytest.mark.timeout(3600)
def test_an_inference_that_is_killed_at_random_moments_ends_with_every_result_once(
    programs, inferred, model, photos, tmp_path, tally, full
):
    rng, expected, chains = random.Random(2), content(inferred.folder), 0
    wanted = 30 if full else 3
    while tally.injected < wanted:
        chains += 1
        folder, hits = tmp_path / f"{chains}", 0
        for turn in range(3):
            flag = tmp_path / f"flag{chains}-{turn}"
            hook = HOLD.format(number=rng.randint(1, 300), suffix="", half=rng.random() < 0.5, flag=str(flag))
            program = programs.start(*inference(model, photos, folder), hook=hook if turn == 1 else "")
            if turn == 1:
                if killed_while_it_held(program, flag) is None:
                    break
            else:
                time.sleep(rng.uniform(0.05, 0.8) * inferred.seconds / (1 + hits))
                if not program.kill():
                    break
            hits += 1
            tally.injected += 1
            assert not unsound(folder)
        done = programs.run(*inference(model, photos, folder), fresh=chains == 1)
        settle(tally, done, folder, expected, hits)
        names = [record["name"] for record in records(folder / "predictions.jsonl")]
        assert len(names) == len(set(names)) == 250
        assert chains < 3 * wanted
    tally.notes["runs"] = chains


# Signals

LISTENS = """
import signal
from pathlib import Path
plain = signal.signal

def told(number, handler):
    before = plain(number, handler)
    if number == signal.SIGTERM:
        Path({flag!r}).touch()
    return before

signal.signal = told
"""
"""Hook: tells when the command has begun to listen to signals."""


@pytest.mark.fault(14)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["train", "infer"])
def test_one_and_two_signals_end_a_command_as_they_should_and_it_goes_on(
    command, programs, request, sample, model, photos, tmp_path, tally, full
):
    """The first asks, so all that is finished is saved; the second ends it at once, and what was saved is whole."""
    undisturbed = request.getfixturevalue("whole" if command == "train" else "inferred")
    rng, expected = random.Random(3), content(undisturbed.folder)
    wanted = 20 if full else 3
    for turn in range(wanted):
        folder, hits = tmp_path / f"{turn}", 0
        arguments = training(sample, folder, "--resume") if command == "train" else inference(model, photos, folder)
        for number, times in ((signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGINT, 2), (signal.SIGTERM, 2)):
            flag = tmp_path / f"flag{turn}-{number}-{times}"
            hook = LISTENS.format(flag=str(flag)) + (EVERY_STEP if command == "train" else "")
            program = programs.start(*arguments, hook=hook)
            until(flag.exists)
            time.sleep(rng.uniform(0, 0.15) * undisturbed.seconds)
            for _ in range(times):
                program.send(number)
                time.sleep(rng.uniform(0, 0.05))
            if program.wait() == 0:  # it was at its end
                continue
            hits += 1
            tally.injected += 1
            tally.crashed += program.crashed
            ends = (128 + number, -number) if times == 2 else (128 + number,)  # the second comes at any moment
            assert program.wait() in ends, program.told
            if times == 1:
                assert f"(exit {128 + number})" in program.told and "what was finished is saved" in program.told
                if command == "train":
                    assert "go on with: sccam train" in program.told
                    assert read_json(folder / "run.json")["status"] == "interrupted"
            assert not unsound(folder)
        done = programs.run(*arguments, hook=EVERY_STEP if command == "train" else "")
        settle(tally, done, folder, expected, hits)
        if tally.injected >= wanted:
            break
    assert tally.injected >= wanted


BUSY = """
import threading, time
from pathlib import Path
from sccam.data import images
plain = images._to_rgb

def busy(image):
    if threading.current_thread() is threading.main_thread():
        Path({flag!r}).touch()
        ends = time.monotonic() + 600
        while time.monotonic() < ends:
            time.sleep(0.001)
    return plain(image)

images._to_rgb = busy
"""
"""Hook: an image of the main thread takes for ever to decode."""


@pytest.mark.fault(14)
@pytest.mark.promise("whole")
def test_two_signals_while_an_image_is_decoded_do_not_blame_the_image(programs, sample, tmp_path, tally):
    for number in (signal.SIGINT, signal.SIGTERM):
        folder, flag = tmp_path / f"{number}", tmp_path / f"flag{number}"
        program = programs.start(*training(sample, folder), hook=BUSY.format(flag=str(flag)))
        until(flag.exists)
        tally.injected += 1
        for _ in range(2):
            program.send(number)
            time.sleep(0.2)  # one that comes while the same one waits is lost
        assert program.wait() == 128 + number, program.told
        tally.crashed += program.crashed
        assert "stopped at once" in program.told and "decoded" not in program.told
        assert read_json(folder / "run.json")["status"] == "interrupted"
        tally.survived += 1


HANGING = """
import os
from pathlib import Path
from sccam.data import batches
plain, fifo = batches.read_image, {fifo!r}

def hanging(path, **options):
    Path({flag!r}).touch()
    with open(fifo, "rb") as file:
        file.read()
    return plain(path, **options)

batches.read_image = hanging
"""
"""Hook: reading an image to train on waits in the kernel, as for a network drive that is gone."""


@pytest.mark.fault(14, 27)
@pytest.mark.promise("whole")
def test_a_third_signal_ends_a_training_whose_reads_hang(programs, sample, tmp_path, tally):
    """Threads that wait in the kernel cannot be stopped, and a process that waits for them would never end."""
    fifo, flag, folder = tmp_path / "fifo", tmp_path / "flag", tmp_path / "run"
    os.mkfifo(fifo)
    program = programs.start(*training(sample, folder), hook=HANGING.format(fifo=str(fifo), flag=str(flag)))
    until(flag.exists)
    tally.injected += 1
    for _ in range(3):
        program.send(signal.SIGINT)
        time.sleep(0.2)
    assert program.wait() == 128 + signal.SIGINT, program.told
    tally.crashed += program.crashed
    assert not unsound(folder) and read_json(folder / "run.json")["schema"] == 1
    assert programs.run(*training(sample, folder, "--resume")).wait() == 0
    tally.survived += 1


# Two at once, and locks


HELD = """
import time
from pathlib import Path
from sccam import artifacts
enter = artifacts.RunFolder.__enter__

def held(self):
    found = enter(self)
    Path({flag!r}).touch()
    while not Path({go!r}).exists():
        time.sleep(0.01)
    return found

artifacts.RunFolder.__enter__ = held
"""
"""Hook: a process has the lock and waits."""


@pytest.mark.fault(17)
@pytest.mark.promise("again", "whole")
@pytest.mark.parametrize("command", ["train", "infer"])
def test_a_second_process_on_a_folder_is_refused_and_the_first_is_not_disturbed(
    command, programs, request, sample, model, photos, tmp_path, tally, full
):
    expected = content(request.getfixturevalue("whole" if command == "train" else "inferred").folder)
    folder, flag, go = tmp_path / "out", tmp_path / "flag", tmp_path / "go"
    arguments = training(sample, folder, "--resume") if command == "train" else inference(model, photos, folder)
    first = programs.start(*arguments, hook=HELD.format(flag=str(flag), go=str(go)))
    until(flag.exists)
    count = 10 if full else 2
    for turn in range(count):
        more = ["--overwrite"] if turn % 2 else []
        before = sorted(path for path in folder.rglob("*"))
        tally.injected += 1
        second = programs.run(*[word for word in arguments if not (more and word == "--resume")], *more)
        tally.crashed += second.crashed
        assert second.wait() == 3 and "another process" in second.told and str(folder) in second.told
        assert sorted(path for path in folder.rglob("*")) == before
    go.touch()
    settle(tally, first, folder, expected, count)


@pytest.mark.fault(17)
@pytest.mark.promise("again", "whole")
@pytest.mark.parametrize("command", ["train", "infer"])
def test_the_lock_of_a_killed_process_hinders_nobody(
    command, programs, request, sample, model, photos, tmp_path, tally
):
    expected = content(request.getfixturevalue("whole" if command == "train" else "inferred").folder)
    folder, flag = tmp_path / "out", tmp_path / "flag"
    arguments = training(sample, folder, "--resume") if command == "train" else inference(model, photos, folder)
    program = programs.start(*arguments, hook=HELD.format(flag=str(flag), go=str(tmp_path / "never")))
    until(flag.exists)
    assert program.kill() and (folder / "lock").exists()
    tally.injected += 1
    settle(tally, programs.run(*arguments, fresh=True), folder, expected, 1)
