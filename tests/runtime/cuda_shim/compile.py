"""Our .cu files compiled for real GPUs, by nvcc or by the NVRTC that comes with torch, and what ptxas says of them."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

KERNEL = re.compile(r"Compiling entry function '(\w+)' for '(sm_\d+)'")
REGISTERS = re.compile(r"Used (\d+) registers")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one architecture."""

    registers: int
    stack: int  # [bytes]
    spills: int  # [bytes] stored and loaded


def resources(report: str) -> dict[tuple[str, str], Resources]:
    """(kernel, architecture) -> what ptxas wrote with -v. The line of spills comes before the line of registers."""
    found: dict[tuple[str, str], Resources] = {}
    kernel, stack, spills = ("", ""), 0, 0
    for line in report.splitlines():
        if match := KERNEL.search(line):
            kernel = (match[1], match[2])
        elif match := SPILLS.search(line):
            stack, spills = int(match[1]), int(match[2]) + int(match[3])
        elif match := REGISTERS.search(line):
            found[kernel] = Resources(int(match[1]), stack, spills)
    return found


def by_nvcc(source: Path, architectures: tuple[str, ...], folder: Path, defines: tuple[str, ...] = ()) -> str:
    """The report of nvcc for all architectures at once."""
    targets = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in architectures]
    command = ["nvcc", "-std=c++17", "-Xptxas=-v", "-Werror=all-warnings", "-fatbin", *targets, *defines]
    done = subprocess.run(
        [*command, str(source), "-o", str(folder / f"{source.stem}.fatbin")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def by_nvrtc(library: ctypes.CDLL, source: Path, architectures: tuple[str, ...], defines: tuple[str, ...] = ()) -> str:
    """The reports of NVRTC, with the options that CuPy gives it."""
    reports = []
    for sm in architectures:
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        code = source.read_bytes()
        assert library.nvrtcCreateProgram(ctypes.byref(program), code, source.name.encode(), 0, None, None) == 0
        options = [
            f"-arch=sm_{sm}",
            "--std=c++17",
            "--device-as-default-execution-space",
            "--ptxas-options=-v",
            *defines,
        ]
        values = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = library.nvrtcCompileProgram(program, len(options), values)
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        assert status == 0, log.value.decode()
        reports.append(log.value.decode())
    return "\n".join(reports)


def find_nvrtc() -> ctypes.CDLL | None:
    """The library of the nvidia-cuda-nvrtc wheel, or None."""
    folders = Path(sysconfig.get_path("purelib")).glob("nvidia/*/lib")
    for folder in folders:
        compilers = sorted(folder.glob("libnvrtc.so.*"))
        if compilers:
            for builtins in folder.glob("libnvrtc-builtins.so.*"):
                ctypes.CDLL(str(builtins))  # NVRTC asks for it by name and finds what is loaded
            return ctypes.CDLL(str(compilers[0]))
    return None


def has_nvcc() -> bool:
    """Whether nvcc is on the path."""
    return shutil.which("nvcc") is not None
