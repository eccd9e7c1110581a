"""Callbacks hear every stage and epoch once, and TensorBoard reads back what was written."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

import sccam
from sccam.callbacks import Callback, Callbacks, TensorBoard
from sccam.data.sample import draw_sample
from sccam.errors import BackendUnavailable
from tests.test_ablate import TINY


class Heard(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_stage_start(self, stage):
        self.events.append(("start", stage))

    def on_stage_end(self, stage, seconds):
        assert seconds >= 0
        self.events.append(("end", stage))

    def on_epoch_end(self, stage, epoch, metrics):
        assert set(metrics) == {"loss", "images_per_second"}
        self.events.append(("epoch", stage, epoch))

    def on_run_end(self, scores):
        self.events.append(("run", len(scores["rows"])))


@pytest.mark.slow
def test_a_run_tells_of_every_stage_and_epoch_once_in_order(tmp_path):
    draw_sample(tmp_path / "sample", images=12, sizes=(40, 56))
    heard, settings = Heard(), [*TINY, "classify.rounds=0", "run.until=maps", "classify.epochs=[2]"]
    events = tmp_path / "run" / "events"
    pytest.importorskip("tensorboard")
    scores = sccam.train(
        tmp_path / "sample", "demo", tmp_path / "run", overrides=settings, callbacks=[heard, TensorBoard(events)]
    )
    assert [event for event in heard.events if event[0] != "epoch"] == [
        *((kind, stage) for stage in ("data", "round0/classify", "round0/maps", "threshold", "scores/maps")
          for kind in ("start", "end")),
        ("run", len(scores["rows"])),
    ]  # fmt: skip
    assert [event for event in heard.events if event[0] == "epoch"] == [("epoch", "round0/classify", n) for n in (0, 1)]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(events))
    read.Reload()
    losses = [event.value for event in read.Scalars("loss/round0/classify")]
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert losses == pytest.approx([line["loss"] for line in lines if "epoch" in line])
    oracle = next(row["miou"] for row in scores["rows"] if row["column"] == "oracle")
    assert read.Scalars("miou/maps/round0/train/oracle")[0].value == pytest.approx(oracle)

    again = Heard()
    sccam.train(tmp_path / "sample", "demo", tmp_path / "run", overrides=settings, resume=True, callbacks=[again])
    assert again.events == [("run", len(scores["rows"]))]  # what is finished is not told of again


def test_several_callbacks_hear_the_same_in_their_order():
    first, second = Heard(), Heard()
    both = Callbacks([first, second])
    both.on_stage_start("walk")
    both.on_epoch_end("walk", 3, {"loss": 1.0, "images_per_second": 2.0})
    both.on_stage_end("walk", 1.5)
    both.on_run_end({"rows": []})
    assert first.events == second.events == [("start", "walk"), ("epoch", "walk", 3), ("end", "walk"), ("run", 0)]


def test_without_tensorboard_the_error_names_the_extra(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError("No module named 'tensorboard'", name="tensorboard")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BackendUnavailable, match=r"sccam\[tensorboard\]"):
        TensorBoard(tmp_path / "events")
    assert list(Path(tmp_path).iterdir()) == []


def test_the_trackers_of_the_documentation_are_python_that_overrides_calls_that_exist():
    text = (Path(__file__).resolve().parent.parent / "docs/tracking.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in text.split("```python\n")[1:]]
    space: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.partition("\n\nif __name__")[0], "docs/tracking.md", "exec"), space)
    made = [value for value in space.values() if isinstance(value, type) and issubclass(value, Callback)]
    assert len(made) == 6  # with Callback itself
    for kind in made:
        assert {name for name in vars(kind) if not name.startswith("_")} <= set(vars(Callback))
