"""Tag files and masks with anything in them, and classes that are hardly there: what was written, or which line."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from sccam.data import read_folder
from sccam.data.masks import read_mask, voc_palette
from sccam.errors import DataError, MaskError, NumericError
from sccam.runtime import kmeans_blas, network_torch
from sccam.stages import cluster
from sccam.stages.cluster import ClusterConfig, cluster_subcategories
from sccam.structures import Dataset, LabelSet
from sccam.training import prototypes
from tests.conftest import Cli
from tests.faults.conftest import FULL, Tally


def examples(count: int) -> settings:
    """So many examples, the same ones each time; the first that fails is told as it is."""
    every = list(HealthCheck)
    return settings(max_examples=count, deadline=None, suppress_health_check=every, phases=[Phase.generate])


# Tag files

FILES = (
    "a.png", "b c.png", "sub/d.png", "é.png", "=e+1.png", "f.JPG", "g.jpg", "g.png", 'q"r.png', "s,t;u.png",
    "line\nbreak.png", "h.png.jpg", "h.png", "all.png",
)  # fmt: skip
TAGS = ("cat", "dog", "red fox", "red", "fox", "café", "=1+1", "@SUM(1+9)", "-2", "+3", "long" * 60, "日本", "e\u0301")
IN_JSON_ONLY = ("=cmd|' /C calc'!A0", "a,b", "c;d", "|", '"')


@dataclass
class TagFile:
    """A tag file, what it says, and its first fault: the line, and what the error speaks of."""

    name: str
    data: bytes
    tags: dict[str, set[str]]
    line: int = 0  # of the fault; 0: none
    says: str = ""
    classes: str = ""  # classes.txt, where there is one


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images that nobody opens."""
    root = tmp_path_factory.mktemp("tagged")
    for name in FILES:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def forms(name: str) -> list[str]:
    """The ways in which a line may name an image; two of one stem keep their suffix."""
    stem = name.rpartition(".")[0]
    shown = [name, f"images/{name}", f"./{name}", f"  {name} ", name.replace("/", "\\")]
    return shown if stem in ("g", "h.png") else [stem, *shown]


def in_one_cell(tags: Sequence[str], mark: str) -> str:
    """A cell, separated by spaces only where they cannot be taken for a part of a name."""
    return (";" if any(" " in tag for tag in tags) or " ".join(tags) in TAGS else mark).join(tags)


def some_tags(known: Sequence[str]) -> st.SearchStrategy[list[str]]:
    """Tags of an image; two of them together read like a third one."""
    return st.one_of(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True), st.just(["red", "fox"]))


@st.composite
def csv_files(draw: st.DrawFn, fault: str = "") -> TagFile:
    """A CSV file as some tool writes it, with a fault of `CSV_FAULTS` or none."""
    delimiter, end = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    quoting = csv.QUOTE_ALL if end == "\r" else quoting  # else the writer leaves a line feed in a name bare
    listed = draw(st.lists(st.sampled_from(FILES[:-1]), min_size=2, max_size=8, unique=True))
    classes = fault in OF_A_LIST or (fault not in OF_NO_LIST and draw(st.booleans()))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)  # type: ignore[arg-type]
    writer.writerow(draw(st.sampled_from([["image", "tags"], ["Image", " TAGS "], ["IMAGE", "tags"]])))
    said: dict[str, set[str]] = {}

    def write(name: str, tags: Sequence[str]) -> None:
        cell = in_one_cell(tags, draw(st.sampled_from([" ", ";", "|", ", ", "  "])))
        if len(tags) == 1 and " " in cell:  # one name with spaces: it stands alone, or before a mark
            cell = draw(st.sampled_from([cell, f"{cell};", f" {cell}"]))
        writer.writerow([draw(st.sampled_from(forms(name))), cell])
        said[name] = set(tags)

    write("all.png", TAGS)
    at = draw(st.integers(0, len(listed) - 1))
    line, says = 0, ""
    for n, name in enumerate(listed):
        if draw(st.integers(0, 9)) == 0:
            text.write(draw(st.sampled_from(["", delimiter])) + end)
        tags = draw(some_tags(TAGS))
        if fault and n == at:
            line = len(re.findall("\r\n|\r|\n", text.getvalue())) + 1
            says, *fields = CSV_FAULTS[fault]
            quoted = '"' + name.replace('"', '""') + '"'
            text.write(delimiter.join(field.replace("IMAGE", quoted) for field in fields) + end)
        else:
            write(name, tags)
    data = text.getvalue().encode()
    if says == "not UTF-8":  # told of by the line of the byte, not by that of the row
        line = data[: data.index(UNDECODABLE.encode())].count(b"\n") + 1
        data = data.replace(UNDECODABLE.encode(), b"\xfc")
    if draw(st.booleans()) and data.endswith(end.encode()):
        data = data.removesuffix(end.encode())
    if draw(st.booleans()):
        data = "\ufeff".encode() + data
    return TagFile("tags.csv", data, said, line, says, "".join(f"{tag}\n" for tag in TAGS) if classes else "")


