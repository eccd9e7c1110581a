"""The segmenter's loss: each scale on its own grid, 255 left out; and logits brought back to the image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, interpolate

from sccam.stages.segment import LEAST_SHARE, SegmentConfig, prior_shift, segmentation_loss, upsample_logits

LABELS = 4


def logits(*grids: tuple[int, int], images: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, LABELS, *grid, generator=generator) for grid in grids]


def labels(size: tuple[int, int] = (12, 16), images: int = 2) -> torch.Tensor:
    values = torch.randint(0, LABELS + 1, (images, *size), generator=torch.Generator().manual_seed(1))
    return values.masked_fill(values == LABELS, 255).to(torch.uint8)


def test_it_is_the_sum_of_the_mean_cross_entropies_with_labels_taken_from_cell_centres(tolerance):
    parts, true = logits((3, 4), (6, 8)), labels()
    centres = [true[:, 2::4, 2::4], true[:, 1::2, 1::2]]  # cells of 4 and of 2 pixels
    expected = sum(
        cross_entropy(part, target.long(), ignore_index=255) for part, target in zip(parts, centres, strict=True)
    )
    torch.testing.assert_close(
        segmentation_loss(parts, true), torch.as_tensor(expected), atol=tolerance["float32"], rtol=tolerance["float32"]
    )


def test_labels_are_never_mixed_on_the_way_to_a_grid():
    true = torch.zeros(1, 9, 9, dtype=torch.uint8)
    true[:, :, 5:] = 2  # between 0 and 2 lies 1, which nobody labelled
    only_one = torch.full((1, LABELS, 4, 4), -100.0)
    only_one[:, 1] = 100.0
    assert segmentation_loss([only_one], true) == 200  # so every cell is wrong


def test_logits_of_pixels_that_are_ignored_change_nothing():
    (part,), true = logits((12, 16)), labels()
    changed = part + 50 * (true == 255)[:, None] * torch.arange(LABELS)[:, None, None]
    assert not torch.equal(part, changed)
    assert segmentation_loss([part], true) == segmentation_loss([changed], true)


def test_sure_and_right_costs_nothing():
    true = labels()
    right = 200 * torch.nn.functional.one_hot(true.long().clamp(max=LABELS - 1), LABELS).permute(0, 3, 1, 2).float()
    assert segmentation_loss([right, right], true) == 0


def test_a_batch_without_one_labelled_pixel_costs_0_and_teaches_nothing():
    (part,) = logits((3, 4))
    loss = segmentation_loss([part.requires_grad_()], torch.full((2, 12, 16), 255, dtype=torch.uint8))
    assert loss == 0 and not loss.requires_grad


def test_a_scale_whose_grid_misses_every_labelled_pixel_is_left_out():
    true = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    true[:, 0, 0] = 1
    fine, coarse = logits((8, 8), (2, 2), images=1)
    both, alone = (segmentation_loss(parts, true) for parts in ([fine, coarse], [fine]))
    assert torch.isfinite(both) and both == alone > 0


def test_half_precision_logits_are_summed_in_single_precision(tolerance):
    (part,) = logits((3, 4))
    found = segmentation_loss([part.half()], labels())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, segmentation_loss([part], labels()), atol=tolerance["half"], rtol=0)


# Back to the image


@pytest.mark.parametrize("size", [(64, 96), (61, 70), (33, 65)])
def test_upsampled_logits_have_the_size_of_the_image_and_lose_only_the_padding(size):
    (part,) = logits((4, 6), images=1)
    full = interpolate(part, (64, 96), mode="bilinear", align_corners=False)
    found = upsample_logits(part, (64, 96), size)
    assert torch.equal(found, full[..., : size[0], : size[1]])


def test_constant_logits_stay_constant(tolerance):
    found = upsample_logits(torch.full((1, LABELS, 2, 3), 0.7), (64, 96), (50, 90))
    torch.testing.assert_close(found, torch.full((1, LABELS, 50, 90), 0.7), atol=tolerance["float32"], rtol=0)


def test_the_defaults_are_those_of_deeplab_v2():
    config = SegmentConfig()
    assert config.rates == (6, 12, 18, 24) and config.scales == (1.0, 0.75, 0.5) and config.augment.crop == 321
    assert (config.optimiser.lr, config.optimiser.head_factor, config.optimiser.head_bias_factor) == (2.5e-4, 10, 20)


def test_a_shift_is_that_of_the_logits_and_does_not_reach_ignored_pixels():
    parts, true, shift = logits((3, 4), (6, 8)), labels(), torch.tensor([-0.3, -2.0, 0.0, -1.5])
    moved = [part + shift[:, None, None] for part in parts]
    assert segmentation_loss(parts, true, shift) == segmentation_loss(moved, true)


def test_the_shift_favours_rare_labels_by_the_square_root_of_their_rarity_at_one_half():
    shift = prior_shift(np.array([900, 90, 10, 0]), 0.5)
    np.testing.assert_allclose(np.exp(-2 * shift), [1 / 0.9, 1 / 0.09, 1 / 0.01, 1.0], rtol=1e-5)
    assert prior_shift(np.array([10**9, 1]), 1.0)[1] == np.float32(np.log(LEAST_SHARE))
    assert not prior_shift(np.zeros(3, np.int64), 1.0).any()


def test_a_balanced_fit_gives_the_rare_label_where_the_plain_one_gives_the_frequent_one():
    true = torch.zeros(1, 10, 10, dtype=torch.uint8)
    true[:, :3] = 1  # of equal pixels 70 are one label and 30 the other
    shift = torch.from_numpy(prior_shift(np.array([70, 30]), 1.0))
    for given, expected in ((None, 0), (shift - torch.tensor([0.0, 0.1]), 1)):
        bias = torch.zeros(2, requires_grad=True)
        for _ in range(400):
            loss = segmentation_loss([bias[None, :, None, None].expand(1, 2, 10, 10)], true, given)
            (slope,) = torch.autograd.grad(loss, bias)
            bias = (bias - slope).detach().requires_grad_()
        assert int(bias.argmax()) == expected
