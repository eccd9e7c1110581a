"""Unseen images labelled by the networks that made the labels, beside what is already in a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import unseen

from sccam.artifacts import RunFolder
from sccam.data import open_dataset
from sccam.data.masks import write_mask
from tests.made_run import SIZES, labelled, make_run, stripes

pytestmark = pytest.mark.slow


def test_every_way_is_scored_on_its_own_images(tmp_path: Path) -> None:
    data = tmp_path / "data"
    labelled(data)
    run = RunFolder(make_run(tmp_path / "run"))
    for n, size in enumerate(SIZES):
        mask = stripes(n, size)
        of_mask = {run.pseudo_label(str(n)): mask}
        if n > 1:
            of_mask = {
                run.prediction("val", str(n)): np.zeros_like(mask),
                run.prediction("val", str(n), crf=True): mask,
            }
        for path, content in of_mask.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_mask(path, content)
    dataset = open_dataset(data)
    found = unseen.measured(data, [run.path, run.path])
    rows = {row["way"]: row for row in found["rows"]}
    assert (found["train"], found["val"]) == (2, 2)
    assert rows[unseen.OF_TRAINING]["runs"] == [100.0, 100.0] and rows[unseen.WITH_CRF]["miou"] == 100.0
    assert rows[unseen.PLAIN]["miou"] < 50
    given, predicted = (unseen.labelled(dataset, run, tags) for tags in (data / "tags.csv", None))
    pixels = [SIZES[n][0] * SIZES[n][1] for n in (2, 3)]
    assert given.sum(axis=(1, 2)).tolist() == predicted.sum(axis=(1, 2)).tolist() == pixels
    assert not given[0, :, 1:3].any()  # a cat or a dog where the fox is the only tag
    assert rows[unseen.PLAIN]["gain"]["mean"] == round(100 - rows[unseen.PLAIN]["miou"], 2)
    lines = unseen.table({"made": found}).splitlines()
    assert len(lines) == 2 + 5 and lines[-1] == f"| made | {unseen.WITH_CRF} | 2 | 2 | 100.0 |  |"
