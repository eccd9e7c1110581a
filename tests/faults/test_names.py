"""File names of any bytes, images of one name, links in circles, a million entries: each image once, nothing else."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sccam.data.folder import find_images, read_folder
from sccam.data.masks import read_mask
from sccam.data.tags import Names
from sccam.runtime.sources import sources
from tests.conftest import Cli
from tests.faults.conftest import Tally
from tests.faults.test_data import examples, with_settings
from tests.runtime.formula import lines
from tests.runtime.test_folder import model  # noqa: F401  (a fixture)

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (b".jpg", b".PNG", b".jpeg", b".bmp", b".tiff", b".webp")
NASTY = (
    b"\xff\xfe", b"\xff" * 58, "\U0001f600 \u00e9".encode(), "e\u0301".encode(), b"new\nline", b"return\rhere",
    b"tab\there", b"bell\x07\x1b[31mred", b"-dash", b"--help", b"-o", b"~", b" lead", b"trail ", b"dot.", b"..dots",
    b"a..b", b"CON", b"nul", b"COM1.x", b"Thumbs", b"x" * 240, b"a,b;c|d", b'"quoted"', b"'single'", b"`id`", b"$(id)",
    b"=cmd|' /C calc'!A0", b"@sum", b"%s%n", b"{0}{name}", b"back\\slash", b"..\\..\\up", b"colon:", b"C:", b"*?[x]",
    b"<script>alert(1)</script>", b"&amp;", b"#", b"a%2Fb", b"\xe2\x80\xae gnp", b"\x01\x02", b"1", b"masks", b"lock",
    b"predictions.jsonl", b"a.jpg", b"a.png.jpg", "\u0130".encode(), "\u00df".encode(), b"SS",
)  # fmt: skip
FOLDERS = (b"", b"sub", b"Sub", b"sub 2", b"\xff", b"new\nline", b"masks.png", b"-x", b"a.jpg", "\U0001f600".encode())


def odd_names(rng: random.Random, count: int) -> list[bytes]:
    """Paths below a folder; many of them differ in case, suffix or folder only."""
    chosen: dict[bytes, None] = {}
    while len(chosen) < count:
        kind = rng.randrange(4)
        if kind == 0 and chosen:  # like one before: another case, suffix or folder
            folder, _, last = rng.choice(list(chosen)).rpartition(b"/")
            stem, _, suffix = last.rpartition(b".")
            stem = rng.choice([stem, stem.swapcase(), last])
            name, folder = stem + rng.choice([b"." + suffix, rng.choice(SUFFIXES)]), rng.choice([folder, *FOLDERS])
        else:
            stem = rng.choice(NASTY) if kind < 3 else rng.randbytes(rng.randint(1, 60)).translate(SAFE)
            name, folder = stem + rng.choice(SUFFIXES), rng.choice(FOLDERS)
        if not name.startswith(b".") and len(name) <= 255:
            chosen[folder + b"/" + name if folder else name] = None
    return list(chosen)


SAFE = bytes(95 if byte in (0, 47) else byte for byte in range(256))  # neither zero nor a slash


def place(root: Path, names: list[bytes]) -> dict[Path, tuple[int, int]]:
    """Images under these names, each with a size of its own: path -> (height, width). Without those that cannot be."""
    made: dict[Path, tuple[int, int]] = {}
    for n, name in enumerate(names):
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        size = (4 + n % 61, 5 + n // 61)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size[::-1], (n % 256, 40, 80)).save(path, format="PNG")
        except OSError:  # a folder has the name of a file, or the other way round
            continue
        made[path] = size
    return made


def below(folder: Path, leave_out: Path) -> dict[str, tuple[int, int]]:
    """Everything in a folder but one folder in it: size and time of change."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if Path(parent, name) != leave_out]
        for name in (*folders, *files):
            status = os.lstat(os.path.join(parent, name))
            # The access of a folder's own entry changes when OUT is made beside it, so times of files alone.
            found[os.path.join(parent, name)] = (status.st_size, status.st_mtime_ns) if name in files else (0, 0)
    return found


def alike(name: str) -> str:
    """One name for all that a file system may take for the same file."""
    return unicodedata.normalize("NFD", name.casefold())


