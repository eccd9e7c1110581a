"""Broken images, made by code from some twenty drawn seeds: cut, changed, taken apart, crafted; the same every time.

    files = corpus(2000)              # of every kind; each is its name, kind, seed and bytes
    write(files, folder)

A file of number n and kind k is the same in a corpus of any size. Many still decode: a flipped bit of a pixel is
another picture. `Broken.fate` says what is known of a file beforehand.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import Base as ExifTag

ROWS_PER_STRIP, STRIP_OFFSETS, STRIP_BYTES = 278, 273, 279  # TIFF tags
SHORT, LONG = 3, 4  # TIFF types
MANY_PIXELS = [(60_000, 60_000), (65_500, 1_600), (1_600, 65_500), (12_000, 9_000), (65_535, 65_535)]  # all too many
SCREENS = [(16_383, 16_383), (16_383, 6_500), (10_001, 10_001)]  # the same for 14 bits a side


@dataclass(frozen=True)
class Seed:
    """A sound picture."""

    name: str
    format: str  # jpeg, png, webp, bmp, tiff or gif
    data: bytes


@dataclass(frozen=True)
class Broken:
    """One file of the corpus.

    Attributes:
        name: of the file, unique.
        kind: what was done, of `kinds()`.
        seed: to which picture; empty where there was none.
        data: None stands for a folder of that name.
        fate: "bomb" must be refused for its size; "refused" must be refused; "" may decode.
    """

    name: str
    kind: str
    seed: str
    data: bytes | None
    fate: str = ""


def corpus(count: int, of: Sequence[str] = ()) -> list[Broken]:
    """`count` files, the kinds in turn; of the kinds that have few forms, `_FEW` at most.

    Args:
        of: kinds; all by default.
    """
    found: list[Broken] = []
    turn = 0
    while len(found) < count:
        for kind in of or kinds():
            if kind in _WITHOUT_SEED and turn >= _FEW:
                continue
            found.append(_broken(kind, turn, len(found)))
        turn += 1
    return found[:count]


def write(files: Sequence[Broken], folder: Path) -> None:
    """The files, in a folder that is made for them."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        if file.data is None:
            (folder / file.name).mkdir()
        else:
            (folder / file.name).write_bytes(file.data)


def kinds() -> tuple[str, ...]:
    """What can be done to a picture, and what is none."""
    return (*_CHANGES, *_CRAFTS, *_WITHOUT_SEED)


def _broken(kind: str, turn: int, number: int) -> Broken:
    rng = random.Random(f"{kind} {turn}")
    if kind in _WITHOUT_SEED:
        name = f"{number:05}-{kind}.jpg"
        return Broken(name, kind, "", _WITHOUT_SEED[kind](rng, turn), "refused")
    fit = [seed for seed in seeds() if kind in _CHANGES or seed.format in _CRAFTS[kind]]
    seed = fit[(turn + 7 * (kinds().index(kind))) % len(fit)]  # the kinds meet the seeds in other turns
    change = _CHANGES[kind] if kind in _CHANGES else _CRAFTS[kind][seed.format]
    suffix = rng.choice(["jpg", "png", seed.format.replace("jpeg", "jpg")])  # the content decides, whatever the name
    data = change(rng, seed)
    fate = {"giant": "bomb", "zero_size": "refused"}.get(kind, "")
    return Broken(f"{number:05}-{kind}-{seed.name}.{suffix}", kind, seed.name, data, fate)


# Seeds


