"""Where everything of a batch of CRFs lies on the device: rows, labels, and which block works on which.

See `kernels/mean_field.cu` for the records. A span is the vertices of one image in one lattice; spans of the Gaussian
lattice come first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sccam.runtime.device import Buffer, Device, before, block_table, check_size
from sccam.structures import IntArray

THREADS = 256  # of a block
QUAD = 4  # labels in a vector of the device
SPAN = ("first_row", "rows", "first_segment", "segments", "first_partial", "quads", "values", "sums", "first_pixel",
        "pixels", "posterior", "labels", "unused0", "unused1", "unused2", "unused3")  # fmt: skip
"""Fields of struct Span in mean_field.cu, in order."""


class Layout:
    """Where every span of a batch begins in each buffer, for a number of quads a row, and which block works where."""

    def __init__(self, quads: Sequence[int], pixels: Sequence[int], gaussian: IntArray, bilateral: IntArray) -> None:
        images = len(quads)
        both = [np.asarray(part, np.int64) for part in (gaussian, bilateral)]
        first = np.concatenate([both[0][:-1], both[0][-1] + both[1][:-1]])  # [2N 4]
        counts = np.concatenate([np.diff(part, axis=0) for part in both])
        wide = np.array([*quads, *quads], np.int64)
        posterior = before([count * width for count, width in zip(pixels, quads, strict=True)])
        self.sizes = {  # how much of each buffer is used: rows, quads or blocks
            "rows": int(counts[:, 0].sum()),
            "segments": int(counts[:, 1].sum()),
            "longs": int(counts[:, 2].sum()),
            "values": int((counts[:, 0] * wide).sum()),
            "sums": int((counts[:, 3] * wide).sum()),
            "splat": int((-(-counts[:, 1] * wide // THREADS)).sum()),
            "blur": int((-(-counts[:, 0] * wide // THREADS)).sum()),
            "blur_bilateral": int((-(-counts[images:, 0] * wide[images:] // THREADS)).sum()),
        }
        check_size(max(*self.sizes.values(), int((counts[:, 1] * wide).sum())))
        columns: dict[str, Any] = {
            "first_row": first[:, 0], "rows": counts[:, 0], "first_segment": first[:, 1], "segments": counts[:, 1],
            "first_partial": first[:, 3], "quads": wide, "values": before(counts[:, 0] * wide)[:-1],
            "sums": before(counts[:, 3] * wide)[:-1], "first_pixel": before(pixels)[:-1] * 2,
            "pixels": [*pixels, *pixels], "posterior": posterior[:-1] * 2, "labels": before(quads)[:-1] * 2,
        }  # fmt: skip
        self.spans = np.zeros((2 * images, len(SPAN)), np.int32)
        for name, column in columns.items():
            self.spans[:, SPAN.index(name)] = column
        self.segment_items, self.row_items = (counts[:, 1] * wide).tolist(), (counts[:, 0] * wide).tolist()

    def buffers(self, device: Device, room: dict[str, int]) -> dict[str, Buffer]:
        """New tables of that room."""
        tables = {name: device.empty((room[name], 2), np.int32) for name in ("splat", "blur", "blur_bilateral")}
        return {"spans": device.empty(self.spans.shape, np.int32), **tables}

    def write(self, device: Device, tables: dict[str, Buffer], room: dict[str, int]) -> None:
        """Into tables of at least the sizes; blocks beyond have nothing to do."""
        device.write(tables["spans"], self.spans)
        bilateral = [0] * (len(self.row_items) // 2) + self.row_items[len(self.row_items) // 2 :]
        for name, items in (("splat", self.segment_items), ("blur", self.row_items), ("blur_bilateral", bilateral)):
            device.write(tables[name], block_table(items, THREADS, room[name]))


def label_table(labels: Sequence[Sequence[int]], pixels: Sequence[int]) -> tuple[IntArray, list[int]]:
    """i32 [quads of all images 4], see mean_field_prepare; and where each unary begins in the result."""
    table, starts = [], [0]
    for counts, size in zip(labels, pixels, strict=True):
        first = 0
        for count in counts:
            width = -(-count // QUAD)
            for q in range(width):
                table.append((first, width, min(QUAD, count - QUAD * q), starts[-1] + QUAD * q * size))
            first += width
            starts.append(starts[-1] + count * size)
    return np.array(table, np.int32), starts


def plane_addresses(device: Device, unaries: Sequence[Sequence[Buffer]], pixels: Sequence[int]) -> np.ndarray:
    """u64: address of the first score plane of each quad."""
    plane = np.dtype(np.float32).itemsize
    return np.array(
        [
            device.pointer(unary) + QUAD * q * size * plane
            for each, size in zip(unaries, pixels, strict=True)
            for unary in each
            for q in range(-(-unary.shape[0] // QUAD))
        ],
        np.uint64,
    )
