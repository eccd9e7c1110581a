"""Trains what an ablation lacks: stages that variants share once, a seed after the other or some at a time."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sccam import config as toml
from sccam.ablation.plan import CEILING, Ablation, run_folder
from sccam.ablation.summary import count_run, summary
from sccam.artifacts import RunFolder, write_json
from sccam.errors import Interrupted, RunFolderError, SccamError
from sccam.recipe import DataSettings, RunConfig
from sccam.run import changed_settings, data_checksum, open_data, train
from sccam.runtime.pool import end_with_parent, worker_count
from sccam.training import Reporter, Silent, scores_stage
from sccam.training.references import train_supervised
from sccam.training.sharing import stage_keys


def ablate(
    plan: Ablation,
    out: Path | str,
    *,
    jobs: int = 1,
    reporter_of: Callable[[str], Reporter] | None = None,
    train_missing: bool = True,
) -> dict[str, Any]:
    """Trains what is missing, measures, and writes OUT/ablation.json, whose content is returned.

    Args:
        jobs: seeds at a time, each in a process of its own with its share of the cores.
        reporter_of: who is told of the progress of a run, by its name; with one job only.
        train_missing: false only measures what is finished already.

    Raises:
        Interrupted: by a signal; the same call goes on.
        RunFolderError: a variant of that name was trained with other settings.
        SccamError: of the data as a whole. A variant that fails has its error in the result instead of figures.
    """
    with RunFolder(out) as folder:
        open_data(plan.data, plan.settings(plan.baseline, plan.seeds[0]))  # its errors come before any work
        failed: list[dict[str, str]] = []
        if train_missing and jobs == 1:
            failed = [_train_seed(plan, folder.path, seed, reporter_of) for seed in plan.seeds]
        elif train_missing:
            threads = max(1, worker_count(0) // jobs)
            with ProcessPoolExecutor(
                jobs, mp_context=get_context("spawn"), initializer=_worker, initargs=(threads,)
            ) as pool:
                waiting = [pool.submit(_train_seed, plan, folder.path, seed, None, threads) for seed in plan.seeds]
                failed = [future.result() for future in waiting]
        errors = {name: text for part in failed for name, text in part.items()}
        result = summary(plan, folder.path, errors)
        write_json(folder / "ablation.json", result)
    return result


def _worker(threads: int) -> None:
    import torch

    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def _train_seed(
    plan: Ablation, out: Path, seed: int, reporter_of: Callable[[str], Reporter] | None, workers: int = 0
) -> dict[str, str]:
    """Runs every variant of a seed, one after the other; errors by variant."""
    errors = {}
    for variant in plan.variants:
        place, name = run_folder(out, variant, seed), f"{variant}, seed {seed}"
        until = plan.settings(variant, seed).run.until
        _check_unchanged(place, plan.settings(variant, seed), variant)
        if RunFolder(place).finished(scores_stage(until)):
            continue
        settings = toml.override(plan.settings(variant, seed), [f"run.workers={workers}"])
        reporter = None if reporter_of is None else reporter_of(name)
        try:
            train(plan.data, settings, place, resume=True, reporter=reporter, known=_known(plan, out, seed))
        except Interrupted as error:
            error.fix = "the same command goes on where it stopped"
            raise
        except SccamError as error:
            errors[name] = str(error)
        else:
            count_run(plan, out, variant, seed, worker_count(workers))
    if plan.ceiling:
        free = [f"run.workers={workers}", "segment.initialise=pretrained"]  # there is no classifier to begin with
        settings = toml.override(plan.settings(plan.ceiling, seed), free)
        place = run_folder(out, CEILING, seed)
        _check_unchanged(place, settings, CEILING)
        watching = Silent() if reporter_of is None else reporter_of(f"{CEILING}, seed {seed}")
        train_supervised(open_data(plan.data, settings), settings, place, watching)
    return errors


def _check_unchanged(place: Path, settings: RunConfig, variant: str) -> None:
    """A finished run of other settings must not pass for this variant."""
    if (place / "config.toml").exists():
        changed = changed_settings(place / "config.toml", settings)
        if changed:
            raise RunFolderError(
                f"the variant {variant} had other settings\n" + "\n".join(f"    {line}" for line in changed),
                where=place, fix="give the variant another name, or choose another --out",
            )  # fmt: skip


def _known(plan: Ablation, out: Path, seed: int) -> dict[str, Path]:
    """Finished stages of all variants of a seed, by their keys."""
    known: dict[str, Path] = {}
    checksums: dict[DataSettings, str] = {}  # the variants of a plan hardly ever read the images in more than one way
    for variant in plan.variants:
        place = run_folder(out, variant, seed)
        state = RunFolder(place).state()
        finished = state.get("finished", {})
        if finished and "kept" not in state:  # of a kept run only the figures are there
            settings = plan.settings(variant, seed)
            if settings.data not in checksums:
                checksums[settings.data] = data_checksum(open_data(plan.data, settings))
            keys = stage_keys(settings, checksums[settings.data])
            known |= {key: place for stage, key in keys.items() if stage in finished and key not in known}
    return known
