"""Polygons enclose their pixels exactly, or move the border by no more than the tolerance; pycocotools reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from sccam.labels.polygons import filled, polygons, regions, signed_area
from sccam.structures import BoolArray, ByteArray
from tests.labels.drawn import binary_masks, blob_index, blobs, index_masks

coco = pytest.importorskip("pycocotools.mask")

IOU = 0.95  # of regions of 400 px and more at tolerance 1; these drawn ones have 0.954 to 1, 0.978 in the mean


def iou(a: BoolArray, b: BoolArray) -> float:
    return float((a & b).sum() / (a | b).sum())


@given(index_masks())
def test_exact_polygons_enclose_exactly_the_pixels_of_their_regions(index: ByteArray):
    found = regions(index)
    rings = polygons(found)
    assert len(rings) == len(found)
    for number, ring in enumerate(rings, 1):
        assert np.array_equal(filled(ring, index.shape), found.number == number)


@given(index_masks())
def test_the_area_of_a_ring_is_the_number_of_its_pixels(index: ByteArray):
    found = regions(index)
    assert [signed_area(ring) for ring in polygons(found)] == found.area.tolist()


@given(binary_masks, st.sampled_from([0.5, 1.0, 2.0, 5.0]))
def test_pixels_further_than_the_tolerance_from_a_border_keep_their_label(mask: BoolArray, tolerance: float):
    whole = np.kron(mask, np.ones((4, 4))).astype(bool)
    found = regions(whole.astype(np.uint8))
    for number, ring in enumerate(polygons(found, tolerance), 1):
        inside = found.number == number
        painted = filled(ring, whole.shape)
        # The centre of a pixel is half a pixel nearer to the border than to the centre of the pixel beyond it.
        padded = np.pad(inside, 1)
        depth = np.where(inside, ndimage.distance_transform_edt(padded)[1:-1, 1:-1],
                         ndimage.distance_transform_edt(~padded)[1:-1, 1:-1])  # fmt: skip
        assert np.array_equal(painted[depth > tolerance + 1], inside[depth > tolerance + 1])


@pytest.mark.parametrize("seed", range(5))
def test_simple_polygons_of_large_regions_keep_their_form_with_a_fraction_of_the_points(seed: int):
    mask = blobs(240, 320, seed)
    found = regions(mask.astype(np.uint8), min_area=400)
    exact, simple = polygons(found), polygons(found, 1.0)
    for number, ring in enumerate(simple, 1):
        assert iou(filled(ring, mask.shape), found.number == number) > IOU
    assert sum(map(len, simple)) < sum(map(len, exact)) / 3


def test_holes_and_what_lies_in_them_are_kept():
    index = np.zeros((20, 20), np.uint8)
    index[1:19, 1:19], index[4:10, 4:10], index[12:16, 12:16], index[6:8, 6:8] = 1, 0, 2, 1
    found = regions(index)
    assert found.label.tolist() == [1, 1, 2] and found.area.tolist() == [18 * 18 - 36 - 16, 4, 16]
    for tolerance in (0.0, 1.0):
        for number, ring in enumerate(polygons(found, tolerance), 1):
            assert np.array_equal(filled(ring, index.shape), found.number == number)


def test_regions_that_touch_at_a_corner_are_two():
    assert len(regions(np.eye(4, dtype=np.uint8))) == 4


def test_small_regions_are_left_out_and_255_is_no_region():
    index = np.zeros((6, 6), np.uint8)
    index[0, 0], index[2:4, 2:4], index[5, :] = 1, 2, 255
    assert regions(index).label.tolist() == [1, 2]
    kept = regions(index, min_area=4)
    assert kept.label.tolist() == [2] and kept.mask(0).all() and kept.area.tolist() == [4]


def test_a_region_that_simplification_would_erase_keeps_its_form():
    index = np.zeros((5, 9), np.uint8)
    index[2, 4] = 1
    (ring,) = polygons(regions(index), 100.0)
    assert np.array_equal(filled(ring, index.shape), index == 1)


@pytest.mark.parametrize("seed", range(3))
def test_pycocotools_fills_exact_polygons_with_exactly_their_pixels(seed: int):
    index = blob_index(120, 160, seed)
    height, width = index.shape
    found = regions(index, min_area=50)
    for number, ring in enumerate(polygons(found), 1):
        theirs = coco.decode(coco.frPyObjects([ring.ravel().tolist()], height, width)).any(axis=2)
        assert np.array_equal(theirs, found.number == number)
