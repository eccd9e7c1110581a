"""The GPU's merging of maps, run on the CPU: torch's interpolation and the paper form's division."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sccam.errors import NumericError, ResourceError, ShapeError
from sccam.runtime.merge_cupy import merge_maps
from tests.runtime.cuda_cases import ERROR, difference, merged, views_of
from tests.runtime.cuda_shim.device import ShimDevice


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("grid", [(19, 27), (7, 5), (1, 1), (33, 40)])
def test_merged_maps_equal_the_paper_form(device, grid, flip):
    views = views_of(3, flip)
    assert difference(merge_maps(views, grid, flip=flip, device=device), merged(views, grid, flip)) <= ERROR["merge"]


def test_a_class_that_is_nowhere_stays_zero(device):
    assert (merge_maps(views_of(3, True), (9, 9), flip=True, device=device)[-1] == 0).all()


def test_the_order_of_threads_changes_nothing(device, kernel_folder):
    views = views_of(4, True)
    first = merge_maps(views, (21, 22), flip=True, device=device)
    for seed in (1, 2):
        assert np.array_equal(
            merge_maps(views, (21, 22), flip=True, device=ShimDevice(kernel_folder, seed=seed)), first
        )


def test_no_classes_give_no_maps(device):
    assert merge_maps([torch.zeros(2, 0, 4, 5)], (8, 9), flip=True, device=device).shape == (0, 8, 9)


def test_wrong_maps_are_named(device, kernel_folder):
    views = views_of(3, True)
    with pytest.raises(ShapeError, match=r"expected \(1, 3, h, w\)"):
        merge_maps(views, (8, 9), flip=False, device=device)
    with pytest.raises(ShapeError, match=r"expected \(2, 3, h, w\)"):
        merge_maps([views[0], views[1][:, :2]], (8, 9), flip=True, device=device)
    with pytest.raises(ShapeError, match="at least one scale"):
        merge_maps([], (8, 9), flip=True, device=device)
    with pytest.raises(NumericError, match="NaN"):
        merge_maps([torch.full((1, 1, 3, 3), torch.nan)], (8, 9), flip=False, device=device)
    with pytest.raises(ResourceError, match="no room"):
        merge_maps(views, (8, 9), flip=True, device=ShimDevice(kernel_folder, room=100))
