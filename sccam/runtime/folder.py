"""A job on a folder of any number of images: masks out, one line for each image, resumable.

    OUT/masks/NAME.png        palette PNG: 0 background, c + 1 class c; labelmap.txt names them
    OUT/overlays/NAME.jpg     where asked for
    OUT/scores/NAME.npz       where asked for: probabilities as fp16 on the network's grid
    OUT/coco.json  OUT/yolo/  OUT/labelstudio.json  OUT/voc/      where asked for, of all masks, at the end of a run
    OUT/predictions.jsonl     one line an image, written after its files have their names: also what a resumed run skips
    OUT/errors.jsonl          one line for each image that failed in the last run; the next run tries it again
    OUT/infer.json            model and options; another model or option in the same folder is refused
    OUT/summary.json          counts and speed of the last run
    OUT/running               only while a run goes on, or after one that was killed: the next one tidies up

An image that has changed since its line was written is done again. A result does not depend on what else is in its
batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from sccam.artifacts import RunFolder, is_leftover, read_json, replacing, write_arrays, write_json, writing
from sccam.data.masks import coloured, write_labelmap, write_mask
from sccam.errors import ConfigError, Interrupted, RunFolderError, SccamError
from sccam.labels.convert import write_formats
from sccam.runtime.pipeline import Done, Job, Loaded, stream
from sccam.runtime.segmenter import Labelled
from sccam.runtime.sources import Source, outside
from sccam.structures import ByteArray

SCHEMA = 2  # of infer.json
CONVERTED = ("coco", "yolo", "labelstudio", "voc")  # made of the masks when all are there
SAVES = ("mask", "overlay", "scores", *CONVERTED)
FOLDERS = {"mask": "masks", "overlay": "overlays", "scores": "scores"}
JPEG_QUALITY = 90  # of overlays


class Described(Protocol):
    """What a folder of results has to know of the job that makes them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Without background."""

    def plan(self) -> dict[str, Any]:
        """What decides the results, as plain values."""

    def notes(self) -> list[str]:
        """What a person should know before the work begins."""


class LabelJob(Described, Job[Labelled], Protocol):
    """A job whose results are labels."""

    def loaded(self, source: Source, image: ByteArray) -> Loaded:
        """What `load` gives of an image that was read, u8 [H W 3]."""


Images = Callable[[Path, Sequence[str], Iterator[Source]], Generator[Done[Any], None, None]]
"""What is written into a folder, of these kinds, from these images: each one's line, or its error."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's result; `error` is None or says why there is none."""

    source: Source
    labels: ByteArray | None  # u8 [H W]
    facts: dict[str, Any]  # what else the job says of it
    error: SccamError | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one run over a folder."""

    done: int
    skipped: int  # there already
    failed: int
    seconds: float
    ms: dict[str, float] = field(default_factory=dict)  # mean milliseconds an image by step; steps overlap

    def line(self) -> str:
        """For a person."""
        rate = self.done / self.seconds if self.seconds > 0 else 0.0
        text = f"{self.done} images in {self.seconds:.1f} s, {rate:.1f} a second"
        if self.ms:
            text += " (" + ", ".join(f"{step} {ms:.0f} ms" for step, ms in self.ms.items()) + " an image, overlapping)"
        text += f"; {self.skipped} were there already" if self.skipped else ""
        return text + (f"; {self.failed} failed, see errors.jsonl" if self.failed else "")


def checked_saves(save: Sequence[str]) -> tuple[str, ...]:
    """Names of outputs, each once; the formats that are made of masks need the masks.

    Raises:
        ConfigError: an unknown one.
    """
    for name in save:
        if name not in SAVES:
            raise ConfigError(f"nothing is saved as {name!r}", fix=f"choose from {', '.join(SAVES)}")
    return tuple(dict.fromkeys([*(["mask"] if set(save) & set(CONVERTED) else []), *save]))


def predict(job: LabelJob, found: Iterable[Source], *, batch: int = 0, threads: int = 0) -> Iterator[Prediction]:
    """Labels of every image, in the order in which batches are done; an image that fails is a result, too.

    Args:
        batch, threads: as in `pipeline.stream`.
    """
    for done in stream(job, found, batch=batch, threads=threads):
        labelled = done.result
        labels, facts = (None, {}) if labelled is None else (labelled.labels, labelled.facts)
        yield Prediction(done.source, labels, facts, done.error)


