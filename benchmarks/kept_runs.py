"""The figures of an ablation's runs in one small file, so that seeds of other days and machines are counted together.

A kept run is what `sccam ablate --report-only` reads of a whole one: settings, seconds, scores and pixel counts of
every image. Weights, maps and masks are not kept: nothing can be trained on from it.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sccam.artifacts import read_arrays, read_json, write_arrays

TEXTS = ("config.toml", "scores.json", "walk.json")
OF_STAGE = ("seconds", "commit", "device", "precision")  # what run.json tells of one, and is kept
PRESET = 9  # a dictionary of 64 MiB finds what the counts of variants have in common


def keep(out: Path, seed: int, file: Path, facts: dict[str, Any]) -> None:
    """Writes the runs of a seed in OUT that are finished.

    Args:
        out: of `sccam ablate`, measured: `--report-only` leaves the counts that are kept here.
        facts: commit and device of runs that do not tell them themselves; restored ones have their own.
    """
    with tarfile.open(file, "w:xz", preset=PRESET) as archive:
        for run in finished(out, seed):
            name, state = run.parent.name, read_json(run / "run.json")
            stages = {
                stage: {key: value for key, value in found.items() if key in OF_STAGE}
                for stage, found in state["finished"].items()
            }
            only = {"status": state["status"], "finished": stages, "kept": state.get("kept", facts)}
            _add(archive, f"{name}/run.json", json.dumps(only).encode())
            for text in TEXTS:
                if (run / text).exists():
                    _add(archive, f"{name}/{text}", (run / text).read_bytes())
            for counts in sorted((run / "counts").glob("*.npz")):
                array = io.BytesIO()
                np.save(array, read_arrays(counts)["counts"].astype(np.uint32))
                _add(archive, f"{name}/counts/{counts.stem}.npy", array.getvalue())


def restore(file: Path, seed: int, out: Path) -> None:
    """Puts kept runs of a seed where `sccam ablate` looks for them, unless there is a run of that name."""
    here = {run.parent.name for run in (out / "runs").glob(f"*/seed{seed}")}
    with tarfile.open(file, "r:xz") as archive:
        for member in archive:
            name, content = PurePosixPath(member.name), archive.extractfile(member)
            if content is None or ".." in name.parts or name.is_absolute():
                raise ValueError(f"{file}: {member.name!r} is no file of a kept run")
            if name.parts[0] in here:
                continue
            path = out / "runs" / name.parts[0] / f"seed{seed}" / PurePosixPath(*name.parts[1:])
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".npy":
                array = np.load(io.BytesIO(content.read()), allow_pickle=False)
                write_arrays(path.with_suffix(".npz"), {"counts": array.astype(np.int64)})
            else:
                path.write_bytes(content.read())


def finished(out: Path, seed: int) -> list[Path]:
    """Folders of the runs of a seed that have their scores."""
    return [run for run in sorted((out / "runs").glob(f"*/seed{seed}")) if (run / "scores.json").exists()]


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
