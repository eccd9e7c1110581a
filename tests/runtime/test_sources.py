"""Where images come from: names that never collide, an order that is the same every time, shards that share nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sccam.errors import ConfigError, DataError
from sccam.runtime.sources import parse_shard, shard_of, sources


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shown = ("b/1.jpg", "a/1.jpg", "1.jpg", "1.png", "2.JPEG", "a/deep/3.webp")
    for name in (*shown, "notes.txt", ".hidden.jpg", ".git/4.jpg"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "in"


def names(source: object, **options: object) -> list[str]:
    return [found.name for found in sources(source, **options)]  # type: ignore[arg-type]


def test_a_folder_gives_every_image_below_it_once_and_in_order(folder):
    assert names(folder) == ["1.jpg", "1.png", "2", "a/1", "a/deep/3", "b/1"]
    assert [found.path.relative_to(folder).as_posix() for found in sources(folder)] == [
        "1.jpg", "1.png", "2.JPEG", "a/1.jpg", "a/deep/3.webp", "b/1.jpg",
    ]  # fmt: skip


def test_no_two_images_share_a_name_even_where_case_is_ignored(tmp_path):
    for name in ("1.jpg", "1.png", "1.jpg.png", "A.jpg", "a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    found = names(tmp_path)
    assert found == ["1.jpg", "1.jpg.png", "1.png", "A.jpg", "a.png", "b"]
    assert len({name.casefold() for name in found}) == len(found)


def test_a_file_a_pattern_a_list_and_standard_input(folder, tmp_path):
    assert names(folder / "2.JPEG") == ["2"]
    assert names(f"{folder}/*/1.jpg") == ["a/1", "b/1"]
    assert names(f"{folder}/**/*.webp") == ["a/deep/3"]
    assert names(f"{folder}/1.*") == ["1.jpg", "1.png"]
    (tmp_path / "list.txt").write_text("\ufeffin/a/1.jpg\n\n./in/b/1.jpg\r\nin/a/1.jpg\n../in/1.png\n")
    found = list(sources(tmp_path / "list.txt"))
    assert [source.name for source in found] == ["in/a/1", "in/b/1", "in/1"]
    assert found[0].path == tmp_path / "in/a/1.jpg"
    assert names("-", lines=["in/1.jpg\n", "in/1.png\n", "/abs/2.jpg\n"]) == ["in/1", "in/1.png", "abs/2"]


def test_a_name_never_leads_out_of_the_output_folder():
    for name in names("-", lines=["../../etc/1.jpg", "/etc/2.jpg", "a/../../3.jpg", "C:\\x\\4.jpg"]):
        assert not name.startswith("/") and ".." not in name.split("/") and ":" not in name


def test_links_that_lead_in_circles_are_walked_once(folder):
    os.symlink(folder, folder / "a" / "again")
    assert names(folder) == ["1.jpg", "1.png", "2", "a/1", "a/deep/3", "b/1"]


def test_names_of_any_bytes(tmp_path):
    odd = (b"\xff\xfe", "sm\u00f8rrebr\u00f8d \U0001f600".encode(), b"new\nline", b"-dash", b"x" * 240)
    for name in odd:
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name + b".jpg"))).write_bytes(b"x")
    found = list(sources(tmp_path))
    assert len({source.name for source in found}) == 5 and all(source.path.is_file() for source in found)


def test_nothing_to_read_is_an_error_that_says_so(tmp_path):
    with pytest.raises(DataError, match="no such image, folder or list"):
        sources(tmp_path / "gone")
    with pytest.raises(DataError, match="no images"):
        sources(tmp_path)
    with pytest.raises(DataError, match="no images"):
        sources(f"{tmp_path}/*.jpg")


def test_shards_share_nothing_and_are_all_together(folder):
    every = names(folder)
    parts = [[source.name for source in shard_of(sources(folder), k, 4)] for k in range(4)]
    assert sorted(name for part in parts for name in part) == sorted(every) and max(map(len, parts)) <= 2
    assert parse_shard("2/4") == (2, 4)
    for text in ("4/4", "1", "a/b", "-1/4", "1/0", ""):
        with pytest.raises(ConfigError, match="not a shard"):
            parse_shard(text)
