"""`sccam inspect`: what a file or folder is, without running, unpickling or deserialising any of it.

a run, OUT of sccam infer or ablate    its records
.safetensors                           its header
.onnx                                  its graph; external data is refused
.engine                                its manifest; the engine is not touched
.npz                                   names, types and shapes
.png and other images                  size, mode, and the labels of an index mask
.pth .pt .pkl .npy .params             what they are, and what reads them
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from sccam.artifacts import RunFolder, manifest_path, read_json, read_manifest, sha256
from sccam.data.images import IMAGE_SUFFIXES, opened
from sccam.data.masks import read_mask
from sccam.errors import DataError, ModelFileError, RunFolderError, SccamError
from sccam.runtime.network_onnxruntime import onnx_facts

Facts = dict[str, str]
LONGEST_HEADER = 100_000_000  # [bytes]; as the safetensors library has it
SHOWN = 12  # tensors or arrays
PICKLES = {".pth": "torch archive", ".pt": "torch archive", ".pkl": "pickle", ".ckpt": "torch archive"}


def inspect(path: Path | str) -> Facts:
    """Facts for a person, in the order in which to print them.

    Raises:
        ModelFileError, RunFolderError, DataError: the file is missing, broken, or of a kind that is not known.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ModelFileError("no such file or folder", where=path)
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix, _image if suffix in IMAGE_SUFFIXES else None)
    if reader is None:
        raise ModelFileError(f"no kind of file is known by {suffix!r}", where=path, fix=f"known: {' '.join(_READERS)}")
    facts = {"file": f"{path.name}, {path.stat().st_size:,} bytes"}
    return facts | reader(path) | (_manifest(path) if suffix in (".safetensors", ".onnx", ".engine") else {})


def _folder(path: Path) -> Facts:
    if (path / "run.json").exists():
        return _run(path)
    if (path / "ablation.json").exists():
        content = read_json(path / "ablation.json")
        seeds = sum(len(variant["seeds"]) for variant in content["variants"].values())
        return {"ablation": f"{len(content['variants'])} variants, {seeds} runs, baseline {content['baseline']}"}
    if (path / "predictions.jsonl").exists():
        facts = {"results": "of sccam infer"}
        for name, what in (("predictions.jsonl", "images"), ("errors.jsonl", "failed")):
            file = path / name
            facts[what] = str(sum(1 for _ in file.open("rb"))) if file.exists() else "0"
        return facts | _plan(path / "infer.json")
    raise RunFolderError(
        "the folder holds neither a run nor results", where=path, fix="for images with tags: sccam data check"
    )


def _run(path: Path) -> Facts:
    folder = RunFolder(path)
    state = folder.state()
    facts = {
        "run": f"{state.get('status', 'unknown')}, begun {state.get('started', '?')}",
        "made by": f"sccam {state.get('sccam', '?')}",
        "stages": ", ".join(state.get("finished", {})) or "none finished",
    }
    if (path / "data.json").exists():
        data = folder.data()
        facts["classes"] = f"{len(data['classes'])}: {', '.join(data['classes'])}"
    for row in folder.scores()["rows"]:
        if row["column"] in ("image_only", "labels") and row["miou"] is not None:
            facts[f"mIoU {row['stage']}, {row['split']}"] = f"{100 * row['miou']:.1f}"
    exported = sorted(file.name for suffix in ("onnx", "engine") for file in (path / "export").glob(f"*.{suffix}"))
    return facts | ({"exported": ", ".join(exported)} if exported else {})


def _plan(path: Path) -> Facts:
    if not path.exists():
        return {}
    plan = {name: value for name, value in read_json(path).items() if isinstance(value, (str, int, float))}
    return {"plan": ", ".join(f"{name} {value}" for name, value in plan.items())}


def _manifest(path: Path) -> Facts:
    if not manifest_path(path).exists():
        return {"manifest": f"none ({manifest_path(path).name} is not there), so sccam does not open the file"}
    try:
        found = read_manifest(path)
    except SccamError as error:
        return {"manifest": f"REFUSED: {error.what}"}
    facts = {
        "manifest": f"fits; {found.kind} of {found.backbone}, {found.precision}, stride {found.stride}",
        "made by": found.made_by,
        "classes": f"{len(found.classes)}: {', '.join(found.classes)}",
        "made from": json.dumps(found.made_from, ensure_ascii=False),
    }
    if found.parity:
        verdict = "passed" if found.parity.get("passed") else "FAILED"
        apart, agreement = (found.parity.get(name, math.nan) for name in ("relative_error", "agreement"))
        facts["parity"] = f"{verdict}, error {apart:.1e} of the range, agreement {100 * agreement:.2f} %"
    return facts


