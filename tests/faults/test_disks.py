"""Disks that are full or closed, and files of a run that are not what they were."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sccam.artifacts import (
    manifest_path,
    read_json,
    read_tensors,
    read_weights_with_manifest,
    sha256,
    tensors_metadata,
    write_json,
    write_tensors,
    write_weights,
)
from tests.faults import test_kills
from tests.faults.conftest import FULL, Tally
from tests.faults.processes import Program, Programs, mounted, until
from tests.faults.test_kills import EVERY_STEP, HOLD, Whole, content, inference, training, unsound

model, programs, sample, whole = test_kills.model, test_kills.programs, test_kills.sample, test_kills.whole  # fixtures
COMMANDS = ["train", "infer", "export", "report", "sample"]
ONE_CORE = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
"""Hook: no worker processes."""
STAND_IN = """
import onnx
from sccam.export import network
model = onnx.load({path!r})
model.doc_string = "-" * 20_000
network.to_onnx = lambda *_: model
network.torch_network = lambda _: network.session_of(model.SerializeToString())
"""
"""Hook: another graph in place of the network's, which takes torch most of a minute to trace."""
LONGEST_TOLD = 8192  # [bytes] that a command's own lines need

pytestmark = pytest.mark.slow


@dataclass
class Commands:
    """The commands that write, each with its output in a folder."""

    programs: Programs
    run: Path
    sample: Path
    photos: Path
    model: Path
    place: Path
    real_export: bool

    def arguments(self, command: str, out: Path) -> list[str]:
        return {
            "train": training(self.sample, out, "--resume"),
            "infer": inference(self.model, self.photos, out),
            "export": ["export", str(self.run), "--out", str(out), "--network", "segmenter", "--precision", "fp32"],
            "report": ["report", str(self.run), "--out", str(out)],
            "sample": ["data", "sample", str(out), "--images", "12"],
        }[command]

    def __call__(self, command: str, out: Path, hook: str = "", stand_in: bool = False, **options: Any) -> Program:
        hooks = {"train": EVERY_STEP, "report": ONE_CORE}
        if not self.real_export or stand_in:
            hooks["export"] = STAND_IN.format(path=str(self.model))
        return self.programs.run(*self.arguments(command, out), hook=hook + hooks.get(command, ""), **options)

    def undisturbed(self, command: str) -> Path:
        """Where the command has written all that it writes."""
        if command == "train":
            return self.run
        if not (out := self.place / command).exists():
            assert self(command, out).wait() == 0
        return out


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(60):
        coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), np.uint8))
        coarse.resize((70 + n % 3, 50)).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def commands(
    programs: Programs, whole: Whole, sample: Path, photos: Path, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Commands:
    return Commands(programs, whole.folder, sample, photos, model, tmp_path_factory.mktemp("peace"), FULL)


@pytest.fixture
def mounts() -> None:
    """Skips where nothing can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts file systems")
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True).returncode:
        pytest.skip("this container may not mount file systems")


def refused(tally: Tally, program: Program, where: Path, codes: tuple[int, ...] = (7,)) -> None:
    """The command said what is wrong with which path, and what to do."""
    tally.injected += 1
    tally.crashed += program.crashed
    assert program.wait() in codes and f"(exit {program.wait()})" in program.told, program.told
    assert str(where) in program.told and "  fix    " in program.told, program.told


def results(folder: Path) -> dict[Path, str]:
    """Finished files; checkpoints move on, and lists grow."""
    kept = (path for path in folder.rglob("*") if path.suffix in (".safetensors", ".npz", ".png", ".jpg", ".onnx"))
    return {path: sha256(path) for path in kept if "checkpoint" not in path.name and not path.name.startswith(".")}


def size_of(folder: Path, block: int = 4096) -> int:
    """[bytes] on a disk of such blocks."""
    return sum(-(-path.stat().st_size // block) * block for path in folder.rglob("*") if path.is_file())


def starve(disk: Path, room: int) -> None:
    """Fills a disk until so many bytes are free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    status = os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_bsize - room))


# Full


