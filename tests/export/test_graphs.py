"""Exported graphs: what they compute in torch, and that ONNX computes the same at every size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sccam.errors import ModelFileError
from sccam.export import pamr
from sccam.export.network import output_specs, torch_network
from sccam.export.to_onnx import fold_batch_norms, to_onnx
from sccam.nets.compute import Compute
from sccam.runtime.network_onnxruntime import read_onnx, session_of
from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.pamr import refine

SIZES = ((2, 64, 96), (1, 75, 101), (3, 33, 50))  # batch, height, width: multiples of the stride, and odd ones
CPU = Compute("cpu", "fp32")


def normalised(graph, pixels):
    net = graph.backbone if hasattr(graph, "backbone") else graph.net.backbone
    return CPU.normalised(pixels, net.mean, net.std)


def test_the_graph_normalises_as_training_does(exported, images, tolerance):
    graph, pixels = exported("maps").graph, images(2, 40, 48)
    assert torch.allclose(
        graph.normalised(torch.from_numpy(pixels)), normalised(graph, pixels), atol=tolerance["float32"]
    )


@torch.no_grad()
def test_class_scores_are_the_means_of_the_maps_before_they_are_rectified(exported, images, tolerance):
    graph, pixels = exported("maps").graph, images(2, 64, 96)
    maps, scores = graph(torch.from_numpy(pixels))
    raw = graph.net.parent(graph.net.backbone(normalised(graph, pixels))[-1])
    assert (maps >= 0).all() and torch.allclose(maps, raw.clamp(min=0), atol=tolerance["network"])
    pooled = graph.net.parent(graph.net.backbone(normalised(graph, pixels))[-1].mean(dim=(2, 3), keepdim=True)).flatten(
        1
    )
    assert torch.allclose(scores, pooled, atol=tolerance["network"])


@torch.no_grad()
def test_affinity_planes_are_the_affinities_of_the_method(exported, images, tolerance):
    graph, pixels = exported("affinity").graph, images(2, 64, 96)
    planes = graph(torch.from_numpy(pixels)).numpy()
    features = graph.net(normalised(graph, pixels))
    for n in range(2):
        field = affinity_field(features[n], neighbour_offsets(3), 8)
        assert np.allclose(planes[n], field.values, atol=tolerance["network"])
        assert (planes[n][field.values == 0] == 0).all()  # beyond the grid, exactly


@torch.no_grad()
def test_labels_are_the_arg_max_of_the_enlarged_logits(exported, images):
    graph, pixels = exported("labels").graph, images(1, 64, 96)
    logits = graph.net(normalised(graph, pixels))
    full = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
    labels = graph(torch.from_numpy(pixels))
    assert labels.dtype == torch.uint8
    assert (labels.long() == full.argmax(1)).float().mean() > 0.999  # ties of random logits may fall either way


@torch.no_grad()
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_the_refinement_inside_a_graph_is_that_of_the_method(images, rng, precision, tolerance):
    pixels, scores = images(2, 40, 56), rng.random((2, 4, 40, 56), dtype=np.float32)
    pixels[0, :20] = 77  # a flat place has no spread
    pixels[0, 5, 5] = 78  # or nearly none
    scores /= scores.sum(axis=1, keepdims=True)
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(precision)
    found = pamr.refine(image, torch.from_numpy(scores).to(precision), 3).float().numpy()
    expected = np.stack([refine(image, score, 3) for image, score in zip(pixels, scores, strict=True)])
    assert np.abs(found - expected).max() < (tolerance["float32"] if precision == torch.float32 else 0.02)


@torch.no_grad()
def test_refined_labels_are_the_arg_max_of_refined_probabilities(exported, images):
    graph, pixels = exported("refined").graph, images(1, 64, 96)
    logits = graph.net(normalised(graph, pixels))
    full = torch.nn.functional.interpolate(logits, (64, 96), mode="bilinear", align_corners=False)
    expected = refine(pixels[0], full.softmax(1)[0].numpy(), graph.pamr).argmax(axis=0)
    found = graph(torch.from_numpy(pixels))[0].numpy()
    assert (found == expected).mean() > 0.999 and (found != full.argmax(1)[0].numpy()).any()


@pytest.mark.parametrize("shape", SIZES)
def test_onnx_computes_what_torch_computes_at_every_size(case, images, shape, tolerance):
    pixels = images(*shape)
    expected, found = torch_network(case.graph)(pixels), session_of(case.model.SerializeToString())(pixels)
    assert list(found) == list(case.graph.outputs)
    for name, value in expected.items():
        assert found[name].shape == value.shape and found[name].dtype == value.dtype
        if name == "labels":
            assert (found[name] == value).mean() > 0.999
        else:
            assert np.abs(found[name] - value).max() <= tolerance["network"] * max(1.0, np.ptp(value))


def test_one_image_gives_the_same_alone_and_in_a_batch(case, images, tolerance):
    run, pixels = session_of(case.model.SerializeToString()), images(3, 64, 96)
    together = run(pixels)
    for n in range(3):
        for name, value in run(pixels[n : n + 1]).items():
            assert np.allclose(value[0], together[name][n], atol=tolerance["network"])


def test_the_model_is_one_valid_file_with_free_sizes_and_without_batch_norms(case):
    onnx.checker.check_model(case.model, full_check=True)
    assert case.model.opset_import[0].version == 18
    operators = {node.op_type for node in case.model.graph.node}
    assert "BatchNormalization" not in operators
    assert not operators & {"NonZero", "ScatterND", "ScatterElements", "Loop", "If"}
    (image,) = case.model.graph.input
    sizes = [size.dim_param or size.dim_value for size in image.type.tensor_type.shape.dim]
    assert sizes == ["N", "H", "W", 3] and image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    for spec in output_specs(case.model):
        letters = case.graph.outputs[spec.name]
        assert all(size == letter or isinstance(size, int) for size, letter in zip(spec.shape, letters, strict=True))
        assert spec.shape[0] == "N"


def test_the_affinity_graph_gathers_and_scatters_nothing(exported):
    operators = {node.op_type for node in exported("affinity").model.graph.node}
    assert not operators & {"Gather", "GatherElements", "GatherND", "Einsum"}


def test_the_cast_comes_before_anything_else_touches_the_bytes(case):
    readers = {node.op_type for node in case.model.graph.node if "image" in node.input}
    assert readers <= {"Cast", "Shape"}


def test_the_head_of_the_subcategories_stays_at_home(exported):
    names = [tensor.name for tensor in exported("maps").model.graph.initializer]
    assert not any("sub" in name for name in names)


def test_nothing_of_this_machine_is_in_the_file(case):
    data = case.model.SerializeToString()
    for word in (b"stack_trace", b"site-packages", str(Path(__file__).parents[2]).encode()):
        assert word not in data


def test_a_trunk_that_is_used_at_two_scales_is_stored_once(exported):
    model = exported("segmenter").model
    uses = [node.input[1] for node in model.graph.node if node.op_type == "Conv"]
    assert len(uses) == 2 * len(set(uses))
    assert set(uses) <= {tensor.name for tensor in model.graph.initializer}


def test_a_batch_norm_with_another_reader_of_its_convolution_is_kept():
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.ones((2, 2, 1, 1), np.float32), "w")
    norm = [
        onnx.numpy_helper.from_array(np.full(2, v, np.float32), n) for n, v in zip("gbmv", (2, 1, 0, 1), strict=True)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Add", ["c", "n"], ["y"]),
    ]
    tensor = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 2, "H", "W"]) for n in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", tensor[:1], tensor[1:], [weight, *norm]))
    assert fold_batch_norms(model) == 0
    model.graph.node[2].input[0] = "n"
    assert fold_batch_norms(model) == 1 and [node.op_type for node in model.graph.node] == ["Conv", "Add"]
    onnx.checker.check_model(model)


def test_the_same_graph_is_exported_to_the_same_bytes(exported):
    case = exported("labels")
    again = to_onnx(case.graph, {"kind": "labels"})
    assert again.SerializeToString() == case.model.SerializeToString()


def test_a_network_that_torch_cannot_export_is_refused_with_the_reason(exported, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise torch.onnx.OnnxExporterError("too long a story\nwith details") from ValueError("H is fixed")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(ModelFileError, match="cannot export this network with free sizes") as caught:
        to_onnx(exported("labels").graph, {})
    assert caught.value.why == "H is fixed"


# What is no model, or not a safe one


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    for content in (b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match="not an ONNX model"):
            read_onnx(path)
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_onnx(tmp_path / "absent.onnx")


def test_a_model_that_was_cut_off_is_refused(exported, tmp_path):
    data = exported("labels").model.SerializeToString()
    (tmp_path / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelFileError):
        read_onnx(tmp_path / "model.onnx")


@pytest.mark.parametrize("place", ["initialiser", "attribute"])
def test_a_model_that_points_to_other_files_is_refused(exported, tmp_path, place):
    model = onnx.ModelProto()
    model.CopyFrom(exported("labels").model)
    tensor = model.graph.initializer[0]
    if place == "attribute":
        node = model.graph.node.add(op_type="Constant", output=["outside"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
        tensor = node.attribute[0].t
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelFileError, match="1 tensors lie in other files"):
        read_onnx(tmp_path / "model.onnx")
