"""A model repository for the Triton Inference Server: one folder a network, from the files that were exported.

    DIR/NAME/config.pbtxt     inputs, outputs, batching
    DIR/NAME/1/model.onnx     or model.plan
    DIR/NAME/labels.txt       background and the classes, in the order of label indices

Source: Triton's model configuration (model_config.proto) and repository layout.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sccam.artifacts import manifest_path, read_manifest, replacing, write_text
from sccam.errors import ModelFileError
from sccam.structures import TensorSpec

BACKENDS = {"onnx": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}
TYPES = {
    "uint8": "TYPE_UINT8",
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
}
QUEUE_MICROSECONDS = 2000  # that a request may wait for others of its shape


def write_triton(model: Path, repository: Path, *, max_batch: int = 16) -> Path:
    """Copies an exported file into a repository and writes its configuration; returns the model's folder.

    Args:
        model: an ONNX file or an engine, with its manifest beside it.
        repository: the folder that Triton is started on.
        max_batch: largest batch; for an engine, not more than its buckets allow.

    Raises:
        RunFolderError: the file has no manifest, or is not the one that its manifest speaks of.
        ModelFileError: the file is missing or of a kind that Triton does not serve.
    """
    manifest = read_manifest(model)
    if not model.is_file() or manifest.backend not in BACKENDS:
        raise ModelFileError(
            "Triton serves exported files only", where=model, fix="give an .onnx or .engine file of `sccam export`"
        )
    backend, file = BACKENDS[manifest.backend]
    name = model.name.replace(".onnx", "").replace(".engine", "").replace(".", "_")
    folder = repository / name
    with replacing(folder / "1" / file) as temporary:
        shutil.copyfile(model, temporary)
    shutil.copyfile(manifest_path(model), folder / "manifest.json")
    write_text(folder / "labels.txt", "\n".join(("background", *manifest.classes)) + "\n")
    write_text(folder / "config.pbtxt", configuration(name, backend, manifest.inputs, manifest.outputs, max_batch))
    return folder


def configuration(
    name: str, backend: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], max_batch: int
) -> str:
    """The text of config.pbtxt. Triton adds the batch axis itself, so the first axis of every tensor is left out."""
    lines = [f"name: {json.dumps(name)}", f"backend: {json.dumps(backend)}", f"max_batch_size: {max_batch}"]
    for kind, specs in (("input", inputs), ("output", outputs)):
        for spec in specs:
            sizes = ", ".join(str(size) if isinstance(size, int) else "-1" for size in spec.shape[1:])
            lines += [
                f"{kind} {{",
                f"  name: {json.dumps(spec.name)}",
                f"  data_type: {TYPES[spec.dtype]}",
                f"  dims: [ {sizes} ]",
                "}",
            ]
    lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {QUEUE_MICROSECONDS} }}")
    return "\n".join(lines) + "\n"
