"""int8: QuantizeLinear/DequantizeLinear pairs around convolutions and sums, with ranges from calibration images.

Weights are symmetric with a scale per channel, activations have one range a tensor, biases stay in fp32.

The two readers of int8 want different activations, so there are two flavours. ONNX Runtime on a CPU is fast with
unsigned bytes that begin at the lowest value, which also make a ReLU free. TensorRT takes signed bytes around zero
and nothing else.

Some convolutions stay in fp32, a sliver of the work each: those that give an output or feed one through nothing but
arithmetic, whose rounding is all that a user sees; and those that read the image or a map of half its size, where a
few channels of very different ranges must share one scale.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sccam.errors import DataError
from sccam.export.precision import copied, unavailable
from sccam.structures import ByteArray

if TYPE_CHECKING:
    import onnx

QUANTISED = ["Conv", "Add", "Clip", "Relu", "MaxPool"]
FINE_STRIDE = 2  # [px per cell] convolutions that read maps this fine or finer stay in fp32
CORRECTION_IMAGES = 8  # for the means of `correct_biases`
CALIBRATION_IMAGES = 100  # fewer leave the ranges of rare activations unseen


def to_int8(
    model: onnx.ModelProto, batches: Iterable[ByteArray], *, flavour: str = "onnxruntime", name: str = "image"
) -> onnx.ModelProto:
    """A copy of an fp32 model with quantised convolutions.

    Args:
        model: from `to_onnx`.
        batches: calibration images u8 [N H W 3], at least `CALIBRATION_IMAGES` in all, of any sizes.
        flavour: who reads it, "onnxruntime" or "tensorrt".
        name: of the model's input.

    Raises:
        DataError: too few images.
        BackendUnavailable: onnxruntime, whose quantisation tool this uses, is not installed.
    """
    try:
        import onnx
        from onnxruntime import quantization
    except ImportError as error:
        raise unavailable(error) from error
    batches = list(batches)
    count = sum(len(batch) for batch in batches)
    if count < CALIBRATION_IMAGES:
        raise DataError(
            f"{count} images to calibrate int8 with; {CALIBRATION_IMAGES} are needed",
            why="the ranges of activations are taken from them",
            fix="give more images with --images FOLDER, or export in fp16",
        )
    signed = flavour == "tensorrt"
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            out = Path(folder, "int8.onnx")
            quantization.quantize_static(
                copied(model),
                str(out),
                _Batches(name, batches),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=QUANTISED,
                nodes_to_exclude=[*first_nodes(model), *last_convolutions(model)],
                per_channel=True,
                activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"ActivationSymmetric": signed, "WeightSymmetric": True, "QuantizeBias": False},
            )
        finally:
            logging.disable(logging.NOTSET)
        quantised = onnx.load(str(out))
    if signed:
        share_clipped_ranges(quantised)
    step = max(1, len(batches) // CORRECTION_IMAGES)
    corrected = copied(quantised)
    correct_biases(corrected, model, batches[::step], name=name)
    others = batches[step // 2 :: step]
    if _output_error(corrected, model, others, name) < _output_error(quantised, model, others, name):
        quantised = corrected
    del quantised.metadata_props[:]
    quantised.metadata_props.extend(model.metadata_props)
    return quantised


def correct_biases(
    quantised: onnx.ModelProto, model: onnx.ModelProto, batches: Sequence[ByteArray], *, name: str = "image"
) -> None:
    """Gives every convolution of a quantised model the mean output that it has in fp32, channel by channel.

    Rounding weights shifts the mean of an output, and shifts add up from layer to layer; a bias takes them back. From
    the first convolution to the last, since each correction changes what the next one reads. Convolutions that share
    their weights, at several scales, share the correction of the first.

    Args:
        quantised: changed in place.
        model: the fp32 model it was made from, with the same names.
        batches: images u8 [N H W 3].

    Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV 2019, with
    means measured on images instead of derived.
    """
    from onnx import numpy_helper

    weights = {node.name: node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    outputs = {node.name: node.output[0] for node in model.graph.node if node.name in weights}
    uses: dict[str, list[Any]] = {}  # weight -> its convolutions, one for each scale of a multi-scale network
    for node in quantised.graph.node:
        if node.name in weights:
            uses.setdefault(weights[node.name], []).append(node)
    wanted = _channel_means(model, [outputs[nodes[0].name] for nodes in uses.values()], batches, name)
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for first, *others in uses.values():
        found = _channel_means(quantised, [first.output[0]], batches, name)[first.output[0]]
        bias = (wanted[outputs[first.name]] - found).astype(np.float32)
        if len(first.input) > 2 and first.input[2]:
            bias += numpy_helper.to_array(constants[first.input[2]])
        tensor = numpy_helper.from_array(bias, f"{first.name}.bias")
        quantised.graph.initializer.append(tensor)
        for node in (first, *others):
            del node.input[2:]
            node.input.append(tensor.name)
    _drop_unused(quantised)


def _output_error(candidate: onnx.ModelProto, model: onnx.ModelProto, batches: Sequence[ByteArray], name: str) -> float:
    """Mean squared difference of all outputs, each relative to its variance in fp32."""
    expected, found = _session(model), _session(candidate)
    total = 0.0
    for batch in batches:
        for a, b in zip(expected.run(None, {name: batch}), found.run(None, {name: batch}), strict=True):
            total += float(np.square(a.astype(np.float64) - b).mean() / max(float(a.var()), 1e-12))
    return total / max(1, len(batches))


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _channel_means(
    model: onnx.ModelProto, values: list[str], batches: Sequence[ByteArray], name: str
) -> dict[str, np.ndarray]:
    """The mean over images and cells [D] of some inner values [N D h w]; only what leads to them is computed."""
    import onnx

    opened = copied(model)
    del opened.graph.output[:]
    for value in values:
        opened.graph.output.append(onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None))
    session = _session(opened)
    sums: dict[str, Any] = {}
    for batch in batches:
        for value, array in zip(values, session.run(values, {name: batch}), strict=True):
            sums[value] = sums.get(value, 0.0) + array.mean(axis=(0, 2, 3), dtype=np.float64) / len(batches)
    return sums


def share_clipped_ranges(model: onnx.ModelProto) -> int:
    """Quantises what a ReLU or clip is about to cut with the range that is left after the cut; says how often.

    Saturation then does the upper cut, and no steps are spent on values that are thrown away.
    """
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    count = 0
    for node in model.graph.node:
        chain = [node]
        for expected in (("DequantizeLinear",), ("Clip", "Relu")):
            after = readers.get(chain[-1].output[0], [])
            if node.op_type == "QuantizeLinear" and len(after) == 1 and after[0].op_type in expected:
                chain.append(after[0])
        if len(chain) < 3:
            continue
        last = readers.get(chain[-1].output[0], [])
        if last and all(reader.op_type == "QuantizeLinear" for reader in last):
            for half in chain[:2]:
                half.input[1], half.input[2] = last[0].input[1], last[0].input[2]
            count += 1
    _drop_unused(model)
    return count


def _drop_unused(model: onnx.ModelProto) -> None:
    used = {name for node in model.graph.node for name in node.input}
    remaining = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(remaining)


def first_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the normalisation and of all nodes that read maps of at most `FINE_STRIDE` pixels a cell."""
    strides: dict[str, int] = {}  # value -> [px per cell]
    found = []
    for node in model.graph.node:  # sorted: every value is made before it is read
        stride = max((strides.get(name, 1) for name in node.input), default=1)
        if stride <= FINE_STRIDE:
            found.append(node.name)
        steps = next((a.ints[0] for a in node.attribute if a.name == "strides" and a.ints), 1)
        for output in node.output:
            strides[output] = stride * steps
    return found


def last_convolutions(model: onnx.ModelProto) -> list[str]:
    """Names of the convolutions from which an output is reached without passing another one."""
    maker = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, None] = {}
    seen: set[str] = set()
    open_names = [output.name for output in model.graph.output]
    while open_names:
        name = open_names.pop()
        if name in seen or name not in maker:
            continue
        seen.add(name)
        node = maker[name]
        if node.op_type == "Conv":
            found[node.name] = None
        else:
            open_names += node.input
    return list(found)


class _Batches:
    """What onnxruntime's calibration reads from."""

    def __init__(self, name: str, batches: Sequence[ByteArray]):
        self._items: Iterator[dict[str, np.ndarray]] = iter([{name: batch} for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._items, None)
