"""A trained segmenter behind one signature, whatever file it lies in and whatever runs it.

    torch         RUN/segmenter.safetensors
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

from sccam.artifacts import Manifest, read_manifest
from sccam.data.transforms import pad_to_multiple
from sccam.errors import ConfigError, ModelFileError, NumericError
from sccam.stages.walk import upsample
from sccam.structures import ByteArray, FloatArray

BACKENDS = {"torch": ".safetensors", "onnxruntime": ".onnx", "tensorrt": ".engine"}
"""Name -> suffix of the files that it runs."""

PAD_MULTIPLE = 32  # [px], where a manifest names none

Network = Callable[[ByteArray], Mapping[str, np.ndarray]]
"""images u8 [N H W 3] -> outputs by name."""


@dataclass(frozen=True, slots=True)
class Segmenter:
    """An opened segmenter.

    Attributes:
        run: images u8 [N H W 3] with sides that are multiples of `pad_multiple` -> `logits` or `labels`.
        manifest: of the file: classes, mean colour, stride.
        backend: a name of `BACKENDS`.
        path: the file.
    """

    run: Network
    manifest: Manifest
    backend: str
    path: Path

    @property
    def classes(self) -> tuple[str, ...]:
        """Without background."""
        return self.manifest.classes

    def padded(self, image: ByteArray) -> ByteArray:
        """The image [H W 3] as the network takes it: padded on the right and below in the mean colour."""
        red, green, blue = (round(255 * value) for value in self.manifest.mean)
        multiple = int(self.manifest.made_from.get("pad_multiple", PAD_MULTIPLE))
        return pad_to_multiple(image, multiple, (red, green, blue))

    def logits(self, outputs: Mapping[str, np.ndarray], n: int, size: tuple[int, int]) -> FloatArray:
        """Logits f32 [C+1 H W] of image n of a batch at its own size.

        Raises:
            ModelFileError: the file was exported with label indices only.
            NumericError: a logit is NaN or infinite.
        """
        if "logits" not in outputs:
            raise ModelFileError("the file gives labels, not logits", where=self.path, fix="export it without --labels")
        grid = outputs["logits"][n]
        if not np.isfinite(grid).all():  # the arg-max of NaN would be a label like any other
            raise NumericError("the network gave NaN or infinity", where=self.path, fix="use fp32, or another file")
        return upsample(grid, size, self.manifest.stride)

    def labels(self, outputs: Mapping[str, np.ndarray], n: int, size: tuple[int, int]) -> ByteArray:
        """Label indices u8 [H W] of image n of a batch: 0 background, c + 1 class c."""
        if "labels" in outputs:
            return np.ascontiguousarray(outputs["labels"][n, : size[0], : size[1]])
        return self.logits(outputs, n, size).argmax(axis=0).astype(np.uint8)


def open_segmenter(model: Path | str, backend: str = "auto", *, device: str = "auto", threads: int = 0) -> Segmenter:
    """The segmenter of a run folder or a file.

    Args:
        model: a run, or a .safetensors, .onnx or .engine file with its manifest beside it.
        backend: "auto" or one of `BACKENDS`.
        device: of torch: "auto", "cpu" or "cuda".
        threads: of ONNX Runtime; 0 takes all cores.

    Raises:
        ConfigError: an unknown backend, or one that does not run this kind of file.
        ModelFileError: no such file, or it is another network than a segmenter.
        RunFolderError: the manifest is missing, or the file is not the one that it describes.
        BackendUnavailable: a library is not installed.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ConfigError(f"no backend {backend!r}", fix=f"choose from auto, {', '.join(BACKENDS)}")
    path = _file_of(Path(model), backend)
    name = next((name for name, suffix in BACKENDS.items() if path.suffix == suffix), None)
    if name is None or backend not in ("auto", name):
        raise ConfigError(
            f"{'nothing here' if backend == 'auto' else backend} runs {path.name}",
            where=path,
            fix="; ".join(f"{known} runs *{suffix}" for known, suffix in BACKENDS.items()),
        )
    if not path.is_file():
        raise ModelFileError("no such file", where=path, fix="give a run folder or a model file")
    if name == "torch":
        from sccam.nets.compute import Compute
        from sccam.nets.deeplab import DeepLab
        from sccam.nets.saved import load_network
        from sccam.runtime.network_torch import segmenter_logits

        compute = Compute.resolve(device, "auto")
        net, manifest = load_network(path, compute)
        _require_segmenter(manifest, path)
        assert isinstance(net, DeepLab)
        return Segmenter(segmenter_logits(net, compute), manifest, name, path)
    manifest = read_manifest(path)
    _require_segmenter(manifest, path)
    if name == "onnxruntime":
        from sccam.runtime.network_onnxruntime import open_onnx

        return Segmenter(open_onnx(path, threads=threads), manifest, name, path)
    from sccam.runtime.network_tensorrt import open_engine

    return Segmenter(open_engine(path), manifest, name, path)


def _file_of(model: Path, backend: str) -> Path:
    if not model.is_dir():
        return model
    exported = model / "export" / "segmenter.onnx"
    if backend == "tensorrt":
        return exported.with_suffix(".engine")
    here = exported.is_file() and importlib.util.find_spec("onnxruntime") is not None
    if backend == "onnxruntime" or (backend == "auto" and here):
        return exported
    return model / "segmenter.safetensors"


def _require_segmenter(manifest: Manifest, path: Path) -> None:
    if manifest.kind != "segmenter":
        raise ModelFileError(
            f"this is a {manifest.kind}, not a segmenter", where=path, fix="give the run's segmenter, or the run itself"
        )
