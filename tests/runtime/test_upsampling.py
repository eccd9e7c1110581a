"""Labels from a grid: the arg-max of the paper's upsampling, compiled or not, in strips or whole."""

from __future__ import annotations

import numpy as np
import pytest

from sccam.runtime import native, upsampling
from sccam.runtime.upsampling import pixel_labels, pixel_scores, portable_labels, regridded
from sccam.stages.walk import upsample

CASES = [(1, 1, 1, 8), (3, 2, 5, 8), (21, 13, 17, 16), (256, 4, 3, 4)]  # channels, grid, stride


@pytest.mark.parametrize(("channels", "h", "w", "stride"), CASES)
def test_scores_and_labels_are_those_of_the_paper_form(rng, channels, h, w, stride, monkeypatch):
    grid = rng.normal(size=(channels, h, w)).astype(np.float32)
    size = (h * stride - stride // 2, w * stride - 1)
    density = (1 / stride, 1 / stride)
    expected = upsample(grid, size, stride)
    np.testing.assert_allclose(
        pixel_scores(grid, range(size[0]), range(size[1]), density), expected, atol=1e-5 * np.abs(grid).max()
    )
    top = np.sort(expected, axis=0)[-2:]
    clear = top[-1] - top[0] > 1e-5 if channels > 1 else np.ones(size, bool)
    monkeypatch.setattr(upsampling, "STRIP_VALUES", 50)  # many strips
    for labels in (pixel_labels(grid, size, density), portable_labels(grid, size, density)):
        assert labels.shape == size and labels.dtype == np.uint8
        assert np.array_equal(labels[clear], expected.argmax(axis=0)[clear]) and clear.mean() > 0.99


def test_equal_scores_get_the_first_label():
    grid = np.zeros((5, 3, 3), np.float32)
    grid[3:] = 1
    for function in (pixel_labels, portable_labels):
        assert (function(grid, (20, 21), (0.125, 0.125)) == 3).all()


def test_every_instruction_set_gives_the_same_labels(rng, monkeypatch):
    grid = rng.normal(size=(7, 9, 11)).astype(np.float32)
    expected = portable_labels(grid, (70, 85), (0.12, 0.125))
    for name in native.available():
        call = native.call
        monkeypatch.setattr(native, "call", lambda *a, call=call, name=name: call(*a, name=name))
        assert (pixel_labels(grid, (70, 85), (0.12, 0.125)) == expected).mean() > 0.999
        monkeypatch.undo()


def test_a_grid_read_at_its_own_cells_is_itself(rng):
    grid = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(regridded(grid, (4, 5), (1, 1)), grid, atol=1e-6)
