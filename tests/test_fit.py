"""The training loop: a run that was cut off anywhere ends with the weights of the run that was not, to the bit."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from sccam import fit as fit_module
from sccam.artifacts import read_tensors, sha256
from sccam.data.batches import BatchLoader, TrainingBatch
from sccam.data.transforms import AugmentConfig
from sccam.errors import Interrupted, NumericError, RunFolderError
from sccam.fit import fit
from sccam.nets.compute import Compute
from sccam.stages.optim import OptimiserConfig, poly_factor
from sccam.stop import StopRequest
from sccam.structures import LabelSet, TaggedImages

CPU = Compute("cpu", "fp32")
EPOCHS, STEPS = 2, 3  # seven images in batches of two
OPTIMISERS = {
    "sgd": OptimiserConfig(name="sgd", lr=0.05),
    "adam": OptimiserConfig(name="adam", lr=0.01),
    "adamw": OptimiserConfig(name="adamw", lr=0.01),
}


@pytest.fixture(autouse=True)
def _one_thread(_same_numbers_every_time: None) -> None:
    """Two threads take ten times as long on a net this small when another program keeps the cores busy."""
    torch.set_num_threads(1)


class PowerCut(BaseException):
    """What no code of ours catches."""


class Net(nn.Module):
    """Two convolutions with dropout between them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout2d(0.3)
        self.second = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.dropout(torch.relu(self.norm(self.first(x)))))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        named = dict(self.named_parameters())
        return {
            "weights": [named["first.weight"]],
            "norms": list(self.norm.parameters()),
            "heads": [named["second.weight"]],
            "head_biases": [named["first.bias"], named["second.bias"]],
        }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TaggedImages:
    folder, rng = tmp_path_factory.mktemp("fit"), np.random.default_rng(0)
    paths = tuple(folder / f"{n}.png" for n in range(7))
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return TaggedImages("train", paths, LabelSet(np.ones((7, 1), bool), tuple(p.stem for p in paths), ("cat",)))


class Run:
    """One training on a checkpoint file; call `fit` again to resume it."""

    def __init__(self, images: TaggedImages, folder: Path, optimiser: str = "sgd", **options: Any):
        self.images, self.checkpoint = images, folder / "checkpoint.safetensors"
        self.options: dict[str, Any] = {
            "optimiser_config": OPTIMISERS[optimiser],
            "epochs": EPOCHS,
            "schedule_epochs": EPOCHS,
            "seed": 5,
        }
        self.options |= options
        self.steps: list[tuple[int, int]] = []
        self.epochs: list[tuple[int, float, float]] = []
        self.stop = StopRequest()

    def fit(
        self,
        *,
        stop_at: int | None = None,
        cut_at: int | None = None,
        loss_of: Callable[[nn.Module, TrainingBatch], Tensor] | None = None,
        width: int = 4,
    ) -> dict[str, Tensor]:
        """The weights after training, which is asked to stop, or loses its power, in the given step."""
        torch.manual_seed(0)
        net = Net(width)
        CPU.place(net)
        loader = BatchLoader(
            self.images, AugmentConfig(crop=16, long_side=(16, 24)), batch=2, fill=(0, 0, 0), seed=(1,), threads=1
        )

        def mean_square(batch: TrainingBatch) -> Tensor:
            return net(CPU.normalised(batch.pixels, (0.5,) * 3, (0.25,) * 3)).square().mean()

        def on_step(done: int, total: int) -> None:
            self.steps.append((done, total))
            if done == stop_at:
                self.stop.signal = signal.SIGINT
            if done == cut_at:
                raise PowerCut

        fit(
            net,
            net.parameter_groups(),
            loader,
            lambda batch, counts: mean_square(batch) if loss_of is None else loss_of(net, batch),
            counts_of=lambda batch: torch.tensor([len(batch.rows)]),
            compute=CPU,
            checkpoint=self.checkpoint,
            stop=self.stop,
            on_step=on_step,
            on_epoch=lambda *facts: self.epochs.append(facts),
            **self.options,
        )
        assert not net.training
        return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_a_run_that_is_stopped_after_any_step_and_resumed_ends_with_the_same_bits(images, tmp_path, optimiser):
    whole = Run(images, tmp_path / "whole", optimiser).fit()
    for step in range(1, EPOCHS * STEPS + 1):
        run = Run(images, tmp_path / str(step), optimiser)
        with pytest.raises(Interrupted):
            run.fit(stop_at=step)
        run.stop = StopRequest()
        assert equal(run.fit(), whole), f"stopped after step {step}"
        assert [done for done, _ in run.steps] == list(range(1, EPOCHS * STEPS + 1))  # no step twice, none left out


