"""Affinities from boundaries: the highest boundary on the line between two cells parts them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from sccam.stages.affinity import pair_loss
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.boundary import boundary_field, line, pair_affinities
from sccam.stages.walk import WalkConfig, pair_windows, random_walk


def test_a_line_runs_from_end_to_end_without_a_gap():
    for offset in [(0, 0), (0, 4), (3, -2), (4, 1), *map(tuple, neighbour_offsets(6).tolist())]:
        cells = line(*offset)
        assert cells[0] == (0, 0) and cells[-1] == offset
        for p, q in itertools.pairwise(cells):
            assert max(abs(q[0] - p[0]), abs(q[1] - p[1])) == 1
    assert line(2, -2) == [(0, 0), (1, -1), (2, -2)]


def test_the_field_is_the_formula(rng):
    boundary, offsets = rng.random((6, 7)).astype(np.float32), neighbour_offsets(4)
    field = boundary_field(boundary, offsets, 8)
    for r, (dy, dx) in enumerate(offsets.tolist()):
        for y in range(6):
            for x in range(7):
                inside = y + dy < 6 and 0 <= x + dx < 7
                between = max(boundary[y + a, x + b] for a, b in line(dy, dx)) if inside else 1
                assert field.values[r, y, x] == pytest.approx(1 - between)


def test_the_loss_sees_the_same_affinities_and_learns_where_the_border_is(rng):
    offsets = neighbour_offsets(3)
    boundary = torch.rand(1, 5, 6)
    field = boundary_field(boundary[0].numpy(), offsets, 8)
    for plane, offset in zip(field.values, offsets.tolist(), strict=True):
        here, _ = pair_windows(5, 6, offset, offsets, "clean")
        np.testing.assert_allclose(pair_affinities(boundary, tuple(offset), here)[0], plane[here], atol=1e-6)

    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :, 4:] = 1
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    for _ in range(60):
        loss = pair_loss(torch.sigmoid(logits), labels, offsets, source="boundary").total
        (slope,) = torch.autograd.grad(loss, logits)
        logits = (logits - 20 * slope).detach().requires_grad_(True)
    found = torch.sigmoid(logits)[0, 0].detach()
    assert found[:, 3:5].max(dim=1).values.min() > 0.8 and found[:, [0, 1, 6, 7]].max() < 0.2


def test_scores_do_not_walk_through_a_boundary():
    boundary = np.zeros((6, 9), np.float32)
    boundary[:, 4] = 1
    scores = np.zeros((1, 6, 9), np.float32)
    scores[0, 2, 1] = 1
    walked = random_walk(scores, boundary_field(boundary, neighbour_offsets(5), 8), WalkConfig(steps=64))
    assert walked[0, :, :4].min() > 0.9 / 24 and walked[0, :, 4:].max() == 0
