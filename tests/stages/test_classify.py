"""Eq. 3: two cross-entropies, the weight of each logit, and the authors' schedule."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import multilabel_soft_margin_loss

from sccam.stages.classify import ClassifyConfig, equivariance_loss, joint_loss
from sccam.stages.optim import poly_factor

VOC_STEPS = 661  # an epoch of 10,582 images in batches of 16; method 2.4
DECIMALS = 5e-4  # the published factors have three decimals


def batch(classes: int, subcategories: int, images: int = 3) -> tuple[torch.Tensor, ...]:
    """Random logits and targets: parent logits, sub logits, parent targets, sub targets."""
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(images, width, generator=generator) for width in (classes, subcategories)]
    targets = [(torch.rand(images, width, generator=generator) < 0.3).float() for width in (classes, subcategories)]
    return (*logits, *targets)


def weights_of_one_logit(classes: int, k: int, sub_weight: float) -> tuple[float, float]:
    """Weights of a parent and of a sub-category logit: the slope at 0 of its own term is 1/2."""
    parent, sub = torch.zeros(1, classes, requires_grad=True), torch.zeros(1, classes * k, requires_grad=True)
    joint_loss(parent, sub, torch.zeros(1, classes), torch.zeros(1, classes * k), sub_weight).backward()
    assert parent.grad is not None and sub.grad is not None
    return 2 * parent.grad[0, 0].item(), 2 * sub.grad[0, 0].item()


def test_it_is_the_soft_margin_loss_of_both_heads(tolerance):
    parent, sub, parent_target, sub_target = batch(20, 200)
    expected = multilabel_soft_margin_loss(parent, parent_target) + 5 * multilabel_soft_margin_loss(sub, sub_target)
    found = joint_loss(parent, sub, parent_target, sub_target, 5.0)
    torch.testing.assert_close(found, expected, atol=tolerance["float32"], rtol=tolerance["float32"])


def test_round_0_has_the_parent_term_alone():
    parent, sub, parent_target, sub_target = batch(4, 8)
    alone = joint_loss(parent, None, parent_target, None, 5.0)
    assert alone == joint_loss(parent, sub, parent_target, sub_target, 0.0)


def test_logits_of_zero_cost_a_bit_in_each_term(tolerance):
    zeros, ones = torch.zeros(2, 6), torch.ones(2, 6)
    assert joint_loss(zeros, zeros, ones, ones, 5.0).item() == pytest.approx(6 * math.log(2), abs=tolerance["float32"])


def test_sure_and_right_costs_nothing(tolerance):
    target = torch.tensor([[1.0, 0.0, 1.0]])
    assert joint_loss(200 * target - 100, 200 * target - 100, target, target, 5.0) < tolerance["float32"]


def test_a_subcategory_logit_weighs_half_of_a_parent_logit_at_k_10(tolerance):
    found = weights_of_one_logit(classes=20, k=10, sub_weight=5.0)
    assert found == pytest.approx((1 / 20, 1 / 40), abs=tolerance["float32"])


def test_the_weight_of_a_subcategory_logit_halves_when_k_doubles(tolerance):
    (_, single), (_, double) = (weights_of_one_logit(classes=5, k=k, sub_weight=5.0) for k in (4, 8))
    assert double == pytest.approx(single / 2, abs=tolerance["float32"])


# Rounds and schedule


@pytest.mark.parametrize(("round_index", "factor"), [(1, 0.528), (2, 0.367), (3, 0.196)])
def test_each_round_ends_at_the_learning_rate_of_the_authors_snapshot(round_index, factor):
    config = ClassifyConfig()
    epochs, schedule = config.epochs_of(round_index)
    assert (epochs, schedule) == (21 + 10 * round_index, 61)
    assert poly_factor(epochs * VOC_STEPS, schedule * VOC_STEPS, config.optimiser.power) == pytest.approx(
        factor, abs=DECIMALS
    )


def test_the_last_entry_serves_all_later_rounds():
    config = ClassifyConfig(epochs=(3, 8), schedule_epochs=(10,))
    assert [config.epochs_of(r) for r in range(4)] == [(3, 10), (8, 10), (8, 10), (8, 10)]


def test_the_schedule_is_never_shorter_than_the_training():
    assert ClassifyConfig(epochs=(12,), schedule_epochs=(5,)).epochs_of(1) == (12, 12)
    assert ClassifyConfig(epochs=(12,), schedule_epochs=()).epochs_of(0) == (12, 12)


def test_round_0_differs_from_the_others_in_its_crop_only():
    config = ClassifyConfig()
    assert config.augment_of(0).crop == config.round0_crop == 448
    assert config.augment_of(1) == config.augment_of(3) == config.augment
    assert config.augment_of(0).long_side == config.augment.long_side


def test_maps_of_a_smaller_view_that_are_the_smaller_maps_cost_nothing():
    torch.manual_seed(0)
    large = torch.rand(2, 3, 8, 8).repeat_interleave(1, 0)
    blocks = torch.nn.functional.avg_pool2d(large, 2)
    exact = torch.nn.functional.interpolate(blocks, scale_factor=2, mode="nearest")
    targets = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    assert equivariance_loss(exact, 5 * blocks, targets).item() == pytest.approx(0, abs=1e-5)  # each over its maximum
    moved = blocks.clone()
    moved[:, 1] = 0  # of a class that is absent
    assert equivariance_loss(exact, moved, targets).item() == pytest.approx(0, abs=1e-5)
    mirrored = blocks.flip(-1)
    scaled, other = ((maps[0] / maps[0].amax((1, 2), keepdim=True))[[0, 2]] for maps in (blocks, mirrored))
    expected = (scaled - other).abs().mean().item()
    assert equivariance_loss(exact, mirrored, targets).item() == pytest.approx(expected, abs=1e-4)
    assert equivariance_loss(exact, mirrored, torch.zeros(2, 3)).item() == 0
