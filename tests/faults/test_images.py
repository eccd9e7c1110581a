"""Broken, crafted and odd images: read, segmented and trained on, in processes of their own that a crash would end."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from sccam.data.images import DEFAULT_MAX_PIXELS, FORMATS
from sccam.data.masks import read_mask
from sccam.training.data_check import MOST_LISTED
from tests.conftest import Cli
from tests.faults.conftest import FULL, Tally
from tests.faults.corpus import Broken, corpus, encoded, exif, interlaced, kinds, picture, write
from tests.runtime.formula import lines
from tests.runtime.test_folder import model  # noqa: F401  (a fixture)
from tests.runtime.test_folder_inputs import STORED, UPRIGHT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and measures memory by what Linux has for it")

ROOT = Path(__file__).resolve().parents[2]
FILES, GOOD, BOMBS = (4_000, 200, 1_200) if FULL else (210, 20, 120)
MB = 1 << 20
BOMB_ROOM = 150 * MB  # of address space, for a reader that has loaded its libraries
READ_ROOM = 1_500 * MB  # the same where a header may claim as many pixels as are allowed, 100 million
INFER_ROOM = 3_000 * MB
TORCH_ROOM = 24_000 * MB  # its libraries alone take several thousand
GROWTH = 200  # [MB] of memory that is touched, beyond what sound images take

# What TIFF's library writes itself, and Pillow lets it: "ZIPDecode: Decoding error at scanline 24, incorrect data."
OF_TIFF = re.compile(r"[\w.]+: .*")

WATCHED = f"""
import json, os, resource, sys
sys.path.insert(0, {str(ROOT)!r})
STARTS = ("subprocess.Popen", "os.system", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.spawn")
started = []
def watch():
    sys.addaudithook(lambda event, arguments: started.append(f"{{event}} {{arguments}}") if event in STARTS else None)
def confine(room):
    with open("/proc/self/statm") as file:
        most = int(file.read().split()[0]) * resource.getpagesize() + int(room)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
def peak():  # [MB]; ru_maxrss of getrusage would count what the parent had when it began this process
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) // 1024
"""
"""Before the code of a process: programs that it starts are noted, its address space is limited."""

READ = (
    WATCHED
    + """
from sccam.data.images import image_size, read_image
from sccam.errors import ImageError
folder, sound, room = sys.argv[1:]
read_image(sound)
before = peak()
watch()
confine(room)
for name in sorted(os.listdir(folder)):
    try:
        shape = read_image(f"{folder}/{name}").shape
        print(json.dumps({"name": name, "shape": shape, "size": image_size(f"{folder}/{name}")}), flush=True)
    except ImageError as error:
        print(json.dumps({"name": name, "error": error.what, "where": error.where}), flush=True)
    except Exception as error:
        print(json.dumps({"name": name, "raised": repr(error)}), flush=True)
print(json.dumps({"peak": peak(), "before": before, "started": started}))
"""
)

COMMAND = (
    WATCHED
    + """
from sccam import cli
facts, room, *arguments = sys.argv[1:]
sys.argv = ["sccam", *arguments]
watch()
confine(room)
try:
    cli.main()
finally:
    with open(facts, "w") as file:
        json.dump({"peak": peak(), "started": started}, file)
"""
)


@dataclass(frozen=True)
class Reading:
    """What became of a corpus in the reader.

    Attributes:
        records: by file name: shape and size, or error.
        facts: peak of memory before and after [MB], programs that were started.
        code: exit code of the process.
        told: its error stream.
    """

    folder: Path
    files: tuple[Broken, ...]
    records: dict[str, dict[str, Any]]
    facts: dict[str, Any]
    code: int
    told: str

    @property
    def readable(self) -> list[str]:
        """Names of files that give pixels."""
        return [name for name, record in self.records.items() if "shape" in record]

    @property
    def broken(self) -> list[str]:
        """Names of files, not of folders, that give none."""
        folders = {file.name for file in self.files if file.data is None}
        return [name for name, record in self.records.items() if "shape" not in record and name not in folders]


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=1_500, check=False, env=environment()
    )


def environment() -> dict[str, str]:
    """Two threads, whatever the machine has: each has address space of its own."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def read_all(files: Sequence[Broken], folder: Path, room: int) -> Reading:
    write(files, folder)
    sound = folder.parent / "sound.png"
    Image.fromarray(picture()).save(sound)
    done = child(READ, folder, sound, room)
    *records, facts = [json.loads(line) for line in done.stdout.splitlines()] or [{}]
    return Reading(
        folder, tuple(files), {record["name"]: record for record in records}, facts, done.returncode, done.stderr
    )


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Reading:
    """The corpus, and what the reader says of it."""
    return read_all(corpus(FILES), tmp_path_factory.mktemp("corpus") / "files", READ_ROOM)


