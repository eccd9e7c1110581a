"""Files that survive a kill: written beside the target, synced, renamed; and the run folder that holds them.

A reader of any path below sees either the old file or the new one, never half of one. No pickles: JSON, NPZ
(without objects), safetensors and PNG only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from sccam.errors import ResourceError, RunFolderError, SccamError
from sccam.records import DATA, MANIFEST, RUN, SCORES, check
from sccam.structures import TensorSpec

LONGEST_NAME = 200  # [bytes] of a file name that is part of a temporary one; file systems allow 255
BOMB_BYTES, BOMB_RATIO = 1 << 28, 200  # of an archive that is larger than the one and packed tighter than the other
CLOSED = frozenset(  # errors of a disk that takes no more, whatever is written
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
)
_LEFTOVER = re.compile(r"\..+\.[0-9]+\.(tmp(\..*)?|old)")  # names as `replacing` and `replacing_folder` give them


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is half of one, which a process that is killed leaves behind."""
    return _LEFTOVER.fullmatch(name) is not None


@contextmanager
def writing(path: Path | str) -> Iterator[None]:
    """Says in words that the disk is full or may not be written when `path` was.

    Raises:
        ResourceError: instead of an error of the system; other errors pass through.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CLOSED:
            raise
        raise ResourceError(
            f"cannot write: {error.strerror}",
            where=path,
            fix="free some space or choose another output folder; the previous file is intact",
        ) from error


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
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
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
    """Writes `text` as UTF-8, atomically; of a name that is none, bytes become \\udcff, which JSON reads back."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


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
    except OSError as error:
        raise RunFolderError(f"cannot be read: {error.strerror}", where=path) from error
    except RecursionError:
        raise RunFolderError("not valid JSON: nested too deeply", where=path) from None
    except ValueError as error:
        raise RunFolderError(f"not valid JSON: {error}", where=path) from error


def read_record(path: Path | str, kind: dict[Any, Any]) -> dict[str, Any]:
    """The JSON object in `path`.

    Args:
        kind: what it must hold, as `records.check` takes it.

    Raises:
        RunFolderError: the file is missing, is not JSON, or a field is missing or of another kind.
    """
    value = read_json(path)
    check(value, kind, path)
    found: dict[str, Any] = value
    return found


def write_arrays(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as a deflated NPZ, atomically. Object arrays are refused: they would need pickle."""
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects; only plain numbers and strings are written")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def check_unpacked(path: Path | str) -> None:
    """Refuses an archive that would fill the memory: far larger unpacked than any that holds numbers of a network.

    Raises:
        ValueError: with both sizes; or it is damaged.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    packed = os.path.getsize(path)
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        raise ValueError(f"its {packed:,} bytes unpack to {unpacked:,}")


class _Arrays(dict[str, np.ndarray]):
    """The arrays of a file by name; one that is not there is an error of the file."""

    def __init__(self, path: Path | str, arrays: Mapping[str, np.ndarray]):
        super().__init__(arrays)
        self.path = path

    def __missing__(self, name: str) -> np.ndarray:
        raise RunFolderError(f"the array {name!r} is missing", where=self.path, fix="delete it and resume the run")


def read_arrays(path: Path | str, shapes: Mapping[str, str] = MappingProxyType({})) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file, read without pickle.

    Args:
        shapes: of arrays that must be there, as in {"scores": "P h w", "size": "2", "ids": "N text"}: a letter is one
            size in all of them; without "text" they hold numbers.

    Raises:
        RunFolderError: the file is missing, broken, or holds Python objects; an array is missing, also one that is
            asked for later, or of another shape.
    """
    try:
        check_unpacked(path)
        with np.load(path, allow_pickle=False) as archive:
            found = _Arrays(path, {name: archive[name] for name in archive.files})
        if other := [name for name, array in found.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{other[0]!r} is no array")
    except FileNotFoundError:
        raise RunFolderError("a file of the run is missing", where=path, fix="run the stage that writes it") from None
    except SccamError:  # a second Ctrl-C
        raise
    except Exception as error:  # zipfile, zlib and numpy raise half a dozen kinds for a broken archive
        objects = isinstance(error, ValueError) and "pickle" in str(error)  # numpy goes on to say how to load them
        problem = "it holds Python objects, which are never loaded" if objects else error
        raise RunFolderError(f"broken array file: {problem}", where=path, fix="delete it and resume the run") from error
    sizes: dict[str, int] = {}
    for name, text in shapes.items():
        array, axes = found[name], text.removesuffix(" text").split()
        fits = len(axes) == array.ndim and array.dtype.kind in ("U" if text.endswith(" text") else "biuf")
        for axis, size in zip(axes, array.shape, strict=False):
            fits = fits and size == (int(axis) if axis.isdecimal() else sizes.setdefault(axis, size))
        if not fits:
            raise RunFolderError(
                f"array {name!r} is {array.dtype} {list(array.shape)}, expected [{text}]", where=path,
                fix="delete it and resume the run",
            )  # fmt: skip
    return found


def sha256(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_tensors(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a state dict as safetensors, atomically. Tensors must not share storage."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = save(contiguous, metadata=dict(metadata or {}))  # save_file would have a temporary file of its own
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def load_tensors(path: Path | str) -> dict[str, Any]:
    """What safetensors reads from a file; it raises its own errors."""
    from safetensors.torch import load, load_file

    if str(path).encode("utf-8", "replace").decode() == str(path):
        return load_file(path)
    return load(Path(path).read_bytes())  # by its name, the library opens no file that has none in UTF-8


def read_tensors(path: Path | str) -> dict[str, Any]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        RunFolderError: the file is missing or broken.
    """
    from safetensors import SafetensorError

    try:
        return load_tensors(path)
    except FileNotFoundError:
        raise RunFolderError("a file of the run is missing", where=path, fix="run the stage that writes it") from None
    except (SafetensorError, OSError) as error:
        raise RunFolderError(f"broken weight file: {error}", where=path, fix="delete it and resume the run") from error


def tensors_metadata(path: Path | str) -> dict[str, str]:
    """What `write_tensors` was given with the tensors of a file that can be read."""
    with Path(path).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header.get("__metadata__", {}))


