"""`sccam inspect`: what each kind of file says of itself, that damaged ones are refused, and that nothing is run."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.numpy import save_file

from sccam import cli
from sccam.artifacts import write_arrays, write_json, write_weights
from sccam.data.masks import write_mask
from sccam.errors import ModelFileError, RunFolderError, SccamError
from sccam.inspection import inspect
from tests.report.conftest import photos, run  # noqa: F401  (fixtures)


def weights(path: Path) -> Path:
    write_weights(
        path, {"small": torch.zeros(3), "large": torch.zeros(4, 5)}, kind="segmenter", backbone="some net",
        classes=("cat", "dog"), mean=(0.5,) * 3, std=(0.2,) * 3, stride=16, made_from={"rates": [1]},
    )  # fmt: skip
    return path


def model(path: Path, *, outside: bool = False) -> Path:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    if outside:
        del tensor.float_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../etc/passwd")
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])], [tensor],
    )  # fmt: skip
    made = helper.make_model(graph, producer_name="a test")
    made.metadata_props.add(key="classes", value="cat\ndog")
    path.write_bytes(made.SerializeToString())
    return path


def test_weights_are_read_by_their_header_with_the_largest_first(tmp_path):
    facts = inspect(weights(tmp_path / "net.safetensors"))
    assert facts["tensors"] == "2, 23 numbers" and [name for name in facts if name.startswith("  ")] == [
        "  large",
        "  small",
    ]
    assert facts["manifest"].startswith("fits; segmenter of some net") and facts["classes"] == "2: cat, dog"


def test_a_manifest_that_does_not_fit_or_is_not_there_is_said(tmp_path):
    path = weights(tmp_path / "net.safetensors")
    save_file({"other": np.zeros(2, np.float32)}, path)
    assert inspect(path)["manifest"].startswith("REFUSED")
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "bare.safetensors")
    assert inspect(tmp_path / "bare.safetensors")["manifest"].startswith("none")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"{]]}",
        struct.pack("<Q", 9) + b'{"a": {}}',
        struct.pack("<Q", 2) + b"{}" + b"more than announced",
    ],
)
def test_a_damaged_weight_file_is_refused_and_takes_no_memory(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(ModelFileError):
        inspect(tmp_path / "bad.safetensors")


def test_a_model_says_its_inputs_outputs_and_operators(tmp_path):
    facts = inspect(model(tmp_path / "net.onnx"))
    assert facts["inputs"] == "x float32 [N, 2]" and facts["operators"] == "Add 1" and facts["numbers"] == "2"
    assert facts["says classes"] == "cat, dog" and facts["made by"] == "a test"


def test_a_model_that_points_outside_or_is_none_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="other files"):
        inspect(model(tmp_path / "net.onnx", outside=True))
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ModelFileError):
        inspect(tmp_path / "text.onnx")


def test_pickles_engines_and_object_arrays_are_told_of_and_never_loaded(tmp_path):
    canary = tmp_path / "canary"

    class Fires:
        def __reduce__(self):
            return (shutil.copy, (__file__, str(canary)))

    for suffix in (".pth", ".pt", ".pkl", ".ckpt", ".engine"):
        (tmp_path / f"bad{suffix}").write_bytes(pickle.dumps(Fires()))
        assert "not opened" in " ".join(inspect(tmp_path / f"bad{suffix}").values())
    np.save(tmp_path / "bad.npy", np.array([Fires()], object), allow_pickle=True)
    np.savez(tmp_path / "bad.npz", bad=np.array([Fires()], object), good=np.zeros((2, 3), np.float16))
    assert "never loaded" in inspect(tmp_path / "bad.npy")["array"]
    facts = inspect(tmp_path / "bad.npz")
    assert "never loaded" in facts["  bad"] and facts["  good"] == "float16 [2, 3]"
    assert not canary.exists()


def test_array_archives_and_masks_are_described(tmp_path):
    write_arrays(tmp_path / "a.npz", {"scores": np.zeros((1, 4, 5), np.float16)})
    assert inspect(tmp_path / "a.npz")["  scores"] == "float16 [1, 4, 5]"
    index = np.zeros((4, 5), np.uint8)
    index[0] = 2
    write_mask(tmp_path / "mask.png", index)
    facts = inspect(tmp_path / "mask.png")
    assert facts["image"] == "5 x 4 px, PNG, mode P" and facts["as a mask"] == "2 values; 0: 75.0 %, 2: 25.0 %"
    Image.new("RGB", (3, 2)).save(tmp_path / "photo.jpg")
    assert "as a mask" not in inspect(tmp_path / "photo.jpg")


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.png", "a.onnx"])
def test_a_damaged_file_is_an_error_of_ours(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(SccamError):
        inspect(tmp_path / name)


def test_a_run_says_how_far_it_is_and_what_it_reached(run):  # noqa: F811
    facts = inspect(run)
    assert facts["run"].startswith("finished") and facts["classes"].startswith("2: ")
    assert "round0/classify" in facts["stages"] and "mIoU segmenter, val" in facts


def test_results_of_inference_are_counted(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("{}\n{}\n")
    write_json(tmp_path / "infer.json", {"task": "segment", "scales": [1.0]})
    assert inspect(tmp_path) == {"results": "of sccam infer", "images": "2", "failed": "0", "plan": "task segment"}


def test_what_is_nothing_known_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="neither"):
        inspect(tmp_path)
    with pytest.raises(ModelFileError, match="no such"):
        inspect(tmp_path / "nowhere.onnx")
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(ModelFileError, match="docx"):
        inspect(tmp_path / "a.docx")


def test_the_command_prints_lines_or_json(tmp_path, monkeypatch, capsys):
    path = weights(tmp_path / "net.safetensors")
    for arguments in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["sccam", "inspect", str(path), *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        printed = capsys.readouterr().out
        assert "fits; segmenter" in printed
    assert json.loads(printed)["tensors"] == "2, 23 numbers"


def test_inspecting_loads_no_torch(tmp_path):
    path = weights(tmp_path / "net.safetensors")
    code = f"import sys; from sccam.inspection import inspect; inspect({str(path)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