UNDECODABLE = "\ue000"  # is written as a byte that is no UTF-8
CSV_FAULTS = {
    "unknown tag": ("unknown tag", "IMAGE", "dgo"),
    "formula": ("unknown tag", "IMAGE", "=cmd|' /C calc'!A0"),
    "forgotten tag": ("has no tags", "IMAGE", ""),
    "only marks": ("has no tags", "IMAGE", '" ; | "'),
    "no such image": ("no image", "zz.png", "cat"),
    "no image": ("no image", "", "cat"),
    "zero byte": ("no image", "a\0.png", "cat"),
    "hyperlink": ("no image", '"=HYPERLINK(""http://x"")"', "cat"),
    "long name": ("no image", "n" * 100_000, "cat"),
    "longer than a field": ("not valid CSV", "IMAGE", "t" * 140_000),
    "twice": ("is listed twice", "all.png", "cat"),
    "one field": ("1 fields, expected 2", "IMAGE"),
    "three fields": ("3 fields, expected 2", "IMAGE", "cat", "dog"),
    "open quote": ("not valid CSV", "IMAGE", '"cat'),
    "text behind a quote": ("not valid CSV", "IMAGE", '"cat" dog'),
    "not UTF-8": ("not UTF-8", "IMAGE", f"h{UNDECODABLE}nd"),
    "background": ("background is not a class", "IMAGE", "background"),
    "colon": ("a character that labelmap.txt cannot hold", "IMAGE", "cat:big"),
    "escape": ("a character that labelmap.txt cannot hold", "IMAGE", "\x1b[31mred"),
    "zero byte in a tag": ("a character that labelmap.txt cannot hold", "IMAGE", "c\0t"),
}
"""Name -> what the error says, and the fields of a wrong row, where IMAGE stands for the name of an image."""

OF_A_LIST = ("unknown tag", "formula")  # with classes.txt only
OF_NO_LIST = ("background", "colon", "escape", "zero byte in a tag")  # without it only


@st.composite
def json_files(draw: st.DrawFn, fault: str = "") -> TagFile:
    """A JSON file as some tool writes it, with a fault of `JSON_FAULTS` or none."""
    vocabulary = (*TAGS, *IN_JSON_ONLY)
    listed = ["all.png", *draw(st.lists(st.sampled_from(FILES[:-1]), min_size=2, max_size=8, unique=True))]
    classes, ascii = fault == "unknown tag" or draw(st.booleans()), draw(st.booleans())
    between, end = draw(st.sampled_from([(",\n", "\n"), (", ", ""), (",\r\n  ", "\r\n"), (" ,\n\n", "")]))
    at = draw(st.integers(1, len(listed) - 1))
    said: dict[str, set[str]] = {}
    text, line, says = "{" + end, 0, ""
    for n, name in enumerate(listed):
        tags = list(vocabulary) if n == 0 else draw(some_tags(vocabulary))
        key = json.dumps(draw(st.sampled_from(forms(name))), ensure_ascii=ascii)
        value = json.dumps(tags, ensure_ascii=ascii)
        if n == at and fault:
            line = text.count("\n") + 1
            says, value, *other = JSON_FAULTS[fault]
            key = other[0] if other else key
        else:
            said[name] = set(tags)
        text += f"{key}{draw(st.sampled_from([':', ' : ']))}{value}" + (between if n + 1 < len(listed) else end)
    data = (text + "}" + draw(st.sampled_from(["", "\n", " \r\n"]))).encode("utf-8", "surrogatepass")
    if says == "not UTF-8":
        data = data.replace(UNDECODABLE.encode(), b"\xfc")
    if draw(st.booleans()):
        data = "\ufeff".encode() + data
    listed_classes = "".join(f"{tag}\n" for tag in vocabulary) if classes else ""
    return TagFile("tags.json", data, said, line, says, listed_classes)


JSON_FAULTS = {
    "no such image": ("no image", '["cat"]', '"zz"'),
    "zero byte": ("no image", '["cat"]', '"a\\u0000.png"'),
    "half a character": ("no image", '["cat"]', '"\\ud800"'),
    "twice": ("is listed twice", '["cat"]', '"all"'),
    "empty": ("has no tags", "[]"),
    "blank": ("has no tags", '["", "  "]'),
    "unknown tag": ("unknown tag", '["cat", "dgo"]'),
    "half a character in a tag": ("unknown tag|labelmap.txt cannot hold", '["\\udfff"]'),
    "text": ("are not a list", '"cat"'),
    "table": ("are not a list", "{}"),
    "table of tags": ("are not a list", '{"cat": 1}'),
    "nothing": ("are not a list", "null"),
    "number": ("are not a list", "1e999"),
    "long number": ("are not a list", "9" * 5000),
    "list of lists": ("are not a list", '[["cat"]]'),
    "number among tags": ("are not a list", '["cat", 1]'),
    "not a number": ("are not a list", "NaN"),
    "broken value": ("not valid JSON", '["cat" "dog"]'),
    "broken name": ("not valid JSON", '["cat"]', "'a'"),
    "a name without quotes": ("not valid JSON", '["cat"]', "a"),
    "control character": ("not valid JSON", '["c\x00t"]'),
    "not UTF-8": ("not UTF-8", f'["h{UNDECODABLE}nd"]'),
    "deep": ("nested too deeply", "[" * 100_000),
}
"""Name -> what the error says, the value and, where that is wrong, the name of a member."""

