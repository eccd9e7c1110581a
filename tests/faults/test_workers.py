"""Workers that die or hang, disks that are slow, files that change under a run, and little shared memory."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam.artifacts import read_json, write_json
from tests.faults import test_kills
from tests.faults.processes import Program, until
from tests.faults.test_disks import ONE_CORE
from tests.faults.test_kills import EVERY_STEP, content, records, settle, training, unsound

model, programs, sample, whole = test_kills.model, test_kills.programs, test_kills.sample, test_kills.whole  # fixtures

pytestmark = pytest.mark.slow


def children(pid: int) -> list[int]:
    """Processes that a process has started with a pipe to it: its workers, without their resource tracker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields[1]) == pid and fields[0] != "Z" and b"spawn_main" in command:
                found.append(int(entry.name))
    return found


def workers_of(program: Program, at_least: int = 1) -> list[int]:
    """Its workers, once it has so many."""
    found: list[int] = []

    def there() -> bool:
        found[:] = children(program.pid)
        return len(found) >= at_least or not program.running()

    until(there)
    return found


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


STAGES = {
    "affinity/labels": ("threshold", "affinity_labels"),
    "walk": ("affinity/train", "walked_maps"),
    "pseudo_labels": ("walk", "pseudo_labels"),
    "segment/predict": ("segment/train", "predictions_crf"),
}
"""Stage that has workers -> (the stage before it, the folder that it fills)."""


def before(stage: str, run: Path, place: Path) -> Path:
    """The finished run as it was before a stage."""
    shutil.copytree(run, place)
    state, (last, _) = read_json(place / "run.json"), STAGES[stage]
    names = list(state["finished"])
    state["finished"] = {name: state["finished"][name] for name in names[: names.index(last) + 1]}
    write_json(place / "run.json", {**state, "status": "interrupted"})
    order = list(STAGES)
    for later in order[order.index(stage) :]:
        shutil.rmtree(place / STAGES[later][1])
    if stage == "segment/predict":
        shutil.rmtree(place / "predictions")
    return place


@pytest.mark.fault(27)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
def test_a_worker_that_is_killed_ends_a_training_in_words_and_it_goes_on(
    programs, whole, sample, tmp_path, tally, full
):
    rng, expected, n = random.Random(0), content(whole.folder), 0
    wanted = 12 if full else 1
    while tally.injected < wanted:
        stage = list(STAGES)[n % len(STAGES)]
        folder = before(stage, whole.folder, tmp_path / f"{n}")
        n += 1
        assert n < 3 * wanted + 3
        program = programs.start(*training(sample, folder, "--resume", "--set", "run.workers=2"))
        workers = workers_of(program)
        # Killed while it works, or while it begins.
        filled(folder / STAGES[stage][1], rng.randrange(8) if n % 2 else 0, program)
        if not program.running() or not kill(rng.choice(workers)):
            continue
        if program.wait() == 0:  # it had nothing left to do
            continue
        tally.injected += 1
        tally.crashed += program.crashed
        assert program.wait() == 7 and "a worker process died" in program.told, program.told
        assert "--set run.workers=1" in program.told and not unsound(folder)
        assert read_json(folder / "run.json")["status"] == "failed"
        settle(tally, programs.run(*training(sample, folder, "--resume"), hook=EVERY_STEP), folder, expected, 1)


def filled(folder: Path, files: int, program: Program) -> None:
    """Waits until so many files are there."""
    until(lambda: len(list(folder.rglob("*.*"))) >= files or not program.running())


def kill(pid: int) -> bool:
    """SIGKILL; whether there was something to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.fault(27)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", ["report", "check"])
def test_a_worker_that_is_killed_ends_other_commands_in_words(command, programs, whole, sample, tmp_path, tally, full):
    arguments: list[object] = {"report": ["report", whole.folder, "--out", tmp_path / "report"],
                 "check": ["data", "check", sample]}[command]  # fmt: skip
    for _ in range(3 if full else 1):
        program = programs.start(*arguments)
        worker = workers_of(program)[0]
        tally.injected += 1
        assert kill(worker)
        tally.crashed += program.crashed
        assert program.wait() == 7 and "a worker process died" in program.told, program.told
        again = programs.run(*arguments, hook=ONE_CORE)
        tally.crashed += again.crashed
        assert again.wait() == 0, again.told
        tally.survived += 1


def is_long(path: Path, size: int) -> bool:
    """Whether a file is there and has so many bytes."""
    return path.exists() and path.stat().st_size == size


TAKEN = """
from sccam.stop import StopRequest
handle = StopRequest._handle

def told(self, number, frame):
    with open({taken!r}, "a") as file:
        file.write("x")
    handle(self, number, frame)

