"""Pairs, their labels, their loss and the field: the authors' counts, and the mathematics of exp(-|f_i - f_j|)."""

import numpy as np
import pytest
import torch

from sccam.errors import ShapeError
from sccam.stages.affinity import affinity_field, pair_loss
from sccam.stages.affinity_labels import affinity_labels, neighbour_offsets
from sccam.stages.walk import BORDERS, pair_windows

TOLERANCE = {
    "affinity": 1e-6,  # single precision, another order of summation over D
    "loss": 1e-5,  # the same, through a logarithm and thousands of pairs
}


def plain_loss(features: torch.Tensor, labels: np.ndarray, offsets: np.ndarray) -> tuple[float, float, float]:
    """The three terms by loops over images, cells and offsets."""
    terms: dict[str, list[float]] = {"background": [], "foreground": [], "negative": []}
    _, height, width = labels.shape
    for f, label in zip(features.double().numpy(), labels, strict=True):
        for y in range(height):
            for x in range(width):
                for dy, dx in offsets:
                    if not (y + dy < height and 0 <= x + dx < width):
                        continue
                    first, second = int(label[y, x]), int(label[y + dy, x + dx])
                    if 255 in (first, second):
                        continue
                    a = np.exp(-np.abs(f[:, y, x] - f[:, y + dy, x + dx]).mean())
                    if first != second:
                        terms["negative"].append(-np.log(1 + 1e-5 - a))
                    else:
                        terms["foreground" if first else "background"].append(-np.log(a + 1e-5))
    background, foreground, negative = (sum(v) / (len(v) + 1e-5) for v in terms.values())
    return background, foreground, negative


@pytest.mark.parametrize(("radius", "count"), [(2, 4), (5, 34), (10, 152)])
def test_a_radius_has_as_many_offsets_as_the_authors_count(radius, count):
    offsets = neighbour_offsets(radius)
    assert offsets.shape == (count, 2)
    assert offsets.dtype == np.int32


def test_offsets_hold_every_unordered_pair_once():
    offsets = {tuple(o) for o in neighbour_offsets(5).tolist()}
    mirrored = {(-dy, -dx) for dy, dx in offsets}
    disc = {(y, x) for y in range(-4, 5) for x in range(-4, 5) if 0 < x * x + y * y < 25}
    assert not offsets & mirrored
    assert offsets | mirrored == disc


def test_the_authors_window_gives_their_number_of_pairs():
    offsets = neighbour_offsets(5)
    cells = np.zeros((56, 56))
    sizes = {cells[pair_windows(56, 56, tuple(o), offsets, "psa")[0]].size for o in offsets.tolist()}
    assert sizes == {52 * 48}
    assert sizes.pop() * len(offsets) == 84_864


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (5, 4), (9, 12)])
def test_both_cells_of_a_pair_lie_in_the_grid_and_differ_by_the_offset(grid, border):
    offsets = neighbour_offsets(5)
    y, x = np.mgrid[: grid[0], : grid[1]]
    for dy, dx in offsets.tolist():
        here, there = pair_windows(grid[0], grid[1], (dy, dx), offsets, border)
        assert (y[there] - y[here] == dy).all()
        assert (x[there] - x[here] == dx).all()


def test_affinity_is_symmetric_and_between_zero_and_one():
    features = torch.randn(16, 7, 9, generator=torch.Generator().manual_seed(0))
    offsets = neighbour_offsets(5)
    field = affinity_field(features, offsets, 8)
    mirrored = affinity_field(features.flip(1, 2), offsets, 8)
    assert field.values.min() >= 0
    assert field.values.max() <= 1
    for r, (dy, dx) in enumerate(offsets.tolist()):
        here, there = pair_windows(7, 9, (dy, dx), offsets, "clean")
        # a(i, j) seen from j in the mirrored image
        assert np.allclose(field.values[r][here], mirrored.values[r][::-1, ::-1][there], atol=TOLERANCE["affinity"])


def test_affinity_is_the_exponential_of_the_mean_distance_and_zero_outside():
    features = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    offsets = neighbour_offsets(3)
    field = affinity_field(features, offsets, 4)
    assert field.stride == 4
    assert field.values.dtype == np.float32
    f = features.numpy()
    for r, (dy, dx) in enumerate(offsets.tolist()):
        for y in range(5):
            for x in range(6):
                inside = y + dy < 5 and 0 <= x + dx < 6
                expected = np.exp(-np.abs(f[:, y, x] - f[:, y + dy, x + dx]).mean()) if inside else 0
                assert abs(field.values[r, y, x] - expected) <= TOLERANCE["affinity"]


def test_equal_features_have_affinity_one():
    field = affinity_field(torch.full((8, 6, 6), 3.0), neighbour_offsets(2), 8)
    assert field.values[0, :, :-1].min() == 1


