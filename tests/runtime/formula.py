"""A segmenter that is a formula, for tests of what happens around a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sccam.artifacts import Manifest
from sccam.runtime.network import OpenedNetwork
from sccam.runtime.segmenter import SegmentJob, SegmentOptions

STRIDE = 8
CLASSES = ("dark", "bright")


def network(images: np.ndarray) -> dict[str, np.ndarray]:
    """Logits from brightness on a grid: background in the middle, dark and bright at the ends."""
    n, height, width, _ = images.shape
    grey = images.mean(axis=-1).reshape(n, height // STRIDE, STRIDE, width // STRIDE, STRIDE).mean(axis=(2, 4)) / 255
    return {"logits": np.stack([0.3 + 0 * grey, 1 - 2 * grey, 2 * grey - 1], axis=1).astype(np.float32)}


def manifest() -> Manifest:
    return Manifest(
        file="net.onnx", sha256="0" * 64, kind="segmenter", backbone="none", classes=CLASSES, mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5), stride=STRIDE, made_by="", made_from={"pad_multiple": 16}, backend="onnx",
    )  # fmt: skip


def job_of(run: Any = network, options: SegmentOptions | None = None, **changed: Any) -> SegmentJob:
    opened = OpenedNetwork(run, replace(manifest(), **changed), "onnxruntime", Path("net.onnx"))
    return SegmentJob(opened, options or SegmentOptions())


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
