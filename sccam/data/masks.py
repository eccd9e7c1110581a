"""The one mask reader and writer: index PNGs where 0 is background, c + 1 is class c and 255 is "ignore".

A palette file read as grey gives other numbers than its indices, which shows up only as an IoU of 0. So mode P is
read as indices, L as values, and RGB only when every colour is one of the VOC palette's.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sccam.artifacts import replacing, write_text
from sccam.data.images import opened
from sccam.errors import MaskError, ShapeError
from sccam.structures import BACKGROUND, IGNORE, ByteArray, IntArray

BLEND = 0.6  # share of the colour over the image, of every picture that is coloured
MASK_FORMATS = ("PNG", "BMP", "TIFF", "GIF")  # lossless: JPEG would blur class indices into each other


def read_mask(path: Path | str, *, class_count: int | None = None) -> ByteArray:
    """The class indices of a mask file, u8 [H W].

    Args:
        path: an index PNG (mode P or L), a 1- or 16-bit file with values up to 255, or RGB in VOC colours.
        class_count: classes without background; when given, other values than 0..class_count and 255 are refused.

    Raises:
        MaskError: the file is broken, has a colour or value that is no class, or would be read differently elsewhere.
    """
    path = Path(path)
    with opened(path, formats=MASK_FORMATS, error=MaskError) as image:
        if image.format == "PNG":  # whose checksums Pillow does not compare while it decodes
            image.verify()
    with opened(path, formats=MASK_FORMATS, error=MaskError) as image:
        image.load()
        index = _indices(image, path)
    if class_count is not None:
        check_mask(index, path, class_count, tagged=False)
    return index


def mask_size(path: Path | str) -> tuple[int, int]:
    """(H, W) of a mask file [px], from the header only."""
    with opened(path, formats=MASK_FORMATS, error=MaskError) as image:
        return image.height, image.width


def check_mask(index: ByteArray, path: Path | str, class_count: int, tagged: bool) -> None:
    """Refuses values that are no class and, where the image is tagged, masks without any class.

    Args:
        index: the mask as read.
        path: its file, for the message.
        class_count: classes without background.
        tagged: whether the image has at least one tag, so that its mask should show a class.

    Raises:
        MaskError: names the values found and what they suggest.
    """
    values = np.flatnonzero(np.bincount(index.ravel(), minlength=IGNORE + 1))
    unknown = [int(value) for value in values if class_count < value < IGNORE]
    if unknown:
        raise MaskError(
            f"mask values {_listed(unknown)} are no class; expected 0..{class_count} and {IGNORE}",
            where=path,
            why="the mask was made for another class list, or stores grey levels instead of class indices",
            fix="compare classes.txt with the list that the masks were drawn with (index = line number, from 1)",
        )
    if tagged and looks_binary(index):
        raise MaskError(
            f"the mask has only the values {{{', '.join(map(str, values))}}} although its image is tagged",
            where=path,
            why=f"this looks like a 0/255 binary mask; {IGNORE} means 'ignore', so every object pixel would be ignored",
            fix=f"write the class index (1..{class_count}) in place of {IGNORE}",
        )


def looks_binary(index: ByteArray) -> bool:
    """Whether the mask holds 255 and no class index at all."""
    return bool((index == IGNORE).any()) and not bool(((index != 0) & (index != IGNORE)).any())


def write_mask(path: Path | str, index: ByteArray) -> None:
    """Writes class indices u8 [H W] as a mode P PNG with the VOC palette, atomically."""
    if index.ndim != 2 or index.dtype != np.uint8:
        raise ShapeError(f"a mask is u8 [H W]; got {index.dtype} {list(index.shape)}")
    image = Image.fromarray(np.ascontiguousarray(index))
    image.putpalette(voc_palette().tobytes())
    with replacing(path) as temporary:
        image.save(temporary, format="PNG", compress_type=zlib.Z_RLE)  # half the time, and smaller: masks are runs


def write_labelmap(path: Path | str, classes: Sequence[str]) -> None:
    """Writes `labelmap.txt` in CVAT's form, one `name:r,g,b:parts:actions` line a label, background first."""
    lines = ["# label:color_rgb:parts:actions"]
    for name, (red, green, blue) in zip(["background", *classes], voc_palette(len(classes) + 1), strict=True):
        lines.append(f"{name}:{red},{green},{blue}::")
    write_text(path, "\n".join(lines) + "\n")


