"""Shards and stores: every image once under a name of its own, what is damaged is told, and nothing is unpacked."""

from __future__ import annotations

import http.server
import io
import json
import random
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sccam.artifacts import sha256
from sccam.errors import BackendUnavailable, ConfigError, DataError, ImageError
from sccam.runtime import on_ray, stored
from sccam.runtime.folder import predict_to
from sccam.runtime.sources import Source, sources
from sccam.runtime.stored import Stored, opened_store, shown
from tests.conftest import Cli
from tests.runtime.formula import job_of, lines
from tests.runtime.test_folder import model  # noqa: F401  (a fixture: an ONNX file with its manifest)


def picture(seed: int) -> bytes:
    """A PNG of its own."""
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8))
    file = io.BytesIO()
    coarse.resize((50 + seed % 3, 40)).save(file, format="PNG")
    return file.getvalue()


PICTURES = {"a/1.png": picture(1), "a/2.png": picture(2), "b/1.png": picture(3), "deep/er/4.png": picture(4)}


def shard(files: dict[str, bytes], **options: Any) -> bytes:
    """A tar file of them."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", **options) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return made.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def contents(source: object, **options: Any) -> dict[str, bytes | None]:
    """Name -> bytes of all images, or None of what cannot be read."""
    found: dict[str, bytes | None] = {}
    for one in sources(source, **options):  # type: ignore[arg-type]
        assert one.name not in found
        try:
            found[one.name] = one.data() if one.stored else one.path.read_bytes()
        except ImageError:
            found[one.name] = None
    return found


def named(prefix: str = "", pictures: dict[str, bytes] = PICTURES) -> dict[str, bytes | None]:
    return {prefix + name.removesuffix(".png"): data for name, data in pictures.items()}


@pytest.fixture
def store() -> Iterator[Any]:
    """A store in memory, empty."""
    system = fsspec.filesystem("memory")
    for path in system.ls("/", detail=False):
        system.rm(path, recursive=True)
    yield system


# Shards


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_shard_gives_its_images_below_its_name_whatever_wrote_it(form, tmp_path):
    long = {f"{'folder/' * 20}{n}.png": picture(n) for n in range(2)} if form != tarfile.USTAR_FORMAT else {}
    files = {**PICTURES, **long, "a/1.cls": b"3", "a/1.json": b"{}", "a/.hidden.png": b"x", "b/._1.png": b"x"}
    path = written(tmp_path / "000.tar", shard(files, format=form))
    assert contents(path) == named("000.tar/", {**PICTURES, **long})
    assert next(one.where for one in sources(path)) == f"{path}/a/1.png"


def test_shards_are_found_by_a_pattern_numbers_and_lists(tmp_path):
    for n in range(8, 12):
        written(tmp_path / f"in/{n:03d}.tar", shard({f"{n}.png": picture(n)}))
    written(tmp_path / "in/plain.png", picture(0))
    every = {f"{n:03d}.tar/{n}": picture(n) for n in range(8, 12)}
    assert contents(f"{tmp_path}/in/*") == {"plain": picture(0), **every}
    assert contents(f"{tmp_path}/in/{{008..011}}.tar") == every
    written(tmp_path / "list.txt", b"in/008.tar\nin/plain.png\nin/008.tar\n")
    assert contents(tmp_path / "list.txt") == {"in/008.tar/8": picture(8), "in/plain": picture(0)}
    assert contents(tmp_path / "in") == {"plain": picture(0)}, "a folder gives its files"
    (tmp_path / "in/plain.png").unlink()
    with pytest.raises(DataError, match="no images") as caught:
        sources(tmp_path / "in")
    assert "*.tar" in str(caught.value)
    gone = contents(f"{tmp_path}/in/{{011..012}}.tar")
    assert gone == {"011.tar/11": picture(11), "012.tar": None}


def test_names_of_members_never_lead_out_and_never_meet(tmp_path):
    files = {
        "../../etc/1.png": picture(1), "/abs/2.png": picture(2), "./3.png": picture(3), "3.png": picture(4),
        "3.jpg": picture(5), "A/4.png": picture(6), "a/4.png": picture(7), "C:\\x\\5.png": picture(8),
    }  # fmt: skip
    found = contents(written(tmp_path / "s.tar", shard(files)))
    assert sorted(data for data in found.values() if data) == sorted(files.values())
    assert len({name.casefold() for name in found}) == len(files)
    for name in found:
        assert name.startswith("s.tar/") and ".." not in name.split("/") and ":" not in name


def test_nothing_but_plain_files_is_read_and_the_rest_is_told(tmp_path):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, kind in (("s.png", tarfile.SYMTYPE), ("h.png", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE),
                           ("p.png", tarfile.FIFOTYPE), ("folder.png", tarfile.DIRTYPE)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    path = written(tmp_path / "s.tar", made.getvalue())
    assert contents(path) == dict.fromkeys(["s.tar/s", "s.tar/h", "s.tar/d", "s.tar/p"])


@pytest.mark.parametrize("size", [-1, -512, -1024, -(10**9)])
def test_a_size_below_zero_does_not_lead_round_in_circles(size, tmp_path):
    member = tarfile.TarInfo("b.png")
    member.size = size
    first = shard({"a.png": picture(0)})[: 512 * (2 + len(picture(0)) // 512)]
    path = written(tmp_path / "s.tar", first + member.tobuf(tarfile.GNU_FORMAT))
    assert contents(path) == {"s.tar/a": picture(0), "s.tar": None}
    (wrong,) = (source.stored.wrong for source in sources(path) if source.stored and source.stored.wrong)
    assert "size below zero" in wrong


@pytest.mark.parametrize("data", [b"", b"no tar file" * 100, picture(0), b"\x1f\x8b" + bytes(600)])
def test_what_is_no_shard_is_told_and_does_not_stop_the_others(data, tmp_path):
    written(tmp_path / "in/a.tar", data)
    written(tmp_path / "in/b.tar", shard(PICTURES))
    assert contents(f"{tmp_path}/in/*.tar") == {"a.tar": None, **named("b.tar/")}


def test_a_compressed_shard_is_refused_in_words(tmp_path):
    written(tmp_path / "s.tar.gz", b"x")
    with pytest.raises(DataError, match="compressed"):
        sources(tmp_path / "s.tar.gz")


@given(st.integers(0, 2**32), st.integers(1, 3))
@settings(max_examples=200, deadline=None)
def test_of_a_damaged_shard_every_image_is_there_or_it_is_told(tmp_path_factory, seed, flips):
    """A flipped bit of a header breaks its checksum; one of an image is the image's own matter."""
    rng, whole = random.Random(seed), bytearray(shard(PICTURES))
    for _ in range(flips):
        whole[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    found = contents(written(tmp_path_factory.getbasetemp() / "damaged.tar", bytes(whole)))
    assert None in found.values() or found.keys() == named("damaged.tar/").keys()


@given(st.integers(1, len(shard(PICTURES)) - 1))
@settings(max_examples=100, deadline=None)
def test_of_a_shard_that_is_cut_off_the_whole_images_are_there(tmp_path_factory, length):
    whole = shard(PICTURES)
    found = contents(written(tmp_path_factory.getbasetemp() / "cut.tar", whole[:length]))
    there = {name: data for name, data in found.items() if data is not None}
    assert there.items() <= named("cut.tar/").items()
    assert len(there) == 4 or None in found.values()


def test_a_size_that_no_image_has_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MOST_BYTES", 10)
    with pytest.raises(ImageError, match="too many"):
        next(sources(written(tmp_path / "s.tar", shard(PICTURES)))).data()


def test_a_shard_that_has_changed_is_done_again(tmp_path):
    path, out = written(tmp_path / "s.tar", shard(PICTURES)), tmp_path / "out"
    assert predict_to(job_of(), sources(path), out).done == 4
    assert predict_to(job_of(), sources(path), out).skipped == 4
    written(path, shard({**PICTURES, "a/1.png": picture(9)}))
    assert predict_to(job_of(), sources(path), out).done == 4


def test_a_shard_gives_the_masks_of_the_same_files(model, tmp_path, sccam: Cli):  # noqa: F811
    for name, data in PICTURES.items():
        written(tmp_path / "in" / name, data)
    path = written(tmp_path / "s.tar", shard({**PICTURES, "broken.png": b"no picture"}))
    assert sccam("infer", model, tmp_path / "in", "-o", tmp_path / "files")[0] == 0
    code, _, err = sccam("infer", model, path, "-o", tmp_path / "shard")
    assert code == 5, err
    for name in PICTURES:
        assert sha256(tmp_path / f"files/masks/{name}") == sha256(tmp_path / f"shard/masks/s.tar/{name}")
    (wrong,) = lines(tmp_path / "shard/errors.jsonl")
    assert wrong["path"] == f"{path}/broken.png" and "not a picture" in wrong["reason"]


# Stores


def test_a_store_is_walked_as_a_folder_is(store, tmp_path, monkeypatch):
    for name, data in {**PICTURES, "a/1.jpg": picture(5), "notes.txt": b"x", "a/.hidden.png": b"x"}.items():
        store.pipe(f"/photos/{name}", data)
        written(tmp_path / name, data)
    assert contents("memory://photos") == contents(tmp_path)
    assert contents("memory://photos/a") == contents(tmp_path / "a")
    assert contents("memory://photos/deep/er/4.png") == {"4": PICTURES["deep/er/4.png"]}
    assert contents("memory://photos/*/1.png") == contents(f"{tmp_path}/*/1.png") == named(pictures=
        {name: data for name, data in PICTURES.items() if "1" in name})  # fmt: skip
    refused = type(store).ls

    def ls(self: Any, path: str, **options: Any) -> Any:
        if path.endswith("/deep"):
            raise PermissionError("no")
        return refused(self, path, **options)

    monkeypatch.setattr(type(store), "ls", ls)
    assert contents("memory://photos")["deep"] is None
    assert contents("-", lines=["memory://photos/a/2.png\n"]) == {"memory/photos/a/2": PICTURES["a/2.png"]}


def test_shards_in_a_store(store):
    for n in range(3):
        store.pipe(f"/shards/{n}.tar", shard({f"{n}.png": picture(n)}))
    every = {f"{n}.tar/{n}": picture(n) for n in range(3)}
    assert contents("memory://shards/*.tar") == contents("memory://shards/{0..2}.tar") == every
    assert list(contents("memory://s{0..1}/1.tar").values()) == [None, None], "numbers of buckets"
    assert contents("memory://shards/1.tar") == {"1.tar/1": picture(1)}


def test_an_object_that_has_changed_is_done_again(store, tmp_path):
    for name, data in PICTURES.items():
        store.pipe(f"/photos/{name}", data)
    assert predict_to(job_of(), sources("memory://photos"), tmp_path / "out").done == 4
    store.pipe("/photos/a/1.png", picture(7))
    summary = predict_to(job_of(), sources("memory://photos"), tmp_path / "out")
    assert (summary.done, summary.skipped) == (1, 3)
    assert {line["path"] for line in lines(tmp_path / "out/predictions.jsonl")} == {
        f"memory://photos/{name}" for name in PICTURES
    }


@pytest.mark.parametrize(
    ("address", "error", "says"),
    [
        ("memory://nothing/here", DataError, "nothing is there"),
        ("file:///etc", ConfigError, "no store"),
        ("ssh://host/x.png", ConfigError, "no store"),
        ("simplecache::s3://b/1.png", DataError, "no such image"),
        ("memory://photos/list.txt", DataError, "a list has to be on this machine"),
        ("s3://b/1.png::memory://x", ConfigError, "chained"),
    ],
)
def test_addresses_that_cannot_be_read_are_refused_in_words(address, error, says):
    with pytest.raises(error, match=says):
        list(sources(address))


def test_a_driver_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gcsfs", None)
    with pytest.raises(BackendUnavailable, match="gcsfs"):
        opened_store("gs://bucket/1.png")


def test_keys_in_an_address_are_shown_nowhere():
    assert shown("https://me:secret@host:80/a/1.png?signature=secret#x") == "https://host:80/a/1.png"
    assert shown("photos/a?b.png") == "photos/a?b.png"
    assert shown("abfs://photos@account.net/1.png") == "abfs://photos@account.net/1.png"
    error = ValueError("403, url='https://me:secret@host/1.png?key=a/secret+b' (https://host/2.png?key=secret)")
    assert stored._said(error) == "ValueError: 403, url='https://host/1.png' (https://host/2.png"


def test_a_store_that_fails_now_and_then_is_asked_again(store, monkeypatch):
    store.pipe("/photos/1.png", picture(1))
    whole, failures = type(store).cat_file, [2]

    def failing(self: Any, path: str, **options: Any) -> bytes:
        if failures[0]:
            failures[0] -= 1
            raise TimeoutError("no answer")
        data: bytes = whole(self, path, **options)
        return data

    monkeypatch.setattr(stored, "PAUSE", 0.0)
    monkeypatch.setattr(type(store), "cat_file", failing)
    assert contents("memory://photos") == {"1": picture(1)}
    failures[0] = 3
    with pytest.raises(ImageError, match="does not give it: TimeoutError: no answer"):
        next(sources("memory://photos")).data()


# Over HTTP


class Server(http.server.BaseHTTPRequestHandler):
    """Files with parts of them, HEAD and validators, as object stores have them."""

    files: dict[str, bytes]
    parts = True

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        path, _, query = self.path.partition("?")
        data = self.files.get(path)
        if data is None or query not in ("", "key=secret"):
            self.send_error(404 if data is None else 403)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.parts else None
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if self.parts:
            self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}")
        self.send_header("ETag", f'"{hash(data)}"')
        self.end_headers()
        if body:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    """Its address, and what it has."""
    pytest.importorskip("aiohttp", reason="needs the extra dev")

    class Here(Server):
        files = {f"/photos/{name}": data for name, data in PICTURES.items()} | {"/s.tar": shard(PICTURES)}

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", Here
        serving.shutdown()
        thread.join()