@pytest.mark.parametrize("seconds_between_checkpoints", [300.0, 0.0], ids=["each epoch", "each step"])
def test_a_run_that_is_killed_in_any_step_and_resumed_ends_with_the_same_bits(
    images, tmp_path, monkeypatch, seconds_between_checkpoints
):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", seconds_between_checkpoints)
    whole = Run(images, tmp_path / "whole").fit()
    for step in range(1, EPOCHS * STEPS + 1):
        run = Run(images, tmp_path / str(step))
        with pytest.raises(PowerCut):
            run.fit(cut_at=step)
        assert equal(run.fit(), whole), f"killed in step {step}"


def test_a_run_may_be_stopped_again_and_again(images, tmp_path):
    whole = Run(images, tmp_path / "whole", "adamw").fit()
    run = Run(images, tmp_path / "run", "adamw")
    for step in range(1, EPOCHS * STEPS):
        with pytest.raises(Interrupted):
            run.fit(stop_at=step)
        run.stop = StopRequest()
    assert equal(run.fit(), whole)


def test_the_mean_of_the_weights_survives_a_power_cut_in_any_step_and_is_the_formula(images, tmp_path):
    run, seen = Run(images, tmp_path / "whole", average=0.6), []

    def watched(net: nn.Module, batch: TrainingBatch) -> Tensor:
        seen.append(net.get_parameter("first.weight").detach().clone())  # before each step
        return net(CPU.normalised(batch.pixels, (0.5,) * 3, (0.25,) * 3)).square().mean()

    whole = run.fit(loss_of=watched)
    seen.append(read_tensors(run.checkpoint)["model.first.weight"])  # the last, which the mean took no place of
    mean = seen[0]
    for step, weight in enumerate(seen[1:], 1):
        decay = min(0.6, step / (step + 10))
        mean = decay * mean + (1 - decay) * weight
    torch.testing.assert_close(whole["first.weight"], mean)
    assert not torch.equal(mean, seen[-1])
    for step in range(1, EPOCHS * STEPS + 1):
        again = Run(images, tmp_path / str(step), average=0.6)
        with pytest.raises(PowerCut):
            again.fit(cut_at=step)
        assert equal(again.fit(), whole), f"killed in step {step}"


@pytest.mark.parametrize("seconds_between_checkpoints", [300.0, 0.0], ids=["each epoch", "each step"])
def test_a_round_that_has_learned_enough_ends_and_a_killed_one_ends_there_too(
    images, tmp_path, monkeypatch, seconds_between_checkpoints
):
    monkeypatch.setattr(fit_module, "CHECKPOINT_SECONDS", seconds_between_checkpoints)
    long = Run(images, tmp_path / "long", epochs=6, schedule_epochs=6)
    long.fit()
    losses = [loss for _, loss, _ in long.epochs]
    enough = 1.0001 * losses[2]
    ended = next(epoch for epoch, loss in enumerate(losses) if loss < enough)
    assert ended < 5
    whole = Run(images, tmp_path / "whole", epochs=6, schedule_epochs=6, enough=enough)
    weights = whole.fit()
    assert [loss for _, loss, _ in whole.epochs] == losses[: ended + 1]
    assert equal(whole.fit(), weights) and len(whole.epochs) == ended + 1  # nothing is left to do
    for step in range(1, (ended + 1) * STEPS + 1):
        run = Run(images, tmp_path / str(step), epochs=6, schedule_epochs=6, enough=enough)
        with pytest.raises(PowerCut):
            run.fit(cut_at=step)
        assert equal(run.fit(), weights), f"killed in step {step}"


def test_a_finished_run_trains_no_more(images, tmp_path):
    run = Run(images, tmp_path)
    weights, digest = run.fit(), sha256(run.checkpoint)
    run.steps.clear()
    assert equal(run.fit(), weights)
    assert run.steps == [] and sha256(run.checkpoint) == digest


def test_the_seed_decides_dropout(images, tmp_path):
    first, again, other = (
        Run(images, tmp_path / name, seed=seed).fit() for name, seed in zip("abc", (5, 5, 6), strict=True)
    )
    assert equal(first, again) and not equal(first, other)


