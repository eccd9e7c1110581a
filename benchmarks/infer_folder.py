"""`sccam infer` on a folder: do all files of a run give the same masks, and how near is a folder to the network alone?

    python benchmarks/infer_folder.py RUN IMAGES [--name photos]      # entries in results/infer_folder.json

For each file of the segmenter: the share of pixels with the label that torch gives, and the agreement that its export
promised. And images a second of three pipelines, one after the other in every round: reading alone, the network alone
on images in memory, and the whole of it with masks on disk. `of_limit` is the whole against the slower of the others.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import write_json
from sccam.origin import commit, device_name
from sccam.runtime.folder import predict, predict_to
from sccam.runtime.network import open_network
from sccam.runtime.pipeline import Loaded, stream
from sccam.runtime.segmenter import SegmentJob
from sccam.runtime.sources import Source, sources

RESULT = Path(__file__).resolve().parent / "results" / "infer_folder.json"
ROUNDS = 5  # after one of warm-up
MOST = 150  # images
FILES = ("segmenter.onnx", "segmenter.fp16.onnx", "segmenter.int8.onnx")


def main() -> None:
    """Compares, times, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--name", default="photos")
    arguments = parser.parse_args()
    found = list(sources(arguments.images))
    found = found[:: max(1, len(found) // MOST)][:MOST]
    torch_job = SegmentJob(open_network(arguments.run, "segmenter", "torch"))
    expected = labels_by(torch_job, found)
    rows = []
    for job in (torch_job, *map(onnx_job, (arguments.run / "export" / name for name in FILES))):
        same = [float((labels == expected[name]).mean()) for name, labels in labels_by(job, found).items()]
        promised = (job.network.manifest.parity or {}).get("agreement")
        row = {
            "case": arguments.name,
            "images": len(found),
            "file": job.network.path.name,
            "backend": job.network.backend,
            "same_labels": round(statistics.fmean(same), 6),
            "lowest_image": round(min(same), 6),
            "agreement_at_export": promised,
            **rates(job, found),
            "device": device_name(),
            "commit": commit(),
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    before = json.loads(RESULT.read_text()) if RESULT.exists() else []
    write_json(RESULT, [*(row for row in before if row["case"] != arguments.name), *rows])


def onnx_job(path: Path) -> SegmentJob:
    """The job of an exported file."""
    return SegmentJob(open_network(path, "segmenter"))


def labels_by(job: SegmentJob, found: Iterable[Source]) -> dict[str, np.ndarray]:
    """Labels by name."""
    return {result.source.name: result.labels for result in predict(job, found) if result.labels is not None}


def rates(job: SegmentJob, found: Sequence[Source]) -> dict[str, float]:
    """Images a second of the three pipelines, medians; and the median share of the limit."""
    in_memory = {source.name: job.load(source) for source in found}

    def whole() -> None:
        with tempfile.TemporaryDirectory() as out:
            assert predict_to(job, found, out).done == len(found)

    reading = Partly(job, job.load, lambda group: [None] * len(group))
    network = Partly(job, lambda source: in_memory[source.name], job.run)
    ways: dict[str, Callable[[], Any]] = {
        "reading": lambda: list(stream(reading, found)),
        "network": lambda: list(stream(network, found)),
        "whole": whole,
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if round_:
                times[name].append(time.perf_counter() - started)
    shares = [max(r, n) / w for r, n, w in zip(times["reading"], times["network"], times["whole"], strict=True)]
    per_second = {f"{name}_per_second": round(len(found) / statistics.median(t), 2) for name, t in times.items()}
    return {**per_second, "of_limit": round(statistics.median(shares), 3)}


class Partly:
    """A job of which some steps do nothing."""

    def __init__(self, job: SegmentJob, load: Callable[[Source], Loaded], run: Callable[[Sequence[Loaded]], Any]):
        self.lanes, self.batch_pixels, self.load, self.run = job.lanes, job.batch_pixels, load, run

    def finish(self, loaded: Loaded, output: Any) -> bool:
        """Nothing."""
        return True


if __name__ == "__main__":
    main()
