"""A finished run becomes deployable files: each network in each precision, checked against the original.

    OUT/NAME.onnx  NAME.fp16.onnx  NAME.int8.onnx     NAME is cam_net, affinity_net or segmenter
    OUT/NAME...onnx.json                              manifest: inputs, outputs, classes, normalisation, parity
    OUT/NAME...onnx.failed                            what did not pass, and .failed.json with its numbers

A file appears under its name only after it has passed. Images for the comparison and for int8's ranges are the run's
own training images, or any folder's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sccam.artifacts import Manifest, RunFolder, read_json, replacing, write_json, write_manifest
from sccam.data.images import IMAGE_SUFFIXES, read_image
from sccam.data.transforms import pad_to_multiple, resize
from sccam.errors import ConfigError, DataError, ParityError, RunFolderError
from sccam.export.engines import export_engine
from sccam.export.graphs import AffinityGraph, Graph, MapGraph, SegmenterGraph
from sccam.export.parity import Network, Parity, measure_parity
from sccam.export.precision import CALIBRATION_IMAGES, PRECISIONS, to_fp16, to_int8
from sccam.export.to_onnx import INPUT, INPUT_AXES, to_onnx
from sccam.export.to_tensorrt import DEFAULT_BUCKETS, Bucket
from sccam.export.triton import write_triton
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.nets.saved import Network as TorchNetwork
from sccam.nets.saved import load_network
from sccam.runtime.network_onnxruntime import runtime_name, session_of
from sccam.runtime.network_torch import mean_colour
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.structures import ByteArray, TensorSpec

if TYPE_CHECKING:
    import onnx

NETWORKS = ("cam_net", "affinity_net", "segmenter")
PARITY_SHAPES = ((1, 224, 320), (3, 160, 224), (1, 213, 321), (3, 97, 131))  # batch, height, width; two sizes are odd
PARITY_ROUNDS = 2  # batches of each shape
CALIBRATION_SIDE = 320  # [px] longer side of calibration images
PAD_MULTIPLE = 32  # [px]

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How TensorRT engines are built; fields as in `export_engine`."""

    buckets: tuple[Bucket, ...] = DEFAULT_BUCKETS
    memory_mb: int = 4096
    timing_cache: Path | None = None
    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """One file that passed, or that did not."""

    path: Path  # NAME.onnx, or NAME.onnx.failed
    network: str
    precision: str
    parity: Parity


def export_run(
    run: Path,
    *,
    out: Path | None = None,
    networks: Sequence[str] = NETWORKS,
    precisions: Sequence[str] = ("fp32", "fp16"),
    images: Path | None = None,
    labels: bool = False,
    single_scale: bool = False,
    engines: EngineOptions | None = None,
    triton: Path | None = None,
    tell: Tell = print,
) -> list[Exported]:
    """Exports the networks of a finished run.

    Args:
        run: the run folder.
        out: where to write; RUN/export by default.
        networks: some of `NETWORKS`.
        precisions: some of "fp32", "fp16", "int8".
        images: a folder of images to compare and calibrate with; the run's training images by default.
        labels: the segmenter gives label indices instead of logits.
        single_scale: the segmenter runs at scale 1 only.
        engines: build a TensorRT engine from every file, too.
        triton: a model repository to put every file (or its engine) in that passed.
        tell: told of every file in one line.

    Raises:
        ConfigError: an unknown network or precision.
        RunFolderError: no run, or one whose networks are not all trained.
        DataError: no images to compare with.
        ParityError: some file did not pass; those that did are there.
    """
    _known(networks, NETWORKS, "network")
    _known(precisions, PRECISIONS, "precision")
    folder = RunFolder(run)
    state = folder.state()
    if "schema" not in state:
        raise RunFolderError("this is no run", where=run, fix="give the folder that `sccam train` wrote")
    rounds = sorted(folder.path.glob("round*/cam_net.safetensors"), key=lambda path: int(path.parent.name[5:]))
    files = {
        "cam_net": rounds[-1] if rounds else folder.classifier(0),
        "affinity_net": folder.affinity_net,
        "segmenter": folder.segmenter,
    }
    if missing := [name for name in networks if not files[name].exists()]:
        raise RunFolderError(
            f"the run has no {missing[0]} yet",
            where=files[missing[0]],
            why=f"its status is {state.get('status')!r}",
            fix=f"finish it with: sccam train ... --out {run} --resume, or export what is there with --network",
        )
    pictures = sample_images(images or _training_images(folder))
    out = out or folder / "export"
    exported: list[Exported] = []
    for name in networks:
        net, manifest = load_network(files[name], Compute.resolve("cpu", "fp32"))
        options = {"labels": labels, "multi_scale": not single_scale} if name == "segmenter" else {}
        exported += export_network(
            net,
            manifest,
            out / name,
            pictures,
            precisions,
            source=files[name],
            tell=tell,
            engines=engines,
            **options,
        )
    if triton is not None:
        for item in exported:
            if item.parity.passed and (item.path.suffix == ".engine") == (engines is not None):
                tell(f"{write_triton(item.path, triton)}: for Triton")
    refuse_failed(exported)
    return exported