def check_results(out: Path, made: Mapping[Path, tuple[int, int]], bad: Set[Path] = frozenset()) -> None:
    """Every image once: a line and a mask of its size, or a line that says why not."""
    done, failed = lines(out / "predictions.jsonl"), lines(out / "errors.jsonl")
    paths = [Path(line["path"]) for line in (*done, *failed)]
    assert len(paths) == len(set(paths)) and set(paths) == made.keys() | bad
    assert {Path(line["path"]) for line in failed} == bad
    names = [line["name"] for line in done]
    assert len({alike(name) for name in names}) == len(names), "no output overwrites another, on any file system"
    for line in done:
        mask = out / line["mask"]
        assert mask.resolve().is_relative_to((out / "masks").resolve())
        assert read_mask(mask).shape == made[Path(line["path"])] == tuple(line["size"])
    assert len([path for path in (out / "masks").rglob("*") if path.is_file()]) == len(done)


@pytest.mark.fault(30, 31)
@pytest.mark.promise("each", "again")
def test_images_of_any_names_are_segmented_each_once_and_nothing_else_is_touched(
    model, tmp_path, tally: Tally, full, sccam: Cli  # noqa: F811
):  # fmt: skip
    rng = random.Random(0)
    for n in range(25 if full else 2):
        root, out = tmp_path / f"{n}" / "photos", tmp_path / f"{n}" / "out"
        made = place(root, odd_names(rng, 60))
        before = below(root.parent, out)
        tally.injected += len(made)
        saves = [
            word for name in ("overlay", "scores", "coco", "yolo", "labelstudio", "voc") for word in ("--save", name)
        ]
        code, printed, err = sccam(
            "infer", model, root, "-o", out, "--threads", 1, "--json", *(saves if n == 0 else [])
        )
        assert code == 0 and json.loads(printed)["done"] == len(made), err
        check_results(out, made)
        assert below(root.parent, out) == before
        first = {path: path.read_bytes() for path in (out / "masks").rglob("*") if path.is_file()}
        log = (out / "predictions.jsonl").read_bytes()
        code, printed, _ = sccam("infer", model, root, "-o", out, "--threads", 1, "--json", *(saves if n == 0 else []))
        assert code == 0 and (json.loads(printed)["done"], json.loads(printed)["skipped"]) == (0, len(made))
        assert (out / "predictions.jsonl").read_bytes() == log
        assert all(path.read_bytes() == content for path, content in first.items())
        if n == 0:
            assert len(json.loads((out / "coco.json").read_text())["images"]) == len(made)
            assert len(json.loads((out / "labelstudio.json").read_text())) == len(made)
        tally.survived += len(made)
        shutil.rmtree(root.parent)


@pytest.mark.fault(30, 31)
@pytest.mark.promise("told")
def test_images_of_any_names_are_checked_and_found_by_their_names_in_tag_files(
    tmp_path, tally: Tally, full, sccam: Cli
):
    rng = random.Random(1)
    for n in range(25 if full else 2):
        root = tmp_path / str(n)
        made = place(
            root / "images", [*odd_names(rng, 60), b"pair/\xff.png", b"pair/\\xff.png"]
        )  # the first reads like the second
        ids = find_images(root / "images")
        assert len(ids) == len(made) and set(ids.values()) == made.keys()
        tally.injected += len(made)
        found = Names(ids, root / "images")
        tags = {}
        for image_id, path in ids.items():
            tags[image_id] = [rng.choice(["cat", "dog", "red fox"])]
            assert ids[found.find(image_id, "")] == path
            relative = path.relative_to(root / "images").as_posix()
            if relative.isprintable():  # what a person can write down as it is
                assert ids[found.find(relative, "")] == path, "a path means the file that lies there"
        (root / "tags.json").write_text(json.dumps(tags, ensure_ascii=bool(n % 2)), encoding="utf-8")
        before = below(root, Path())
        dataset = read_folder(root)
        train = zip(dataset.train.ids, dataset.train.labels.present, strict=True)
        assert {i: [dataset.classes[c] for c in np.flatnonzero(row)] for i, row in train} == tags
        code, printed, _ = sccam("data", "check", root, "--json", "--workers", 1)
        assert code == 0 and json.loads(printed)["images"]["train"] == len(made), printed
        code, _, err = sccam("train", root, "-c", "demo", "--dry-run")
        assert code == 0 and below(root, Path()) == before, err
        code, _, err = sccam("data", "split", root)
        assert code == 0, err
        split = read_folder(root)
        assert sorted((*split.train.ids, *split.val.ids)) == sorted(ids), "lists name every image, whatever its name"
        tally.survived += len(made)


