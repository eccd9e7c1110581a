"""The drawn sample set: the same bytes for the same seed, and masks that say what the tags say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sccam.artifacts import sha256
from sccam.data import open_dataset
from sccam.data.checks import validate_masks
from sccam.data.masks import read_mask
from sccam.data.sample import BODY, CLASSES, LOOKS, TELLING, draw_sample
from sccam.errors import DataError

IMAGES = 60


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    draw_sample(folder, images=IMAGES)
    yield folder


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        draw_sample(tmp_path / name, images=12, seed=seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")


def test_image_n_does_not_depend_on_how_many_are_drawn(sample: Path, tmp_path: Path) -> None:
    draw_sample(tmp_path / "few", images=10)
    few, many = digests(tmp_path / "few"), digests(sample)
    assert all(many[name] == digest for name, digest in few.items() if name.startswith("images"))


def test_it_reads_as_a_folder_with_a_fifth_for_validation(sample: Path) -> None:
    dataset = open_dataset(sample)
    assert dataset.classes == tuple(CLASSES) and dataset.warnings == ()
    assert (len(dataset.train), len(dataset.val)) == (IMAGES * 4 // 5, IMAGES // 5)
    assert len(dataset.masks.paths) == IMAGES and validate_masks(dataset) == ()
    assert dataset.val.labels.present.any(axis=0).all()


def test_masks_show_exactly_the_tagged_classes(sample: Path) -> None:
    dataset = open_dataset(sample)
    for part in (dataset.train, dataset.val):
        for image_id, present in zip(part.ids, part.labels.present, strict=True):
            values = np.unique(read_mask(dataset.masks.paths[image_id]))
            assert values.tolist() == [0, *(np.flatnonzero(present) + 1)]


def test_parts_cover_the_objects_and_the_body_is_larger(sample: Path) -> None:
    for path in sorted((sample / "parts").iterdir()):
        parts, index = read_mask(path), read_mask(sample / "masks" / path.name)
        assert np.array_equal(parts > 0, index > 0)
        for value in np.unique(index[index > 0]):
            counts = np.bincount(parts[index == value], minlength=3)
            assert counts[BODY] > counts[TELLING] > 0


def test_looks_record_boxes_shares_and_all_looks(sample: Path) -> None:
    looks = json.loads((sample / "looks.json").read_text())
    seen = set()
    for image_id, objects in looks.items():
        index = read_mask(sample / "masks" / f"{image_id}.png")
        for item in objects:
            own = index == list(CLASSES).index(item["class"]) + 1
            top, left, bottom, right = item["box"]
            assert own[top:bottom, left:right].sum() == own.sum() > 0
            assert item["share_of_image"] == pytest.approx(own.mean(), abs=1e-4)
            seen.add((item["class"], item["look"]))
        assert 0.10 <= (index > 0).mean() <= 0.40
    assert seen == {(name, look) for name in CLASSES for look in range(LOOKS)}
    assert 0.1 < np.mean([len(objects) == 2 for objects in looks.values()]) < 0.45


def test_sizes_vary_and_are_no_multiples_of_eight(sample: Path) -> None:
    dataset = open_dataset(sample)
    shapes = {read_mask(path).shape for path in dataset.masks.paths.values()}
    assert len(shapes) > IMAGES / 2
    assert all(96 <= side <= 192 and side % 8 for shape in shapes for side in shape)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(DataError, match="not empty"):
        draw_sample(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
