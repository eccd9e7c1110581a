"""Permutohedral lattices of a batch of images on a device: the host side of `kernels/lattice.cu`.

vertices of all pixels -> hash table -> keys, sorted: a vertex's row is its rank
entries (vertex, pixel), sorted by row: what each row gathers when values are splatted
long rows are split into segments, whose sums are added in a second step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sccam.errors import ShapeError
from sccam.runtime.crf_layout import THREADS
from sccam.runtime.device import Buffer, Device, block_table
from sccam.structures import FloatArray, IntArray

MOST_IMAGES = 64  # six bits of a key; lattice.cu
OVERFLOW_FLAG, FULL_FLAG = 1, 2  # lattice.cu
PADDED_TO = 4  # [px] pydensecrf's vector width
SMALLEST_TABLE = 1 << 10  # slots
LARGEST_TABLE = 1 << 30
GROWTH = 4  # of a table that was too full
KEY_BITS = {2: 24, 5: 11}  # of one coordinate; lattice.cu, Key::BITS


@dataclass(frozen=True, slots=True)
class Pixels:
    """The images of a batch on the device."""

    sizes: tuple[tuple[int, int], ...]  # (height, width) of each
    total: int  # pixels of all
    table: Buffer  # i32 [N 4], see lattice_insert_gaussian
    blocks: Buffer  # i32 [blocks 2], a thread for each pixel and padding pixel
    block_count: int
    colours: Buffer  # u64 [N], address of each image's u8 [H W 3]


@dataclass(frozen=True, slots=True)
class Lattice:
    """One lattice of all images. Rows, segments, long rows and partial sums are numbered over the batch."""

    dimensions: int  # 2 or 5
    bounds: IntArray  # i32 [N + 1 4]: {row, segment, long row, partial sum} with which each image begins
    keys: Buffer  # u64 [rows]
    slots: Buffer  # u64, the hash table
    row_of_slot: Buffer  # i32 [slots]
    order: Buffer  # u64 [entries], sorted; the lower half is the entry
    first_entry: Buffer  # i32 [rows + 1]
    first_segment: Buffer
    first_long: Buffer
    first_partial: Buffer

    @property
    def name(self) -> str:
        return "gaussian" if self.dimensions == 2 else "bilateral"

    @property
    def rows(self) -> int:
        return int(self.bounds[-1, 0])

    @property
    def entries(self) -> int:
        return len(self.order)


def upload_pixels(device: Device, sizes: Sequence[tuple[int, int]], addresses: Sequence[int]) -> Pixels:
    """Tables of a batch of images whose u8 pixels lie at `addresses`."""
    heights, widths = np.array(sizes, np.int64).T
    counts = heights * widths
    padding = (counts % PADDED_TO != 0).astype(np.int64)
    table = np.stack([np.cumsum(counts) - counts, widths, heights, padding], axis=1).astype(np.int32)
    blocks = block_table((counts + padding).tolist(), THREADS)
    return Pixels(
        tuple(sizes), int(counts.sum()), device.upload(table), device.upload(blocks), len(blocks),
        device.upload(np.array(addresses, np.uint64)),
    )  # fmt: skip


def build(
    device: Device, pixels: Pixels, sxy: float, srgb: float | None, rows: Buffer, weights: Buffer, first_row: int
) -> Lattice:
    """The Gaussian lattice of a batch, or with `srgb` the bilateral one.

    Args:
        sxy: range of positions [px].
        srgb: range of colours [grey levels].
        rows: i32 [(D + 1) * pixels], gets the rows of each pixel's vertices, counted from `first_row`.
        weights: f32 of the same size, gets its weights there.

    Raises:
        ShapeError: a range is so small that vertices cannot be numbered.
    """
    dimensions = 2 if srgb is None else 5
    program = device.program("lattice")
    mask, slots, found = _inserted(device, pixels, dimensions, sxy, srgb, rows, weights)
    count = len(found)
    keys = device.sorted(found)
    row_of_slot = device.empty(mask + 1, np.int32)
    program.launch("lattice_rows", _blocks(count), THREADS, keys, count, slots, mask, row_of_slot)

    entries = (dimensions + 1) * pixels.total
    unordered = device.empty(entries, np.uint64)
    program.launch("lattice_entries", _blocks(entries), THREADS, row_of_slot, entries, first_row, rows, unordered)
    order = device.sorted(unordered)
    first_entry = device.empty(count + 1, np.int32)
    program.launch("lattice_row_starts", _blocks(count + 1), THREADS, order, entries, count, first_entry)

    segments, longs, partials = (device.empty(count, np.int32) for _ in range(3))
    program.launch("lattice_split", _blocks(count), THREADS, first_entry, count, segments, longs, partials)
    starts = [device.running_sum(counts) for counts in (segments, longs, partials)]
    images = len(pixels.sizes)
    bounds = device.empty((images + 1, 4), np.int32)
    program.launch(
        "lattice_bounds", _blocks(images + 1), THREADS, keys, count, images, shift(dimensions), *starts, bounds
    )
    return Lattice(dimensions, device.download(bounds), keys, slots, row_of_slot, order, first_entry, *starts)


def fill_tables(
    device: Device, lattice: Lattice, bases: tuple[int, int, int, int, int], span: int,
    neighbours: Buffer, stride: int, segments: Buffer, longs: Buffer,
) -> None:  # fmt: skip
    """Writes the part of one lattice into tables that hold both.

    Args:
        bases: rows, segments, long rows, partial sums and entries of the lattice before.
        span: number of its first span.
        neighbours: i32 [axes * stride 2]; segments, longs: i32 [... 4]; see lattice.cu.
    """
    row_base, segment_base, long_base, partial_base, entry_base = bases
    program = device.program("lattice")
    count, segment_count = int(lattice.bounds[-1, 0]), int(lattice.bounds[-1, 1])
    program.launch(
        f"lattice_neighbours_{lattice.name}", _blocks(count * (lattice.dimensions + 1)), THREADS, lattice.keys, count,
        lattice.slots, len(lattice.slots) - 1, lattice.row_of_slot, row_base, stride, neighbours,
    )  # fmt: skip
    program.launch(
        "lattice_segments", _blocks(segment_count), THREADS, lattice.first_entry, lattice.first_segment,
        lattice.first_partial, count, segment_count, row_base, segment_base, entry_base, partial_base, segments,
    )  # fmt: skip
    program.launch(
        "lattice_longs", _blocks(count), THREADS, lattice.keys, shift(lattice.dimensions), lattice.first_segment,
        lattice.first_long, lattice.first_partial, count, row_base, long_base, partial_base, span, longs,
    )  # fmt: skip


def fill_entries(
    device: Device, lattice: Lattice, pixels: int, weights: Buffer, entry_base: int, entries: Buffer
) -> None:
    """Writes {pixel, weight} of all contributions, in the order of rows."""
    device.program("lattice").launch(
        "lattice_contributions", _blocks(lattice.entries), THREADS, lattice.order, lattice.entries, pixels, entry_base,
        weights, entries,
    )  # fmt: skip


def shift(dimensions: int) -> int:
    """How far the image lies above the lowest bit of a key."""
    return 3 + dimensions * KEY_BITS[dimensions]


def scale_factors(dimensions: int) -> FloatArray:
    """f32 [D]: diagonal of E, for a blur of unit deviation. Source: Adams et al., section 3.1; pydensecrf's types."""
    deviation = float(np.float32(np.sqrt(2.0 / 3.0) * (dimensions + 1)))
    return np.array([deviation / np.sqrt((i + 1) * (i + 2)) for i in range(dimensions)]).astype(np.float32)