def command(folder: Path, *arguments: object, room: int = INFER_ROOM) -> tuple[Any, dict[str, Any]]:
    """A command in a process of its own: (the process, its facts)."""
    facts = folder / "facts.json"
    facts.unlink(missing_ok=True)
    done = child(COMMAND, facts, room, *arguments)
    return done, json.loads(facts.read_text()) if facts.is_file() else {}


def noise(told: str) -> list[str]:
    """Lines of an error stream that a user should not see: not what runs the network, progress, nor `OF_TIFF`."""
    expected = re.compile(rf"{OF_TIFF.pattern}|\S+ by onnxruntime on cpu|\d+ images, .*|\d+ views an image: .*")
    return [line for line in told.splitlines() if not expected.fullmatch(line)]


def count(tally: Tally, done: subprocess.CompletedProcess[str]) -> None:
    """Whether a process crashed."""
    tally.crashed += done.returncode < 0 or "Traceback" in done.stderr


# The reader


def check_reading(reading: Reading, tally: Tally) -> None:
    """What holds for every file, and for the process that read them."""
    tally.injected += len(reading.files)
    tally.crashed += reading.code != 0
    assert reading.code == 0, reading.told
    for file in reading.files:
        record = reading.records[file.name]
        tally.crashed += "raised" in record
        if "shape" in record:
            height, width, channels = record["shape"]
            assert channels == 3 and 0 < height * width <= DEFAULT_MAX_PIXELS, record
            assert record["size"] == [height, width], record  # by the header alone
            assert not file.fate, record
        else:
            assert record.get("error") and record["where"] == str(reading.folder / file.name), record
    facts = reading.facts
    assert facts["started"] == [] and facts["peak"] - facts["before"] < GROWTH, facts
    assert noise(reading.told) == []
    assert all("MemoryError" not in record.get("error", "") for record in reading.records.values())
    tally.notes |= {
        "files": len(reading.files),
        "still decode": len(reading.readable),
        "largest memory [MB]": facts["peak"],
        "growth [MB]": facts["peak"] - facts["before"],
    }


@pytest.mark.fault(1, 3, 4)
@pytest.mark.timeout(1_800)
def test_every_broken_file_gives_pixels_or_an_image_error_and_starts_no_program(broken, tally, full):
    check_reading(broken, tally)
    assert {file.kind for file in broken.files} == set(kinds())
    tally.survived += len(broken.files)
    tally.notes |= {f"files of {kind}": n for kind, n in Counter(file.kind for file in broken.files).items()}


@pytest.mark.fault(3)
@pytest.mark.timeout(1_800)
def test_a_bomb_is_refused_for_its_size_before_room_is_made_for_it(broken, tally, full, tmp_path):
    """In less room than its pixels need; and where there is room, for its size."""
    bombs = corpus(BOMBS, ("giant", "zero_size", "wrong_length", "packed_text", "pixels_changed", "endless"))
    tight = read_all(bombs, tmp_path / "bombs", BOMB_ROOM)
    check_reading(tight, tally)
    assert len(tight.readable) > BOMBS // 10  # those that only look like bombs
    reasons = {file.name: broken.records[file.name]["error"] for file in broken.files if file.fate == "bomb"}
    assert reasons
    for name, reason in reasons.items():
        assert reason.startswith("too large") or ("apng" in name and reason.startswith("not a picture")), (name, reason)
    tally.survived += len(bombs)


# A folder through `sccam infer`