StopRequest._handle = told
"""
"""Hook: a letter in a file for every signal that is taken."""


@pytest.mark.fault(27, 14)
@pytest.mark.promise("whole")
def test_a_training_whose_worker_hangs_can_be_ended_and_goes_on(programs, whole, sample, tmp_path, tally):
    """A worker that is stopped is like one whose disk does not answer: it never gives its result."""
    folder = before("affinity/labels", whole.folder, tmp_path / "run")
    taken = tmp_path / "taken"
    program = programs.start(
        *training(sample, folder, "--resume", "--set", "run.workers=2"), hook=TAKEN.format(taken=str(taken))
    )
    workers = workers_of(program, at_least=2)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    tally.injected += 1
    try:
        for count in (1, 2):  # one that came before the last was taken would be lost
            program.send(signal.SIGINT)
            until(partial(is_long, taken, count))
        time.sleep(2.0)  # the second one has ended the command, or its end waits for the workers
        program.send(signal.SIGINT)
        assert program.wait() == 128 + signal.SIGINT, program.told
        tally.crashed += program.crashed
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
    until(lambda: not any(map(alive, workers)))  # they notice that they are alone
    settle(
        tally, programs.run(*training(sample, folder, "--resume"), hook=EVERY_STEP), folder, content(whole.folder), 1
    )


# Reading


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of sizes that differ, with one decoder or another."""
    folder = tmp_path_factory.mktemp("photos")
    for n in range(200):
        draw(folder / f"{n}.png", n)
    return folder


def draw(path: Path, seed: int) -> None:
    """A small picture of its own, written in one go or not at all."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
    temporary = path.with_name(f".{path.name}")
    coarse.resize((60 + seed % 5, 40 + seed % 3)).save(temporary, format="PNG")
    temporary.replace(path)


HANGING = """
from sccam.data import images
from sccam.runtime import pipeline, segmenter
pipeline.READ_SECONDS = 1.0
plain = segmenter.read_image

def hanging(path, **options):
    if {mark!r} in str(path):
        with open({fifo!r}, "rb") as file:
            file.read()
    return plain(path, **options)

segmenter.read_image = hanging
"""
"""Hook: some files wait in the kernel when they are read, and reads are given up after a second."""


@pytest.mark.fault(27)
@pytest.mark.promise("each", "again")
@pytest.mark.timeout(3600)
def test_reads_that_hang_are_lines_and_everything_else_is_done(programs, model, photos, tmp_path, tally, full):
    folder, out, fifo = tmp_path / "photos", tmp_path / "out", tmp_path / "fifo"
    shutil.copytree(photos, folder)
    os.mkfifo(fifo)
    hanging, pipes = (20, 20) if full else (3, 3)
    for n in range(hanging):
        draw(folder / f"hangs-{n}.png", n)
    for n in range(pipes):
        os.mkfifo(folder / f"pipe-{n}.png")  # which Python would wait for, where it is opened
    tally.injected += hanging + pipes
    program = programs.run(
        "infer", model, folder, "--out", out, "--threads", "2", hook=HANGING.format(mark="hangs-", fifo=str(fifo))
    )
    tally.crashed += program.crashed
    assert program.wait() == 5, program.told
    errors = {record["name"]: record["reason"] for record in records(out / "errors.jsonl")}
    assert {name for name, why in errors.items() if "took longer" in why} == {f"hangs-{n}" for n in range(hanging)}
    assert {name for name, why in errors.items() if "not a file" in why} == {f"pipe-{n}" for n in range(pipes)}
    assert len(errors) == hanging + pipes
    done = {record["name"] for record in records(out / "predictions.jsonl")}
    tally.lost += len({path.stem for path in photos.iterdir()} ^ done)
    for n in range(pipes):
        (folder / f"pipe-{n}.png").unlink()
        draw(folder / f"pipe-{n}.png", n)
    again = programs.run("infer", model, folder, "--out", out)
    assert again.wait() == 0 and f"{hanging + pipes} images in" in again.told, again.told
    tally.survived += hanging + pipes


@pytest.mark.fault(28)
@pytest.mark.promise("each")
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_number_of_images_that_wait_for_a_slow_disk(
    programs, model, tmp_path, tally, full
):
    few, many, side = 60, (5000 if full else 300), 400
    picture = tmp_path / "one.png"
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 4, 3), np.uint8))
    coarse.resize((side, side)).save(picture, compress_level=1)
    peaks = {}
    for count in (few, many):
        folder = tmp_path / f"{count}"
        folder.mkdir()
        for n in range(count):
            os.link(picture, folder / f"{n}.png")
        tally.injected += 1
        peak = tmp_path / f"peak{count}"
        hook = SLOW.format(peak=str(peak))
        program = programs.run("infer", model, folder, "--out", tmp_path / f"out{count}", hook=hook, fresh=True)
        tally.crashed += program.crashed
        assert program.wait() == 0, program.told
        tally.lost += count - len(records(tmp_path / f"out{count}/predictions.jsonl"))
        peaks[count] = int(peak.read_text()) / 1024
        tally.survived += 1
    grown, waiting = peaks[many] - peaks[few], (many - few) * side * side * 3 / 1e6
    tally.notes |= {
        "images": many,
        "peak MB": round(peaks[many]),
        "grown by MB": round(grown),
        "all MB": round(waiting),
    }
    assert grown < waiting / 3, peaks


SLOW = """
import atexit, sys, time
from pathlib import Path

