"""One training loop for the three trained networks: epochs, checkpoints, resume, a clean stop.

A checkpoint is one safetensors file: weights, optimiser state, and the step reached. It is all that a resumed run
needs, because batches are a function of (seed, epoch) and dropout is seeded anew at every step from (seed, step).
So a run that was killed anywhere ends with the weights of the run that was not (on a CPU, to the bit).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from sccam.artifacts import read_tensors, tensors_metadata, write_tensors
from sccam.data.batches import BatchLoader, TrainingBatch
from sccam.errors import NumericError, RunFolderError
from sccam.nets.compute import Compute
from sccam.stages.optim import OptimiserConfig, build_optimiser, poly_factor, set_learning_rate
from sccam.stop import StopRequest

CHECKPOINT_SECONDS = 300.0  # at least this often, and after every epoch
CHECKPOINT_SCHEMA = "1"


def fit(
    model: nn.Module,
    groups: Mapping[str, Sequence[nn.Parameter]],
    loader: BatchLoader,
    loss_of: Callable[[TrainingBatch], Tensor],
    *,
    optimiser_config: OptimiserConfig,
    epochs: int,
    schedule_epochs: int,
    seed: int,
    compute: Compute,
    checkpoint: Path,
    stop: StopRequest,
    on_step: Callable[[int, int], None],
    on_epoch: Callable[[int, float, float], None],
    average: float = 0.0,
    enough: float = 0.0,
) -> None:
    """Trains `model` in place for `epochs`, from its checkpoint if there is one.

    Args:
        groups: the network's `parameter_groups()`.
        loss_of: the loss of one batch, a scalar; runs inside autocast.
        schedule_epochs: T of the polynomial learning rate; not less than `epochs`.
        seed: of dropout; batches have their own seed in the loader.
        checkpoint: file that is written after every epoch and at least every five minutes.
        on_step: called with (steps done, steps in all).
        on_epoch: called with (epoch, mean loss, images per second).
        average: decay of an exponential mean of the weights, which the model has in the end; 0 keeps the last ones.
        enough: mean loss of an epoch after which no further epoch is begun; 0 for none.

    Raises:
        NumericError: the loss is NaN or infinite; the last checkpoint stays.
        Interrupted: after a stop request, with the checkpoint written.
    """
    optimiser = build_optimiser(groups, optimiser_config)
    scaler = torch.amp.GradScaler(torch.device(compute.device).type, enabled=compute.precision == "fp16")
    total = epochs * loader.steps
    horizon = schedule_epochs * loader.steps
    mean = Average(model, average) if average > 0 else None
    done, losses = _restore(checkpoint, model, optimiser, scaler, mean) if checkpoint.exists() else (0, [])
    saved_at = time.monotonic()
    model.train()
    for epoch in range(done // loader.steps if loader.steps else 0, epochs):
        started, first_step = time.monotonic(), done % loader.steps
        with closing(loader.epoch(epoch, first_step)) as batches:
            for batch in batches:
                torch.manual_seed(seed * 1_000_003 + done)
                set_learning_rate(optimiser, poly_factor(done, horizon, optimiser_config.power))
                optimiser.zero_grad(set_to_none=True)
                with compute.autocast():
                    loss = loss_of(batch)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise NumericError(
                        f"the loss became {value} at step {done}",
                        where=checkpoint.parent,
                        why="a learning rate that is too high, or half precision",
                        fix="lower the optimiser's lr or set precision = 'fp32', then start again with --overwrite",
                    )
                if loss.requires_grad:  # a batch without one labelled pixel has nothing to teach
                    scaler.scale(loss).backward()
                    scaler.step(optimiser)
                    scaler.update()
                done += 1
                if mean is not None:
                    mean.add(model, done)
                losses.append(value)
                on_step(done, total)
                if done % loader.steps == 0:
                    break  # the epoch is told and saved below
                if stop.signal is not None or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    _save(checkpoint, model, optimiser, scaler, done, losses, mean)
                    saved_at = time.monotonic()
                    stop.check()
        seconds = max(1e-9, time.monotonic() - started)
        if losses:
            mean_loss = sum(losses) / len(losses)
            on_epoch(epoch, mean_loss, (len(losses) - first_step) * loader.batch / seconds)
            done = total if 0 <= mean_loss < enough else done
        losses = []
        _save(checkpoint, model, optimiser, scaler, done, losses, mean)
        saved_at = time.monotonic()
        stop.check()
        if done == total:
            break
    if mean is not None:
        mean.give(model)
    model.eval()


class Average:
    """An exponential mean of a model's weights, shorter over the first steps so that it forgets the start.

    Source: Tarvainen and Valpola, Mean teachers, NeurIPS 2017, §3 and its ramp of the decay.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors = {name: parameter.detach().clone() for name, parameter in _learned(model)}

    @torch.no_grad()
    def add(self, model: nn.Module, step: int) -> None:
        """The weights after a step, counted from 1."""
        decay = min(self.decay, step / (step + 10))
        for name, parameter in _learned(model):
            self.tensors[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def give(self, model: nn.Module) -> None:
        """Puts the mean into the model."""
        for name, parameter in _learned(model):
            parameter.copy_(self.tensors[name])


def _learned(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _save(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    done: int,
    losses: list[float],
    mean: Average | None,
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:
                tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value)
    if mean is not None:
        tensors |= {f"mean.{name}": tensor for name, tensor in mean.tensors.items()}
    tensors["done"] = torch.tensor(done)
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)  # of the epoch that was begun
    tensors["scale"] = torch.tensor(float(scaler.get_scale()), dtype=torch.float64)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_tensors(path, tensors, {"schema": CHECKPOINT_SCHEMA, "file": path.name, "sha256": _digest(tensors)})


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: a damaged byte would go on as a weight."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, as they were written under this name."""
    tensors, facts, wrong = read_tensors(path), tensors_metadata(path), None
    if facts.get("schema") != CHECKPOINT_SCHEMA:
        wrong = "the checkpoint was written by another version of sccam"
    elif facts.get("file") != path.name:
        wrong = f"the checkpoint is that of another stage: {facts.get('file')}"
    elif facts.get("sha256") != _digest(tensors):
        wrong = "the checkpoint is damaged: its checksum differs"
    if wrong:
        raise RunFolderError(wrong, where=path, fix="delete it and resume the run: its stage begins again")
    return tensors


def _restore(
    path: Path,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    mean: Average | None,
) -> tuple[int, list[float]]:
    tensors = _read(path)
    try:
        model.load_state_dict({name[6:]: tensors[name] for name in tensors if name.startswith("model.")})
        # Loading sizes each entry by the parameter it belongs to; a fresh state dict gives the group layout.
        layout = optimiser.state_dict()
        layout["state"] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".", 2)
                layout["state"].setdefault(int(index), {})[key] = tensor
        optimiser.load_state_dict(layout)
        if mean is not None:
            for name, tensor in mean.tensors.items():
                tensor.copy_(tensors[f"mean.{name}"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise RunFolderError(
            f"the checkpoint does not fit this network: {error}",
            where=path,
            why="it was written with other settings",
            fix="use the settings of the run, or start again with --overwrite",
        ) from error
    if scaler.is_enabled():
        scaler.load_state_dict({**scaler.state_dict(), "scale": float(tensors["scale"])})
    return int(tensors["done"]), tensors["losses"].tolist() if "losses" in tensors else []
