"""The command line: starts fast, says what is wrong in a few lines, ends with the error's exit code."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sccam import __version__
from sccam.cli.printing import LineReporter, duration
from sccam.config import from_mapping
from sccam.data.masks import read_mask, write_mask
from sccam.data.sample import draw_sample
from sccam.recipe import RunConfig, load_config
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "sample set"  # a space, as folders of people have
    draw_sample(folder, images=10, sizes=(33, 47))
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Help


def test_help_loads_no_heavy_library():
    command = [sys.executable, "-X", "importtime", "-m", "sccam.cli", "--help"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0 and "train" in found.stdout and "eval" in found.stdout
    loaded = {line.split("|")[-1].strip() for line in found.stderr.splitlines() if line.startswith("import time:")}
    assert "sccam.errors" in loaded
    assert not loaded & {"torch", "torchvision", "timm", "sklearn", "scipy", "numpy", "PIL"}


@pytest.mark.parametrize(
    "command", [["train"], ["eval"], ["data"], ["data", "sample"], ["labels", "convert"], ["version"]]
)
def test_every_command_has_help(sccam: Cli, command: list[str]):
    code, out, _ = sccam(*command, "--help")
    assert code == 0 and "Usage" in out


def test_the_version_is_that_of_the_package(sccam: Cli):
    assert sccam("version") == (0, f"{__version__}\n", "")


# Errors


def parts(text: str) -> dict[str, str]:
    """An error text as its parts: error, where, likely, fix."""
    pattern = re.compile(r"^(error:|  where|  likely|  fix) +(.*)$", re.MULTILINE)
    return {name.strip(" :"): rest for name, rest in pattern.findall(text)}


def test_an_unknown_setting_ends_with_2_and_offers_the_nearest_name(sccam: Cli, sample: Path, tmp_path: Path):
    code, out, err = sccam("train", sample, "--out", tmp_path / "run", "--set", "cluster.kk=3")
    assert (code, out) == (2, "")
    found = parts(err)
    assert found["error"] == "unknown setting 'cluster.kk'  (exit 2)"
    assert found["where"] == "--set" and "did you mean 'cluster.k'?" in found["fix"]
    assert files(tmp_path) == []


def test_a_misspelt_setting_in_a_file_names_the_file(sccam: Cli, sample: Path, tmp_path: Path):
    (tmp_path / "mine.toml").write_text("[walk]\nbetta = 8.0\n")
    code, _, err = sccam("train", sample, "-c", tmp_path / "mine.toml", "--dry-run")
    assert code == 2
    assert parts(err)["where"].startswith(str(tmp_path / "mine.toml")) and "walk.beta" in parts(err)["fix"]


def test_a_missing_data_folder_ends_with_3(sccam: Cli, tmp_path: Path):
    code, out, err = sccam("train", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert (code, out) == (3, "")
    assert "no such folder" in parts(err)["error"] and parts(err)["where"] == str(tmp_path / "nowhere")
    assert parts(err)["fix"] and files(tmp_path) == []


def test_an_error_in_the_tags_has_all_four_parts(sccam: Cli, tmp_path: Path):
    draw_sample(tmp_path / "data", images=10, sizes=(33, 47))
    tags = (tmp_path / "data/tags.csv").read_text()
    (tmp_path / "data/tags.csv").write_text(tags.replace("bird", "brid", 1))
    code, _, err = sccam("train", tmp_path / "data", "--dry-run")
    found = parts(err)
    assert code == 3 and set(found) == {"error", "where", "likely", "fix"}
    assert "'brid'" in found["error"] and "tags.csv:" in found["where"] and "'bird'" in found["likely"]


def test_a_folder_with_a_run_in_it_ends_with_3_and_names_the_three_ways_on(sccam: Cli, sample: Path, tmp_path: Path):
    (tmp_path / "config.toml").write_text("")
    (tmp_path / "run.json").write_text('{"schema": 1}')
    code, _, err = sccam("train", sample, "--out", tmp_path)
    assert code == 3 and "there is a run in this folder already" in parts(err)["error"]
    assert all(option in parts(err)["fix"] for option in ("--resume", "--overwrite", "--out"))


def test_a_folder_with_other_files_in_it_is_left_alone(sccam: Cli, sample: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    for option in ([], ["--overwrite"], ["--resume"]):
        code, _, err = sccam("train", sample, "--out", tmp_path, *option)
        assert code == 3 and "thesis.tex" in err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_an_option_that_does_not_exist_ends_with_2(sccam: Cli, sample: Path):
    assert sccam("train", sample, "--epochs", "3")[0] == 2


def test_verbose_adds_the_traceback(sccam: Cli, tmp_path: Path):
    code, _, err = sccam("train", tmp_path / "nowhere", "--verbose")
    assert code == 3 and err.startswith("Traceback") and "error: no such folder" in err


def test_control_c_outside_of_a_run_ends_with_130_and_no_traceback(
    sccam: Cli, sample: Path, monkeypatch: pytest.MonkeyPatch
):
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sccam.run.plan", pressed)
    code, _, err = sccam("train", sample, "--dry-run")
    assert code == 130 and "Traceback" not in err


# train --dry-run


def test_a_dry_run_writes_nothing(sccam: Cli, sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = files(sample)
    code, out, err = sccam("train", sample, "-c", "demo", "--dry-run")
    assert (code, err) == (0, "")
    assert files(tmp_path) == [] and files(sample) == before
    assert "8 training images, 2 for validation, 5 classes" in out and "nothing was written" in out
    assert str(Path("runs") / "sample set") in out


def test_the_plan_as_json_holds_the_settings_and_the_steps(sccam: Cli, sample: Path):
    overrides = ["--set", "classify.batch=4", "--set", "classify.epochs=[2, 3]", "--set", "classify.rounds=2"]
    code, out, _ = sccam("train", sample, "-c", "photos", "--dry-run", "--json", *overrides)
    plan = json.loads(out)
    assert code == 0 and plan["train_images"] == 8 and plan["classifier_steps"] == [4, 6, 6, 0]
    assert plan["rounds"] == ["plain", "subcategories", "subcategories", "prototypes"]
    expected = load_config("photos", overrides[1::2])
    assert from_mapping(RunConfig, plan["config"]) == expected
    assert any("fewer than K" in warning for warning in plan["warnings"])


# eval


@pytest.fixture
def predictions(sample: Path, tmp_path: Path) -> Path:
    """The true masks with their upper half forgotten."""
    for path in sorted((sample / "masks").iterdir()):
        mask = read_mask(path)
        mask[: len(mask) // 2] = 0
        write_mask(tmp_path / "predicted" / path.name, mask)
    return tmp_path / "predicted"


def test_the_truth_against_itself_is_perfect(sccam: Cli, sample: Path):
    code, out, err = sccam("eval", sample / "masks", sample / "masks", "--classes", sample / "classes.txt", "--json")
    result = json.loads(out)
    assert (code, err) == (0, "") and result["miou"] == 1.0 and result["images"] == 10
    assert list(result["iou"]) == ["background", *(sample / "classes.txt").read_text().split()]


def test_scores_are_printed_as_json_and_as_a_table(sccam: Cli, sample: Path, predictions: Path):
    arguments = ["eval", predictions, sample / "masks", "--classes", sample / "classes.txt"]
    result = json.loads(sccam(*arguments, "--json")[1])
    assert {"miou", "iou", "images"} <= set(result) and 0.2 < result["miou"] < 0.95
    code, table, _ = sccam(*arguments)
    assert code == 0 and f"{100 * result['miou']:.1f}" in table and "teapot" in table and "10 images" in table


def test_without_class_names_labels_are_numbered(sccam: Cli, sample: Path, predictions: Path):
    result = json.loads(sccam("eval", predictions, sample / "masks", "--json")[1])
    assert list(result["iou"]) == ["background", *(f"label {n}" for n in range(1, 6))]


def test_a_missing_prediction_is_told_and_not_scored(sccam: Cli, sample: Path, predictions: Path):
    (predictions / "0003.png").unlink()
    code, out, err = sccam("eval", predictions, sample / "masks", "--json")
    assert code == 0 and json.loads(out)["without_prediction"] == ["0003"]
    assert "1 true masks have no prediction" in err and "0003" in err


def test_masks_of_another_size_are_refused(sccam: Cli, sample: Path, predictions: Path):
    write_mask(predictions / "0001.png", np.zeros((5, 5), np.uint8))
    code, _, err = sccam("eval", predictions, sample / "masks")
    assert code == 3 and "mask sizes differ" in err and "0001" in err


# data sample


def test_the_sample_set_is_drawn_as_the_function_draws_it(sccam: Cli, tmp_path: Path):
    code, out, _ = sccam("data", "sample", tmp_path / "a", "--images", 10, "--seed", 3)
    draw_sample(tmp_path / "b", images=10, seed=3)
    assert code == 0 and str(tmp_path / "a") in out
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "a/images/0004.png").read_bytes() == (tmp_path / "b/images/0004.png").read_bytes()


def test_a_sample_set_goes_into_an_empty_folder_only(sccam: Cli, sample: Path):
    code, _, err = sccam("data", "sample", sample)
    assert code == 3 and "not empty" in err


def test_a_sample_set_needs_two_images_a_class(sccam: Cli, tmp_path: Path):
    assert sccam("data", "sample", tmp_path / "few", "--images", 9)[0] == 2
    assert files(tmp_path) == []


# Progress


def reporter(monkeypatch: pytest.MonkeyPatch, *, living: bool, quiet: bool = False) -> tuple[LineReporter, io.StringIO]:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: living, raising=False)
    monkeypatch.setattr(sys, "stderr", stream)
    return LineReporter(quiet=quiet), stream


def test_without_a_terminal_progress_is_plain_lines(monkeypatch: pytest.MonkeyPatch):
    told, stream = reporter(monkeypatch, living=False)
    told.stage("walk")
    for done in range(1, 101):
        told.progress(done, 100, "going well")
    told.message("note: done")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "walk ..." and lines[-1] == "note: done"
    assert len(lines) == 3 and "100/100" in lines[1] and "going well" in lines[1]
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_on_a_terminal_one_line_lives_and_ends_with_the_stage(monkeypatch: pytest.MonkeyPatch):
    told, stream = reporter(monkeypatch, living=True)
    told.stage("walk")
    told.progress(1, 2)
    told.progress(2, 2)
    assert stream.getvalue().count("\n") == 1 and stream.getvalue().endswith("\n")
    assert stream.getvalue().startswith("\r\x1b[2K")


def test_a_quiet_reporter_says_nothing(monkeypatch: pytest.MonkeyPatch):
    told, stream = reporter(monkeypatch, living=True, quiet=True)
    told.stage("walk")
    told.progress(2, 2)
    told.message("note")
    assert stream.getvalue() == ""


def test_a_resumed_stage_tells_the_rate_of_what_it_did_itself(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    told, stream = reporter(monkeypatch, living=False)
    told.stage("round1/classify")
    now = 110.0
    told.progress(901, 1000)
    now = 140.0
    told.progress(980, 1000)
    assert "980/1000  2.0/s  0:10 left" in stream.getvalue()  # 80 in 40 s, not 980


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")])
def test_durations_are_read_as_on_a_clock(seconds: float, text: str):
    assert duration(seconds) == text