@pytest.mark.fault(15)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_ends_a_command_in_words_and_with_room_it_goes_on(command, commands, mounts, tmp_path, tally, full):
    rng = random.Random(COMMANDS.index(command))
    peace = commands.undisturbed(command)
    expected, needed = content(peace), size_of(peace)
    count = {"export": 3}.get(command, 10) if full else 2
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=64m", "tmpfs") as disk:
        out = disk / "out"
        for share in sorted(rng.uniform(0, 0.8) if n else 0.0 for n in range(count)):
            starve(disk, max(0, int(share * needed) - size_of(out)))
            before = results(out)
            program = commands(command, out)
            refused(tally, program, disk)
            assert not unsound(out)
            if command in ("train", "infer"):
                tally.lost += len(before.items() - results(out).items())
        (disk / "ballast").unlink()
        test_kills.settle(tally, commands(command, out), out, expected, tally.injected)
    assert read_json(commands.run / "run.json")["status"] == "finished"


@pytest.mark.fault(15)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_may_not_grow_ends_a_command_in_words(command, commands, tmp_path, tally, full):
    """As on a file system whose files have at most 2 or 4 GB, or by a quota."""
    rng, out, peace = random.Random(COMMANDS.index(command)), tmp_path / "out", commands.undisturbed(command)
    sizes = {path.stat().st_size for path in peace.rglob("*") if path.is_file()}
    limits = sorted(size - 1 for size in sizes if size > LONGEST_TOLD)
    count = {"export": 1}.get(command, min(10, len(limits))) if full else 1
    for limit in sorted(rng.sample(limits, count)):
        before = results(out)
        refused(tally, commands(command, out, largest_file=limit), out)
        assert not unsound(out)
        if command in ("train", "infer"):
            tally.lost += len(before.items() - results(out).items())
    test_kills.settle(tally, commands(command, out), out, content(peace), tally.injected)


# Closed

NO_PRIVILEGE = """
import ctypes, os
if os.geteuid() == 0:
    # capset of an empty set of effective, permitted and inheritable capabilities: from here on permissions bind root
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) == 0
"""
"""Hook: a user like any other."""


@contextmanager
def read_only(place: Path) -> Iterator[str]:
    """A file system that is mounted for reading."""
    with mounted(place, "--bind", str(place)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(place)], check=True)
        yield ""


@contextmanager
def immutable(place: Path) -> Iterator[str]:
    """A folder that nothing is added to."""
    if subprocess.run(["chattr", "+i", str(place)], capture_output=True).returncode:
        pytest.skip("chattr does not work on the file system of the tests")
    try:
        yield ""
    finally:
        subprocess.run(["chattr", "-i", str(place)], check=True)


@contextmanager
def forbidden(place: Path) -> Iterator[str]:
    """A folder without the right to write."""
    place.chmod(0o555)
    try:
        yield NO_PRIVILEGE
    finally:
        place.chmod(0o755)


@contextmanager
def no_folder(place: Path) -> Iterator[str]:
    """A file where a folder should be."""
    place.rmdir()
    place.write_text("a letter")
    yield ""
    assert place.read_text() == "a letter"


@pytest.mark.fault(15)
@pytest.mark.promise("whole")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("closed", [read_only, immutable, forbidden, no_folder], ids=lambda kind: kind.__name__)
def test_a_folder_that_cannot_be_written_is_named_and_nothing_is_changed(
    closed: Callable[[Path], Any], command, commands, request, tmp_path, tally, full
):
    if closed in (read_only, immutable):
        request.getfixturevalue("mounts")
    place = tmp_path / "place"
    place.mkdir()
    with closed(place) as hook:
        outs = [place / "out", place]  # a folder that cannot be made, and one that is there
        for out in outs if full else outs[COMMANDS.index(command) % 2 :][:1]:
            refused(tally, commands(command, out, hook=hook, stand_in=True), place, codes=(3, 7))
            tally.survived += 1
        assert not list(place.glob("*"))


@pytest.mark.fault(15)
@pytest.mark.promise("whole")
def test_a_run_that_became_unwritable_keeps_its_checkpoint_and_goes_on_when_it_is_writable_again(
    commands, killed, whole, mounts, tmp_path, tally
):
    folder = tmp_path / "run"
    shutil.copytree(killed, folder)
    before = content(folder)
    with read_only(folder):
        program = commands("train", folder)
        refused(tally, program, folder)
    assert content(folder) == before
    test_kills.settle(tally, commands("train", folder), folder, content(whole.folder), 1)