def test_half_precision_features_give_a_single_precision_field():
    field = affinity_field(torch.zeros(8, 4, 4, dtype=torch.bfloat16), neighbour_offsets(2), 8)
    assert field.values.dtype == np.float32


def test_a_batch_is_refused_by_the_field():
    with pytest.raises(ShapeError, match="of one image"):
        affinity_field(torch.zeros(1, 8, 4, 4), neighbour_offsets(2), 8)


def test_the_loss_equals_its_definition():
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(2, 5, 7, 6, generator=generator)
    labels = torch.tensor([0, 1, 2, 255])[torch.randint(0, 4, (2, 7, 6), generator=generator)]
    offsets = neighbour_offsets(3)
    loss = pair_loss(features, labels, offsets, "clean")
    background, foreground, negative = plain_loss(features, labels.numpy(), offsets)
    assert loss.background.item() == pytest.approx(background, rel=TOLERANCE["loss"])
    assert loss.foreground.item() == pytest.approx(foreground, rel=TOLERANCE["loss"])
    assert loss.negative.item() == pytest.approx(negative, rel=TOLERANCE["loss"])
    assert loss.total.item() == pytest.approx(background / 4 + foreground / 4 + negative / 2, rel=TOLERANCE["loss"])


def test_gradients_equal_finite_differences():
    features = torch.randn(1, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    labels = torch.tensor([[[0, 0, 1, 1, 255]] * 4])
    assert torch.autograd.gradcheck(
        lambda f: pair_loss(f, labels, neighbour_offsets(3), "clean").total, features.requires_grad_()
    )


def test_unsure_cells_receive_no_gradient():
    features = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4), requires_grad=True)
    labels = torch.ones(1, 8, 8, dtype=torch.uint8)
    labels[:, :, 4:] = 255
    pair_loss(features, labels, neighbour_offsets(5)).total.backward()
    assert features.grad is not None
    assert features.grad[..., 4:].abs().max() == 0
    assert features.grad[..., :4].abs().max() > 0


@pytest.mark.parametrize("label", [0, 1, 255])
@pytest.mark.parametrize("border", BORDERS)
def test_a_batch_with_one_label_has_a_finite_loss_and_gradient(border, label):
    features = torch.zeros(1, 4, 10, 10, requires_grad=True)
    loss = pair_loss(features, torch.full((1, 10, 10), label, dtype=torch.uint8), neighbour_offsets(5), border)
    loss.total.backward()
    assert features.grad is not None
    assert torch.isfinite(loss.total)
    assert torch.isfinite(features.grad).all()
    assert loss.negative == 0


def test_swapping_the_foreground_labels_changes_nothing():
    features = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    labels = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(6))
    swapped = torch.tensor([0, 2, 1])[labels]
    offsets = neighbour_offsets(5)
    assert pair_loss(features, labels, offsets).total == pair_loss(features, swapped, offsets).total


def test_descending_the_loss_separates_two_regions():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :, 4:] = 1
    features = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)) / 10
    offsets = neighbour_offsets(3)
    for _ in range(20):
        features = features.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(pair_loss(features, labels, offsets).total, features)
        features = features - 20 * gradient
    sideways = affinity_field(features[0], np.array([[0, 1]], np.int32), 8).values[0]
    assert sideways[:, 3].mean() < 0.3
    assert sideways[:, [0, 1, 5, 6]].mean() > 0.8


def test_features_and_labels_on_different_grids_are_refused():
    with pytest.raises(ShapeError, match="labels"):
        pair_loss(torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 7), neighbour_offsets(2))


def posterior(winners: list[int], labels: int, stride: int) -> np.ndarray:
    """[P+1 stride W] with one winning label for each cell of a row."""
    scores = np.full((labels, 1, len(winners)), 0.1, np.float32)
    scores[winners, 0, np.arange(len(winners))] = 0.8
    return scores.repeat(stride, axis=1).repeat(stride, axis=2)


def test_labels_follow_the_two_posteriors():
    low = posterior([0, 0, 1, 2, 1], 3, 8)
    high = posterior([0, 1, 1, 2, 0], 3, 8)
    assert affinity_labels(low, high).tolist() == [[0, 255, 1, 2, 0]]


def test_padding_without_any_score_is_unsure():
    low = posterior([0, 1, 1], 2, 8)
    low[:, :, 16:] = 0
    labels = affinity_labels(low, low)
    assert labels.tolist() == [[0, 1, 255]]
    assert labels.dtype == np.uint8


def test_labels_use_every_pixel_of_a_partial_cell():
    assert affinity_labels(*(np.ones((2, 20, 13), np.float32),) * 2).shape == (3, 2)


def test_posteriors_of_different_shapes_are_refused():
    with pytest.raises(ShapeError, match="must be equal"):
        affinity_labels(np.zeros((2, 8, 8), np.float32), np.zeros((3, 8, 8), np.float32))
