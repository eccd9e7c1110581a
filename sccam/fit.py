"""One training loop for the three trained networks: epochs, checkpoints, resume, a clean stop, one process or many.

A step is one whole batch, whoever takes which part of it: every loss is a sum over the parts, each of them a mean over
what the whole batch holds (images, pairs, labelled cells), so weights are those of one process that sees all at once.
Processes sum their gradients by DistributedDataParallel.

A checkpoint is one safetensors file: weights, optimiser state, and the step reached. It is all that a resumed run
needs, because batches are a function of (seed, epoch) and dropout is seeded anew at every step from (seed, step).
So a run that was killed anywhere ends with the weights of the run that was not (on a CPU, to the bit).
"""

from __future__ import annotations

import hashlib
import math
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sccam.artifacts import read_tensors, tensors_metadata, write_tensors
from sccam.data.batches import BatchLoader, TrainingBatch
from sccam.errors import NumericError, RunFolderError
from sccam.nets.compute import Compute
from sccam.nets.dropout import share_dropout
from sccam.ranks import Ranks
from sccam.stages.optim import OptimiserConfig, build_optimiser, poly_factor, set_learning_rate
from sccam.stop import StopRequest

CHECKPOINT_SECONDS = 300.0  # at least this often, and after every epoch
CHECKPOINT_SCHEMA = "1"


LossOf = Callable[[TrainingBatch, Tensor | None], Tensor]
CountsOf = Callable[[TrainingBatch], Tensor]


def shares(own: Tensor, whole: Tensor | None) -> Tensor:
    """What a part's means weigh in those of the whole batch [T]; 1 where the part is the whole.

    Args:
        own: counts of the part [T].
        whole: those of the batch.
    """
    return torch.ones_like(own) if whole is None else own.to(whole) / whole.clamp(min=1)


