"""Where a network runs and how precisely: device, autocast, memory layout, normalised input."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sccam.errors import BackendUnavailable


@dataclass(frozen=True, slots=True)
class Compute:
    """A resolved device and precision; made by `resolve`, passed down."""

    device: str  # "cpu" | "cuda" | "cuda:1" ...
    precision: str  # "fp32" | "bf16" | "fp16"

    @classmethod
    def resolve(cls, device: str, precision: str) -> Compute:
        """`auto` made concrete: cuda where a GPU answers, bf16 on GPUs that have it, fp32 on a CPU.

        Raises:
            BackendUnavailable: a GPU is asked for and none works.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_gpu = device.startswith("cuda")
        if on_gpu and not torch.cuda.is_available():
            raise BackendUnavailable(
                f"device {device!r} is asked for, but torch {torch.__version__} finds no GPU",
                why="no NVIDIA driver, or a CPU build of torch",
                fix="use --set run.device=cpu, or install a CUDA build of torch",
            )
        if precision == "auto":
            precision = ("bf16" if torch.cuda.is_bf16_supported() else "fp16") if on_gpu else "fp32"
        if precision == "fp16" and not on_gpu:
            raise BackendUnavailable("fp16 training needs a GPU", fix="use --set run.precision=fp32 (or bf16)")
        if not on_gpu:
            keep_freed_memory()
        return cls(device, precision)

    def autocast(self) -> torch.autocast:
        """The autocast context of this precision."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(torch.device(self.device).type, dtype=dtype, enabled=self.precision != "fp32")

    def place(self, model: nn.Module) -> None:
        """Moves the model to the device, channels last (on a CPU, depthwise networks need it)."""
        model.to(self.device)
        model.to(memory_format=torch.channels_last)

    def normalised(self, pixels: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """u8 [N H W 3] as normalised float [N 3 H W], channels last, on the device.

        Args:
            mean, std: of RGB values in [0, 1].
        """
        # Copied where it must be: a mirrored view has a negative stride, which torch does not take.
        images = torch.tensor(np.ascontiguousarray(pixels), device=self.device).permute(0, 3, 1, 2).float()
        scale = torch.tensor([255.0 * s for s in std], device=self.device).view(1, 3, 1, 1)
        offset = torch.tensor([255.0 * m for m in mean], device=self.device).view(1, 3, 1, 1)
        return ((images - offset) / scale).contiguous(memory_format=torch.channels_last)


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within it, where wanted, PyTorch takes algorithms that give the same bits each time, as far as it has them.

    On a CPU that is all of them, for one number of threads. On a GPU PyTorch warns of an operation that has none.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn


def keep_freed_memory() -> None:
    """Lets the C library reuse freed tensors instead of returning them to the system (Linux with glibc; else nothing).

    By default every tensor above 32 MB is mapped and page-faulted anew at every step.
    """
    MMAP_MAX, TRIM_THRESHOLD, TOP_PAD = -4, -1, -2  # names in malloc.h
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(MMAP_MAX, 0)
            mallopt(TRIM_THRESHOLD, 2**31 - 1)
            mallopt(TOP_PAD, 64 << 20)
