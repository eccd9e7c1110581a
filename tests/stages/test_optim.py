"""Optimisers: what each group of parameters gets, the authors' momentum slip, and the polynomial decay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sccam.stages.optim import OptimiserConfig, build_optimiser, poly_factor, set_learning_rate

NAMES = ("weights", "norms", "heads", "head_biases")


def groups_of(*names: str) -> dict[str, list[nn.Parameter]]:
    """One parameter of value 1 for each named group; the others are empty."""
    return {name: [nn.Parameter(torch.ones(2))] if name in names else [] for name in NAMES}


def step(groups: dict[str, list[nn.Parameter]], config: OptimiserConfig, gradients: list[float]) -> dict[str, float]:
    """The value of each group's parameter after one step for each gradient."""
    optimiser = build_optimiser(groups, config)
    for gradient in gradients:
        for (parameter,) in groups.values():
            parameter.grad = torch.full((2,), gradient)
        optimiser.step()
    return {name: parameter[0].item() for name, (parameter,) in groups.items()}


@given(st.integers(0, 1000), st.integers(1, 1000), st.floats(0, 3))
def test_the_factor_lies_between_0_and_1_and_never_rises(step, total, power):
    here, later = poly_factor(step, total, power), poly_factor(step + 1, total, power)
    assert 0 <= later <= here <= 1


def test_the_factor_begins_at_1_and_ends_at_0_for_good():
    assert poly_factor(0, 61, 0.9) == 1
    assert poly_factor(61, 61, 0.9) == poly_factor(99, 61, 0.9) == 0


def test_a_power_of_0_keeps_the_learning_rate():
    assert {poly_factor(step, 10, 0.0) for step in range(11)} == {1.0}


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_every_row_gives_each_group_its_learning_rate_and_decay(name, kind):
    config = OptimiserConfig(name=name, lr=0.01, head_factor=10, head_bias_factor=20, weight_decay=5e-4)
    optimiser = build_optimiser(groups_of(*NAMES), config)
    assert type(optimiser) is kind
    rows = [(row["lr"], row["weight_decay"]) for row in optimiser.param_groups]
    assert rows == [(0.01, 5e-4), (0.01, 0.0), (0.1, 5e-4), (0.2, 0.0)]


def test_the_defaults_are_the_numbers_of_the_authors_code():
    config = OptimiserConfig()
    optimiser = build_optimiser(groups_of(*NAMES), config)
    assert isinstance(optimiser, torch.optim.SGD)
    assert [row["momentum"] for row in optimiser.param_groups] == [0.9] * 4
    assert (config.lr, config.head_factor, config.weight_decay, config.power) == (0.01, 10.0, 5e-4, 0.9)


def test_empty_groups_are_left_out():
    optimiser = build_optimiser(groups_of("weights", "heads"), OptimiserConfig())
    assert [row["initial_lr"] for row in optimiser.param_groups] == [0.01, 0.1]


def test_a_learning_rate_is_set_from_the_first_one_however_often():
    optimiser = build_optimiser(groups_of("weights", "heads"), OptimiserConfig(lr=0.5))
    for factor in (0.5, 0.5, 0.2):
        set_learning_rate(optimiser, factor)
    assert [row["lr"] for row in optimiser.param_groups] == [0.1, 1.0]


def test_without_a_gradient_weights_and_heads_shrink_and_norms_and_biases_stay(tolerance):
    config = OptimiserConfig(lr=0.1, weight_decay=0.5, momentum=0.0)
    found = step(groups_of(*NAMES), config, [0.0])
    expected = {"weights": 1 - 0.1 * 0.5, "norms": 1.0, "heads": 1 - 10 * 0.1 * 0.5, "head_biases": 1.0}
    assert found == pytest.approx(expected, abs=tolerance["float32"])


def test_momentum_carries_a_step_on(tolerance):
    config = OptimiserConfig(lr=0.1, weight_decay=0.0, momentum=0.9)
    found = step({"weights": [nn.Parameter(torch.ones(2))]}, config, [1.0, 0.0])
    assert found["weights"] == pytest.approx(1 - 0.1 - 0.1 * 0.9, abs=tolerance["float32"])


def test_the_slip_runs_with_the_weight_decay_as_momentum():
    config = OptimiserConfig(lr=0.1, weight_decay=0.25, momentum=0.9)
    slipped, meant = (
        step({"weights": [nn.Parameter(torch.ones(2))]}, one, [1.0, 1.0, 0.5])
        for one in (
            OptimiserConfig(lr=0.1, weight_decay=0.25, momentum=0.9, momentum_slip=True),
            OptimiserConfig(lr=0.1, weight_decay=0.25, momentum=0.25),
        )
    )
    assert slipped == meant != step({"weights": [nn.Parameter(torch.ones(2))]}, config, [1.0, 1.0, 0.5])


def test_adamw_decays_apart_from_the_gradient_and_adam_within_it(tolerance):
    parts = {
        name: step(
            {"weights": [nn.Parameter(torch.ones(2))]}, OptimiserConfig(name=name, lr=0.1, weight_decay=0.5), [0.0]
        )["weights"]
        for name in ("adam", "adamw")
    }
    assert parts["adamw"] == pytest.approx(1 - 0.1 * 0.5, abs=tolerance["float32"])
    assert parts["adam"] == pytest.approx(1 - 0.1, abs=tolerance["float32"])  # a first step has the length of lr