@pytest.mark.fault(30)
@pytest.mark.promise("told")
def test_names_write_nothing_on_the_terminal_but_themselves(model, tmp_path, tally: Tally, sccam: Cli):  # noqa: F811
    forged = b"\x1b[2J\x1b[31m\x07\rerror: none\n0 faults: all is well\xff\xe2\x80\xae.png"
    for n, (name, tags) in enumerate(((forged, False), (b"cat/" + forged, False), (forged, True))):
        root = tmp_path / str(n)
        place(root, [b"cat/1.png", b"dog/2.png"] if not tags else [b"1.png", b"2.png"])
        Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"no picture")
        if tags:
            ids = {path.name[0]: image_id for image_id, path in find_images(root).items()}
            (root / "tags.json").write_text(json.dumps({ids["1"]: ["cat"], ids["2"]: ["dog"], ids["\x1b"]: ["dog"]}))
        tally.injected += 1
        for command in (
            ("data", "check", root, "--workers", 1),
            ("train", root, "-c", "demo", "--out", tmp_path / "run"),
        ):
            code, printed, err = sccam(*command)
            text = printed + err.replace("\r\x1b[2K", "")
            assert code == 3 and not set("\x1b\x07\r\u202e") & set(text), text
            assert not any(line.startswith(("0 faults", "error: none")) for line in text.split("\n")), text
            assert "all is well" in text, "and still it is named"
        code, printed, err = sccam("infer", model, root, "-o", tmp_path / f"out {n}", "--threads", 1)
        assert code == 5 and not {"\x1b", "\x07"} & set(printed + err)
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        tally.survived += 1


@pytest.mark.fault(30)
@pytest.mark.promise("each", "told")
def test_names_too_long_for_an_output_are_lines_and_faults(model, tmp_path, tally: Tally, sccam: Cli):  # noqa: F811
    root, out = tmp_path / "in/images", tmp_path / "out"
    names = [
        b"cat/" + b"y" * 251 + b".jpg",
        b"cat/" + b"y" * 251 + b".png",
        b"dog/" + b"\xff" * 200 + b".jpg",
        b"dog/1.jpg",
    ]
    made = place(root, names)
    long = {path for path in made if path.stem[0] == "y"}
    tally.injected += 3
    code, printed, err = sccam("infer", model, root, "-o", out, "--threads", 1)
    assert code == 5 and "2 failed" in printed, err  # the suffix that tells them apart is too much
    check_results(out, {path: size for path, size in made.items() if path not in long}, long)
    code, printed, _ = sccam("data", "check", root.parent, "--workers", 1)
    assert code == 3 and "is too long for the files of a run" in printed
    for path in long:
        path.unlink()
    code, _, err = sccam("train", root.parent, "-c", "demo", "--out", tmp_path / "run")
    assert (
        code == 3 and "800 bytes is too long" in err and "Traceback" not in err and not (tmp_path / "run").exists()
    ), err
    tally.survived += 3


