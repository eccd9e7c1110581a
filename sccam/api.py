"""For programs: a trained segmenter as an object. `sccam.load` gives one; running an exported file loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sccam.runtime.folder import Prediction, Summary, predict, predict_to
from sccam.runtime.jobs import open_classifier, segment_job
from sccam.runtime.network import open_network
from sccam.runtime.segmenter import SegmentJob, SegmentOptions, crf_of
from sccam.runtime.sources import Source, sources


class Model:
    """A segmenter; see `runtime.network.open_network` for the arguments and errors.

    model = sccam.load("runs/photos")
    for result in model.predict("new_photos/"):
        print(result.source.name, result.labels, result.error)
    """

    def __init__(self, model: Path | str, backend: str = "auto", *, device: str = "auto", threads: int = 0):
        self._network = open_network(model, "segmenter", backend, device=device, threads=threads)
        self._classifier = cache(lambda: open_classifier(model, backend, device=device, threads=threads))

    @property
    def classes(self) -> tuple[str, ...]:
        """Without background: label c + 1 is classes[c]."""
        return self._network.manifest.classes

    @property
    def backend(self) -> str:
        """What runs the network: "torch", "onnxruntime" or "tensorrt"."""
        return self._network.backend

    def predict(
        self, source: str | Path | Iterable[Path], *, batch: int = 0, threads: int = 0, crf: str | None = None,
        tags: Path | str | None = None, **options: Any,
    ) -> Iterator[Prediction]:  # fmt: skip
        """One result after the other, whatever their number; an image that fails is a result with an `error`.

        Args:
            source: a file, folder, pattern or list file (see `runtime.sources`), or paths of images.
            crf: refine with a dense CRF, "psa", "irn" or "deeplab".
            tags: a tag file with what each image shows, so that nothing else is drawn; or "predicted", of a run: each
                class counts by how likely its classifier takes the image to show it.
            options: `scales`, `flip`, `size`, `tile` of `runtime.segmenter.SegmentOptions`.
            batch, threads: as in `runtime.pipeline.stream`.
        """
        return predict(self._job(crf, tags, options), _found(source), batch=batch, threads=threads)

    def predict_to(
        self, source: str | Path | Iterable[Path], out: str | Path, *, save: Sequence[str] = ("mask",),
        batch: int = 0, threads: int = 0, overwrite: bool = False, crf: str | None = None,
        tags: Path | str | None = None, **options: Any,
    ) -> Summary:  # fmt: skip
        """Writes masks and more into a folder, as `sccam infer` does; a second call does only what is missing."""
        job = self._job(crf, tags, options)
        return predict_to(job, _found(source), out, save, batch=batch, threads=threads, overwrite=overwrite)

    def _job(self, crf: str | None, tags: Path | str | None, options: dict[str, Any]) -> SegmentJob:
        return segment_job(self._network, SegmentOptions(crf=crf_of(crf), **options), tags, self._classifier)


def _found(source: str | Path | Iterable[Path]) -> Iterator[Source]:
    return sources(source) if isinstance(source, str | Path) else sources("-", (str(path) for path in source))
