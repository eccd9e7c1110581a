"""Small networks with random weights, exported once for all tests of this folder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

pytest.importorskip("onnx", reason="the export extra is not installed")
pytest.importorskip("onnxscript", reason="the export extra is not installed")
pytest.importorskip("onnxruntime", reason="the export extra is not installed")

from sccam.export.graphs import AffinityGraph, BoundaryGraph, Graph, MapGraph, SegmenterGraph
from sccam.export.to_onnx import to_onnx
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import build_backbone
from sccam.nets.boundary_net import BoundaryNet
from sccam.nets.cam_net import CamNet
from sccam.nets.deeplab import DeepLab
from sccam.stages.affinity_labels import neighbour_offsets

# torch's exporter writes a trace of all it does to this logger, and pytest would keep every line of it.
logging.getLogger("torch.__trace").propagate = False

CLASSES = ("cat", "dog", "hen")


@dataclass
class Case:
    """A graph in torch and the model that was exported from it."""

    graph: Graph
    model: Any

    def save(self, path: Path) -> Path:
        path.write_bytes(self.model.SerializeToString())
        return path


def trunk(name: str = "tf_efficientnet_lite0", stride: int = 16) -> Any:
    backbone = build_backbone(name, output_stride=stride, weights="none")
    for module in backbone.modules():  # random statistics, so that a batch norm that is forgotten is seen
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    return backbone


def build(kind: str) -> Graph:
    torch.manual_seed(0)
    if kind == "maps":
        return MapGraph(CamNet(trunk(), len(CLASSES), 5))
    if kind in ("reactivated", "prototypes"):
        return MapGraph(CamNet(trunk(), len(CLASSES), 0, kind))
    if kind == "boundary":
        return BoundaryGraph(BoundaryNet(trunk(), 8))
    if kind == "affinity":
        return AffinityGraph(AffinityNet(trunk(), 8, (8, 16, 24)), neighbour_offsets(3))
    scales = (1.0, 0.5) if kind == "segmenter" else (1.0,)
    net = DeepLab(trunk("test_resnet", 32), len(CLASSES) + 1, (1, 2), scales)
    for conv in net.pyramid.convs():  # they begin near 0, where all labels would be ties
        torch.nn.init.normal_(conv.weight)
    return SegmenterGraph(net, labels=kind in ("labels", "refined"), pamr=1 if kind == "refined" else 0)


_made: dict[str, Case] = {}


def export_once(kind: str) -> Case:
    if kind not in _made:
        graph = build(kind)
        _made[kind] = Case(graph, to_onnx(graph, {"kind": kind}))
    return _made[kind]


def smooth_images(batch: int, height: int, width: int) -> np.ndarray:
    """Blurred noise u8 [N H W 3]: smooth enough that neighbouring cells resemble each other."""
    noise = np.random.default_rng(height).normal(size=(batch, height, width, 3))
    smooth = gaussian_filter(noise, (0, 4, 4, 0))
    return np.round(255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())).astype(np.uint8)


@pytest.fixture(
    scope="session",
    params=["maps", "reactivated", "prototypes", "affinity", "boundary", "segmenter", "labels", "refined"],
)
def case(request: pytest.FixtureRequest) -> Case:
    """Each kind of graph in turn."""
    return export_once(request.param)


@pytest.fixture(scope="session")
def exported() -> Callable[[str], Case]:
    """The graph of one kind, exported once."""
    return export_once


@pytest.fixture(scope="session")
def images() -> Callable[[int, int, int], np.ndarray]:
    """(batch, height, width) -> images."""
    return smooth_images
