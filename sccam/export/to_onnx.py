"""A graph becomes an ONNX model in fp32: every size free, one file, batch norms folded, nothing of this machine in it.

torch's exporter writes operator set 18 natively. It folds a batch norm only where a convolution is used once; the
multi-scale segmenter runs its trunk three times over the same weights, so the fold is done here, once for each pair.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sccam.errors import BackendUnavailable, ModelFileError
from sccam.export.graphs import Graph, prepare

if TYPE_CHECKING:
    import onnx

OPSET = 18
INPUT = "image"
INPUT_AXES = ("N", "H", "W", 3)
EXAMPLE = (2, 288, 352)  # N, H, W of the traced input: all different, none 1
LIMITS = {"N": (1, 1024), "H": (256, 16384), "W": (256, 16384)}
"""Between these the exporter must find one graph. The file takes smaller images too; but below some 100 pixels a grid
of half scale has one cell, and the exporter would want to treat that apart."""


def to_onnx(graph: Graph, properties: Mapping[str, str]) -> onnx.ModelProto:
    """The graph in fp32.

    Args:
        graph: from `graphs`, with its weights; it is put in inference mode.
        properties: written into the model's own metadata.

    Raises:
        BackendUnavailable: onnx or onnxscript is not installed.
        ModelFileError: the network depends on its input's size in a way that no one graph can follow.
    """
    library = _library()
    prepare(graph)
    pixels = torch.randint(0, 256, (*EXAMPLE, 3), dtype=torch.uint8)
    free = {axis: torch.export.Dim(str(INPUT_AXES[axis]), min=low, max=high) for axis, (low, high) in _limits()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter speaks of its own insides
        logging.disable(logging.WARNING)
        try:
            program = torch.onnx.export(
                graph,
                (pixels,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=list(graph.outputs),
                dynamic_shapes={INPUT: free},
                external_data=False,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ModelFileError(
                "torch cannot export this network with free sizes",
                why=str(error.__cause__ or error).strip().split("\n")[0],
                fix="choose another backbone; those of the built-in configurations can be exported",
            ) from error
        finally:
            logging.disable(logging.NOTSET)
    assert program is not None
    buffer = io.BytesIO()
    program.save(buffer)  # type: ignore[arg-type]
    model: onnx.ModelProto = library.load_from_string(buffer.getvalue())
    fold_batch_norms(model)
    _forget_origin(model)
    _name_axes(model, graph)
    set_properties(model, properties)
    library.checker.check_model(model, full_check=True)
    return model


def set_properties(model: onnx.ModelProto, properties: Mapping[str, str]) -> None:
    """Adds or replaces entries of the model's metadata."""
    kept = {entry.key: entry.value for entry in model.metadata_props} | dict(properties)
    del model.metadata_props[:]
    for key, value in sorted(kept.items()):
        model.metadata_props.add(key=key, value=value)


def fold_batch_norms(model: onnx.ModelProto) -> int:
    """Folds every BatchNormalization that is the only reader of a convolution into it; says how many.

    y = gamma (W x + b - mean) / sqrt(var + eps) + beta is a convolution with W gamma / sqrt(var + eps).
    """
    helper = _library().numpy_helper
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(output.name for output in graph.output)
    made_by = {node.output[0]: node for node in graph.node if node.op_type == "Conv"}
    folded: dict[tuple[str, str], tuple[str, str]] = {}  # (weight, gamma) -> names of the new weight and bias

    def values(name: str) -> np.ndarray:
        return np.asarray(helper.to_array(tensors[name]), np.float64)

    kept, count = [], 0
    for node in graph.node:
        conv = made_by.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if conv is None or readers[node.input[0]] > 1 or any(name not in tensors for name in conv.input[1:]):
            kept.append(node)
            continue
        weight, gamma = conv.input[1], node.input[1]
        if (weight, gamma) not in folded:
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            g, beta, mean, variance = (values(name) for name in node.input[1:5])
            factor = g / np.sqrt(variance + epsilon)
            bias = values(conv.input[2]) if len(conv.input) > 2 else 0.0
            W = values(weight)
            new = (f"{weight}.folded", f"{weight}.shift")
            arrays = (W * factor.reshape(-1, *[1] * (W.ndim - 1)), (bias - mean) * factor + beta)
            for name, array in zip(new, arrays, strict=True):
                graph.initializer.append(helper.from_array(array.astype(np.float32), name))
            folded[weight, gamma] = new
        del conv.input[1:]
        conv.input.extend(folded[weight, gamma])
        conv.output[0] = node.output[0]
        count += 1
    del graph.node[:]
    graph.node.extend(kept)
    used = {name for node in graph.node for name in node.input}
    remaining = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(remaining)
    return count


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drops stack traces, file paths and inferred shapes, and gives nodes short names."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.graph.name, model.doc_string, model.graph.doc_string = "sccam", "", ""
    for item in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    for number, node in enumerate(model.graph.node):
        node.name, node.doc_string = f"{node.op_type}_{number}", ""
        del node.metadata_props[:]
    del model.functions[:]


def _name_axes(model: onnx.ModelProto, graph: Graph) -> None:
    """Letters for the free axes of the outputs instead of the exporter's formulas."""
    for output in model.graph.output:
        for size, letter in zip(output.type.tensor_type.shape.dim, graph.outputs[output.name], strict=True):
            if not size.dim_value:
                size.dim_param = letter


def _limits() -> list[tuple[int, tuple[int, int]]]:
    return [(axis, LIMITS[letter]) for axis, letter in enumerate(INPUT_AXES) if isinstance(letter, str)]


def _library() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it, and names it only deep inside)
    except ImportError as error:
        raise BackendUnavailable(
            f"export to ONNX needs {error.name}", where="export", fix='pip install "sccam[export]"'
        ) from error
    return onnx
