"""The mask reader and writer: indices survive, and anything that would be read wrongly is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from sccam.data.masks import check_mask, looks_binary, read_mask, voc_palette, write_labelmap, write_mask
from sccam.errors import MaskError, ShapeError

masks = arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.integers(0, 255))
in_folder = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@in_folder
@given(masks)
def test_a_written_mask_reads_back_exactly(tmp_path: Path, index: np.ndarray) -> None:
    write_mask(tmp_path / "a.png", index)
    assert np.array_equal(read_mask(tmp_path / "a.png"), index)


@in_folder
@given(masks)
def test_a_mask_in_voc_colours_reads_as_its_indices(tmp_path: Path, index: np.ndarray) -> None:
    Image.fromarray(voc_palette()[index]).save(tmp_path / "a.png")
    assert np.array_equal(read_mask(tmp_path / "a.png"), index)


def test_grey_and_sixteen_bit_masks_read_as_their_values(tmp_path: Path) -> None:
    index = np.array([[0, 1, 20, 255]], np.uint8)
    for dtype in (np.uint8, np.uint16):
        Image.fromarray(index.astype(dtype)).save(tmp_path / "a.png")
        assert np.array_equal(read_mask(tmp_path / "a.png"), index)


def test_a_one_bit_mask_reads_as_zero_and_one(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "a.png")
    assert read_mask(tmp_path / "a.png").tolist() == [[0, 1]]


def test_the_palette_begins_with_the_colours_of_voc() -> None:
    palette = voc_palette()
    assert palette[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[20].tolist() == [0, 64, 128] and palette[255].tolist() == [224, 224, 192]
    assert len(np.unique(palette, axis=0)) == 256


def test_a_written_mask_has_the_voc_palette(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == "P"
    write_mask(tmp_path / "a.png", np.full((2, 2), 255, np.uint8))
    with Image.open(tmp_path / "a.png") as image:
        assert image.getpalette() == voc_palette().ravel().tolist()


def test_an_unknown_colour_is_named_with_its_pixel(tmp_path: Path) -> None:
    colours = voc_palette()[np.zeros((3, 4), int)]
    colours[1, 2] = (1, 2, 3)
    Image.fromarray(colours).save(tmp_path / "a.png")
    with pytest.raises(MaskError, match=r"colour \(1, 2, 3\) at x 2, y 1"):
        read_mask(tmp_path / "a.png")


def test_a_reordered_palette_is_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([0, 0, 0, *voc_palette()[15].tolist()])
    image.save(tmp_path / "a.png")
    with pytest.raises(MaskError, match="palette index 1 has the VOC colour of class index 15"):
        read_mask(tmp_path / "a.png")


def test_a_grey_or_foreign_palette_is_read_as_indices(tmp_path: Path) -> None:
    for colours in ([v for k in range(256) for v in (k, k, k)], [7, 8, 9, 250, 100, 3, 1, 1, 90]):
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
        image.putpalette(colours)
        image.save(tmp_path / "a.png")
        assert read_mask(tmp_path / "a.png").tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.fromarray(np.full((1, 2), 65535, np.uint16)), "values 65535 do not fit"),
        (Image.new("RGBA", (2, 2), (0, 0, 0, 9)), "transparent"),
    ],
)
def test_other_masks_are_refused(tmp_path: Path, image: Image.Image, message: str) -> None:
    image.save(tmp_path / "a.png")
    with pytest.raises(MaskError, match=message):
        read_mask(tmp_path / "a.png")


def test_a_jpeg_mask_is_refused(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "a.png", format="JPEG")
    with pytest.raises(MaskError, match="not a picture in a format that is read"):
        read_mask(tmp_path / "a.png")


def test_values_beyond_the_classes_are_named(tmp_path: Path) -> None:
    write_mask(tmp_path / "a.png", np.array([[0, 3, 4, 9, 255]], np.uint8))
    with pytest.raises(MaskError, match=r"mask values 4, 9 are no class; expected 0\.\.3 and 255") as caught:
        read_mask(tmp_path / "a.png", class_count=3)
    assert caught.value.where == str(tmp_path / "a.png")


def test_a_binary_mask_of_a_tagged_image_gets_the_hint() -> None:
    index = np.array([[0, 255]], np.uint8)
    assert looks_binary(index)
    check_mask(index, "a.png", 3, tagged=False)
    with pytest.raises(MaskError, match=r"only the values \{0, 255\}") as caught:
        check_mask(index, "a.png", 3, tagged=True)
    assert "0/255 binary mask" in str(caught.value)
    check_mask(np.array([[0, 2, 255]], np.uint8), "a.png", 3, tagged=True)


def test_only_bytes_of_two_dimensions_are_written(tmp_path: Path) -> None:
    wrongs: list[Any] = [np.zeros((2, 2), np.int64), np.zeros((2, 2, 1), np.uint8)]
    for wrong in wrongs:
        with pytest.raises(ShapeError, match=r"a mask is u8 \[H W\]"):
            write_mask(tmp_path / "a.png", wrong)
    assert not list(tmp_path.iterdir())


def test_the_labelmap_names_background_first(tmp_path: Path) -> None:
    write_labelmap(tmp_path / "labelmap.txt", ["cat", "dog"])
    lines = (tmp_path / "labelmap.txt").read_text().splitlines()
    assert lines == ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:128,0,0::", "dog:0,128,0::"]
