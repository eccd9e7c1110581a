"""An exported ONNX file becomes a checked TensorRT engine beside it: NAME.engine and its manifest.

The engine is opened and compared, on the same images, with the fp32 ONNX file in ONNX Runtime, which has itself been
compared with torch; int8 is also timed against an engine of the fp32 file. It appears under its name only after it
has passed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from sccam.artifacts import read_manifest, write_manifest
from sccam.errors import ModelFileError
from sccam.export.parity import Network, Parity, measure_parity
from sccam.export.publish import publish
from sccam.export.to_tensorrt import DEFAULT_BUCKETS, Bucket, build_engine, tensorrt_library
from sccam.runtime.gpu import GpuFacts, gpu_facts
from sccam.runtime.network_onnxruntime import open_onnx
from sccam.runtime.network_tensorrt import check_engine, engine_facts, open_engine
from sccam.structures import ByteArray


def engine_path(onnx_file: Path) -> Path:
    """NAME.onnx -> NAME.engine; NAME.fp16.onnx -> NAME.fp16.engine; NAME.int8.tensorrt.onnx -> NAME.int8.engine."""
    return onnx_file.with_name(onnx_file.name.removesuffix(".onnx").removesuffix(".tensorrt") + ".engine")


def export_engine(
    onnx_file: Path,
    reference_file: Path,
    batches: Sequence[ByteArray],
    *,
    buckets: Sequence[Bucket] = DEFAULT_BUCKETS,
    memory_mb: int | None = None,
    timing_cache: Path | None = None,
    rebuild: bool = False,
    on_progress: Callable[[str, int, int], None] | None = None,
    library: Any = None,
    arrays: Any = None,
    facts: GpuFacts | None = None,
) -> tuple[Path, Parity | None]:
    """Builds and checks the engine of one ONNX file; an engine that is there and fits is kept.

    Args:
        onnx_file: the file to build from, in the engine's precision.
        reference_file: the same network in fp32.
        batches: images u8 [N H W 3] to compare on; those that no bucket holds are left out.
        buckets, memory_mb, timing_cache, on_progress, library: as in `build_engine`.
        rebuild: build again, whatever is there.
        arrays, facts: as in `open_engine`.

    Returns:
        The file (NAME.engine, or NAME.engine.failed) and its parity; None where a fitting engine was kept.

    Raises:
        ModelFileError: an engine is there that was built for another machine or from another file, and `rebuild` is
            not set; or TensorRT cannot build.
        BackendUnavailable: TensorRT, CuPy or a GPU is missing.
    """
    library = library or tensorrt_library()
    facts = facts or gpu_facts()
    source = read_manifest(onnx_file)
    path = engine_path(onnx_file)
    ranges = {b.name: {"smallest": [*b.smallest], "best": [*b.best], "largest": [*b.largest]} for b in buckets}
    if path.exists() and not rebuild:
        kept = check_engine(path, library.__version__, facts)
        if kept.made_from.get("onnx_sha256") != source.sha256:
            raise ModelFileError(
                f"the engine was built from another {onnx_file.name}", where=path, fix="build it again with --rebuild"
            )
        if kept.made_from.get("buckets") != ranges:
            raise ModelFileError(
                f"the engine was built for other buckets: {json.dumps(kept.made_from.get('buckets'))}",
                where=path,
                fix="build it again with --rebuild, or ask for the same buckets",
            )
        return path, None
    fitting = [batch for batch in batches if any(_holds(bucket, batch) for bucket in buckets)]
    if not fitting:
        raise ModelFileError("no bucket holds any of the images to compare on", where=onnx_file)
    with tempfile.TemporaryDirectory() as folder:

        def trial_of(file: Path) -> tuple[bytes, dict[str, Any], Network]:
            """The plan of a file, what its manifest says of it, and the opened engine."""
            plan = build_engine(
                file, buckets, memory_mb=memory_mb, timing_cache=timing_cache, on_progress=on_progress, library=library
            )
            about = read_manifest(file)
            kept_fields = [f.name for f in fields(about) if f.name not in ("file", "sha256", "made_by", "parity")]
            made_from = {
                **about.made_from,
                "onnx": file.name,
                "onnx_sha256": about.sha256,
                "buckets": ranges,
                **engine_facts(library.__version__, facts),
            }
            facts_of_file = {name: getattr(about, name) for name in kept_fields}
            facts_of_file |= {"backend": "tensorrt", "made_from": made_from}
            trial = Path(folder, engine_path(file).name)
            trial.write_bytes(plan)
            write_manifest(trial, **facts_of_file)
            return plan, facts_of_file, open_engine(trial, library=library, arrays=arrays, facts=facts)

        plan, facts_of_file, candidate = trial_of(onnx_file)
        parity = measure_parity(
            open_onnx(reference_file),
            candidate,
            fitting,
            source.precision,
            runtime=f"tensorrt {library.__version__} {facts.gpu}",
            reference_name="onnxruntime fp32",
            baseline=trial_of(reference_file)[2] if source.precision == "int8" else None,
        )
    return publish(path, plan, facts_of_file, parity), parity


def _holds(bucket: Bucket, batch: ByteArray) -> bool:
    return all(
        low <= size <= high for low, size, high in zip(bucket.smallest, batch.shape[:3], bucket.largest, strict=True)
    )
