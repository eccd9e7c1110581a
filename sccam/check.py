"""`sccam data check`: everything about an image folder that one would want to know before training on it.

The folder is read as `sccam train` reads it. What `train` refuses is a fault; the check goes on after one, so that all
broken images, wrong masks and copies are told of at once. Nothing is written.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from sccam.advice import advice
from sccam.data import open_dataset
from sccam.data.checks import check_mask_sizes
from sccam.data.images import IMAGE_SUFFIXES, mode_and_orientation, read_image
from sccam.data.masks import check_mask, read_mask
from sccam.errors import DataError, printable
from sccam.recipe import RunConfig, load_config
from sccam.runtime.pool import run_jobs
from sccam.structures import IGNORE, Dataset

EXAMPLES = 3  # of a kind of fault, that are printed

# What a view or an image takes on two cores (benchmarks/results/photos.json); for an estimate and no more.
CLASSIFIER_VIEWS, AFFINITY_VIEWS, SEGMENTER_VIEWS = 56.0, 20.0, 17.0  # [1 / s] of 224 px, EfficientNet-Lite0
LABEL_SECONDS = 0.35  # [s] an image of 320 x 213 px: maps, affinity labels, walk, pseudo label
RUN_BYTES = 50_000_000  # networks and checkpoints of a run
IMAGE_BYTES = 1.2  # of a run for a pixel of a training image


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image as it was decoded; `problem` is empty where it could be."""

    problem: str = ""
    size: tuple[int, int] = (0, 0)  # (H, W), upright
    mode: str = ""  # of its file, such as "RGB"
    orientation: int = 1
    sha256: str = ""


@dataclass(slots=True)
class Survey:
    """What was found; `as_dict` has every name, a table only a few.

    Attributes:
        faults: kind -> places; `sccam train` refuses the folder.
        notes: kind -> places; it does not.
        balance: (class, training images, images of val).
        pairs: (class, class, images with both, images with the first) of classes that meet.
    """

    root: str
    images: dict[str, int] = field(default_factory=dict)  # list -> images
    faults: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    balance: list[tuple[str, int, int]] = field(default_factory=list)
    pairs: list[tuple[str, str, int, int]] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)  # smallest, median, largest by area
    modes: dict[str, int] = field(default_factory=dict)
    masks: int = 0
    mask_pixels: dict[str, float] = field(default_factory=dict)  # label -> share of all pixels of masks
    advice: list[str] = field(default_factory=list)
    minutes: float = 0.0  # estimate
    gigabytes: float = 0.0  # estimate

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {"fit": not self.faults}

    def add(self, found: dict[str, list[str]], kind: str, places: Iterable[object]) -> None:
        """Appends places to a kind of fault or note, if there are any."""
        listed = [str(place) for place in places]
        if listed:
            found.setdefault(kind, []).extend(listed)


def check_folder(
    root: Path | str, *, workers: int, on_progress: Callable[[int, int], None] = lambda done, failed: None
) -> Survey:
    """Reads every file of a folder once.

    Args:
        workers: processes.
        on_progress: told of files that were read, and how many of them are broken.
    """
    root, found = Path(root), Survey(str(root))
    settings = load_config("photos", [])
    dataset = _opened(root, found)
    if dataset is None:
        paths = (
            sorted(path for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES) if root.is_dir() else []
        )
        named = [(str(path), path) for path in paths if "masks" not in path.relative_to(root).parts]
    else:
        found.images = {part.split: len(part) for part in (dataset.train, dataset.val)}
        named = [pair for part in (dataset.train, dataset.val) for pair in zip(part.ids, part.paths, strict=True)]
    facts: dict[str, ImageFacts] = {}
    broken = 0
    results = run_jobs(_image_job, ((path,) for _, path in named), workers=workers)
    for (id, _), fact in zip(named, results, strict=True):
        facts[id] = fact
        broken += bool(fact.problem)
        on_progress(len(facts), broken)
    _images(found, facts)
    if dataset is not None:
        _copies(found, facts, dataset)
        _tags(found, facts, dataset, settings)
        _masks(found, dataset, workers)
        _estimate(found, facts, dataset, settings)
    return found


def _opened(root: Path, found: Survey) -> Dataset | None:
    """The dataset; after a fault without tags or masks, whichever it was, if that helps."""
    try:
        return open_dataset(root)
    except DataError as error:
        found.add(found.faults, str(error), [error.where or root])
    try:
        return open_dataset(root, allow_negative=True)
    except DataError:
        return None