@pytest.mark.fault(1, 3, 4)
@pytest.mark.promise("each")
@pytest.mark.timeout(1_800)
def test_good_images_among_broken_ones_get_the_masks_that_they_get_alone(broken, model, tally, full, tmp_path):  # noqa: F811
    write_good(tmp_path / "good")
    mix(broken, tmp_path / "both")
    alone, before = command(tmp_path, "infer", model, tmp_path / "good", "-o", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    tally.injected += len(broken.files)
    mixed, facts = command(tmp_path, "infer", model, tmp_path / "both", "-o", tmp_path / "mixed")
    count(tally, mixed)
    assert mixed.returncode == 5, mixed.stderr
    assert facts["started"] == [] and facts["peak"] - before["peak"] < GROWTH, (before, facts)
    assert noise(mixed.stderr) == [], mixed.stderr

    masks = folder_of(tmp_path / "alone/masks")
    assert len(masks) == GOOD
    for name, content in masks.items():
        path = tmp_path / "mixed/masks" / name
        tally.lost += not path.is_file() or path.read_bytes() != content
    assert tally.lost == 0

    errors = {Path(line["path"]).name: line for line in lines(tmp_path / "mixed/errors.jsonl")}
    done = {Path(line["path"]).name: line for line in lines(tmp_path / "mixed/predictions.jsonl")}
    assert errors.keys() == set(broken.broken) and done.keys() == {*broken.readable, *masks}
    for name, line in errors.items():
        assert (line["class"], line["reason"]) == ("ImageError", broken.records[name]["error"])
    for name in broken.readable:
        mask = read_mask(tmp_path / "mixed" / done[name]["mask"])
        assert list(mask.shape) == broken.records[name]["size"]
    summary = json.loads((tmp_path / "mixed/summary.json").read_text())
    assert (summary["done"], summary["failed"]) == (len(done), len(errors))
    assert len(list((tmp_path / "mixed/masks").rglob("*"))) == len(done)

    listed = tmp_path / "both/list.txt"  # which names folders, too; a walk looks into them
    listed.write_text("".join(f"{name}\n" for name in [*broken.records, *masks]))
    by_list, _ = command(tmp_path, "infer", model, listed, "-o", tmp_path / "by_list")
    count(tally, by_list)
    assert by_list.returncode == 5 and noise(by_list.stderr) == [], by_list.stderr
    assert folder_of(tmp_path / "by_list/masks") == folder_of(tmp_path / "mixed/masks")
    named = {Path(line["path"]).name for line in lines(tmp_path / "by_list/errors.jsonl")}
    assert named == broken.records.keys() - set(broken.readable)
    tally.survived += len(broken.files)
    tally.notes |= {"good images": GOOD, "errors": len(errors), "still decode": len(broken.readable),
                    "largest memory [MB]": facts["peak"], "of the good images alone [MB]": before["peak"]}  # fmt: skip


def folder_of(path: Path) -> dict[str, bytes]:
    """The files below a folder, by name."""
    return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def write_good(folder: Path) -> list[str]:
    """Good images of several sizes; their names, which lie between those of the broken ones."""
    folder.mkdir(exist_ok=True)
    names = [f"{n * (FILES // GOOD):05}-good.png" for n in range(GOOD)]
    for n, name in enumerate(names):
        pixels = picture(40 + 9 * (n % 7), 24 + 5 * (n % 5))
        pixels[: 1 + n % 11] = n
        Image.fromarray(pixels).save(folder / name)
    return names


def mix(broken: Reading, folder: Path) -> list[str]:
    """Good images and the whole corpus in one folder; the names of the good ones."""
    write(broken.files, folder)
    return write_good(folder)


# A folder to train on


@pytest.mark.fault(1, 3, 4)
@pytest.mark.promise("told")
@pytest.mark.timeout(1_800)
def test_training_names_every_broken_file_before_it_begins(broken, tally, full, tmp_path):
    root = tmp_path / "photos"
    good = mix(broken, root / "images")
    files = [name for name in [*broken.records, *good] if (root / "images" / name).is_file()]
    write_tags(root, files)
    tally.injected += len(broken.files)
    before = sorted(root.rglob("*"))

    checked, facts = command(tmp_path, "data", "check", root, "--json", "--workers", 1, room=TORCH_ROOM)
    count(tally, checked)
    assert checked.returncode == 3 and noise(checked.stderr) == [], checked.stderr
    found = json.loads(checked.stdout)
    named = [line.partition(":") for line in found["faults"]["images that cannot be read"]]
    assert {id: what.strip() for id, _, what in named} == {
        name.rpartition(".")[0]: broken.records[name]["error"] for name in broken.broken
    }
    assert list(found["faults"]) == ["images that cannot be read"] and not found["fit"]

    arguments = ("train", root, "-c", "demo", "--out", tmp_path / "run", "--set", "run.workers=2")
    trained, _ = command(tmp_path, *arguments, room=TORCH_ROOM)
    count(tally, trained)
    assert trained.returncode == 3, trained.stderr
    assert f"{len(broken.broken)} of {len(files)} images cannot be read" in trained.stderr
    listed = [name for name in broken.broken if f"images/{name}: {broken.records[name]['error']}" in trained.stderr]
    assert len(listed) == MOST_LISTED and "nothing was trained" in trained.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"run.json", "config.toml", "lock", "metrics.jsonl"}
    assert json.loads((tmp_path / "run/run.json").read_text())["finished"] == {}
    assert sorted(root.rglob("*")) == before

    for name in broken.broken:
        (root / "images" / name).unlink()
    write_tags(root, [name for name in files if name not in broken.broken])
    repaired, without = command(tmp_path, "data", "check", root, "--workers", 1, room=TORCH_ROOM)
    assert repaired.returncode == 0 and "no fault" in repaired.stdout, repaired.stdout
    assert facts["started"] == without["started"]  # torch asks the system for its libraries
    tally.survived += len(broken.files)
    tally.notes |= {"named by data check": len(named), "largest memory [MB]": facts["peak"]}


