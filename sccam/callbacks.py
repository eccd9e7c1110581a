"""What a program is told while a run trains: four calls, enough for any tracker; and TensorBoard, which uses them.

Beside them every run writes metrics.jsonl: a line for each epoch and each finished stage, whatever listens.
A callback that raises ends the run; what was finished is saved, and the run can be resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sccam.errors import BackendUnavailable


class Callback:
    """Does nothing; a tracker overrides what it wants to hear. A stage that a resumed run skips is not told of."""

    def on_stage_start(self, stage: str) -> None:
        """A stage begins: "round0/classify", "walk", "segment/train"; see `sccam.training`."""

    def on_stage_end(self, stage: str, seconds: float) -> None:
        """It is finished."""

    def on_epoch_end(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """An epoch of a trained stage, counted from 0: its mean "loss", its "images_per_second"."""

    def on_run_end(self, scores: Mapping[str, Any]) -> None:
        """The run is finished; the content of scores.json."""


class Callbacks(Callback):
    """Several as one, told in their order."""

    def __init__(self, callbacks: Sequence[Callback]):
        self.callbacks = tuple(callbacks)

    def on_stage_start(self, stage: str) -> None:
        for callback in self.callbacks:
            callback.on_stage_start(stage)

    def on_stage_end(self, stage: str, seconds: float) -> None:
        for callback in self.callbacks:
            callback.on_stage_end(stage, seconds)

    def on_epoch_end(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        for callback in self.callbacks:
            callback.on_epoch_end(stage, epoch, metrics)

    def on_run_end(self, scores: Mapping[str, Any]) -> None:
        for callback in self.callbacks:
            callback.on_run_end(scores)


class TensorBoard(Callback):
    """Losses and rates by epoch, seconds by stage, mIoU by stage, as TensorBoard reads them.

    Args:
        folder: for the event files; RUN/events by custom.

    Raises:
        BackendUnavailable: TensorBoard is not installed.
    """

    def __init__(self, folder: Path | str):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise BackendUnavailable(
                "TensorBoard is not installed", where=error.name, fix='pip install "sccam[tensorboard]"'
            ) from error
        self._make: Callable[[], Any] = partial(SummaryWriter, str(folder))

    @cached_property
    def _writer(self) -> Any:
        return self._make()  # not before there is something to write: a run folder must be new or a run

    def on_stage_end(self, stage: str, seconds: float) -> None:
        self._writer.add_scalar(f"seconds/{stage}", seconds, 0)
        self._writer.flush()

    def on_epoch_end(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"{name}/{stage}", value, epoch)
        self._writer.flush()

    def on_run_end(self, scores: Mapping[str, Any]) -> None:
        for row in scores["rows"]:
            if row["miou"] is not None:
                self._writer.add_scalar(f"miou/{row['stage']}/{row['split']}/{row['column']}", row["miou"], 0)
        self._writer.close()
