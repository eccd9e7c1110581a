"""sccam: from images with image-level tags to a pixel-level segmenter (SC-CAM, CVPR 2020)."""

from __future__ import annotations

import importlib
import os
from typing import Any

# ONNX Runtime sends what it runs to its makers unless this is set before it is loaded (its Privacy.md). Nothing is sent
# from here; whoever wants it sent may set it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"


def load(model: Any, backend: str = "auto", **options: Any) -> Any:
    """The segmenter of a run folder or a model file, ready to predict: an `sccam.api.Model`, see there."""
    return importlib.import_module("sccam.api").Model(model, backend, **options)  # by name: the package stays below it


def train(data: Any, config: Any = "photos", out: Any = "runs/run", **options: Any) -> dict[str, Any]:
    """Trains the whole chain and returns the content of scores.json; arguments as in `sccam.run.train`."""
    scores: dict[str, Any] = importlib.import_module("sccam.run").train(data, config, out, **options)
    return scores
