"""Random and mutated input to the readers of tags, masks, run lengths, images, shards: python -m tests.faults.fuzz

    --target tags|masks|rle|images|shards|all   --seconds 60   --out findings

Where atheris is installed, mutation is led by the lines that an input reaches; else inputs are mutated at random from
a fixed seed. Whatever a reader raises that is not of the package is a finding, and its input is kept. So is a wrong
result: tags that are not in the file, a mask or an image that is no array of bytes of its size, a name that leads out.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from sccam.data.folder import read_folder
from sccam.data.images import image_size, mode_and_orientation, read_image
from sccam.data.masks import read_mask, voc_palette
from sccam.errors import SccamError
from sccam.labels.rle import brush, brush_mask, compressed, mask_of, run_lengths, uncompressed
from sccam.runtime.sources import sources

LONGEST = 1 << 14  # [bytes] of an input
MOST_PIXELS = 1 << 20  # of an image that is decoded: larger ones test the machine, not the reader


@dataclass
class Target:
    """A reader, and inputs to begin with.

    Attributes:
        read: takes a folder to work in and an input; a wrong result is an AssertionError.
        seeds: well-formed inputs.
        words: what mutations put in.
    """

    read: Callable[[Path, bytes], None]
    seeds: list[bytes]
    words: list[bytes] = field(default_factory=list)


# Readers


def read_tags(folder: Path, data: bytes) -> None:
    """A tag file, CSV or JSON by its first byte, in a folder of a few images, with or without a list of classes."""
    kind, content = (data[0] if data else 0), data[1:]
    for name in ("tags.csv", "tags.json", "classes.txt"):
        (folder / name).unlink(missing_ok=True)
    for name in ("a.png", "b c.png", "sub/d.png", "e.jpg", "e.png", "f.png.jpg"):
        path = folder / "images" / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (folder / ("tags.json" if kind & 1 else "tags.csv")).write_bytes(content)
    if kind & 2:
        (folder / "classes.txt").write_text("cat\ndog\nred fox\n")
    dataset = read_folder(folder, allow_negative=bool(kind & 4))
    train = dataset.train
    assert train.labels.present.shape == (len(train.ids), len(train.classes)) and len(set(train.ids)) == len(train.ids)
    assert all(path.is_file() for path in train.paths) and train.labels.present.any(axis=0).all()
    assert not kind & 2 or train.classes == ("cat", "dog", "red fox")
    text = content.decode("utf-8-sig")
    for name in train.classes:
        assert (
            json.dumps(name)[1:-1] in text or json.dumps(name, ensure_ascii=False)[1:-1] in text or _spelt(name, text)
        )


def _spelt(name: str, text: str) -> bool:
    """Whether a name is there in another form: with spaces between its words, or escaped as JSON may."""
    return all(word in text for word in name.split()) or "\\" in text


def read_a_mask(folder: Path, data: bytes) -> None:
    """A mask of nine classes."""
    path = folder / "mask.png"
    path.write_bytes(data)
    index = read_mask(path, class_count=9)
    assert index.ndim == 2 and index.dtype == np.uint8 and ((index <= 9) | (index == 255)).all()


def read_rle(folder: Path, data: bytes) -> None:
    """Run lengths of COCO as text, as numbers, and of Label Studio's brush."""
    kind, size = (data[0] if data else 0), (1 + data[1] % 40, 1 + data[2] % 40) if len(data) > 2 else (3, 4)
    content = data[3:]
    if kind % 3 == 0:
        mask = mask_of(uncompressed(content.decode("utf-8", "surrogateescape")), size)
    elif kind % 3 == 1:
        whole = len(content) // 4 * 4
        mask = mask_of(np.frombuffer(content[:whole], "<i4").tolist(), size)
    else:
        mask = brush_mask(list(content), size)
    assert mask.shape == size and mask.dtype == bool
    assert np.array_equal(mask_of(run_lengths(mask), size), mask)
    assert np.array_equal(brush_mask(brush(mask), size), mask)


