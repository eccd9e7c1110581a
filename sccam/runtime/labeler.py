"""From stored activation maps to pseudo labels, image by image: the jobs that worker processes run.

First one threshold for all maps, chosen without a mask. Then three jobs, each reading small files and writing one:
affinity labels (two CRFs), walked scores (affinity walk), pseudo labels (CRF). No PyTorch is loaded here; affinities
come in as arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sccam.artifacts import read_arrays, read_record, write_arrays
from sccam.data.images import read_image
from sccam.data.masks import write_mask
from sccam.data.transforms import resize
from sccam.errors import RunFolderError
from sccam.records import WALK
from sccam.runtime.backends import Backends
from sccam.stages.affinity_labels import affinity_labels
from sccam.stages.crf import CrfConfig
from sccam.stages.pamr import refine
from sccam.stages.pseudo_label import PseudoLabelConfig, label_index, sharpened
from sccam.stages.threshold import MapAndImage, ThresholdConfig, choose_threshold
from sccam.stages.walk import (
    WalkConfig,
    background_score,
    divided_by_maximum,
    halved_lengths,
    pool_to_grid,
    upsample,
    with_background,
)
from sccam.stages.walk_length import region_contrast
from sccam.structures import ActivationMap, AffinityField, FloatArray, IntArray, TaggedImages


@dataclass(frozen=True, slots=True)
class Alphas:
    """Background exponents: (1 - max score)^alpha."""

    low: float  # a strong background: what stays foreground is sure
    high: float  # a weak background: what stays background is sure
    walk: float  # of the background channel that is walked


def save_map(path: Path, activation: ActivationMap, size: tuple[int, int]) -> None:
    """Stores a map as fp16 at its grid, present classes only, with the image's size."""
    write_arrays(
        path,
        {
            "scores": activation.scores.astype(np.float16),
            "classes": activation.classes.astype(np.int32),
            "size": np.array(size, dtype=np.int32),
        },
    )


def load_map(path: Path) -> tuple[ActivationMap, tuple[int, int]]:
    """A stored map at its grid, and the image's (height, width)."""
    arrays = read_arrays(path, {"scores": "P h w", "classes": "P", "size": "2"})
    height, width = (int(side) for side in arrays["size"])
    return ActivationMap(arrays["scores"].astype(np.float32), arrays["classes"]), (height, width)


