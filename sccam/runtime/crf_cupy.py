"""Dense CRF on a GPU for a batch of images and several unaries each: the numbers of pydensecrf, see stages/crf.py.

Lattices are built once for each image (`crf_lattice.py`), all unaries of an image share them, and the mean field of the
whole batch is recorded as one CUDA graph for each combination of image sizes and labels (`kernels/mean_field.cu`).
A batch of sizes that was seen before keeps its buffers, its graph and its Gaussian lattice, which colours do not enter.

Sums have a fixed order: results repeat to the bit, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sccam.errors import NumericError, ShapeError
from sccam.runtime.crf_lattice import MOST_IMAGES, Lattice, Pixels, build, fill_entries, fill_tables, upload_pixels
from sccam.runtime.crf_layout import QUAD, THREADS, Layout, label_table, plane_addresses
from sccam.runtime.device import Buffer, Device, before, block_table, check_size, in_batches
from sccam.runtime.device_cupy import open_device
from sccam.stages.crf import PSA, SCORE_FLOOR, CrfConfig
from sccam.structures import FloatArray, IntArray

LONG_THREADS = 64  # of a block of mean_field_splat_longs
MOST_QUADS = THREADS  # of an image: a pixel's labels are handled by one block
MOST_PIXELS = 1 << 24  # of a batch; lattices take about half a kilobyte a pixel while they are built
MOST_SCORES = 1 << 28  # of a batch: a gigabyte
MOST_ENTRIES = 1 << 31  # of a lattice: entries are numbered in 32 bits
HEADROOM = 1.25  # of buffers whose size depends on the colours, so that the next batch finds room
SPARE = 8  # the same for buffers of few rows
GAUSSIAN_AXES, BILATERAL_AXES = 3, 6
Item = tuple[Any, Sequence[Any]]


def dense_crfs(
    images: Sequence[Any], scores: Sequence[Sequence[Any]], config: CrfConfig = PSA, *, device: Device | None = None
) -> list[list[FloatArray]]:
    """Posteriors f32 [c H W] for every unary of every image, as `stages.crf.dense_crf` gives them.

    Args:
        images: u8 [H W 3] RGB, of NumPy, torch or CuPy; sizes may differ.
        scores: for each image its unaries, [c H W] in [0, 1] each; labels may differ. Several unaries of one image
            cost little more than one.
        config: kernels and iterations.
        device: the current GPU by default.

    Raises:
        ShapeError: an image is not u8 RGB, scores have another size, or a range is too small for the lattice.
        NumericError: a score is NaN or infinite.
        ResourceError: the GPU has no room for one image.
        BackendUnavailable: CuPy is not installed, or there is no GPU.
    """
    if len(images) != len(scores):
        raise ShapeError(f"{len(images)} images, {len(scores)} lists of scores; one list for each image is needed")
    for image, unaries in zip(images, scores, strict=True):
        _check(image, unaries)
    device = device or open_device()
    present = [n for n, unaries in enumerate(scores) if unaries]
    results: list[list[FloatArray]] = [[] for _ in images]
    found = in_batches(
        device, [(images[n], scores[n]) for n in present], lambda batch: _posteriors(device, batch, config), _fits
    )
    for n, posteriors in zip(present, found, strict=True):
        results[n] = posteriors
    return results


class _Batch:
    """Buffers and the recorded mean field for one combination of image sizes and labels."""

    def __init__(
        self, device: Device, sizes: list[tuple[int, int]], labels: list[tuple[int, ...]], config: CrfConfig
    ) -> None:
        self.device, self.sizes, self.config = device, sizes, config
        self.program = device.program("mean_field")
        self.pixel_counts = [height * width for height, width in sizes]
        self.total = sum(self.pixel_counts)
        self.quads = [sum(-(-count // QUAD) for count in counts) for counts in labels]
        self.rows = device.empty((GAUSSIAN_AXES + BILATERAL_AXES) * self.total, np.int32)
        self.weights = device.empty((GAUSSIAN_AXES + BILATERAL_AXES) * self.total, np.float32)
        self.entries = device.empty(((GAUSSIAN_AXES + BILATERAL_AXES) * self.total, 2), np.int32)
        posterior = before([count * quads for count, quads in zip(self.pixel_counts, self.quads, strict=True)])
        self.logits = device.empty((posterior[-1], QUAD), np.float32)
        self.posterior = device.empty((posterior[-1], QUAD), np.float32)
        table, self.parts = label_table(labels, self.pixel_counts)
        self.labels = device.upload(table)
        self.out = device.empty(self.parts[-1], np.float32)
        self.pixel_blocks = block_table(self.pixel_counts, THREADS)
        update = block_table(self.pixel_counts, [THREADS // quads for quads in self.quads])
        self.pixel_table, self.update_table = device.upload(self.pixel_blocks), device.upload(update)
        self.update_count = len(update)
        self.room: dict[str, int] = {}
        self.gaussian: IntArray | None = None  # bounds of the Gaussian lattice, while its tables are complete

    def run(self, images: Sequence[Any], scores: Sequence[Sequence[Any]]) -> list[list[FloatArray]]:
        device = self.device
        held = [device.borrow(image, np.uint8) for image in images]  # alive until the download
        pixels = upload_pixels(device, self.sizes, [device.pointer(image) for image in held])
        self._lattices(pixels)

        unaries = [[device.borrow(unary, np.float32) for unary in each] for each in scores]
        bad = device.filled(1, np.int32, 0)
        self.program.launch(
            "mean_field_prepare", len(self.pixel_blocks), THREADS, self.pixel_table, self.spans, self.labels,
            device.upload(plane_addresses(device, unaries, self.pixel_counts)), SCORE_FLOOR, self.logits, bad,
        )  # fmt: skip
        self.mean_field(self._iterations)
        self.program.launch(
            "mean_field_unpack", len(self.pixel_blocks), THREADS, self.pixel_table, self.spans, self.labels,
            self.posterior, self.out,
        )  # fmt: skip
        out = device.download(self.out)
        if device.download(bad)[0]:
            raise NumericError("scores for the CRF hold NaN or infinity", fix="check the maps before this stage")
        parts = iter(zip(self.parts, self.parts[1:], strict=False))
        return [
            [out[start:stop].reshape(unary.shape) for unary, (start, stop) in zip(each, parts, strict=False)]
            for each in scores
        ]

    def _lattices(self, pixels: Pixels) -> None:
        """Builds what the colours decide, and the Gaussian lattice where none is kept."""
        config, middle = self.config, GAUSSIAN_AXES * self.total
        lower, upper = slice(0, middle), slice(middle, None)

        def gaussian_lattice() -> Lattice:
            return build(self.device, pixels, config.gaussian_sxy, None, self.rows[lower], self.weights[lower], 0)

        kept, self.gaussian = self.gaussian, None  # until its part of the tables is complete
        fresh = gaussian_lattice() if kept is None else None
        bounds = kept if fresh is None else fresh.bounds
        assert bounds is not None
        bilateral = build(
            self.device, pixels, config.bilateral_sxy, config.bilateral_srgb, self.rows[upper], self.weights[upper],
            int(bounds[-1, 0]),
        )  # fmt: skip
        layout = Layout(self.quads, self.pixel_counts, bounds, bilateral.bounds)
        if any(size > self.room.get(name, -1) for name, size in layout.sizes.items()):
            self._make_room(layout)
            fresh = fresh or gaussian_lattice()
        layout.write(self.device, self.tables, self.room)
        row, segment, long, partial = bounds[-1].tolist()
        parts = [(bilateral, (row, segment, long, partial, middle), len(self.sizes), upper)]
        self.device.fill(self.longs if fresh else self.longs[long:], -1)  # blocks beyond have nothing to do
        if fresh:
            parts.insert(0, (fresh, (0, 0, 0, 0, 0), 0, lower))
        for lattice, bases, span, part in parts:
            fill_tables(
                self.device, lattice, bases, span, self.neighbours, self.room["rows"], self.segments, self.longs
            )
            fill_entries(self.device, lattice, self.total, self.weights[part], bases[-1], self.entries)
        self._blur_ones(Layout([1] * len(self.sizes), self.pixel_counts, bounds, bilateral.bounds))
        for lattice, bases, span, part in parts:
            self.program.launch(
                f"mean_field_normalise_{lattice.name}", len(self.pixel_blocks), THREADS, self.pixel_table,
                self.ones_spans, span, self.total, self.rows[part], self.values[1 if lattice is fresh else 0],
                alpha(lattice.dimensions), self.weights[part],
            )  # fmt: skip
            fill_entries(self.device, lattice, self.total, self.weights[part], bases[-1], self.entries)
        self.gaussian = bounds

    def _blur_ones(self, layout: Layout) -> None:
        """A splat and a blur of ones, one quad for each pixel, from which the norms come."""
        tables = layout.buffers(self.device, layout.sizes)
        layout.write(self.device, tables, layout.sizes)
        self.ones_spans = tables["spans"]
        self._splat_and_blur(tables, layout.sizes, self.device.filled((self.total, QUAD), np.float32, 1))

    def _make_room(self, layout: Layout) -> None:
        """New buffers for what the colours decide, some larger than needed, and a new recording that uses them."""
        device = self.device
        self.room = {name: int(size * HEADROOM) + SPARE for name, size in layout.sizes.items()}
        check_size(max(self.room.values()))
        self.tables = layout.buffers(device, self.room)
        self.spans = self.tables["spans"]
        self.neighbours = device.empty((BILATERAL_AXES * self.room["rows"], 2), np.int32)
        self.segments = device.empty((self.room["segments"], 4), np.int32)
        self.longs = device.empty((self.room["longs"], 4), np.int32)
        self.values = [device.empty((self.room["values"], QUAD), np.float32) for _ in range(2)]
        self.sums = device.empty((self.room["sums"], QUAD), np.float32)
        self.mean_field = device.recorder()

    def _iterations(self) -> None:
        """Q0 = softmax(log scores), then the updates."""
        self._update(messages=False)
        for _ in range(self.config.iterations):
            self._splat_and_blur(self.tables, self.room, self.posterior)
            self._update(messages=True)

    def _update(self, messages: bool) -> None:
        config = self.config
        self.program.launch(
            "mean_field_update", self.update_count, THREADS, self.update_table, self.spans, len(self.sizes),
            self.labels, self.total, self.rows, self.weights,
            self.values[1], config.gaussian_compat * alpha(2),
            self.values[0], config.bilateral_compat * alpha(5), int(messages), self.logits, self.posterior,
        )  # fmt: skip

    def _splat_and_blur(self, tables: dict[str, Buffer], room: dict[str, int], posterior: Buffer) -> None:
        """Gaussian values end in values[1], after three axes; bilateral ones in values[0], after six."""
        launch = self.program.launch
        launch(
            "mean_field_splat", room["splat"], THREADS, tables["splat"], tables["spans"], self.segments, self.entries,
            posterior, self.values[0], self.sums,
        )  # fmt: skip
        launch(
            "mean_field_splat_longs", self.room["longs"], LONG_THREADS, self.longs, tables["spans"], self.sums,
            self.values[0],
        )  # fmt: skip
        stride = self.room["rows"]
        for axis in range(BILATERAL_AXES):
            which = "blur" if axis < GAUSSIAN_AXES else "blur_bilateral"
            launch(
                "mean_field_blur", room[which], THREADS, tables[which], tables["spans"],
                self.neighbours[axis * stride : (axis + 1) * stride], self.values[axis % 2], self.values[1 - axis % 2],
            )  # fmt: skip


def _posteriors(device: Device, batch: Sequence[Item], config: CrfConfig) -> list[list[FloatArray]]:
    sizes = [(int(image.shape[0]), int(image.shape[1])) for image, _ in batch]
    labels = [tuple(int(unary.shape[0]) for unary in unaries) for _, unaries in batch]
    with device.active():
        key = ("crf", tuple(sizes), tuple(labels), config)
        plan = device.plan(key, lambda: _Batch(device, sizes, labels, config))
        found: list[list[FloatArray]] = plan.run([image for image, _ in batch], [unaries for _, unaries in batch])
    return found


def alpha(dimensions: int) -> float:
    """What slicing multiplies with: 1 / (1 + 2^-D). Source: pydensecrf, after Adams' code."""
    return 1 / (1 + 2**-dimensions)


