"""An fp32 model in half precision, written into the graph; runtimes take it from there. int8 has its own file."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from sccam.errors import BackendUnavailable

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32", "fp16", "int8")


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an fp32 model that computes in half precision; its input and outputs keep their types."""
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise unavailable(error) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it tells of every weight that half precision rounds to zero
        # No operator stays behind in fp32: what the CPU runtime lacks in half, it computes in single by itself.
        converted: onnx.ModelProto = convert_float_to_float16(copied(model), keep_io_types=True, op_block_list=[])
    return converted


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Another model that holds the same."""
    copy = type(model)()
    copy.CopyFrom(model)
    return copy


def unavailable(error: ImportError) -> BackendUnavailable:
    """What to raise where a package of the export extra is missing."""
    return BackendUnavailable(
        f"fp16 and int8 need {error.name or 'onnxruntime'}", where="export", fix='pip install "sccam[export]"'
    )
