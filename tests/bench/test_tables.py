"""Tables and pictures of speed: the newest figures of each case, what was missed or wrong, the rest of a page kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from measured import Device, devices, headlines
from PIL import Image
from tables import gpu_table, kernel_table, number, page, suite_table, summary, write

from sccam.bench.harness import Result, Seconds

CPU, GPU = "2 cores of a processor", "a GPU"
SECONDS = {"eager": 8.0, "tuned": 4.0, "ours": 1.0}


def row(suite: str, case: str, name: str, seconds: float, **values: Any) -> dict[str, Any]:
    """A way against eager ones of `SECONDS`."""
    eager, tuned = SECONDS["eager"] / seconds, SECONDS["tuned"] / seconds
    plain = Result(
        suite=suite, case=case, row=name, baseline="eager", images=2.0, seconds=Seconds(seconds, seconds, seconds),
        ratio=eager, ratio_q1=eager, ratio_q3=eager, strong="tuned", strong_ratio=tuned, goal=None, gflop=1.0,
        gbyte=None, peak_mb=12.0, max_error=1e-6, agreement=None, wrong=False, x=None, steps=None,
    ).as_dict()  # fmt: skip
    return plain | {"commit": "abc", "of_ceiling": 0.5} | values


def three(suite: str, case: str, **of_ours: Any) -> list[dict[str, Any]]:
    """Eager, tuned, and a way of this package."""
    return [row(suite, case, name, seconds, **(of_ours if name == "ours" else {})) for name, seconds in SECONDS.items()]


def put(folder: Path, date: str, rows: list[dict[str, Any]], device: str = CPU, **facts: Any) -> None:
    """A file as `sccam bench` writes it."""
    told = {
        "device": device, "date": date, "commit": "abc", "system": "Linux", "python": "3.11", "memory_gb": 24.0,
        "versions": {"torch": "2.14"}, "ceilings": {"gflops": 200.0, "gflops_bf16": 600.0, "gbytes": 20.0}, **facts,
    }  # fmt: skip
    content = {"schema": 1, "facts": told, "exponents": [], "rows": rows}
    folder.mkdir(exist_ok=True)
    (folder / f"{device.replace(' ', '-')}-{date}.json").write_text(json.dumps(content))


def only(folder: Path) -> Device:
    (device,) = devices(folder)
    return device


def test_of_each_case_the_newest_file_counts(tmp_path):
    put(tmp_path, "2026-02-01", three("crf", "a", commit="new"))
    put(tmp_path, "2026-01-31", three("crf", "a", commit="old") + three("crf", "b") + three("walk", "c"))
    put(tmp_path, "2025-12-31", three("crf", "b", commit="oldest"))
    device = only(tmp_path)
    found = [(row["suite"], row["case"], row["commit"]) for row in device.rows if row["row"] == "ours"]
    assert found == [("walk", "c", "abc"), ("crf", "a", "new"), ("crf", "b", "abc")]  # suites as `sccam bench` has them
    assert [facts["date"] for facts in device.facts] == ["2026-02-01", "2026-01-31"]  # the third has no row in use
    assert "commit new, 2026-02-01; commit abc, 2026-01-31" in page([device], tmp_path)


def test_devices_stand_apart_and_other_results_are_ignored(tmp_path):
    put(tmp_path, "2026-01-01", three("crf", "a"), GPU, cuda="13.0", driver="580")
    put(tmp_path, "2026-01-01", three("crf", "a"))
    for name in ("photos.json", "photos-2026-01-01.json.tmp", "photos-2026-1-1.json", "photos-2026-01-01.txt"):
        (tmp_path / name).write_text("[]")
    assert [(device.name, device.gpu, device.slug) for device in devices(tmp_path)] == [
        (CPU, False, "2-cores-of-a-processor"), (GPU, True, "a-GPU"),
    ]  # fmt: skip


def test_a_file_of_another_schema_is_refused(tmp_path):
    (tmp_path / "machine-2026-01-01.json").write_text('{"schema": 0}')
    with pytest.raises(SystemExit, match=r"machine-2026-01-01\.json: .* schema 1"):
        devices(tmp_path)


def test_a_table_has_one_line_a_way_and_no_empty_column(tmp_path):
    put(tmp_path, "2026-01-01", three("networks", "net, batch 2", goal=8.5, images=4.0))
    assert suite_table(only(tmp_path).rows).splitlines() == [
        "| case | way | ms, median (quartiles) | images/s | × eager (quartiles) | × tuned | goal | of ceiling | MB"
        " | error |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| net, batch 2 | eager | 8,000 (8,000 to 8,000) | 0.250 | baseline | 0.500 |  | 50.0 % | 12 | 1.0e-06 |",
        "| net, batch 2 | tuned | 4,000 (4,000 to 4,000) | 0.500 | 2.00 (2.00 to 2.00) | tuned |  | 50.0 % | 12"
        " | 1.0e-06 |",
        "| net, batch 2 | ours | 1,000 (1,000 to 1,000) | 4.00 | 8.00 (8.00 to 8.00) | 4.00 | 8.5: **missed** | 50.0 %"
        " | 12 | 1.0e-06 |",
    ]
    put(tmp_path, "2026-01-02", three("walk", "a"))
    assert "images/s" not in suite_table([row for row in only(tmp_path).rows if row["suite"] == "walk"])


def test_goals_are_met_or_missed_and_a_wrong_way_meets_none(tmp_path):
    put(tmp_path, "2026-01-01", [
        *three("crf", "slow", goal=8.5), *three("crf", "fast", goal=8.0),
        *three("crf", "wrong", goal=2.0, wrong=True, max_error=0.5),
    ])  # fmt: skip
    written = page(devices(tmp_path), tmp_path)
    assert "1 of 3 met." in written
    assert "| crf | slow | ours | 8.5 | 8.00 | **missed** |" in written
    assert "| crf | fast | ours | 8 | 8.00 | met |" in written
    assert "| crf | wrong | ours | 2 | 8.00 | **missed** |" in written
    assert written.count("5.0e-01 **wrong**") == written.count("**wrong**") == 1


def test_headlines_are_right_ways_of_this_package(tmp_path):
    networks = [row("networks", f"A, {case}", name, seconds, wrong="wrong" in name) for case in ("batch 1", "batch 4")
                for name, seconds in {"eager": 8.0, "tuned": 4.0, "compiled fp32": 5.0, "x fp32": 6.0,
                                      "wrong fp32": 0.1, "y fp32": 5.5, "x int8": 2.0}.items()]  # fmt: skip
    crf = three("crf", "one image, 21 labels", wrong=True) + three("crf", "batch of 4 images, 21 labels")
    put(tmp_path, "2026-01-01", networks + crf + three("walk", "first") + three("walk", "second"))
    found = [(line.work, line.row["case"], line.row["row"]) for line in headlines(only(tmp_path))]
    assert found == [  # no CRF: its first case has no right way
        ("random walk", "first", "ours"), ("network, fp32", "A, batch 1", "y fp32"),
        ("network, int8", "A, batch 1", "x int8"),
    ]  # fmt: skip
    assert summary(devices(tmp_path)).splitlines()[4:6] == [
        "| random walk | first | ours | 4,000 | 500 | 8.00 | 4.00 |",  # two images a run
        "| network, fp32 | A, batch 1 | y fp32 | 4,000 | 2,750 | 1.45 | 0.727 |",
    ]


def test_exponents_are_fitted_to_the_rows_in_use(tmp_path):
    sizes = [row("scaling", f"side = {side}", "ours", float(side**3), x=float(side)) for side in (1, 2, 4)]
    put(tmp_path, "2026-01-01", sizes)
    assert "| side | ours | 3.00 | 1.000 | 3 |" in page(devices(tmp_path), tmp_path)


def test_what_no_file_tells_of_is_not_measured(tmp_path):
    put(tmp_path, "2026-01-01", three("crf", "a"))
    assert page(devices(tmp_path), tmp_path).endswith("\n\nGPU: not measured. TensorRT: not measured.")
    assert str(kernel_table(devices(tmp_path))).endswith("GPU: not measured.")
    put(tmp_path, "2026-01-01", [row("networks", "a", "TensorRT fp16", 1.0)], GPU, cuda="13.0", driver="580")
    for written in (page(devices(tmp_path), tmp_path), summary(devices(tmp_path)), kernel_table(devices(tmp_path))):
        assert written is not None and "not measured" not in written


def test_only_what_stands_between_the_marks_changes(tmp_path):
    names = {"benchmarks/README.md": "bench tables", "README.md": "speed table", "docs/kernels.md": "kernel table"}
    for path, name in names.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(f"before\n<!-- {name}: begin -->\nold\n<!-- {name}: end -->\nafter\n")
    write([], tmp_path)
    for path in ("benchmarks/README.md", "README.md"):
        inside = "CPU: not measured.\n\nGPU: not measured. TensorRT: not measured."
        name = names[path]
        assert (tmp_path / path).read_text() == (
            f"before\n<!-- {name}: begin -->\n{inside}\n<!-- {name}: end -->\nafter\n"
        )
    assert "\nold\n" in (tmp_path / "docs/kernels.md").read_text()  # it keeps the figures that it has
    put(tmp_path / "results", "2026-01-01", three("crf", "one image, 21 labels") + three("networks", "net"))
    write(devices(tmp_path / "results"), tmp_path)
    for path, name in names.items():
        before, rest = (tmp_path / path).read_text().split(f"<!-- {name}: begin -->\n")
        inside, after = rest.split(f"\n<!-- {name}: end -->")
        assert (before, after) == ("before\n", "\nafter\n") and "| one image, 21 labels | ours |" in inside
    assert "| net |" not in (tmp_path / "docs/kernels.md").read_text()


def test_numbers_have_three_digits_and_no_exponent():
    values = (0.00001234, 0.5, 1.0, 12.34, 123.4, 1234.5, 0.0)
    assert [number(value) for value in values] == ["0.0000123", "0.500", "1.00", "12.3", "123", "1,234", "0"]


def test_pictures_are_drawn_of_what_was_measured_and_stand_on_the_page(tmp_path):
    pytest.importorskip("matplotlib")
    import plots

    folder = tmp_path / "plots"
    folder.mkdir()
    (folder / "gone-scaling.png").write_bytes(b"of a device that has no file any more")
    results = tmp_path / "results"
    put(results, "2026-01-01", three("crf", "one image, 21 labels", of_ceiling=None))
    assert [path.name for path in plots.write(devices(results), folder)] == ["2-cores-of-a-processor-speed-up.png"]
    scaling = [row("scaling", f"side = {side}", "ours", float(side**3), x=float(side)) for side in (1, 2, 4)]
    batches = [way for batch in (1, 4) for way in three("networks", f"net, 32 x 32, batch {batch}")]
    put(results, "2026-01-02", scaling + batches)
    written = plots.write(devices(results), folder)
    assert [path.stem.removeprefix("2-cores-of-a-processor-") for path in written] == [
        "speed-up", "throughput", "ceiling", "scaling",
    ]  # fmt: skip
    assert sorted(folder.iterdir()) == sorted(written)
    text = page(devices(results), folder)
    for path in written:
        assert f"(plots/{path.name})" in text
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG" and image.width == 1800  # 900 px of a README, twice
            grey = np.asarray(image.convert("L"))
            assert grey.min() < 100 and np.median(grey) == 255  # something is drawn on white


def test_where_the_time_goes_is_a_table_of_its_own(tmp_path):
    steps = {"walk": 12.5, "crf": 3.0}
    put(tmp_path, "2026-02-01", three("pseudo_labels", "a", steps=steps) + three("crf", "b"))
    text = page([only(tmp_path)], tmp_path / "plots")
    assert "| a | ours | 12.5 | 3.00 |" in text and text.count("Where the time goes") == 1


def test_a_gpu_s_events_become_milliseconds_an_image():
    times = {"median": 8.0, "fastest": 7.0, "slowest": 9.0}
    rows = [{"what": "crf", "size": [375, 500], "labels": 21, "unaries": 2, "batch": 4, "call": times, "replay": times,
             "rows of both lattices, with headroom": 9, "pydensecrf on the CPU, one unary of one image": 900.0},
            {"what": "merge", "classes": 2, "grid": [94, 125], "call": times, "eager": times}]  # fmt: skip
    facts = {"gpu": "a GPU", "cuda": "13.0", "cupy": "14", "torch": "2.11", "commit": "0123456789abcdef"}
    text = gpu_table({**facts, "rows": rows})
    assert "| crf | 375 x 500, labels 21, unaries 2 | 4 | 2.00 | 2.00 | pydensecrf on the CPU 900 |" in text
    assert "| merge | 94 x 125, classes 2 | 1 | 8.00 |  | eager 8.00 |" in text
    assert text.endswith(
        "a GPU, CUDA 13.0, CuPy 14, torch 2.11: `python benchmarks/gpu_kernels.py`, commit 0123456789."
    )
