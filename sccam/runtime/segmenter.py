"""Job "segment": the label of every pixel from a trained segmenter.

    image -> views (scales, mirror images) -> logits on the grid -> [mean of the views' probabilities] -> [times those
    of the image's tags] -> labels, CRF

The network sees the image as it is, or brought to the long side of its recipe, or made smaller (`size`), padded on the
right and below in the mean colour;
large inputs go through in tiles. Masks always have the size of the image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sccam.data.images import read_image
from sccam.data.transforms import brought_to, pad_to_multiple, resize
from sccam.errors import ConfigError, ModelFileError, NumericError
from sccam.runtime.backends import Backends
from sccam.runtime.image_tags import PREDICTED, Tags, given_prior, predicted, predicted_prior
from sccam.runtime.network import OpenedNetwork
from sccam.runtime.pipeline import Loaded
from sccam.runtime.sources import Source
from sccam.runtime.tiling import OVERLAP, TILE, TILED_ABOVE, tiled_logits, windows
from sccam.runtime.upsampling import pixel_labels, pixel_scores, regridded
from sccam.stages.crf import PRESETS, CrfConfig
from sccam.structures import ByteArray, FloatArray

PAD_MULTIPLE = 32  # [px], where a manifest names none
CLASSIFIED_SIDE = 640  # [px] at most of what the classifier sees: the long side at which `photos` makes its maps
PROBABILITY_FLOOR = 1e-12  # keeps the logarithm finite


@dataclass(frozen=True, slots=True)
class SegmentOptions:
    """What decides the labels, beside the model."""

    scales: tuple[float, ...] = (1.0,)
    """Of the views whose probabilities are averaged."""

    flip: bool = False
    """A mirror image of every view, too."""

    size: int = field(default=0, metadata={"min": 0})
    """Longest side [px] that the network sees; larger images are made smaller for it. 0: as the model was trained to
    see them, which is as they are unless its recipe names a long side."""

    tile: int = field(default=0, metadata={"min": 0})
    """Side [px] of tiles for larger inputs; 0: `TILE`, for inputs above `TILED_ABOVE` pixels."""

    crf: CrfConfig | None = None
    """Refine the labels with a dense CRF of these settings."""

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > 8:
            raise ConfigError(f"scales {self.scales} of views must lie in (0, 8]", fix="try --scale 0.75 --scale 1")
        if self.size < 0 or 0 < self.size < PAD_MULTIPLE:
            raise ConfigError(f"a size of {self.size} px", fix=f"give 0, or {PAD_MULTIPLE} and more")
        if self.tile < 0 or 0 < self.tile < 2 * OVERLAP or self.tile % PAD_MULTIPLE:
            raise ConfigError(
                f"tiles of {self.tile} px", fix=f"give a multiple of {PAD_MULTIPLE} from {2 * OVERLAP} on"
            )

    @property
    def plain(self) -> bool:
        """One view of the image as it is, labels from the network alone."""
        return self == SegmentOptions()

    def price(self) -> str | None:
        """What views cost, for a person: the network's pixels against one view's."""
        views = len(self.scales) * (2 if self.flip else 1)
        pixels = sum(scale**2 for scale in self.scales) * (2 if self.flip else 1)
        return None if pixels == 1 else f"{views} views an image: the network has {pixels:.1f} times the pixels of one"


def crf_of(name: str | None) -> CrfConfig | None:
    """The settings of a dense CRF by name.

    Raises:
        ConfigError: an unknown name.
    """
    if name is not None and name not in PRESETS:
        raise ConfigError(f"no CRF {name!r}", fix=f"choose from {', '.join(PRESETS)}")
    return None if name is None else PRESETS[name]


@dataclass(frozen=True, slots=True)
class Labelled:
    """One image's result.

    Attributes:
        labels: u8 [H W]: 0 background, c + 1 class c, 255 undecided.
        scores: arrays by name for an NPZ file; None where the network gives none.
        facts: for the image's line.
    """

    labels: ByteArray
    scores: Callable[[], dict[str, np.ndarray]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class SegmentJob:
    """Images -> labels.

    Args:
        network: a segmenter, from `open_network`.
        options: see there.
        tags: what each image shows: no other class is drawn.
        classifier: of the same run; without `tags` it says how likely each class is.

    Raises:
        ModelFileError: the file gives labels only, and the options or tags need logits.
    """

    task = "segment"

    def __init__(
        self, network: OpenedNetwork, options: SegmentOptions = SegmentOptions(), *, tags: Tags | None = None,
        classifier: OpenedNetwork | None = None,
    ):  # fmt: skip
        self.network, self.options, self.tags, self.classifier = network, options, tags, classifier
        self.classes = network.manifest.classes
        self.lanes = network.lanes if classifier is None else min(network.lanes, classifier.lanes)
        self.batch_pixels = network.batch_pixels
        self._multiple = int(network.manifest.made_from.get("pad_multiple", PAD_MULTIPLE))
        self._gives_labels = any(output.name == "labels" for output in network.manifest.outputs)
        if self._gives_labels and not (options.plain and tags is None and classifier is None):
            raise ModelFileError(
                "the file gives labels, not logits", where=network.path,
                why="views, tiles, sizes, tags and the CRF need logits", fix="export it without --labels",
            )  # fmt: skip
        self._refine: Callable[..., Any] | None = None
        if options.crf is not None:
            refine = Backends().resolved().function("crf")
            alone = {"threads": 1} if "threads" in inspect.signature(refine).parameters else {}  # one image a thread
            self._refine = lambda image, scores: refine([image], [[scores]], options.crf, **alone)[0][0]

    def plan(self) -> dict[str, Any]:
        """What decides the result, for the folder's record."""
        return {
            "task": self.task,
            "model": self.network.path.name,
            "sha256": self.network.manifest.sha256,
            "backend": self.network.backend,
            **asdict(self.options),
            **self._tags_of_plan(),
        }

    def _tags_of_plan(self) -> dict[str, Any]:
        if self.tags is not None:
            return {"tags": "given"}
        return {} if self.classifier is None else {"tags": PREDICTED, "classifier": self.classifier.manifest.sha256}

    def notes(self) -> list[str]:
        """For a person, before the work begins."""
        price = self.options.price()
        classifier = self.classifier and self.classifier.line()
        return [self.network.line(), *(line for line in (classifier, price) if line)]

    def load(self, source: Source) -> Loaded:
        """The image and its views."""
        return self.loaded(source, read_image(source.path, data=source.data()))

    def loaded(self, source: Source, image: ByteArray) -> Loaded:
        """The views of an image that was read, and what the classifier sees of it."""
        facts = {} if self.tags is None else {"tags": self.tags.of(source)}
        seen = self._seen((image.shape[0], image.shape[1]))
        views = []
        for scale in self.options.scales:
            height, width = (max(1, round(side * scale)) for side in seen)
            view = self._padded(resize(image, (height, width)))
            views.append(np.stack([view, view[:, ::-1]]) if self.options.flip else view[None])
        if self.classifier is not None:
            views.append(self._padded(resize(image, brought_to(seen, min(CLASSIFIED_SIDE, max(seen)))))[None])
        return Loaded(source, image, tuple(views), facts)

    def run(self, group: Sequence[Loaded]) -> Sequence[Any]:
        """Logits f32 [C+1 h w] on the grid of the image as the network sees it, or labels u8 [H W], for each."""
        if self.classifier is not None:
            scores = self.classifier.run(np.concatenate([loaded.inputs[-1] for loaded in group]))["scores"]
            for loaded, own in zip(group, scores, strict=True):
                loaded.facts["scores"] = own
        if self._gives_labels:
            return list(self.network.run(np.concatenate([loaded.inputs[0] for loaded in group]))["labels"])
        views = [
            self._logits(np.concatenate([loaded.inputs[n] for loaded in group]))
            for n in range(len(self.options.scales))
        ]
        count = 2 if self.options.flip else 1
        if len(views) * count == 1:
            return [_finite(logits, self.network) for logits in views[0]]
        found: list[FloatArray | NumericError] = []
        for n, loaded in enumerate(group):
            own = [_finite(view[count * n : count * (n + 1)], self.network) for view in views]
            wrong = [logits for logits in own if isinstance(logits, NumericError)]
            whole = [logits for logits in own if not isinstance(logits, NumericError)]
            found.append(wrong[0] if wrong else _finite(self._merged(whole, loaded), self.network))
        return found

    def finish(self, loaded: Loaded, output: Any) -> Labelled:
        """Labels at the size of the image."""
        size = (loaded.image.shape[0], loaded.image.shape[1])
        seen = self._seen(size)
        if self._gives_labels:
            return Labelled(_of_size(output[: seen[0], : seen[1]], size))
        density = (seen[0] / size[0] / self._stride, seen[1] / size[1] / self._stride)
        facts: dict[str, Any] = {}
        if self.tags is not None or self.classifier is not None:
            prior, facts = self._prior(loaded)
            output = output + prior[:, None, None]
        if self._refine is None:
            labels = pixel_labels(output, size, density)
        else:
            labels = self._refined(loaded.image, output, density)
        return Labelled(labels, lambda: self._scores(output, size, density), facts)

    def _prior(self, loaded: Loaded) -> tuple[FloatArray, dict[str, Any]]:
        """What is added to the logits [C+1], and the tags for the image's line."""
        if self.tags is not None:
            shown, of = loaded.facts["tags"], "file"
            prior = given_prior(shown, len(self.classes))
        else:
            shown, of = predicted(loaded.facts["scores"]), PREDICTED
            prior = predicted_prior(loaded.facts["scores"])
        return prior, {"tags": [self.classes[c] for c in shown], "tags_from": of}

    @property
    def _stride(self) -> int:
        return self.network.manifest.stride

    def _seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) of the image as the network sees it at scale 1."""
        if self.options.size:
            return brought_to(size, min(self.options.size, max(size)))
        return brought_to(size, int(self.network.manifest.made_from.get("long_side", 0)))

    def _padded(self, image: ByteArray) -> ByteArray:
        red, green, blue = (round(255 * value) for value in self.network.manifest.mean)
        return pad_to_multiple(image, self._multiple, (red, green, blue))

    def _logits(self, images: ByteArray) -> FloatArray:
        def whole(images: ByteArray) -> FloatArray:
            return np.asarray(self.network.run(images)["logits"])

        height, width = images.shape[1:3]
        tile = self.options.tile or (TILE if height * width > TILED_ABOVE else 0)
        if not tile or max(height, width) <= tile:
            return whole(images)
        return tiled_logits(images, whole, stride=self._stride, multiple=self._multiple, tile=tile)

    def _merged(self, views: Sequence[FloatArray], loaded: Loaded) -> FloatArray:
        """The logarithm of the mean probability over views, on the grid of scale 1."""
        seen = self._seen((loaded.image.shape[0], loaded.image.shape[1]))
        cells = (-(-seen[0] // self._stride), -(-seen[1] // self._stride))
        total = 0
        for scale, view in zip(self.options.scales, views, strict=True):
            upright = view if len(view) == 1 else np.stack([view[0], view[1, :, :, ::-1]])
            shrunk = tuple(max(1, round(side * scale)) / side for side in seen)  # what rounding left of the scale
            total = total + _softmax(regridded(upright, cells, (shrunk[0], shrunk[1])), axis=1).mean(axis=0)
        return np.log(np.maximum(total / len(views), PROBABILITY_FLOOR)).astype(np.float32)

    def _refined(self, image: ByteArray, logits: FloatArray, density: tuple[float, float]) -> ByteArray:
        """Labels after the CRF; a large image's window by window, each with margins that are cut off again."""
        assert self._refine is not None
        height, width = image.shape[:2]
        tile = TILE if height * width > TILED_ABOVE else max(height, width)
        labels = np.empty((height, width), np.uint8)
        for rows in windows(height, tile, OVERLAP, 1):
            for columns in windows(width, tile, OVERLAP, 1):
                scores = _softmax(pixel_scores(logits, rows, columns, density), axis=0)
                crop = np.ascontiguousarray(image[rows.start : rows.stop, columns.start : columns.stop])
                found = self._refine(crop, scores).argmax(axis=0)
                top, left = (axis.start and axis.start + OVERLAP // 2 for axis in (rows, columns))
                labels[top : rows.stop, left : columns.stop] = found[top - rows.start :, left - columns.start :]
        return labels

    def _scores(
        self, logits: FloatArray, size: tuple[int, int], density: tuple[float, float]
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Probabilities on the grid, before the CRF, background first."""
        return {
            "scores": _softmax(logits, axis=0).astype(np.float16),
            "size": np.array(size, np.int32),
            "cells_per_pixel": np.array(density, np.float64),
            "classes": np.array(["background", *self.classes]),
        }


def _of_size(labels: ByteArray, size: tuple[int, int]) -> ByteArray:
    """Labels at (height, width), the nearest one at every pixel."""
    pairs = zip(labels.shape, size, strict=True)
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for old, new in pairs)
    return np.ascontiguousarray(labels[rows][:, columns])


def _softmax(logits: FloatArray, axis: int) -> FloatArray:
    weights = np.exp(logits - logits.max(axis=axis, keepdims=True))
    found: FloatArray = weights / weights.sum(axis=axis, keepdims=True)
    return found


def _finite(logits: FloatArray, network: OpenedNetwork) -> FloatArray | NumericError:
    """The logits; or the error of an image with NaN, whose arg-max would be a label like any other."""
    if np.isfinite(logits).all():
        return logits
    return NumericError("the network gave NaN or infinity", where=network.path, fix="use fp32, or another file")