@pytest.mark.fault(32)
@pytest.mark.promise("each")
def test_links_sockets_and_pipes_are_told_of_and_nobody_waits_for_them(model, tmp_path, tally: Tally, sccam: Cli):  # noqa: F811
    root, out, outside = tmp_path / "in", tmp_path / "out", tmp_path / "outside"
    made = place(root, [b"1.jpg", b"cat/2.jpg", b"dog/3.jpg"])
    away = place(outside, [b"4.jpg"])
    (outside / "secret.txt").write_text("a secret")
    bad: set[Path] = set()
    for name, target in (("circle", ".."), ("self", "self"), ("out", outside), ("root", "/")):
        os.symlink(target, root / "cat" / name)
    for name, target in (
        ("gone.jpg", "nowhere"), ("self.jpg", "self.jpg"), ("round.jpg", "dnuor.jpg"), ("dnuor.jpg", "round.jpg"),
        ("text.jpg", outside / "secret.txt"), ("folder.jpg", outside), ("null.jpg", "/dev/null"),
        ("zero.jpg", "/dev/zero"), ("tree.jpg", "."), ("memory.jpg", "/proc/self/mem"), ("long.jpg", "n" * 4000),
    ):  # fmt: skip
        os.symlink(target, root / "dog" / name)
        bad.add(root / "dog" / name)
    os.symlink(outside / "4.jpg", root / "dog" / "linked.jpg")
    made[root / "dog" / "linked.jpg"] = away[outside / "4.jpg"]  # a link to a picture is that picture
    os.mkfifo(root / "dog/pipe.jpg")
    (root / "dog/folder.png").mkdir()
    place_of_socket = socket.socket(socket.AF_UNIX)
    cwd = os.getcwd()
    os.chdir(root / "dog")  # the whole path may be too long for a socket
    place_of_socket.bind("socket.jpg")
    os.chdir(cwd)
    bad |= {root / "dog" / name for name in ("pipe.jpg", "socket.jpg")}
    faults = 4 + len(bad)
    tally.injected += faults
    before, elsewhere = below(root, out), below(outside, out)
    code, printed, err = sccam("infer", model, root, "-o", out, "--threads", 1, "--json")
    assert code == 5 and json.loads(printed)["failed"] == len(bad), err
    check_results(out, made, bad)
    assert "secret" not in (out / "errors.jsonl").read_text().replace("secret.txt", "")
    (root / "1.jpg").unlink()
    before.pop(str(root / "1.jpg"))
    code, printed, err = sccam("data", "check", root, "--json", "--workers", 1)
    broken = json.loads(printed)["faults"]["images that cannot be read"]
    # A link to a folder is no image for it, and hides nothing: what lies there lies there.
    assert code == 3 and len(broken) == len([path for path in bad if not os.path.isdir(path)]), printed
    code, _, err = sccam("train", root, "-c", "demo", "--out", tmp_path / "run")
    assert code == 3 and "images cannot be read" in err and "Traceback" not in err, err
    assert below(root, out) == before and below(outside, out) == elsewhere
    tally.survived += faults
    place_of_socket.close()


@pytest.mark.fault(32)
@pytest.mark.promise("each")
def test_patterns_and_results_among_the_images_give_every_image_once(model, tmp_path, tally: Tally, sccam: Cli):  # noqa: F811
    root = tmp_path / "in"
    made = place(root, [b"1.jpg", b"a/2.jpg", b"b/3.jpg"])
    for name, target in (("a/up", ".."), ("b/up", ".."), ("c", "a")):
        os.symlink(target, root / name)
    tally.injected += 3
    assert sorted(source.path for source in sources(f"{root}/**/*.jpg")) == sorted(made)
    out = root / "a" / "results"
    for _ in range(2):
        code, printed, err = sccam(
            "infer", model, root, "-o", out, "--threads", 1, "--save", "mask", "--save", "overlay"
        )
        assert code == 0, err
        check_results(out, made)
    assert "3 were there already" in printed
    for shard in ("0/2", "1/2"):
        code, _, err = sccam("infer", model, root, "-o", tmp_path / "in/b/shards", "--threads", 1, "--shard", shard)
        assert code == 0, err
    parts = [lines(path) for path in sorted((root / "b/shards").rglob("predictions.jsonl"))]
    taken = [Path(line["path"]) for part in parts for line in part if Path(line["path"]) in made]
    assert sorted(taken) == sorted(made) and len(parts) == 2
    tally.survived += 3


STEPS = st.sampled_from(["", ".", "..", "a", "A", ":", ".:.", "C:", "x y", "\xe9", "~"])
LINES = st.lists(
    st.one_of(
        st.builds("/".join, st.lists(STEPS, max_size=5)),
        st.builds("".join, st.tuples(st.sampled_from(["", "/", "../", "./", "a/", "A/", ".:./", "\\", "C:\\"]),
                                     st.sampled_from(["1", "1.jpg", "1.png", "a", ".", "..", "\0"]),
                                     st.sampled_from(["", ".jpg", ".JPG", ".png", ".jpg~2", "/"]))),
        st.text(max_size=12),
    ),
    max_size=30,
)  # fmt: skip


@pytest.mark.fault(30, 31)
@pytest.mark.promise("each")
def test_the_lines_of_a_list_get_names_of_their_own_that_stay_in_the_folder(tally: Tally, full):
    @examples(2_000 if full else 300)
    @given(LINES)
    def check(listed: list[str]) -> None:
        tally.injected += 1
        found = list(sources("-", (f"{line}\n" for line in listed)))
        paths = {Path(part).as_posix() for line in listed for part in [line.rstrip("\r\n")] if part.strip()}
        assert {source.path.as_posix() for source in found} == paths and len(found) == len(paths)
        assert len({alike(source.name) for source in found}) == len(found)
        for source in found:
            parts = PurePosixPath(f"masks/{source.name}.png").parts
            assert parts[0] == "masks" and ".." not in parts and len(parts) > 1 and not source.name.startswith("/")
        tally.survived += 1

    check()