NO_LINE = ("nested too deeply",)  # Python tells no place


def tags_of(dataset: Dataset) -> dict[str, set[str]]:
    """Name below images/ -> tags, of what was read."""
    train, base = dataset.train, dataset.root / "images"
    rows = zip(train.paths, train.labels.present, strict=True)
    return {path.relative_to(base).as_posix(): {train.classes[c] for c in np.flatnonzero(row)} for path, row in rows}


@contextmanager
def written(root: Path, file: TagFile) -> Iterator[Path]:
    """The folder with this tag file in it."""
    (root / file.name).write_bytes(file.data)
    if file.classes:
        (root / "classes.txt").write_text(file.classes, encoding="utf-8")
    try:
        yield root
    finally:
        for name in ("tags.csv", "tags.json", "classes.txt"):
            (root / name).unlink(missing_ok=True)


KINDS = [(csv_files, fault) for fault in ("", *CSV_FAULTS)] + [(json_files, fault) for fault in ("", *JSON_FAULTS)]


@pytest.mark.fault(9)
@pytest.mark.promise("told")
def test_a_tag_file_of_any_tool_reads_as_it_was_written_or_its_wrong_line_is_named(images, tally: Tally, full):
    def check(file: TagFile) -> None:
        tally.injected += 1
        with written(images, file) as root:
            try:
                found = tags_of(read_folder(root))
            except DataError as error:
                assert file.line, f"{error}\nwas said of a file without a fault: {file}"
                assert re.search(file.says, error.what), (error.what, file.says)
                place = str(root / file.name) + ("" if file.says in NO_LINE else f":{file.line}")
                assert error.where == place, (error.where, place, error.what)
                assert len(str(error)) < 2_000
            else:
                tally.lost += found != file.tags
                assert not file.line and found == file.tags, (file, found)
        tally.survived += 1

    for files, fault in KINDS:
        count = (24 if full else 2) if fault else (220 if full else 15)
        examples(count)(given(files(fault))(check))()


def as_written(file: TagFile) -> dict[str, set[str]] | None:
    """Another reader's answer, of the plainest kind; None where it finds no table."""
    text = file.data.decode("utf-8-sig")
    known = {form.strip(): name for name in FILES for form in forms(name)}
    if file.name == "tags.json":
        pairs = json.loads(text, object_pairs_hook=list)
        return {known[name.strip()]: {tag.strip() for tag in tags if tag.strip()} for name, tags in pairs}
    delimiter = next((mark for mark in ",;\t" if mark in re.split("[\r\n]", text)[0]), ",")
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(map(str.strip, row))]
    found = {}
    for name, cell in rows[1:]:
        parts = (
            re.split("[;|,]", cell) if re.search("[;|,]", cell) else [cell] if cell.strip() in TAGS else cell.split()
        )
        found[known.get(name) or known[name.strip().replace("\\", "/")]] = {
            part.strip() for part in parts if part.strip()
        }
    return found


@st.composite
def damaged(draw: st.DrawFn) -> TagFile:
    """A sound tag file with bytes cut, changed, moved or put in."""
    file = draw(st.one_of(csv_files(), json_files()))
    data = bytearray(file.data)
    for _ in range(draw(st.integers(1, 3))):
        at, count = draw(st.integers(0, len(data))), draw(st.integers(1, 40))
        kind = draw(st.sampled_from(["cut", "put", "change", "again", "end"]))
        if kind == "cut":
            del data[at : at + count]
        elif kind == "put":
            data[at:at] = draw(
                st.sampled_from([b"\0", b'"', b"\n", b"\r", b",", b"\xff\xfe", b"\xe2\x80\xa8", b"{", b"="])
            )
        elif kind == "change" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "again":
            data[at:at] = data[at : at + count]
        else:
            del data[at:]
    file.data = bytes(data)
    return file


@pytest.mark.fault(9)
@pytest.mark.promise("told")
def test_a_damaged_tag_file_says_what_another_reader_finds_in_it_or_is_refused_by_name(images, tally: Tally, full):
    @examples(500 if full else 40)
    @given(damaged())
    def check(file: TagFile) -> None:
        tally.injected += 1
        with written(images, file) as root:
            try:
                found = tags_of(read_folder(root))
            except DataError as error:
                assert str(error.where).startswith((str(root / file.name), str(root / "classes.txt"))), error
            else:
                tally.lost += found != as_written(file)
                assert found == as_written(file), file
        tally.survived += 1

    check()


