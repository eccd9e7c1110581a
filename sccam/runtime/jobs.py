"""A job from what a person asks for, as the command line and workers of other machines open it."""

from __future__ import annotations

from pathlib import Path

from sccam.runtime.folder import LabelJob
from sccam.runtime.network import open_network
from sccam.runtime.pseudo_labels import PseudoLabelJob, check_task
from sccam.runtime.segmenter import SegmentJob, SegmentOptions


def open_job(
    model: Path | str,
    options: SegmentOptions,
    *,
    task: str = "segment",
    tags: Path | None = None,
    backend: str = "auto",
    device: str = "auto",
    threads: int = 0,
    allow_fallback: bool = False,
) -> LabelJob:
    """Opens the networks of a task.

    Args:
        task: "segment", or "pseudo-label", where `model` is a run and `tags` its tag file, or None for predicted tags.
        backend, device, threads, allow_fallback: as `open_network` takes them.

    Raises:
        ConfigError: options that the task does not have; and what the jobs raise.
    """
    check_task(task, options, tags)
    if task == "segment":
        network = open_network(
            model, "segmenter", backend, device=device, threads=threads, allow_fallback=allow_fallback
        )
        return SegmentJob(network, options)
    return PseudoLabelJob(model, tags, backend, device=device, threads=threads, allow_fallback=allow_fallback)
