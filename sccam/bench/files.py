"""Suite `files`: decoding photographs and writing masks and overlays, against plain Pillow. Images a second.

Ours does more for a file: the reader looks at its size, format and orientation; a writer syncs and renames, so that a
kill leaves no half of a file. Files are on the disk of temporary files, and read from the system's cache.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sccam.artifacts import replacing
from sccam.bench import Options
from sccam.bench.harness import Contestant, Result, Work, compare, largest_difference
from sccam.bench.inputs import SIZE, label_map, of_size
from sccam.data.images import read_image
from sccam.data.masks import BLEND, coloured, voc_palette, write_mask
from sccam.runtime.folder import JPEG_QUALITY
from sccam.runtime.pool import worker_count
from sccam.structures import BACKGROUND, ByteArray

FILES, QUICK_FILES = 64, 8  # a run
LARGE_TILES = 8  # of the usual size on each side: 3000 x 4000 px, with a photograph's detail at every pixel
LARGE_FILES = 4  # a run, or one for each thread
LABELS = 3  # of a mask: background and two classes
OVERLAY_LIMIT = 1.0
"""[levels] of the mean difference of two overlays as JPEG files: Pillow rounds its blend otherwise, by one level at
most, and the compression turns that into a few levels at a few pixels."""

Each = Callable[[Callable[..., Any], Sequence[Any]], list[Any]]  # a function over items, in their order


def run(options: Options) -> Iterator[list[Result]]:
    """Decoding of usual and of large files; then writing of masks and of overlays."""
    count = QUICK_FILES if options.quick else FILES
    photos = of_size(options.images, SIZE)
    photos = [photos[n % len(photos)] for n in range(count)]
    threads = worker_count(0)
    large = [np.tile(photo, (LARGE_TILES, LARGE_TILES, 1)) for photo in photos[: max(LARGE_FILES, threads)]]
    labels = [label_map(photo, LABELS, n) for n, photo in enumerate(photos)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        ways: dict[str, Each] = {"1 thread": lambda function, items: list(map(function, items))}
        if threads > 1:
            ways[f"{threads} threads"] = lambda function, items: list(pool.map(function, items))
        for name, images in ((f"{SIZE[0]} x {SIZE[1]}", photos), (_megapixels(large[0]), large)):
            paths = [Path(folder, f"{name} {n}.jpg") for n in range(len(images))]
            for path, image in zip(paths, images, strict=True):
                Image.fromarray(image).save(path, quality=JPEG_QUALITY)
            yield _decoding(f"decode JPEG, {name}", paths, ways, options)
        yield _masks(labels, Path(folder), ways, options)
        yield _overlays(photos, labels, Path(folder), ways, options)


def _megapixels(image: ByteArray) -> str:
    return f"{image.shape[0] * image.shape[1] / 1e6:.0f} megapixels"


def _decoding(case: str, paths: Sequence[Path], ways: dict[str, Each], options: Options) -> list[Result]:
    plain = Contestant("Pillow, 1 thread", lambda _: [pillow_image(path) for path in paths])
    ours = [
        Contestant(f"read_image, {threads}", lambda _, each=each: each(read_image, paths))  # type: ignore[misc]
        for threads, each in ways.items()
    ]
    # Other decoders interpolate the colour differences otherwise: a few levels, which say nothing about this package.
    others = [
        Contestant(f"{name}, 1 thread", lambda _, decode=decode: [decode(path) for path in paths], judged=False)  # type: ignore[misc]
        for name, decode in other_decoders().items()
    ]
    return compare(
        "files", case, [plain, *ours, *others], inputs=1, quick=options.quick, judge=plain.run,
        error=largest_difference, limit=0.0, work=Work(len(paths)),
    )  # fmt: skip


def _masks(labels: Sequence[ByteArray], folder: Path, ways: dict[str, Each], options: Options) -> list[Result]:
    """Judged by what Pillow reads back."""
    items = [(folder / f"mask {n}.png", index) for n, index in enumerate(labels)]
    return compare(
        "files", f"write mask PNG, {SIZE[0]} x {SIZE[1]}",
        _writers("write_mask", pillow_mask, write_mask, items, ways), inputs=1, quick=options.quick,
        judge=lambda _: labels, error=lambda paths, expected: largest_difference(_indices(paths), expected), limit=0.0,
        work=Work(len(items)),
    )  # fmt: skip


def _overlays(
    photos: Sequence[ByteArray], labels: Sequence[ByteArray], folder: Path, ways: dict[str, Each], options: Options
) -> list[Result]:
    items = [(folder / f"overlay {n}.jpg", *pair) for n, pair in enumerate(zip(photos, labels, strict=True))]
    writers = _writers("coloured", pillow_overlay, write_overlay, items, ways)

    def error(paths: Sequence[Path], expected: Sequence[ByteArray]) -> float:
        pairs = zip(map(pillow_image, paths), expected, strict=True)
        return max(float(np.abs(found.astype(float) - image).mean()) for found, image in pairs)

    return compare(
        "files", f"write overlay JPEG, {SIZE[0]} x {SIZE[1]}", writers, inputs=1, quick=options.quick,
        judge=lambda n: [pillow_image(path) for path in writers[0].run(n)], error=error, limit=OVERLAY_LIMIT,
        work=Work(len(items)),
    )  # fmt: skip


def _writers(
    name: str, plain: Callable[..., None], ours: Callable[..., None], items: Sequence[Any], ways: dict[str, Each]
) -> list[Contestant]:
    """Ways to write (path, ...) items; each gives the paths of what it wrote."""

    def contestant(title: str, write: Callable[..., None], each: Each) -> Contestant:
        def run(_: int) -> list[Path]:
            each(lambda item: write(*item), items)
            return [item[0] for item in items]

        return Contestant(title, run)

    one = next(iter(ways.values()))
    rows = [contestant(f"{name}, {threads}", ours, each) for threads, each in ways.items()]
    return [contestant("Pillow, 1 thread", plain, one), *rows]


def pillow_image(path: Path) -> ByteArray:
    """u8 [H W 3] as most people read a file."""
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def pillow_mask(path: Path, index: ByteArray) -> None:
    """A palette PNG at Pillow's own settings."""
    image = Image.fromarray(index)
    image.putpalette(voc_palette().tobytes())
    image.save(path, optimize=False)