def export_network(
    net: TorchNetwork,
    manifest: Manifest,
    stem: Path,
    pictures: Sequence[ByteArray],
    precisions: Sequence[str],
    *,
    source: Path | None,
    tell: Tell = print,
    engines: EngineOptions | None = None,
    **segmenter: bool,
) -> list[Exported]:
    """One network in each precision; a file that fails is left as NAME.failed and told of, not raised.

    Args:
        net, manifest: from `load_network`, or built here.
        stem: path of the files without their suffix.
        pictures: images u8 [H W 3] to compare with; int8 needs `CALIBRATION_IMAGES` of them.
        source: the weight file, for the manifest; None for a network that has none.
        segmenter: `labels` and `multi_scale` of `SegmenterGraph`.
    """
    graph = graph_of(net, manifest, **segmenter)
    base = to_onnx(graph, {"kind": manifest.kind, "classes": "\n".join(manifest.classes)})
    batches = parity_batches(pictures)
    reference, fp32 = torch_network(graph), session_of(base.SerializeToString())
    facts: dict[str, Any] = {
        name: getattr(manifest, name) for name in ("kind", "backbone", "classes", "mean", "std", "stride")
    }
    facts["made_from"] = {
        **manifest.made_from,
        "source": None if source is None else {"file": source.name, "sha256": manifest.sha256},
        "pad_multiple": PAD_MULTIPLE,
        **segmenter,
    }
    facts |= {"backend": "onnx", "inputs": (TensorSpec(INPUT, "uint8", INPUT_AXES),)}
    exported = []

    def export(precision: str, flavour: str = "onnxruntime") -> Exported:
        model = in_precision(base, precision, pictures, net, flavour)
        suffix = ("" if precision == "fp32" else f".{precision}") + (".tensorrt" if flavour == "tensorrt" else "")
        path = stem.with_name(f"{stem.name}{suffix}.onnx")
        data = model.SerializeToString()
        parity = measure_parity(
            reference,
            session_of(data, where=path.name),
            batches,
            precision,
            runtime=runtime_name(),
            # The flavour for TensorRT is judged for speed by its engine; a CPU has no fast code for it.
            baseline=fp32 if precision == "int8" and flavour == "onnxruntime" else None,
        )
        path = _write(
            path,
            data,
            {**facts, "precision": precision, "outputs": output_specs(model), "parity": parity.as_dict()},
            parity,
        )
        tell(f"{path.name}: {parity.line()}")
        return Exported(path, manifest.kind, precision, parity)

    for precision in precisions:
        exported.append(export(precision))
    if engines is not None:
        fp32_file = stem.with_name(f"{stem.name}.onnx")
        if "fp32" not in precisions:
            exported.append(export("fp32"))
        for precision in precisions:
            item = export(precision, "tensorrt") if precision == "int8" else _of(exported, precision)
            if not item.parity.passed:
                continue
            path, parity = export_engine(
                item.path, fp32_file, batches, **{f.name: getattr(engines, f.name) for f in fields(engines)}
            )
            tell(f"{path.name}: {parity.line() if parity else 'kept, it fits this machine'}")
            if parity is not None:
                exported.append(Exported(path, manifest.kind, precision, parity))
    return exported


def _of(exported: Iterable[Exported], precision: str) -> Exported:
    return next(item for item in exported if item.precision == precision)


def refuse_failed(exported: Iterable[Exported]) -> None:
    """Raises ParityError if some file did not pass."""
    failed = [item for item in exported if not item.parity.passed]
    if failed:
        listed = "\n".join(f"    {item.path.name}: {'; '.join(item.parity.failures)}" for item in failed)
        raise ParityError(
            f"{len(failed)} exported files do not compute what they should\n{listed}",
            where=failed[0].path.parent,
            why="the precision is too low for this network" if failed[0].precision != "fp32" else None,
            fix="leave these precisions out with --precision; the files that passed are there",
        )


