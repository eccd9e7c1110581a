"""One network becomes one file for each precision, checked against the original before it gets its name.

NAME.onnx  NAME.fp16.onnx  NAME.int8.onnx     what passed, each with its manifest NAME...onnx.json
NAME...onnx.failed                            what did not, with its numbers in .failed.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sccam.artifacts import Manifest
from sccam.data.transforms import pad_to_multiple, resize
from sccam.export.engines import export_engine
from sccam.export.graphs import AffinityGraph, BoundaryGraph, Graph, MapGraph, SegmenterGraph
from sccam.export.int8 import CALIBRATION_IMAGES, to_int8
from sccam.export.parity import Network, Parity, measure_parity
from sccam.export.precision import to_fp16
from sccam.export.publish import publish
from sccam.export.to_onnx import INPUT, INPUT_AXES, to_onnx
from sccam.export.to_tensorrt import DEFAULT_BUCKETS, Bucket
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.boundary_net import BoundaryNet
from sccam.nets.cam_net import CamNet
from sccam.nets.deeplab import DeepLab
from sccam.nets.saved import Network as TorchNetwork
from sccam.runtime.network_onnxruntime import runtime_name, session_of
from sccam.runtime.network_torch import mean_colour
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.structures import ByteArray, TensorSpec

if TYPE_CHECKING:
    import onnx

PARITY_SHAPES = ((1, 224, 320), (3, 160, 224), (1, 213, 321), (3, 97, 131))  # batch, height, width; two sizes are odd
PARITY_ROUNDS = 2  # batches of each shape
PARITY_IMAGES = PARITY_ROUNDS * sum(batch for batch, _, _ in PARITY_SHAPES)
CALIBRATION_SIDE = 320  # [px] longer side of calibration images
PAD_MULTIPLE = 32  # [px]

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How TensorRT engines are built; fields as in `export_engine`."""

    buckets: tuple[Bucket, ...] = DEFAULT_BUCKETS
    memory_mb: int | None = None
    timing_cache: Path | None = None
    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class Exported:
    """One file that passed, or that did not."""

    path: Path  # NAME.onnx, or NAME.onnx.failed
    network: str
    precision: str
    parity: Parity


def export_network(
    net: TorchNetwork,
    manifest: Manifest,
    stem: Path,
    pictures: Sequence[ByteArray],
    precisions: Sequence[str],
    *,
    source: Path | None,
    pictures_from: str = "given",
    tell: Tell = print,
    engines: EngineOptions | None = None,
    **segmenter: int,
) -> list[Exported]:
    """One network in each precision; a file that fails is left as NAME.failed and told of, not raised.

    Args:
        net, manifest: from `load_network`, or built here.
        stem: path of the files without their suffix.
        pictures: images u8 [H W 3] to compare with; int8 needs `CALIBRATION_IMAGES` of them.
        source: the weight file, for the manifest; None for a network that has none.
        pictures_from: "training", "given" or "drawn", for the manifest.
        segmenter: `labels`, `multi_scale` and `pamr` of `SegmenterGraph`.
    """
    graph = graph_of(net, manifest, **segmenter)
    base = to_onnx(graph, {"kind": manifest.kind, "classes": "\n".join(manifest.classes)})
    # Where there are enough images, none that int8's ranges were taken from.
    batches = parity_batches(pictures[CALIBRATION_IMAGES:] or pictures)
    reference, fp32 = torch_network(graph), session_of(base.SerializeToString())
    facts: dict[str, Any] = {
        name: getattr(manifest, name) for name in ("kind", "backbone", "classes", "mean", "std", "stride")
    }
    facts["made_from"] = {
        **manifest.made_from,
        "source": None if source is None else {"file": source.name, "sha256": manifest.sha256},
        "pad_multiple": PAD_MULTIPLE,
        "compared_on": pictures_from,
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
        path = publish(
            path,
            data,
            {**facts, "precision": precision, "outputs": output_specs(model)},
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
            if precision == "int8":
                exported.append(export(precision, "tensorrt"))
            item = [item for item in exported if item.precision == precision][-1]
            if not item.parity.passed:
                continue
            path, parity = export_engine(
                item.path, fp32_file, batches, **{f.name: getattr(engines, f.name) for f in fields(engines)}
            )
            tell(f"{path.name}: {parity.line() if parity else 'kept, it fits this machine'}")
            if parity is not None:
                exported.append(Exported(path, manifest.kind, precision, parity))
    return exported


def graph_of(net: TorchNetwork, manifest: Manifest, **segmenter: int) -> Graph:
    """The graph that is exported for a network."""
    if isinstance(net, CamNet):
        return MapGraph(net)
    if isinstance(net, BoundaryNet):
        return BoundaryGraph(net)
    if isinstance(net, AffinityNet):
        return AffinityGraph(net, neighbour_offsets(manifest.made_from["radius"]))
    assert isinstance(net, DeepLab)
    return SegmenterGraph(net, **segmenter)  # type: ignore[arg-type]


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


def output_specs(model: onnx.ModelProto) -> tuple[TensorSpec, ...]:
    """Names, types and axes of a model's outputs."""
    from onnx.helper import tensor_dtype_to_np_dtype

    specs = []
    for output in model.graph.output:
        kind = output.type.tensor_type
        shape = tuple(size.dim_param or size.dim_value for size in kind.shape.dim)
        specs.append(TensorSpec(output.name, tensor_dtype_to_np_dtype(kind.elem_type).name, shape))
    return tuple(specs)


def _with_longer_side(picture: ByteArray, side: int) -> ByteArray:
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    return picture if scale >= 1 else resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))))
