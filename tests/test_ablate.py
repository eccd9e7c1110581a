"""Variants over seeds: shared stages are computed once, a cut-off ablation goes on, and the interval is an interval."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sccam import cli
from sccam import config as toml
from sccam.ablation import Ablation, ablate, read_ablation, run_folder
from sccam.ablation import runs as module
from sccam.artifacts import RunFolder, read_json, sha256
from sccam.data.sample import draw_sample
from sccam.errors import ConfigError, NumericError, RunFolderError, ShapeError
from sccam.recipe import RunConfig, load_config
from sccam.run import train
from sccam.stages.bootstrap import mean_iou, paired_bootstrap
from sccam.stages.evaluate import ConfusionMatrix, scores
from sccam.training.sharing import stage_files, stage_keys

TINY = [
    "run.workers=1", "network.backbone=test_resnet", "network.weights=none", "network.output_stride=16",
    "network.train_stride=32", "cluster.k=2", "cluster.n_init=2", "classify.rounds=1", "classify.epochs=[1]",
    "classify.batch=4", "classify.round0_crop=64", "classify.augment.crop=64", "classify.augment.long_side=[56, 72]",
    "cam.scales=[1.0]", "cam.long_side=0", "affinity.epochs=1",
    "affinity.batch=4", "affinity.augment.crop=64", "walk.steps=16",
    "affinity.crf.iterations=2", "pseudo_label.crf.iterations=2", "measure.crf.iterations=2", "segment.epochs=1",
    "segment.batch=4", "segment.augment.crop=64", "segment.output_stride=16", "measure.oracle_steps=10",
]  # fmt: skip


# The bootstrap


def counts_of(rng: np.random.Generator, images: int, right: float) -> np.ndarray:
    """Two seeds of images [images 3 4] whose pixels are right with a chance."""
    found = np.zeros((2, images, 3, 4), np.int64)
    for seed in range(2):
        for n in range(images):
            true = rng.integers(0, 3, 400)
            predicted = np.where(rng.random(400) < right, true, rng.integers(0, 3, 400))
            np.add.at(found[seed, n], (true, predicted), 1)
    return found


def test_the_mean_iou_is_that_of_the_evaluation(rng):
    matrix = ConfusionMatrix(2)
    matrix.add(rng.integers(0, 3, (20, 30)).astype(np.uint8), rng.integers(0, 3, (20, 30)).astype(np.uint8))
    assert mean_iou(matrix.counts) == pytest.approx(scores(matrix, ("a", "b")).miou)
    matrix.counts[2] = 0  # a label that the truth lacks
    assert mean_iou(matrix.counts) == pytest.approx(scores(matrix, ("a", "b")).miou)


def test_a_large_difference_is_one_and_none_is_none(rng):
    good, bad = counts_of(rng, 60, 0.9), counts_of(rng, 60, 0.7)
    clear = paired_bootstrap(good, bad)
    assert clear.low < clear.mean < clear.high and clear.word == "better" and clear.mean > 0.1
    assert paired_bootstrap(bad, good).word == "worse"
    same = paired_bootstrap(good, good)
    assert (same.mean, same.low, same.high, same.word) == (0.0, 0.0, 0.0, "no difference")
    assert paired_bootstrap(counts_of(rng, 60, 0.7), bad).word == "no difference"
    with pytest.raises(ShapeError, match="cannot be paired"):
        paired_bootstrap(good, bad[:, :-1])


def test_of_a_hundred_pairs_without_a_difference_few_are_called_one(rng):
    called = sum(
        paired_bootstrap(counts_of(rng, 40, 0.8), counts_of(rng, 40, 0.8), draws=300, seed=n).word != "no difference"
        for n in range(40)
    )
    assert called <= 8  # 2 are expected of 40 at 95 %


# Keys of stages


def leaves(value: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(name, value) of every setting."""
    found = []
    for item in dataclasses.fields(value):
        inner, name = getattr(value, item.name), prefix + item.name
        found += leaves(inner, f"{name}.") if dataclasses.is_dataclass(inner) else [(name, inner)]
    return found


