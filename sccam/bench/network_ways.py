"""The ways to run one network: PyTorch as it comes and tuned, and the runtimes that read its exported files.

All take images u8 [N H W 3] and give outputs by name, both in memory, so copies to a GPU and back are in every time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from sccam.artifacts import Manifest, write_manifest
from sccam.export.graphs import Graph
from sccam.export.to_tensorrt import Bucket, build_engine, tensorrt_library
from sccam.runtime.gpu import gpu_facts
from sccam.runtime.network_onnxruntime import CUDA_OPTIONS, has_cuda, session_of
from sccam.runtime.network_tensorrt import engine_facts, open_engine
from sccam.structures import ByteArray

Outputs = dict[str, np.ndarray]
Run = Callable[[ByteArray], Outputs]


@dataclass(frozen=True, slots=True)
class Way:
    """How PyTorch runs a network; the first of a device is the eager baseline, the others are tuned."""

    name: str
    precision: str = "fp32"
    channels_last: bool = True
    compiled: bool = False
    graph: bool = False  # a CUDA graph


WAYS = {
    "cpu": (
        Way("eager", channels_last=False),
        Way("eager, channels_last"),
        Way("eager, channels_last, bf16", "bf16"),
        Way("compiled, channels_last", compiled=True),
    ),
    "cuda": (
        Way("eager", channels_last=False),
        Way("eager, channels_last, bf16", "bf16"),
        Way("eager, channels_last, fp16", "fp16"),
        Way("compiled, fp16", "fp16", compiled=True),
        Way("eager, CUDA graph, fp16", "fp16", graph=True),
    ),
}


def in_torch(graph: Graph, device: str, way: Way) -> Run:
    """The graph that is exported, run by PyTorch."""
    graph.to(device).eval()
    if way.channels_last:
        graph.to(memory_format=torch.channels_last)
    else:  # an image's own layout would make all that follows channels_last
        graph.normalised = lambda image: Graph.normalised(graph, image).contiguous()  # type: ignore[method-assign]
    model = torch.compile(graph) if way.compiled else graph
    dtype = torch.float16 if way.precision == "fp16" else torch.bfloat16

    def forward(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.autocast(device, dtype=dtype, enabled=way.precision != "fp32", cache_enabled=not way.graph):
            found = model(images)
        return found if isinstance(found, tuple) else (found,)

    run = _captured(forward) if way.graph else forward

    @torch.inference_mode()
    def network(images: ByteArray) -> Outputs:
        found = run(torch.from_numpy(images).to(device))
        return {name: value.float().cpu().numpy() for name, value in zip(graph.outputs, found, strict=True)}

    return network


def _captured(forward: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """`forward` as one CUDA graph for each shape."""
    graphs: dict[torch.Size, tuple[torch.cuda.CUDAGraph, torch.Tensor, tuple[torch.Tensor, ...]]] = {}

    def replay(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if images.shape not in graphs:
            static, side = images.clone(), torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what only the first runs do must not be captured
                for _ in range(3):
                    forward(static)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outputs = forward(static)
            graphs[images.shape] = graph, static, outputs
        graph, static, outputs = graphs[images.shape]
        static.copy_(images)
        graph.replay()
        return outputs

    return replay


def runtimes(
    files: dict[str, Path], shape: tuple[int, ...], device: str, manifest: Manifest
) -> Iterator[tuple[str, Run, str]]:
    """(name, network, precision) of the runtimes that are installed."""
    if device == "cpu" or has_cuda():
        for precision, path in files.items():
            yield (
                f"onnxruntime {precision}",
                session_of(path.read_bytes(), device, where=path),
                precision,
            )
    if device == "cuda" and has_cuda():
        data, options = files["fp16"].read_bytes(), {**CUDA_OPTIONS, "prefer_nhwc": "1"}
        yield "onnxruntime fp16, NHWC", session_of(data, device, where=files["fp16"], cuda_options=options), "fp16"
    if device == "cpu" and find_spec("openvino"):
        yield "openvino fp32", in_openvino(files["fp32"], shape, "f32"), "fp32"
        yield "openvino bf16", in_openvino(files["fp32"], shape, "bf16"), "bf16"
        yield "openvino int8", in_openvino(files["int8"], shape, "f32"), "int8"
    if device == "cuda" and find_spec("tensorrt"):
        yield "tensorrt fp16", in_tensorrt(files["fp16"], shape, manifest), "fp16"


def in_openvino(path: Path, shape: tuple[int, ...], precision: str) -> Run:
    """The file for one shape of input; what is not quantised runs in `precision`."""
    import openvino

    model = openvino.Core().read_model(path)
    model.reshape(list(shape))
    compiled = openvino.compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = compiled.create_infer_request()
    names = [next(iter(output.get_names())) for output in compiled.outputs]

    def network(images: ByteArray) -> Outputs:
        request.infer([images])
        return {name: request.get_output_tensor(k).data.copy() for k, name in enumerate(names)}

    return network


def in_tensorrt(path: Path, shape: tuple[int, ...], manifest: Manifest) -> Run:
    """An engine for one shape of input."""
    best = (shape[0], shape[1], shape[2])
    engine = path.with_suffix(".engine")
    engine.write_bytes(build_engine(path, [Bucket("bench", best, best, best)]))
    write_manifest(
        engine, **{f: getattr(manifest, f) for f in ("kind", "backbone", "classes", "mean", "std", "stride")},
        made_from=engine_facts(tensorrt_library().__version__, gpu_facts()), backend="tensorrt",
    )  # fmt: skip
    return open_engine(engine)