def test_images_and_shards_of_a_server(server, tmp_path, sccam: Cli, model):  # noqa: F811
    address, _ = server
    assert contents(f"{address}/photos/a/1.png") == {"1": PICTURES["a/1.png"]}
    assert contents(f"{address}/s.tar") == named("s.tar/")
    for name, data in PICTURES.items():
        written(tmp_path / "in" / name, data)
    listed = [f"{address}/photos/{name}?key=secret" for name in PICTURES]
    listed += [f"{address}/photos/a/1.png?key=another%2Fsecret", f"{address}/gone.png?key=secret"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    assert sccam("infer", model, tmp_path / "in", "-o", tmp_path / "files")[0] == 0
    code, _, err = sccam("infer", model, tmp_path / "list.txt", "-o", tmp_path / "out")
    assert code == 5, err
    prefix = address.replace("://", "/").replace("127.0.0.1:", "127.0.0.1")
    for name in PICTURES:
        assert sha256(tmp_path / f"files/masks/{name}") == sha256(tmp_path / f"out/masks/{prefix}/photos/{name}")
    assert len(lines(tmp_path / "out/errors.jsonl")) == 2
    for path in tmp_path.glob("out/*.json*"):
        assert "secret" not in path.read_text(), path


def test_a_server_that_gives_no_parts_of_a_file_is_told_of(server):
    address, here = server
    here.parts = False
    found = contents(f"{address}/s.tar")
    assert set(found.values()) == {None}, "other bytes than the member's are no image"
    assert contents(f"{address}/photos/a/1.png") == {"1": PICTURES["a/1.png"]}


def test_what_is_sent_to_other_processes_is_the_same(tmp_path):
    own = Source(tmp_path / "\udcff.png", "\udcff")
    for source in (own, *sources(written(tmp_path / "s.tar", shard(PICTURES)))):
        text = json.dumps(on_ray._packed(source))
        given, here = on_ray._unpacked(json.loads(text))
        assert given == source and here == source and here.fingerprint() == source.fingerprint()
    assert (
        Stored("s3://b/1.png", "s3://b/1.png")
        == on_ray._unpacked(on_ray._packed(Source(Path("x"), "1", Stored("s3://b/1.png", "s3://b/1.png"))))[0].stored
    )