def append_json_line(path: Path | str, record: Mapping[str, Any]) -> None:
    """Appends one JSON record and a newline in a single write.

    Raises:
        ResourceError: the disk is full or may not be written.
    """
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    with writing(path), Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
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
    found = read_record(path, MANIFEST)
    for name in ("classes", "mean", "std"):
        found[name] = tuple(found[name])
    for name in ("inputs", "outputs"):
        found[name] = tuple(TensorSpec(s["name"], s["dtype"], tuple(s["shape"])) for s in found.get(name, ()))
    if unknown := found.keys() - {field.name for field in fields(Manifest)}:
        raise RunFolderError(f"not a manifest of this version: it has {', '.join(sorted(unknown))}", where=path)
    return Manifest(**found)


OUTSIDE_THE_LOCK = ("export", "report")  # folders of a run that other commands write in while it may go on
OF_A_RUN = (
    *OUTSIDE_THE_LOCK, "lock", "run.json", "config.toml", "data.json", "metrics.jsonl", "threshold.json", "walk.json",
    "scores.json", "labelmap.txt", "overview.png", "*.safetensors", "*.safetensors.json", "round[0-9]*",
    "affinity_labels", "walked_maps", "pseudo_labels", "self_labels", "self_trained", "predictions", "predictions_crf",
    "events",
)  # fmt: skip
"""Names of what lies in the folder of a run."""


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
            raise ResourceError(
                f"cannot use the run folder: {error.strerror}", where=self.path,
                fix="choose another --out, or make the folder writable",
            ) from error  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def foreign(self) -> list[str]:
        """Names of what is not of a run."""
        names = (entry.name for entry in self.path.iterdir() if not is_leftover(entry.name))
        return sorted(name for name in names if not any(fnmatchcase(name, own) for own in OF_A_RUN))

    def tidy(self) -> None:
        """Removes what killed processes left half-written; for who holds the lock."""
        for place, folders, files in os.walk(self.path):
            if Path(place) == self.path:
                folders[:] = [name for name in folders if name not in OUTSIDE_THE_LOCK]
            for name in filter(is_leftover, files):
                Path(place, name).unlink(missing_ok=True)
            for name in filter(is_leftover, folders):
                shutil.rmtree(Path(place, name), ignore_errors=True)

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
        return read_record(path, RUN) if path.exists() else {}

    def data(self) -> dict[str, Any]:
        """The content of data.json: the image folder and the classes."""
        return read_record(self / "data.json", DATA)

    def scores(self) -> dict[str, Any]:
        """The content of scores.json; no rows where it is not there yet."""
        path = self / "scores.json"
        return read_record(path, SCORES) if path.exists() else {"rows": []}

    def update(self, **changed: Any) -> None:
        """Replaces fields of run.json."""
        write_json(self / "run.json", {**self.state(), **changed})

    def finished(self, stage: str) -> bool:
        """Whether `stage` has written all of its output."""
        return stage in self.state().get("finished", {})

    def finish(self, stage: str, **facts: Any) -> None:
        """Marks `stage` as finished, with facts such as its seconds."""
        self.update(finished={**self.state().get("finished", {}), stage: facts})

    def log(self, record: Mapping[str, Any]) -> None:
        """Appends a record to metrics.jsonl."""
        append_json_line(self / "metrics.jsonl", record)