def read_an_image(folder: Path, data: bytes) -> None:
    """A photograph: its header, then its pixels."""
    path = folder / "photo.jpg"
    path.write_bytes(data)
    height, width = image_size(path)
    mode_and_orientation(path)
    pixels = read_image(path, max_pixels=MOST_PIXELS)
    assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8


def read_a_shard(folder: Path, data: bytes) -> None:
    """A tar file: the names of its images, and their bytes."""
    path = folder / "s.tar"
    path.write_bytes(data)
    wrong, names = None, set[str]()
    for source in sources(path):
        assert len(names) < LONGEST // 512
        assert source.stored is not None and source.name not in names
        names.add(source.name)
        inner = source.name.removeprefix("s.tar/").split("/")
        assert source.name == "s.tar" or (not {"", ".", ".."} & set(inner) and "." not in inner[0][:1])
        wrong = wrong or (source if source.stored.wrong else None)
        if not source.stored.wrong and source.stored.start + source.stored.size <= len(data):
            assert source.data() == data[source.stored.start :][: source.stored.size]
    if wrong is not None:
        wrong.data()


# Inputs to begin with


def _saved(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def _tag_seeds() -> Iterator[bytes]:
    rows = [("a.png", "cat"), ("b c", "dog cat"), ("images/sub/d.png", "red fox;dog"), ("e.jpg", "cat|dog")]
    for kind in range(0, 8, 2):
        for delimiter in ",;\t":
            text = io.StringIO(newline="")
            csv.writer(text, delimiter=delimiter).writerows([("image", "tags"), *rows])
            yield bytes([kind]) + text.getvalue().encode()
        tags = {name: cell.replace("|", ";").split(";") for name, cell in rows}
        yield bytes([kind | 1]) + json.dumps(tags, indent=1).encode()
    yield b'\0\xef\xbb\xbfimage,tags\r\na.png,"cat, dog"\r\n,\r\nsub\\d,cat\r\n'


def _mask_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    index = rng.integers(0, 10, (9, 11)).astype(np.uint8)
    index[0] = 255
    painted = Image.fromarray(index)
    painted.putpalette(voc_palette().tobytes())
    for format in ("PNG", "BMP", "TIFF", "GIF"):
        yield _saved(painted, format)
        yield _saved(Image.fromarray(index), format)
    yield _saved(painted.convert("RGB"), "PNG")
    yield _saved(painted.convert("RGBA"), "PNG")
    yield _saved(Image.fromarray(index.astype(np.uint16)), "PNG")
    yield _saved(Image.fromarray(index > 3), "PNG")
    yield _saved(painted, "PNG", transparency=0)


def _rle_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    for height, width in ((3, 4), (1, 1), (20, 30), (7, 40)):
        mask = rng.random((height, width)) < 0.4
        head = bytes([height - 1, width - 1])
        yield b"\0" + head + compressed(run_lengths(mask)).encode()
        yield b"\1" + head + run_lengths(mask).astype("<i4").tobytes()
        yield b"\2" + head + bytes(brush(mask))


def _image_seeds() -> Iterator[bytes]:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (13, 17, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    for format in ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"):
        yield _saved(rgb, format)
    yield _saved(rgb, "JPEG", exif=turned, progressive=True)
    yield _saved(rgb.convert("CMYK"), "JPEG")
    yield _saved(rgb, "PNG", exif=turned)
    yield _saved(rgb.convert("P"), "PNG", transparency=3)
    yield _saved(rgb.convert("RGBA"), "PNG")
    yield _saved(Image.fromarray(rng.integers(0, 65536, (5, 6)).astype(np.uint16)), "PNG")
    yield _saved(rgb.convert("L"), "TIFF", compression="tiff_lzw")
    yield _saved(rgb, "WEBP", lossless=True, exif=turned)
    yield _saved(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)])
    yield _saved(rgb, "MPO", save_all=True, append_images=[rgb])


def _shard_seeds() -> Iterator[bytes]:
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w", format=format) as tar:
            for name in ("a/1.png", "1.jpg", "folder/" * 14 + "2.png", "1.cls"):
                member = tarfile.TarInfo(name)
                member.size = 600 * name.endswith("g")
                tar.addfile(member, io.BytesIO(bytes(range(1, 201)) * 3))
        yield made.getvalue()