def with_field(config: Any, name: str, value: Any) -> Any:
    """A copy that is not checked: some settings depend on each other."""
    copy = object.__new__(type(config))
    for item in dataclasses.fields(config):
        object.__setattr__(copy, item.name, value if item.name == name else getattr(config, item.name))
    return copy


def with_another(config: Any, name: str, value: Any) -> Any:
    """The settings with one changed, whatever its limits."""
    head, _, rest = name.partition(".")
    if rest:
        return with_field(config, head, with_another(getattr(config, head), rest, value))
    changed: Any = 7  # of None and of empty lists
    if isinstance(value, bool):
        changed = not value
    elif isinstance(value, int | float):
        changed = value + 1
    elif isinstance(value, str):
        changed = f"{value}x"
    elif name in ("long_side", "scales", "jitter"):
        changed = {"long_side": (64, 96), "scales": (0.7,), "jitter": (0.2, 0.2, 0.2, 0.05)}[name]
    elif value:
        changed = tuple(item + 1 for item in value)
    return with_field(config, head, changed)


FREE = ("run.workers", "run.parts", "run.until")


def test_every_setting_changes_the_key_of_a_stage_but_those_that_change_no_result():
    switched_on = ["reactivate.epochs=1", "prototypes.k=2", "segment.self_epochs=1", "walk.rule=contrast"]
    config = load_config("photos", ["classify.rounds=2", *switched_on])
    keys = stage_keys(config, "data")
    for name, value in leaves(config):
        if name == "classify.rounds":
            continue
        if name == "classify.epochs" or name == "classify.schedule_epochs":
            changed = toml.override(config, ["classify.epochs=[30]", "classify.schedule_epochs=[40]"])
        else:
            changed = with_another(config, name, value)
        differs = stage_keys(changed, "data") != keys
        assert differs != (name in FREE or name.startswith("measure.")), name


def test_a_setting_leaves_the_stages_before_it_alone():
    config = load_config("photos", ["classify.rounds=2", "prototypes.k=0"])
    keys = stage_keys(config, "data")
    stages = list(keys)
    first_changed = {
        "cluster.k=7": "round1/cluster", "classify.sub_weight=1.0": "round1/classify", "cam.flip=false": "round0/maps",
        "threshold.rule=fixed": "threshold", "walk.beta=3.0": "walk", "segment.epochs=99": "segment/train",
        "affinity.epochs=99": "affinity/train", "run.seed=9": "round0/classify",
    }  # fmt: skip
    for setting, stage in first_changed.items():
        other = stage_keys(toml.override(config, [setting]), "data")
        assert next(name for name in stages if other[name] != keys[name]) == stage, setting
    more = stage_keys(toml.override(config, ["classify.rounds=3"]), "data")
    assert [name for name in stages if more.get(name) == keys[name]] == [
        "round0/classify", "round0/maps", "round1/cluster", "round1/classify", "round1/maps", "round2/cluster",
        "round2/classify",
    ]  # the maps of a last round are made of all images  # fmt: skip
    assert stage_keys(config, "other data").keys() == keys.keys()
    assert not set(stage_keys(config, "other data").values()) & set(keys.values())
    assert all(stage_files(stage) for stage in stages)


@pytest.mark.parametrize(("subtract", "stage"), [("[1.0]", "threshold"), ("[0.0, 1.0]", "round1/classify")])
def test_the_threshold_s_rule_is_read_where_maps_are_chosen(subtract, stage):
    config = load_config("photos", ["classify.rounds=0", "prototypes.k=2", f"prototypes.subtract={subtract}"])
    keys, other = (stage_keys(toml.override(config, [f"threshold.rule={rule}"]), "data") for rule in ("otsu", "fixed"))
    assert next(name for name in keys if other[name] != keys[name]) == stage


# Whole ablations


