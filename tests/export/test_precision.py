"""fp16 and int8 written into the graph: types, which convolutions stay, and ranges that nothing is wasted on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sccam.errors import DataError
from sccam.export.int8 import (
    CALIBRATION_IMAGES,
    correct_biases,
    first_nodes,
    last_convolutions,
    share_clipped_ranges,
    to_int8,
)
from sccam.export.precision import to_fp16
from sccam.runtime.network_onnxruntime import session_of


@pytest.fixture(scope="module")
def batches(images):
    return [images(CALIBRATION_IMAGES // 2, 32, 48), images(CALIBRATION_IMAGES // 2, 48, 32)]


@pytest.fixture(scope="module", params=["onnxruntime", "tensorrt"])
def quantised(request, exported, batches):
    return request.param, to_int8(exported("segmenter").model, batches, flavour=request.param)


def test_half_precision_keeps_the_types_at_the_border_and_halves_the_file(case):
    half = to_fp16(case.model)
    onnx.checker.check_model(half, full_check=True)
    for before, after in ((case.model.graph.input, half.graph.input), (case.model.graph.output, half.graph.output)):
        assert [value.type.tensor_type.elem_type for value in before] == [
            value.type.tensor_type.elem_type for value in after
        ]
    weights = [tensor for tensor in half.graph.initializer if len(tensor.dims) == 4]
    assert weights and all(tensor.data_type == TensorProto.FLOAT16 for tensor in weights)
    assert half.ByteSize() < 0.6 * case.model.ByteSize()


def test_half_precision_computes_nearly_the_same(case, images, tolerance):
    pixels = images(2, 64, 96)
    expected = session_of(case.model.SerializeToString())(pixels)
    found = session_of(to_fp16(case.model).SerializeToString())(pixels)
    for name, value in expected.items():
        if name == "labels":
            assert (found[name] == value).mean() > 0.98  # random logits are full of near ties
        else:
            assert np.abs(found[name] - value).max() <= tolerance["half"] * np.ptp(value)


def test_the_model_that_is_converted_is_left_alone(exported, batches):
    model = exported("maps").model
    before = model.SerializeToString()
    to_fp16(model)
    assert model.SerializeToString() == before


def test_int8_activations_are_what_the_runtime_reads(quantised):
    flavour, model = quantised
    onnx.checker.check_model(model, full_check=True)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    quantisers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    zeros = [constants[node.input[2]] for node in quantisers]
    assert len(quantisers) > 20
    if flavour == "tensorrt":
        assert all(zero.data_type == TensorProto.INT8 and not numpy_helper.to_array(zero).any() for zero in zeros)
    else:
        assert all(zero.data_type == TensorProto.UINT8 for zero in zeros)


def test_int8_weights_are_symmetric_and_have_one_range_a_channel(quantised):
    graph = quantised[1].graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    weights = [makers[node.input[1]] for node in graph.node if node.op_type == "Conv" and node.input[1] in makers]
    assert len(weights) > 20
    for node in weights:
        values, scales, zeros = (constants[name] for name in node.input)
        assert node.op_type == "DequantizeLinear" and values.dtype == np.int8 and not zeros.any()
        assert scales.shape == values.shape[:1]


def test_the_last_convolutions_stay_in_fp32(quantised, exported):
    names = last_convolutions(exported("segmenter").model)
    assert len(names) == 4  # two dilations at two scales
    made = {output for other in quantised[1].graph.node for output in other.output}
    kept = [node for node in quantised[1].graph.node if node.name in names]
    assert len(kept) == len(names) and not any(node.input[1] in made for node in kept)


def test_int8_resembles_fp32(quantised, exported, images):
    pixels = images(2, 64, 96)
    expected = session_of(exported("segmenter").model.SerializeToString())(pixels)["logits"]
    found = session_of(quantised[1].SerializeToString())(pixels)["logits"]
    # Random weights and statistics are the worst case for 8 bits; a wrong range or sign would leave no correlation.
    assert np.corrcoef(expected.ravel(), found.ravel())[0, 1] > 0.8


def test_shifted_biases_are_taken_back_from_the_first_layer_to_the_last(exported, images):
    model = exported("segmenter").model
    shifted = onnx.ModelProto()
    shifted.CopyFrom(model)
    biases = {node.input[2] for node in shifted.graph.node if node.op_type == "Conv" and len(node.input) > 2}
    for tensor in shifted.graph.initializer:
        if tensor.name in biases:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array((values + 0.3).astype(np.float32), tensor.name))
    pixels = images(2, 64, 96)
    expected = session_of(model.SerializeToString())(pixels)["logits"]
    before = np.abs(session_of(shifted.SerializeToString())(pixels)["logits"] - expected).max()
    correct_biases(shifted, model, [pixels])
    onnx.checker.check_model(shifted, full_check=True)
    after = np.abs(session_of(shifted.SerializeToString())(pixels)["logits"] - expected).max()
    assert after < 1e-4 * np.ptp(expected) < before  # the same network again, up to the rounding of the means


def test_metadata_survives_every_precision(quantised, exported):
    kept = {entry.key: entry.value for entry in quantised[1].metadata_props}
    assert kept["kind"] == "segmenter"
    assert {entry.key for entry in to_fp16(exported("maps").model).metadata_props} == {"kind"}


def test_too_few_images_are_refused(exported, images):
    with pytest.raises(DataError, match="3 images to calibrate int8 with; 100 are needed"):
        to_int8(exported("maps").model, [images(3, 32, 32)])


def test_outputs_are_followed_back_through_arithmetic_to_their_convolutions():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w"], ["c"], "left"),
        helper.make_node("Conv", ["b", "w"], ["d"], "right"),
        helper.make_node("Max", ["c", "d"], ["y"], "max"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))
    assert sorted(last_convolutions(model)) == ["left", "right"]


def test_normalisation_and_fine_convolutions_stay_in_fp32(exported):
    model = exported("maps").model
    kept = set(first_nodes(model))
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    # Lite0: the stem at 1 px; at 2 px depthwise and projection of block 0, expansion and depthwise of block 1
    assert [name for name in convolutions if name in kept] == convolutions[:5]
    (mul,) = (node.name for node in model.graph.node if node.op_type == "Mul")
    assert mul in kept


def test_what_a_clip_cuts_off_gets_no_steps_and_the_result_is_the_same():
    scale, clipped = 100 / 127, 6 / 127
    constants = {"s": scale, "t": clipped, "low": 0.0, "high": 6.0}
    initialisers = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in constants.items()]
    initialisers.append(numpy_helper.from_array(np.array(0, np.int8), "z"))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        helper.make_node("Clip", ["d", "low", "high"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "t", "z"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "t", "z"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], initialisers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = np.linspace(-20, 20, 401).astype(np.float32)

    def error() -> float:
        import onnxruntime

        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return float(np.abs(session.run(None, {"x": x})[0] - x.clip(0, 6)).max())

    before = error()
    assert share_clipped_ranges(model) == 1
    assert error() <= clipped / 2 + 1e-6 < before  # half a step of the clipped range, as if the clip had come first
    assert "s" not in {tensor.name for tensor in model.graph.initializer}
