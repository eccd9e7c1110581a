"""A segmenter on any number of images: masks out, one line for each, never stopped by a bad file, resumable.

    read threads -> batches of one padded size -> network -> write threads: labels, CRF, mask, overlay

    OUT/masks/NAME.png        palette PNG: 0 background, c + 1 class c; labelmap.txt names them
    OUT/overlays/NAME.jpg     where asked for
    OUT/predictions.jsonl     one line an image, written after its mask has its name: also what a resumed run skips
    OUT/errors.jsonl          one line for each image that failed in the last run; the next run tries it again
    OUT/infer.json            model and options; another model or option in the same folder is refused
    OUT/summary.json          counts and speed of the last run
    OUT/running               only while a run goes on, or after one that was killed: the next one tidies up

Memory is that of the images on their way, whatever their number: every queue has a length. A result does not depend on
what else is in its batch.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from sccam.artifacts import RunFolder, read_json, replacing, write_json
from sccam.data.images import read_image
from sccam.data.masks import coloured, write_labelmap, write_mask
from sccam.errors import ConfigError, ImageError, Interrupted, ResourceError, RunFolderError, SccamError, ShapeError
from sccam.runtime.backends import Backends
from sccam.runtime.pool import worker_count
from sccam.runtime.segmenter import Segmenter
from sccam.runtime.sources import Source
from sccam.stages.crf import PRESETS, CrfConfig
from sccam.structures import ByteArray

SCHEMA = 1  # of infer.json
SAVES = ("mask", "overlay")
DEFAULT_BATCH = 4  # images; more gain nothing on a CPU
BATCH_PIXELS = 4 << 20  # [px] a batch has fewer images where they are large
AHEAD = 2  # images that each read thread is ahead, and results that each write thread may be behind
JPEG_QUALITY = 90  # of overlays

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the outputs of a folder, beside the model."""

    save: tuple[str, ...] = ("mask",)  # of `SAVES`
    crf: CrfConfig | None = None  # refine masks with a dense CRF of these settings


def options_of(save: Sequence[str], crf: str | None) -> Options:
    """Options by their names on the command line.

    Raises:
        ConfigError: an unknown output or CRF.
    """
    for name in save:
        if name not in SAVES:
            raise ConfigError(f"nothing is saved as {name!r}", fix=f"choose from {', '.join(SAVES)}")
    if crf is not None and crf not in PRESETS:
        raise ConfigError(f"no CRF {crf!r}", fix=f"choose from {', '.join(PRESETS)}")
    return Options(tuple(dict.fromkeys(save)), None if crf is None else PRESETS[crf])