def test_training_leaves_its_checkpoint_its_steps_and_its_epochs(images, tmp_path):
    run = Run(images, tmp_path)
    weights = run.fit()
    assert run.steps == [(step, EPOCHS * STEPS) for step in range(1, EPOCHS * STEPS + 1)]
    assert [epoch for epoch, _, _ in run.epochs] == list(range(EPOCHS))
    assert all(np.isfinite(loss) and rate > 0 for _, loss, rate in run.epochs)
    tensors = read_tensors(run.checkpoint)
    assert int(tensors["done"]) == EPOCHS * STEPS
    assert equal({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")}, weights)


def test_every_epoch_is_told_though_the_run_was_stopped_at_its_last_step(images, tmp_path):
    run = Run(images, tmp_path)
    with pytest.raises(Interrupted):
        run.fit(stop_at=STEPS)
    run.stop = StopRequest()
    run.fit()
    assert [epoch for epoch, _, _ in run.epochs] == list(range(EPOCHS))


# One step


def test_each_step_has_the_learning_rate_of_the_longer_schedule(images, tmp_path, tolerance):
    plain = OptimiserConfig(lr=0.5, momentum=0.0, weight_decay=0.0, power=0.9)
    run = Run(images, tmp_path, optimiser_config=plain, schedule_epochs=5)
    before = run.fit(loss_of=lambda net, batch: 0 * net.get_parameter("first.weight").sum())
    run.checkpoint.unlink()
    after = run.fit(loss_of=lambda net, batch: net.get_parameter("first.weight").sum())
    moved = 0.5 * sum(poly_factor(step, 5 * STEPS, 0.9) for step in range(EPOCHS * STEPS))
    torch.testing.assert_close(
        before["first.weight"] - after["first.weight"],
        torch.full((4, 3, 3, 3), moved),
        atol=10 * tolerance["float32"],  # six steps of about 0.4
        rtol=0,
    )


def test_a_batch_that_teaches_nothing_is_skipped_whole(images, tmp_path):
    """Neither weight decay nor momentum moves the weights on a batch without a labelled pixel."""
    nothing = Run(images, tmp_path / "a").fit(loss_of=lambda net, batch: torch.zeros(()))
    torch.manual_seed(0)
    assert equal(nothing, dict(Net().state_dict()))

    def every_third(net: nn.Module, batch: TrainingBatch) -> Tensor:
        loss = net(CPU.normalised(batch.pixels, (0.5,) * 3, (0.25,) * 3)).square().mean()
        return torch.zeros(()) if len(run.steps) % 3 else loss

    run = Run(images, tmp_path / "b")
    trained = run.fit(loss_of=every_third)
    assert len(run.steps) == EPOCHS * STEPS and not equal(trained, nothing)


def test_gradients_of_one_step_do_not_reach_the_next(images, tmp_path):
    plain = OptimiserConfig(lr=1.0, momentum=0.0, weight_decay=0.0, power=0.0)
    seen = []

    def loss_of(net: nn.Module, batch: TrainingBatch) -> Tensor:
        bias = net.get_parameter("second.bias")
        seen.append(bias.detach().clone())
        return bias.sum()

    Run(images, tmp_path, optimiser_config=plain, epochs=1).fit(loss_of=loss_of)
    steps = torch.stack(seen).diff(dim=0)
    torch.testing.assert_close(steps, torch.full_like(steps, -20.0))  # head biases: twenty times the rate


# When it must end


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_training_and_leaves_the_last_checkpoint(images, tmp_path, value):
    run = Run(images, tmp_path)
    with pytest.raises(PowerCut):
        run.fit(cut_at=STEPS + 1)
    digest = sha256(run.checkpoint)

    def diverging(net: nn.Module, batch: TrainingBatch) -> Tensor:
        loss = net(CPU.normalised(batch.pixels, (0.5,) * 3, (0.25,) * 3)).square().mean()
        return loss * value if run.steps[-1][0] == STEPS + 2 else loss

    with pytest.raises(NumericError, match=f"the loss became {value} at step {STEPS + 2}") as caught:
        run.fit(loss_of=diverging)
    assert caught.value.where == str(tmp_path) and "lr" in str(caught.value.fix)
    assert sha256(run.checkpoint) == digest and int(read_tensors(run.checkpoint)["done"]) == STEPS


def test_a_checkpoint_of_another_network_is_refused(images, tmp_path):
    run = Run(images, tmp_path)
    run.fit()
    with pytest.raises(RunFolderError, match="does not fit this network") as caught:
        run.fit(width=6)
    assert caught.value.where == str(run.checkpoint) and "--overwrite" in str(caught.value)


def test_a_checkpoint_of_another_optimiser_is_refused(images, tmp_path):
    Run(images, tmp_path, "sgd", epochs=1).fit()
    with pytest.raises(RunFolderError, match="does not fit"):
        Run(images, tmp_path, "adamw").fit()


def test_a_broken_checkpoint_is_refused_by_name(images, tmp_path):
    run = Run(images, tmp_path)
    run.fit()
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:100])
    with pytest.raises(RunFolderError, match="broken weight file") as caught:
        run.fit()
    assert caught.value.where == str(run.checkpoint)


def test_a_request_to_stop_is_heard_after_the_step_with_the_checkpoint_written(images, tmp_path):
    run = Run(images, tmp_path)
    with pytest.raises(Interrupted, match="what was finished is saved") as caught:
        run.fit(stop_at=2)
    assert int(read_tensors(run.checkpoint)["done"]) == 2 and caught.value.exit_code == 130


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_ends_at_once(number):
    stop, before = StopRequest(), signal.getsignal(number)
    stop.check()
    with stop.listening():
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            stop.check()
        with pytest.raises(Interrupted, match="at once"):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_in_another_thread_signals_are_left_alone():
    before, found = signal.getsignal(signal.SIGINT), []

    def listen() -> None:
        with StopRequest().listening():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before]
