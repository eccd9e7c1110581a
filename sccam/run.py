"""Starting a run: read the input, check the plan against the folder, train. What the command line and scripts call."""

from __future__ import annotations

import hashlib
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from sccam import __version__
from sccam import config as toml
from sccam.advice import advice
from sccam.artifacts import RunFolder, is_leftover, write_text
from sccam.callbacks import Callback, Callbacks
from sccam.data import open_dataset
from sccam.data.checks import check_cluster_counts
from sccam.errors import Interrupted, RunFolderError
from sccam.nets.backbones import check_trunk
from sccam.nets.compute import deterministic
from sccam.ranks import Ranks, joined
from sccam.recipe import RunConfig, load_config
from sccam.report.overview import write_overview
from sccam.stop import StopRequest
from sccam.structures import Dataset
from sccam.training import Reporter, Silent, train_all
from sccam.training.sharing import stage_keys, take_stages

SCHEMA = 1  # of run.json
FREE_TO_CHANGE = (
    "run.device",
    "run.workers",
    "run.parts",
    "run.until",
    "backends.",
)  # settings, and tables of them, that a resume may change


def train(
    data: Path | str,
    config: RunConfig | str = "photos",
    out: Path | str = "runs/run",
    overrides: list[str] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    known: Mapping[str, Path] | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    """Trains the whole chain and returns the content of scores.json.

    Started by `torchrun`, its processes do the run together, in one folder that all of them see.

    Args:
        data: an image folder with tags, or a VOC 2012 folder.
        config: a built-in name, a TOML file, or the settings themselves.
        out: the run folder.
        overrides: settings as "table.name=value".
        resume: go on with the run in `out`, if there is one.
        overwrite: delete the run in `out` first.
        known: finished stages of other runs on the same data, by their keys: see `training.sharing`.
        callbacks: told of stages, epochs and scores.

    Raises:
        DataError, ConfigError, RunFolderError, Interrupted: see their texts.
    """
    reporter, listener = reporter or Silent(), Callbacks(callbacks)
    settings = read_settings(config, overrides)
    dataset = open_data(data, settings)
    if not resume:
        _check_trunks(settings)
    try:
        with joined(settings.run.device) as ranks, _opened(out, ranks) as folder, StopRequest().listening() as stop:
            if ranks.first:
                _prepare(folder, settings, dataset, resume=resume, overwrite=overwrite)
                take_stages(folder, stage_keys(settings, data_checksum(dataset)), known or {})
            ranks.wait()
            try:
                with deterministic(settings.run.deterministic):
                    scores = train_all(
                        dataset, settings, folder, reporter if ranks.first else Silent(), stop, listener, ranks
                    )
                if ranks.first:
                    if settings.run.until == "segmenter":
                        write_overview(folder, dataset, settings)
                    folder.update(status="finished", ended=_now())
            except BaseException as error:
                if ranks.first:
                    folder.update(status="interrupted" if isinstance(error, Interrupted) else "failed")
                raise
    except Interrupted as error:  # out here, where a second signal no longer comes between
        error.fix = f"go on with: {_command(data, config, out, overrides)}"
        raise
    if ranks.first:
        listener.on_run_end(scores)
    return scores


@contextmanager
def _opened(out: Path | str, ranks: Ranks) -> Iterator[RunFolder]:
    """The run folder, locked by the first process for all of them."""
    folder = RunFolder(out)
    with folder if ranks.first else nullcontext():
        yield folder


def plan(data: Path | str, config: RunConfig | str, overrides: list[str] | None = None) -> dict[str, Any]:
    """What a run would do, after the same checks of input and settings; nothing is written."""
    settings = read_settings(config, overrides)
    dataset = open_data(data, settings)
    _check_trunks(settings)
    rounds = settings.classify.rounds
    return {
        "data": str(dataset.root),
        "classes": list(dataset.classes),
        "train_images": len(dataset.train),
        "val_images": len(dataset.val),
        "masks_for_measuring": len(dataset.masks.paths),
        "warnings": [
            *dataset.warnings,
            *(check_cluster_counts(dataset, settings.cluster.k) if rounds else ()),
        ],
        "advice": advice(dataset, settings),
        "rounds": list(settings.rounds),
        "classifier_steps": [
            settings.epochs_of(r) * max(1, len(dataset.train) // settings.classify.batch)
            for r in range(len(settings.rounds))
        ],
        "affinity_steps": settings.affinity.epochs * max(1, len(dataset.train) // settings.affinity.batch),
        "segmenter_steps": (settings.segment.epochs + settings.segment.self_epochs)
        * max(1, len(dataset.train) // settings.segment.batch),
        "config": toml.to_dict(settings),
    }


def plan_text(plan: dict[str, Any], folder: Path) -> str:
    """The plan as lines for a person."""
    rounds = [f"{steps} ({kind})" for steps, kind in zip(plan["classifier_steps"], plan["rounds"], strict=True)]
    lines = [
        f"data        {plan['data']}: {plan['train_images']} training images, {plan['val_images']} for validation,"
        f" {len(plan['classes'])} classes, {plan['masks_for_measuring']} masks (for measuring only)",
        *(f"note        {warning}" for warning in plan["warnings"]),
        *(f"advice      {line}" for line in plan["advice"]),
        f"classifier  steps by round: {', '.join(rounds)}",
        f"affinity    {plan['affinity_steps']} steps",
        f"segmenter   {plan['segmenter_steps']} steps",
        f"run folder  {folder} (nothing was written)",
        "",
        toml.dump_toml(plan["config"]).rstrip(),
    ]
    return "\n".join(lines)


def read_settings(config: RunConfig | str, overrides: list[str] | None) -> RunConfig:
    """A built-in configuration, a TOML file or settings, with `a.b=c` overrides applied."""
    if isinstance(config, RunConfig):
        return toml.override(config, overrides or [])
    return load_config(config, overrides or [])


def _check_trunks(settings: RunConfig) -> None:
    """Refuses a network that cannot be built, before the run folder is made."""
    network, strides = settings.network, [settings.network.output_stride, settings.network.train_stride]
    if settings.run.until == "segmenter":
        strides.append(settings.segment.output_stride)
    for stride in filter(None, strides):
        check_trunk(network.backbone, output_stride=stride, weights=network.weights)


def open_data(data: Path | str, settings: RunConfig) -> Dataset:
    """The images, tags and masks that a run with these settings reads."""
    return open_dataset(
        data,
        train_list=settings.data.train_list,
        val_list=settings.data.val_list,
        allow_negative=settings.data.allow_negative,
    )


def _prepare(folder: RunFolder, settings: RunConfig, dataset: Dataset, *, resume: bool, overwrite: bool) -> None:
    """Makes a new run, or checks that the one in the folder follows the same plan. run.json marks a folder as a run."""
    state, config_path = folder.state(), folder / "config.toml"
    if state.get("schema", 0) > SCHEMA:
        raise RunFolderError(
            f"the run was made by a newer sccam ({state.get('sccam')}), this is {__version__}",
            where=folder.path, fix="go on with that version, or start another with --out",
        )  # fmt: skip
    data = {"root": str(dataset.root.resolve()), "sha256": data_checksum(dataset)}
    if "schema" in state and (overwrite or state.get("status") == "deleting"):
        if foreign := folder.foreign():
            raise RunFolderError(
                f"the run's folder holds other files, too: {', '.join(foreign[:5])}",
                where=folder.path, fix="move them to another place, or choose another --out",
            )  # fmt: skip
        folder.update(status="deleting")  # a kill from here on leaves a folder that says so
        for entry in folder.path.iterdir():
            if entry.name not in ("lock", "run.json"):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (folder / "run.json").unlink()
        state = {}
    if "schema" not in state:
        there = [entry.name for entry in folder.path.iterdir()]
        if foreign := [name for name in there if name != "lock" and not is_leftover(name)]:
            raise RunFolderError(
                f"the folder holds no run, but other files: {', '.join(sorted(foreign)[:5])}",
                where=folder.path,
                fix="choose an empty --out",
            )
        folder.update(
            schema=SCHEMA,
            status="running",
            sccam=__version__,
            python=platform.python_version(),
            argv=sys.argv,
            started=_now(),
            data=data,
            finished={},
        )
    elif not resume:
        raise RunFolderError(
            "there is a run in this folder already",
            where=folder.path,
            fix="--resume goes on with it, --overwrite deletes it, --out starts another",
        )
    folder.tidy()
    if not config_path.exists():  # a new run, or one that was killed before it wrote its plan
        write_text(config_path, toml.dump(settings))
    changed = changed_settings(config_path, settings)
    began = folder.state().get("data", {})
    if began.get("root") != data["root"]:
        changed.append(f"data: {began.get('root')} -> {data['root']}")
    elif began != data:
        changed.append("data: ids or tags have changed since the run began")
    if changed:
        listed = "\n".join(f"    {line}" for line in changed)
        raise RunFolderError(
            f"the run in this folder follows another plan\n{listed}",
            where=folder.path,
            fix="resume with the run's own settings (-c RUN/config.toml) and data, or start another with --out",
        )
    if toml.differences(toml.load(RunConfig, config_path), settings):  # in what a resume may change
        write_text(config_path, toml.dump(settings))
    folder.update(status="running")


def changed_settings(config_path: Path, settings: RunConfig) -> list[str]:
    """Settings of a run's config.toml that are others now and that a resume may not change, a line each."""
    free = tuple(name if name.endswith(".") else f"{name}:" for name in FREE_TO_CHANGE)
    return [line for line in toml.differences(toml.load(RunConfig, config_path), settings) if not line.startswith(free)]


def data_checksum(dataset: Dataset) -> str:
    """SHA-256 of classes, ids and tags: what the rows of every stored array stand for."""
    digest = hashlib.sha256("\n".join(dataset.classes).encode())
    for part in (dataset.train, dataset.val):
        digest.update("\n".join(part.ids).encode() + b"\0" + part.labels.present.tobytes())
    return digest.hexdigest()


def _command(data: Path | str, config: RunConfig | str, out: Path | str, overrides: list[str] | None) -> str:
    """The shell command that resumes a run."""
    source = f"{out}/config.toml" if isinstance(config, RunConfig) else config
    settings = [word for text in overrides or [] for word in ("--set", text)]
    return shlex.join(["sccam", "train", str(data), "-c", str(source), "--out", str(out), *settings, "--resume"])


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