def threshold_from_images(
    images: TaggedImages, path_of: Callable[[str], Path], config: ThresholdConfig, *, most: int = 1000
) -> float:
    """The threshold of `config.rule` for stored maps, from at most `most` images of the list; no mask is read."""
    step = max(1, -(-len(images) // most))

    def pairs() -> Iterable[MapAndImage]:
        for path, id in list(zip(images.paths, images.ids, strict=True))[::step]:
            activation, _ = load_map(path_of(id))
            if len(activation.classes):
                highest = activation.scores.max(axis=0)
                yield highest, resize(read_image(path), (highest.shape[0], highest.shape[1]))

    return choose_threshold(pairs(), config)


def affinity_label_job(
    image_path: Path,
    map_path: Path,
    out: Path,
    map_stride: int,
    stride: int,
    alphas: Alphas,
    crf: CrfConfig,
    backends: Backends,
) -> None:
    """Writes the affinity labels of one image, u8 [h w], as an index PNG.

    Args:
        map_stride: [px per cell] of the stored map; stride: of the affinity grid.
    """
    activation, size = load_map(map_path)
    full = ActivationMap(upsample(activation.scores, size, map_stride), activation.classes)
    scores = [with_background(full, alpha) for alpha in (alphas.low, alphas.high)]
    ((low, high),) = backends.function("crf")([read_image(image_path)], [scores], crf)
    write_mask(out, affinity_labels(low, high, stride))


def walk_job(
    field: AffinityField,
    map_path: Path,
    out: Path,
    map_stride: int,
    alphas: tuple[float, ...],
    config: WalkConfig,
    backends: Backends,
) -> None:
    """Walks the class scores and one background for each alpha; writes them at the affinity grid as fp16.

    The file holds `scores` [P h w], `classes` [P], `backgrounds` [A h w] with their `alphas` [A], and `size` [2].
    """
    activation, size = load_map(map_path)
    full = upsample(activation.scores, size, map_stride)
    channels = np.concatenate([np.stack([background_score(full, alpha) for alpha in alphas]), full])
    (walked,) = backends.function("walk")([pool_to_grid(channels, field.stride, config.border)], [field], config)
    if config.normalise:
        walked = divided_by_maximum(walked)
    write_arrays(
        out,
        {
            "scores": walked[len(alphas) :].astype(np.float16),
            "classes": activation.classes,
            "backgrounds": walked[: len(alphas)].astype(np.float16),
            "alphas": np.array(alphas),
            "size": np.array(size, dtype=np.int32),
        },
    )


def walk_length_job(
    image_path: Path,
    field: AffinityField,
    map_path: Path,
    map_stride: int,
    alpha: float,
    config: WalkConfig,
    backends: Backends,
) -> list[float]:
    """The merit of each of `halved_lengths(config)` for one image: how well its labels tell its colours apart."""
    activation, size = load_map(map_path)
    full = ActivationMap(upsample(activation.scores, size, map_stride), activation.classes)
    walked, image = pool_to_grid(with_background(full, alpha), field.stride, config.border), read_image(image_path)
    walk, done, merits = backends.function("walk"), 0, []
    for steps in halved_lengths(config):
        (walked,) = walk([walked], [field], replace(config, steps=steps - done))
        scores = divided_by_maximum(walked) if config.normalise else walked
        merits.append(region_contrast(image, upsample(scores, size, field.stride).argmax(axis=0)))
        done = steps
    return merits


def chosen_walk(config: WalkConfig, run: Path) -> WalkConfig:
    """The settings of a run's walk, with the number of steps that its rule has chosen.

    Raises:
        RunFolderError: walk.json is not there, or not of these settings.
    """
    if config.rule != "contrast":
        return config
    path = run / "walk.json"
    steps, possible = read_record(path, WALK)["steps"], halved_lengths(config)
    if steps not in possible:
        raise RunFolderError(
            f"a walk of {steps} steps, where the settings have {', '.join(map(str, possible))}",
            where=path, fix="copy it from where it was made, or train again",
        )  # fmt: skip
    return replace(config, steps=steps)


def walked_scores(path: Path, alpha_index: int, stride: int) -> tuple[FloatArray, IntArray]:
    """Stored walked scores at every pixel, background first [P+1 H W], and the classes of the rest [P]."""
    arrays = read_arrays(path, {"scores": "P h w", "backgrounds": "A h w", "classes": "P", "size": "2"})
    height, width = (int(side) for side in arrays["size"])
    grid = np.concatenate([arrays["backgrounds"][alpha_index][None], arrays["scores"]]).astype(np.float32)
    return upsample(grid, (height, width), stride), arrays["classes"]


def pseudo_label_job(
    image_path: Path, walked_path: Path, out: Path, stride: int, config: PseudoLabelConfig, backends: Backends
) -> None:
    """Writes the pseudo label of one image as a palette PNG, from the first background of its walked scores."""
    scores, classes = walked_scores(walked_path, 0, stride)
    probabilities, image = sharpened(scores, config.sharpen), read_image(image_path)
    if config.pamr_steps:
        probabilities = refine(image, probabilities, config.pamr_steps)
    if config.use_crf:
        ((probabilities,),) = backends.function("crf")([image], [[probabilities]], config.crf)
    write_mask(out, label_index(probabilities, classes, config.confidence))


def own_label_job(
    image_path: Path,
    probabilities: FloatArray,
    classes: IntArray,
    out: Path,
    crf: CrfConfig,
    confidence: float,
    backends: Backends,
) -> None:
    """Writes the segmenter's own label of a training image from its probabilities [P+1 H W] of background and tags."""
    ((posterior,),) = backends.function("crf")([read_image(image_path)], [[probabilities]], crf)
    write_mask(out, label_index(posterior, classes, confidence))


def refine_job(image_path: Path, probabilities: FloatArray, out: Path, crf: CrfConfig, backends: Backends) -> None:
    """Writes the segmenter's mask after a dense CRF on its probabilities [C+1 H W]."""
    ((posterior,),) = backends.function("crf")([read_image(image_path)], [[probabilities]], crf)
    write_mask(out, posterior.argmax(axis=0).astype(np.uint8))