def _check(image: Any, unaries: Sequence[Any]) -> None:
    shape = tuple(image.shape)
    if not str(image.dtype).endswith("uint8") or len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise ShapeError(f"image is {image.dtype} {shape}, expected uint8 (H, W, 3)")
    for unary in unaries:
        if len(unary.shape) != 3 or tuple(unary.shape[1:]) != shape[:2] or unary.shape[0] < 1:
            raise ShapeError(
                f"scores have shape {tuple(unary.shape)}, the image {shape[:2]}; upsample the scores first"
            )
    quads = sum(-(-unary.shape[0] // QUAD) for unary in unaries)
    if quads > MOST_QUADS:
        raise ShapeError(
            f"the unaries of an image have {quads} groups of four labels, one call takes {MOST_QUADS}",
            fix="pass some of its unaries in another call",
        )
    if shape[0] * shape[1] * max(4 * quads, BILATERAL_AXES) >= MOST_ENTRIES:
        raise ShapeError(f"an image of {shape[0]}x{shape[1]} px with {4 * quads} labels is too large for the GPU's CRF")


def _fits(batch: Sequence[Item]) -> bool:
    pixels = [image.shape[0] * image.shape[1] for image, _ in batch]
    lanes = [QUAD * sum(-(-unary.shape[0] // QUAD) for unary in unaries) for _, unaries in batch]
    scores = sum(count * lane for count, lane in zip(pixels, lanes, strict=True))
    return len(batch) <= MOST_IMAGES and sum(pixels) <= MOST_PIXELS and scores <= MOST_SCORES
