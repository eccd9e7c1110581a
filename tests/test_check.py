"""`sccam data check`: all faults of a folder at once, and what it knows of a sound one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam import check, cli
from sccam.check import Survey, check_folder
from sccam.data.masks import read_mask, write_mask
from sccam.data.sample import draw_sample
from sccam.errors import DataError
from sccam.recipe import load_config
from sccam.run import plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draw_sample(tmp_path / "sample", images=20, sizes=(24, 32))
    return tmp_path / "sample"


def files(folder: Path) -> list[Path]:
    return sorted((folder / "images").iterdir())


def checked(folder: Path) -> Survey:
    return check_folder(folder, workers=1)


def test_a_sound_folder_has_no_fault_and_its_counts_are_those_of_the_tags(folder):
    found, told = checked(folder), plan(folder, "photos")
    assert found.faults == {} and found.as_dict()["fit"]
    assert sum(found.images.values()) == found.masks == 20 and found.modes == {"RGB": 20}
    assert found.images == {"train": told["train_images"], "val": told["val_images"]}
    rows = (folder / "tags.csv").read_text().splitlines()[1:]
    total = sum(len(row.partition(",")[2].replace(";", " ").split()) for row in rows)
    assert sum(train + val for _, train, val in found.balance) == total
    assert sum(found.mask_pixels.values()) == pytest.approx(1) and found.mask_pixels["background"] > 0.2
    smallest, _, largest = found.sizes
    assert smallest[0] * smallest[1] <= largest[0] * largest[1] and found.minutes > 0


def test_a_round_without_training_takes_no_epochs(folder, monkeypatch):
    def minutes(setting: str) -> float:
        monkeypatch.setattr(check, "load_config", lambda name, settings: load_config(name, [*settings, setting]))
        return checked(folder).minutes

    assert minutes("prototypes.k=0") == minutes("prototypes.k=2") < minutes("reactivate.epochs=4800")


def test_every_broken_image_and_every_wrong_mask_is_told_of_at_once(folder):
    first, second, third, fourth, *_ = files(folder)
    first.write_bytes(b"no image")
    second.write_bytes(second.read_bytes()[:60])
    for image in (first, second):  # a mask's size would be compared with a header that is gone
        (folder / "masks" / f"{image.stem}.png").unlink()
    masks = [folder / "masks" / f"{image.stem}.png" for image in (third, fourth)]
    index = read_mask(masks[0])
    write_mask(masks[0], np.full_like(index, 77))
    write_mask(masks[1], np.where(read_mask(masks[1]) > 0, 255, 0).astype(np.uint8))
    found = checked(folder)
    broken, wrong = found.faults["images that cannot be read"], found.faults["masks that do not fit"]
    assert [line.partition(":")[0] for line in broken] == [first.stem, second.stem]
    assert len(wrong) == 2 and "77" in wrong[0] and "0/255 binary mask" in wrong[1]
    assert not found.as_dict()["fit"]


def test_a_fault_of_the_tags_does_not_hide_broken_images(folder):
    (folder / "tags.csv").write_text((folder / "tags.csv").read_text() + "nowhere,car\n")
    files(folder)[2].write_bytes(b"")
    found = checked(folder)
    assert any("nowhere" in kind for kind in found.faults)
    assert len(found.faults["images that cannot be read"]) == 1
    with pytest.raises(DataError, match="nowhere"):
        plan(folder, "photos")


def test_images_without_tags_are_a_fault_and_all_else_is_still_counted(folder):
    name = files(folder)[0].stem
    rows = (folder / "tags.csv").read_text().splitlines()
    (folder / "tags.csv").write_text("\n".join(f"{name}," if row.startswith(name) else row for row in rows) + "\n")
    found = checked(folder)
    assert len(found.faults) == 1 and sum(found.images.values()) == 20 and found.balance


def test_copies_are_told_of_by_what_they_spoil(folder):
    ids = {name: (folder / name).read_text().split() for name in ("train.txt", "val.txt")}
    suffix = files(folder)[0].suffix
    image = {name: folder / "images" / f"{chosen[0]}{suffix}" for name, chosen in ids.items()}
    shutil.copy(image["train.txt"], image["val.txt"])
    (folder / "masks" / f"{ids['val.txt'][0]}.png").unlink()  # of another size than the copy
    found = checked(folder)
    (kind,) = [kind for kind in found.notes if "copies" in kind]
    assert "both lists" in kind and found.notes[kind] == [f"{ids['train.txt'][0]} = {ids['val.txt'][0]}"]


def test_orientation_and_modes_are_counted(folder):
    first, second, *_ = files(folder)
    picture = Image.open(first).convert("L")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down: the size stays
    picture.save(first, exif=exif.tobytes())
    Image.open(second).convert("RGBA").save(second)
    found = checked(folder)
    assert found.notes["images that EXIF turns or mirrors"] == [first.stem]
    assert found.modes == {"RGB": 18, "L": 1, "RGBA": 1}


def test_classes_that_never_part_are_in_the_advice_and_pairs_are_counted(folder):
    rows = (folder / "tags.csv").read_text().splitlines()
    changed = [rows[0], *(row if "car" not in row else row.replace("car", "car wheel") for row in rows[1:])]
    (folder / "tags.csv").write_text("\n".join(changed) + "\n")
    (folder / "classes.txt").write_text((folder / "classes.txt").read_text() + "wheel\n")
    found = checked(folder)
    assert any("'wheel' never comes without" in line for line in found.advice)
    pair = next(pair for pair in found.pairs if set(pair[:2]) == {"car", "wheel"})
    assert pair[2] == pair[3] > 0


def test_no_folder_is_a_fault_and_no_crash(tmp_path):
    found = checked(tmp_path / "nowhere")
    assert list(found.faults) and not found.images


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_ends_with_3_where_training_would_refuse(folder, broken, monkeypatch, capsys):
    if broken:
        files(folder)[0].write_bytes(b"")
    for arguments in ([], ["--json"]):
        monkeypatch.setattr("sys.argv", ["sccam", "data", "check", str(folder), "--workers", "1", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert (ended.value.code or 0) == (3 if broken else 0)
        printed = capsys.readouterr().out
        if not arguments:
            assert ("refuses this folder" if broken else "takes this folder") in printed.splitlines()[-1]
    assert json.loads(printed)["fit"] is not broken
