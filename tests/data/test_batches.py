"""Batches are a function of seed and epoch: not of threads, not of where an epoch is begun."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam.data.batches import BatchLoader, TrainingBatch
from sccam.data.transforms import AugmentConfig
from sccam.errors import ConfigError, ImageError
from sccam.structures import LabelSet, TaggedImages

COUNT = 11
CONFIG = AugmentConfig(crop=16, long_side=(16, 24))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TaggedImages:
    folder, rng = tmp_path_factory.mktemp("batches"), np.random.default_rng(0)
    paths = tuple(folder / f"{n}.png" for n in range(COUNT))
    for n, path in enumerate(paths):
        Image.fromarray(rng.integers(0, 256, (18 + n, 24, 3), dtype=np.uint8)).save(path)
    labels = LabelSet(np.ones((COUNT, 1), bool), tuple(path.stem for path in paths), ("cat",))
    return TaggedImages("train", paths, labels)


def loader(images: TaggedImages, *, batch: int = 3, seed: int = 0, threads: int = 2, **options) -> BatchLoader:
    return BatchLoader(images, CONFIG, batch=batch, fill=(0, 0, 0), seed=(seed, 7), threads=threads, **options)


def epoch(loader: BatchLoader, number: int, first_step: int = 0) -> list[TrainingBatch]:
    """Its batches, of a loader that takes them whole."""
    return [batch for (batch,) in loader.epoch(number, first_step)]


def content(batches: list[TrainingBatch]) -> list[bytes]:
    return [batch.pixels.tobytes() + batch.rows.tobytes() for batch in batches]


def rows(batches: list[TrainingBatch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.rows]


def test_seed_and_epoch_decide_every_byte_whatever_the_number_of_threads(images):
    one, two, five = (content(epoch(loader(images, threads=threads), 4)) for threads in (1, 2, 5))
    assert one == two == five


def test_an_epoch_begun_at_a_later_step_gives_the_rest_of_it(images):
    whole = content(epoch(loader(images), 2))
    for first_step in range(len(whole) + 1):
        assert content(epoch(loader(images), 2, first_step)) == whole[first_step:]


def test_another_epoch_or_seed_gives_other_views_in_another_order(images):
    batches = [epoch(loader(images, seed=seed), number) for seed, number in ((0, 0), (0, 1), (1, 0))]
    assert len({tuple(rows(part)) for part in batches}) == 3
    assert len({tuple(content(part)) for part in batches}) == 3


def test_an_image_gets_another_view_in_each_epoch(images):
    views = {
        pixels.tobytes()
        for number in range(4)
        for part in epoch(loader(images, batch=COUNT), number)
        for row, pixels in zip(part.rows, part.pixels, strict=True)
        if row == 0
    }
    assert len(views) == 4


def test_the_view_of_an_image_depends_on_no_other_image(images):
    threes, fives = (
        {
            int(row): pixels.tobytes()
            for part in epoch(loader(images, batch=batch), 0)
            for row, pixels in zip(part.rows, part.pixels, strict=True)
        }
        for batch in (3, 5)
    )
    common = threes.keys() & fives.keys()
    assert len(common) >= 8 and all(threes[row] == fives[row] for row in common)


def test_every_image_comes_at_most_once_and_what_fills_no_batch_is_dropped(images):
    found = rows(epoch(loader(images), 0))
    assert loader(images).steps == 3
    assert len(found) == len(set(found)) == 9 and set(found) <= set(range(COUNT))


def test_over_the_epochs_every_image_has_its_turn(images):
    assert {row for number in range(6) for row in rows(epoch(loader(images), number))} == set(range(COUNT))


def test_a_batch_larger_than_the_list_is_the_list(images):
    large = loader(images, batch=64)
    assert (large.batch, large.steps) == (COUNT, 1)
    assert sorted(rows(epoch(large, 0))) == list(range(COUNT))


def test_labels_travel_with_their_images(images):
    def read_label(row: int) -> np.ndarray:
        return np.full((18 + row, 24), row, np.uint8)

    for batch in epoch(loader(images, read_label=read_label), 0):
        assert batch.labels is not None and batch.labels.shape == (3, 16, 16)
        for row, label in zip(batch.rows, batch.labels, strict=True):
            assert set(np.unique(label)) <= {int(row), 255} and (label == row).any()


def test_without_a_reader_there_are_no_labels(images):
    assert epoch(loader(images), 0)[0].labels is None


def test_a_broken_image_is_an_error_that_names_it(images, tmp_path: Path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(images.paths[0].read_bytes()[:60])
    paths = (*images.paths[:-1], broken)
    with pytest.raises(ImageError, match="cannot be decoded") as caught:
        for number in range(6):  # the last image may be dropped from one of them
            epoch(loader(TaggedImages("train", paths, images.labels)), number)
    assert caught.value.where == str(broken)


def test_an_epoch_that_is_left_early_leaves_no_thread_behind(images):
    before = set(threading.enumerate())
    batches = loader(images, batch=1, threads=2).epoch(0)
    next(batches)
    batches.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("processes", "parts"), [(1, 2), (2, 1), (2, 2), (3, 5)])
def test_shares_and_parts_together_are_the_batch(images, processes, parts):
    whole = epoch(loader(images, batch=5), 1)
    shared = [loader(images, batch=5, share=(n, processes), parts=parts) for n in range(processes)]
    assert all(part.steps == 2 for part in shared)
    for step, batch in enumerate(whole):
        found = [part for one in shared for part in list(one.epoch(1))[step]]
        assert [part.first for part in found] == np.cumsum([0, *(len(part.rows) for part in found[:-1])]).tolist()
        assert np.array_equal(np.concatenate([part.rows for part in found]), batch.rows)
        assert np.array_equal(np.concatenate([part.pixels for part in found]), batch.pixels)


def test_more_processes_than_images_in_a_batch_are_refused(images):
    with pytest.raises(ConfigError, match="4 processes cannot share a batch of 3 images"):
        loader(images, share=(0, 4))