def _inserted(
    device: Device, pixels: Pixels, dimensions: int, sxy: float, srgb: float | None, rows: Buffer, weights: Buffer
) -> tuple[int, Buffer, Buffer]:
    """Mask of a table that is at most half full, the table, and its keys in any order."""
    program = device.program("lattice")
    scales = device.upload(scale_factors(dimensions))
    slots = SMALLEST_TABLE
    while slots < pixels.total:  # photos need a tenth of a vertex for each pixel
        slots *= 2
    while slots <= LARGEST_TABLE:
        table = device.filled(slots, np.int64, -1)  # EMPTY
        state = device.filled(2, np.int32, 0)  # flags, number of keys
        into = (pixels.total, table, slots - 1, rows, weights, state[:1])
        if srgb is None:
            arguments: tuple[object, ...] = (pixels.table, scales, float(sxy), *into)
            program.launch("lattice_insert_gaussian", pixels.block_count, THREADS, pixels.blocks, *arguments)
        else:
            arguments = (pixels.table, pixels.colours, scales, float(sxy), float(srgb), *into)
            program.launch("lattice_insert_bilateral", pixels.block_count, THREADS, pixels.blocks, *arguments)
        keys = device.empty(slots, np.uint64)
        program.launch("lattice_keys", _blocks(slots), THREADS, table, slots, keys, state[1:])
        flags, count = device.download(state).tolist()
        if flags & OVERFLOW_FLAG:
            raise ShapeError(
                f"the CRF's ranges, {sxy:g} px{'' if srgb is None else f' and {srgb:g} grey levels'}, are too small for"
                " images of this size: vertices of the lattice cannot be numbered",
                fix="use larger ranges",
            )
        if not flags & FULL_FLAG and 2 * count <= slots:
            return slots - 1, table, keys[:count]
        slots *= GROWTH
    raise ShapeError(f"{pixels.total} pixels need more vertices than a table can hold", fix="use larger ranges")


def _blocks(items: int) -> int:
    return -(-items // THREADS)
