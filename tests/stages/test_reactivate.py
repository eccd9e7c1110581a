"""The reactivation loss: each present class's own features have to be that class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from sccam.stages.reactivate import reactivation_loss


def test_it_is_the_formula_pair_by_pair():
    torch.manual_seed(0)
    features, parent, second = torch.randn(2, 5, 3, 4), torch.randn(3, 5), torch.randn(3, 5)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    losses = []
    for n, c in ((0, 0), (0, 2), (1, 1)):
        maps = np.maximum(0, np.einsum("dhw,d->hw", features[n].numpy(), parent[c].numpy()))
        weighed = (maps / (maps.max() + 1e-5))[None] * features[n].numpy()
        logits = torch.from_numpy(weighed.mean(axis=(1, 2)) @ second.numpy().T)
        losses.append(cross_entropy(logits[None], torch.tensor([c])))
    torch.testing.assert_close(reactivation_loss(features, parent, second, targets), torch.stack(losses).mean())


def test_it_teaches_the_second_head_and_the_features_but_not_through_the_maps():
    torch.manual_seed(0)
    features = torch.randn(2, 5, 3, 4, requires_grad=True)
    parent, second = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    reactivation_loss(features, parent, second, torch.eye(3)[:2]).backward()
    assert parent.grad is None
    assert features.grad is not None and features.grad.abs().sum() > 0
    assert second.grad is not None and second.grad.abs().sum() > 0


def test_images_without_a_class_teach_nothing():
    loss = reactivation_loss(torch.randn(2, 5, 3, 4), torch.randn(3, 5), torch.randn(3, 5), torch.zeros(2, 3))
    assert loss.item() == pytest.approx(0)
