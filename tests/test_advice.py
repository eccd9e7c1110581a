"""Advice comes from counts and sizes, names a setting, and is silent where nothing stands out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam.advice import advice
from sccam.recipe import load_config
from sccam.structures import Dataset, LabelSet, TaggedImages, TrueMasks


@pytest.fixture
def dataset_of(tmp_path: Path):
    """Tags [N C] and an image size -> a dataset of that many images."""

    def made(present: np.ndarray, size: tuple[int, int] = (320, 240)) -> Dataset:
        path = tmp_path / "image.png"
        Image.new("RGB", size).save(path)
        names = tuple("abcdefgh"[: present.shape[1]])
        ids = tuple(map(str, range(len(present))))
        train = TaggedImages("train", (path,) * len(present), LabelSet(present, ids, names))
        return Dataset(tmp_path, train, train.only([]), TrueMasks({}, names))

    return made


def tags(*counts: int) -> np.ndarray:
    """One class an image."""
    return np.repeat(np.eye(len(counts), dtype=bool), counts, axis=0)


def lines(dataset: Dataset, *overrides: str) -> list[str]:
    return advice(dataset, load_config("photos", ["classify.rounds=3", "classify.epochs=[12]", *overrides]))


def test_a_set_that_suits_the_settings_gets_none(dataset_of):
    assert lines(dataset_of(tags(40, 30))) == []


def test_few_images_a_cluster_and_few_views_are_named_with_a_setting(dataset_of):
    (clusters,) = lines(dataset_of(tags(40, 20)))
    assert "1 of 2 classes" in clusters and "'b': 20 images for 3" in clusters and "cluster.min_size=8" in clusters
    assert lines(dataset_of(tags(40, 20)), "cluster.min_size=8") == []
    assert lines(dataset_of(tags(40, 20)), "classify.rounds=0") == []
    views = [line for line in lines(dataset_of(tags(40, 5))) if "views" in line]
    assert "60 views of 'b'" in views[0] and "classify.epochs=[40]" in views[0]


def test_more_whitened_components_than_the_features_bear_are_named(dataset_of):
    whitened = ("cluster.pool=map", "cluster.whiten=32")
    (line,) = lines(dataset_of(tags(40, 30)), *whitened)
    assert "32 whitened components of 70 features" in line and "cluster.whiten=14" in line
    assert lines(dataset_of(tags(70, 70)), *whitened) == []
    both = np.ones((70, 2), bool)  # each image gives a feature for either class, but only one without maps
    both[:35, 1] = False
    assert not any("whitened" in line for line in lines(dataset_of(np.tile(both, (2, 1))), *whitened))
    of_images = lines(dataset_of(both), "cluster.whiten=32")
    assert any("32 whitened components of 70 features" in line for line in of_images)


def test_classes_that_never_part_unequal_classes_and_no_background_are_named(dataset_of):
    present = tags(30, 40)
    present[:30, 1] = True
    (companions,) = lines(dataset_of(present))
    assert "'a' never comes without 'b'" in companions
    assert any("has 400 images, 'b' 30" in line for line in lines(dataset_of(tags(400, 30))))
    assert "data.allow_negative" in lines(dataset_of(np.ones((30, 1), bool)))[0]


def test_sizes_are_held_against_crop_and_stride(dataset_of):
    assert "enlarged" in lines(dataset_of(tags(40, 40), (100, 80)))[0]
    assert "within one cell" in lines(dataset_of(tags(40, 40), (2000, 1500)))[0]
    assert "5 cells a side" in lines(dataset_of(tags(40, 40)), "classify.augment.crop=160")[0]
