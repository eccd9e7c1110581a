"""For programs: a trained segmenter as an object. `sccam.load` gives one; running an exported file loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sccam.runtime.folder import DEFAULT_BATCH, Prediction, Summary, options_of, predict, predict_to
from sccam.runtime.segmenter import open_segmenter
from sccam.runtime.sources import Source, sources


class Model:
    """A segmenter; see `runtime.segmenter.open_segmenter` for the arguments and errors.

    model = sccam.load("runs/photos")
    for result in model.predict("new_photos/"):
        print(result.source.name, result.labels, result.error)
    """

    def __init__(self, model: Path | str, backend: str = "auto", *, device: str = "auto", threads: int = 0):
        self._segmenter = open_segmenter(model, backend, device=device, threads=threads)

    @property
    def classes(self) -> tuple[str, ...]:
        """Without background: label c + 1 is classes[c]."""
        return self._segmenter.classes

    @property
    def backend(self) -> str:
        """What runs the network: "torch", "onnxruntime" or "tensorrt"."""
        return self._segmenter.backend

    def predict(
        self,
        source: str | Path | Iterable[Path],
        *,
        crf: str | None = None,
        batch: int = DEFAULT_BATCH,
        threads: int = 0,
    ) -> Iterator[Prediction]:
        """One result after the other, whatever their number; an image that fails is a result with an `error`.

        Args:
            source: a file, folder, pattern or list file (see `runtime.sources`), or paths of images.
            crf: refine with a dense CRF, "psa", "irn" or "deeplab".
            batch, threads: as in `runtime.folder.predict`.
        """
        options = options_of(("mask",), crf)
        return predict(self._segmenter, _found(source), crf=options.crf, batch=batch, threads=threads)

    def predict_to(
        self,
        source: str | Path | Iterable[Path],
        out: str | Path,
        *,
        save: Sequence[str] = ("mask",),
        crf: str | None = None,
        batch: int = DEFAULT_BATCH,
        threads: int = 0,
        overwrite: bool = False,
    ) -> Summary:
        """Writes masks and overlays into a folder, as `sccam infer` does; a second call does only what is missing."""
        options = options_of(save, crf)
        return predict_to(
            self._segmenter, _found(source), out, options, batch=batch, threads=threads, overwrite=overwrite
        )


def _found(source: str | Path | Iterable[Path]) -> Iterator[Source]:
    return sources(source) if isinstance(source, str | Path) else sources("-", (str(path) for path in source))
