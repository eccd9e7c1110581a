"""The compiled merge against the paper form of stages/cam.py, for each instruction set and number of threads."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sccam.errors import NumericError, ShapeError
from sccam.runtime import native
from sccam.runtime.merge_native import merge_maps
from sccam.stages import cam

pytestmark = pytest.mark.skipif(not native.available(), reason="the kernels are not compiled")

SCALES = ((47, 63), (24, 32), (71, 94), (94, 125))  # a photo of 375 x 500 at 1, 0.5, 1.5 and 2, stride 8
ROUNDING = 1e-6  # of values in [0, 1]: a sum of some products in float32


@pytest.fixture(params=native.available())
def instruction_set(request) -> str:
    return request.param


def views(sizes=SCALES, classes: int = 3, flip: bool = True, seed: int = 0) -> list[np.ndarray]:
    """Rectified maps of each scale [V P h w], a third of the cells 0."""
    rng = np.random.default_rng(seed)
    return [np.maximum(rng.random((1 + flip, classes, *size), np.float32) - 0.3, 0) for size in sizes]


def near(found: np.ndarray, expected: np.ndarray, by: float = ROUNDING) -> bool:
    """As pytest.approx, which takes seconds for a map of the size of an image."""
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= by)


# The paper's numbers


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("grid", [(375, 500), (94, 125), (47, 63), (20, 33)])
def test_it_gives_the_numbers_of_the_paper_form(grid, flip, threads, instruction_set):
    maps = views(flip=flip)
    found = merge_maps(maps, grid, flip=flip, threads=threads, instruction_set=instruction_set)
    assert found.dtype == np.float32 and found.shape == (3, *grid)
    assert near(found, cam.merge_maps(maps, grid, flip=flip))


@settings(max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    grid=st.tuples(st.integers(1, 50), st.integers(1, 70)),
    classes=st.integers(1, 3),
    flip=st.booleans(),
    threads=st.integers(1, 3),
    name=st.sampled_from(native.available() or ("none",)),
)
def test_any_sizes_give_the_numbers_of_the_paper_form(sizes, grid, classes, flip, threads, name):
    maps = views(sizes, classes, flip)
    found = merge_maps(maps, grid, flip=flip, threads=threads, instruction_set=name)
    assert near(found, cam.merge_maps(maps, grid, flip=flip))


@pytest.mark.parametrize("width", range(1, 36))
def test_every_width_is_filled_to_its_last_column(width, instruction_set):
    maps = views(((3, 5),), classes=2)
    found = merge_maps(maps, (4, width), flip=True, instruction_set=instruction_set)
    assert near(found, cam.merge_maps(maps, (4, width), flip=True))


@pytest.mark.parametrize("height", [1, 2, 375])
def test_a_map_of_one_cell_becomes_one_everywhere_but_for_the_epsilon(height, instruction_set):
    found = merge_maps(
        [np.full((1, 1, 1, 1), 2, np.float32)], (height, 500), flip=False, instruction_set=instruction_set
    )
    assert found == pytest.approx(2 / (2 + cam.MAX_EPSILON), abs=ROUNDING)


def test_the_stage_takes_it_and_gives_the_same_maps():
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    classes = np.array([0, 2], np.int32)

    def score_views(stack, of):
        cells = stack[:, ::8, ::8].astype(np.float32).transpose(0, 3, 1, 2) / 255
        return torch.from_numpy(np.ascontiguousarray(cells[:, of]))

    for flip in (True, False):
        config = cam.CamConfig(flip=flip)
        slow = cam.activation_map(image, classes, score_views, config, multiple=8)
        fast = cam.activation_map(image, classes, score_views, config, multiple=8, merge=merge_maps)
        assert fast.scores == pytest.approx(slow.scores, abs=ROUNDING)


# What maps are


def test_the_maximum_of_each_class_is_one_but_for_the_epsilon(instruction_set):
    found = merge_maps(views(), (94, 125), flip=True, instruction_set=instruction_set)
    assert found.min() >= 0
    assert found.max(axis=(1, 2)) == pytest.approx(1, abs=2 * cam.MAX_EPSILON)


def test_a_map_of_zeros_stays_zero_beside_others(instruction_set):
    maps = views()
    for view in maps:
        view[:, 1] = 0
    found = merge_maps(maps, (50, 61), flip=True, instruction_set=instruction_set)
    assert not found[1].any() and found[0].any() and found[2].any()


def test_a_class_does_not_depend_on_the_others(instruction_set):
    maps = views()
    found = merge_maps(maps, (94, 125), flip=True, instruction_set=instruction_set)
    alone = merge_maps([view[:, 1:2] for view in maps], (94, 125), flip=True, instruction_set=instruction_set)
    assert np.array_equal(alone[0], found[1])


def test_views_that_change_places_give_the_mirrored_map(instruction_set):
    maps = views()
    found = merge_maps(maps, (94, 125), flip=True, instruction_set=instruction_set)
    turned = merge_maps([view[::-1] for view in maps], (94, 125), flip=True, instruction_set=instruction_set)
    assert turned == pytest.approx(found[..., ::-1], abs=1e-5)  # weights are rounded at 125 * 6e-8 from the left


def test_a_view_and_its_own_mirror_image_are_counted_twice(instruction_set):
    maps = views(flip=False)
    both = [np.concatenate([view, view[..., ::-1]]) for view in maps]
    found = merge_maps(both, (94, 125), flip=True, instruction_set=instruction_set)
    alone = merge_maps(maps, (94, 125), flip=False, instruction_set=instruction_set)
    assert found == pytest.approx(alone, abs=3 * cam.MAX_EPSILON)  # the epsilon weighs half as much


def test_the_order_of_scales_does_not_matter(instruction_set):
    maps = views()
    found = merge_maps(maps, (94, 125), flip=True, instruction_set=instruction_set)
    back = merge_maps(maps[::-1], (94, 125), flip=True, instruction_set=instruction_set)
    assert back == pytest.approx(found, abs=ROUNDING)


@pytest.mark.parametrize("grid", [(375, 500), (7, 9), (1, 1)])
def test_threads_do_not_change_a_bit(grid, instruction_set):
    maps = views()
    one, *more = (
        merge_maps(maps, grid, flip=True, threads=threads, instruction_set=instruction_set) for threads in (1, 2, 5)
    )
    assert all(np.array_equal(other, one) for other in more)


def test_views_need_not_lie_in_memory_row_by_row():
    maps = views()
    strided = [np.asfortranarray(view) for view in maps]
    assert np.array_equal(merge_maps(strided, (94, 125), flip=True), merge_maps(maps, (94, 125), flip=True))


def test_no_classes_give_an_empty_map():
    assert merge_maps(views(classes=0), (94, 125), flip=True).shape == (0, 94, 125)
    assert cam.merge_maps(views(classes=0), (94, 125), flip=True).shape == (0, 94, 125)


def test_it_loads_no_torch():
    script = (
        "import sys, numpy as np; from sccam.runtime.merge_native import merge_maps;"
        "merge_maps([np.ones((1, 1, 2, 2), np.float32)], (3, 3), flip=False); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


# What is refused


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_refused(value):
    maps = views()
    maps[2][1, 0, 5, 5] = value
    with pytest.raises(NumericError, match="NaN or infinite"):
        merge_maps(maps, (94, 125), flip=True)


@pytest.mark.filterwarnings("ignore:overflow")
def test_large_finite_maps_are_not_taken_for_infinite_ones():
    maps = [np.full((1, 1, 40, 40), 1e37, np.float32)]
    assert merge_maps(maps, (40, 40), flip=False) == pytest.approx(1, abs=ROUNDING)


@pytest.mark.parametrize(("flip", "shape"), [(True, (1, 3, 4, 4)), (False, (2, 3, 4, 4)), (False, (3, 4, 4))])
def test_another_number_of_views_is_refused(flip, shape):
    with pytest.raises(ShapeError, match=r"expected \[[12], P, h, w\]"):
        merge_maps([np.ones(shape, np.float32)], (5, 5), flip=flip)


def test_scales_with_other_classes_and_empty_grids_are_refused():
    with pytest.raises(ShapeError, match="P alike"):
        merge_maps([np.ones((1, 2, 3, 3), np.float32), np.ones((1, 3, 3, 3), np.float32)], (5, 5), flip=False)
    with pytest.raises(ShapeError, match="at least one"):
        merge_maps([], (5, 5), flip=False)
    with pytest.raises(ShapeError, match="at least one"):
        merge_maps(views(), (0, 5), flip=True)