@dataclass(frozen=True, slots=True)
class Prediction:
    """One image's result; `error` is None or says why there is none."""

    source: Source
    labels: ByteArray | None  # u8 [H W]
    error: SccamError | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one run over a folder."""

    done: int
    skipped: int  # there already
    failed: int
    seconds: float

    def line(self) -> str:
        """For a person."""
        rate = self.done / self.seconds if self.seconds > 0 else 0.0
        text = f"{self.done} images in {self.seconds:.1f} s, {rate:.1f} a second"
        text += f"; {self.skipped} were there already" if self.skipped else ""
        return text + (f"; {self.failed} failed, see errors.jsonl" if self.failed else "")


def predict(
    segmenter: Segmenter, found: Iterable[Source], *, crf: CrfConfig | None = None, batch: int = DEFAULT_BATCH,
    threads: int = 0,
) -> Iterator[Prediction]:  # fmt: skip
    """Label indices of every image, in the order in which batches are done; an image that fails is a result, too.

    Args:
        crf: refine with a dense CRF of these settings.
        batch: images a batch at most, all of one padded size.
        threads: that read images and that finish them; 0 for the cores.
    """
    yield from _finished(segmenter, found, batch, threads, _finisher(segmenter, crf))


def predict_to(
    segmenter: Segmenter,
    found: Iterable[Source],
    out: Path | str,
    options: Options = Options(),
    *,
    batch: int = DEFAULT_BATCH,
    threads: int = 0,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Summary:
    """Masks of all images in a folder; images whose line is there already are skipped.

    Args:
        options: what is written.
        batch, threads: as in `predict`.
        overwrite: forget what another model or other options left in the folder.
        on_progress: told (done, failed) after every image.

    Raises:
        RunFolderError: the folder holds results of another model or other options, or another process works on it.
        ResourceError: the disk is full or read-only; what is there stays, and a later run goes on.
        Interrupted: by Ctrl-C; a later run goes on.
    """
    started = time.monotonic()
    finish = _finisher(segmenter, options.crf)
    with RunFolder(out) as folder:
        _prepare(folder.path, segmenter, options, overwrite)
        marker, log = folder / "running", folder / "predictions.jsonl"
        if marker.exists():  # a killed run may have left half-written files under names of their own
            for path in folder.path.rglob(".*.tmp*"):
                path.unlink()
        marker.touch()
        names = _logged(log)
        skipped = done = failed = 0

        def waiting() -> Iterator[Source]:
            nonlocal skipped
            for source in found:
                if source.name in names:
                    skipped += 1
                else:
                    yield source

        def write(source: Source, image: ByteArray, outputs: Any, n: int) -> dict[str, Any]:
            labels = finish(source, image, outputs, n)
            return _write(folder.path, source, image, labels, segmenter.classes, options)

        with log.open("a", encoding="ascii") as lines, (folder / "errors.jsonl").open("w", encoding="ascii") as errors:
            try:
                for source, record, error in _streamed(segmenter, waiting(), batch, threads, write):
                    if error is None:
                        _append(lines, record)
                        done += 1
                    else:
                        _append(errors, {**_named(source), "class": type(error).__name__, "reason": error.what})
                        failed += 1
                    if on_progress is not None:
                        on_progress(done, failed)
            except KeyboardInterrupt:
                raise Interrupted("interrupted", where=out, fix="the same command goes on where it stopped") from None
        summary = Summary(done, skipped, failed, round(time.monotonic() - started, 3))
        write_json(folder / "summary.json", {**asdict(summary), "backend": segmenter.backend})
        marker.unlink()
    return summary


def _finished(
    segmenter: Segmenter, found: Iterable[Source], batch: int, threads: int, finish: Callable[..., ByteArray]
) -> Iterator[Prediction]:
    for source, labels, error in _streamed(segmenter, found, batch, threads, finish):
        yield Prediction(source, labels, error)


def _streamed(
    segmenter: Segmenter, found: Iterable[Source], batch: int, threads: int, finish: Callable[..., Result]
) -> Iterator[tuple[Source, Result | None, SccamError | None]]:
    """(source, result of `finish`, None) or (source, None, error) for every image."""
    threads = worker_count(threads)
    with ExitStack() as stack:
        readers, writers = (stack.enter_context(ThreadPoolExecutor(threads)) for _ in range(2))
        ending: deque[tuple[Source, Future[Result]]] = deque()

        def ended(most: int) -> Iterator[tuple[Source, Result | None, SccamError | None]]:
            while len(ending) > most:
                source, future = ending.popleft()
                try:
                    yield source, future.result(), None
                except ResourceError:
                    raise  # the disk is full: no later image would fare better
                except SccamError as error:
                    yield source, None, error
                except (OSError, MemoryError) as error:  # such as a name that is too long for the file system
                    yield source, None, ResourceError(f"its result cannot be made or written: {error}")

        try:
            for group in _grouped(segmenter, _read_ahead(readers, found, AHEAD * threads), batch):
                if isinstance(group, Prediction):
                    yield group.source, None, group.error
                    continue
                for part, outputs, error in _run(segmenter, group):
                    for n, (source, image, _) in enumerate(part):
                        if error is not None:
                            yield source, None, error
                        else:
                            ending.append((source, writers.submit(finish, source, image, outputs, n)))
                yield from ended(AHEAD * threads * batch)
            yield from ended(0)
        finally:
            for _, future in ending:
                future.cancel()


def _read_ahead(
    pool: ThreadPoolExecutor, found: Iterable[Source], most: int
) -> Iterator[tuple[Source, ByteArray | ImageError]]:
    """Images in their order, `most` of them on the way."""
    reading: deque[tuple[Source, Future[ByteArray]]] = deque()

    def taken() -> tuple[Source, ByteArray | ImageError]:
        source, future = reading.popleft()
        try:
            return source, future.result()
        except ImageError as error:
            return source, error

    try:
        for source in found:
            reading.append((source, pool.submit(read_image, source.path)))
            if len(reading) >= most:
                yield taken()
        while reading:
            yield taken()
    finally:
        for _, future in reading:
            future.cancel()


Loaded = tuple[Source, ByteArray, ByteArray]  # image, padded image


def _grouped(
    segmenter: Segmenter, images: Iterable[tuple[Source, ByteArray | ImageError]], batch: int
) -> Iterator[list[Loaded] | Prediction]:
    """Groups of one padded size, and images that could not be read. At most two batches wait for their like."""
    waiting: dict[tuple[int, ...], list[Loaded]] = {}
    for source, image in images:
        if isinstance(image, ImageError):
            yield Prediction(source, None, image)
            continue
        padded = segmenter.padded(image)
        group = waiting.setdefault(padded.shape, [])
        group.append((source, image, padded))
        if len(group) >= max(1, min(batch, BATCH_PIXELS // (padded.shape[0] * padded.shape[1]))):
            yield waiting.pop(padded.shape)
        elif sum(map(len, waiting.values())) > 2 * batch:
            yield waiting.pop(next(iter(waiting)))  # the size that has waited longest
    yield from waiting.values()


def _run(segmenter: Segmenter, group: list[Loaded]) -> Iterator[tuple[list[Loaded], Any, SccamError | None]]:
    """Parts of a group with the network's outputs, or one image with its error: a batch that fails is halved."""
    try:
        outputs = segmenter.run(np.stack([padded for _, _, padded in group]))
    except Exception as error:  # out of memory has another class in every runtime; a size may have no bucket
        if len(group) > 1:
            for part in (group[: len(group) // 2], group[len(group) // 2 :]):
                yield from _run(segmenter, part)
            return
        known = error if isinstance(error, SccamError) else ShapeError(f"the network failed: {error}")
        yield group, None, known
        return
    yield group, outputs, None


def _finisher(segmenter: Segmenter, crf: CrfConfig | None) -> Callable[..., ByteArray]:
    """What makes the labels of one image from the outputs of its batch."""
    refine = Backends().resolved().function("crf") if crf is not None else None
    alone = {"threads": 1} if refine and "threads" in inspect.signature(refine).parameters else {}  # one image a thread

    def finish(source: Source, image: ByteArray, outputs: Any, n: int) -> ByteArray:
        size = (image.shape[0], image.shape[1])
        if refine is None:
            return segmenter.labels(outputs, n, size)
        logits = segmenter.logits(outputs, n, size)
        weights = np.exp(logits - logits.max(axis=0))
        ((posterior,),) = refine([image], [[weights / weights.sum(axis=0)]], crf, **alone)
        return np.asarray(posterior.argmax(axis=0), np.uint8)

    return finish


def _write(
    out: Path, source: Source, image: ByteArray, labels: ByteArray, classes: Sequence[str], options: Options
) -> dict[str, Any]:
    """Writes what `options.save` asks for; the line of the image."""
    record: dict[str, Any] = {**_named(source), "size": list(labels.shape)}
    if "mask" in options.save:
        record["mask"] = f"masks/{source.name}.png"
        write_mask(out / record["mask"], labels)
    if "overlay" in options.save:
        record["overlay"] = f"overlays/{source.name}.jpg"
        with replacing(out / record["overlay"]) as temporary:
            Image.fromarray(coloured(image, labels)).save(temporary, format="JPEG", quality=JPEG_QUALITY)
    areas = np.bincount(labels.ravel(), minlength=len(classes) + 1)
    record["pixels"] = {name: int(area) for name, area in zip(classes, areas[1:], strict=False) if area}
    return record


def _prepare(out: Path, segmenter: Segmenter, options: Options, overwrite: bool) -> None:
    """A new folder, or one of the same model and options."""
    plan = {
        "schema": SCHEMA,
        "model": segmenter.path.name,
        "sha256": segmenter.manifest.sha256,
        "backend": segmenter.backend,
        "save": list(options.save),
        "crf": None if options.crf is None else asdict(options.crf),
    }
    path = out / "infer.json"
    if path.exists() and not overwrite:
        before = read_json(path)
        changed = [f"{key}: {before.get(key)} -> {value}" for key, value in plan.items() if before.get(key) != value]
        if changed:
            listed = "\n".join(f"    {line}" for line in changed)
            raise RunFolderError(
                f"the folder holds results of another model or other options\n{listed}",
                where=out,
                fix="choose another --out, or forget those results with --overwrite",
            )
        return
    foreign = [entry.name for entry in out.iterdir() if entry.name not in ("lock", "infer.json", "labelmap.txt")]
    if foreign and not path.exists():
        raise RunFolderError(
            f"the folder holds other files: {', '.join(sorted(foreign)[:5])}", where=out, fix="choose an empty --out"
        )
    (out / "predictions.jsonl").unlink(missing_ok=True)
    for kind in ("masks", "overlays"):  # of the other model; infer.json says that they are ours
        if path.exists():
            shutil.rmtree(out / kind, ignore_errors=True)
    write_labelmap(out / "labelmap.txt", segmenter.classes)
    write_json(path, plan)


def _logged(log: Path) -> set[str]:
    """Names of the images that are done; half a line, which a kill left, is cut off."""
    if not log.exists():
        return set()
    names, end = set(), 0
    with log.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            names.add(json.loads(line)["name"])
            end += len(line)
    if end < log.stat().st_size:
        os.truncate(log, end)
    return names


def _named(source: Source) -> dict[str, str]:
    return {"name": source.name, "path": str(source.path)}


def _append(file: Any, record: Any) -> None:
    file.write(json.dumps(record) + "\n")  # ASCII: a name that is not UTF-8 is escaped, not refused
    file.flush()
