"""Files that survive a kill: written beside the target, synced, renamed; and the run folder that holds them.

A reader of any path below sees either the old file or the new one, never half of one. No pickles: JSON, NPZ
(without objects), safetensors and PNG only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sccam.errors import ResourceError, RunFolderError
from sccam.structures import TensorSpec

LONGEST_NAME = 200  # [bytes] of a file name that is part of a temporary one; file systems allow 255


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yields a temporary path beside `path`; when the block succeeds it is synced and renamed into place.

    Raises:
        ResourceError: the disk is full, read-only, or the folder may not be written.
    """
    path = Path(path)
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:  # what is added would make it longer than file systems allow
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    temporary = path.with_name(f".{name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise ResourceError(
                f"cannot write: {error.strerror}",
                where=path,
                fix="free some space or choose another output folder; the previous file is intact",
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`; when the block succeeds it is renamed to `path`, in place of what was there.

    Raises:
        ResourceError: it cannot be written; what was there is intact.
    """
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    except OSError as error:
        raise ResourceError(f"cannot write: {error.strerror}", where=path, fix="choose another output") from error
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON with a final newline, atomically. NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """The JSON value in `path`.

    Raises:
        RunFolderError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunFolderError("a file of the run is missing", where=path, fix="run the stage that writes it") from None
    except ValueError as error:
        raise RunFolderError(f"not valid JSON: {error}", where=path) from error


def write_arrays(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a deflated NPZ, atomically. Object arrays are refused: they would need pickle."""
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; only plain numbers and strings are written")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file, read without pickle.

    Raises:
        RunFolderError: the file is missing, broken, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise RunFolderError("a file of the run is missing", where=path, fix="run the stage that writes it") from None
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen kinds for a broken archive
        raise RunFolderError(f"broken array file: {error}", where=path, fix="delete it and resume the run") from error


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_tensors(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a state dict as safetensors, atomically. Tensors must not share storage."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        save_file(contiguous, temporary, metadata=dict(metadata or {}))


def read_tensors(path: Path | str) -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        RunFolderError: the file is missing or broken.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise RunFolderError("a file of the run is missing", where=path, fix="run the stage that writes it") from None
    except SafetensorError as error:
        raise RunFolderError(f"broken weight file: {error}", where=path, fix="delete it and resume the run") from error


def append_json_line(path: Path | str, record: Mapping[str, Any]) -> None:
    """Appends one JSON record and a newline in a single write."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(line)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a network file is, so that it can be used without guessing. Written beside the file as FILE.json."""

    file: str
    sha256: str
    kind: str  # "cam_net" | "affinity_net" | "segmenter"
    backbone: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    stride: int  # [px per cell] of the output grid
    made_by: str  # "sccam 0.1.0"
    made_from: dict[
        str, Any
    ]  # weights: what it takes to build the network (heads, rates, K by class); others: the source
    backend: str = "torch"  # "torch" | "onnx" | "tensorrt"
    precision: str = "fp32"
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    parity: dict[str, Any] | None = None  # of an exported network with the one it was made from


def write_weights(path: Path, tensors: Mapping[str, Any], **manifest: Any) -> Manifest:
    """Writes weights and their manifest; the manifest comes last, so it never speaks of a file that is not there."""
    write_tensors(path, tensors)
    return write_manifest(path, **manifest)


def write_manifest(path: Path, **manifest: Any) -> Manifest:
    """Writes the manifest of a network file that is there, with its checksum."""
    from sccam import __version__

    record = Manifest(file=path.name, sha256=sha256(path), made_by=f"sccam {__version__}", **manifest)
    write_json(manifest_path(path), asdict(record))
    return record


def manifest_path(path: Path) -> Path:
    """Where the manifest of a network file lies."""
    return path.with_name(path.name + ".json")


def read_weights_with_manifest(path: Path) -> tuple[dict[str, Any], Manifest]:
    """The weights and manifest of a file written by `write_weights`.

    Raises:
        RunFolderError: a file is missing, broken, or the weights are not those that the manifest speaks of.
    """
    record = read_manifest(path)
    return read_tensors(path), record


def read_manifest(path: Path) -> Manifest:
    """The manifest of a network file; the file, if it is there, is the one that the manifest speaks of.

    Raises:
        RunFolderError: there is no manifest, it is broken, or the file has another checksum.
    """
    record = _manifest(manifest_path(path))
    if path.exists() and sha256(path) != record.sha256:
        raise RunFolderError(
            f"the file is not the one that {manifest_path(path).name} speaks of: their checksums differ",
            where=path,
            why="the file or its manifest was changed or copied without the other",
            fix="copy both from where they were made, or make them again",
        )
    return record


def _manifest(path: Path) -> Manifest:
    fields = read_json(path)
    try:
        for name in ("classes", "mean", "std"):
            fields[name] = tuple(fields[name])
        for name in ("inputs", "outputs"):
            specs = [TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in fields.get(name, ())]
            fields[name] = tuple(specs)
        return Manifest(**fields)
    except (TypeError, KeyError) as error:
        raise RunFolderError(f"not a manifest of this version: {error}", where=path) from error


class RunFolder:
    """A run on disk: its plan, what is finished, its metrics. One process at a time.

    Use as a context manager: entering takes the lock.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock: Any = None

    def __enter__(self) -> RunFolder:
        from filelock import FileLock, Timeout

        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / "lock")
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunFolderError(
                "another process is working on this run", where=self.path, fix="wait for it, or choose another --out"
            ) from None
        except OSError as error:
            raise ResourceError(f"cannot use the run folder: {error.strerror}", where=self.path) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def affinity_net(self) -> Path:
        """Weights of the affinity network."""
        return self / "affinity_net.safetensors"

    @property
    def segmenter(self) -> Path:
        """Weights of the segmenter that learned the pseudo labels."""
        return self / "segmenter.safetensors"

    @property
    def self_trained(self) -> Path:
        """Weights of the segmenter that learned on from its own masks."""
        return self / "self_trained/segmenter.safetensors"

    @property
    def rounds(self) -> list[int]:
        """The rounds that have begun, ascending."""
        names = (part.name.removeprefix("round") for part in self.path.glob("round*") if part.is_dir())
        return sorted(int(name) for name in names if name.isdecimal())

    def classifier(self, r: int) -> Path:
        """Weights of the classifier of round r."""
        return self / f"round{r}/cam_net.safetensors"

    def weights(self, kind: str) -> Path:
        """Weights of a network: "cam_net" (of the last round that is there), "affinity_net" or "segmenter" (the
        self-trained one, if there is one)."""
        if kind == "segmenter" and self.self_trained.exists():
            return self.self_trained
        if kind != "cam_net":
            return self / f"{kind}.safetensors"
        return self.classifier(max((r for r in self.rounds if self.classifier(r).exists()), default=0))

    def activation_map(self, r: int, id: str) -> Path:
        """Stored activation map of an image in round r."""
        return self / f"round{r}/activation_maps/{id}.npz"

    def affinity_label(self, id: str) -> Path:
        """Labels of an image's cells for the affinity network."""
        return self / f"affinity_labels/{id}.png"

    def walked_map(self, id: str) -> Path:
        """Stored scores of an image after the random walk."""
        return self / f"walked_maps/{id}.npz"

    def pseudo_label(self, id: str) -> Path:
        """Pseudo label of a training image."""
        return self / f"pseudo_labels/{id}.png"

    def self_label(self, id: str) -> Path:
        """The segmenter's own mask of a training image, that it learns on from."""
        return self / f"self_labels/{id}.png"

    def prediction(self, split: str, id: str, *, crf: bool = False) -> Path:
        """The segmenter's mask of an image, with or without a CRF behind it."""
        return self / f"predictions{'_crf' if crf else ''}/{split}/{id}.png"

    def state(self) -> dict[str, Any]:
        """The content of run.json; empty for a new folder."""
        path = self / "run.json"
        return dict(read_json(path)) if path.exists() else {}

    def update(self, **fields: Any) -> None:
        """Replaces fields of run.json."""
        write_json(self / "run.json", {**self.state(), **fields})

    def finished(self, stage: str) -> bool:
        """Whether `stage` has written all of its output."""
        return stage in self.state().get("finished", {})

    def finish(self, stage: str, **facts: Any) -> None:
        """Marks `stage` as finished, with facts such as its seconds."""
        self.update(finished={**self.state().get("finished", {}), stage: facts})

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends a record to metrics.jsonl."""
        append_json_line(self / "metrics.jsonl", record)
