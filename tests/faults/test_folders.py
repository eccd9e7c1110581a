# ruff: noqa: F811 (fixtures of other files are arguments here)
"""Commands that are pointed at a folder of something else: refused in words, and nothing there is touched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sccam.artifacts import sha256
from sccam.data.sample import draw_sample
from tests.faults.conftest import Tally
from tests.faults.processes import Programs
from tests.faults.test_kills import (  # noqa: F401
    Whole,
    inference,
    inferred,
    model,
    photos,
    programs,
    sample,
    training,
    whole,
)

pytestmark = [pytest.mark.slow, pytest.mark.fault(16)]

HERE = Path("HERE")  # in place of the folder
KINDS = ("a run", "results", "other files")
SETTINGS_OF_A_RUN = ["run.seed=9", "classify.batch=7", "network.backbone=resnet50", "walk.alpha=0.5", "cluster.k=7"]


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*")
            if path.is_file() and path.name != "lock"}  # fmt: skip


@pytest.fixture
def folders(whole: Whole, inferred: Whole, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder of a kind."""

    def made(kind: str) -> Path:
        folder = tmp_path / kind.replace(" ", "-")
        if kind == "other files":
            folder.mkdir()
            (folder / "thesis.txt").write_text("years of work")
            (folder / "masks").mkdir()
            (folder / "masks/1.png").write_bytes(b"drawn by hand")
        else:
            shutil.copytree({"a run": whole, "results": inferred}[kind].folder, folder)
        return folder

    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_something_else_is_refused_and_left_as_it_is(
    kind: str, programs: Programs, whole: Whole, inferred: Whole, sample: Path, photos: Path, model: Path,
    folders: Callable[[str], Path], tally: Tally, tmp_path: Path,
) -> None:  # fmt: skip
    other, masks = tmp_path / "data", inferred.folder / "masks"
    draw_sample(other, images=15, sizes=(49, 66), seed=5)
    settings: list[list[object]] = [[*training(sample, HERE, "--resume", "--set", text)] for text in SETTINGS_OF_A_RUN]
    commands: list[list[object]] = [
        [*training(sample, HERE)],
        [*training(other, HERE, "--resume")],
        *settings,
        ["infer", model, photos, "--out", HERE],
        [*inference(model, photos, HERE), "--flip"],
        [*inference(model, photos, HERE), "--size", 64],
        ["report", whole.folder, "--out", HERE],
        ["labels", "convert", masks, HERE, "--to", "yolo"],
        ["data", "sample", HERE],
    ]
    if kind != "a run":
        commands += [[*training(sample, HERE, "--overwrite")], ["report", HERE], ["export", HERE]]
    if kind != "results":
        commands += [["infer", model, photos, "--out", HERE, "--overwrite"]]
    folder = folders(kind)
    before = files(folder)
    for command in commands:
        tally.injected += 1
        program = programs.run(*(str(word).replace("HERE", str(folder)) for word in command))
        tally.crashed += program.crashed
        assert program.wait() in (2, 3) and str(folder) in program.told, (command, program.told)
        changed = files(folder) != before
        tally.lost += changed
        assert not changed, command
        tally.survived += 1


def test_overwrite_forgets_what_is_the_programs_own_and_nothing_else(
    programs: Programs, sample: Path, photos: Path, model: Path, folders: Callable[[str], Path], tally: Tally
) -> None:
    for kind, command in (
        ("a run", training(sample, HERE, "--overwrite")),
        ("results", ["infer", str(model), str(photos), "--out", "HERE", "--overwrite"]),
    ):
        folder = folders(kind)
        (folder / "thesis.txt").write_text("years of work")
        tally.injected += 1
        program = programs.run(*(word.replace("HERE", str(folder)) for word in command))
        tally.crashed += program.crashed
        kept = (folder / "thesis.txt").exists()
        tally.lost += not kept
        assert kept and (program.wait() == 0 or "thesis.txt" in program.told), program.told
        tally.survived += 1
