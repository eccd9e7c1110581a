"""Images that are no files of their own: members of tar shards, objects of a store, and members of shards in a store.

    shards/000.tar                   a WebDataset shard, or any tar file that is not compressed
    s3://bucket/photos               all images below it; a pattern, too: s3://bucket/photos/*.jpg
    s3://bucket/shards/000.tar       the images in it
    https://host/1.jpg               one image; what a server has below an address, it does not say

Stores are read by fsspec, with the access that its drivers find on the machine (s3fs for s3, gcsfs for gs, adlfs for
az, aiohttp for http). A shard is walked once, header by header, with 5 MB read ahead; members are read by their place
in it, by as many threads and workers as there are, so a shard is never held, unpacked or written. Nothing in a shard
but a plain file is read, and its name is never a path on a disk.

Formats: POSIX.1-2001 pax and ustar, GNU tar; https://github.com/webdataset/webdataset for what people put into them.
"""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from sccam.errors import BackendUnavailable, ConfigError, DataError, ImageError, SccamError

# of stores; memory is that of this process, for tests
PROTOCOLS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "hf", "http", "https", "memory")
SHARD_SUFFIX = ".tar"
MOST_BYTES = 1 << 30  # of one image
READ_AHEAD = 5 << 20  # [bytes] of a shard in a store, while its headers are read
TRIES = 3  # of a read from a store
PAUSE = 0.5  # [s] before the second one, and twice as long before the third
BLOCK = 512  # [bytes] of a tar file


@dataclass(frozen=True, slots=True)
class Stored:
    """The bytes of one image, somewhere.

    Attributes:
        where: for people, without keys that an address may hold.
        address: of the object, or the path or address of the shard that holds it.
        start, size: its bytes in a shard; of an object start is -1, and size, too, where nobody has asked for it.
        version: changes with the object or shard: [ns] the time of a file's last change, or what a store says.
        wrong: why there is no such image, though there is something of its name.
    """

    where: str
    address: str
    start: int = -1
    size: int = -1
    version: int | str = ""
    wrong: str = ""

    def fingerprint(self) -> dict[str, int | str]:
        """By which a change is seen, as far as it is known."""
        if self.size < 0:
            return {}
        return {"bytes": self.size, "mtime_ns" if isinstance(self.version, int) else "version": self.version}

    def read(self) -> bytes:
        """All of them.

        Raises:
            ImageError: they are not there, too many, or not to be had.
            BackendUnavailable: fsspec or its driver is not installed.
        """
        if self.wrong:
            raise ImageError(self.wrong, where=self.where)
        if self.size > MOST_BYTES:
            raise ImageError(f"{self.size:,} bytes are too many for an image", where=self.where)
        data = self._from_store() if is_address(self.address) else self._from_file()
        if self.size >= 0 and len(data) != self.size:
            raise ImageError(
                f"{len(data):,} bytes of {self.size:,} are there", where=self.where,
                why="it is cut off, has changed, or its server does not give parts of a file",
            )  # fmt: skip
        return data

    def _from_file(self) -> bytes:
        try:
            with open(self.address, "rb") as file:
                file.seek(self.start)
                return file.read(self.size)
        except OSError as error:
            raise ImageError(f"the shard cannot be read: {error.strerror}", where=self.where) from error

    def _from_store(self) -> bytes:
        system, path = opened_store(self.address)
        first, end = (self.start, self.start + self.size) if self.start >= 0 else (0, MOST_BYTES)
        if self.size == 0:  # of which some stores refuse to give a part
            return b""
        for left in reversed(range(TRIES)):
            try:
                data: bytes = system.cat_file(path, start=first, end=end)
                return data
            except FileNotFoundError:
                raise ImageError("it is missing", where=self.where, why="it was moved or removed") from None
            except PermissionError as error:
                raise ImageError(f"it may not be read: {_said(error)}", where=self.where) from None
            except Exception as error:  # every driver has kinds of its own
                if not left:
                    raise ImageError(
                        f"its store does not give it: {_said(error)}", where=self.where,
                        why="the network, or the right to read it", fix="the same command again tries it again",
                    ) from None  # fmt: skip
            time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
        raise AssertionError("unreachable")


def is_address(text: str) -> bool:
    """Whether it names something in a store, such as s3://bucket/1.jpg."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text) is not None


def shown(address: str) -> str:
    """An address without user, password and query, which may be a signature."""
    if not is_address(address):
        return address
    parts = urlsplit(address)
    user, _, host = parts.netloc.rpartition("@")
    keys = parts.scheme.startswith("http") or ":" in user  # else as in abfs://container@account
    return f"{parts.scheme}://{host if keys else parts.netloc}{parts.path}"


def _said(error: Exception) -> str:
    """What a driver says; an address in it may be written in another way than it was given."""
    text = f"{type(error).__name__}: {error}"
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]+://[^\s'\"<>]+", lambda found: shown(found[0]), text)


def opened_store(address: str) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path on it.

    Raises:
        ConfigError: a protocol that is not one of a store.
        BackendUnavailable: fsspec or its driver is not installed.
        DataError: the store refuses.
    """
    protocol = address.partition("://")[0].lower()
    if protocol not in PROTOCOLS:  # fsspec has others, that unpack, cache on the disk, or log in to machines
        raise ConfigError(f"no store has addresses of the kind {protocol}://", fix=f"use one of {', '.join(PROTOCOLS)}")
    if "::" in address:
        raise ConfigError("chained addresses are not read", where=shown(address), fix="name the object itself")
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        raise BackendUnavailable(
            f"{protocol}:// needs a driver that is not installed: {error}", fix="install the package that it names"
        ) from None
    except Exception as error:
        raise _refused(address, error) from None
    return system, path


