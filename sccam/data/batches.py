"""Training batches from threads, as a pure function of (seed, epoch): nothing to save, nothing lost on resume.

Every random number of a view comes from a generator seeded with (seed, epoch, image), so a run that was killed
continues with exactly the views it would have seen, whatever the number of threads. A batch may be shared by several
processes, and each may take its share in several parts: together they are the batch that one process would see whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from sccam.data.images import read_image
from sccam.data.transforms import AugmentConfig, augment
from sccam.errors import ConfigError
from sccam.structures import ByteArray, TaggedImages


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Views of some images, a whole batch or a part of it. `rows` are their positions in the image list."""

    pixels: ByteArray  # [B crop crop 3]
    rows: np.ndarray  # [B]
    labels: ByteArray | None  # [B crop crop], when the loader was given a label reader
    first: int = 0  # position of the first image in the whole batch


class BatchLoader:
    """Shuffled, augmented batches of equal size; the images left over at the end of an epoch are dropped.

    Args:
        images: what to train on.
        config: the random view.
        batch: images in a batch; lowered to the number of images when there are fewer.
        fill: colour outside the image.
        seed: a sequence of integers naming run and stage.
        threads: that decode and augment ahead.
        read_label: gives the label map [H W] of row n, at the image's size.
        share: (process, processes) that take the batch together.
        parts: in which this process takes its share of a batch, at most one an image.

    Raises:
        ConfigError: more processes than images in a batch.
    """

    def __init__(
        self,
        images: TaggedImages,
        config: AugmentConfig,
        *,
        batch: int,
        fill: tuple[int, int, int],
        seed: tuple[int, ...],
        threads: int = 2,
        read_label: Callable[[int], ByteArray] | None = None,
        share: tuple[int, int] = (0, 1),
        parts: int = 1,
    ):
        self.images = images
        self.config = config
        self.batch = min(batch, len(images))
        self.fill = fill
        self.seed = seed
        self.threads = max(1, threads)
        self.read_label = read_label
        if self.batch < share[1]:
            raise ConfigError(
                f"{share[1]} processes cannot share a batch of {self.batch} images",
                fix="start fewer processes, or set a larger batch",
            )
        own = np.array_split(np.arange(self.batch), share[1])[share[0]]
        self._parts = [part.tolist() for part in np.array_split(own, min(parts, len(own)))]

    @property
    def parts(self) -> int:
        """Parts of a batch that this process takes."""
        return len(self._parts)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        return len(self.images) // self.batch

    def epoch(self, epoch: int, first_step: int = 0) -> Generator[list[TrainingBatch], None, None]:
        """The parts of each batch of one epoch, from `first_step` on.

        Raises:
            ImageError: an image cannot be read.
        """
        order = np.random.default_rng([*self.seed, epoch]).permutation(len(self.images))
        ahead: deque[Future[list[TrainingBatch]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="views") as pool:
            try:
                for step in range(first_step, self.steps):
                    rows = order[step * self.batch : (step + 1) * self.batch]
                    ahead.append(pool.submit(self._make, epoch, rows))
                    if len(ahead) > 2 * self.threads:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _make(self, epoch: int, rows: np.ndarray) -> list[TrainingBatch]:
        return [self._part(epoch, rows[part], part[0]) for part in self._parts]

    def _part(self, epoch: int, rows: np.ndarray, first: int) -> TrainingBatch:
        views = [self._view(epoch, int(row)) for row in rows]
        labels = np.stack([label for _, label in views if label is not None]) if self.read_label else None
        return TrainingBatch(np.stack([pixels for pixels, _ in views]), rows, labels, first)

    def _view(self, epoch: int, row: int) -> tuple[ByteArray, ByteArray | None]:
        rng = np.random.default_rng([*self.seed, epoch, row])
        label = None if self.read_label is None else self.read_label(row)
        return augment(read_image(self.images.paths[row]), self.config, rng, fill=self.fill, label=label)
