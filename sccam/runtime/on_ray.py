"""Engine "ray": the images of a folder on the workers of a Ray cluster; files, lines and errors as without it.

    sources -> blocks of them -> decoded images, by tasks on CPUs -> labels and files, by labellers -> lines

A labeller is an actor with networks of its own, on a GPU of its own where there are GPUs. Ray Data moves the blocks,
holds back what the labellers cannot take yet, and gives what a dead worker had to another one. An image's files are
written before its line is told, and its line once, so nothing is lost or told twice. All workers see the images and OUT
under the same paths, and have this package. Ray is imported here alone, and when a function is called.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sccam import errors
from sccam.artifacts import RunFolder
from sccam.data.images import read_image
from sccam.errors import BackendUnavailable, ConfigError, ResourceError, SccamError
from sccam.runtime.folder import LabelJob, Writing
from sccam.runtime.pipeline import Done, Loaded, stream
from sccam.runtime.sources import Source
from sccam.runtime.stored import Stored, is_address

NAMES_A_BLOCK = 256  # the piece of work that is done again where a worker dies
IMAGES_A_CALL = 32  # decoded images that a labeller gets at a time
CPUS = 0.5  # of each decoding task and of each labeller without a GPU: on two cores two of either go on


@dataclass(frozen=True)
class Description:
    """A job that runs elsewhere: what the folder has to know of it."""

    classes: tuple[str, ...]
    facts: dict[str, Any]
    lines: list[str]

    def plan(self) -> dict[str, Any]:
        """As the job's."""
        return self.facts

    def notes(self) -> list[str]:
        """As the job's."""
        return self.lines


class Cluster:
    """Labellers on a Ray cluster, for `predict_to`; made by `connected`."""

    def __init__(self, ray: Any, open_job: Callable[[], LabelJob], labellers: int, gpu: bool, batch: int):
        self._ray, self._open_job, self._batch = ray, open_job, batch
        self.labellers, self._gpu = labellers, gpu

    def describe(self) -> Description:
        """The job, as a worker that may run it opens it."""

        def described(open_job: Callable[[], LabelJob]) -> Description:
            job = open_job()
            return Description(job.classes, job.plan(), job.notes())

        task = self._ray.remote(num_gpus=int(self._gpu), num_cpus=CPUS)(described)
        with _own_errors():
            found: Description = self._ray.get(task.remote(self._open_job))
        return found

    def images(self, out: Path, save: Sequence[str], waiting: Iterable[Source]) -> Generator[Done[Any], None, None]:
        """Every image, done or failed, in the order in which workers tell of them."""
        import pyarrow
        import ray.data

        blocks = [self._ray.put(block) for block in _blocks(pyarrow, waiting)]
        if not blocks:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        resources = {"num_gpus": 1} if self._gpu else {"num_cpus": CPUS}
        lines = (
            ray.data.from_arrow_refs(blocks)
            .map_batches(_decode, batch_size=IMAGES_A_CALL, batch_format="pyarrow", num_cpus=CPUS)
            .map_batches(
                _Labeller,
                batch_size=IMAGES_A_CALL, batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(self.labellers, len(blocks))),
                fn_constructor_args=(self._open_job, os.path.abspath(out), tuple(save), self._batch), **resources,
            )
        )  # fmt: skip
        with _own_errors():
            for batch in lines.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                table: Any = batch
                for line in table.column("line").to_pylist():
                    yield _done(json.loads(line))
        RunFolder(out).tidy()  # what workers that died had begun to write


