"""The image reader: every mode, the eight orientations, and nothing but ImageError from broken files."""

from __future__ import annotations

import io
import struct
import subprocess
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from sccam.data.images import IMAGE_SUFFIXES, image_size, read_image
from sccam.errors import ImageError

SIZE = (7, 5)  # width, height
ORIENTATION = 0x0112


def picture(mode: str, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


@pytest.mark.parametrize(
    ("mode", "format"),
    [("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("P", "GIF"), ("RGB", "BMP"), ("RGB", "TIFF"), ("CMYK", "TIFF"),
     ("CMYK", "JPEG"), ("L", "JPEG"), ("YCbCr", "JPEG"), ("RGB", "WEBP"), ("LA", "PNG"), ("RGBA", "PNG")],
)  # fmt: skip
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, format: str) -> None:
    path = tmp_path / "image"
    path.write_bytes(encoded(picture(mode), format))
    pixels = read_image(path)
    assert pixels.shape == (5, 7, 3) and pixels.dtype == np.uint8
    assert image_size(path) == (5, 7)


def test_lossless_rgb_comes_back_exactly(tmp_path: Path) -> None:
    picture("RGB").save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), np.asarray(picture("RGB")))


def test_transparent_pixels_become_white(tmp_path: Path) -> None:
    values = np.zeros((1, 3, 4), np.uint8)
    values[0, :, 3] = (0, 51, 255)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255] * 3, [204] * 3, [0] * 3]


def test_a_transparent_palette_colour_becomes_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([9, 9, 9, 200, 10, 20])
    image.save(tmp_path / "a.png", transparency=0)
    assert read_image(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [200, 10, 20]]


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 128, 129, 257 * 100, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png")[0, :, 0].tolist() == [0, 0, 1, 100, 255]


def test_floats_without_a_known_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="float32 values"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", SIZE, colour) for colour in ((250, 0, 0), (0, 0, 250))]
    path = tmp_path / "image"
    path.write_bytes(encoded(frames[0], format, save_all=True, append_images=frames[1:]))
    red, _, blue = read_image(path)[2, 3].tolist()
    assert red > 200 and blue < 50


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_eight_orientations_show_the_same_picture(tmp_path: Path, orientation: int, format: str) -> None:
    upright = np.asarray(picture("RGB"))
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    options = {"lossless": True} if format == "WEBP" else {}
    path = tmp_path / "image"
    path.write_bytes(encoded(Image.fromarray(stored.copy()), format, exif=exif(orientation), **options))
    assert np.array_equal(read_image(path), upright)
    assert np.array_equal(read_image(path, raw_orientation=True), stored)
    assert image_size(path) == upright.shape[:2]
    assert image_size(path, raw_orientation=True) == stored.shape[:2]


def test_damaged_exif_beside_good_pixels_is_ignored(tmp_path: Path) -> None:
    picture("RGB").save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.png").shape == (5, 7, 3)


def test_the_content_decides_and_not_the_name(tmp_path: Path) -> None:
    picture("RGB").save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg").shape == (5, 7, 3)


def test_odd_names_are_read(tmp_path: Path) -> None:
    for name in ("späße 猫.png", "a\nb.png", "-rf.png", " .png", "CON.png"):
        picture("RGB").save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (5, 7, 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_thin_images_are_read(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (size[1], size[0], 3)


# ~100 broken files: seeds cut short, bits flipped, stretches overwritten. Some still decode; nothing else may happen.


def seeds() -> list[bytes]:
    large = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    return [
        encoded(large, "JPEG"),
        encoded(large, "JPEG", progressive=True, exif=exif(6)),
        encoded(large, "PNG"),
        encoded(large.convert("P"), "GIF"),
        encoded(large, "BMP"),
        encoded(large, "TIFF"),
        encoded(large, "TIFF", compression="tiff_lzw"),
        encoded(large, "WEBP"),
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(8))
def test_broken_files_raise_image_error_and_nothing_else(tmp_path: Path, number: int) -> None:
    data, rng = seeds()[number], np.random.default_rng(number)
    for trial in range(14):
        broken = bytearray(data)
        if trial % 3 == 0:
            del broken[int(rng.integers(len(broken))) :]
        elif trial % 3 == 1:
            for place in rng.integers(0, min(len(broken), 200), 4):
                broken[place] ^= 1 << int(rng.integers(8))
        else:
            start = int(rng.integers(len(broken)))
            broken[start : start + 40] = rng.bytes(40)
        path = tmp_path / f"{trial}.jpg"
        path.write_bytes(broken)
        for read in (read_image, image_size):
            try:
                read(path)
            except ImageError as error:
                assert error.where == str(path)


@pytest.mark.parametrize("number", range(8))
def test_truncated_files_are_errors(tmp_path: Path, number: int) -> None:
    data = seeds()[number]
    (tmp_path / "a.jpg").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    "kind", [OSError, SyntaxError, ValueError, struct.error, MemoryError, EOFError, ZeroDivisionError, RuntimeError]
)
def test_whatever_a_decoder_raises_becomes_image_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise kind("deep inside")

    picture("RGB").save(tmp_path / "a.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(ImageError, match=f"{kind.__name__}|deep inside"):
        read_image(tmp_path / "a.png")


def test_an_empty_file_a_text_file_a_folder_and_nothing_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "folder.jpg").mkdir()
    for name, message in [("empty", "empty"), ("text", "not a picture"), ("folder", "not a file"), ("no", "missing")]:
        with pytest.raises(ImageError, match=message):
            read_image(tmp_path / f"{name}.jpg")


def bomb(width: int, height: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    (tmp_path / "a.png").write_bytes(bomb(side, side))
    with pytest.raises(ImageError, match="too large"):
        read_image(tmp_path / "a.png")


def test_the_pixel_limit_can_be_set(tmp_path: Path) -> None:
    picture("RGB").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(ImageError, match=r"7 x 5 px, the limit is 34 px"):
        read_image(tmp_path / "a.png", max_pixels=34)


def test_eps_under_another_name_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    eps = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.jpg").write_text(eps)
    (tmp_path / "b.jpg").write_bytes(b"P6 1 1 255\n\0\0\0")
    for name in "ab":
        with pytest.raises(ImageError, match="not a picture in a format that is read"):
            read_image(tmp_path / f"{name}.jpg")


def test_threads_read_the_same_pixels(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.png" for n in range(8)]
    for n, path in enumerate(paths):
        picture("RGB", n).save(path)
    read: dict[tuple[int, int], np.ndarray] = {}

    def work(thread: int) -> None:
        for n, path in enumerate(paths):
            read[thread, n] = read_image(path)

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read) == 32
    assert all(np.array_equal(pixels, np.asarray(picture("RGB", n))) for (_, n), pixels in read.items())


def test_the_settings_of_pillow_are_left_alone() -> None:
    assert Image.MAX_IMAGE_PIXELS == 89478485 and not ImageFile.LOAD_TRUNCATED_IMAGES
    assert ".eps" not in IMAGE_SUFFIXES
