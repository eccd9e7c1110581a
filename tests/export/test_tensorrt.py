"""TensorRT without a GPU: NVIDIA's own parser and builder take every graph, and both versions' bindings know our words.

What these tests cannot show is an engine that runs; docs/tensorrt.md says so.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorrt_rtx
import torch

from sccam.artifacts import manifest_path, write_manifest
from sccam.errors import BackendUnavailable, ConfigError, ModelFileError, RunFolderError
from sccam.export.engines import engine_path, export_engine
from sccam.export.graphs import MapGraph, SegmenterGraph
from sccam.export.int8 import to_int8
from sccam.export.precision import to_fp16
from sccam.export.to_onnx import to_onnx
from sccam.export.to_tensorrt import DEFAULT_BUCKETS, Bucket, build_engine, parse_bucket
from sccam.nets.backbones import build_backbone
from sccam.nets.cam_net import CamNet
from sccam.nets.deeplab import DeepLab
from sccam.runtime.gpu import GpuFacts, gpu_facts
from sccam.runtime.network_tensorrt import check_engine, engine_facts, open_engine

ROOT = Path(__file__).resolve().parents[2]
BINDINGS = Path(sys.prefix) / "tensorrt-bindings"  # made by `make`, one folder for each major version
FACTS = GpuFacts("NVIDIA H100", "9.0", "13.0")
VERSION = "10.16.1"


@pytest.fixture(scope="module")
def rtx() -> Any:
    """TensorRT for RTX: the same interface, and a builder that needs no GPU."""
    library = tensorrt_rtx.load()
    if library is None:
        pytest.skip("the tensorrt-check extra is not installed")
    return library


def built(rtx: Any, model: Any, path: Path, **options: Any) -> bytes:
    path.write_bytes(model.SerializeToString())
    return build_engine(path, library=rtx, **options)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_nvidias_parser_and_builder_take_every_graph_with_all_buckets(case, rtx, images, precision, tmp_path):
    model = case.model
    if precision == "fp16":
        model = to_fp16(model)
    elif precision == "int8":
        model = to_int8(model, [images(100, 32, 48)], flavour="tensorrt")
    assert len(built(rtx, model, tmp_path / "net.onnx")) > 100_000


def test_they_refuse_onnx_runtimes_flavour_of_int8_with_their_own_words(exported, images, rtx, tmp_path):
    with pytest.raises(ModelFileError, match=r"cannot parse it.*UINT8"):
        built(rtx, to_int8(exported("maps").model, [images(100, 32, 48)]), tmp_path / "other.onnx")


@pytest.mark.parametrize("name", ["resnet50", "resnet38d"])
def test_they_take_large_trunks_with_the_maps_head(rtx, name, tmp_path):
    torch.manual_seed(0)
    net = CamNet(build_backbone(name, output_stride=8, weights="none"), 20)
    assert len(built(rtx, to_onnx(MapGraph(net), {}), tmp_path / "net.onnx")) > 1_000_000


def test_they_take_deeplab_v2_on_resnet_101_at_three_scales(rtx, tmp_path):
    torch.manual_seed(0)
    net = DeepLab(build_backbone("resnet101", output_stride=8, weights="none"), 21)
    graph = SegmenterGraph(net, multi_scale=True)
    assert len(built(rtx, to_onnx(graph, {}), tmp_path / "net.onnx")) > 1_000_000


def test_each_bucket_alone_builds_and_progress_is_told(exported, rtx, tmp_path):
    told: list[tuple[str, int, int]] = []
    for kind in ("maps", "affinity", "segmenter", "labels"):
        for bucket in DEFAULT_BUCKETS:
            model = exported(kind).model
            built(rtx, model, tmp_path / "net.onnx", buckets=[bucket], on_progress=lambda *step: told.append(step))
    assert told and all(1 <= done <= total for _, done, total in told)


def test_a_model_that_tensorrt_cannot_parse_is_refused_with_its_reason(rtx, tmp_path):
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])]
    out = [helper.make_tensor_value_info("y", TensorProto.INT64, [4, None])]
    nodes = [helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT), helper.make_node("NoSuch", ["f"], ["y"])]
    model = helper.make_model(helper.make_graph(nodes, "g", values, out))
    assert isinstance(model, onnx.ModelProto)
    with pytest.raises(ModelFileError, match="cannot parse it"):
        built(rtx, model, tmp_path / "net.onnx")


@pytest.mark.parametrize("major", ["10", "11"])
def test_every_name_and_signature_that_is_used_exists_in_the_real_bindings(exported, major, tmp_path):
    if not (BINDINGS / major).is_dir():
        pytest.skip("the bindings are not installed: make puts them into the environment")
    model = exported("maps").save(tmp_path / "net.onnx")
    script = Path(__file__).with_name("strict_tensorrt.py")
    done = subprocess.run(
        [sys.executable, script, BINDINGS / major, major, model],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version, *used = done.stdout.split()
    assert version.split(".")[0] == major
    assert {"Builder.create_network", "IExecutionContext.execute_async_v3", "IBuilderConfig.set_timing_cache"} <= set(
        used
    )


# Buckets


def test_a_bucket_is_read_and_written():
    bucket = parse_bucket("wide=1x32x64:4x256x512:8x512x1024")
    assert bucket == Bucket("wide", (1, 32, 64), (4, 256, 512), (8, 512, 1024))
    assert parse_bucket(bucket.text()) == bucket
    assert parse_bucket("one=1x320x320").smallest == parse_bucket("one=1x320x320").largest == (1, 320, 320)


@pytest.mark.parametrize("text", ["", "1x2x3", "a=1x2", "a=1x32x32:2x64x64", "a=1x64x64:1x32x32:1x128x128", "a=0x1x1"])
def test_what_is_no_bucket_is_refused(text):
    with pytest.raises(ConfigError):
        parse_bucket(text)


# Engines of another machine


class Untouchable:
    """A TensorRT that must not be asked for anything but its version."""

    __version__ = VERSION

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was used")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "net.engine"
    path.write_bytes(b"plan" * 100)
    write_manifest(
        path, kind="cam_net", backbone="none", classes=("cat",), mean=(0.5,) * 3, std=(0.5,) * 3, stride=16,
        made_from={"onnx": "net.onnx", **engine_facts(VERSION, FACTS)}, backend="tensorrt",
    )  # fmt: skip
    return path


def test_an_engine_of_this_machine_is_accepted(engine):
    assert check_engine(engine, VERSION, FACTS).made_from["gpu"] == "NVIDIA H100"


@pytest.mark.parametrize(
    ("version", "facts", "named"),
    [
        ("11.4.0", FACTS, "tensorrt: built for 10.16.1, here 11.4.0"),
        (VERSION, GpuFacts("NVIDIA L4", "8.9", "13.0"), "gpu: built for NVIDIA H100, here NVIDIA L4"),
    ],
)
def test_an_engine_of_another_tensorrt_or_gpu_is_not_opened_and_the_difference_is_named(engine, version, facts, named):
    library = Untouchable()
    library.__version__ = version
    with pytest.raises(ModelFileError, match=named) as caught:
        open_engine(engine, library=library, arrays=SimpleNamespace(), facts=facts)
    assert "--rebuild" in str(caught.value) and "net.onnx" in str(caught.value)


def test_a_flipped_byte_is_found_before_anything_is_opened(engine):
    data = bytearray(engine.read_bytes())
    data[123] ^= 1
    engine.write_bytes(data)
    with pytest.raises(RunFolderError, match="checksums differ"):
        open_engine(engine, library=Untouchable(), arrays=SimpleNamespace(), facts=FACTS)


def test_a_manifest_that_was_edited_by_hand_is_refused(engine):
    record = json.loads(manifest_path(engine).read_text())
    record["sha256"] = "0" * 64
    manifest_path(engine).write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match="checksums differ"):
        open_engine(engine, library=Untouchable(), arrays=SimpleNamespace(), facts=FACTS)
    manifest_path(engine).write_text("{}")
    with pytest.raises(RunFolderError, match="file is missing"):
        open_engine(engine, library=Untouchable(), arrays=SimpleNamespace(), facts=FACTS)


def test_an_engine_without_a_manifest_is_not_opened(engine):
    manifest_path(engine).unlink()
    with pytest.raises(RunFolderError):
        open_engine(engine, library=Untouchable(), arrays=SimpleNamespace(), facts=FACTS)


def test_an_engine_from_another_onnx_file_is_not_taken_for_this_one(engine):
    source = engine.with_name("net.onnx")
    source.write_bytes(b"a model")
    write_manifest(
        source, kind="cam_net", backbone="none", classes=("cat",), mean=(0.5,) * 3, std=(0.5,) * 3, stride=16,
        made_from={}, backend="onnx",
    )  # fmt: skip
    assert engine_path(source) == engine
    with pytest.raises(ModelFileError, match=r"built from another net\.onnx"):
        export_engine(source, source, [], library=Untouchable(), facts=FACTS)


def test_without_tensorrt_or_a_gpu_the_error_says_what_is_missing(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match="needs TensorRT"):
        build_engine(exported("labels").save(tmp_path / "net.onnx"))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError(f"{name}: cannot open")))
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        gpu_facts()


# The way from an ONNX file to a checked engine; building and running are played by ONNX Runtime here


@pytest.fixture
def played(exported, images, tmp_path, monkeypatch):
    """An exported file; TensorRT's builder gives b"plan", and its engine computes what `played.network` does."""
    from sccam.export import engines
    from sccam.runtime.network_onnxruntime import open_onnx

    source = exported("maps").save(tmp_path / "net.fp16.onnx")
    write_manifest(
        source, kind="cam_net", backbone="none", classes=("cat",), mean=(0.5,) * 3, std=(0.5,) * 3, stride=16,
        made_from={"round": 3}, backend="onnx", precision="fp16",
    )  # fmt: skip
    state = SimpleNamespace(source=source, builds=0, network=open_onnx(source), batches=[images(1, 64, 96)])

    def build(*_: Any, **__: Any) -> bytes:
        state.builds += 1
        return b"plan"

    monkeypatch.setattr(engines, "build_engine", build)
    monkeypatch.setattr(engines, "open_engine", lambda path, **_: state.network)
    state.export = lambda **options: export_engine(
        source, source, state.batches, library=SimpleNamespace(__version__=VERSION), facts=FACTS, **options
    )
    return state


