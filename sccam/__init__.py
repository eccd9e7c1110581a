"""sccam: from images with image-level tags to a pixel-level segmenter (SC-CAM, CVPR 2020)."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def load(model: Any, backend: str = "auto", **options: Any) -> Any:
    """The segmenter of a run folder or a model file, ready to predict: an `sccam.api.Model`, see there."""
    return importlib.import_module("sccam.api").Model(model, backend, **options)  # by name: the package stays below it