@pytest.mark.fault(30, 31)
@pytest.mark.promise("each")
def test_lines_that_name_nothing_are_lines_of_errors(model, tmp_path, tally: Tally, sccam: Cli, monkeypatch):  # noqa: F811
    made = place(tmp_path, [b"a/1.jpg", b"b/a/1.jpg"])
    monkeypatch.chdir(tmp_path / "b")
    listed = [
        "a/1.jpg",
        "../a/1.jpg",
        "/",
        "..",
        ".",
        "zero\0byte.jpg",
        "n" * 5000 + ".jpg",
        "gone.jpg",
        ".:./.:./up.jpg",
    ]
    tally.injected += len(listed)
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(listed)))
    code, printed, err = sccam("infer", model, "-", "-o", tmp_path / "out", "--threads", 1, "--json")
    assert code == 5 and json.loads(printed)["failed"] == len(listed) - 2, err
    done = lines(tmp_path / "out/predictions.jsonl")
    assert [Path(line["path"]).resolve() for line in done] == [tmp_path / "b/a/1.jpg", tmp_path / "a/1.jpg"]
    assert [line["name"] for line in done] == ["a/1", "a/1.jpg"]
    assert {read_mask(tmp_path / "out" / line["mask"]).shape for line in done} == set(made.values())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out"]
    tally.survived += len(listed)


@pytest.mark.fault(30)
@pytest.mark.promise("told", "each")
def test_folders_whose_own_names_are_no_text_are_read_and_written(model, tmp_path, tally: Tally, full):  # noqa: F811
    names = (b"\xff", "\udcff".encode("utf-8", "surrogatepass"), b"new\nline", b"-x", "\U0001f600".encode())
    commands = [
        ["data", "check", "DATA"], ["data", "check", "DATA", "--json"], ["train", "DATA", "--dry-run", "--json"],
        ["infer", str(model), "DATA", "-o", "OUT", "--json"], ["train", "DATA", "--out", "OUT/run", *with_settings()],
    ]  # fmt: skip
    for name in names if full else names[:1]:
        parent = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
        data, out = parent / "data", parent / "out"
        place(data / "images", [b"cat/1.png", b"cat/2.png", b"dog/3.png", b"dog/\xfe.png"])
        for command in commands if full else commands[1:4]:
            tally.injected += 1
            words = [word.replace("DATA", str(data)).replace("OUT", str(out)) for word in command]
            done = subprocess.run(
                [sys.executable, "-m", "sccam.cli", *words], capture_output=True, timeout=280, check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            tally.crashed += b"Traceback" in done.stderr or done.returncode < 0
            assert done.returncode == 0 and b"Traceback" not in done.stderr, (words, done.stderr[-2000:])
            if "--json" in command:
                json.loads(done.stdout)
            tally.survived += 1


class Entry:
    """An entry of a folder that is not there."""

    __slots__ = ("_folder", "name", "path")

    def __init__(self, folder: str, name: str, is_folder: bool):
        self.name, self.path, self._folder = name, f"{folder}/{name}", is_folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._folder

    def is_symlink(self) -> bool:
        return False


class Scan:
    """What os.scandir gives, for such entries."""

    def __init__(self, entries: Iterator[Entry]):
        self._entries = entries

    def __iter__(self) -> Iterator[Entry]:
        return self._entries

    def __next__(self) -> Entry:
        return next(self._entries)

    def __enter__(self) -> Scan:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass


def pretending(root: str, count: int, folders: int) -> Any:
    """An os.scandir that shows `count` images in `folders` folders below `root`, whatever lies there."""
    real: Any = os.scandir

    def scandir(path: Any = ".") -> Any:
        text = os.fspath(path)
        if text == root:
            return Scan(Entry(text, f"f{n:04}", True) for n in range(folders))
        if isinstance(text, str) and os.path.dirname(text) == root and text.rpartition("/")[2].startswith("f"):
            return Scan(Entry(text, f"{n:07}.png", False) for n in range(count // folders))
        return real(path)

    return scandir


def run_pretending(arguments: list[str]) -> None:
    """In a process of its own: a command over such a folder, and what memory it took at most."""
    from sccam import cli

    root, count, folders, *command = arguments
    os.scandir = pretending(root, int(count), int(folders))
    sys.argv = ["sccam", *command]
    code: Any = 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code
    with open("/proc/self/status", encoding="ascii") as status:
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"code": code, "peak_mb": peak / 1024}), file=sys.stderr)


