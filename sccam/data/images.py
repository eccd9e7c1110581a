"""The one image reader: any picture file becomes u8 [H W 3] RGB in displayed orientation, or one ImageError.

    stored as            becomes
    RGB, L, 1, P, YCbCr  RGB; grey is repeated three times
    RGBA, LA, P + tRNS   composited over white
    CMYK                 RGB by Pillow's formula, no colour profile
    I;16, I (16 bit)     v / 257, rounded
    animation, MPO       the first frame

Training, inference and the checks read images here and nowhere else, so a turned photograph is turned everywhere.
Formats are an allowlist: EPS would start Ghostscript, and each of Pillow's other parsers is code that a stranger's
file could reach. No global setting of Pillow is changed, so threads may read at the same time. What Pillow warns of is
of no matter, or becomes an ImageError; its warnings are shown to those who ask for them (python -W).
"""

from __future__ import annotations

import io
import logging
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import (  # naming the plugins registers these readers only; Image.open need not import all forty
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from PIL.ExifTags import Base as ExifTag
from PIL.Image import Transpose

from sccam.errors import DataError, ImageError, SccamError
from sccam.structures import ByteArray

FORMATS = tuple(  # MPO is opened by the JPEG reader, and registers none of its own
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
    )
)
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".mpo"})
DEFAULT_MAX_PIXELS = 100_000_000  # 12,000 x 8,000 px passes; three bytes each, so 300 MB decoded

warnings.filterwarnings("ignore", module=r"PIL\.", append=True)  # behind the filters that are there
logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any, errors would go to the error stream

# EXIF orientation -> what turns the stored pixels upright, and its inverse
_UPRIGHT = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_STORED = {**_UPRIGHT, 6: Transpose.ROTATE_90, 8: Transpose.ROTATE_270}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})


def read_image(
    path: Path | str,
    *,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    raw_orientation: bool = False,
    data: bytes | None = None,
) -> ByteArray:
    """The image as RGB, u8 [H W 3].

    Args:
        path: a JPEG, PNG, BMP, TIFF, WebP, GIF or MPO file, whatever its name ends with.
        max_pixels: refuse larger images before decoding them [px]. Pillow itself refuses above 179 million.
        raw_orientation: keep the pixels as stored instead of applying the EXIF orientation.
        data: the bytes of what is no file of its own; `path` is what it is called.

    Raises:
        ImageError: the file is missing, truncated, broken, too large, or of another format.
    """
    with opened(path, max_pixels=max_pixels, data=data) as image:
        orientation = _orientation(image)
        # Pillow turns TIFF upright while loading, and no other format.
        turned = image.format == "TIFF"
        image.load()
        upright = _to_rgb(image)
        if raw_orientation and turned and orientation in _STORED:
            upright = upright.transpose(_STORED[orientation])
        elif not raw_orientation and not turned and orientation in _UPRIGHT:
            upright = upright.transpose(_UPRIGHT[orientation])
        return np.array(upright)


def image_size(path: Path | str, *, raw_orientation: bool = False) -> tuple[int, int]:
    """(H, W) as `read_image` would return it [px], from the header only.

    Raises:
        ImageError: the file is missing, or its header is not that of a readable format.
    """
    with opened(path, max_pixels=None) as image:
        width, height = image.size
        swaps = _orientation(image) in _SWAPS_SIDES
        turned = image.format == "TIFF"
        return (width, height) if swaps and turned == raw_orientation else (height, width)


def mode_and_orientation(path: Path | str) -> tuple[str, int]:
    """What Pillow calls the stored colours, such as "RGB", and the EXIF orientation, 1 to 8; from the header only.

    Raises:
        ImageError: as `image_size`.
    """
    with opened(path, max_pixels=None) as image:
        return image.mode, _orientation(image)


@contextmanager
def opened(
    path: Path | str,
    *,
    max_pixels: int | None = DEFAULT_MAX_PIXELS,
    formats: Sequence[str] = FORMATS,
    error: type[DataError] = ImageError,
    data: bytes | None = None,
) -> Iterator[Image.Image]:
    """The file with its header parsed and no pixel decoded yet; whatever goes wrong in the block becomes `error`.

    Args:
        data: in place of the file's bytes.
    """
    path = Path(path)
    try:
        if data is None:
            status = path.stat()
            # A named pipe would block for ever in open(), a device might never end.
            if not stat.S_ISREG(status.st_mode):
                raise error("not a file", where=path, why="a folder or a device has the name of an image")
        if (status.st_size if data is None else len(data)) == 0:
            raise error("the file is empty", where=path, why="an interrupted copy", fix="copy it again or remove it")
        with (
            _Clamped(io.FileIO(path)) if data is None else io.BytesIO(data) as file,
            Image.open(file, formats=list(formats)) as image,
        ):
            _check_size(image.size, max_pixels, path, error)
            yield image
    except SccamError:  # a second Ctrl-C among them
        raise
    except FileNotFoundError:
        raise error("the file is missing", where=path, why="it was moved, or its name is misspelt") from None
    except PermissionError:
        raise error("the file may not be read", where=path, fix="give yourself the right to read it") from None
    except Exception as cause:  # decoders raise a dozen unrelated kinds on broken files
        raise _unreadable(path, cause, formats, error) from cause


class _Clamped(io.BufferedReader):
    """A file that is asked for no more than it has: Python would make room for the 4 GB of a damaged length first."""

    LARGE = 1 << 20

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.LARGE:
            size = min(size, max(0, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _unreadable(path: Path, cause: Exception, formats: Sequence[str], error: type[DataError]) -> DataError:
    if isinstance(cause, Image.DecompressionBombError):
        return error(f"too large: {cause}", where=path, fix="make it smaller first")
    if isinstance(cause, UnidentifiedImageError):
        return error(
            f"not a picture in a format that is read ({', '.join(formats)})",
            where=path,
            why="another kind of file was given this name, or its beginning is damaged",
            fix="convert it to PNG or JPEG, or remove it",
        )
    reason = ": ".join(part for part in (type(cause).__name__, str(cause)) if part)
    return error(
        f"cannot be decoded: {reason}",
        where=path,
        why="the file is truncated or damaged",
        fix="copy it again from its source, or remove it",
    )


def _check_size(size: tuple[int, int], max_pixels: int | None, path: Path, error: type[DataError]) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise error(f"the image is {width} x {height} px", where=path, why="its header is damaged")
    if max_pixels is not None and width * height > max_pixels:
        raise error(
            f"too large: {width} x {height} px, the limit is {max_pixels:,} px",
            where=path,
            why="a scan or satellite picture, or a header made to exhaust memory",
            fix="make it smaller or cut it into tiles first",
        )


def _orientation(image: Image.Image) -> int:
    # The base class's getexif: that of PNG would decode the pixels in search of EXIF behind them.
    # Damaged EXIF beside good pixels is common, and every viewer shows such a picture as stored.
    try:
        found = Image.Image.getexif(image).get(ExifTag.Orientation, 1)
        return int(found) if found in _UPRIGHT else 1  # not int("6"): what is no number turns no TIFF, either
    except SccamError:
        raise
    except Exception:
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_sixteen_to_eight(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy it


def _sixteen_to_eight(values: np.ndarray) -> ByteArray:
    full = 65535
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > full:
        raise ValueError(f"{values.dtype} values in [{values.min()}, {values.max()}]; only 8 and 16 bits are read")
    return ((values.astype(np.uint32) + full // 510) // 257).astype(np.uint8)
