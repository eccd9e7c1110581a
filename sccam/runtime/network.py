"""A trained network behind one signature, whatever file it lies in and whatever runs it.

    torch         RUN/segmenter.safetensors, RUN/roundR/cam_net.safetensors, RUN/affinity_net.safetensors
    onnxruntime   *.onnx
    tensorrt      *.engine

`auto` follows the file; a run folder means its exported ONNX file where there is one and ONNX Runtime is installed,
else its weights. Running an exported file loads no torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sccam.artifacts import Manifest, RunFolder, read_manifest
from sccam.errors import ConfigError, ModelFileError
from sccam.runtime.pool import worker_count
from sccam.structures import ByteArray

BACKENDS = {"torch": ".safetensors", "onnxruntime": ".onnx", "tensorrt": ".engine"}
"""Name -> suffix of the files that it runs."""

BATCH_PIXELS = {"cpu": 1 << 20, "cuda": 8 << 20}  # four and thirty-two images of 512 x 512
MOST_LANES = 8  # each holds the activations of a batch

Network = Callable[[ByteArray], Mapping[str, np.ndarray]]
"""images u8 [N H W 3] -> outputs by name."""


@dataclass(frozen=True, slots=True)
class OpenedNetwork:
    """A network that is ready to run.

    Attributes:
        run: images u8 [N H W 3] -> outputs by name.
        manifest: of the file: classes, mean colour, stride.
        backend: a name of `BACKENDS`.
        path: the file.
        device: "cpu" or "cuda", where it really runs.
        lanes: calls of `run` at a time that make the most of the machine.
    """

    run: Network
    manifest: Manifest
    backend: str
    path: Path
    device: str = "cpu"
    lanes: int = 1

    @property
    def batch_pixels(self) -> int:
        """[px] of a batch at most: a CPU gains nothing by more, and its memory holds what each lane needs."""
        return BATCH_PIXELS[self.device.partition(":")[0]]

    def line(self) -> str:
        """For a person: the file and what runs it."""
        return f"{self.path} by {self.backend} on {self.device}"


def open_network(
    model: Path | str,
    kind: str,
    backend: str = "auto",
    *,
    device: str = "auto",
    threads: int = 0,
    features: bool = False,
    allow_fallback: bool = False,
) -> OpenedNetwork:
    """The network of one kind of a run folder, or of a file.

    Args:
        model: a run, or a .safetensors, .onnx or .engine file with its manifest beside it.
        kind: "cam_net", "affinity_net" or "segmenter".
        backend: "auto" or one of `BACKENDS`.
        device: "auto", "cpu" or "cuda"; an engine always runs on a GPU.
        threads: of ONNX Runtime; 0 takes all cores.
        features: an affinity network gives its `features` where it can, in place of `affinity`.
        allow_fallback: run on the CPU where ONNX Runtime was asked for CUDA and cannot.

    Raises:
        ConfigError: an unknown backend, or one that does not run this kind of file.
        ModelFileError: no such file, or it is another kind of network.
        RunFolderError: the manifest is missing, or the file is not the one that it describes.
        BackendUnavailable: a library is not installed, or the device is not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"no device {device!r}", fix="choose from auto, cpu, cuda")
    if backend != "auto" and backend not in BACKENDS:
        raise ConfigError(f"no backend {backend!r}", fix=f"choose from auto, {', '.join(BACKENDS)}")
    path = _file_of(Path(model), kind, backend)
    name = next((name for name, suffix in BACKENDS.items() if path.suffix == suffix), None)
    if name is None or backend not in ("auto", name):
        raise ConfigError(
            f"{'nothing here' if backend == 'auto' else backend} runs {path.name}",
            where=path,
            fix="; ".join(f"{known} runs *{suffix}" for known, suffix in BACKENDS.items()),
        )
    if not path.is_file():
        raise ModelFileError("no such file", where=path, fix=_how_to_make(Path(model), path))
    if name == "torch":
        from sccam.nets.compute import Compute
        from sccam.nets.saved import load_network
        from sccam.runtime.network_torch import network_of

        compute = Compute.resolve(device, "auto")
        net, manifest = load_network(path, compute)
        _require(kind, manifest, path)
        return OpenedNetwork(network_of(net, compute), manifest, name, path, compute.device)
    manifest = read_manifest(path)
    _require(kind, manifest, path)
    if name == "onnxruntime":
        from sccam.runtime.network_onnxruntime import has_cuda, open_onnx

        threads = worker_count(threads)
        lanes = min(threads, MOST_LANES)
        if device != "cpu" and (device == "cuda" or has_cuda()):  # "auto" takes what works, and says which that is
            fall = allow_fallback or device == "auto"
            network = open_onnx(path, "cuda", features=features, threads=threads // lanes, allow_fallback=fall)
        else:
            network = open_onnx(path, features=features, threads=threads // lanes)
        return OpenedNetwork(network, manifest, name, path, network.device, lanes if network.device == "cpu" else 1)
    if device == "cpu":
        raise ConfigError("an engine runs on a GPU", where=path, fix="leave --device out, or give the ONNX file")
    from sccam.runtime.network_tensorrt import open_engine

    return OpenedNetwork(open_engine(path), manifest, name, path, "cuda")


def _file_of(model: Path, kind: str, backend: str) -> Path:
    if not model.is_dir():
        return model
    exported = model / "export" / f"{kind}.onnx"
    if backend == "tensorrt":
        return exported.with_suffix(".engine")
    here = exported.is_file() and importlib.util.find_spec("onnxruntime") is not None
    if backend == "onnxruntime" or (backend == "auto" and here):
        return exported
    return RunFolder(model).weights(kind)


def _how_to_make(model: Path, path: Path) -> str:
    """What leads to a network's file that is not there."""
    if not (model / "run.json").is_file():
        return "give a run folder or a model file"
    if path.suffix == BACKENDS["torch"]:
        return f"finish the run with: sccam train ... --out {model} --resume"
    engine = " --engine" if path.suffix == BACKENDS["tensorrt"] else ""
    return f"export it: sccam export {model} --network {path.stem}{engine}"


def _require(kind: str, manifest: Manifest, path: Path) -> None:
    if manifest.kind != kind:
        raise ModelFileError(
            f"this is a {manifest.kind}, not a {kind}", where=path, fix=f"give the run's {kind}, or the run itself"
        )