NUMBERS = [struct.pack(form, value) for form in ("<H", ">H", "<I", ">I") for value in (0, 1, 255, 32768, 65535)]
TARGETS = {
    "tags": lambda: Target(read_tags, list(_tag_seeds()), [
        b'"', b",", b";", b"|", b"\n", b"\r", b"\0", b"\xef\xbb\xbf", b"\xff", b"{", b"}", b"[", b"]", b":", b"\\u0000",
        b"\\ud800", b"1e999", b"null", b"cat", b"dog", b"red fox", b"a.png", b"image,tags\n", b"9" * 5000, b"[" * 2000,
    ]),
    "masks": lambda: Target(read_a_mask, list(_mask_seeds()), [*NUMBERS, b"PLTE", b"tRNS", b"IDAT", b"IEND", b"acTL"]),
    "rle": lambda: Target(read_rle, list(_rle_seeds()), [*NUMBERS, b"o", b"_", b"0", b"P", b"\xff\xff\xff\x7f"]),
    "images": lambda: Target(read_an_image, list(_image_seeds()), [
        *NUMBERS, b"\xff\xd8", b"\xff\xd9", b"\xff\xda", b"\xff\xc0", b"Exif\0\0", b"IDAT", b"IHDR", b"RIFF", b"MM\0*",
    ]),
    "shards": lambda: Target(read_a_shard, list(_shard_seeds()), [
        bytes(512), b"ustar\0" b"00", b"ustar  \0", b"00000001130\0", b"77777777777\0",
        b"\x80" + bytes(10) + b"\x01", b"\xff" * 12,
        b"../", b"/", b".png", b"\xff", b"30 path=../x.png\n", b"22 size=9999999999\n", b"GNU.sparse.major=1\n",
        *(bytes([kind]) for kind in b"0123456789LKxgSVDM"),
    ]),
}  # fmt: skip


# Mutation


def mutated(rng: random.Random, target: Target, seeds: list[bytes]) -> bytes:
    """An input near one of the seeds."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        at, count = rng.randrange(len(data) + 1), rng.randint(1, rng.choice((1, 4, 64)))
        kind = rng.randrange(8)
        if kind == 0:
            del data[at : at + count]
        elif kind == 1:
            data[at:at] = rng.choice(target.words) if target.words else rng.randbytes(count)
        elif kind == 2 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 3 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 4:
            data[at:at] = data[at : at + count]
        elif kind == 5:
            word = rng.choice(target.words) if target.words else b"\0"
            data[at : at + len(word)] = word
        elif kind == 6:
            other = rng.choice(seeds)
            start = rng.randrange(len(other) + 1)
            data[at : at + count] = other[start : start + count]
        else:
            del data[at:]
    checked = bytes(data[:LONGEST])
    return _with_checksums(checked) if rng.random() < 0.5 else checked


def _with_checksums(data: bytes) -> bytes:
    """A PNG or tar file with right checksums, so that a reader goes on behind them; other data as it is."""
    if data[257:262] == b"ustar":
        return b"".join(_summed(data[at : at + 512]) for at in range(0, len(data), 512))
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        parts += [data[at : at + 4], body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(parts) + data[at:]


def _summed(block: bytes) -> bytes:
    """A block of a tar file, with the checksum of a header if it is one."""
    if block[257:262] != b"ustar":
        return block
    return block[:148] + b"%06o\0 " % (sum(block[:148] + block[156:]) + 8 * ord(" ")) + block[156:]


@dataclass
class Found:
    """What became of the inputs of one target."""

    runs: int = 0
    read: int = 0  # inputs that were read; the others were refused
    new_paths: int = 0  # inputs that reached a line that none before had reached
    seconds: float = 0.0
    findings: dict[str, str] = field(default_factory=dict)  # exception and place -> what it says

    def told(self, name: str) -> str:
        """For a person."""
        rate = self.runs / max(self.seconds, 1e-9)
        counts = f"{self.read} read, {self.new_paths} new paths, {len(self.findings)} findings"
        lines = [f"{name}: {self.runs} runs, {rate:.0f} a second, {counts}"]
        return "\n  ".join([*lines, *(f"{kind}: {says}" for kind, says in self.findings.items())])


def attempt(target: Target, folder: Path, data: bytes, found: Found, keep: Path | None) -> None:
    """One input; what is not an error of the package is kept."""
    found.runs += 1
    try:
        target.read(folder, data)
        found.read += 1
    except SccamError:
        pass
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        if kind in found.findings:
            return
        found.findings[kind] = str(error)[:200]
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            name = f"{target.read.__name__}-{len(found.findings)}"
            (keep / name).write_bytes(data)
            (keep / f"{name}.txt").write_text("".join(traceback.format_exception(error)))


def plain(name: str, *, runs: int = 0, seconds: float = 0.0, seed: int = 0, keep: Path | None = None) -> Found:
    """Mutation at random, for a number of runs or a time. What is a new path is told by the lines of its exception."""
    target, rng, found = TARGETS[name](), random.Random(seed), Found()
    seeds, seen, started = list(target.seeds), set(), time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        for data in target.seeds:
            attempt(target, folder, data, found, keep)
        while found.runs < runs or time.monotonic() - started < seconds:
            data = mutated(rng, target, seeds)
            before = found.read
            lines = _lines_of(target, folder, data, found, keep)
            if lines not in seen:
                seen.add(lines)
                found.new_paths += 1
                if len(data) < LONGEST and found.read == before:  # a refusal of a new kind, to go on from
                    seeds.append(data)
    found.seconds = time.monotonic() - started
    return found


def _lines_of(target: Target, folder: Path, data: bytes, found: Found, keep: Path | None) -> tuple[object, ...]:
    """Where a refusal comes from."""
    try:
        target.read(folder, data)
    except SccamError as error:
        found.runs += 1
        inside = error.__cause__ or error
        return tuple((frame.filename, frame.lineno) for frame in traceback.extract_tb(inside.__traceback__))
    except Exception:
        attempt(target, folder, data, found, keep)
        return ("finding",)
    found.runs += 1
    found.read += 1
    return ("read",)


GUIDED = """
import sys, atheris
from pathlib import Path
with atheris.instrument_imports(include=["sccam", "PIL", "json"]):
    from tests.faults import fuzz
