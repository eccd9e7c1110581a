"""Splitting a folder: tags in equal shares, what belongs together on one side, no list replaced unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccam import cli
from sccam.data.folder import read_folder
from sccam.data.sample import draw_sample
from sccam.data.split import joined, split_folder, stratified
from sccam.errors import ConfigError, DataError


@st.composite
def tagged(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, float, int]:
    images, classes = draw(st.integers(2, 60)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = rng.random((images, classes)) < rng.uniform(0.02, 0.6, classes)
    groups = rng.integers(0, draw(st.integers(1, images)), images).astype(np.int32)
    return present, groups, draw(st.floats(0.05, 0.5)), draw(st.integers(0, 9))


@given(tagged())
def test_groups_stay_together_and_the_same_seed_gives_the_same_side(case):
    present, groups, share, seed = case
    side = stratified(present, groups, share, seed)
    assert side.shape == groups.shape
    for number in np.unique(groups):
        assert len(set(side[groups == number].tolist())) == 1
    np.testing.assert_array_equal(side, stratified(present, groups, share, seed))


@given(tagged())
def test_a_class_of_two_images_or_more_is_on_both_sides(case):
    present, _, share, seed = case
    one_tag = np.zeros_like(present)  # with several tags an image that one class needs here another may need there
    one_tag[np.arange(len(present)), np.arange(len(present)) % present.shape[1]] = True
    side = stratified(one_tag, np.arange(len(present), dtype=np.int32), share, seed)
    for c in np.flatnonzero(one_tag.sum(axis=0) >= 2):
        assert 0 < side[one_tag[:, c]].sum() < one_tag[:, c].sum()


def test_every_tag_gets_its_share_nearer_than_by_chance(rng):
    present = rng.random((400, 8)) < np.linspace(0.02, 0.5, 8)
    side = stratified(present, np.arange(400, dtype=np.int32), 0.25, 0)
    assert abs(side.mean() - 0.25) < 0.03
    shares = present[side].sum(axis=0) / present.sum(axis=0)
    by_chance = [np.abs(present[c].sum(axis=0) / present.sum(axis=0) - 0.25).max()
                 for c in (rng.random((50, 400)) < 0.25)]  # fmt: skip
    assert np.abs(shares - 0.25).max() < 0.5 * np.median(by_chance)


def test_images_that_agree_in_one_key_or_another_are_one_group():
    groups = joined(["a", "a", "b", "c", "d"], ["1", "2", "2", "3", "4"])
    assert groups[0] == groups[1] == groups[2] and len(set(groups.tolist())) == 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_sample(tmp_path / "sample", images=30, sizes=(24, 32))
    for name in ("train.txt", "val.txt"):
        (tmp_path / "sample" / name).unlink(missing_ok=True)
    return tmp_path / "sample"


def test_the_lists_hold_every_image_once_and_training_reads_them(folder):
    done = split_folder(folder, 0.3, 1)
    dataset = read_folder(folder)
    assert len(dataset.train) + len(dataset.val) == 30 and not set(dataset.train.ids) & set(dataset.val.ids)
    assert (len(dataset.train), len(dataset.val)) == done.images
    assert dataset.val.labels.present.sum(axis=0).tolist() == list(done.val)


def test_copies_of_an_image_stay_on_one_side(folder):
    first = sorted((folder / "images").iterdir())[0]
    rows = (folder / "tags.csv").read_text().splitlines()
    row = next(row for row in rows if row.startswith(first.stem))
    for n in range(6):
        shutil.copy(first, folder / "images" / f"copy{n}{first.suffix}")
        rows.append(row.replace(first.stem, f"copy{n}", 1))
    (folder / "tags.csv").write_text("\n".join(rows) + "\n")
    assert split_folder(folder, 0.4).copies == 6
    sides = {name: (folder / name).read_text().split() for name in ("train.txt", "val.txt")}
    together = {first.stem, *(f"copy{n}" for n in range(6))}
    assert any(together <= set(ids) for ids in sides.values())


def test_scenes_stay_together_by_folder_or_by_expression(folder):
    (folder / "images/deep").mkdir()
    names = sorted(path.name for path in (folder / "images").iterdir() if path.is_file())
    text = (folder / "tags.csv").read_text()
    for name in names[:10]:
        shutil.move(folder / "images" / name, folder / "images/deep" / name)
        stem = name.rpartition(".")[0]
        text = text.replace(f"\n{stem}", f"\ndeep/{stem}")
    (folder / "tags.csv").write_text(text)
    split_folder(folder, 0.3, group_by="^(deep)")
    in_val = [line.startswith("deep/") for line in (folder / "val.txt").read_text().splitlines()]
    assert sum(in_val) in (0, 10)
    with pytest.raises(DataError, match="belong together"):
        split_folder(folder, 0.3, group_by="^", overwrite=True)


def test_lists_that_are_there_are_kept_unless_one_says_otherwise(folder):
    (folder / "val.txt").write_text("mine\n")
    with pytest.raises(DataError, match="split already"):
        split_folder(folder)
    assert (folder / "val.txt").read_text() == "mine\n" and not (folder / "train.txt").exists()
    split_folder(folder, overwrite=True)
    assert "mine" not in (folder / "val.txt").read_text()


@pytest.mark.parametrize(("share", "group_by"), [(0.0, None), (1.5, None), (0.2, "("), (0.2, "^nothing$")])
def test_impossible_wishes_are_refused_before_anything_is_written(folder, share, group_by):
    with pytest.raises(ConfigError):
        split_folder(folder, share, group_by=group_by)
    assert not (folder / "train.txt").exists()


def test_the_command_prints_both_sides(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sccam", "data", "split", str(folder), "--val", "0.5"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "val.txt" in capsys.readouterr().out