def write_tags(root: Path, names: Sequence[str]) -> None:
    rows = [f"{name.rpartition('.')[0]},{'cat dog'.split()[n % 2]}" for n, name in enumerate(names)]
    (root / "tags.csv").write_text("image,tags\n" + "\n".join(rows) + "\n")


# Decoders that raise


RAISED: dict[str, Callable[[], Exception]] = {
    "SyntaxError": lambda: SyntaxError("broken PNG file"),
    "ValueError": lambda: ValueError("not enough image data"),
    "MemoryError": MemoryError,
    "error": lambda: struct.error("unpack requires a buffer of 4 bytes"),
    "OSError": lambda: OSError(-2, "decoder error"),
    "RecursionError": lambda: RecursionError("maximum recursion depth exceeded"),
    "OverflowError": lambda: OverflowError("cannot fit 'int' into an index-sized integer"),
    "zlib": lambda: zlib.error("Error -3 while decompressing data"),
    "EOFError": EOFError,
    "IndexError": lambda: IndexError("index out of range"),
    "KeyError": lambda: KeyError(273),
    "TypeError": lambda: TypeError("an integer is required"),
    "AttributeError": lambda: AttributeError("'NoneType' object has no attribute 'read'"),
    "AssertionError": AssertionError,
    "ZeroDivisionError": lambda: ZeroDivisionError("integer modulo by zero"),
    "NotImplementedError": lambda: NotImplementedError("compression 99"),
    "UnicodeDecodeError": lambda: UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    "DecompressionBombError": lambda: Image.DecompressionBombError("Image size (3600000000 pixels) exceeds limit"),
    "StopIteration": StopIteration,
    "SystemError": lambda: SystemError("tile cannot extend outside image"),
    "BufferError": lambda: BufferError("memory is exported"),
    "TimeoutError": lambda: TimeoutError("timed out"),
    "ImportError": lambda: ImportError("no codec"),
    "FileNotFoundError": lambda: FileNotFoundError(2, "No such file or directory"),
}
"""Name -> what a decoder raises; the first eight are known to come from damaged files."""