fuzz.guided(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3] else None)
"""


def guided(name: str, seconds: float, keep: Path | None) -> None:
    """The same by atheris, in a process of its own, which this ends."""
    import atheris

    target, found, started = TARGETS[name](), Found(), time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        folder, corpus, words = (Path(work) / part for part in ("in", "corpus", "words"))
        folder.mkdir()
        corpus.mkdir()
        for n, data in enumerate(target.seeds):
            (corpus / f"{n:03}").write_bytes(data)
        short = [word for word in target.words if len(word) < 64]
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in short))

        def one(data: bytes) -> None:
            attempt(target, folder, data, found, keep)
            found.seconds = time.monotonic() - started
            if found.seconds > seconds:  # libFuzzer would end the process without a word
                found.new_paths = len(list(corpus.iterdir())) - len(target.seeds)
                print(found.told(name), flush=True)
                shutil.rmtree(work)
                os._exit(bool(found.findings))

        options = [f"-max_len={LONGEST}", f"-dict={words}", "-verbosity=0", "-close_fd_mask=2"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()


def main() -> int:
    """The command; 1 where there is a finding."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.fuzz")
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the plain way")
    parser.add_argument("--out", type=Path, help="folder for inputs that are findings")
    parser.add_argument("--plain", action="store_true", help="at random, though atheris is there")
    given = parser.parse_args()
    by_atheris = not given.plain and importlib.util.find_spec("atheris") is not None
    if not by_atheris:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff tells of every damage itself
    failed = False
    for name in TARGETS if given.target == "all" else [given.target]:
        if by_atheris:
            words = [sys.executable, "-c", GUIDED, name, str(given.seconds), str(given.out or "")]
            failed |= subprocess.run(words, check=False).returncode != 0
        else:
            found = plain(name, seconds=given.seconds, seed=given.seed, keep=given.out)
            print(found.told(name), flush=True)
            failed |= bool(found.findings)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
