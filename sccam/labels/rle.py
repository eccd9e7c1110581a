"""Run lengths of a mask as two tools write them: COCO's, and those of Label Studio's brush.

    COCO    lengths of alternating runs of 0 and 1, down the columns, beginning with 0; as numbers, or as ASCII:
            each is cut into groups of 5 bits, lowest first, 0x20 set where more follow, 48 added; from the fourth
            on it is the difference from the length two before
    brush   a stream of bits, highest first: the number of values (32), their width less 1 (5), four widths of
            lengths less 1 (4 each); then blocks: repeated or not (1), which width (2), length less 1, and one value
            or as many as the length says. The values are the R G B A of every pixel, row by row; A is the mask.

Sources: pycocotools, common/maskApi.c; @thi.ng/rle-pack, which the frontend of Label Studio uses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sccam.errors import DataError
from sccam.structures import BoolArray, ByteArray, IntArray

CHANNELS = 4  # R G B A
VALUE_BITS = 8
LENGTH_BITS = (3, 4, 8, 16)  # what the frontend and the SDK write
HEADER_BITS = 32 + 5 + 4 * 4
GROUP_BITS = 5
MOST_GROUPS = 7  # of a number: 35 bits hold every length of a mask
_ON = 255  # of all four channels inside of the mask


def run_lengths(mask: BoolArray) -> IntArray:
    """COCO's run lengths of a mask [H W]."""
    starts, ends = column_runs(mask)
    return lengths_of(starts, ends, mask.size)


def column_runs(
    mask: BoolArray, *, top: int = 0, left: int = 0, height: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of 1 start and end, counted down the columns of an image that holds the mask [h w] at (top, left).

    Args:
        height: of the image [px]; the mask's by default.
    """
    height = mask.shape[0] if height is None else height
    # One row of 0 below every column ends the last run in it, so that no run goes on in the next column.
    columns = np.zeros((mask.shape[1], mask.shape[0] + 1), np.int8)
    columns[:, :-1] = mask.T
    steps = np.diff(columns.ravel(), prepend=np.int8(0))
    column, row = np.divmod(np.flatnonzero(steps), mask.shape[0] + 1)
    places = (column + left) * height + row + top
    starts, ends = places[0::2], places[1::2]
    apart = starts[1:] != ends[:-1]  # a run to the lower border goes on at the upper one
    return starts[np.r_[True, apart][: len(starts)]], ends[np.r_[apart, True][: len(ends)]]


def lengths_of(starts: np.ndarray, ends: np.ndarray, size: int) -> IntArray:
    """COCO's run lengths of runs of 1 in an image of `size` pixels."""
    borders = np.empty(2 * len(starts) + 2, np.int64)
    borders[0], borders[-1] = 0, size
    borders[1:-1:2], borders[2:-1:2] = starts, ends
    lengths = np.diff(borders)
    return (lengths[:-1] if len(starts) and ends[-1] == size else lengths).astype(np.int32)


def mask_of(lengths: Sequence[int] | np.ndarray, size: tuple[int, int]) -> BoolArray:
    """The mask [H W] of COCO's run lengths.

    Raises:
        DataError: they are not whole numbers from 0, or do not add up to the size.
    """
    try:
        values = np.asarray(lengths)
    except ValueError:  # lists of different lengths
        values = np.zeros((0, 0))
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        raise DataError("run lengths are not a list of whole numbers")
    values = values.astype(np.int64)
    height, width = size
    total = height * width
    if (values.size and (values.min() < 0 or values.max() > total)) or int(values.sum()) != total:
        raise DataError(
            f"run lengths do not cover the {width} x {height} px of the image",
            why="the size is that of another image, or height and width are swapped",
        )
    ones = np.zeros(len(values), bool)
    ones[1::2] = True
    return np.repeat(ones, values).reshape(width, height).T


def compressed(lengths: IntArray) -> str:
    """COCO's ASCII form of run lengths."""
    values = lengths.astype(np.int64)
    values[3:] -= lengths[1:-2]
    groups = values[:, None] >> (GROUP_BITS * np.arange(MOST_GROUPS))  # arithmetic: the sign stays
    # The last group is the first from which on all bits are that group's highest, the sign.
    sign = np.where(groups & (1 << (GROUP_BITS - 1)), -1, 0)
    last = np.argmax((groups >> GROUP_BITS) == sign, axis=1)
    place = np.arange(MOST_GROUPS)
    codes = (groups & 31) | np.where(place < last[:, None], 32, 0)
    return (codes[place <= last[:, None]] + 48).astype(np.uint8).tobytes().decode("ascii")


def uncompressed(text: str) -> IntArray:
    """The run lengths of COCO's ASCII form.

    Raises:
        DataError: it is not such a text.
    """
    codes = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int64) - 48
    if not len(codes):
        return np.zeros(0, np.int32)
    ends = np.flatnonzero((codes & 32) == 0)
    if codes.min() < 0 or codes.max() > 63 or not len(ends) or ends[-1] != len(codes) - 1:
        raise DataError("not COCO's compressed run lengths", why="the text was cut off or encoded in another way")
    starts = np.r_[0, ends[:-1] + 1]
    counts = ends - starts + 1
    if counts.max() > MOST_GROUPS:
        raise DataError("not COCO's compressed run lengths: a number is too long")
    place = np.arange(len(codes)) - np.repeat(starts, counts)
    values = np.add.reduceat((codes & 31) << (GROUP_BITS * place), starts)
    values -= np.where(codes[ends] & 16, np.int64(1) << (GROUP_BITS * counts), 0)
    values[1::2] = np.cumsum(values[1::2])  # number 3 is the difference from number 1, and so on
    values[2::2] = np.cumsum(values[2::2])
    if values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise DataError("not COCO's compressed run lengths: a run has no length that a mask can have")
    return values.astype(np.int32)


