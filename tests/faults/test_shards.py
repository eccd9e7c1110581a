"""Tar shards that are damaged, cut off, or made to lead out: every image is there or told of, and in its place."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from sccam.runtime.folder import predict_to
from sccam.runtime.sources import sources
from tests.faults.conftest import Tally
from tests.runtime.formula import job_of, lines
from tests.runtime.test_stored import PICTURES, shard

EACH = 20  # shards a call


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """With flipped bits, without its end, with zeros in it, or with two blocks in each other's place."""
    data, at = bytearray(whole), rng.randrange(len(whole))
    how = rng.randrange(4)
    if how == 0:
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif how == 1:
        del data[at:]
    elif how == 2:
        data[at : at + 700] = bytes(len(data[at : at + 700]))
    else:
        one, other = (512 * rng.randrange(len(data) // 512) for _ in range(2))
        data[one : one + 512], data[other : other + 512] = data[other : other + 512], data[one : one + 512]
    return bytes(data)


@pytest.mark.fault(1, 40)
@pytest.mark.promise("each")
def test_every_image_of_a_damaged_shard_is_there_or_told_of(tally: Tally, full: bool, tmp_path: Path) -> None:
    rng, whole = random.Random(0), shard(PICTURES)
    for round in range((2000 if full else 200) // EACH):
        place = tmp_path / f"{round}"
        place.mkdir()
        for n in range(EACH):
            tally.injected += 1
            (place / f"{n}.tar").write_bytes(damaged(whole, rng))
        predict_to(job_of(), sources(f"{place}/*.tar"), place / "out")
        done = [line["name"] for line in lines(place / "out/predictions.jsonl")]
        told = {line["name"].partition("/")[0] for line in lines(place / "out/errors.jsonl")}
        assert len(done) == len(set(done))
        for n in range(EACH):
            every = {f"{n}.tar/{name.removesuffix('.png')}" for name in PICTURES} <= set(done)
            tally.lost += not every and f"{n}.tar" not in told
            tally.survived += every or f"{n}.tar" in told
        masks = {path.relative_to(place / "out/masks").as_posix() for path in place.glob("out/masks/**/*.png")}
        assert masks == {f"{name}.png" for name in done}


LEADING = (
    "CANARY", "../../../canary.png", "a/../../../../canary.png", "\\\\..\\canary.png", "a\n/canary.png",
    "\x1b[2J/canary.png", "~/canary.png", "-rf/canary.png", "C:/canary.png", f"{'a' * 3000}/canary.png",
)  # fmt: skip


@pytest.mark.fault(31, 40)
@pytest.mark.promise("code")
def test_nothing_is_written_where_a_members_name_leads(tally: Tally, tmp_path: Path) -> None:
    picture, inner = PICTURES["a/1.png"], tmp_path / "here/in"
    inner.mkdir(parents=True)
    canary = tmp_path / "canary.png"
    for name in LEADING:
        for kind in (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
            tally.injected += 1
            made = io.BytesIO()
            with tarfile.open(fileobj=made, mode="w") as tar:
                member = tarfile.TarInfo(name.replace("CANARY", str(canary)))
                member.type, member.linkname = kind, str(canary)
                member.size = len(picture) if kind == tarfile.REGTYPE else 0
                tar.addfile(member, io.BytesIO(picture))
            path = inner / f"{tally.injected}.tar"
            path.write_bytes(made.getvalue())
            summary = predict_to(job_of(), sources(path), tmp_path / f"here/out/{tally.injected}")
            assert summary.done + summary.failed == 1 and (kind == tarfile.REGTYPE or summary.failed)
            tally.fired += canary.exists()
            assert [entry.name for entry in tmp_path.iterdir()] == ["here"]
            assert sorted(entry.name for entry in (tmp_path / "here").iterdir()) == ["in", "out"]
            tally.survived += 1
