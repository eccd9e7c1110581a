"""The .cu files compile for A100 and H100, keep everything in registers, and fit the launches that the host makes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sccam.runtime import crf_cupy, crf_layout, walk_cupy
from sccam.runtime.affinity_cupy import OFFSETS
from sccam.runtime.crf_lattice import FULL_FLAG, KEY_BITS, OVERFLOW_FLAG, shift
from sccam.runtime.device import KERNELS
from sccam.stages.affinity_labels import neighbour_offsets
from tests.runtime.cuda_shim.compile import by_nvcc, by_nvrtc, find_nvrtc, has_nvcc, resources
from tests.runtime.cuda_shim.device import kernel_names

SOURCES = sorted(KERNELS.glob("*.cu"))
ARCHITECTURES = ("80", "90")
REGISTER_FILE = 65536  # of a multiprocessor; CUDA programming guide, compute capabilities 8.0 and 9.0
LARGEST_BLOCK = 256


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nvrtc_compiles_every_file_without_spills(source, record_property):
    library = find_nvrtc()
    if library is None:
        pytest.skip("NVRTC is not installed: it comes with torch for CUDA")
    _check(source, by_nvrtc(library, source, ARCHITECTURES), record_property)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nvcc_compiles_every_file_without_spills_or_warnings(source, tmp_path, record_property):
    if not has_nvcc():
        pytest.skip("nvcc is not installed")
    _check(source, by_nvcc(source, ARCHITECTURES, tmp_path), record_property)


@pytest.mark.parametrize("radius", [2, 9])
def test_the_walk_compiles_for_other_radii(radius, record_property):
    library = find_nvrtc()
    if library is None:
        pytest.skip("NVRTC is not installed: it comes with torch for CUDA")
    defines = walk_cupy.Stencil(neighbour_offsets(radius)).defines
    options = tuple(f"-D{name}={value}" for name, value in defines)
    _check(KERNELS / "walk.cu", by_nvrtc(library, KERNELS / "walk.cu", ("90",), options), record_property)


def _check(source: Path, report: str, record_property) -> None:
    found = resources(report)
    assert {name for name, _ in found} == set(kernel_names(source)), report
    for (name, architecture), used in sorted(found.items()):
        record_property(f"{name} {architecture}", f"{used.registers} registers")
        print(f"{architecture} {name}: {used.registers} registers")
        assert used.spills == 0 and used.stack == 0, f"{name} on {architecture} does not fit in registers: {used}"
        assert used.registers * LARGEST_BLOCK <= REGISTER_FILE


@pytest.mark.parametrize(
    ("file", "struct", "fields"), [("walk", "Image", walk_cupy.IMAGE), ("mean_field", "Span", crf_layout.SPAN)]
)
def test_records_have_the_same_fields_on_both_sides(file, struct, fields):
    source = (KERNELS / f"{file}.cu").read_text(encoding="utf-8")
    (body,) = re.findall(rf"struct alignas\(16\) {struct} {{(.*?)}};", source, re.DOTALL)
    body = re.sub(r"//.*", "", body)
    names: list[str] = []
    for name in re.findall(r"(\w+(?:\[\d+\])?)\s*[,;]", body):
        base, _, count = name.partition("[")
        names += [base] if not count else [f"{base}{n}" for n in range(int(count[:-1]))]
    assert tuple(names) == fields


@pytest.mark.parametrize(
    ("file", "constant", "value"),
    [
        ("affinity", "OFFSETS", OFFSETS),
        ("lattice", "OVERFLOW_FLAG", OVERFLOW_FLAG),
        ("lattice", "FULL_FLAG", FULL_FLAG),
        ("mean_field", "LANES", int(crf_cupy.LONG_THREADS**0.5)),
    ],
)
def test_constants_are_equal_on_both_sides(file, constant, value):
    source = (KERNELS / f"{file}.cu").read_text(encoding="utf-8")
    assert re.findall(rf"\b{constant} = (\d+)", source) == [str(value)]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_sources_are_plain_and_complete(source):
    """CuPy writes them in the encoding of the locale and knows no folder of ours."""
    text = source.read_bytes()
    assert text.isascii()
    assert b"#include" not in text


@pytest.mark.parametrize("dimensions", [2, 5])
def test_a_key_leaves_six_bits_for_the_image(dimensions):
    assert shift(dimensions) + 6 <= 64
    assert f"{KEY_BITS[2]} : (64 - 6 - 3) / D" in (KERNELS / "lattice.cu").read_text(encoding="utf-8")
    assert KEY_BITS[5] == (64 - 6 - 3) // 5