def _safetensors(path: Path) -> Facts:
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size - 8, LONGEST_HEADER):
            why = f"its header would have {length:,} bytes of {size:,}"
            raise ModelFileError("not a safetensors file, or cut off", where=path, why=why)
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            tensors = {name: (str(found["dtype"]), tuple(map(int, found["shape"]))) for name, found in header.items()}
            end = max((int(found["data_offsets"][1]) for found in header.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise ModelFileError("the header is no safetensors header", where=path, why=str(error)[:100]) from error
    if end != size - 8 - length:
        problem = f"{size - 8 - length:,} bytes of numbers, {end:,} announced"
        raise ModelFileError(problem, where=path, why="the file was cut off or added to")
    numbers = sum(math.prod(shape) for _, shape in tensors.values())
    facts = {"tensors": f"{len(tensors)}, {numbers:,} numbers", "sha256": sha256(path)}
    facts |= {f"says {name}": str(value) for name, value in metadata.items()}
    largest = sorted(tensors.items(), key=lambda item: -math.prod(item[1][1]))
    return facts | _listed({name: f"{kind} {list(shape)}" for name, (kind, shape) in largest})


def _engine(path: Path) -> Facts:
    return {"engine": "not opened: an engine is code; it runs only with a manifest that fits this machine"}


def _npz(path: Path) -> Facts:
    arrays: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    arrays[name.removesuffix(".npy")] = _array(member)
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise ModelFileError("not an array archive, or damaged", where=path, why=str(error)[:100]) from error
    return {"arrays": str(len(arrays))} | _listed(arrays)


def _npy(path: Path) -> Facts:
    try:
        with path.open("rb") as file:
            return {"array": _array(file)}
    except (ValueError, OSError) as error:
        raise ModelFileError("not an array file, or damaged", where=path, why=str(error)[:100]) from error


def _array(file: object) -> str:
    version = npy.read_magic(file)  # type: ignore[arg-type]
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, kind = read(file)  # type: ignore[arg-type]
    return f"{kind} {list(shape)}" + (", Python objects: never loaded" if kind.hasobject else "")


def _image(path: Path) -> Facts:
    with opened(path, max_pixels=None) as image:
        facts = {"image": f"{image.width} x {image.height} px, {image.format}, mode {image.mode}"}
        indexed = image.mode in ("P", "L", "1")
    if not indexed:
        return facts
    try:
        counts = np.bincount(read_mask(path).ravel(), minlength=256)
    except DataError as error:
        return facts | {"as a mask": f"refused: {error.what}"}
    values = np.flatnonzero(counts)
    shares = ", ".join(f"{value}: {100 * counts[value] / counts.sum():.1f} %" for value in values[:SHOWN].tolist())
    return facts | {"as a mask": f"{len(values)} values; {shares}" + (" ..." if len(values) > SHOWN else "")}


def _pickle(path: Path) -> Facts:
    kind = PICKLES[path.suffix.lower()]
    return {"kind": f"{kind}: not opened, since a pickle may run code", "use": "sccam weights import takes its tensors"}


def _params(path: Path) -> Facts:
    return {"kind": "arrays of MXNet", "use": "sccam weights import FILE OUT.safetensors --backbone resnet38d"}


def _listed(items: Facts) -> Facts:
    shown = dict(list(items.items())[:SHOWN])
    more = len(items) - len(shown)
    return {f"  {name}": text for name, text in shown.items()} | ({"  ...": f"and {more} more"} if more else {})


_READERS: dict[str, Callable[[Path], Facts]] = {
    ".safetensors": _safetensors,
    ".onnx": onnx_facts,
    ".engine": _engine,
    ".npz": _npz,
    ".npy": _npy,
    ".params": _params,
    **dict.fromkeys(PICKLES, _pickle),
}
