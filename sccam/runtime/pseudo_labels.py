"""Job "pseudo-label": training labels for images with tags, by the networks of a run.

    image -> views -> cam_net -> maps of the tagged classes -> merged  \\
                                                                        walk -> scores -> CRF -> label, 255 undecided
    image -> affinity_net -> affinities of neighbouring cells          /

The numbers are those of the stages (cam.py, affinity.py, walk.py, crf.py, pseudo_label.py), with the settings and the
threshold of the run. Without tags, the classifier's own predicted ones are used: such labels repeat its mistakes.
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import RunFolder, read_record
from sccam.config import from_mapping
from sccam.data.images import read_image
from sccam.data.transforms import pad_to_multiple, resize
from sccam.errors import ConfigError, ImageError, RunFolderError
from sccam.records import ALPHA, CELLS, check
from sccam.runtime.backends import Backends
from sccam.runtime.image_tags import PREDICTED, Tags, predicted
from sccam.runtime.labeler import chosen_walk
from sccam.runtime.network import open_network
from sccam.runtime.pipeline import Loaded
from sccam.runtime.segmenter import PAD_MULTIPLE, Labelled, SegmentOptions
from sccam.runtime.sources import Source
from sccam.stages.affinity_labels import AFFINITY_STRIDE, neighbour_offsets
from sccam.stages.boundary import boundary_field
from sccam.stages.cam import CamConfig, view_size
from sccam.stages.pamr import refine
from sccam.stages.pseudo_label import PseudoLabelConfig, label_index, sharpened
from sccam.stages.walk import WalkConfig, background_score, divided_by_maximum, pool_to_grid, upsample
from sccam.structures import AffinityField, ByteArray, FloatArray, IntArray

MOST_PIXELS = 16 << 20  # [px] of an image; the walk and the CRF see it whole
KERNELS = ("affinity", "merge", "walk", "crf")


@dataclass(frozen=True, slots=True)
class LabelRecipe:
    """What a run decided for its labels."""

    cam: CamConfig
    walk: WalkConfig
    pseudo_label: PseudoLabelConfig
    alpha: float  # exponent of the background that walks
    radius: int  # [cells] of the affinities


def read_recipe(run: Path) -> LabelRecipe:
    """The settings of a finished run.

    Raises:
        RunFolderError: it is no run, or not yet that far.
    """
    path = run / "config.toml"
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunFolderError(
            f"this is no run: {error}", where=run, fix="give the folder that `sccam train` wrote"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"not valid TOML: {error}", where=path, fix="copy it from where it was made") from None
    check(settings, {"cam": dict, "walk": dict, "pseudo_label": dict, "affinity": {"radius": CELLS}}, path)
    return LabelRecipe(
        cam=from_mapping(CamConfig, settings["cam"], where=path),
        walk=chosen_walk(from_mapping(WalkConfig, settings["walk"], where=path), run),
        pseudo_label=from_mapping(PseudoLabelConfig, settings["pseudo_label"], where=path),
        alpha=read_record(run / "threshold.json", {"alpha_walk": ALPHA})["alpha_walk"],
        radius=settings["affinity"]["radius"],
    )


def check_task(task: str, options: SegmentOptions) -> None:
    """Refuses settings of the other task, which would change nothing.

    Raises:
        ConfigError: an unknown task, or such a setting.
    """
    if task not in ("segment", PseudoLabelJob.task):
        raise ConfigError(f"no task {task!r}", fix=f"choose from segment, {PseudoLabelJob.task}")
    if task == PseudoLabelJob.task and not options.plain:
        raise ConfigError(
            "views, sizes, tiles and --crf are settings of a segmenter", where=f"--task {task}",
            fix="leave them out: the run's own settings decide the pseudo labels",
        )  # fmt: skip


class PseudoLabelJob:
    """Images -> training labels.

    Args:
        run: folder of a finished run; its exported ONNX files are taken where they are there.
        tags: a tag file; None takes predicted tags.
        backend, device, threads, allow_fallback: as `open_network` takes them.
        kernels: rows of the backend table.

    Raises:
        RunFolderError, ModelFileError, BackendUnavailable: as `open_network`.
        DataError: the tag file.
    """

    task = "pseudo-label"

    def __init__(
        self, run: Path | str, tags: Path | None = None, backend: str = "auto", *, device: str = "auto",
        threads: int = 0, allow_fallback: bool = False, kernels: Backends | None = None,
    ):  # fmt: skip
        folder = RunFolder(run).path
        self.recipe = read_recipe(folder)
        self.kernels = (kernels or Backends()).resolved()
        options: dict[str, Any] = {"device": device, "threads": threads, "allow_fallback": allow_fallback}
        self.cam_net = open_network(folder, "cam_net", backend, **options)
        features = self.kernels.affinity != "portable"  # that row needs torch
        self.affinity_net = open_network(folder, "affinity_net", backend, **options, features=features)
        self.classes = self.cam_net.manifest.classes
        self.lanes = min(self.cam_net.lanes, self.affinity_net.lanes)
        self.batch_pixels = self.cam_net.batch_pixels
        self.tags = None if tags is None else Tags(tags, self.classes)
        self._offsets = neighbour_offsets(self.recipe.radius)
        self._kernel = {work: _alone(self.kernels.function(work)) for work in KERNELS}

    def time_kernels(self, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Has every kernel go through `timed(work, function)` from now on."""
        self._kernel = {work: timed(work, function) for work, function in self._kernel.items()}

    def plan(self) -> dict[str, Any]:
        """What decides the result, for the folder's record."""
        networks = (self.cam_net, self.affinity_net)
        return {
            "task": self.task,
            "tags": PREDICTED if self.tags is None else "given",
            "model": [network.path.name for network in networks],
            "sha256": [network.manifest.sha256 for network in networks],
            "backend": self.cam_net.backend,
            "kernels": {work: getattr(self.kernels, work) for work in KERNELS},
            **asdict(self.recipe),
        }

    def notes(self) -> list[str]:
        """For a person, before the work begins."""
        warning = [
            "WARNING: no tag file given: labels are made for the tags that the classifier itself predicts, "
            "and repeat its mistakes; for training labels give the true tags"
        ]
        lines = [self.cam_net.line(), self.affinity_net.line(), self.kernels.line()]
        return lines + (warning if self.tags is None else [])

    def load(self, source: Source) -> Loaded:
        """The image, its views for the classifier, and itself padded for the affinity network."""
        return self.loaded(source, read_image(source.path, data=source.data()))

    def loaded(self, source: Source, image: ByteArray) -> Loaded:
        """The views of an image that was read."""
        facts = {} if self.tags is None else {"classes": self.tags.of(source)}
        size = (image.shape[0], image.shape[1])
        if size[0] * size[1] > MOST_PIXELS:
            raise ImageError(
                f"{size[1]} x {size[0]} px are too many for a random walk, the limit is {MOST_PIXELS:,} px",
                where=source.where, fix="make it smaller, to about the size of the training images",
            )  # fmt: skip
        multiple = self.cam_net.manifest.stride if self.recipe.cam.round_sizes else 1
        views = []
        for scale in self.recipe.cam.scales:
            view = resize(image, view_size(size, scale * self.recipe.cam.enlargement(size), multiple))
            views.append(np.stack([view, view[:, ::-1]]) if self.recipe.cam.flip else view[None])
        red, green, blue = (round(255 * value) for value in self.affinity_net.manifest.mean)
        padded = pad_to_multiple(image, PAD_MULTIPLE, (red, green, blue))
        return Loaded(source, image, (*views, padded[None]), facts)

    def run(self, group: Sequence[Loaded]) -> Sequence[Any]:
        """For each image: maps [V C h w] of every scale, class scores [C], features or affinities on the grid."""
        stacks = [np.concatenate(arrays) for arrays in zip(*(loaded.inputs for loaded in group), strict=True)]
        maps = [self.cam_net.run(stack) for stack in stacks[:-1]]
        affinity = self.affinity_net.run(stacks[-1])
        nearest = int(np.argmin([abs(scale - 1) for scale in self.recipe.cam.scales]))
        count = 2 if self.recipe.cam.flip else 1
        found: list[Any] = []
        for n, _ in enumerate(group):
            rows = slice(count * n, count * (n + 1))
            found.append(
                _Outputs(
                    [scale["maps"][rows] for scale in maps],
                    maps[nearest]["scores"][rows].mean(axis=0),
                    {name: array[n] for name, array in affinity.items()},
                )
            )
        return found

    def finish(self, loaded: Loaded, output: Any) -> Labelled:
        """Walked, refined and labelled."""
        size, recipe = (loaded.image.shape[0], loaded.image.shape[1]), self.recipe
        classes = loaded.facts["classes"] if self.tags is not None else predicted(output.scores)
        facts = {"tags": [self.classes[c] for c in classes], "tags_from": "file" if self.tags else PREDICTED}
        if len(classes) == 0:
            return Labelled(np.zeros(size, np.uint8), None, facts)
        grid = (-(-size[0] // recipe.cam.grid_stride), -(-size[1] // recipe.cam.grid_stride))
        views = [np.ascontiguousarray(view[:, classes], np.float32) for view in output.maps]
        merged = self._kernel["merge"](views, grid, flip=recipe.cam.flip)
        full = upsample(merged, size, recipe.cam.grid_stride)
        channels = np.concatenate([background_score(full, recipe.alpha)[None], full])
        field = self._field(output.affinity, size)
        pooled = pool_to_grid(channels, field.stride, recipe.walk.border)
        (walked,) = self._kernel["walk"]([pooled], [field], recipe.walk)
        if recipe.walk.normalise:
            walked = divided_by_maximum(walked)
        labels = self._labels(loaded.image, upsample(walked, size, field.stride), classes)
        names = np.array(["background", *facts["tags"]])
        return Labelled(
            labels,
            lambda: {"scores": walked.astype(np.float16), "size": np.array(size, np.int32), "classes": names,
                     "cells_per_pixel": np.full(2, 1 / field.stride)},
            facts,
        )  # fmt: skip

    def _labels(self, image: ByteArray, scores: FloatArray, classes: IntArray) -> ByteArray:
        settings = self.recipe.pseudo_label
        probabilities = sharpened(scores, settings.sharpen)
        if settings.pamr_steps:
            probabilities = refine(image, probabilities, settings.pamr_steps)
        if settings.use_crf:
            ((probabilities,),) = self._kernel["crf"]([image], [[probabilities]], settings.crf)
        return label_index(probabilities, classes, settings.confidence)

    def _field(self, outputs: Mapping[str, np.ndarray], size: tuple[int, int]) -> AffinityField:
        """Affinities of the cells of the image itself, padding cut off."""
        height, width = (-(-side // AFFINITY_STRIDE) for side in size)
        if "features" in outputs:
            features = np.ascontiguousarray(outputs["features"][:, :height, :width])
            (field,) = self._kernel["affinity"]([features], self._offsets, AFFINITY_STRIDE)
            return field
        if "boundary" in outputs:
            boundary = np.ascontiguousarray(outputs["boundary"][0, :height, :width])
            return boundary_field(boundary, self._offsets, AFFINITY_STRIDE)
        values = np.ascontiguousarray(outputs["affinity"][:, :height, :width], np.float32)
        for plane, (dy, dx) in zip(values, self._offsets.tolist(), strict=True):  # pairs that reach into the padding
            plane[height - dy :] = 0
            if dx > 0:
                plane[:, width - dx :] = 0
        return AffinityField(values, self._offsets, AFFINITY_STRIDE)


@dataclass(frozen=True, slots=True)
class _Outputs:
    """Of the networks for one image."""

    maps: list[FloatArray]
    scores: FloatArray
    affinity: dict[str, np.ndarray]


def _alone(function: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel on one thread, where it can be told: images are spread over threads already."""
    if "threads" not in inspect.signature(function).parameters:
        return function
    return lambda *arguments, **named: function(*arguments, threads=1, **named)