@pytest.fixture(autouse=True)
def one_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of this process have no worker processes: each takes seconds to begin, five times a run."""
    monkeypatch.setattr("sccam.training.context.worker_count", lambda *_: 1)


def test_a_report_trains_nothing(plan, tmp_path):
    result = ablate(plan, tmp_path / "out", train_missing=False)
    assert not (tmp_path / "out/runs").exists() and not result["errors"]
    assert all(variant["seeds"] == [] and variant["rows"] == [] for variant in result["variants"].values())
    assert {row["name"] for row in result["references"]} == {"all background", "centre prior"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ablate") / "sample"
    draw_sample(folder, images=12, sizes=(40, 56))
    return folder


@pytest.fixture
def plan(data: Path) -> Ablation:
    variants = {"plain": ("classify.rounds=0",), "two": (), "three": ("cluster.k=3",), "walk-less": ("walk.steps=4",)}
    variants = {name: (*TINY, *settings) for name, settings in variants.items()}
    return Ablation(data, "demo", (0, 1), "plain", variants, pairs=(("three", "two"), ("two", "plain")))


@pytest.mark.slow
@pytest.mark.timeout(900)  # nine small runs
def test_shared_stages_are_done_once_and_the_result_is_that_of_runs_of_their_own(plan, tmp_path, monkeypatch):
    result = ablate(plan, tmp_path / "out")
    assert result == json.loads((tmp_path / "out/ablation.json").read_text()) and not result["errors"]
    assert all(variant["seeds"] == [0, 1] for variant in result["variants"].values())
    finished = RunFolder(run_folder(tmp_path / "out", "three", 1)).state()["finished"]
    taken = {stage for stage, facts in finished.items() if "taken_from" in facts}
    assert taken == {"round0/classify", "round0/maps"}
    walked = RunFolder(run_folder(tmp_path / "out", "walk-less", 0)).state()["finished"]
    assert "taken_from" in walked["affinity/train"] and "taken_from" not in walked["walk"]
    # With as many workers: the CRF's sums depend on its threads, and a label may hang on their rounding.
    settings = toml.override(plan.settings("three", 1), ["run.workers=0"])
    alone = train(plan.data, settings, tmp_path / "alone")
    shared = read_json(run_folder(tmp_path / "out", "three", 1) / "scores.json")
    assert alone["rows"] == shared["rows"]
    for file in ("round1/cam_net.safetensors", "segmenter.safetensors"):
        assert sha256(tmp_path / "alone" / file) == sha256(run_folder(tmp_path / "out", "three", 1) / file)

    rows = {(r["stage"], r["column"], r["split"]): r for r in result["variants"]["two"]["rows"]}
    maps = rows["maps", "image_only", "train"]
    assert len(maps["values"]) == 2 and maps["mean"] == pytest.approx(sum(maps["values"]) / 2)
    change, plain = maps["difference"], result["variants"]["plain"]["rows"]
    reference = next(r["mean"] for r in plain if r["stage"] == "maps" and r["column"] == "image_only")
    assert change["mean"] == pytest.approx(maps["mean"] - reference, abs=1e-6) and change["low"] <= change["high"]

    first, second = result["pairs"]
    assert (first["variant"], first["against"]) == ("three", "two")
    three = next(r for r in result["variants"]["three"]["rows"] if r["stage"] == "segmenter+crf")
    two = rows["segmenter+crf", three["column"], three["split"]]
    between = next(r["difference"] for r in first["rows"] if r["stage"] == "segmenter+crf")
    assert first["seconds_ratio"] > 0
    assert between["mean"] == pytest.approx(three["mean"] - two["mean"], abs=1e-6) and between["seeds"] == 2
    assert (
        next(r for r in second["rows"] if (r["stage"], r["column"]) == ("maps", "image_only"))["difference"] == change
    )

    other = dataclasses.replace(plan, variants={**plan.variants, "three": (*TINY, "cluster.k=4")})
    with pytest.raises(RunFolderError, match="three had other settings"):
        ablate(other, tmp_path / "out")

    def nothing(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(module, "train", nothing)
    assert ablate(plan, tmp_path / "out")["variants"] == result["variants"]


def test_of_a_kept_run_no_stage_is_taken(plan, tmp_path):
    state: dict[str, Any] = {"finished": {stage: {} for stage in ("round0/classify", "scores")}}
    folder = RunFolder(run_folder(tmp_path, "plain", 0))
    folder.path.mkdir(parents=True)
    folder.update(**state)
    assert list(module._known(plan, tmp_path, 0).values()) == [folder.path]
    folder.update(kept={"commit": "abc"})
    assert module._known(plan, tmp_path, 0) == {}


@pytest.mark.slow
def test_a_run_that_ended_after_its_maps_goes_on_to_the_segmenter(data, tmp_path):
    short = load_config("demo", [*TINY, "run.until=maps"])
    rows = train(data, short, tmp_path / "run")["rows"]
    assert {row["stage"].split("/")[0] for row in rows} == {"maps"}
    assert not (tmp_path / "run/segmenter.safetensors").exists() and not (tmp_path / "run/overview.png").exists()
    before = sha256(tmp_path / "run/round1/cam_net.safetensors")
    whole = load_config("demo", TINY)
    rows = train(data, whole, tmp_path / "run", resume=True)["rows"]
    assert {"walk", "pseudo_labels", "segmenter"} <= {row["stage"] for row in rows}
    assert before == sha256(tmp_path / "run/round1/cam_net.safetensors")
    assert toml.load(RunConfig, tmp_path / "run/config.toml").run.until == "segmenter"


@pytest.mark.slow
def test_a_variant_that_fails_is_an_error_and_the_others_go_on(plan, tmp_path, monkeypatch):
    def failing(data: Any, settings: RunConfig, out: Path, **options: Any) -> Any:
        if settings.cluster.k == 3:
            raise NumericError("the loss became nan at step 3")
        return train(data, settings, out, **options)

    monkeypatch.setattr(module, "train", failing)
    few = {name: plan.variants[name] for name in ("plain", "three", "two")}
    plan = dataclasses.replace(plan, seeds=(0,), variants=few, ceiling="two")
    result = ablate(plan, tmp_path / "out")
    references = {(row["name"], row["split"]): row["mean"] for row in result["references"]}
    assert ("supervised segmenter", "val") in references and 0 < references["all background", "train"] < 50
    assert references["centre prior", "train"] > references["all background", "train"]
    assert list(result["errors"]) == ["three, seed 0"] and "nan" in result["errors"]["three, seed 0"]
    assert result["variants"]["three"]["rows"] == [] and result["variants"]["two"]["rows"]

    other = {**few, "two": (*few["two"], "segment.epochs=2")}  # whose segmenter is the ceiling's
    (run_folder(tmp_path / "out", "two", 0) / "config.toml").unlink()
    with pytest.raises(RunFolderError, match="supervised had other settings"):
        ablate(dataclasses.replace(plan, variants=other), tmp_path / "out")


# The file


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_file_is_read_with_its_data_beside_it(tmp_path):
    text = 'data = "photos"\nconfig = "demo"\nseeds = [3, 1]\n[variants]\nplain = ["classify.rounds=0"]\nfull = []\n'
    plan = read_ablation(write(tmp_path / "a.toml", text))
    assert plan == Ablation(tmp_path / "photos", "demo", (3, 1), "plain", {"plain": ("classify.rounds=0",), "full": ()})
    assert read_ablation(tmp_path / "a.toml", tmp_path / "other").data == tmp_path / "other"
    assert read_ablation(tmp_path / "a.toml", first_seeds=1).seeds == (3,)
    assert read_ablation(write(tmp_path / "b.toml", "ceiling = true\n" + text)).ceiling == "plain"
    assert read_ablation(write(tmp_path / "b.toml", "ceiling = 'full'\n" + text)).ceiling == "full"
    assert plan.settings("plain", 3).run.seed == 3 and plan.settings("plain", 3).classify.rounds == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data = 'd'\nseed = [1]\n[variants]\na = []", "unknown key 'seed'"),
        ("[variants]\na = []", "data must name a folder"),
        ("data = 'd'\nseeds = [0, 0]\n[variants]\na = []", "seeds must be different"),
        ("data = 'd'\nseeds = [-1]\n[variants]\na = []", "seeds must be different"),
        ("data = 'd'\nseeds = [true]\n[variants]\na = []", "seeds must be different"),
        ("data = 'd'", "variants must be a table"),
        ("data = 'd'\n[variants]\na = 'cluster.k=3'", "variants must be a table"),
        ("data = 'd'\n[variants]\n'a/b' = []", "cannot name a folder"),
        ("data = 'd'\nbaseline = 'plan'\n[variants]\nplain = []", "no variant 'plan'"),
        ("data = 'd'\npairs = [['a']]\n[variants]\na = []", "pairs must be lists of two"),
        ("data = 'd'\npairs = [['plan', 'plain']]\n[variants]\nplain = []", "no variant 'plan', which pairs"),
        ("data = 'd'\nceiling = 1\n[variants]\na = []", "ceiling must be true, false or the name"),
        ("data = 'd'\nceiling = 'plan'\n[variants]\nplain = []", "no variant 'plan', which ceiling names"),
        ("data = 'd'\n[variants]\na = ['cluster.kk=3']", "kk"),
        ("data = 'd'\n[variants]\na = ['cluster.k=0']", "cluster.k"),
        ("data = 'd'\nconfig = 'none-such'\n[variants]\na = []", "no configuration"),
        ("data = ", "no file of variants"),
    ],
)
def test_a_bad_file_ends_before_any_work_and_says_why(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        read_ablation(write(tmp_path / "a.toml", text))
    assert said in str(caught.value) and "a.toml" in str(caught.value)


@pytest.mark.slow
def test_the_command_prints_a_table_and_ends_with_5_where_a_variant_failed(data, tmp_path, monkeypatch, capsys):
    settings = json.dumps(TINY)
    bad = json.dumps([*TINY, "walk.beta=2.0"])
    text = f'data = "{data}"\nconfig = "demo"\n[variants]\nplain = {settings}\nbad = {bad}\n'

    def failing(data: Any, settings: RunConfig, out: Path, **options: Any) -> Any:
        if settings.walk.beta == 2.0:
            raise NumericError("the loss became nan at step 3")
        return train(data, settings, out, **options)

    monkeypatch.setattr(module, "train", failing)
    file = write(tmp_path / "a.toml", text)
    monkeypatch.setattr("sys.argv", ["sccam", "ablate", str(file), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    assert ended.value.code == 5 and "plain" in printed.out and "the loss became nan" in printed.err


@pytest.mark.slow
def test_killed_in_the_middle_of_two_jobs_it_goes_on_and_does_nothing_twice(data, tmp_path):
    """SIGKILL for the command and its workers, when some stages are finished and others are not."""
    maps = [*TINY, "run.until=maps"]
    variants = {"plain": [*maps, "classify.rounds=0"], "two": maps}
    lines = "\n".join(f"{name} = {json.dumps(settings)}" for name, settings in variants.items())
    file = write(tmp_path / "a.toml", f'data = "{data}"\nconfig = "demo"\nseeds = [0, 1]\n[variants]\n{lines}\n')
    out = tmp_path / "out"
    command = [sys.executable, "-m", "sccam", "ablate", str(file), "--out", str(out), "--jobs", "2"]

    def finished() -> list[tuple[str, str]]:
        """Every stage of every run that is finished."""
        states = [(str(path.parent), read_json(path)) for path in out.glob("runs/*/seed*/run.json")]
        return [(run, stage) for run, state in states for stage in state.get("finished", {})]

    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 200
    while len(finished()) < 5 and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {(run, stage): state_of(Path(run), stage) for run, stage in finished()}
    assert 5 <= len(before) < 16 and not (out / "ablation.json").exists()
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = read_json(out / "ablation.json")
    assert all(variant["seeds"] == [0, 1] and variant["rows"] for variant in result["variants"].values())
    assert {(run, stage): state_of(Path(run), stage) for run, stage in before} == before


def state_of(run: Path, stage: str) -> tuple[Any, list[int]]:
    """What run.json says of a finished stage, and when its files were last written."""
    patterns = () if stage == "data" or stage.startswith("scores") else stage_files(stage)
    files = [path for pattern in patterns for path in sorted(run.glob(pattern))]
    return read_json(run / "run.json")["finished"][stage], [path.stat().st_mtime_ns for path in files]