def coloured(image: ByteArray, index: ByteArray) -> ByteArray:
    """The image u8 [H W 3] under its labels [H W] in VOC colours; background stays as it is, 255 turns white."""
    mixed = (BLEND * voc_palette()[index] + (1 - BLEND) * image).astype(np.uint8)
    mixed[index == BACKGROUND] = image[index == BACKGROUND]
    mixed[index == IGNORE] = 255
    return mixed


def voc_palette(n: int = 256) -> ByteArray:
    """The VOC colours of indices 0..n-1, u8 [n 3].

    Bits 0, 1, 2 of the index go to the highest bit of red, green, blue; bits 3, 4, 5 to the next, and so on:
    near indices get far colours. Source: VOCdevkit, VOClabelcolormap.m.
    """
    index = np.arange(n)
    palette = np.zeros((n, 3), np.uint8)
    for level in range(3):
        for channel in range(3):
            bit = (index >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette


def _indices(image: Image.Image, path: Path) -> ByteArray:
    if image.mode in ("LA", "RGBA"):
        if np.asarray(image.getchannel("A")).min() < 255:
            raise MaskError(
                "the mask has transparent pixels", where=path, fix="save it without alpha: transparency names no class"
            )
        image = image.convert({"LA": "L", "RGBA": "RGB"}[image.mode])
    values = np.array(image)
    if image.mode == "P":
        _check_palette(image, values, path)
        return values
    if image.mode in ("L", "1"):
        return values.astype(np.uint8)
    if image.mode.startswith("I"):
        return _narrow(values, path)
    if image.mode == "RGB":
        return _from_colours(values, path)
    raise MaskError(
        f"a mask in mode {image.mode} has no class indices", where=path, fix="save it as an 8-bit palette or grey PNG"
    )


def _narrow(values: np.ndarray, path: Path) -> ByteArray:
    wrong = values[(values < 0) | (values > IGNORE)]
    if wrong.size:
        raise MaskError(
            f"mask values {_listed(np.unique(wrong).tolist())} do not fit in 0..{IGNORE}",
            where=path,
            why="a 16-bit file with instance numbers, or with grey levels stretched to 65535",
            fix="write class indices into an 8-bit PNG",
        )
    return values.astype(np.uint8)


def _check_palette(image: Image.Image, index: ByteArray, path: Path) -> None:
    """Refuses a palette that an editor has reordered: VOC colours, but at other places than their indices."""
    colours = np.array(image.getpalette("RGB") or [], np.int32).reshape(-1, 3)
    used = [int(value) for value in np.unique(index) if value < len(colours)]
    meant = _voc_index(colours[used])
    moved = [(value, int(mean)) for value, mean in zip(used, meant, strict=True) if value != mean]
    # Grey palettes share three colours with VOC's; only a shade with a hue shows that VOC's was meant.
    if moved and (meant >= 0).all() and any(np.ptp(colours[value]) > 0 for value in used):
        value, mean = max(moved, key=lambda pair: int(np.ptp(colours[pair[0]])))
        raise MaskError(
            f"palette index {value} has the VOC colour of class index {mean}",
            where=path,
            why="an image editor sorted or shortened the palette when it saved the file",
            fix="save the mask as RGB in VOC colours, or write the indices again",
        )


def _from_colours(colours: ByteArray, path: Path) -> ByteArray:
    index = _voc_index(colours)
    unknown = np.argwhere(index < 0)
    if len(unknown):
        y, x = (int(value) for value in unknown[0])
        colour = tuple(int(value) for value in colours[y, x])
        raise MaskError(
            f"colour {colour} at x {x}, y {y} is not in the VOC palette ({len(unknown)} such pixels)",
            where=path,
            why="the mask was drawn in other colours, smoothed, resized, or passed through JPEG",
            fix="save it as an index PNG (mode P or L), or in exact VOC colours",
        )
    return index.astype(np.uint8)


def _voc_index(colours: np.ndarray) -> IntArray:
    """The index whose VOC colour each [... 3] is, or -1."""
    palette = _packed(voc_palette())
    order = np.argsort(palette)
    packed = _packed(colours)
    place = order[np.minimum(np.searchsorted(palette, packed, sorter=order), len(order) - 1)]
    return np.where(palette[place] == packed, place, -1).astype(np.int32)


def _packed(colours: np.ndarray) -> IntArray:
    wide = colours.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _listed(values: Sequence[int], most: int = 8) -> str:
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most} more" if len(values) > most else "")