def test_an_engine_is_compared_and_its_manifest_says_what_it_was_built_from_and_for(played):
    path, parity = played.export()
    assert path.name == "net.fp16.engine" and path.read_bytes() == b"plan" and parity.passed
    manifest = check_engine(path, VERSION, FACTS)
    built = manifest.made_from
    assert manifest.backend == "tensorrt" and manifest.precision == "fp16" and built["round"] == 3
    assert built["onnx"] == "net.fp16.onnx" and len(built["onnx_sha256"]) == 64
    assert (built["gpu"], built["compute_capability"], built["cuda"]) == ("NVIDIA H100", "9.0", "13.0")
    assert built["buckets"]["small"] == {"smallest": [1, 32, 32], "best": [8, 256, 320], "largest": [32, 320, 320]}
    assert manifest.parity and manifest.parity["runtime"] == "tensorrt 10.16.1 NVIDIA H100"
    assert manifest.parity["reference"] == "onnxruntime fp32"


def test_an_engine_that_fits_is_kept_and_built_again_only_when_asked(played):
    played.export()
    assert played.export()[1] is None and played.builds == 1
    assert played.export(rebuild=True)[1].passed and played.builds == 2


def test_an_engine_for_other_buckets_is_not_taken_for_the_one_that_was_asked_for(played):
    played.export()
    with pytest.raises(ModelFileError, match="built for other buckets"):
        played.export(buckets=[parse_bucket("one=1x64x96")])


