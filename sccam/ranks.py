"""Several processes that do one run together, as `torchrun` starts them: one process alone is rank 0 of one.

All of them read and write one run folder, on a disk that all of them see. The first one keeps run.json, trains what is
not shared, and tells the others what it found. What is sent between them goes over the network: gradients by NCCL or
gloo, everything else by gloo.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from sccam.errors import BackendUnavailable, ConfigError, ResourceError

PATIENCE = datetime.timedelta(hours=24)  # for what the first process does alone
STEP_PATIENCE = datetime.timedelta(minutes=10)  # for a step

Item = TypeVar("Item")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is.

    Attributes:
        rank, count: of all processes of the run.
        local, beside: of those on this machine.
        gradients: the group that gradients are summed over.
        steps: the group that all else of a step is summed over, on CPUs.
    """

    rank: int = 0
    count: int = 1
    local: int = 0
    beside: int = 1
    gradients: Any = None
    steps: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the process that keeps the run folder."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Every so manieth item: each is in the share of exactly one process."""
        return list(items[self.rank :: self.count])

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()

    def told(self, value: Value) -> Value:
        """What the first process has for it."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Value) -> list[Value]:
        """The values of all processes, in their order; at the first one, elsewhere nothing."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.first else None
        dist.gather_object(value, found, dst=0)
        return found or []

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes, which take a step together, on a CPU."""
        total = values.detach().cpu()
        if self.count > 1:
            total = total.clone()
            dist.all_reduce(total, group=self.steps)
        return total


def place() -> tuple[int, int, int, int]:
    """Rank and count of this process among all, and among those of its machine, by the variables of `torchrun`.

    Raises:
        ConfigError: they are no numbers.
    """
    names = (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1))
    try:
        rank, count, local, beside = (int(os.environ.get(name, default)) for name, default in names)
    except ValueError as error:
        raise ConfigError(
            f"{', '.join(name for name, _ in names)} must be numbers: {error}", fix="start with torchrun, or unset them"
        ) from error
    return (rank, count, local, beside) if count > 1 else (0, 1, 0, 1)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that this one was started with, by the variables that `torchrun` sets; alone without them.

    Args:
        device: `run.device`; a GPU of its own for each process of a machine, unless it is "cpu".

    Raises:
        BackendUnavailable: fewer GPUs than processes on this machine, or PyTorch cannot connect processes.
        ConfigError: the variables are no numbers.
        ResourceError: another process has ended before this one.
    """
    rank, count, local, beside = place()
    if count == 1:
        yield Ranks()
        return
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu and local >= torch.cuda.device_count():
        raise BackendUnavailable(
            f"{beside} processes on a machine with {torch.cuda.device_count()} GPUs",
            fix="start one a GPU: torchrun --nproc-per-node=gpu",
        )
    if not dist.is_available():
        raise BackendUnavailable("this PyTorch cannot connect processes", fix="train in one process")
    if on_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        steps = dist.new_group(backend="gloo", timeout=STEP_PATIENCE)
        gradients = dist.new_group(backend="nccl", timeout=STEP_PATIENCE) if on_gpu else steps
        yield Ranks(rank, count, local, beside, gradients, steps)
    except RuntimeError as error:
        if _lost(error):
            raise ResourceError(
                f"process {rank} of {count} has lost another one: {str(error).splitlines()[0]}",
                why="it has failed, was killed, or its machine is gone; its own message says more",
                fix="start the same command again with --resume; it may be other processes, more or fewer",
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def device_of(device: str, ranks: Ranks) -> str:
    """`run.device` for this process: one of many has a GPU of its own."""
    if ranks.count == 1 or device == "cpu" or not torch.cuda.is_available():
        return device
    return f"cuda:{ranks.local}"


def _lost(error: RuntimeError) -> bool:
    """Whether a message is that of a connection to a process that is gone."""
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(
        word in text for word in ("gloo", "nccl", "connection closed", "connection reset", "broken pipe")
    )