def pillow_overlay(path: Path, image: ByteArray, index: ByteArray) -> None:
    """The coloured labels blended over the image, by Pillow alone."""
    picture, mask = Image.fromarray(image), Image.fromarray(index)
    mask.putpalette(voc_palette().tobytes())
    mixed = Image.blend(picture, mask.convert("RGB"), BLEND)
    mixed.paste(picture, mask=Image.fromarray(np.where(index == BACKGROUND, np.uint8(255), np.uint8(0))))
    mixed.save(path, quality=JPEG_QUALITY)


def write_overlay(path: Path, image: ByteArray, index: ByteArray) -> None:
    """An overlay as `sccam infer` writes it."""
    with replacing(path) as temporary:
        Image.fromarray(coloured(image, index)).save(temporary, format="JPEG", quality=JPEG_QUALITY)


def other_decoders() -> dict[str, Callable[[Path], ByteArray]]:
    """Decoders that happen to be installed; none is needed."""
    found: dict[str, Callable[[Path], ByteArray]] = {}
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        found["OpenCV"] = lambda path: cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    if importlib.util.find_spec("simplejpeg") is not None:
        import simplejpeg

        found["simplejpeg"] = lambda path: simplejpeg.decode_jpeg(path.read_bytes(), colorspace="RGB")
    return found


def _indices(paths: Sequence[Path]) -> list[ByteArray]:
    found = []
    for path in paths:
        with Image.open(path) as image:
            found.append(np.array(image))
    return found