def fit(
    model: nn.Module,
    groups: Mapping[str, Sequence[nn.Parameter]],
    loader: BatchLoader,
    loss_of: LossOf,
    *,
    counts_of: CountsOf,
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
    ranks: Ranks | None = None,
) -> None:
    """Trains `model` in place for `epochs`, from its checkpoint if there is one.

    Args:
        groups: the network's `parameter_groups()`.
        loss_of: what a part of a batch adds to its loss, a scalar, given the counts of the whole batch; None where
            the part is the whole. Runs inside autocast.
        counts_of: how many things each mean of the loss is over in a part of a batch [T], known before the network
            has seen it; a batch in which all are 0 is left out.
        schedule_epochs: T of the polynomial learning rate; not less than `epochs`.
        seed: of dropout; batches have their own seed in the loader.
        checkpoint: file that is written after every epoch and at least every five minutes.
        on_step: called with (steps done, steps in all).
        on_epoch: called with (epoch, mean loss, images per second).
        average: decay of an exponential mean of the weights, which the model has in the end; 0 keeps the last ones.
        enough: mean loss of an epoch after which no further epoch is begun; 0 for none.
        ranks: the processes that train together, each with its share from its loader; the first one writes.

    Raises:
        NumericError: the loss is NaN or infinite; the last checkpoint stays.
        Interrupted: after a stop request, with the checkpoint written.
    """
    optimiser = build_optimiser(groups, optimiser_config)
    scaler = torch.amp.GradScaler(torch.device(compute.device).type, enabled=compute.precision == "fp16")
    total = epochs * loader.steps
    horizon = schedule_epochs * loader.steps
    mean = Average(model, average) if average > 0 else None
    ranks = ranks or Ranks()
    begun = ranks.told(checkpoint.exists())  # a shared disk may show it to one process later than to another
    done, losses = _restore(checkpoint, model, optimiser, scaler, mean) if begun else (0, [])
    saved_at = time.monotonic()
    step = _Step(model, loader.batch, loss_of, counts_of, compute, ranks)

    def save() -> None:
        nonlocal saved_at
        if ranks.first:
            _save(checkpoint, model, optimiser, scaler, done, losses, mean)
        saved_at = time.monotonic()

    model.train()
    for epoch in range(done // loader.steps if loader.steps else 0, epochs):
        started, first_step = time.monotonic(), done % loader.steps
        with closing(loader.epoch(epoch, first_step)) as batches:
            for batch in batches:
                set_learning_rate(optimiser, poly_factor(done, horizon, optimiser_config.power))
                optimiser.zero_grad(set_to_none=True)
                value = step(batch, seed * 1_000_003 + done, scaler, stop)
                if not math.isfinite(value):
                    raise NumericError(
                        f"the loss became {value} at step {done}",
                        where=checkpoint.parent,
                        why="a learning rate that is too high, or half precision",
                        fix="lower the optimiser's lr or set precision = 'fp32', then start again with --overwrite",
                    )
                if step.learned:
                    scaler.step(optimiser)
                    scaler.update()
                done += 1
                if mean is not None:
                    mean.add(model, done)
                losses.append(value)
                on_step(done, total)
                if done % loader.steps == 0:
                    break  # the epoch is told and saved below
                stopping = step.stopping if ranks.count > 1 else stop.signal is not None
                if stopping or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                    save()
                    if stopping:
                        stop.check()
        seconds = max(1e-9, time.monotonic() - started)
        if losses:
            mean_loss = sum(losses) / len(losses)
            on_epoch(epoch, mean_loss, (len(losses) - first_step) * loader.batch / seconds)
            done = total if 0 <= mean_loss < enough else done
        losses = []
        save()
        _hear(stop, float(ranks.summed(_flag(stop))))
        stop.check()
        if done == total:
            break
    if mean is not None:
        mean.give(model)
    model.eval()


class _Step:
    """The loss of a batch and its gradients, from the parts of it that this process takes and from the others.

    Attributes:
        learned: whether the last batch gave gradients: one without a labelled pixel has nothing to teach.
        stopping: whether one of several processes was asked to stop before it; all of them say the same.
    """

    def __init__(
        self, model: nn.Module, batch: int, loss_of: LossOf, counts_of: CountsOf, compute: Compute, ranks: Ranks
    ) -> None:
        self.learned, self.stopping = False, False
        self._model, self._batch, self._compute, self._ranks = model, batch, compute, ranks
        self._loss_of, self._counts_of = loss_of, counts_of
        self._shared: DistributedDataParallel | None = None
        if ranks.count > 1:
            # 1x1 kernels that lie channels last have strides of their own and the same bytes
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of newer versions, about an option's name
                self._shared = DistributedDataParallel(
                    _Loss(model, loss_of), process_group=ranks.gradients, broadcast_buffers=False
                )

    def __call__(
        self, parts: Sequence[TrainingBatch], seed: int, scaler: torch.amp.GradScaler, stop: StopRequest
    ) -> float:
        """The loss; the gradients are in the model."""
        if self._ranks.count == 1 and len(parts) == 1:
            return self._whole(parts[0], seed, scaler)
        sums = self._ranks.summed(torch.cat([sum(map(self._counts_of, parts)).double().cpu(), _flag(stop)]))  # type: ignore[union-attr]
        _hear(stop, float(sums[-1]))
        self.stopping = bool(sums[-1] > 0)
        counts = sums[:-1].float().to(self._compute.device)
        self.learned = bool(counts.any())
        if not self.learned:
            return 0.0
        total = torch.zeros((), device=self._compute.device)
        for n, part in enumerate(parts, 1):
            total += self._part(part, counts, seed, scaler, last=n == len(parts))
        share_dropout(self._model, None)
        return float(self._ranks.summed(total.double()))

    def _whole(self, batch: TrainingBatch, seed: int, scaler: torch.amp.GradScaler) -> float:
        torch.manual_seed(seed)
        with self._compute.autocast():
            loss = self._loss_of(batch, None)
        value = float(loss.detach())
        self.learned = loss.requires_grad
        if self.learned and math.isfinite(value):
            scaler.scale(loss).backward()
        return value

    def _part(
        self, part: TrainingBatch, counts: Tensor, seed: int, scaler: torch.amp.GradScaler, *, last: bool
    ) -> Tensor:
        torch.manual_seed(seed)
        share_dropout(self._model, (part.first, self._batch))
        waiting = self._shared.no_sync() if self._shared is not None and not last else nullcontext()
        with waiting:
            with self._compute.autocast():
                loss = (self._shared or self._loss_of)(part, counts)
            scaler.scale(loss * self._ranks.count).backward()  # processes take the mean of their gradients
        return loss.detach()


class _Loss(nn.Module):
    """The loss as the output of a module, for the hooks that sum gradients while they are made."""

    def __init__(self, model: nn.Module, loss_of: LossOf) -> None:
        super().__init__()
        self.model, self.loss_of = model, loss_of

    def forward(self, part: TrainingBatch, counts: Tensor) -> Tensor:
        return self.loss_of(part, counts)


def _flag(stop: StopRequest) -> Tensor:
    return torch.tensor([float(stop.signal is not None)], dtype=torch.float64)


def _hear(stop: StopRequest, heard: float) -> None:
    """Takes over a request that another process has heard."""
    if heard > 0 and stop.signal is None:
        stop.signal = signal.SIGTERM


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