def _images(found: Survey, facts: dict[str, ImageFacts]) -> None:
    readable = [fact for fact in facts.values() if not fact.problem]
    found.add(
        found.faults, "images that cannot be read", (f"{id}: {f.problem}" for id, f in facts.items() if f.problem)
    )
    found.add(found.notes, "images that EXIF turns or mirrors", (id for id, f in facts.items() if f.orientation != 1))
    found.modes = dict(Counter(fact.mode for fact in readable).most_common())
    if readable:
        by_area = sorted((fact.size for fact in readable), key=lambda size: size[0] * size[1])
        found.sizes = [by_area[0], by_area[len(by_area) // 2], by_area[-1]]


def _copies(found: Survey, facts: dict[str, ImageFacts], dataset: Dataset) -> None:
    groups: dict[str, list[str]] = {}
    for id, fact in facts.items():
        if fact.sha256:
            groups.setdefault(fact.sha256, []).append(id)
    val, tags = set(dataset.val.ids), dict[str, bytes]()
    for part in (dataset.train, dataset.val):
        tags |= {id: row.tobytes() for id, row in zip(part.ids, part.labels.present, strict=True)}
    for ids in (ids for ids in groups.values() if len(ids) > 1):
        sides = {id in val for id in ids}
        if len(sides) == 2:
            found.add(found.notes, "copies of an image in both lists: figures on val are too good", [" = ".join(ids)])
        elif len({tags[id] for id in ids}) > 1:
            found.add(found.notes, "copies of an image with different tags", [" = ".join(ids)])
        else:
            found.add(found.notes, "copies of an image", [" = ".join(ids)])


def _tags(found: Survey, facts: dict[str, ImageFacts], dataset: Dataset, settings: RunConfig) -> None:
    present, names = dataset.train.labels.present, dataset.classes
    of_val = dataset.val.labels.present.sum(axis=0) if len(dataset.val) else np.zeros(len(names), int)
    found.balance = list(zip(names, present.sum(axis=0).tolist(), of_val.tolist(), strict=True))
    together = present.T.astype(int) @ present.astype(int)
    found.pairs = [
        (names[a], names[b], int(together[a, b]), int(together[a, a]))
        for a, b in combinations(range(len(names)), 2)
        if together[a, b]
    ]
    found.add(found.notes, "of the lists", dataset.warnings)
    readable = dataset.train.only(id for id in dataset.train.ids if not facts[id].problem)
    if len(readable):
        found.advice = advice(replace(dataset, train=readable), settings)


def _masks(found: Survey, dataset: Dataset, workers: int) -> None:
    found.masks = len(dataset.masks.paths)
    tags: dict[str, bool] = {}
    images: dict[str, Path] = {}
    for part in (dataset.train, dataset.val):
        tags |= {id: bool(row.any()) for id, row in zip(part.ids, part.labels.present, strict=True)}
        images |= dict(zip(part.ids, part.paths, strict=True))
    classes = len(dataset.classes)
    jobs = ((path, images[id], tags[id], classes) for id, path in dataset.masks.paths.items())
    total = np.zeros(IGNORE + 1, np.int64)
    for problem, pixels in run_jobs(_mask_job, jobs, workers=workers):
        found.add(found.faults, "masks that do not fit", [problem] if problem else [])
        total += pixels
    labels = {0: "background", IGNORE: "ignore", **{c + 1: name for c, name in enumerate(dataset.classes)}}
    shares = total / max(int(total.sum()), 1)
    found.mask_pixels = {labels.get(n, f"value {n}"): float(shares[n]) for n in np.flatnonzero(total).tolist()}


def _estimate(found: Survey, facts: dict[str, ImageFacts], dataset: Dataset, settings: RunConfig) -> None:
    images = len(dataset.train)
    views = sum(settings.epochs_of(r) for r in range(len(settings.rounds))) * images
    pixels = [fact.size[0] * fact.size[1] for fact in facts.values() if not fact.problem]
    mean = sum(pixels) / max(len(pixels), 1)
    seconds = (
        views / CLASSIFIER_VIEWS
        + settings.affinity.epochs * images / AFFINITY_VIEWS
        + settings.segment.epochs * images / SEGMENTER_VIEWS
        + images * LABEL_SECONDS * mean / (320 * 213)
    )
    found.minutes = round(seconds / 60, 1)
    found.gigabytes = round((RUN_BYTES + IMAGE_BYTES * mean * images) / 1e9, 2)


def _image_job(path: Path) -> ImageFacts:
    try:
        mode, orientation = mode_and_orientation(path)
        pixels = read_image(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except DataError as error:
        return ImageFacts(error.what)
    except OSError as error:  # it was there a moment ago
        return ImageFacts(str(error))
    return ImageFacts("", (pixels.shape[0], pixels.shape[1]), mode, orientation, digest)


def _mask_job(path: Path, image: Path, tagged: bool, classes: int) -> tuple[str, np.ndarray]:
    nothing = np.zeros(IGNORE + 1, np.int64)
    try:
        index = read_mask(path)
        check_mask_sizes({"": path}, {"": image})
        check_mask(index, path, classes, tagged)
    except DataError as error:
        return f"{path}: {error.what}" + (f" ({error.why})" if error.why else ""), nothing
    return "", np.bincount(index.ravel(), minlength=len(nothing))


def shown(places: Sequence[str]) -> str:
    """A few places and how many more there are."""
    more = len(places) - EXAMPLES
    return "; ".join(map(printable, places[:EXAMPLES])) + (f"; and {more} more" if more > 0 else "")
