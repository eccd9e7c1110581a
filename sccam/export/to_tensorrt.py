"""An ONNX file becomes a TensorRT engine, through TensorRT's own Python interface, for 10.12 and later and 11 alike.

Networks are strongly typed: the precision is the one written into the ONNX file and no builder flag asks for another,
so that an engine cannot silently be of another precision than its name says. What one version has and another lacks
is found by asking for the attribute, never by the version's name. The engine file is a plain plan, which any tool
reads; what it was built from and for stands in its manifest.

An engine serves the shapes of its buckets (optimisation profiles): each has a smallest, a best and a largest input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sccam.artifacts import replacing
from sccam.errors import BackendUnavailable, ConfigError, ModelFileError
from sccam.runtime.network_onnxruntime import INPUT, read_onnx

Shape = tuple[int, int, int]  # N, H, W


@dataclass(frozen=True, slots=True)
class Bucket:
    """A named range of inputs: kernels are tuned for `best` and work from `smallest` to `largest`."""

    name: str
    smallest: Shape
    best: Shape
    largest: Shape

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.smallest, self.best, self.largest, strict=True):
            if not 0 < low <= middle <= high:
                raise ConfigError(
                    f"bucket {self.name!r} is not smallest <= best <= largest in every axis", where=self.text()
                )

    def text(self) -> str:
        """As `parse_bucket` reads it."""
        return f"{self.name}=" + ":".join("x".join(map(str, s)) for s in (self.smallest, self.best, self.largest))


DEFAULT_BUCKETS = (
    Bucket("small", (1, 32, 32), (8, 256, 320), (32, 320, 320)),
    Bucket("medium", (1, 32, 32), (4, 384, 512), (16, 512, 512)),
    Bucket("large", (1, 32, 32), (1, 1024, 1024), (2, 2048, 2048)),
)


def parse_bucket(text: str) -> Bucket:
    """`NAME=NxHxW:NxHxW:NxHxW`, smallest, best and largest input; or `NAME=NxHxW` for one fixed shape.

    Raises:
        ConfigError: it is not written so, or the three do not ascend.
    """
    match = re.fullmatch(r"([\w-]+)=(\d+x\d+x\d+)(?::(\d+x\d+x\d+):(\d+x\d+x\d+))?", text.strip())
    if not match:
        raise ConfigError(
            f"not a bucket: {text!r}", fix="write NAME=1x32x32:4x384x512:16x512x512 (batch x height x width)"
        )
    name, *shapes = match.groups()
    sizes = [tuple(map(int, shape.split("x"))) for shape in shapes if shape]
    if len(sizes) == 1:
        sizes *= 3
    return Bucket(name, *sizes)  # type: ignore[arg-type]


def build_engine(
    onnx_file: Path,
    buckets: Sequence[Bucket] = DEFAULT_BUCKETS,
    *,
    memory_mb: int | None = None,
    timing_cache: Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    library: Any = None,
) -> bytes:
    """The plan of an ONNX file.

    Args:
        onnx_file: an exported network with one input, `image`.
        buckets: one optimisation profile each, in this order.
        memory_mb: most scratch memory the engine may ask for [MiB]; None for all that the GPU has.
        timing_cache: a file of measured kernel times that is read and written, to build faster the next time; only
            valid for one TensorRT version and GPU.
        on_progress: told (phase, steps done, steps in all), where this TensorRT reports progress.
        library: the module to build with; `tensorrt` by default.

    Raises:
        BackendUnavailable: TensorRT is not installed, or has no strongly typed networks.
        ModelFileError: TensorRT cannot parse the file, or cannot build it for some bucket; with its own words.
    """
    trt = library or tensorrt_library()
    data = read_onnx(onnx_file)
    log = _log_of(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(data):
        said = [parser.get_error(k).desc().strip() for k in range(parser.num_errors)]
        raise ModelFileError(f"TensorRT {trt.__version__} cannot parse it: {'; '.join(said)}", where=onnx_file)
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "TF32"):  # on by default, and 10 bits of mantissa are not what fp32 says
        config.clear_flag(trt.BuilderFlag.TF32)
    if memory_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, memory_mb << 20)
    for bucket in buckets:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *((*shape, 3) for shape in (bucket.smallest, bucket.best, bucket.largest)))
        if config.add_optimization_profile(profile) < 0:
            raise ModelFileError(f"TensorRT refuses the bucket {bucket.text()}", where=onnx_file)
    if on_progress is not None and hasattr(trt, "IProgressMonitor"):
        config.progress_monitor = _progress_monitor(trt, on_progress)
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache.read_bytes() if timing_cache.exists() else b"")
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            raise ModelFileError(
                "the timing cache is of another TensorRT or GPU",
                where=timing_cache,
                fix="give another file for this one",
            )
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = "; ".join(log.errors[-3:]) or "it gave no reason"
        raise ModelFileError(
            f"TensorRT {trt.__version__} could not build an engine: {reason}",
            where=onnx_file,
            fix="try smaller buckets or more memory",
        )
    if cache is not None and timing_cache is not None:
        with replacing(timing_cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(plan)


def _creation_flags(trt: Any) -> int:
    """Strongly typed, always; 10 also wants to hear that the batch is explicit, 11 has forgotten the word."""
    flags = trt.NetworkDefinitionCreationFlag
    if not hasattr(flags, "STRONGLY_TYPED"):
        raise BackendUnavailable(
            f"TensorRT {trt.__version__} has no strongly typed networks", fix="install TensorRT 10.12 or newer"
        )
    value = 1 << int(flags.STRONGLY_TYPED)
    if hasattr(flags, "EXPLICIT_BATCH"):
        value |= 1 << int(flags.EXPLICIT_BATCH)
    return value


def _log_of(trt: Any) -> Any:
    """A logger that keeps what TensorRT says is wrong, for the message of our own error."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message.strip())

    return Log()


def _progress_monitor(trt: Any, told: Callable[[str, int, int], None]) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            told(phase_name, step + 1, self.steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

    return Monitor()


def tensorrt_library() -> Any:
    """The module `tensorrt`.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise BackendUnavailable(
            f"building an engine needs TensorRT: {error}", where="export", fix="pip install tensorrt (10.12 or newer)"
        ) from error
    return tensorrt