def measure():
    lines = Path("/proc/self/status").read_text().splitlines()
    Path({peak!r}).write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

atexit.register(measure)

class Finder:
    '''Slows the writer of masks when it is imported: nothing of the program is imported before the command.'''

    def find_spec(self, name, path=None, target=None):
        if name == "sccam.runtime.folder":
            sys.meta_path.remove(self)
            import sccam.data.masks as masks
            plain = masks.write_mask

            def slow(*arguments):
                time.sleep(0.01)
                plain(*arguments)

            masks.write_mask = slow

sys.meta_path.insert(0, Finder())
"""
"""Hook: a hundredth of a second more for each mask, on each thread that writes; the most memory [KB] into a file."""


LINGER = """
import time
from sccam.runtime import segmenter
plain = segmenter.read_image

def lingering(path, **options):
    time.sleep(0.01)
    return plain(path, **options)

segmenter.read_image = lingering
"""
"""Hook: reading takes its time, so that there is time for changes."""


@pytest.mark.fault(29)
@pytest.mark.promise("each", "again")
@pytest.mark.timeout(3600)
def test_files_that_vanish_change_and_appear_are_lines_or_results_and_right_after_the_next_run(
    programs, model, photos, tmp_path, tally, full
):
    rng, wanted, turn = random.Random(0), (100 if full else 10), 0
    while tally.injected < wanted:
        folder, out = tmp_path / f"photos{turn}", tmp_path / f"out{turn}"
        shutil.copytree(photos, folder)
        program = programs.start("infer", model, folder, "--out", out, "--threads", "2", hook=LINGER)
        begun(out, program)
        done, gone = 0, set[str]()
        while program.running() and done < 20:
            disturb(folder, rng, gone)
            done += 1
            time.sleep(0.02)
        tally.injected += done
        tally.crashed += program.crashed
        assert program.wait() in (0, 5), program.told
        for record in records(out / "errors.jsonl"):
            assert record["class"] == "ImageError" and record["name"] in gone, record
        again = programs.run("infer", model, folder, "--out", out)
        fresh = programs.run("infer", model, folder, "--out", tmp_path / f"fresh{turn}")
        assert again.wait() == fresh.wait() == 0, again.told
        expected = content(tmp_path / f"fresh{turn}")
        found = content(out)
        for name in [name for name in expected if name.startswith("masks/")]:
            tally.lost += found.get(name) != expected[name]
        latest = {record["name"]: record["bytes"] for record in records(out / "predictions.jsonl")}
        for path in folder.glob("*.png"):
            tally.lost += latest.get(path.stem) != path.stat().st_size
        assert tally.lost == 0
        tally.survived += done
        turn += 1


def begun(out: Path, program: Program) -> None:
    """Waits for the first lines."""
    until(lambda: (out / "predictions.jsonl").exists() or not program.running())


def disturb(folder: Path, rng: random.Random, gone: set[str]) -> None:
    """One file vanishes, becomes another, is half written, or appears; what may be unreadable goes there."""
    path = rng.choice(sorted(folder.glob("*.png")))
    kind = rng.randrange(4)
    if kind == 0:
        path.unlink()
        gone.add(path.stem)
    elif kind == 1:
        draw(path, rng.randrange(1000, 10**6))
    elif kind == 2:  # a copy in progress: for a while there is only half of it
        draw(path, rng.randrange(1000, 10**6))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        time.sleep(0.01)
        path.write_bytes(data)
        gone.add(path.stem)
    else:
        draw(folder / f"new-{rng.randrange(10**6)}.png", rng.randrange(10**6))


# Shared memory


@pytest.mark.fault(37)
@pytest.mark.promise("told", "whole")
def test_64_megabytes_of_shared_memory_are_enough_for_workers(programs, whole, sample, tmp_path, tally, full):
    """As in a container that nobody gave more to."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    small = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && df -k --output=size /dev/shm && exec "$@"'
    inside = ["unshare", "--mount", "sh", "-c", small, "sh"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this container may not mount file systems")
    folder = before("affinity/labels" if full else "segment/predict", whole.folder, tmp_path / "run")
    tally.injected += 1
    arguments = training(sample, folder, "--resume", "--set", "run.workers=2")
    program: Program = programs.run(*arguments, fresh=True, before=inside)
    assert "65536" in program.told
    settle(tally, program, folder, {**content(whole.folder), "config.toml": content(folder)["config.toml"]}, 1)
