"""What people's folders hold: pictures of every kind and size through a segmenter, and folders that change."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam.data.images import read_image
from sccam.data.masks import read_mask, write_mask
from sccam.runtime.folder import predict, predict_to
from sccam.runtime.sources import Source, sources
from tests.runtime.formula import job_of, lines

ORIENTATION = 0x0112
UPRIGHT = np.repeat(np.linspace(0, 255, 60).astype(np.uint8)[None, :, None], 3, axis=2).repeat(20, axis=0)
UPRIGHT[:8] = 128  # no symmetry: every turn and mirror shows
STORED = {
    1: UPRIGHT, 2: UPRIGHT[:, ::-1], 3: UPRIGHT[::-1, ::-1], 4: UPRIGHT[::-1], 5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT), 7: UPRIGHT[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(UPRIGHT, -1),
}  # fmt: skip


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (17, 31), (3000, 4001)])
def test_masks_have_the_size_of_any_image(photos, tmp_path, size):
    Image.new("RGB", (size[1], size[0]), "white").save(photos / "one.png")
    summary = predict_to(job_of(), sources(photos), tmp_path / "out")
    assert (summary.done, summary.failed) == (1, 0)
    mask = read_mask(tmp_path / "out/masks/one.png")
    assert mask.shape == size
    assert (mask[:-16, :-16] == 2).all()  # the last cells see the padding, too


def test_all_eight_orientations_give_the_mask_as_it_is_displayed(photos):
    for orientation, pixels in STORED.items():
        tags = Image.Exif()
        tags[ORIENTATION] = orientation
        Image.fromarray(np.ascontiguousarray(pixels)).save(photos / f"{orientation}.png", exif=tags)
    found = {result.source.name: result.labels for result in predict(job_of(), sources(photos))}
    assert len(found) == 8
    expected = found["1"]
    assert expected is not None and set(np.unique(expected)) == {0, 1, 2}
    for labels in found.values():
        assert labels is not None and np.array_equal(labels, expected)


def test_every_kind_of_picture_gives_the_mask_of_its_colours(photos, tmp_path):
    rgb = Image.fromarray(UPRIGHT)
    for mode in ("1", "L", "LA", "P", "RGBA"):
        rgb.convert(mode).save(photos / f"{mode}.png")
    Image.fromarray(UPRIGHT[..., 0].astype(np.uint16) * 257).save(photos / "sixteen_bits.png")
    rgb.convert("CMYK").save(photos / "cmyk.jpg", quality=95)
    frames = [rgb, rgb.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    frames[0].save(photos / "animated.gif", save_all=True, append_images=frames[1:])
    frames[0].save(photos / "animated.webp", save_all=True, append_images=frames[1:], lossless=True)
    frames[0].save(photos / "animated.png", save_all=True, append_images=frames[1:])
    frames[0].save(photos / "stereo.mpo", save_all=True, append_images=frames[1:], quality=95)
    rgb.save(photos / "tiff_by_name.jpg", format="TIFF")
    summary = predict_to(job_of(), sources(photos), tmp_path / "out")
    assert (summary.done, summary.failed) == (12, 0)
    plain = np.asarray(read_mask(tmp_path / "out/masks/L.png"))
    for line in lines(tmp_path / "out/predictions.jsonl"):
        if line["name"] != "1":  # black and white are another picture
            assert (read_mask(tmp_path / "out" / line["mask"]) == plain).mean() > 0.95, line["name"]
    assert len({line["mask"] for line in lines(tmp_path / "out/predictions.jsonl")}) == 12


def test_images_wait_for_a_disk_that_is_slow(photos, tmp_path, monkeypatch):
    Image.new("RGB", (40, 30)).save(photos / "one.png")
    lock = threading.Lock()
    begun = written = most = 0

    def images() -> Iterator[Source]:
        nonlocal begun, most
        for n in range(400):
            with lock:
                begun += 1
                most = max(most, begun - written)
            yield Source(photos / "one.png", f"{n}")

    def slow(*arguments: object) -> None:
        nonlocal written
        time.sleep(0.002)
        write_mask(*arguments)  # type: ignore[arg-type]
        with lock:
            written += 1

    monkeypatch.setattr("sccam.runtime.folder.write_mask", slow)
    assert predict_to(job_of(), images(), tmp_path / "out", batch=2, threads=2).done == 400
    assert most < 60


def test_images_that_vanish_change_or_appear_while_a_run_goes_on(photos, tmp_path):
    for name in "abcd":
        Image.new("RGB", (40, 30), "white").save(photos / f"{name}.png")

    def images() -> Iterator[Source]:
        for source in sources(photos):
            if source.name == "b":
                source.path.unlink()
                Image.new("RGB", (20, 10), "white").save(photos / "e.png")  # its folder has been read already
            yield source

    first = predict_to(job_of(), images(), tmp_path / "out")
    assert (first.done, first.failed) == (3, 1)
    (error,) = lines(tmp_path / "out/errors.jsonl")
    assert error["name"] == "b" and "missing" in error["reason"]
    Image.new("RGB", (50, 20), "black").save(photos / "c.png")
    second = predict_to(job_of(), sources(photos), tmp_path / "out")
    assert (second.done, second.skipped, second.failed) == (2, 2, 0)
    assert read_mask(tmp_path / "out/masks/c.png").shape == read_image(photos / "c.png").shape[:2]
    assert [line["name"] for line in lines(tmp_path / "out/predictions.jsonl")].count("c") == 2
