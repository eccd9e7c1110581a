"""A set with images of no class, made of one that has none."""

from __future__ import annotations

from pathlib import Path

import negatives
import numpy as np
import pytest

from sccam.data import open_dataset
from sccam.data.masks import read_mask
from sccam.data.sample import draw_sample
from sccam.errors import DataError


def test_classes_that_go_leave_images_without_tags_and_background_in_masks(tmp_path: Path) -> None:
    draw_sample(tmp_path / "whole", images=15, sizes=(40, 56))
    whole = open_dataset(tmp_path / "whole")
    classes = whole.classes[:3]
    negatives.with_fewer_classes(tmp_path / "whole", tmp_path / "fewer", whole, classes, whole.train.ids)
    with pytest.raises(DataError):
        open_dataset(tmp_path / "fewer")
    found = open_dataset(tmp_path / "fewer", allow_negative=True)
    assert found.classes == classes and found.train.ids == whole.train.ids
    assert np.array_equal(found.train.labels.present, whole.train.labels.present[:, :3])
    assert not found.train.labels.present.any(axis=1).all() and found.val.labels.present.any(axis=1).all()
    for id in found.train.ids:
        before, after = read_mask(whole.masks.paths[id]), read_mask(found.masks.paths[id])
        assert np.array_equal(after, np.where((before > 3) & (before != 255), 0, before))