@pytest.mark.fault(9)
@pytest.mark.promise("told")
def test_commands_say_of_tags_what_the_reader_says_and_leave_nothing(images, tally: Tally, full, sccam: Cli, tmp_path):
    for name in FILES:
        Image.new("RGB", (40, 30), "red").save(images / "images" / name, format="PNG")
    before = sorted(images.rglob("*"))

    def check(file: TagFile) -> None:
        tally.injected += 1
        with written(images, file) as root:
            code, out, _ = sccam("data", "check", root, "--json", "--workers", 1)
            found = json.loads(out)
            assert code == (3 if file.line else 0) and found["fit"] == (not file.line), (file, out)
            options = ("--out", tmp_path / "run", *(["--json", "--dry-run"] if not file.line else []))
            code, out, err = sccam("train", root, "-c", "demo", *options)
            if not file.line:
                classes = set().union(*file.tags.values())
                counts = {tag: sum(tag in tags for tags in file.tags.values()) for tag in classes}
                assert {name: train for name, train, _ in found["balance"]} == counts
                assert code == 0 and json.loads(out)["train_images"] == len(file.tags)
            else:
                assert code == 3 and re.search(file.says, err) and str(root / file.name) in err, err
                assert "Traceback" not in err and any(re.search(file.says, kind) for kind in found["faults"])
        assert sorted(images.rglob("*")) == before and not (tmp_path / "run").exists()
        tally.survived += 1

    for files, fault in KINDS if full else [*KINDS[:: len(KINDS) // 6], (json_files, "")]:
        examples(1)(given(files(fault))(check))()


# Masks

CLASSES = 9  # one of their colours is a grey, which no palette tells apart from a foreign one's
Made = tuple[bytes, str]
MaskMaker = Callable[[np.ndarray, np.random.Generator], Image.Image | bytes]


def saved(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def with_palette(index: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Indices with colours."""
    image = Image.fromarray(index)
    image.putpalette(np.ascontiguousarray(palette, np.uint8).tobytes())
    return image


def in_colours(index: np.ndarray) -> Image.Image:
    """RGB in VOC colours."""
    return Image.fromarray(voc_palette()[index])


def foreign(rng: np.random.Generator) -> np.ndarray:
    """A palette without any VOC colour."""
    return rng.integers(0, 64, (256, 3)) * 2 + 1


def moved(index: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """What an editor makes that sorts or shortens the palette: the same colours at other indices."""
    used = np.unique(index)
    places = np.roll(np.arange(len(used)), 1 + int(rng.integers(len(used) - 1)))
    palette = np.zeros((len(used), 3), np.uint8)
    palette[places] = voc_palette()[used]
    return with_palette(places[np.searchsorted(used, index)].astype(np.uint8), palette)


def shortened(index: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A palette of background, a class and a grey, of which only the grey has moved up."""
    few = np.where(index > 6, 7, np.minimum(index, 1)).astype(np.uint8)
    few.ravel()[:3] = (0, 1, 7)
    return with_palette(np.minimum(few, 2), voc_palette()[[0, 1, 7]])


def one_pixel(index: np.ndarray, rng: np.random.Generator, value: Any, pixels: np.ndarray) -> np.ndarray:
    """The pixels with one of them replaced."""
    pixels = pixels.copy()
    pixels[tuple(rng.integers(0, side) for side in index.shape)] = value
    return pixels


def holed(index: np.ndarray, rng: np.random.Generator, mode: str) -> Image.Image:
    """With an alpha channel that is not full everywhere."""
    image = (in_colours(index) if mode == "RGBA" else Image.fromarray(index)).convert(mode)
    alpha = one_pixel(index, rng, int(rng.integers(0, 255)), np.full(index.shape, 255, np.uint8))
    image.putalpha(Image.fromarray(alpha))
    return image


SOUND_MASKS: dict[str, Callable[[np.ndarray, np.random.Generator], bytes]] = {
    "grey": lambda index, rng: saved(Image.fromarray(index)),
    "grey tiff": lambda index, rng: saved(Image.fromarray(index), "TIFF"),
    "grey tiff, packed": lambda index, rng: saved(Image.fromarray(index), "TIFF", compression="tiff_deflate"),
    "grey bmp": lambda index, rng: saved(Image.fromarray(index), "BMP"),
    "palette": lambda index, rng: saved(with_palette(index, voc_palette())),
    "palette bmp": lambda index, rng: saved(with_palette(index, voc_palette()), "BMP"),
    "palette tiff": lambda index, rng: saved(with_palette(index, voc_palette()), "TIFF"),
    "grey palette": lambda index, rng: saved(with_palette(index, np.arange(256)[:, None].repeat(3, axis=1))),
    "foreign palette": lambda index, rng: saved(with_palette(index, foreign(rng))),
    "colours": lambda index, rng: saved(in_colours(index)),
    "colours bmp": lambda index, rng: saved(in_colours(index), "BMP"),
    "colours tiff": lambda index, rng: saved(in_colours(index), "TIFF"),
    "opaque colours": lambda index, rng: saved(in_colours(index).convert("RGBA")),
    "opaque grey": lambda index, rng: saved(Image.fromarray(index).convert("LA")),
    "16 bit": lambda index, rng: saved(Image.fromarray(index.astype(np.uint16))),
    "16 bit tiff": lambda index, rng: saved(Image.fromarray(index.astype(np.uint16)), "TIFF"),
    "32 bit tiff": lambda index, rng: saved(Image.fromarray(index.astype(np.int32)), "TIFF"),
}
BROKEN_MASKS: dict[str, tuple[str, Callable[[np.ndarray, np.random.Generator], bytes]]] = {
    "a value beyond the classes": ("are no class", lambda index, rng: saved(
        Image.fromarray(one_pixel(index, rng, int(rng.integers(CLASSES + 1, 255)), index)))),
    "an index beyond the classes": ("are no class", lambda index, rng: saved(
        with_palette(one_pixel(index, rng, int(rng.integers(CLASSES + 1, 255)), index), voc_palette()))),
    "an unknown colour": ("is not in the VOC palette", lambda index, rng: saved(Image.fromarray(
        one_pixel(index, rng, rng.integers(0, 64, 3) * 2 + 1, voc_palette()[index])))),
    "smoothed colours": ("is not in the VOC palette", lambda index, rng: saved(in_colours(index).resize(
        index.shape[::-1], Image.Resampling.BICUBIC, box=(0.3, 0.3, index.shape[1], index.shape[0])))),
    "stretched to 16 bit": ("do not fit", lambda index, rng: saved(Image.fromarray(index.astype(np.uint16) * 257))),
    "numbers of instances": ("do not fit", lambda index, rng: saved(
        Image.fromarray(index.astype(np.uint16) * 1000 + 7))),
    "negative": ("do not fit", lambda index, rng: saved(Image.fromarray(index.astype(np.int32) - 3), "TIFF")),
    "floats": ("has no class indices", lambda index, rng: saved(Image.fromarray(index.astype(np.float32)), "TIFF")),
    "holes in colours": ("transparent", lambda index, rng: saved(holed(index, rng, "RGBA"))),
    "holes in grey": ("transparent", lambda index, rng: saved(holed(index, rng, "LA"))),
    "a palette in another order": ("has the VOC colour of", lambda index, rng: saved(moved(index, rng))),
    "a palette with one grey moved": ("has the VOC colour of", lambda index, rng: saved(shortened(index, rng))),
    "CMYK": ("has no class indices", lambda index, rng: saved(in_colours(index).convert("CMYK"), "TIFF")),
    "JPEG": ("not a picture in a format that is read", lambda index, rng: saved(Image.fromarray(index), "JPEG")),
    "WebP": ("not a picture in a format that is read", lambda index, rng: saved(in_colours(index), "WEBP")),
    "cut off": ("cannot be decoded|not a picture", lambda index, rng: _cut(saved(Image.fromarray(index)), rng)),
    "empty": ("empty", lambda index, rng: b""),
    "a changed byte that no decoder notices": ("cannot be decoded", lambda index, rng: _unnoticed(
        saved(Image.fromarray(index)), index, rng)),
    "a changed byte of the pixels": ("cannot be decoded", lambda index, rng: _flipped(
        saved(Image.fromarray(index), compress_level=0), b"IDAT", rng)),
}  # fmt: skip
ODD_MASKS: dict[str, Callable[[np.ndarray, np.random.Generator], bytes]] = {
    "gif": lambda index, rng: saved(with_palette(index, voc_palette()), "GIF"),
    "animated gif": lambda index, rng: _animated(index, "GIF"),
    "animated png": lambda index, rng: _animated(index, "PNG"),
    "pages of tiff": lambda index, rng: _animated(index, "TIFF"),
    "a short palette": lambda index, rng: _short(saved(with_palette(index, voc_palette())), 2 + int(rng.integers(7))),
    "transparent index": lambda index, rng: saved(with_palette(index, voc_palette()), transparency=0),
    "a changed byte": lambda index, rng: _flipped(saved(with_palette(index, voc_palette())), b"", rng),
}
"""What may be read or refused, but not as anything else."""


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, len(data) - 16))]  # behind that there is no pixel any more


def _flipped(data: bytes, chunk: bytes, rng: np.random.Generator) -> bytes:
    start, end = (data.index(chunk) + 4, data.index(b"IEND") - 8) if chunk else (0, len(data))
    changed = bytearray(data)
    changed[int(rng.integers(start, end))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _unnoticed(data: bytes, index: np.ndarray, rng: np.random.Generator) -> bytes:
    """A change of a bit after which the library decodes other pixels without a word."""
    for _ in range(3_000):
        changed = _flipped(data, b"IDAT", rng)
        try:
            with Image.open(io.BytesIO(changed)) as image:
                if not np.array_equal(np.asarray(image), index):
                    return changed
        except Exception:
            continue
    raise AssertionError("every change was noticed")


def _short(data: bytes, colours: int) -> bytes:
    """A PNG whose palette has fewer colours than its pixels use."""
    at = data.index(b"PLTE")
    chunk = b"PLTE" + data[at + 4 : at + 4 + 3 * colours]
    checked = struct.pack(">I", 3 * colours) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return data[: at - 4] + checked + data[at + 4 + 3 * 256 + 4 :]


def _animated(index: np.ndarray, format: str) -> bytes:
    frames = [with_palette(np.roll(index, n, axis=0), voc_palette()) for n in range(3)]
    return saved(frames[0], format, save_all=True, append_images=frames[1:])


def drawn_mask(rng: np.random.Generator) -> np.ndarray:
    """Class indices with background, 255, a class and a grey of VOC's palette."""
    index = rng.integers(0, CLASSES + 1, rng.integers(3, 40, 2)).astype(np.uint8)
    index[rng.random(index.shape) < 0.1] = 255
    index.ravel()[rng.permutation(index.size)[:3]] = (0, 1 + int(rng.integers(6)), 255)
    return index


def one_mask_of_each(most: int) -> Iterator[tuple[str, int]]:
    """Kinds of masks with seeds, in turn."""
    kinds = [*SOUND_MASKS, *BROKEN_MASKS, *ODD_MASKS]
    return ((kinds[n % len(kinds)], n) for n in range(most))


@pytest.mark.fault(8)
@pytest.mark.promise("told")
def test_a_mask_is_read_exactly_or_refused_by_name(tmp_path, tally: Tally, full):
    path = tmp_path / "mask.png"
    for kind, seed in one_mask_of_each(450 if full else 82):
        rng = np.random.default_rng(seed)
        index = drawn_mask(rng)
        says, make = BROKEN_MASKS[kind] if kind in BROKEN_MASKS else ("", {**SOUND_MASKS, **ODD_MASKS}[kind])
        path.write_bytes(make(index, rng))
        tally.injected += 1
        try:
            found = read_mask(path, class_count=CLASSES)
        except MaskError as error:
            assert kind not in SOUND_MASKS, (kind, seed, str(error))
            assert error.where == str(path) and re.search(says, error.what), (kind, seed, str(error))
        else:
            tally.lost += not np.array_equal(found, index)
            assert kind not in BROKEN_MASKS and np.array_equal(found, index), (kind, seed)
        tally.survived += 1


WRONG_FOR_ITS_IMAGE: dict[str, tuple[str, Callable[[np.ndarray, np.random.Generator], bytes]]] = {
    "another size": ("px, its image", lambda index, rng: saved(Image.fromarray(index[1:]))),
    "turned": ("px, its image", lambda index, rng: saved(Image.fromarray(np.rot90(index)))),
    "0 and 255": ("has only the values", lambda index, rng: saved(
        Image.fromarray(np.where(index > 3, 255, 0).astype(np.uint8)))),
}  # fmt: skip


@pytest.mark.fault(8)
@pytest.mark.promise("told")
def test_commands_refuse_a_folder_with_a_wrong_mask_by_its_name(tmp_path, tally: Tally, full, sccam: Cli):
    kinds = {**WRONG_FOR_ITS_IMAGE, **BROKEN_MASKS}
    chosen = list(kinds) if full else [*WRONG_FOR_ITS_IMAGE, *list(BROKEN_MASKS)[::5]]
    for seed, kind in enumerate(chosen):
        rng = np.random.default_rng(seed)
        says, make = kinds[kind]
        root, out = tmp_path / str(seed), tmp_path / f"{seed} run"
        for n in range(3):
            index = drawn_mask(rng)
            (root / "masks").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", index.shape[::-1], "red").save(root / f"{n}.png")
            data = SOUND_MASKS["palette"](index, rng) if n != 1 and kind != "0 and 255" else make(index, rng)
            (root / "masks" / f"{n}.png").write_bytes(data)
        (root / "classes.txt").write_text("".join(f"c{c}\n" for c in range(CLASSES)))
        (root / "tags.csv").write_text("image,tags\n0," + " ".join(f"c{c}" for c in range(CLASSES)) + "\n1,c0\n2,c1\n")
        wrong = root / "masks" / ("0.png" if kind == "0 and 255" else "1.png")
        tally.injected += 1
        code, printed, _ = sccam("data", "check", root, "--json", "--workers", 1)
        places = [place for places in json.loads(printed)["faults"].values() for place in places]
        assert code == 3 and any(str(wrong) in place for place in places), (kind, printed)
        code, _, err = sccam("train", root, "-c", "demo", "--out", out)
        assert code == 3 and re.search(says, err) and f"where  {wrong}" in err, (kind, err)
        trained = list(out.rglob("*.safetensors"))
        assert "Traceback" not in err and not trained, (kind, err)
        tally.survived += 1


# Classes that are hardly there

KINDS_OF_FEATURES = ("any", "equal", "two points", "zero", "tiny", "large", "one far away", "few decimals")


def drawn_features(kind: str, count: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Features [N D] that give little to cluster by."""
    found = rng.normal(size=(count, width))
    if kind == "equal":
        found[:] = found[0]
    elif kind == "two points":
        found = found[rng.integers(0, min(2, count), count)]
    elif kind == "zero":
        found[:] = 0
    elif kind == "one far away":
        found[0] += 1e6
    elif kind == "few decimals":
        found = found.round(0)
    return np.asarray(found * {"tiny": 1e-20, "large": 1e12}.get(kind, 1.0), np.float32)


@st.composite
def hard_to_cluster(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, ClusterConfig, str]:
    """Features, tags and settings, with fewer images than clusters, classes of no image or of all."""
    count, classes = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    present = rng.random((count, classes)) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    features = drawn_features(draw(st.sampled_from(KINDS_OF_FEATURES)), count, draw(st.integers(1, 6)), rng)
    config = ClusterConfig(
        k=draw(st.sampled_from([1, 2, 3, 10, 1000, 2**31 - 1])),
        clusters=draw(st.sampled_from(["paper", "silhouette", "first_neighbours"])),
        min_size=draw(st.sampled_from([1, 2, 50])), n_init=draw(st.sampled_from([1, 3])),
        normalise=draw(st.booleans()), whiten=draw(st.sampled_from([0, 1, 3, 100])),
    )  # fmt: skip
    return features, present, config, draw(st.sampled_from(["blas", "sklearn"]))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.fault(10, 11)
def test_what_can_hardly_be_clustered_gives_every_image_one_subcategory_of_each_of_its_classes(tally: Tally, full):
    @examples(1_000 if full else 100)
    @given(hard_to_cluster())
    def check(case: tuple[np.ndarray, np.ndarray, ClusterConfig, str]) -> None:
        features, present, config, row = case
        count, classes = present.shape
        ids = tuple(map(str, range(count)))
        tags = LabelSet(present, ids, tuple(f"c{c}" for c in range(classes)))
        fit = {"blas": kmeans_blas.k_means, "sklearn": cluster.k_means}[row]
        tally.injected += 1
        found = cluster_subcategories(features, tags, config, seed=0, fit=fit)
        for c in range(classes):
            block = found.present[:, found.parent == c]
            assert (block.sum(axis=1) == present[:, c]).all(), "one sub-category where the class is, none elsewhere"
            distinct = len(np.unique(features[present[:, c]], axis=0))
            assert 1 <= block.shape[1] <= max(1, min(config.k, distinct, present[:, c].sum()))
            assert block.any(axis=0).all() or not present[:, c].any(), "no sub-category is empty"
        tally.survived += 1

    check()


@pytest.mark.fault(10, 26)
def test_a_feature_that_is_no_number_is_an_error_that_names_its_image(tally: Tally, full):
    for seed in range(200 if full else 24):
        rng = np.random.default_rng(seed)
        count, width = int(rng.integers(1, 9)), int(rng.integers(1, 6))
        features = rng.normal(size=(count, width)).astype(np.float32)
        row, value = int(rng.integers(count)), (np.nan, np.inf, -np.inf)[seed % 3]
        features[row, int(rng.integers(width))] = value
        ids = tuple(f"photo {n}" for n in range(count))
        config = ClusterConfig(k=int(rng.integers(1, 5)), whiten=seed % 2, normalise=bool(seed % 3))
        tally.injected += 1
        with pytest.raises(NumericError) as caught:
            cluster_subcategories(features, LabelSet(np.ones((count, 1), bool), ids, ("c",)), config, seed=0)
        assert ids[row] in str(caught.value)
        tally.survived += 1


TINY = (
    "run.workers=1", "run.until=maps", "network.backbone=test_resnet", "network.weights=none",
    "network.output_stride=16", "network.train_stride=16", "cluster.n_init=2", "classify.rounds=1",
    "classify.epochs=[1]", "classify.batch=4", "classify.round0_crop=32", "classify.augment.crop=32",
    "classify.augment.long_side=[32, 48]", "cam.scales=[1.0]", "cam.long_side=0", "measure.oracle_steps=5",
)  # fmt: skip


@dataclass
class Folder:
    """A folder of a few images, what is special about it, and how a run on it ends."""

    tags: Sequence[str]  # of each image, as in tags.csv
    code: int = 0
    says: str = ""
    settings: Sequence[str] = ()
    classes: str = ""
    val: str = ""
    colours: str = "any"  # "any", "one", "equal"
    mask: int | None = None  # one value everywhere
    files: dict[str, str] = field(default_factory=dict)


ALONE = ("cat", "dog", "cat dog")
SHORT = r"has \d training images, fewer than K"
FOLDERS = {
    "fewer images than clusters": Folder(ALONE, says=SHORT),
    "clusters beyond all": Folder(ALONE, says=SHORT, settings=["cluster.k=2147483647"]),
    "equal images": Folder([*ALONE, "cat"], colours="equal"),
    "images of one colour": Folder(ALONE, colours="one"),
    "one class": Folder(["cat", "cat"], 3, "nothing to tell it apart from"),
    "one class and others": Folder(["cat", "", "cat"], settings=["data.allow_negative=true"]),
    "no tag at all": Folder(["", ""], 3, "no image has a tag", ["data.allow_negative=true"]),
    "an image of every class": Folder(["cat", "dog", "emu", "cat dog emu"]),
    "every image of every class": Folder(["cat dog", "cat dog"], says="every training image has the class 'cat'"),
    "a class that no image has": Folder(ALONE, 3, "no training image has the class 'emu'", classes="cat\ndog\nemu\n"),
    "a class that only val has": Folder([*ALONE, "emu"], 3, "no training image has the class 'emu'", val="3\n"),
    "everything is val": Folder(ALONE, 3, "no training image has the class", val="0\n1\n2\n"),
    "an image of each class": Folder(["cat", "dog"]),
    "one image": Folder(["cat dog"]),
    "no background anywhere": Folder(ALONE, mask=1),
    "nothing but background": Folder(ALONE, mask=0),
    "nothing but 255": Folder(ALONE, 3, "has only the values", mask=255),
    "silhouettes of nothing": Folder(ALONE, settings=["cluster.clusters=silhouette"]),
    "neighbours of nobody": Folder(ALONE, settings=["cluster.clusters=first_neighbours"], colours="equal"),
    "features of maps": Folder(ALONE, settings=["cluster.pool=map", "cluster.normalise=true"], colours="one"),
    "components without rows": Folder(ALONE, settings=["cluster.whiten=100"]),
    "prototypes of nothing": Folder(ALONE, settings=["prototypes.k=5", "reactivate.epochs=1"], colours="one"),
}
QUICKLY = (
    "fewer images than clusters", "equal images", "one class", "no tag at all", "a class that no image has",
    "no background anywhere",
)  # fmt: skip


def make_folder(root: Path, folder: Folder) -> None:
    """Writes it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (40, 36, 3), np.uint8)
    root.mkdir(parents=True)
    for n in range(len(folder.tags)):
        if folder.colours == "any":
            pixels = rng.integers(0, 256, (40 + n, 36, 3), np.uint8)
        elif folder.colours == "one":
            pixels = np.full((40, 36, 3), 255 * (n % 2), np.uint8)
        Image.fromarray(pixels).save(root / f"{n}.png")
        if folder.mask is not None:
            (root / "masks").mkdir(exist_ok=True)
            Image.new("L", pixels.shape[1::-1], folder.mask).save(root / "masks" / f"{n}.png")
    (root / "tags.csv").write_text("image,tags\n" + "".join(f"{n},{tags}\n" for n, tags in enumerate(folder.tags)))
    for name, text in (("classes.txt", folder.classes), ("val.txt", folder.val)):
        if text:
            (root / name).write_text(text)


def with_settings(*settings: str) -> list[str]:
    """Arguments of a command."""
    return [word for text in (*TINY, *settings) for word in ("--set", text)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fault(10, 11)
@pytest.mark.promise("told")
@pytest.mark.parametrize("name", list(FOLDERS) if FULL else QUICKLY)
def test_a_run_on_classes_that_are_hardly_there_ends_well_or_is_refused(name, tmp_path, tally: Tally, sccam: Cli):
    folder, root, out = FOLDERS[name], tmp_path / "in", tmp_path / "run"
    make_folder(root, folder)
    tally.injected += 1
    code, _, err = sccam("train", root, "-c", "photos", "--out", out, *with_settings(*folder.settings))
    assert code == folder.code and re.search(folder.says, err) and "Traceback" not in err, err
    assert bool(list(out.rglob("*.safetensors"))) == (code == 0)
    if code == 0:
        last = max(out.glob("round*/cam_net.safetensors")).parent
        assert list((last / "activation_maps").glob("*.npz"))
        scores = json.loads((out / "scores.json").read_text())
        assert all(0 <= row["miou"] <= 1 for row in scores["rows"])
    code, printed, _ = sccam("data", "check", root, "--json", "--workers", 1)
    allowed = "data.allow_negative=true" in folder.settings  # which the check does not know of
    assert code in (0, 3) and (json.loads(printed)["fit"] == (folder.code == 0) or allowed)
    tally.survived += 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fault(10, 26)
@pytest.mark.promise("told", "whole")
def test_features_that_are_no_numbers_end_a_run_with_6_and_it_goes_on_where_it_was(
    tmp_path, tally: Tally, full, sccam: Cli, monkeypatch
):
    make_folder(tmp_path / "in", FOLDERS["fewer images than clusters"])
    arguments = ("train", tmp_path / "in", "-c", "photos", "--out", tmp_path / "run", *with_settings())
    pooled = network_torch.pooled_features
    for value in (np.nan, np.inf, -np.inf) if full else (np.nan,):
        tally.injected += 1

        def broken(*given: Any, wrong: float = value) -> Any:
            return lambda image, classes: pooled(*given)(image, classes) * wrong

        with monkeypatch.context() as patched:
            patched.setattr("sccam.training.rounds.pooled_features", broken)
            code, _, err = sccam(*arguments, "--resume")
        assert code == 6 and "Traceback" not in err and re.search("image '?[012]", err), err
        assert not (tmp_path / "run/round1").exists() and (tmp_path / "run/round0/cam_net.safetensors").is_file()
        tally.survived += 1
    of_pixels = prototypes._features
    with monkeypatch.context() as patched:
        patched.setattr("sccam.training.prototypes._features", lambda *given: of_pixels(*given) * np.nan)
        tally.injected += 1
        code, _, err = sccam(*arguments, "--resume")
        assert code == 6 and "Traceback" not in err and re.search("image '?[012]", err), err
        assert (tmp_path / "run/round1/cam_net.safetensors").is_file() and not (tmp_path / "run/round2").exists()
        tally.survived += 1
    code, _, err = sccam(*arguments, "--resume")
    assert code == 0 and (tmp_path / "run/round2/cam_net.safetensors").is_file(), err
