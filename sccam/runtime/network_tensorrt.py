"""The TensorRT row of the network backends: an engine file in, a function of images out. Loads no PyTorch.

An engine runs code of whoever built it, on the GPU and TensorRT version that it was built for. So its manifest is
compared with the file and with this machine before a byte of it is deserialised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import Manifest, read_manifest
from sccam.errors import BackendUnavailable, ModelFileError, ShapeError
from sccam.runtime.gpu import GpuFacts, gpu_facts
from sccam.structures import ByteArray

INPUT = "image"
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
    context = engine.create_execution_context()
    stream = cupy.cuda.Stream(non_blocking=True)
    names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
    outputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]
    ranges = [engine.get_tensor_profile_shape(INPUT, k) for k in range(engine.num_optimization_profiles)]

    def network(images: ByteArray) -> dict[str, np.ndarray]:
        shape = tuple(images.shape)
        profile = _profile_for(shape, ranges)
        with stream:
            if not context.set_optimization_profile_async(profile, stream.ptr):
                raise ModelFileError(f"TensorRT cannot switch to profile {profile}", where=path)
            if not context.set_input_shape(INPUT, shape):
                raise ShapeError(f"the engine does not take images of shape {shape}", where=path)
            held = {INPUT: cupy.asarray(np.ascontiguousarray(images))}
            for name in outputs:
                held[name] = cupy.empty(
                    tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))
                )
            for name, array in held.items():
                context.set_tensor_address(name, array.data.ptr)
            if not context.execute_async_v3(stream.ptr):
                raise ModelFileError("TensorRT could not run the engine", where=path)
            found = {name: cupy.asnumpy(held[name], stream=stream) for name in outputs}
        stream.synchronize()
        return found

    return network


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