STAGES = ("open", "load", "exif")
NOT_RECOGNISED = (
    "SyntaxError",
    "IndexError",
    "TypeError",
    "KeyError",
    "EOFError",
    "error",
)  # by Pillow: another format
TOLD = {
    "DecompressionBombError": "too large",
    "FileNotFoundError": "missing",
    "zlib": "Error -3",
    "SccamError": "of ours",
}


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that raise what the name of their file says: FORMAT-STAGE-ERROR.jpg."""

    def watched(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(image: Any, *arguments: Any) -> Any:
            _, _, asked = Path(image.fp.name).stem.partition("-") if image.fp is not None else ("", "", "")
            if asked.startswith(f"{stage}-"):
                raise RAISED[asked.partition("-")[2]]()
            return function(image, *arguments)

        return call

    for name in FORMATS:
        kind: Any = Image.OPEN[name][0]
        kind = JpegImagePlugin.JpegImageFile if name == "JPEG" else kind  # a function chooses between it and MPO
        monkeypatch.setattr(kind, "_open", watched("open", kind._open))
        monkeypatch.setattr(kind, "load", watched("load", kind.load))
    monkeypatch.setattr(Image.Image, "getexif", watched("exif", Image.Image.getexif))


@pytest.mark.fault(2)
@pytest.mark.promise("each", "told")
def test_whatever_a_decoder_raises_is_a_line_of_its_image(raising, model, sccam: Cli, tally, full, tmp_path):  # noqa: F811
    asked = list(RAISED)[: None if full else 8]
    rgb = Image.fromarray(picture())
    images = tmp_path / "photos/images"
    images.mkdir(parents=True)
    files = [f"{name}-{stage}-{error}" for name in FORMATS for stage in STAGES for error in asked]
    for file in [*files, *(f"{name}-good" for name in FORMATS)]:
        options = {"lossless": True} if file.startswith("WEBP") else {}
        (images / f"{file}.jpg").write_bytes(encoded(rgb, file.partition("-")[0], **options))
    tally.injected += len(files)

    code, _, told = sccam("infer", model, images, "-o", tmp_path / "out")
    tally.crashed += "Traceback" in told
    assert code == 5 and noise(told) == [], told
    errors = {line["name"]: line for line in lines(tmp_path / "out/errors.jsonl")}
    masks = {path.stem: path.read_bytes() for path in (tmp_path / "out/masks").iterdir()}
    # Pixels beside EXIF that cannot be read are shown as stored; but a TIFF's size and EXIF are of one directory.
    fatal = [file for file in files if "-exif-" not in file or file.startswith("TIFF")]
    assert errors.keys() == set(fatal) and masks.keys() == {*files} - {*fatal} | {f"{name}-good" for name in FORMATS}
    for file in files:
        name, stage, error = file.split("-")
        if file not in fatal:
            tally.lost += masks[file] != masks[f"{name}-good"]
            continue
        expected = "not a picture" if stage == "open" and error in NOT_RECOGNISED else TOLD.get(error, error)
        assert errors[file]["class"] == "ImageError" and expected in errors[file]["reason"], errors[file]
    assert tally.lost == 0

    write_tags(tmp_path / "photos", sorted(path.name for path in images.iterdir()))
    code, out, told = sccam("data", "check", tmp_path / "photos", "--json", "--workers", 1)
    assert code == 3 and told == ""
    named = json.loads(out)["faults"]["images that cannot be read"]
    assert sorted(line.partition(":")[0] for line in named) == sorted(fatal)
    tally.survived += len(files)


# Sizes


SIZES = [(1, 1), (1, 5_000), (5_000, 1), (2, 3), (17, 31), (127, 257)]
MORE_SIZES = [(1, 2), (3, 1), (7, 7), (8, 8), (9, 16), (31, 32), (33, 65), (61, 1_009), (1_021, 13), (509, 521)]
OPTIONS: list[tuple[object, ...]] = [
    (),
    ("--tile", 256, "--scale", 0.5, "--scale", 1.5, "--flip"),
    ("--size", 32, "--crf", "psa", "--save", "overlay", "--save", "scores", "--save", "coco", "--save", "yolo"),
]
MORE_OPTIONS: list[tuple[object, ...]] = [
    ("--tile", 512), ("--size", 100), ("--scale", 0.1), ("--scale", 8, "--tile", 1_024), ("--flip",), ("--crf", "irn"),
    ("--save", "labelstudio", "--save", "voc"), ("--batch", 5, "--threads", 3),
]  # fmt: skip
TILES: list[tuple[object, ...]] = [(), ("--tile", 512), ("--tile", 1_024), ("--size", 640), ("--tile", 2_048, "--flip")]
LOSSLESS: dict[str, dict[str, Any]] = {"PNG": {}, "BMP": {}, "TIFF": {}, "GIF": {}, "WEBP": {"lossless": True}}


@pytest.mark.fault(7)
@pytest.mark.promise("each")
@pytest.mark.timeout(1_800)
def test_every_size_gives_a_mask_of_its_size_with_every_option(model, tally, full, tmp_path):  # noqa: F811
    images = tmp_path / "images"
    images.mkdir()
    names: dict[str, tuple[int, int]] = {}
    for height, width in SIZES + (MORE_SIZES if full else []):
        grey = Image.fromarray(picture(width, height)[..., 0])
        for name, options in {**LOSSLESS, "JPEG": {}}.items():
            names[f"{height}x{width}-{name}"] = (height, width)
            (images / f"{height}x{width}-{name}.jpg").write_bytes(encoded(grey, name, **options))
    most = 0
    options_of = OPTIONS + (MORE_OPTIONS if full else [])
    for n, arguments in enumerate(options_of):
        tally.injected += len(names)
        out = tmp_path / f"{n}"
        done, facts = command(tmp_path, "infer", model, images, "-o", out, *arguments)
        count(tally, done)
        assert done.returncode == 0 and noise(done.stderr) == [], done.stderr
        most = max(most, facts["peak"])
        assert {line["name"] for line in lines(out / "predictions.jsonl")} == names.keys()
        for name, size in names.items():
            tally.lost += read_mask(out / f"masks/{name}.png").shape != size
            if not name.endswith("JPEG"):
                same = (out / f"masks/{name.partition('-')[0]}-PNG.png").read_bytes()
                tally.lost += (out / f"masks/{name}.png").read_bytes() != same
        assert tally.lost == 0, arguments
        tally.survived += len(names)
    tally.notes |= {"sizes": len(names) // 6, "sets of options": len(options_of), "largest memory [MB]": most}


@pytest.mark.fault(7)
@pytest.mark.timeout(1_800)
def test_large_images_go_through_in_tiles_and_too_large_ones_are_named(model, tally, full, tmp_path):  # noqa: F811
    height, width = (7_000, 9_000) if full else (1_500, 3_000)  # the smaller one is in tiles by itself, too
    row = np.linspace(0, 255, width).astype(np.uint8)
    images = tmp_path / "images"
    images.mkdir()
    rows = np.broadcast_to(row, (height, width))
    suffixes = ("png", "tif", "jpg") if full else ("png", "jpg")
    for suffix in suffixes:
        Image.fromarray(rows).save(images / f"large.{suffix}")
    (images / "too_large.png").write_bytes(encoded(Image.new("1", (12_000, 9_000)), "PNG"))
    for n, arguments in enumerate(TILES if full else TILES[:2]):
        tally.injected += 1 + len(suffixes)
        out = tmp_path / f"{n}"
        done, facts = command(tmp_path, "infer", model, images, "-o", out, *arguments, room=4 * INFER_ROOM)
        count(tally, done)
        assert done.returncode == 5 and noise(done.stderr) == [], done.stderr
        (error,) = lines(out / "errors.jsonl")
        assert error["name"] == "too_large" and error["reason"].startswith("too large: 12000 x 9000 px"), error
        for suffix in suffixes:
            mask = read_mask(out / f"masks/large.{suffix}.png")
            assert mask.shape == (height, width)
            assert [mask[0, int(share * width)] for share in (0.1, 0.3, 0.5, 0.7, 0.9)] == [1, 1, 0, 2, 2]
            assert (mask[: -height // 64] == mask[0]).all()  # no seam; the last cells see the padding
        tally.survived += 1 + len(suffixes)
        tally.notes[f"largest memory, {' '.join(map(str, arguments)) or 'as it is'} [MB]"] = facts["peak"]


# Orientations and modes


TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""EXIF orientation -> how an upright picture lies in its file."""

