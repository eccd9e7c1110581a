"""Run lengths are those of pycocotools and of Label Studio's SDK, in both directions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccam.errors import DataError
from sccam.labels.rle import brush, brush_mask, column_runs, compressed, lengths_of, mask_of, run_lengths, uncompressed
from sccam.structures import BoolArray
from tests.labels.drawn import binary_masks, blobs

coco = pytest.importorskip("pycocotools.mask")

SDK = Path(sys.prefix) / "label-studio-sdk"  # made by `make`: only this folder has it, since it pins an older numpy
LARGE = {
    "blobs": blobs(375, 500),
    "noise": np.random.default_rng(0).random((97, 131)) < 0.5,
    "one long run": np.ones((300, 257), bool),  # longer than a block of a brush, and than four groups of COCO's
    "the last pixel": np.arange(300 * 257).reshape(300, 257) == 300 * 257 - 1,
    "one pixel": np.ones((1, 1), bool),
}


# COCO


@given(binary_masks)
def test_runs_are_pycocotools_runs(mask: BoolArray):
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    lengths = run_lengths(mask)
    assert compressed(lengths) == theirs["counts"].decode("ascii")
    assert np.array_equal(uncompressed(theirs["counts"].decode("ascii")), lengths)
    assert np.array_equal(mask_of(lengths, mask.shape), mask)


@pytest.mark.parametrize("name", LARGE)
def test_pycocotools_reads_large_masks_back(name: str):
    mask = LARGE[name]
    ours = {"size": list(mask.shape), "counts": compressed(run_lengths(mask))}
    assert np.array_equal(coco.decode(ours), mask)
    assert coco.area(ours) == mask.sum()


@given(st.lists(st.integers(0, 2**31 - 1), max_size=30))
def test_compressing_any_lengths_loses_none(lengths: list[int]):
    assert uncompressed(compressed(np.array(lengths, np.int32))).tolist() == lengths


@given(binary_masks, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_runs_of_a_part_are_those_of_the_whole(mask: BoolArray, top: int, left: int, bottom: int, right: int):
    whole = np.pad(mask, ((top, bottom), (left, right)))
    starts, ends = column_runs(mask, top=top, left=left, height=whole.shape[0])
    assert np.array_equal(lengths_of(starts, ends, whole.size), run_lengths(whole))


@given(st.text(max_size=20) | st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=20))
def test_any_text_is_run_lengths_or_a_data_error(text: str):
    try:
        lengths = uncompressed(text)
    except DataError:
        return
    assert (lengths >= 0).all()


@pytest.mark.parametrize(
    "lengths", [[5], [7], [3, -1, 4], [2**62, 2**62], [1.5, 4.5], [[1], [2, 3]], ["6"], [], [None]]
)
def test_lengths_that_are_not_of_the_image_are_refused(lengths: Any):
    with pytest.raises(DataError, match="run lengths"):
        mask_of(lengths, (2, 3))


# Label Studio's brush


@given(binary_masks)
def test_a_brush_reads_back_as_its_mask(mask: BoolArray):
    assert np.array_equal(brush_mask(brush(mask), mask.shape), mask)


def sdk(statement: str, value: Any) -> Any:
    """What the SDK makes of a value, in a process of its own."""
    if not SDK.is_dir():
        pytest.skip(f"{SDK} is not there; `make` puts label-studio-sdk into it")
    code = (
        "import sys, json\nimport numpy as np\nfrom label_studio_sdk.converter import brush\n"
        f"given = json.load(sys.stdin)\nprint()\nprint(json.dumps({statement}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(value), capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(SDK)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def masks_of_all_kinds() -> list[BoolArray]:
    rng = np.random.default_rng(1)
    small = [rng.random((h, w)) < share for h, w in ((1, 1), (1, 9), (7, 1), (5, 8)) for share in (0.0, 0.3, 1.0)]
    return [*small, *LARGE.values()]


def test_the_sdk_decodes_our_brushes():
    masks = masks_of_all_kinds()
    theirs = sdk("[brush.decode_rle(one).reshape(-1, 4)[:, 3].tolist() for one in given]", [brush(m) for m in masks])
    for mask, values in zip(masks, theirs, strict=True):
        assert np.array_equal(np.array(values).reshape(mask.shape), 255 * mask)


def test_our_brushes_are_the_bytes_of_the_sdk_and_its_brushes_are_read():
    masks = [mask for mask in masks_of_all_kinds() if mask.size * 4 <= 1 << 16]
    theirs = sdk("[brush.mask2rle(np.array(one, np.uint8)) for one in given]", [(255 * m).tolist() for m in masks])
    assert theirs == [brush(mask) for mask in masks]
    large = masks_of_all_kinds()
    theirs = sdk("[brush.mask2rle(np.array(one, np.uint8)) for one in given]", [(255 * m).tolist() for m in large])
    for mask, rle in zip(large, theirs, strict=True):
        assert np.array_equal(brush_mask(rle, mask.shape), mask)


def bits(*numbers: tuple[int, int]) -> list[int]:
    """(number, how many bits) as bytes."""
    text = "".join(f"{number:0{count}b}" for number, count in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def test_blocks_of_single_values_and_other_widths_are_read_as_the_frontend_writes_them():
    # 8 values, 8 bits each, lengths of 2, 4, 8 and 16 bits: a block of 4 single values, then 4 times 9.
    header = [(8, 32), (7, 5), (1, 4), (3, 4), (7, 4), (15, 4)]
    single = [(0, 1), (1, 2), (3, 4), (1, 8), (2, 8), (3, 8), (0, 8)]
    repeated = [(1, 1), (0, 2), (3, 2), (9, 8)]
    assert brush_mask(bits(*header, *single, *repeated), (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize(
    "rle", [[], [0, 0, 0, 24], brush(np.ones((2, 3), bool))[:-2], brush(np.ones((3, 3), bool)), [-1] * 30, 3, None, "x"]
)
def test_a_brush_that_is_not_of_the_image_is_refused(rle: Any):
    with pytest.raises(DataError, match="brush"):
        brush_mask(rle, (2, 3))


@given(st.integers(0, 200), st.lists(st.integers(0, 255), max_size=40), st.tuples(*[st.integers(1, 6)] * 2))
def test_any_bytes_are_a_mask_or_a_data_error(header: int, data: Sequence[int], size: tuple[int, int]):
    values = 4 * size[0] * size[1] if header else header
    try:
        mask = brush_mask([*values.to_bytes(4, "big"), *data], size)
    except DataError:
        return
    assert mask.shape == size