# Changed


@pytest.fixture(scope="module")
def killed(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in its second round, with the checkpoint of a step."""
    place = tmp_path_factory.mktemp("killed")
    folder, flag, name = place / "run", place / "flag", "round1_classify.checkpoint.safetensors"
    hook = EVERY_STEP + HOLD.format(number=2, suffix=name, half=False, flag=str(flag))
    program = commands.programs.start(*training(commands.sample, folder, "--resume"), hook=hook)
    until(lambda: flag.exists() or not program.running())
    assert program.kill() and (folder / name).exists()
    return folder


@dataclass
class Case:
    """A run that goes on from one file."""

    file: str
    folder: Path


def rewound(whole: Whole, place: Path, last: str, made_after: list[str]) -> Path:
    """The finished run as it was after a stage."""
    shutil.copytree(whole.folder, place)
    state = read_json(place / "run.json")
    names = list(state["finished"])
    state["finished"] = {name: state["finished"][name] for name in names[: names.index(last) + 1]}
    write_json(place / "run.json", {**state, "status": "interrupted"})
    for name in made_after:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return place


@pytest.fixture
def cases(killed: Path, whole: Whole, tmp_path: Path) -> list[Case]:
    return [
        Case("round1_classify.checkpoint.safetensors", killed),
        Case("round0/cam_net.safetensors", rewound(whole, tmp_path / "a", "round0/maps", ["round1"])),
        Case(
            "round1/cam_net.safetensors",
            rewound(whole, tmp_path / "b", "round1/classify", ["round1/activation_maps"]),
        ),
        Case("affinity_net.safetensors", rewound(whole, tmp_path / "c", "affinity/train", ["walked_maps"])),
        Case(
            "segmenter.safetensors", rewound(whole, tmp_path / "d", "segment/train", ["predictions", "predictions_crf"])
        ),
    ]


Damage = Callable[[Path, random.Random], None]


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_header(path: Path, rng: random.Random) -> None:
    """Where names, types and sizes are."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(min(len(data), 8 + int.from_bytes(data[:8], "little")))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def empty(path: Path, rng: random.Random) -> None:
    path.write_bytes(b"")


def noise(path: Path, rng: random.Random) -> None:
    path.write_bytes(rng.randbytes(path.stat().st_size))


def zeros_at_the_end(path: Path, rng: random.Random) -> None:
    """What a file system leaves of a file whose last blocks were not on the disk yet."""
    size = path.stat().st_size
    os.truncate(path, rng.randrange(size))
    os.truncate(path, size)


def a_folder(path: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()


def another_network(path: Path, rng: random.Random) -> None:
    """Sound files of their own, at the wrong place."""
    run = path.parent if path.parent.name != "round0" and path.parent.name != "round1" else path.parent.parent
    if "checkpoint" in path.name:
        facts = tensors_metadata(path)
        tensors = {name: torch.zeros(3) for name in read_tensors(path)}
        write_tensors(path, tensors, facts)
        return
    other = run / ("affinity_net.safetensors" if "cam_net" in path.name else "round1/cam_net.safetensors")
    if not other.exists():
        other = run / "segmenter.safetensors"
    shutil.copy(other, path)
    shutil.copy(manifest_path(other), manifest_path(path))


def another_stage(path: Path, rng: random.Random) -> None:
    """The checkpoint of another round has tensors of the same shapes; weights of another run have the same name."""
    if "checkpoint" in path.name:
        tensors, facts = read_tensors(path), tensors_metadata(path)
        other = path.with_name("round0_classify.checkpoint.safetensors")
        write_tensors(path, tensors, {**facts, "file": other.name})
    else:
        manifest = read_json(manifest_path(path))
        write_json(manifest_path(path), {**manifest, "sha256": "0" * 64})


def other_classes(path: Path, rng: random.Random) -> None:
    """One class fewer."""
    if "checkpoint" in path.name:
        tensors, facts = read_tensors(path), tensors_metadata(path)
        write_tensors(path, {**tensors, "model.parent.weight": tensors["model.parent.weight"][:-1]}, facts)
        return
    tensors, manifest = read_weights_with_manifest(path)
    classes = manifest.classes[:-1]
    for name, tensor in tensors.items():
        if tensor.ndim and tensor.shape[0] in (len(manifest.classes), len(classes) + 2) and "backbone" not in name:
            tensors[name] = tensor[:-1].clone()
    write_weights(
        path, tensors, kind=manifest.kind, backbone=manifest.backbone, classes=classes, mean=manifest.mean,
        std=manifest.std, stride=manifest.stride, made_from=manifest.made_from,
    )  # fmt: skip


def newer(path: Path, rng: random.Random) -> None:
    """As a later version might write it."""
    if "checkpoint" in path.name:
        tensors, facts = read_tensors(path), tensors_metadata(path)
        write_tensors(path, tensors, {**facts, "schema": "99"})
    else:
        manifest = read_json(manifest_path(path))
        write_json(manifest_path(path), {**manifest, "schema": 99, "quantiles": [0.1]})


DAMAGES: tuple[Damage, ...] = (
    cut, flip, another_network, other_classes, newer, flip_header, zeros_at_the_end, noise, another_stage, empty,
    a_folder,
)  # fmt: skip


@pytest.mark.fault(18)
@pytest.mark.promise("whole")
@pytest.mark.timeout(3600)
def test_weights_and_checkpoints_that_are_not_what_they_were_are_refused_by_name(
    commands, cases, whole, tmp_path, tally, full
):
    """Refused, or as good as before: what comes out at the end is never something else."""
    rng, expected, counts = random.Random(0), content(whole.folder), Counter[str]()
    for n in range(100 if full else 12):
        case, damage = cases[n % len(cases)], DAMAGES[(n + n // len(DAMAGES)) % len(DAMAGES)]
        folder = tmp_path / f"{n}"
        shutil.copytree(case.folder, folder)
        damage(folder / case.file, rng)
        tally.injected += 1
        program = commands("train", folder)
        what = f"{damage.__name__} of {case.file}: {program.told}"
        tally.crashed += program.crashed
        assert program.wait() in (0, 3) and not program.crashed, what
        if program.wait() == 0:
            counts["as good as before"] += 1
            assert content(folder) == expected, what
        else:
            assert str(folder / case.file) in program.told, what
            counts["refused"] += 1
            if "checkpoint" in case.file and "delete it" in program.told and (full or n == 0):  # as good as it says
                path = folder / case.file
                path.rmdir() if path.is_dir() else path.unlink()
                assert commands("train", folder).wait() == 0 and content(folder) == expected, what
        tally.survived += 1
        shutil.rmtree(folder)
    tally.notes |= counts


@pytest.mark.fault(18)
@pytest.mark.promise("whole")
@pytest.mark.parametrize("command", ["infer", "export", "report"])
def test_a_run_with_damaged_weights_gives_no_results(command, commands, whole, photos, tmp_path, tally, full):
    rng = random.Random(1)
    for n in range(10 if full else 2):
        folder, out = tmp_path / f"{n}", tmp_path / f"out{n}"
        shutil.copytree(whole.folder, folder)
        path = folder / ("round1/cam_net.safetensors" if command == "report" else "segmenter.safetensors")
        (cut, flip, zeros_at_the_end, noise)[n % 4](path, rng)
        arguments = {
            "infer": ["infer", folder, photos, "--out", out],
            "export": ["export", folder, "--out", out, "--network", "segmenter"],
            "report": ["report", folder, "--out", out],
        }[command]
        tally.injected += 1
        program = commands.programs.run(*arguments, hook=ONE_CORE)
        tally.crashed += program.crashed
        assert program.wait() == 3 and str(path) in program.told, program.told
        assert not list(out.rglob("*.onnx")) and not list(out.rglob("masks/*")) and not list(out.rglob("index.html"))
        tally.survived += 1


@pytest.mark.fault(18)
@pytest.mark.promise("whole")
def test_a_run_of_a_newer_version_is_left_alone(commands, whole, tmp_path, tally):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    state = read_json(folder / "run.json")
    write_json(folder / "run.json", {**state, "schema": 99, "sccam": "9.0"})
    before = {path: sha256(path) for path in folder.rglob("*") if path.is_file()}
    refused(tally, commands("train", folder), folder, codes=(3,))
    assert {path: sha256(path) for path in folder.rglob("*") if path.is_file()} == before
    tally.survived += 1