def graph_of(net: TorchNetwork, manifest: Manifest, **segmenter: bool) -> Graph:
    """The graph that is exported for a network."""
    if isinstance(net, CamNet):
        return MapGraph(net)
    if isinstance(net, AffinityNet):
        return AffinityGraph(net, neighbour_offsets(manifest.made_from["radius"]))
    assert isinstance(net, DeepLab)
    return SegmenterGraph(net, **segmenter)


def in_precision(
    base: onnx.ModelProto,
    precision: str,
    pictures: Sequence[ByteArray],
    net: TorchNetwork,
    flavour: str = "onnxruntime",
) -> onnx.ModelProto:
    """The fp32 model in another precision; int8 for the runtime that `flavour` names."""
    if precision == "fp32":
        return base
    if precision == "fp16":
        return to_fp16(base)
    fill = mean_colour(net.backbone)
    small = (_with_longer_side(picture, CALIBRATION_SIDE) for picture in pictures[:CALIBRATION_IMAGES])
    return to_int8(base, [pad_to_multiple(picture, PAD_MULTIPLE, fill)[None] for picture in small], flavour=flavour)


def torch_network(graph: Graph) -> Network:
    """The graph in torch, fp32, as the parity gate calls it."""
    graph.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def network(images: ByteArray) -> dict[str, np.ndarray]:
        found = graph(torch.from_numpy(np.ascontiguousarray(images)))
        values = found if isinstance(found, tuple) else (found,)
        return {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}

    return network


def parity_batches(pictures: Sequence[ByteArray]) -> list[ByteArray]:
    """Batches of every shape of `PARITY_SHAPES`, drawn from the pictures in turn."""
    batches, turn = [], 0
    for _ in range(PARITY_ROUNDS):
        for count, height, width in PARITY_SHAPES:
            chosen = [pictures[(turn + k) % len(pictures)] for k in range(count)]
            turn += count
            batches.append(np.stack([resize(picture, (height, width)) for picture in chosen]))
    return batches


def sample_images(files: Iterable[Path] | Path) -> list[ByteArray]:
    """Up to `CALIBRATION_IMAGES` images, spread evenly over a folder or list.

    Raises:
        DataError: there is none.
    """
    if isinstance(files, Path):
        found = sorted(path for path in files.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError("no images", where=files, fix="give a folder of images like those the network will see")
        files = found
    files = list(files)
    step = max(1, len(files) // CALIBRATION_IMAGES)
    return [read_image(path) for path in files[::step][:CALIBRATION_IMAGES]]


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Names, types and axes of a model's outputs."""
    from onnx.helper import tensor_dtype_to_np_dtype

    specs = []
    for output in model.graph.output:
        kind = output.type.tensor_type
        shape = tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
        specs.append(TensorSpec(output.name, tensor_dtype_to_np_dtype(kind.elem_type).name, shape))
    return tuple(specs)


def _write(path: Path, data: bytes, facts: dict[str, Any], parity: Parity) -> Path:
    """The file under its name with its manifest if it passed, under NAME.failed with its numbers if not."""
    failed = path.with_name(path.name + ".failed")
    target = path if parity.passed else failed
    with replacing(target) as temporary:
        temporary.write_bytes(data)
    if parity.passed:
        write_manifest(path, **facts)
        failed.unlink(missing_ok=True)
        failed.with_name(failed.name + ".json").unlink(missing_ok=True)
    else:
        write_json(failed.with_name(failed.name + ".json"), parity.as_dict())
    return target


def _training_images(folder: RunFolder) -> list[Path] | Path:
    """The run's training images; if they are gone, drawn ones."""
    from sccam.data import open_dataset
    from sccam.recipe import load_config

    data = read_json(folder / "data.json")
    settings = load_config(str(folder / "config.toml"), []).data
    try:
        return list(open_dataset(data["root"], **asdict(settings)).train.paths)
    except DataError as error:
        raise DataError(
            f"the run's own images cannot be read: {error.what}",
            where=data["root"],
            fix="give other images with --images FOLDER",
        ) from error


def _with_longer_side(picture: ByteArray, side: int) -> ByteArray:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    return picture if scale >= 1 else resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))


def _known(asked: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in asked:
        if name not in known:
            raise ConfigError(f"no {what} {name!r}", fix=f"choose from {', '.join(known)}")
