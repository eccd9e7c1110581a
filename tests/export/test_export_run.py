"""`sccam export`: what it writes, what it refuses, and that nothing half-done is left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from sccam import cli
from sccam.artifacts import RunFolder, manifest_path, read_manifest, write_json, write_weights
from sccam.errors import ConfigError, DataError, ModelFileError, ParityError, RunFolderError
from sccam.export import network as export_module
from sccam.export.run import export_run
from sccam.export.triton import write_triton
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import build_backbone
from sccam.nets.cam_net import CamNet
from sccam.nets.deeplab import DeepLab
from sccam.recipe import built_in_configs
from sccam.runtime.network_onnxruntime import open_onnx

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ("cat", "dog")
NETWORKS = ("cam_net", "affinity_net", "segmenter")

pytestmark = pytest.mark.slow


def write_network(path: Path, kind: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone("test_resnet", output_stride=32, weights="none")
    made_from: dict[str, Any] = {"output_stride": 32}
    if kind == "cam_net":
        net: Any = CamNet(backbone, len(CLASSES), 4)
        made_from |= {"subcategory_parent": [0, 0, 1, 1], "round": 1}
    elif kind == "affinity_net":
        net = AffinityNet(backbone, 8)
        made_from["radius"] = 3
    else:
        net = DeepLab(backbone, len(CLASSES) + 1, (1, 2), (1.0,))
        for conv in net.pyramid.convs():  # they begin near 0, where all classes would be ties
            conv.reset_parameters()
        made_from |= {"rates": [1, 2], "scales": [1.0]}
    write_weights(
        path, net.state_dict(), kind=kind, backbone="test_resnet", classes=CLASSES,
        mean=tuple(backbone.mean), std=tuple(backbone.std), stride=8 if kind == "affinity_net" else 32,
        made_from=made_from,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory, images: Any) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for n, image in enumerate(images(12, 150, 200)):
        Image.fromarray(image).save(folder / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with the three networks of a finished run."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    folder.update(schema=1, status="finished")
    for r in range(2):
        write_network(folder.classifier(r), "cam_net")
    write_network(folder.affinity_net, "affinity_net")
    write_network(folder.segmenter, "segmenter")
    return folder.path


@pytest.fixture(scope="module")
def out(finished: Path, pictures: Path) -> Path:
    export_run(finished, images=pictures, precisions=("fp32", "fp16"), tell=lambda text: None)
    return finished / "export"


def test_every_network_is_there_in_every_precision_with_its_manifest_and_nothing_else(out):
    names = {f"{network}{suffix}.onnx" for network in NETWORKS for suffix in ("", ".fp16")}
    assert {path.name for path in out.iterdir()} == names | {f"{name}.json" for name in names}


def test_the_manifest_says_what_the_file_is_and_how_near_it_comes(out, finished):
    manifest = read_manifest(out / "cam_net.fp16.onnx")
    assert (manifest.kind, manifest.backend, manifest.precision) == ("cam_net", "onnx", "fp16")
    assert manifest.classes == CLASSES and manifest.stride == 32
    assert [(spec.name, spec.dtype, spec.shape) for spec in manifest.inputs] == [("image", "uint8", ("N", "H", "W", 3))]
    assert [(spec.name, spec.shape) for spec in manifest.outputs] == [
        ("maps", ("N", 2, "h", "w")),
        ("scores", ("N", 2)),
    ]
    assert manifest.made_from["source"]["file"] == "cam_net.safetensors" and manifest.made_from["round"] == 1
    parity = manifest.parity
    assert parity and parity["passed"] and parity["agreement"] >= 0.995 and parity["relative_error"] < 0.05
    shapes = {tuple(case[1:]) for case in parity["cases"]}
    assert len(shapes) >= 3 and any(size % 2 for shape in shapes for size in shape)
    assert {case[0] for case in parity["cases"]} == {1, 3}


def test_exporting_again_writes_the_same_bytes(out, finished, pictures, tmp_path):
    export_run(
        finished, out=tmp_path, images=pictures, networks=["segmenter"], precisions=["fp32"], tell=lambda text: None
    )
    assert (tmp_path / "segmenter.onnx").read_bytes() == (out / "segmenter.onnx").read_bytes()


def test_an_exported_file_runs_in_a_process_without_torch(out):
    script = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from sccam.runtime.network_onnxruntime import open_onnx\n"
        f"found = open_onnx(Path({str(out / 'segmenter.onnx')!r}))(np.zeros((1, 64, 96, 3), np.uint8))\n"
        "assert found['logits'].shape == (1, 3, 2, 3), found['logits'].shape\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)


def test_a_file_that_was_changed_after_its_export_is_not_taken(out, tmp_path):
    for name in ("segmenter.onnx", "segmenter.onnx.json"):
        shutil.copy(out / name, tmp_path)
    data = bytearray((tmp_path / "segmenter.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "segmenter.onnx").write_bytes(data)
    with pytest.raises(RunFolderError, match="checksums differ"):
        write_triton(tmp_path / "segmenter.onnx", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_what_does_not_compute_the_same_is_left_as_failed_and_ends_with_6(
    finished, pictures, tmp_path, monkeypatch, capsys
):
    def spoilt(model: Any) -> Any:
        """All logits with the other sign."""
        copy = type(model)()
        copy.CopyFrom(model)
        for tensor in copy.graph.initializer:
            if "pyramid" in tensor.name:
                tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
        return copy

    monkeypatch.setattr(export_module, "to_fp16", spoilt)
    command = ["sccam", "export", str(finished), "--out", str(tmp_path), "--images", str(pictures)]
    monkeypatch.setattr(sys, "argv", [*command, "--network", "segmenter"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ParityError.exit_code == 6
    text = capsys.readouterr()
    assert "segmenter.fp16.onnx.failed" in text.err and "agreement" in text.err and "FAILED" in text.out
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {
        "segmenter.onnx",
        "segmenter.onnx.json",
        "segmenter.fp16.onnx.failed",
        "segmenter.fp16.onnx.failed.json",
    }
    assert json.loads((tmp_path / "segmenter.fp16.onnx.failed.json").read_text())["failures"]

    monkeypatch.undo()  # once it passes, what failed is gone
    export_run(finished, out=tmp_path, images=pictures, networks=["segmenter"], tell=lambda text: None)
    assert not any(path.name.count(".failed") for path in tmp_path.iterdir())


# What is refused


def test_what_is_no_run_or_not_finished_is_refused(finished, pictures, tmp_path):
    with pytest.raises(RunFolderError, match="this is no run"):
        export_run(tmp_path, images=pictures)
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("segmenter*", "export"))
    with pytest.raises(RunFolderError, match="no segmenter yet") as caught:
        export_run(tmp_path / "run", images=pictures)
    assert "--resume" in str(caught.value) and not (tmp_path / "run/export").exists()


def test_an_unknown_network_or_precision_is_refused_with_the_known_ones(finished, pictures):
    with pytest.raises(ConfigError, match="no precision 'fp8'") as caught:
        export_run(finished, images=pictures, precisions=["fp8"])
    assert "fp32, fp16, int8" in str(caught.value)
    with pytest.raises(ConfigError, match="no network 'decoder'"):
        export_run(finished, images=pictures, networks=["decoder"])


def test_refinement_inside_the_graph_needs_labels_and_is_in_the_manifest(finished, pictures, tmp_path):
    options: dict[str, Any] = {"out": tmp_path, "networks": ["segmenter"], "precisions": ["fp32"], "images": pictures}
    with pytest.raises(ConfigError, match="--labels"):
        export_run(finished, pamr=2, **options)
    export_run(finished, pamr=2, labels=True, **options)
    assert read_manifest(tmp_path / "segmenter.onnx").made_from["pamr"] == 2


def test_a_folder_without_images_and_too_few_for_int8_are_refused(finished, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images"):
        export_run(finished, images=tmp_path / "empty")
    with pytest.raises(DataError, match="12 images to calibrate int8 with"):
        export_run(
            finished, out=tmp_path / "out", images=pictures, networks=["segmenter"], precisions=["int8"],
            tell=lambda text: None,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_where_the_runs_own_images_are_gone_drawn_ones_are_compared_on_but_never_calibrated_with(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    write_json(tmp_path / "run/data.json", {"root": str(tmp_path / "gone"), "classes": ["cat"]})
    shutil.copy(built_in_configs()["demo"], tmp_path / "run/config.toml")
    told: list[str] = []
    with pytest.raises(DataError, match="own images cannot be read") as caught:
        export_run(tmp_path / "run", precisions=["int8"], tell=told.append)
    assert "--images" in str(caught.value) and not (tmp_path / "run/export").exists()
    made = export_run(tmp_path / "run", networks=["segmenter"], precisions=["fp32"], tell=told.append)
    assert "comparing on drawn ones" in told[0]
    assert read_manifest(made[0].path).made_from["compared_on"] == "drawn"


def test_changed_weights_are_refused(finished, pictures, tmp_path):
    shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("export"))
    path = tmp_path / "run/segmenter.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunFolderError, match="checksums differ"):
        export_run(tmp_path / "run", images=pictures, networks=["segmenter"])


# Triton


def schema() -> Any:
    """Triton's own schema, from its client's package, without the client."""
    found = importlib.util.find_spec("tritonclient")
    if found is None:
        pytest.skip("tritonclient is not installed")
    folder = next(iter(found.submodule_search_locations or ()))
    spec = importlib.util.spec_from_file_location("model_config_pb2", Path(folder, "grpc/model_config_pb2.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_triton_reads_the_configuration_back(out, tmp_path):
    from google.protobuf import text_format

    folder = write_triton(out / "segmenter.fp16.onnx", tmp_path, max_batch=8)
    assert folder == tmp_path / "segmenter_fp16"
    assert (folder / "1/model.onnx").read_bytes() == (out / "segmenter.fp16.onnx").read_bytes()
    assert (folder / "labels.txt").read_text().splitlines() == ["background", *CLASSES]
    module = schema()
    config = text_format.Parse((folder / "config.pbtxt").read_text(), module.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("segmenter_fp16", "onnxruntime", 8)
    (image,), (logits,) = config.input, config.output
    assert (image.name, image.data_type, list(image.dims)) == ("image", module.TYPE_UINT8, [-1, -1, 3])
    assert (logits.name, logits.data_type, list(logits.dims)) == ("logits", module.TYPE_FP32, [3, -1, -1])
    assert config.HasField("dynamic_batching")


def test_the_served_file_takes_what_the_configuration_promises(out, tmp_path):
    folder = write_triton(out / "cam_net.onnx", tmp_path)
    found = open_onnx(folder / "1/model.onnx")(np.zeros((2, 64, 64, 3), np.uint8))
    assert found["maps"].shape[:2] == (2, 2) and found["scores"].shape == (2, 2)


def test_triton_serves_exported_files_only(finished, tmp_path):
    with pytest.raises(ModelFileError, match="exported files only"):
        write_triton(finished / "segmenter.safetensors", tmp_path)
    assert not manifest_path(tmp_path / "segmenter").exists()
