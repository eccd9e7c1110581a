"""A job from what a person asks for, as the command line and workers of other machines open it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sccam.errors import ConfigError
from sccam.runtime.folder import LabelJob
from sccam.runtime.image_tags import PREDICTED, Tags
from sccam.runtime.network import OpenedNetwork, open_network
from sccam.runtime.pseudo_labels import PseudoLabelJob, check_task
from sccam.runtime.segmenter import SegmentJob, SegmentOptions


def open_job(
    model: Path | str,
    options: SegmentOptions,
    *,
    task: str = "segment",
    tags: Path | str | None = None,
    backend: str = "auto",
    device: str = "auto",
    threads: int = 0,
    allow_fallback: bool = False,
) -> LabelJob:
    """Opens the networks of a task.

    Args:
        task: "segment", or "pseudo-label", where `model` is a run.
        tags: a tag file, or "predicted" for the tags that the run's classifier predicts. With None a segmenter draws
            any class, and pseudo labels have predicted tags.
        backend, device, threads, allow_fallback: as `open_network` takes them.

    Raises:
        ConfigError: options that the task does not have; and what the jobs raise.
    """
    check_task(task, options)
    named: dict[str, Any] = {"device": device, "threads": threads, "allow_fallback": allow_fallback}
    if task == "pseudo-label":
        return PseudoLabelJob(model, None if tags in (None, PREDICTED) else Path(tags), backend, **named)
    network = open_network(model, "segmenter", backend, **named)
    return segment_job(network, options, tags, lambda: open_classifier(model, backend, **named))


def segment_job(
    network: OpenedNetwork, options: SegmentOptions, tags: Path | str | None, classifier: Callable[[], OpenedNetwork]
) -> SegmentJob:
    """A segmenter at work; `classifier` opens that of its run, where `tags` are "predicted"."""
    if tags is None:
        return SegmentJob(network, options)
    if tags == PREDICTED:
        return SegmentJob(network, options, classifier=classifier())
    return SegmentJob(network, options, tags=Tags(Path(tags), network.manifest.classes))


def open_classifier(model: Path | str, backend: str, **named: Any) -> OpenedNetwork:
    """The classifier of a run, as `open_network` gives it.

    Raises:
        ConfigError: the model is a file, which has no other network beside it.
    """
    if not Path(model).is_dir():
        raise ConfigError(
            "predicted tags are those of a run's classifier, and this is no run", where=model,
            fix="give the folder of the run; or the tags: --tags FILE",
        )  # fmt: skip
    return open_network(model, "cam_net", backend, **named)
