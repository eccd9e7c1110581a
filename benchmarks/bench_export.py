"""Every network in every precision through the parity gate: one JSON, and the table of docs/export.md from it.

    python benchmarks/bench_export.py RUN IMAGES      # a finished run's three networks, and three large untrained ones
    python benchmarks/bench_export.py --tables        # writes the table anew from the JSON

The untrained ones have random weights, residual branches at a fraction of their usual scale (a random net with full
branches amplifies every rounding from block to block, which no trained one does) and batch-norm statistics taken from
a few of the images. What fails the gate is reported as failed.

Every file that TensorRT can read (int8 in its own flavour) is also built, one bucket at a time, by the builder of
TensorRT for RTX where the extra `tensorrt-check` is installed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
import tensorrt_rtx
import torch
from pages import replace_between

from sccam.artifacts import RunFolder
from sccam.bench import networks
from sccam.errors import ModelFileError
from sccam.export.network import export_network, in_precision
from sccam.export.run import NETWORKS, sample_images
from sccam.export.to_tensorrt import DEFAULT_BUCKETS, build_engine
from sccam.nets.compute import Compute
from sccam.nets.saved import load_network
from sccam.origin import commit, device_name
from sccam.runtime.network_onnxruntime import runtime_name

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "export.json"
PAGE = HERE.parent / "docs" / "export.md"
BEGIN, END = "<!-- parity table: begin -->", "<!-- parity table: end -->"
PRECISIONS = ("fp32", "fp16", "int8")

UNTRAINED = ("ResNet-38d, maps", "ResNet-50, maps", "DeepLab-v2 ResNet-101")


def main() -> None:
    """Reads the arguments; measures and writes the JSON, or only the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("images", nargs="?", type=Path)
    parser.add_argument("--only", nargs="+", help="parts of names of networks; the others keep their rows")
    parser.add_argument("--tables", action="store_true")
    arguments = parser.parse_args()
    if arguments.run is not None and arguments.images is not None:
        measure(arguments.run, arguments.images, arguments.only)
    elif not arguments.tables:
        parser.error("give a run and a folder of images, or --tables")
    replace_between(PAGE, BEGIN, END, table(json.loads(RESULT.read_text(encoding="utf-8"))))


def measure(run: Path, images: Path, only: list[str] | None) -> None:
    """Exports everything and writes the JSON after every network."""
    pictures = sample_images(images)
    folder = RunFolder(run)
    rounds = sorted(folder.path.glob("round*/cam_net.safetensors"))
    files = {"cam_net": rounds[-1], "affinity_net": folder.affinity_net, "segmenter": folder.segmenter}
    rows = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.exists() else []
    for name in (*(f"{run.name}, {network}" for network in NETWORKS), *UNTRAINED):
        if only and not any(part in name for part in only):
            continue
        if name in UNTRAINED:
            net, manifest = networks.untrained(networks.NETWORKS[name], pictures)
        else:
            net, manifest = load_network(files[name.split(", ")[1]], Compute.resolve("cpu", "fp32"))
        with tempfile.TemporaryDirectory() as out:
            exported = export_network(net, manifest, Path(out, "net"), pictures, PRECISIONS, source=None)
            plans = {item.precision: build_all(item.path) for item in exported if item.precision != "int8"}
            signed = Path(out, "net.int8.tensorrt.onnx")
            base = onnx.load(str(Path(out, "net.onnx")))
            onnx.save(in_precision(base, "int8", pictures, net, "tensorrt"), str(signed))
            plans["int8"] = build_all(signed)
            new = [
                {
                    "network": name,
                    "backbone": manifest.backbone,
                    "trained": name not in UNTRAINED,
                    "precision": item.precision,
                    "megabytes": round(item.path.stat().st_size / 1e6, 2),
                    **item.parity.as_dict(),
                    "tensorrt_rtx": plans[item.precision],
                }
                for item in exported
            ]
        rows = [row for row in rows if row["network"] != name] + new
        RESULT.write_text(
            json.dumps(
                {
                    "device": device_name(),
                    "commit": commit(),
                    "torch": torch.__version__,
                    "runtime": runtime_name(),
                    "images": len(pictures),
                    "rows": rows,
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )


def build_all(path: Path) -> dict[str, float | str] | None:
    """Megabytes of TensorRT for RTX's plan for every default bucket, or its refusal; None where it is not installed."""
    library = tensorrt_rtx.load()
    if library is None:
        return None
    found: dict[str, float | str] = {}
    for bucket in DEFAULT_BUCKETS:
        try:
            found[bucket.name] = round(len(build_engine(path, [bucket], library=library)) / 1e6, 2)
        except ModelFileError as error:
            found[bucket.name] = error.what
    return found


def table(result: dict[str, Any]) -> str:
    """The Markdown table: one row for each network and precision."""
    lines = [
        "| network | precision | MB | largest error / range | agreement | undecided | speed against fp32 | gate"
        " | TensorRT-RTX builds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        speed = "" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
        gate = "passed" if row["passed"] else "**failed**: " + "; ".join(row["failures"])
        lines.append(
            f"| {row['network']}{'' if row['trained'] else ' (untrained)'} | {row['precision']}"
            f" | {row['megabytes']:.1f}"
            f" | {row['relative_error']:.1e} | {100 * row['agreement']:.2f} % | {100 * row['undecided']:.1f} %"
            f" | {speed} | {gate} | {built(row['tensorrt_rtx'])} |"
        )
    lines += [
        "",
        f"Made by `python benchmarks/bench_export.py RUN IMAGES` on {result['device']}, torch {result['torch']}, "
        f"{result['runtime']}; raw numbers in [export.json](../benchmarks/results/export.json).",
    ]
    return "\n".join(lines)


def built(plans: dict[str, float | str] | None) -> str:
    """How many of the buckets gave a plan."""
    if plans is None:
        return "not measured"
    return f"{sum(not isinstance(plan, str) for plan in plans.values())} of {len(plans)} buckets"


if __name__ == "__main__":
    main()
