"""A forecast knows every stage of the run and how much of it there is; how long it takes is the machine's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sccam.data.sample import draw_sample
from sccam.errors import ConfigError, DataError
from sccam.forecast import Pace, forecast
from sccam.run import train
from sccam.training import Silent
from tests.conftest import Cli
from tests.test_run import OVERRIDES

SMALL = [*OVERRIDES, "network.backbone=test_resnet", "network.weights=none"]
MORE = [
    "reactivate.epochs=2", "prototypes.k=2", "prototypes.subtract=[1.0]", "segment.self_epochs=2",
    "classify.epochs=[2, 3]", "affinity.epochs=2", "walk.rule=contrast",
]  # fmt: skip


class Totals(Silent):
    """How many items each stage of a run has."""

    def __init__(self) -> None:
        self.totals: dict[str, int] = {}

    def stage(self, name: str) -> None:
        self.name = name
        self.totals[name] = 0

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.totals[self.name] = total


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "in"
    draw_sample(folder, images=24, sizes=(49, 66))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], MORE, ["run.until=maps", "measure.every_round=false"]])
def test_the_stages_and_their_items_are_those_of_the_run(data, tmp_path, monkeypatch, more):
    monkeypatch.setattr("sccam.training.prototypes.MOST_IMAGES", 3)
    torch.set_num_threads(1)
    before = sorted(data.rglob("*"))
    found = forecast(data, "photos", [*SMALL, *more])
    assert sorted(data.rglob("*")) == before
    real = Totals()
    train(data, "photos", tmp_path / "run", [*SMALL, *more], reporter=real)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    real.totals.pop(next(name for name in real.totals if name.startswith("scores")))
    assert [*stages][:-1] == [*real.totals] and [*stages][-1] == "scores"
    assert {name: stages[name]["items"] for name in real.totals} == real.totals
    assert all(stage["seconds"] >= 0 and not stage["shared"] for stage in stages.values())
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in stages.values()), abs=0.6)
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file()) / 1e6
    assert 0.5 * size < found["disk_mb"] < 3 * size + 1


@pytest.mark.slow
def test_gpus_share_what_is_trained_and_the_command_says_what_is_measured(data, sccam: Cli):
    words = [word for text in [*SMALL, "run.until=maps"] for word in ("--set", text)]
    code, out, _ = sccam("plan", data, *words, "--gpus", 4)
    assert code == 0 and "/ 4" in out and "extrapolated" in out and "nobody has measured it" in out
    assert torch.cuda.is_available() or "no GPU that works" in out
    code, out, err = sccam("plan", data, *words, "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and found["gpus"] == 1 and found["pilot"]["images"] >= 12
    assert found["gpu_memory_mb"] is None or found["gpu_memory_mb"] > 0


def test_what_train_refuses_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        forecast(tmp_path, "nothing")
    with pytest.raises(DataError):
        forecast(tmp_path, "photos")


def test_an_item_is_the_median_and_heaps_are_their_mean():
    steady = Pace(10.0, [(1, 13.0), (2, 14.0), (3, 15.0), (4, 19.0)])  # the last one waited for a checkpoint
    assert (steady.each, steady.before) == (1.0, 2.0)
    heaps = Pace(0.0, [(1, 4.0), (2, 4.001), (3, 4.002), (4, 7.0)])
    assert heaps.each == pytest.approx(1.0)
    assert (Pace(0.0).each, Pace(0.0).before, Pace(1.0, [(1, 3.0)]).each) == (0.0, 0.0, 2.0)