BACK = {**{n: n for n in TURNED}, 6: 8, 8: 6}  # turned so, it stands upright again


@dataclass(frozen=True)
class Odd:
    """A file, and the RGB that it shows."""

    name: str
    data: bytes
    shown: np.ndarray


def stored_modes(
    pixels: np.ndarray,
) -> Iterator[tuple[str, np.ndarray, Callable[[np.ndarray], Image.Image], np.ndarray]]:
    """(name, values, values -> image, what it shows) of every mode, without loss.

    Args:
        pixels: u8 [H W 3].
    """
    grey = pixels[..., 1]
    clear = np.indices(grey.shape).sum(axis=0) // 9 % 2 == 0
    alpha = np.where(clear, 0, 255).astype(np.uint8)
    order = np.random.default_rng(1).permutation(64)  # index n has brightness 4 n in no palette
    index, colours = order[grey // 4].astype(np.uint8), np.empty((64, 3), np.uint8)
    colours[order] = np.arange(0, 256, 4)[:, None] + [3, 0, 1]
    three = np.repeat(grey[..., None], 3, axis=2)

    def palette(values: np.ndarray, clear: int | None = None) -> Image.Image:
        image = Image.fromarray(values)
        image.putpalette(colours.tobytes())
        if clear is not None:
            image.info["transparency"] = clear
        return image

    def white(shown: np.ndarray) -> np.ndarray:
        return np.where(clear[..., None], 255, shown).astype(np.uint8)

    yield "RGB", pixels, Image.fromarray, pixels
    yield "L", grey, Image.fromarray, three
    yield (
        "1",
        np.where(grey > 120, 255, 0).astype(np.uint8),
        lambda v: Image.fromarray(v).convert("1"),
        np.where(three > 120, 255, 0).astype(np.uint8),
    )
    yield "P", index, palette, colours[index]
    yield "PT", index, lambda v: palette(v, 5), np.where((index == 5)[..., None], 255, colours[index])
    yield "I16", grey.astype(np.uint16) * 257, Image.fromarray, three
    yield (
        "LA",
        np.stack([grey, alpha], axis=2),
        lambda v: Image.merge("LA", [Image.fromarray(np.ascontiguousarray(v[..., n])) for n in (0, 1)]),
        white(three),
    )
    yield "RGBA", np.dstack([pixels, alpha]), Image.fromarray, white(pixels)
    yield "CMYK", np.dstack([255 - pixels, 0 * grey]), lambda v: Image.fromarray(v, "CMYK"), pixels


SAVED: dict[str, tuple[tuple[str, ...], str, dict[str, Any]]] = {
    "plain.png": (("RGB", "L", "1", "P", "PT", "I16", "LA", "RGBA"), "PNG", {}),
    "raw.tif": (("RGB", "L", "1", "P", "I16", "LA", "RGBA", "CMYK"), "TIFF", {}),
    "lzw.tif": (("RGB", "L", "1", "P", "I16", "LA", "RGBA", "CMYK"), "TIFF", {"compression": "tiff_lzw"}),
    "deflate.tif": (("RGB", "L", "P", "I16", "RGBA", "CMYK"), "TIFF", {"compression": "tiff_deflate"}),
    "lossless.webp": (("RGB", "RGBA"), "WEBP", {"lossless": True, "exact": True}),
}
"""What a file ends with -> its modes, format, and options; all can be turned by EXIF, and none loses anything."""


def turned_pictures(pixels: np.ndarray) -> Iterator[Odd]:
    """Every mode in every format, as each of the eight orientations stores it."""
    for mode, values, image_of, shown in stored_modes(pixels):
        for end, (modes, format, options) in SAVED.items():
            for orientation, turn in TURNED.items() if mode in modes else ():
                image = image_of(np.ascontiguousarray(turn(values)))
                data = encoded(image, format, exif=exif(orientation), **options)
                yield Odd(f"{mode}-{orientation}-{end}", data, shown)
        for orientation, turn in TURNED.items() if mode in ("RGB", "L", "CMYK") else ():
            image = image_of(np.ascontiguousarray(turn(values)))
            data = encoded(image, "JPEG", exif=exif(orientation), quality=90)
            lost = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            yield Odd(f"{mode}-{orientation}-jpeg.jpg", data, TURNED[BACK[orientation]](lost))


def moving_pictures(pixels: np.ndarray) -> Iterator[Odd]:
    """Files of several frames, and formats that hold no EXIF."""
    three = np.repeat(pixels[..., 1:2], 3, axis=2)
    colour, grey = [[Image.fromarray(p), Image.fromarray(255 - p)] for p in (pixels, three[..., 0])]
    more: dict[str, Any] = {"save_all": True}
    yield Odd("moving-gif.gif", encoded(grey[0], "GIF", append_images=grey[1:] * 2, **more), three)
    yield Odd("still-gif.gif", encoded(grey[0], "GIF"), three)
    yield Odd("moving-png.png", encoded(colour[0], "PNG", append_images=colour[1:] * 2, **more), pixels)
    lossless = {"lossless": True, **more}
    yield Odd("moving-webp.webp", encoded(colour[0], "WEBP", append_images=colour[1:] * 2, **lossless), pixels)
    for compression in ("raw", "tiff_lzw", "tiff_deflate"):
        data = encoded(colour[0], "TIFF", append_images=colour[1:], compression=compression, **more)
        yield Odd(f"pages-{compression}.tif", data, pixels)
    stereo = encoded(colour[0], "MPO", append_images=colour[1:], quality=90, **more)
    yield Odd("stereo.mpo", stereo, np.asarray(Image.open(io.BytesIO(encoded(colour[0], "JPEG", quality=90)))))
    for mode, values, image_of, shown in stored_modes(pixels):
        if mode in ("RGB", "L", "P", "1"):
            yield Odd(f"{mode}-bmp.bmp", encoded(image_of(values), "BMP"), shown)
    yield Odd("interlaced-png.png", interlaced(pixels), pixels)
    yield Odd("a_tiff.jpg", encoded(colour[0], "TIFF"), pixels)
    yield Odd("a_webp.png", encoded(colour[0], "WEBP", lossless=True), pixels)
    yield Odd("a_png.tiff", encoded(colour[0], "PNG"), pixels)


def check_odd(files: Sequence[Odd], model: Path, tally: Tally, folder: Path) -> None:  # noqa: F811
    """The mask of each file, byte for byte that of a plain RGB file of what it shows."""
    for file in files:
        for where, data in (("odd", file.data), ("plain", encoded(Image.fromarray(file.shown), "PNG"))):
            (folder / where).mkdir(exist_ok=True)
            name = file.name if where == "odd" else f"{Path(file.name).stem}.png"
            (folder / where / name).write_bytes(data)
    tally.injected += len(files)
    for where in ("odd", "plain"):
        done, facts = command(folder, "infer", model, folder / where, "-o", folder / f"{where}_masks")
        count(tally, done)
        assert done.returncode == 0 and noise(done.stderr) == [], done.stderr
    wrong = []
    for file in files:
        plain, odd = (folder / f"{where}_masks/masks/{Path(file.name).stem}.png" for where in ("plain", "odd"))
        assert set(np.unique(read_mask(plain))) >= {1, 2}, file.name
        wrong += [file.name] if not odd.is_file() or plain.read_bytes() != odd.read_bytes() else []
    tally.lost += len(wrong)
    assert wrong == []
    tally.survived += len(files)
    tally.notes |= {"files": len(files), "largest memory [MB]": facts["peak"]}


PICTURES = [(60, 44), (33, 71), (129, 65)] if FULL else [(60, 44)]


@pytest.mark.fault(5, 6)
def test_every_orientation_of_every_mode_has_the_mask_of_the_upright_picture(model, tally, full, tmp_path):  # noqa: F811
    assert all(np.array_equal(turn(UPRIGHT), STORED[n]) for n, turn in TURNED.items())
    for width, height in PICTURES:
        folder = tmp_path / f"{width}x{height}"
        folder.mkdir()
        check_odd(list(turned_pictures(picture(width, height))), model, tally, folder)


@pytest.mark.fault(6)
def test_animations_and_odd_formats_have_the_mask_of_their_first_picture(model, tally, full, tmp_path):  # noqa: F811
    for width, height in PICTURES:
        folder = tmp_path / f"{width}x{height}"
        folder.mkdir()
        check_odd(list(moving_pictures(picture(width, height))), model, tally, folder)