def brush(mask: BoolArray) -> list[int]:
    """The bytes of Label Studio's brush for a mask [H W]."""
    flat = mask.ravel()
    borders = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1, len(flat)]
    lengths = np.diff(borders) * CHANNELS
    values = np.where(flat[borders[:-1]], _ON, 0)
    # A run that is longer than the widest length becomes several.
    most = 1 << LENGTH_BITS[-1]
    pieces = -(-lengths // most)
    values = np.repeat(values, pieces)
    final = np.cumsum(pieces) - 1
    rest = lengths - (pieces - 1) * most
    lengths = np.full(len(values), most)
    lengths[final] = rest
    which = np.searchsorted([1 << bits for bits in LENGTH_BITS], lengths)
    width = np.array(LENGTH_BITS)[which]
    code = (((4 | which) << width | (lengths - 1)) << VALUE_BITS) | values
    header = [(mask.size * CHANNELS, 32), (VALUE_BITS - 1, 5), *((bits - 1, 4) for bits in LENGTH_BITS)]
    codes = np.r_[[number for number, _ in header], code]
    widths = np.r_[[bits for _, bits in header], 3 + width + VALUE_BITS]
    bits = np.unpackbits(codes.astype(">u4").view(np.uint8)).reshape(-1, 32)
    stream = bits[np.arange(32) >= 32 - widths[:, None]]
    # The SDK always adds 1 to 8 bits, so that a reader never stands at the very end.
    return np.packbits(np.r_[stream, np.zeros(8 - len(stream) % 8, np.uint8)]).tolist()


def brush_mask(rle: Sequence[int] | bytes, size: tuple[int, int]) -> BoolArray:
    """The mask [H W] of the bytes of Label Studio's brush: where A is not 0.

    Raises:
        DataError: they are no such bytes, or not for an image of this size.
    """
    height, width = size
    try:
        data = bytes(rle if isinstance(rle, bytes) else list(rle))  # bytes(3) would be three bytes of 0
    except (TypeError, ValueError) as error:
        raise DataError("a brush is not a list of bytes") from error
    if len(data) < HEADER_BITS // 8 + 1:
        raise _cut()
    count = int.from_bytes(data[:4], "big")
    if count != height * width * CHANNELS:
        raise DataError(
            f"a brush of {count} values for an image of {width} x {height} px; expected {height * width * CHANNELS}",
            why="original_width and original_height are those of another image",
        )
    return _brush_values(data, count).reshape(height, width, CHANNELS)[..., -1] > 0


def _brush_values(data: bytes, count: int) -> np.ndarray:
    """The values behind the header. Blocks have lengths of their own, so this is a loop: one round a block."""
    end = 8 * len(data)
    padded = np.frombuffer(data + bytes(8), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 8)
    words: list[int] = np.ascontiguousarray(windows).view(">u8").ravel().tolist()  # the 8 bytes from each byte on
    header = words[4] >> (64 - (HEADER_BITS - 32))
    value_bits = (header >> 16) + 1
    length_bits = [((header >> shift) & 15) + 1 for shift in (12, 8, 4, 0)]
    values: list[int] = []
    lengths: list[int] = []
    place, done = HEADER_BITS, 0
    while done < count:
        if place >= end:
            raise _cut()
        word = words[place >> 3] << (place & 7)  # its 57 highest bits of 64 are the stream's, and a block has 51
        bits = length_bits[(word >> 61) & 3]
        length = ((word >> (61 - bits)) & ((1 << bits) - 1)) + 1
        repeated = word >> 63 & 1
        place += 3 + bits
        if repeated:
            values.append((word >> (61 - bits - value_bits)) & ((1 << value_bits) - 1))
            lengths.append(length)
            place += value_bits
        else:
            values += _literal(padded, place, length, value_bits)
            lengths += [1] * length
            place += length * value_bits
        done += length
    if place > end:
        raise _cut()
    if done > count:
        raise DataError(f"a brush of {count} values has a block that ends after them", why="its bytes were changed")
    return np.repeat(np.array(values, np.uint8 if value_bits <= VALUE_BITS else np.uint32), lengths)


def _literal(padded: ByteArray, place: int, count: int, bits: int) -> list[int]:
    """`count` numbers of `bits` bits from bit `place` on."""
    window = padded[place >> 3 : (place + count * bits + 7) >> 3]
    stream = np.unpackbits(window)[place & 7 :][: count * bits]
    if len(stream) < count * bits:
        raise _cut()
    powers = np.uint32(1) << np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return list((stream.reshape(count, bits) @ powers).tolist())


def _cut() -> DataError:
    return DataError("a brush ends in the middle", why="the file was cut off")