class Store:
    """What a store has below an address, as `sources.walked` walks it.

    Raises:
        DataError: nothing is there, or the store refuses.
    """

    def __init__(self, address: str):
        self.address = address.rstrip("/")
        self._system, self._root = opened_store(self.address)
        self._facts: dict[str, dict[str, Any]] = {}  # of the files of one folder, by their paths below the root

    def is_folder(self) -> bool:
        """Whether there is something below it."""
        with _told_of(self.address):
            return bool(self._system.info(self._root)["type"] == "directory")

    def scan(self, folder: str) -> tuple[list[str], list[str]]:
        """Names of the files and of the folders in a folder.

        Raises:
            OSError: the store refuses; what its driver raises comes as such.
        """
        path = f"{self._root}/{folder}".rstrip("/")
        try:
            entries = self._system.ls(path, detail=True)
        except OSError:
            raise
        except Exception as error:
            raise OSError(_said(error)) from error
        files: list[str] = []
        folders: list[str] = []
        self._facts.clear()
        for entry in entries:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if not name or entry["name"].strip("/") == path.strip("/"):  # some stores list the folder in itself
                continue
            (folders if entry["type"] == "directory" else files).append(name)
            self._facts[f"{folder}/{name}" if folder else name] = entry
        return files, folders

    def matched(self) -> Iterator[tuple[str, Stored]]:
        """What a pattern finds, by its path below the part before the first wildcard."""
        with _told_of(self.address):
            found = self._system.glob(self._root, detail=True)
        fixed = re.split(r"[*?\[]", self._root, maxsplit=1)[0].rpartition("/")[0]
        for path, facts in sorted(found.items()):
            if facts["type"] != "directory":
                relative = path.removeprefix(fixed).lstrip("/")
                place = self.address.removesuffix(self._root.removeprefix(fixed))
                yield relative, self._stored(f"{place}/{relative}", facts)

    def stored(self, path: str = "") -> Stored:
        """The object at a path below the root, in the folder that was scanned last, or at the address itself."""
        if path:
            address = f"{self.address}/{path}"
            if path not in self._facts:
                return Stored(shown(address), address, wrong="the store does not list the folder")
            return self._stored(address, self._facts[path])
        with _told_of(self.address):
            return self._stored(self.address, self._system.info(self._root))

    def _stored(self, address: str, facts: dict[str, Any]) -> Stored:
        size = facts.get("size")
        return Stored(shown(address), address, size=-1 if size is None else int(size), version=_version(facts))


def members(address: str) -> Iterator[tuple[str, Stored]]:
    """The files of a shard with their names in it, in their order, as its headers are read.

    What cannot be read is one of them, with the reason: a link, or, with no name, the rest of a shard that is damaged
    or cut off.

    Args:
        address: of the shard, or its path.
    """
    at = shown(address)
    try:
        with _opened_shard(address) as (file, version), tarfile.open(fileobj=file, mode="r:") as tar:
            reached = 0
            while (member := tar.next()) is not None:
                if member.size < 0 or tar.offset <= reached:  # tarfile would go round and round
                    yield "", Stored(at, address, wrong=f"a member of a size below zero at byte {member.offset:,}")
                    return
                reached = tar.offset
                tar.members.clear()  # type: ignore[attr-defined]  # else those of a shard of millions would be held
                if member.isdir() or not member.name:
                    continue
                wrong = "" if member.isreg() and not member.issparse() else "a link or device in a shard, not a file"
                yield (
                    member.name,
                    Stored(f"{at}/{member.name}", address, member.offset_data, member.size, version, wrong),
                )
            if not _ends(file, tar.offset):  # tarfile takes a damaged or missing header for the end
                wrong = f"the shard is damaged or cut off at byte {tar.offset:,}: what came after it is lost"
                yield "", Stored(at, address, wrong=wrong)
    except SccamError as error:
        yield "", Stored(at, address, wrong=error.what)
    except Exception as error:  # tarfile raises what its header's numbers and texts raise
        yield "", Stored(at, address, wrong=f"the shard cannot be read: {_said(error)}")


def _ends(file: IO[bytes], offset: int) -> bool:
    """Whether a block of zeros is there, and nothing but zeros after it."""
    file.seek(offset)
    rest = file.read(BLOCK)
    whole = len(rest) == BLOCK
    while rest and not rest.strip(b"\0"):
        rest = file.read(READ_AHEAD)
    return whole and not rest


@contextmanager
def _opened_shard(address: str) -> Iterator[tuple[IO[bytes], int | str]]:
    if not is_address(address):
        with open(address, "rb") as file:
            yield file, Path(address).stat().st_mtime_ns
        return
    system, path = opened_store(address)
    version = _version(system.info(path))
    with system.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead") as file:
        yield file, version


def _version(facts: dict[str, Any]) -> str:
    """What a store says that changes with an object: its hash before its time."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "generation", "LastModified", "mtime", "updated", "created"):
        if facts.get(key):
            return str(facts[key]).strip('"')
    return ""


def _refused(address: str, error: Exception) -> DataError:
    at = shown(address)
    if isinstance(error, FileNotFoundError):
        return DataError("nothing is there", where=at, fix="compare the address with what the store lists")
    return DataError(f"the store refuses: {_said(error)}", where=at, why="the network, or the right to read it")


@contextmanager
def _told_of(address: str) -> Iterator[None]:
    """What a driver raises, in words."""
    try:
        yield
    except SccamError:
        raise
    except Exception as error:
        raise _refused(address, error) from None