def pretended(root: Path, count: int, folders: int, *command: object) -> tuple[dict[str, Any], str]:
    """The code and peak memory of a command over `count` pretended entries, and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.test_names", str(root), str(count), str(folders), *map(str, command)],
        capture_output=True, text=True, timeout=3500, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-2000:]
    return json.loads(done.stderr.strip().splitlines()[-1]), done.stdout


@pytest.mark.timeout(3600)
@pytest.mark.fault(32)
@pytest.mark.promise("each")
@pytest.mark.parametrize("folders", [1000, 1])
def test_a_folder_of_a_million_entries_is_segmented_in_the_memory_of_a_thousand(
    model, tmp_path, tally: Tally, full, folders  # noqa: F811
):  # fmt: skip
    count, few = (1_000_000 if full else 10_000), 1_000
    root = tmp_path / "in"
    # Of each folder that is scanned, in either run, an image or some are there.
    there = [(0, n) for n in range(0, few // folders, 7)] + [(n, 0) for n in range(min(folders, 40))]
    made = place(root, sorted({f"f{folder:04}/{n:07}.png".encode() for folder, n in there}))
    shape = {str(path): size for path, size in made.items()}
    peaks = []
    for entries in (few, count):
        out = tmp_path / f"out {entries}"
        told, printed = pretended(root, entries, folders, "infer", model, root, "-o", out, "--json", "--threads", 1)
        peaks.append(told["peak_mb"])
        summary, done = json.loads(printed), lines(out / "predictions.jsonl")
        assert told["code"] == 5 and (summary["done"], summary["failed"]) == (len(made), entries - len(made))
        assert {line["path"]: tuple(line["size"]) for line in done} == shape and len(done) == len(shape)
        names, failed = {line["name"] for line in done}, 0
        with (out / "errors.jsonl").open(encoding="ascii") as log:
            for text in log:
                line = json.loads(text)
                failed += 1
                names.add(line["name"])
        assert failed == entries - len(made) and len(names) == entries
    tally.injected += count
    room = 24 + (400 * count / 1e6 if folders == 1 else 0)  # the names of one folder are held
    assert peaks[1] - peaks[0] < room, peaks
    tally.notes = {"peak MB for a thousand": round(peaks[0], 1), f"peak MB for {count}": round(peaks[1], 1)}
    tally.survived += count


@pytest.mark.timeout(3600)
@pytest.mark.fault(32)
@pytest.mark.promise("told")
def test_a_folder_of_a_million_entries_is_checked_and_every_missing_one_told_of(tmp_path, tally: Tally, full):
    count, root = (1_000_000 if full else 5_000), tmp_path / "in"
    made = place(root, [f"f{n:04}/0000000.png".encode() for n in range(10)])
    tally.injected += count
    told, printed = pretended(root, count, 100, "data", "check", root, "--json", "--workers", 1)
    found = json.loads(printed)
    assert told["code"] == 3 and len(found["faults"]["images that cannot be read"]) == count - len(made)
    assert len(set(found["faults"]["images that cannot be read"])) == count - len(made)
    tally.notes = {f"peak MB for {count}": round(told["peak_mb"], 1)}
    tally.survived += count


@pytest.mark.fault(32)
@pytest.mark.promise("each")
def test_folders_are_scanned_only_as_far_as_images_are_asked_for(tally: Tally, full, monkeypatch):
    scanned: list[str] = []
    scandir = pretending("/pretended", 1_000_000, 1_000)

    def counting(path: Any = ".") -> Any:
        scanned.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    monkeypatch.setattr(os.path, "isdir", lambda path: True)
    walked = sources("/pretended")
    for n in range(1_000 if full else 100):
        tally.injected += 1
        assert next(walked).name == f"f0000/{n:07}"
        assert len(scanned) == 2, "the folder and the first one in it"
        tally.survived += 1


if __name__ == "__main__":
    run_pretending(sys.argv[1:])