def test_an_engine_that_computes_something_else_is_left_as_failed(played):
    played.export()
    right = played.network
    played.network = lambda images: {name: -value for name, value in right(images).items()}
    path, parity = played.export(rebuild=True)
    assert path.name == "net.fp16.engine.failed" and not parity.passed
    assert not path.with_name("net.fp16.engine").exists()
    assert json.loads(manifest_path(path).read_text())["failures"]


def test_images_that_no_bucket_holds_are_no_comparison(played):
    with pytest.raises(ModelFileError, match="no bucket holds any"):
        played.export(buckets=[parse_bucket("one=1x32x32")])


def test_an_int8_engine_is_timed_against_an_fp32_engine_and_refused_if_it_is_slower(played, monkeypatch, tmp_path):
    from sccam.export import engines

    fp32 = played.source.rename(tmp_path / "net.onnx")
    int8 = tmp_path / "net.int8.tensorrt.onnx"
    int8.write_bytes(fp32.read_bytes())
    for path, precision in ((fp32, "fp32"), (int8, "int8")):
        write_manifest(
            path, kind="cam_net", backbone="none", classes=("cat",), mean=(0.5,) * 3, std=(0.5,) * 3, stride=16,
            made_from={}, backend="onnx", precision=precision,
        )  # fmt: skip
    slow = {"net.engine": 1, "net.int8.engine": 5}

    def opened(path: Path, **_: Any) -> Any:
        def run(images: Any) -> Any:
            for _ in range(slow[path.name]):
                found = played.network(images)
            return found

        return run

    monkeypatch.setattr(engines, "open_engine", opened)

    def export() -> Any:
        return export_engine(
            int8, fp32, played.batches, library=SimpleNamespace(__version__=VERSION), facts=FACTS, rebuild=True
        )

    path, parity = export()
    assert played.builds == 2 and parity.speed_up < 1 and path.name == "net.int8.engine.failed"
    assert "a less exact network must at least be faster" in parity.failures[0]
    slow.update({"net.engine": 5, "net.int8.engine": 1})
    path, parity = export()
    assert parity.passed and parity.speed_up > 1 and path.name == "net.int8.engine"