def predict_to(
    job: LabelJob,
    found: Iterable[Source],
    out: Path | str,
    save: Sequence[str] = ("mask",),
    *,
    batch: int = 0,
    threads: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Files of all images in a folder, made by this process; images whose line is there already are skipped.

    Args:
        batch, threads: as in `pipeline.stream`.
        save, overwrite, on_progress: as in `collect`, which says what is raised, too.
    """

    def images(place: Path, kinds: Sequence[str], waiting: Iterator[Source]) -> Generator[Done[Any], None, None]:
        return stream(Writing(job, place, kinds), waiting, batch=batch, threads=threads)

    return collect(job, images, found, out, save, overwrite=overwrite, on_progress=on_progress)


def collect(
    job: Described,
    images_of: Images,
    found: Iterable[Source],
    out: Path | str,
    save: Sequence[str] = ("mask",),
    *,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Files of all images in a folder, whoever makes them; images whose line is there already are skipped.

    Args:
        images_of: makes them.
        save: what is written, of `SAVES`.
        overwrite: forget what another model or other options left in the folder.
        on_progress: told (done, failed) after every image.

    Raises:
        RunFolderError: the folder holds results of another model or other options, or another process works on it.
        ResourceError: the disk is full or read-only; what is there stays, and a later run goes on.
        Interrupted: by Ctrl-C; a later run goes on.
    """
    started, save = time.monotonic(), checked_saves(save)
    with RunFolder(out) as folder:
        _prepare(folder.path, job, save, overwrite)
        marker, log = folder / "running", folder / "predictions.jsonl"
        if marker.exists():
            folder.tidy()
        marker.touch()
        there = _logged(log)
        skipped = done = failed = 0
        spent: Counter[str] = Counter()

        def waiting() -> Iterator[Source]:
            nonlocal skipped
            for source in outside(found, folder.path):
                if _key(source.name, source.fingerprint()) in there:
                    skipped += 1
                else:
                    yield source

        with (
            _lines(log, "a") as add_line,
            _lines(folder / "errors.jsonl", "w") as add_error,
            closing(images_of(folder.path, save, waiting())) as images,
        ):  # closed, so that no thread writes on when the lock is free again
            try:
                for image in images:
                    if image.result is not None:
                        add_line(image.result)
                        spent.update(image.result["ms"])
                        done += 1
                    elif image.error is not None:
                        reason = {"class": type(image.error).__name__, "reason": image.error.what}
                        add_error({**_named(image.source), **reason})
                        failed += 1
                    if on_progress is not None:
                        on_progress(done, failed)
            except KeyboardInterrupt:
                raise Interrupted("interrupted", where=out, fix="the same command goes on where it stopped") from None
        write_formats(folder.path, [name for name in save if name in CONVERTED])
        mean = {step: round(ms / done, 1) for step, ms in spent.items()}
        summary = Summary(done, skipped, failed, round(time.monotonic() - started, 3), mean)
        write_json(folder / "summary.json", {**asdict(summary), **job.plan()})
        marker.unlink()
    return summary


class Writing:
    """A job whose results are written; what it gives is the image's line.

    Args:
        load: in place of the job's, with the file's fingerprint among the facts of what it gives.
    """

    def __init__(
        self, job: LabelJob, out: Path, save: Sequence[str], load: Callable[[Source], Loaded] | None = None
    ):  # fmt: skip
        self.job, self.out, self.save = job, out, save
        self.lanes, self.batch_pixels = job.lanes, job.batch_pixels
        self.load = load or self._load

    def _load(self, source: Source) -> Loaded:
        before = source.fingerprint()  # first: a change while it is read must not go unseen
        loaded = self.job.load(source)
        loaded.facts["fingerprint"] = before
        return loaded

    def run(self, group: Sequence[Loaded]) -> Sequence[Any]:
        return self.job.run(group)

    def finish(self, loaded: Loaded, output: Any) -> dict[str, Any]:
        started = time.perf_counter()
        labelled = self.job.finish(loaded, output)
        loaded.ms["labels"] = round(1e3 * (time.perf_counter() - started), 2)
        return self._write(loaded, labelled)

    def _write(self, loaded: Loaded, labelled: Labelled) -> dict[str, Any]:
        started = time.perf_counter()
        name, labels = loaded.source.name, labelled.labels
        record: dict[str, Any] = {**_named(loaded.source), "size": list(labels.shape), **loaded.facts["fingerprint"]}
        if "mask" in self.save:
            record["mask"] = f"masks/{name}.png"
            write_mask(self.out / record["mask"], labels)
        if "overlay" in self.save:
            record["overlay"] = f"overlays/{name}.jpg"
            with replacing(self.out / record["overlay"]) as temporary:
                Image.fromarray(coloured(loaded.image, labels)).save(temporary, format="JPEG", quality=JPEG_QUALITY)
        if "scores" in self.save and labelled.scores is not None:
            record["scores"] = f"scores/{name}.npz"
            write_arrays(self.out / record["scores"], labelled.scores())
        areas = np.bincount(labels.ravel(), minlength=len(self.job.classes) + 1)
        record["pixels"] = {label: int(area) for label, area in zip(self.job.classes, areas[1:], strict=False) if area}
        record |= labelled.facts
        record["ms"] = {**loaded.ms, "write": round(1e3 * (time.perf_counter() - started), 2)}
        return record


def _prepare(out: Path, job: Described, save: Sequence[str], overwrite: bool) -> None:
    """A new folder, or one of the same model and options."""
    plan = json.loads(json.dumps({"schema": SCHEMA, **job.plan(), "save": list(save)}))  # as it will be read back
    path = out / "infer.json"
    if path.exists() and not overwrite:
        before = read_json(path)
        names = dict.fromkeys([*plan, *before])
        changed = [f"{n}: {before.get(n)} -> {plan.get(n)}" for n in names if before.get(n) != plan.get(n)]
        if changed:
            listed = "\n".join(f"    {line}" for line in changed)
            raise RunFolderError(
                f"the folder holds results of another model or other options\n{listed}",
                where=out,
                fix="choose another --out, or forget those results with --overwrite",
            )
        return
    own = ("lock", "infer.json", "labelmap.txt")
    foreign = [entry.name for entry in out.iterdir() if entry.name not in own and not is_leftover(entry.name)]
    if foreign and not path.exists():
        raise RunFolderError(
            f"the folder holds other files: {', '.join(sorted(foreign)[:5])}", where=out, fix="choose an empty --out"
        )
    (out / "predictions.jsonl").unlink(missing_ok=True)
    if path.exists():  # infer.json says that what lies in them is ours
        for kind in (*FOLDERS.values(), "yolo", "voc"):
            shutil.rmtree(out / kind, ignore_errors=True)
        for name in ("coco.json", "labelstudio.json", "labelstudio.xml"):
            (out / name).unlink(missing_ok=True)
    write_labelmap(out / "labelmap.txt", job.classes)
    write_json(path, plan)


class _Keys:
    """Which images are done: eight bytes for each, so that a list of millions stays small."""

    def __init__(self, keys: Iterable[int]):
        self._sorted = np.sort(np.fromiter(keys, np.uint64))

    def __contains__(self, key: int) -> bool:
        at = int(np.searchsorted(self._sorted, np.uint64(key)))
        return at < len(self._sorted) and int(self._sorted[at]) == key


def _key(name: str, state: dict[str, int | str]) -> int:
    """Of an image in a state. Two of a million collide once in forty million runs."""
    text = f"{name}\0{state.get('bytes')}\0{state.get('mtime_ns', state.get('version'))}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def _logged(log: Path) -> _Keys:
    """The images that are done; half a line, which a kill left, is cut off."""
    if not log.exists():
        return _Keys(())
    end = 0

    def keys() -> Iterator[int]:
        nonlocal end
        with log.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = json.loads(line)
                yield _key(record["name"], record)
                end += len(line)

    found = _Keys(keys())
    if end < log.stat().st_size:
        os.truncate(log, end)
    return found


def _named(source: Source) -> dict[str, str]:
    return {"name": source.name, "path": source.where}


@contextmanager
def _lines(path: Path, mode: str) -> Iterator[Callable[[Any], None]]:
    """What adds a line to a file, at once; a disk that takes no more is told of with the file's name."""
    with writing(path):
        file = path.open(mode, encoding="ascii")

    def add(record: Any) -> None:
        with writing(path):
            file.write(json.dumps(record) + "\n")  # ASCII: a name that is not UTF-8 is escaped, not refused
            file.flush()

    try:
        yield add
    finally:
        with writing(path):
            file.close()