@contextmanager
def connected(
    open_job: Callable[[], LabelJob], *, device: str, labellers: int = 0, batch: int = 0
) -> Iterator[Cluster]:
    """A cluster that is there already (RAY_ADDRESS), or one of this machine alone for as long as the block.

    Args:
        open_job: opens the job; is sent to workers.
        device: "auto", "cpu" or "cuda".
        labellers: 0: one for each GPU of the cluster, or for every second core.
        batch: images a batch of the network; 0 as in `pipeline.stream`.

    Raises:
        BackendUnavailable: Ray is not installed, or there is no GPU where one is asked for.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data's own actors alarm it
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise BackendUnavailable(
            f"engine ray needs Ray Data: {error}", fix='pip install "sccam[scale]", or leave out --engine'
        ) from None
    own = not ray.is_initialized()
    if own:
        alone = None if os.environ.get("RAY_ADDRESS") else False
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=alone)
    try:
        there = ray.cluster_resources()
        gpus, cores = int(there.get("GPU", 0)), int(there.get("CPU", 1))
        gpu = device != "cpu" and gpus > 0
        if device.startswith("cuda") and not gpus:
            raise BackendUnavailable("no worker of the Ray cluster has a GPU", fix="--device cpu, or add one")
        most = gpus if gpu else max(1, int(cores / (2 * CPUS)))
        if labellers > most:
            raise ConfigError(
                f"{labellers} labellers are too many for {gpus} GPUs" if gpu else
                f"{labellers} labellers are too many for {cores} cores", fix=f"ask for at most {most}"
            )  # fmt: skip
        yield Cluster(ray, open_job, labellers or (gpus if gpu else max(1, cores // 2)), gpu, batch)
    finally:
        if own:
            ray.shutdown()


def _blocks(pyarrow: Any, waiting: Iterable[Source]) -> Iterator[Any]:
    """Tables of sources, as text that any worker reads."""
    rest = iter(waiting)
    while found := list(islice(rest, NAMES_A_BLOCK)):
        yield pyarrow.table({"source": [_packed(one) for one in found]})


def _packed(source: Source) -> str:
    """With paths that hold on any worker beside the path as it was given; ASCII, since not every name is text."""
    stored = None if source.stored is None else asdict(source.stored)
    if stored and not is_address(stored["address"]):
        stored["address"] = os.path.abspath(stored["address"])
    return json.dumps([source.name, str(source.path), os.path.abspath(source.path), stored])


def _unpacked(text: str) -> tuple[Source, Source]:
    """As it was given, and as this worker finds it."""
    name, path, place, stored = json.loads(text)
    bytes_of = None if stored is None else Stored(**stored)
    return Source(Path(path), name, bytes_of), Source(Path(place), name, bytes_of)


def _decode(batch: Any) -> Any:
    """Sources -> images: pixels as bytes, and facts of the file; on any CPU of the cluster."""
    import pyarrow

    pixels, facts = [], []
    for text in batch.column("source").to_pylist():
        started, (_, source) = time.perf_counter(), _unpacked(text)
        try:
            state = source.fingerprint()  # first: a change while it is read must not go unseen
            image = read_image(source.path, data=source.data())
        except (SccamError, MemoryError) as error:
            pixels.append(b"")
            facts.append(json.dumps({"error": _told(error)}))
            continue
        pixels.append(image.tobytes())
        facts.append(json.dumps({"shape": image.shape, "fingerprint": state, "ms": _ms_since(started)}))
    table = {"source": batch.column("source"), "facts": facts}
    return pyarrow.table({**table, "pixels": pyarrow.array(pixels, "large_binary")})


class _Labeller:
    """Decoded images -> files and lines; keeps its networks open."""

    def __init__(self, open_job: Callable[[], LabelJob], out: str, save: Sequence[str], batch: int):
        self._job, self._batch = open_job(), batch
        self._out, self._save = Path(out), save

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        given = {_unpacked(text)[0]: row for row, text in enumerate(batch.column("source").to_pylist())}
        facts = [json.loads(text) for text in batch.column("facts").to_pylist()]
        pixels, job = batch.column("pixels"), self._job

        def load(source: Source) -> Loaded:
            row = given[source]
            if wrong := facts[row].get("error"):
                raise _error(wrong)
            image = np.frombuffer(pixels[row].as_buffer(), np.uint8).reshape(facts[row]["shape"])
            loaded = job.loaded(source, image)
            loaded.ms["read"] = facts[row]["ms"]
            loaded.facts["fingerprint"] = facts[row]["fingerprint"]
            return loaded

        writing = Writing(job, self._out, self._save, load)
        lines = []
        for done in stream(writing, given, batch=self._batch, threads=1):
            named = {"name": done.source.name, "path": done.source.where}
            told = {"result": done.result} if done.error is None else {"error": _told(done.error), **named}
            lines.append(json.dumps(told))
        return pyarrow.table({"line": lines})


def _done(told: dict[str, Any]) -> Done[Any]:
    facts = told.get("result") or told
    path = facts["path"]
    source = Source(Path(path), facts["name"], Stored(path, path) if is_address(path) else None)
    if "error" in told:
        return Done(None, source, None, _error(told["error"]))
    return Done(None, source, told["result"], None)


def _told(error: BaseException) -> list[str]:
    """Class and text of an error, which cross processes as they are."""
    if isinstance(error, MemoryError):
        return ["ImageError", "there is not enough memory to read it"]
    return [type(error).__name__, error.what if isinstance(error, SccamError) else str(error)]


def _error(told: Sequence[str]) -> SccamError:
    found: SccamError = getattr(errors, told[0], SccamError)(told[1])
    return found


@contextmanager
def _own_errors() -> Iterator[None]:
    """What a worker raised, as it raised it; what Ray raises, in words."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and (isinstance(cause, RayError) or not isinstance(cause, SccamError)):
            cause = getattr(cause, "cause", None) or cause.__cause__  # Ray's own are instances of both
        if cause is not None:
            raise cause from None
        raise ResourceError(
            f"the Ray cluster gave up: {str(error).strip().splitlines()[-1]}",
            why="workers died again and again, or the cluster is gone",
            fix="the same command again does what is missing",
        ) from error


def _ms_since(started: float) -> float:
    return round(1e3 * (time.perf_counter() - started), 2)
