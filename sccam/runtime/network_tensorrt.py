"""The TensorRT row of the network backends: an engine file in, a function of images out. Loads no PyTorch.

An engine runs code of whoever built it, on the GPU and TensorRT version that it was built for. So its manifest is
compared with the file and with this machine before a byte of it is deserialised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import Manifest, read_manifest
from sccam.errors import BackendUnavailable, ModelFileError, ShapeError
from sccam.runtime.gpu import GpuFacts, gpu_facts
from sccam.structures import ByteArray

INPUT = "image"
GRAPH_AFTER = 3  # batches of a shape, before a CUDA graph is captured for it
MOST_GRAPHS = 16  # each holds a context and its outputs on the GPU; other shapes run without
TensorRtNetwork = Callable[[ByteArray], dict[str, np.ndarray]]
"""images u8 [N H W 3] -> outputs by name."""


def check_engine(path: Path, version: str, facts: GpuFacts) -> Manifest:
    """The manifest of an engine that was built for this TensorRT and this GPU.

    Args:
        path: the engine file.
        version: of the TensorRT that would run it.
        facts: of the GPU that would run it.

    Raises:
        ModelFileError: something differs; every difference is named. Nothing was deserialised.
        RunFolderError: there is no manifest, or the file is not the one that it speaks of.
    """
    manifest = read_manifest(path)
    if not path.is_file():
        raise ModelFileError("no such engine", where=path)
    if manifest.backend != "tensorrt":
        raise ModelFileError(f"its manifest speaks of a file for {manifest.backend}, not of an engine", where=path)
    built = manifest.made_from
    here = {"tensorrt": version, "gpu": facts.gpu, "compute_capability": facts.compute_capability}
    differing = [f"    {name}: built for {built.get(name)}, here {value}" for name, value in here.items()
                 if built.get(name) != value]  # fmt: skip
    if differing:
        raise ModelFileError(
            "the engine was built for another machine; it was not opened\n" + "\n".join(differing),
            where=path,
            why="engines belong to one TensorRT version and one kind of GPU",
            fix=f"build it here from {built.get('onnx', 'its ONNX file')}: sccam export ... --rebuild",
        )
    return manifest


def open_engine(
    path: Path, *, library: Any = None, arrays: Any = None, facts: GpuFacts | None = None
) -> TensorRtNetwork:
    """A function of images; engine and buffers live as long as the function.

    Args:
        path: an engine file with its manifest.
        library, arrays: the modules `tensorrt` and `cupy` by default.
        facts: of the GPU; asked of the driver by default.

    Raises:
        ModelFileError: see `check_engine`; or TensorRT cannot read the plan.
        BackendUnavailable: TensorRT or CuPy is not installed, or there is no GPU.
    """
    trt, cupy = library or _tensorrt(), arrays or _cupy()
    check_engine(path, trt.__version__, facts or gpu_facts())
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise ModelFileError(f"TensorRT {trt.__version__} cannot read the plan", where=path, fix="build it again")
    return _Engine(path, engine, trt, cupy)


class _Engine:
    """Runs batches of any shape that a profile holds; the shapes that come often, as CUDA graphs.

    A graph belongs to one shape and the buffers that it was captured with, so each has a context and buffers of its
    own. All run on one stream, one after the other, and share the memory of the activations.
    """

    def __init__(self, path: Path, engine: Any, trt: Any, cupy: Any):
        self._path, self._engine, self._trt, self._cupy = path, engine, trt, cupy
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._activations = cupy.cuda.alloc(engine.device_memory_size_v2)
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        self._outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
        profiles = range(engine.num_optimization_profiles)
        self._ranges = [engine.get_tensor_profile_shape(INPUT, k) for k in profiles]
        self._any_shape = self._new_context()
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._captured: dict[tuple[int, ...], _Captured] = {}

    def __call__(self, images: ByteArray) -> dict[str, np.ndarray]:
        images = np.ascontiguousarray(images)
        self._seen[images.shape] += 1
        with self._stream:
            captured = self._captured.get(images.shape)
            if captured is None and self._seen[images.shape] == GRAPH_AFTER and len(self._captured) < MOST_GRAPHS:
                captured = self._captured[images.shape] = self._capture(images)
            if captured is None or captured.graph is None:
                held = self._bind(self._any_shape, images)
                self._enqueue(self._any_shape)
            else:
                held = captured.held
                held[INPUT].set(images, stream=self._stream)
                captured.graph.launch(stream=self._stream)
            found = {name: self._cupy.asnumpy(held[name], stream=self._stream) for name in self._outputs}
        self._stream.synchronize()
        return found

    def _new_context(self) -> Any:
        context = self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        context.set_device_memory(self._activations.ptr, self._engine.device_memory_size_v2)
        return context

    def _bind(self, context: Any, images: ByteArray) -> dict[str, Any]:
        """Input and output arrays on the GPU, known to the context."""
        profile = _profile_for(images.shape, self._ranges)
        if not context.set_optimization_profile_async(profile, self._stream.ptr):
            raise ModelFileError(f"TensorRT cannot switch to profile {profile}", where=self._path)
        if not context.set_input_shape(INPUT, images.shape):
            raise ShapeError(f"the engine does not take images of shape {images.shape}", where=self._path)
        held = {INPUT: self._cupy.asarray(images)}
        for name in self._outputs:
            shape, dtype = tuple(context.get_tensor_shape(name)), self._trt.nptype(self._engine.get_tensor_dtype(name))
            held[name] = self._cupy.empty(shape, dtype)
        for name, array in held.items():
            context.set_tensor_address(name, array.data.ptr)
        return held

    def _enqueue(self, context: Any) -> None:
        if not context.execute_async_v3(self._stream.ptr):
            raise ModelFileError("TensorRT could not run the engine", where=self._path)

    def _capture(self, images: ByteArray) -> _Captured:
        context = self._new_context()
        held = self._bind(context, images)
        self._enqueue(context)  # what a new shape needs once must not become part of the graph
        self._stream.synchronize()
        graph = None
        self._stream.begin_capture()
        try:
            self._enqueue(context)
        except ModelFileError:  # an engine may hold steps that no graph takes
            with suppress(Exception):  # the capture is broken, and says so once more
                self._stream.end_capture()
        else:
            graph = self._stream.end_capture()
        return _Captured(context, held, graph)


@dataclass(frozen=True, slots=True)
class _Captured:
    context: Any  # lives as long as its graph
    held: dict[str, Any]
    graph: Any  # None where the engine cannot be captured


def engine_facts(version: str, facts: GpuFacts) -> dict[str, str]:
    """What an engine belongs to, for its manifest."""
    return {"tensorrt": version, **asdict(facts)}


def _profile_for(shape: tuple[int, ...], ranges: list[Any]) -> int:
    """The profile whose best shape is nearest among those that hold `shape`."""
    fitting = [
        (abs(int(np.prod(best)) - int(np.prod(shape))), k)
        for k, (low, best, high) in enumerate(ranges)
        if all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
    ]
    if not fitting:
        known = "; ".join(f"{tuple(low)} to {tuple(high)}" for low, _, high in ranges)
        raise ShapeError(
            f"no bucket of the engine holds images of shape {shape}", why=f"its buckets go from {known}",
            fix="build the engine with a bucket for this size",
        )  # fmt: skip
    return min(fitting)[1]


def _tensorrt() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise BackendUnavailable(
            f"running an engine needs TensorRT: {error}", fix="pip install tensorrt (10.12 or newer)"
        ) from error
    return tensorrt


def _cupy() -> Any:
    try:
        import cupy
    except ImportError as error:
        raise BackendUnavailable(
            f"running an engine needs CuPy: {error}", fix="pip install cupy-cuda13x (or cupy-cuda12x), as your driver"
        ) from error
    return cupy