def picture(width: int = 60, height: int = 44) -> np.ndarray:
    """A ramp from dark to bright with blocks of colour, u8 [H W 3]."""
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    pixels = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    blocks = np.random.default_rng(0).integers(0, 256, (-(-height // 11), -(-width // 12), 3), np.uint8)
    coloured = np.kron(blocks, np.ones((11, 12, 1), np.uint8))[:height, :width]
    pixels[height // 2 :] = pixels[height // 2 :] // 2 + coloured[height // 2 :] // 2
    return pixels


def encoded(image: Image.Image, format: str, **options: Any) -> bytes:
    """The bytes of a file of a format of Pillow."""
    file = io.BytesIO()
    image.copy().save(file, format, **options)  # saving as JPEG leaves settings in the image
    return file.getvalue()


def exif(orientation: Any) -> Image.Exif:
    """EXIF with an orientation, of whatever type, and a text."""
    tags = Image.Exif()
    tags[ExifTag.Orientation] = orientation
    tags[ExifTag.Make] = "no camera"
    return tags


@cache
def seeds() -> tuple[Seed, ...]:
    """The sound pictures."""
    rgb = Image.fromarray(picture())
    grey, rgba = rgb.convert("L"), rgb.copy()
    rgba.putalpha(grey)
    palette = rgb.quantize(64)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)

    def frames() -> dict[str, Any]:
        return {"save_all": True, "append_images": [rgb.transpose(Image.Transpose.ROTATE_180), grey.convert("RGB")]}

    strips = {ROWS_PER_STRIP: 8}
    made = {
        "baseline": ("jpeg", encoded(rgb, "JPEG")),
        "progressive": ("jpeg", encoded(rgb, "JPEG", progressive=True, quality=90)),
        "grey": ("jpeg", encoded(grey, "JPEG")),
        "cmyk": ("jpeg", encoded(rgb.convert("CMYK"), "JPEG")),
        "exif": ("jpeg", encoded(rgb, "JPEG", exif=exif(6), comment=b"a comment", restart_marker_blocks=4)),
        "mpo": ("jpeg", encoded(rgb, "MPO", **frames())),
        "rgb": ("png", encoded(rgb, "PNG", exif=exif(8))),
        "palette": ("png", encoded(palette, "PNG", transparency=3)),
        "rgba": ("png", encoded(rgba, "PNG")),
        "deep": ("png", encoded(deep, "PNG")),
        "bits": ("png", encoded(rgb.convert("1"), "PNG")),
        "interlaced": ("png", interlaced(picture())),
        "apng": ("png", encoded(rgb, "PNG", **frames())),
        "lossy": ("webp", encoded(rgb, "WEBP")),
        "lossless": ("webp", encoded(rgb, "WEBP", lossless=True, exif=exif(3))),
        "alpha": ("webp", encoded(rgba, "WEBP")),
        "animated": ("webp", encoded(rgb, "WEBP", **frames())),
        "bmp": ("bmp", encoded(rgb, "BMP")),
        "bmp_palette": ("bmp", encoded(palette, "BMP")),
        "raw": ("tiff", encoded(rgb, "TIFF", tiffinfo=strips)),
        "deflate": ("tiff", encoded(rgb, "TIFF", compression="tiff_deflate", tiffinfo=strips)),
        "lzw": ("tiff", encoded(rgb, "TIFF", compression="tiff_lzw", tiffinfo={**strips, 317: 2})),
        "pages": ("tiff", encoded(rgb, "TIFF", **frames())),
        "bilevel": ("tiff", encoded(rgb.convert("1"), "TIFF", compression="group4")),
        "still": ("gif", encoded(palette, "GIF")),
        "moving": ("gif", encoded(rgb, "GIF", **frames())),
    }
    return tuple(Seed(name, *rest) for name, rest in made.items())


def interlaced(pixels: np.ndarray) -> bytes:
    """An interlaced PNG of u8 [H W 3], which Pillow reads and does not write."""
    rows = []
    for top, left, down, across in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2),
                                    (1, 0, 2, 1)):  # fmt: skip
        rows += [b"\0" + row.tobytes() for row in pixels[top::down, left::across]]
    height, width = pixels.shape[:2]
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    return _png_of([header, b"IDAT" + zlib.compress(b"".join(rows)), b"IEND"])


# A file as a list of parts: chunks, segments, blocks, entries of a TIFF's directory


_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def parts_of(seed: Seed) -> list[bytes]:
    """The parts of a seed, in their order."""
    return _PARTS[seed.format][0](seed.data)


def joined(seed: Seed, parts: Sequence[bytes]) -> bytes:
    """A file of the parts, with counts, lengths and check sums as they should be."""
    return _PARTS[seed.format][1](seed.data, parts)


def _png_parts(data: bytes) -> list[bytes]:
    parts, at = [], len(_PNG_HEAD)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        parts.append(data[at + 4 : at + 8 + length])
        at += 12 + length
    return parts


def _png_of(parts: Sequence[bytes]) -> bytes:
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return _PNG_HEAD + b"".join(chunks)


def _jpeg_parts(data: bytes) -> list[bytes]:
    """Each begins with a marker; that of a scan holds its coded data, too."""
    starts, at = [0], 2
    while at < len(data) and data[at : at + 2] != b"\xff\xd9":
        starts.append(at)
        scan = data[at + 1] == 0xDA
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        while scan and not (data[at] == 0xFF and data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7):
            at += 1
    ends = [*starts[1:], at]
    return [*(data[a:b] for a, b in zip(starts, ends, strict=True)), data[at:]]


def _webp_parts(data: bytes) -> list[bytes]:
    parts, at = [], 12
    while at < len(data):
        end = at + 8 + (struct.unpack_from("<I", data, at + 4)[0] + 1) // 2 * 2
        parts.append(data[at:end])
        at = end
    return parts


def _webp_of(data: bytes, parts: Sequence[bytes]) -> bytes:
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _gif_parts(data: bytes) -> list[bytes]:
    """The head with its colours, then a block each: extension, or image with its data."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts = [data[:at]]
    while at < len(data) and data[at] in (0x21, 0x2C):
        start = at
        if data[at] == 0x21:
            at += 2
        else:
            at += 11 + (3 << (data[at + 9] & 7) + 1 if data[at + 9] & 0x80 else 0)
        while data[at]:
            at += data[at] + 1
        at += 1
        parts.append(data[start:at])
    return [*parts, data[at:]]


def _bmp_parts(data: bytes) -> list[bytes]:
    start, (height,) = struct.unpack_from("<I", data, 10)[0], struct.unpack_from("<i", data, 22)
    row = (len(data) - start) // height
    head = [data[:14], data[14:54], data[54:start]]
    return [*(part for part in head if part), *(data[at : at + row] for at in range(start, len(data), row))]


def _tiff_parts(data: bytes) -> list[bytes]:
    at, count = _directory(data)
    return [data[at + 2 + 12 * n : at + 14 + 12 * n] for n in range(count)]


def _tiff_of(data: bytes, parts: Sequence[bytes]) -> bytes:
    """The first directory once more, at the end of the file."""
    at, count = _directory(data)
    following = data[at + 2 + 12 * count : at + 6 + 12 * count]
    end = len(data) + len(data) % 2
    directory = struct.pack("<H", len(parts)) + b"".join(parts) + following
    return data[:4] + struct.pack("<I", end) + data[8:] + b"\0" * (len(data) % 2) + directory


def _directory(data: bytes) -> tuple[int, int]:
    (at,) = struct.unpack_from("<I", data, 4)
    return at, struct.unpack_from("<H", data, at)[0]


def _plain(data: bytes, parts: Sequence[bytes]) -> bytes:
    return b"".join(parts)


_PARTS: dict[str, tuple[Callable[[bytes], list[bytes]], Callable[[bytes, Sequence[bytes]], bytes]]] = {
    "jpeg": (_jpeg_parts, _plain),
    "png": (_png_parts, lambda data, parts: _png_of(parts)),
    "webp": (_webp_parts, _webp_of),
    "bmp": (_bmp_parts, _plain),
    "tiff": (_tiff_parts, _tiff_of),
    "gif": (_gif_parts, _plain),
}


# What may happen to the bytes of any file


def _stretch(rng: random.Random, data: bytes) -> tuple[int, int]:
    """Where a random piece begins and ends; pieces of a few bytes are as likely as long ones."""
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice([1, 4, 16, 64, 256, 1024]))


def _cut(rng: random.Random, seed: Seed) -> bytes:
    return seed.data[: rng.randrange(1, len(seed.data))]


def _cut_early(rng: random.Random, seed: Seed) -> bytes:
    return seed.data[: rng.randrange(1, min(120, len(seed.data)))]


def _flipped(rng: random.Random, seed: Seed, most: int = 1 << 30) -> bytes:
    data = bytearray(seed.data)
    for _ in range(rng.choice([1, 2, 8, 30])):
        data[rng.randrange(min(len(data), most))] ^= 1 << rng.randrange(8)
    return bytes(data)


def _head_flipped(rng: random.Random, seed: Seed) -> bytes:
    return seed.data[:4] + _flipped(rng, Seed("", "", seed.data[4:]), 150)  # the magic stays, so that more is parsed


def _filled(rng: random.Random, seed: Seed, value: bytes) -> bytes:
    start, end = _stretch(rng, seed.data)
    return seed.data[:start] + value * (end - start) + seed.data[end:]


def _zeros(rng: random.Random, seed: Seed) -> bytes:
    return _filled(rng, seed, b"\0")


def _ones(rng: random.Random, seed: Seed) -> bytes:
    return _filled(rng, seed, b"\xff")


def _noise(rng: random.Random, seed: Seed) -> bytes:
    start, end = _stretch(rng, seed.data)
    return seed.data[:start] + rng.randbytes(end - start) + seed.data[end:]


def _removed(rng: random.Random, seed: Seed) -> bytes:
    start, end = _stretch(rng, seed.data)
    return seed.data[:start] + seed.data[end:]


def _doubled(rng: random.Random, seed: Seed) -> bytes:
    start, end = _stretch(rng, seed.data)
    return seed.data[:end] + seed.data[start:]


def _swapped(rng: random.Random, seed: Seed) -> bytes:
    (a, b), (c, d) = sorted([_stretch(rng, seed.data), _stretch(rng, seed.data)])
    b = min(b, c)
    return seed.data[:a] + seed.data[c:d] + seed.data[b:c] + seed.data[a:b] + seed.data[d:]


def _grafted(rng: random.Random, seed: Seed) -> bytes:
    """The head of one picture on the body of another, often of another format."""
    other = rng.choice(seeds()).data
    at = rng.choice([8, 16, 40, 100, 300])
    return seed.data[:at] + other[at:]


def _parts_dropped(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    for _ in range(min(len(parts), rng.choice([1, 1, 2]))):
        parts.pop(rng.randrange(len(parts)))
    return joined(seed, parts)


def _parts_swapped(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    a, b = rng.sample(range(len(parts)), 2) if len(parts) > 1 else (0, 0)
    parts[a], parts[b] = parts[b], parts[a]
    return joined(seed, parts)


def _parts_doubled(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    one = rng.choice(parts)
    parts.insert(rng.randrange(len(parts)), one)
    return joined(seed, parts)


def _parts_changed(rng: random.Random, seed: Seed) -> bytes:
    """Bytes inside of one part; lengths and check sums are right again, so the decoder gets further."""
    parts = parts_of(seed)
    n = rng.randrange(len(parts))
    part = bytearray(parts[n])
    for _ in range(rng.choice([1, 3, 10])):
        part[rng.randrange(min(4, len(part) - 1), len(part))] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
    parts[n] = bytes(part)
    return joined(seed, parts)


Change = Callable[[random.Random, Seed], bytes]

_CHANGES: dict[str, Change] = {
    "cut": _cut,
    "cut_early": _cut_early,
    "flipped": _flipped,
    "head_flipped": _head_flipped,
    "zeros": _zeros,
    "ones": _ones,
    "noise": _noise,
    "removed": _removed,
    "doubled": _doubled,
    "swapped": _swapped,
    "grafted": _grafted,
    "parts_dropped": _parts_dropped,
    "parts_swapped": _parts_swapped,
    "parts_doubled": _parts_doubled,
    "parts_changed": _parts_changed,
}


# What somebody who knows a format may write into its fields


def _put(data: bytes, at: int, layout: str, *values: int) -> bytes:
    end = at + struct.calcsize(layout)
    return data[:at] + struct.pack(layout, *values) + data[end:]


def _png_header(seed: Seed, layout: str, at: int, *values: int) -> bytes:
    """A PNG with other values in its first chunk, 0 being the width."""
    header, *rest = parts_of(seed)
    return _png_of([_put(header, 4 + at, layout, *values), *rest])


def _frame_header(data: bytes) -> int:
    """Where the height stands in a JPEG."""
    at = 0
    for part in _jpeg_parts(data):
        if part[1] in (0xC0, 0xC1, 0xC2):
            return at + 5
        at += len(part)
    raise AssertionError("no frame")


def _tag(data: bytes, tag: int, value: int, kind: int = LONG, count: int = 1) -> bytes:
    """A TIFF whose first directory has this entry, in its place where it was there."""
    seed = Seed("", "tiff", data)
    entry = struct.pack("<HHI", tag, kind, count) + struct.pack("<I", value)
    parts = [part for part in parts_of(seed) if struct.unpack_from("<H", part)[0] != tag]
    return joined(seed, sorted([*parts, entry], key=lambda part: struct.unpack_from("<H", part)[0]))


def _webp_size(seed: Seed, width: int, height: int) -> bytes:
    """A WebP of another size, wherever it is written."""
    parts = parts_of(seed)
    for n, part in enumerate(parts):
        if part[:4] == b"VP8X":
            parts[n] = part[:12] + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3] + part[18:]
        elif part[:4] == b"VP8 ":
            parts[n] = _put(part, 14, "<HH", width & 0x3FFF, height & 0x3FFF)
        elif part[:4] == b"VP8L":
            high = struct.unpack_from("<I", part, 9)[0] >> 28
            parts[n] = _put(part, 9, "<I", (width - 1 & 0x3FFF) | (height - 1 & 0x3FFF) << 14 | high << 28)
        elif part[:4] == b"ANMF":
            parts[n] = part[:14] + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3] + part[20:]
    return joined(seed, parts)


def _gif_size(seed: Seed, width: int, height: int) -> bytes:
    parts = parts_of(seed)
    parts[0] = _put(parts[0], 6, "<HH", width, height)
    return joined(seed, [_put(part, 5, "<HH", width, height) if part[:1] == b"," else part for part in parts])


def _giant_tiff(rng: random.Random, seed: Seed) -> bytes:
    width, height = rng.choice([*MANY_PIXELS, (1 << 31 - 1, 1), (1 << 20, 1 << 20), (2**32 - 1, 2**32 - 1)])
    return _tag(_tag(seed.data, 256, width), 257, height)


def _giant_gif(rng: random.Random, seed: Seed) -> bytes:
    size = rng.choice(MANY_PIXELS)
    if rng.random() < 0.5:
        return _gif_size(seed, *size)
    parts = parts_of(seed)  # a small screen with a frame that leaves it
    return joined(seed, [_put(part, 5, "<HH", *size) if part[:1] == b"," else part for part in parts])


def _wrong_length_png(rng: random.Random, seed: Seed) -> bytes:
    ends, pixels = [len(_PNG_HEAD)], len(_PNG_HEAD)
    for part in parts_of(seed):
        pixels = ends[-1] if part[:4] == b"IDAT" else pixels
        ends.append(ends[-1] + len(part) + 8)
    if rng.random() < 0.5:
        return _put(seed.data, pixels, ">I", rng.choice(_LENGTHS[-3:]))  # the decoder is done long before its end
    return _put(seed.data, rng.choice(ends[:-1]), ">I", rng.choice(_LENGTHS))


def _wrong_length_jpeg(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    n = rng.randrange(1, len(parts) - 1)
    parts[n] = _put(parts[n], 2, ">H", rng.choice([0, 1, 2, 3, 255, 65_535]))
    return joined(seed, parts)


def _wrong_length_webp(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    n = rng.randrange(len(parts) + 1)
    if n == len(parts):
        return _put(seed.data, 4, "<I", rng.choice(_LENGTHS))
    parts[n] = _put(parts[n], 4, "<I", rng.choice(_LENGTHS))
    return joined(seed, parts)


def _wrong_length_gif(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    n = rng.choice([n for n, part in enumerate(parts) if part[:1] in (b"!", b",")])
    at = 2 if parts[n][:1] == b"!" else 11 + (3 << (parts[n][9] & 7) + 1 if parts[n][9] & 0x80 else 0)
    parts[n] = _put(parts[n], at, "B", rng.choice([0, 1, 2, 254, 255]))
    return joined(seed, parts)


def _wrong_length_bmp(rng: random.Random, seed: Seed) -> bytes:
    return _put(seed.data, rng.choice([2, 10, 14, 34, 46, 50]), "<I", rng.choice(_LENGTHS))


def _wrong_length_tiff(rng: random.Random, seed: Seed) -> bytes:
    if rng.random() < 0.15:
        at, _ = _directory(seed.data)
        return _put(seed.data, *rng.choice([(4, "<I", 2**32 - 1), (4, "<I", 0), (at, "<H", 65_535), (at, "<H", 0)]))
    parts = parts_of(seed)
    n = rng.randrange(len(parts))  # its count, or where its values are
    parts[n] = _put(parts[n], rng.choice([4, 4, 8]), "<I", rng.choice(_LENGTHS))
    if rng.random() < 0.3:
        return _tag(seed.data, rng.choice([STRIP_OFFSETS, STRIP_BYTES, ROWS_PER_STRIP]), rng.choice(_LENGTHS))
    return joined(seed, parts)


def _pixels_changed_png(rng: random.Random, seed: Seed) -> bytes:
    """Bytes of the pixels before they are packed: filters that do not exist, too few rows, too many."""
    parts = parts_of(seed)
    coded = b"".join(part[4:] for part in parts if part[:4] == b"IDAT")
    raw = bytearray(zlib.decompress(coded))
    kind = rng.randrange(4)
    if kind == 0:
        row = len(raw) // 44
        for at in range(0, len(raw), row):
            raw[at] = rng.choice([0, 1, 2, 3, 4, 5, 255])
    elif kind == 1:
        del raw[rng.randrange(len(raw)) :]
    elif kind == 2:
        raw += rng.randbytes(5_000)
    else:
        raw += bytes(10_000_000)  # 10 kB packed
    at = next(n for n, part in enumerate(parts) if part[:4] == b"IDAT")
    rest = [part for part in parts if part[:4] != b"IDAT"]
    return _png_of([*rest[:at], b"IDAT" + zlib.compress(bytes(raw)), *rest[at:]])


def _packed_text_png(rng: random.Random, seed: Seed) -> bytes:
    """Texts and colour profiles that are small as long as they are packed."""
    times, size = rng.choice([(1, 200_000_000), (1, 2_000_000), (3, 900_000), (90, 900_000)])
    chunk = rng.choice([b"zTXtwords\0\0", b"iCCPprofile\0\0", b"iTXtwords\0\1\0\0\0"]) + _packed(size)
    header, *rest = parts_of(seed)
    return _png_of([header, *[chunk] * times, *rest])


@cache
def _packed(size: int) -> bytes:
    """So many zeros, a thousandth as long."""
    return zlib.compress(bytes(size))


def _many_frames(rng: random.Random, seed: Seed) -> bytes:
    """A file of thousands of chunks, frames or directories; or of one that follows itself."""
    if seed.format == "tiff":
        at, count = _directory(seed.data)
        return _put(seed.data, at + 2 + 12 * count, "<I", at)  # the next page is this one
    parts = parts_of(seed)
    n = rng.randrange(1, len(parts) - 1) if len(parts) > 2 else 0
    return joined(seed, [*parts[:n], *[parts[n]] * (40_000 // len(parts[n]) + 2), *parts[n + 1 :]])


def _depth_jpeg(rng: random.Random, seed: Seed) -> bytes:
    at = _frame_header(seed.data)
    return _put(seed.data, *rng.choice([
        (at - 1, "B", 12), (at - 1, "B", 16), (at - 1, "B", 0), (at - 4, "B", rng.choice([0xC1, 0xC2, 0xC3, 0xC9])),
        (at + 4, "B", rng.choice([0, 2, 5, 255])), (at + 6, "B", rng.choice([0, 0x44, 0xFF, 0x21])),
        (at + 7, "B", rng.choice([1, 3, 4, 255])), (at + 5, "B", rng.choice([0, 2, 82])),
    ]))  # fmt: skip


def _depth_png(rng: random.Random, seed: Seed) -> bytes:
    if rng.random() < 0.7:
        return _png_header(seed, "BB", 8, rng.choice([0, 1, 2, 4, 8, 16, 32, 255]), rng.choice([0, 1, 2, 3, 4, 6, 7]))
    return _png_header(seed, "B", rng.choice([10, 11, 12]), rng.choice([1, 2, 255]))


def _depth_webp(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    if parts[0][:4] == b"VP8X":
        parts[0] = _put(parts[0], 8, "B", rng.choice([0, 2, 0x10, 0x12, 0x3E, 0xFF]))  # flags of alpha, animation, EXIF
    else:
        parts[0] = _put(parts[0], rng.choice([8, 9, 10, 11, 12]), "B", rng.randrange(256))
    return joined(seed, parts)


def _depth_bmp(rng: random.Random, seed: Seed) -> bytes:
    return _put(seed.data, *rng.choice([
        (28, "<H", rng.choice([0, 1, 2, 4, 8, 16, 32, 64, 65_535])), (30, "<I", rng.choice([1, 2, 3, 4, 5, 6, 11, 99])),
        (14, "<I", rng.choice([12, 16, 52, 56, 64, 108, 124])), (26, "<H", 0), (46, "<I", rng.choice([1, 2, 257])),
    ]))  # fmt: skip


_TIFF_VALUES = {  # tag -> values that do not fit, or that nobody writes
    258: (1, 2, 4, 12, 16, 32, 64, 255), 259: (2, 3, 4, 6, 7, 8, 32773, 34712, 50000, 99), 262: (0, 1, 3, 4, 5, 6, 8),
    266: (2, 9), 277: (0, 1, 2, 4, 5, 200, 65535), 278: (0, 1, 2**31), 284: (2, 9), 317: (2, 3, 77), 338: (1, 2, 9),
    339: (2, 3, 4, 9), 322: (1, 16, 65535, 2**31), 323: (16, 65535), 530: (7,), 347: (8,), 330: (8,), 34665: (8,),
}  # fmt: skip


def _depth_tiff(rng: random.Random, seed: Seed) -> bytes:
    data = seed.data
    for tag in rng.sample(sorted(_TIFF_VALUES), rng.choice([1, 1, 2, 3])):
        data = _tag(data, tag, rng.choice(_TIFF_VALUES[tag]), rng.choice([SHORT, LONG]))
    return data


def _depth_gif(rng: random.Random, seed: Seed) -> bytes:
    parts = parts_of(seed)
    n = next(n for n, part in enumerate(parts) if part[:1] == b",")
    at = 10 + (3 << (parts[n][9] & 7) + 1 if parts[n][9] & 0x80 else 0)
    if rng.random() < 0.5:
        parts[n] = _put(parts[n], at, "B", rng.choice([0, 1, 2, 9, 12, 13, 255]))  # bits of the first code
    else:
        parts[rng.choice([0, n])] = _put(parts[0], 10, "B", rng.choice([0, 0x80, 0x87, 0x77]))
    return joined(seed, parts)


_ODD_TAGS: tuple[Any, ...] = ("x", "6", b"\6\0", (6, 8), 0, 9, 65_535, 2**32 - 1, (), 6.5, 6.0)


def odd_exif(rng: random.Random) -> bytes:
    """EXIF whose orientation is no number from 1 to 8, or that is damaged."""
    if rng.random() < 0.6:
        value = rng.choice(_ODD_TAGS)
        kind = (
            2 if isinstance(value, str) else 7 if isinstance(value, bytes) else 5 if isinstance(value, float) else LONG
        )
        return _exif_bytes(value, kind)
    data = bytearray(exif(6).tobytes())
    for _ in range(rng.choice([1, 4])):
        data[rng.randrange(6, len(data))] = rng.choice([0, 0xFF, rng.randrange(256)])
    return bytes(data[: rng.choice([len(data), len(data) // 2, 14, 8])])


def _exif_bytes(value: Any, kind: int) -> bytes:
    """One directory with one orientation of a TIFF type: 2 text, 4 numbers, 5 a fraction, 7 bytes."""
    if kind == 5:
        packed, count = struct.pack("<II", int(value), int(value == int(value))), 1  # 6.5: divided by zero
    elif kind == LONG:
        values = value if isinstance(value, tuple) else (value,)
        packed, count = struct.pack(f"<{len(values)}I", *values), len(values)
    else:
        packed = value.encode() + b"\0" if isinstance(value, str) else value
        count = len(packed)
    inline = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", 26)
    entry = struct.pack("<HHI", ExifTag.Orientation, kind, count) + inline
    return b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0" + (packed if len(packed) > 4 else b"")


def _exif_jpeg(rng: random.Random, seed: Seed) -> bytes:
    head, *rest = parts_of(seed)
    tags = odd_exif(rng)
    return joined(seed, [head, b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags, *rest])


def _exif_png(rng: random.Random, seed: Seed) -> bytes:
    header, *rest = (part for part in parts_of(seed) if part[:4] != b"eXIf")
    return _png_of([header, b"eXIf" + odd_exif(rng)[6:], *rest])


def _exif_webp(rng: random.Random, seed: Seed) -> bytes:
    image = Image.open(io.BytesIO(seed.data))
    return encoded(image, "WEBP", lossless=True, exif=odd_exif(rng))


def _exif_tiff(rng: random.Random, seed: Seed) -> bytes:
    if rng.random() < 0.2:
        return _tag(seed.data + struct.pack("<II", 6, 1), ExifTag.Orientation, len(seed.data), 5)  # six as a fraction
    value, kind = rng.choice([0, 9, 255, 2**32 - 1]), rng.choice([1, 2, 3, 4, 5, 7, 12, 99])
    return _tag(seed.data, ExifTag.Orientation, value, kind, rng.choice([1, 1, 2, 0]))


_ZERO: tuple[tuple[int, int], ...] = ((0, 0), (0, 44), (60, 0))
_LENGTHS = (0, 1, 3, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)

_CRAFTS: dict[str, dict[str, Change]] = {
    "giant": {
        "jpeg": lambda rng, seed: _put(seed.data, _frame_header(seed.data), ">HH", *rng.choice(MANY_PIXELS)),
        "png": lambda rng, seed: _png_header(
            seed, ">II", 0, *rng.choice([*MANY_PIXELS, (2**31 - 1, 1), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)])
        ),
        "webp": lambda rng, seed: _webp_size(seed, *rng.choice(SCREENS)),
        "bmp": lambda rng, seed: _put(
            seed.data, 18, "<ii", *rng.choice([*MANY_PIXELS, (2**31 - 1, 1), (60_000, -60_000)])
        ),
        "tiff": _giant_tiff,
        "gif": _giant_gif,
    },
    "zero_size": {
        "jpeg": lambda rng, seed: _put(seed.data, _frame_header(seed.data), ">HH", *rng.choice(_ZERO)),
        "png": lambda rng, seed: _png_header(seed, ">II", 0, *rng.choice(_ZERO)),
        "bmp": lambda rng, seed: _put(seed.data, 18, "<ii", *rng.choice(_ZERO)),
        "tiff": lambda rng, seed: _tag(_tag(seed.data, 256, 0), 257, rng.choice([0, 44])),
        "webp": lambda rng, seed: _webp_size(Seed("", "webp", _lossy()), *rng.choice(_ZERO)),
    },
    "wrong_length": {
        "jpeg": _wrong_length_jpeg,
        "png": _wrong_length_png,
        "webp": _wrong_length_webp,
        "bmp": _wrong_length_bmp,
        "tiff": _wrong_length_tiff,
        "gif": _wrong_length_gif,
    },
    "wrong_depth": {
        "jpeg": _depth_jpeg,
        "png": _depth_png,
        "webp": _depth_webp,
        "bmp": _depth_bmp,
        "tiff": _depth_tiff,
        "gif": _depth_gif,
    },
    "odd_exif": {"jpeg": _exif_jpeg, "png": _exif_png, "webp": _exif_webp, "tiff": _exif_tiff},
    "pixels_changed": {"png": _pixels_changed_png},
    "packed_text": {"png": _packed_text_png},
    "endless": {"jpeg": _many_frames, "png": _many_frames, "webp": _many_frames, "tiff": _many_frames,
                "gif": _many_frames},
}  # fmt: skip
"""Kind -> format -> how it is made."""


def _lossy() -> bytes:
    return next(seed.data for seed in seeds() if seed.name == "lossy")


# What has the name of a picture and is none


def _text(rng: random.Random, turn: int) -> bytes:
    return " ".join(rng.choice(["dog", "cat", "späße", "猫"]) for _ in range(1 + 30 * turn)).encode()


def _html(rng: random.Random, turn: int) -> bytes:
    return (
        b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>" + _text(rng, turn) + b"</body></html>"
    )


def _eps(rng: random.Random, turn: int) -> bytes:
    """What Ghostscript would run."""
    text = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 44\n%%EndComments\n(%pipe%true) (w) file closefile\n"
        b"showpage\n%%EOF\n"
    )
    return (
        struct.pack("<IIIIIIIH", 0xC6D3D0C5, 32, len(text), 0, 0, 0, 0, 0xFFFF)[:30] + b"\0\0" + text
        if turn % 2
        else text
    )


def _psd(rng: random.Random, turn: int) -> bytes:
    return (
        b"8BPS\0\1"
        + bytes(6)
        + struct.pack(">HIIHH", 3, 44, 60, 8, 3)
        + bytes(12)
        + b"\0\0"
        + rng.randbytes(60 * 44 * 3)
    )


def _svg(rng: random.Random, turn: int) -> bytes:
    entity = b'<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]>' if turn % 2 else b""
    return (b'<?xml version="1.0"?>' + entity + b'<svg xmlns="http://www.w3.org/2000/svg" width="60" height="44">'
            b'<image href="http://127.0.0.1:9/x.png"/><text>&a;</text></svg>')  # fmt: skip


_HEADS = (
    b"P6 60 44 255\n", b"%PDF-1.7\n", b"PK\3\4", b"\x7fELF\2\1\1", b"\0\0\0\x20ftypheic", b"\0\0\0\x0cjXL \r\n\x87\n",
    b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\0ftypjp2 ", b"\xffO\xffQ", b"\0\0\1\0\1\0\x3c\x2c", b"\x80\x2a\x5f\xd7", b"SDPX",
    b"DDS |\0\0\0", b"\x59\xa6\x6a\x95", b"qoif\0\0\0<\0\0\0,\3\0", b"SIMPLE  =            T", b"icns\0\0\x10\0",
    b"\x89HDF\r\n\x1a\n", b"GIMP", b"v/1\1", b"GRIB\0\0\0\1", b"#define im_width 60\n#define im_height 44\n", b"FLIF",
    b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"RIFF\xff\xff\xff\xffWEBP", b"RIFF\4\0\0\0WEBPVP8X", b"GIF89a", b"BM",
    b"\xff\xd8\xff", b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
)  # fmt: skip


def _other(rng: random.Random, turn: int) -> bytes:
    """The first bytes of another program's file, or of an image, and then noise."""
    return _HEADS[turn % len(_HEADS)] + rng.randbytes(rng.choice([0, 40, 4_000]))


_FEW = 30  # files of these kinds

_WITHOUT_SEED: dict[str, Callable[[random.Random, int], bytes | None]] = {
    "empty": lambda rng, turn: b"",
    "text": _text,
    "html": _html,
    "eps": _eps,
    "psd": _psd,
    "svg": _svg,
    "other": _other,
    "random": lambda rng, turn: rng.randbytes(1 + 37 * turn),
    "folder": lambda rng, turn: None,
}
