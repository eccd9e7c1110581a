"""The eager network backend: the same numbers as the networks themselves, at the sizes of the image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccam.artifacts import Manifest
from sccam.data.transforms import pad_to_multiple, resize
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import Backbone
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.runtime.network import OpenedNetwork
from sccam.runtime.network_torch import (
    PAD_MULTIPLE,
    affinity_features,
    mean_colour,
    network_of,
    pooled_features,
    score_views,
    segmentation_scores,
)
from sccam.runtime.segmenter import SegmentJob
from sccam.runtime.sources import Source
from sccam.stages.cam import view_size

CPU = Compute("cpu", "fp32")


class SmallBackbone(Backbone):
    """Three strided convolutions."""

    name, channels, strides, output_stride, dropout = "small", (4, 6, 8), (8, 16, 32), 32, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(*row, padding=1) for row in ((3, 4, 3, 8), (4, 6, 3, 2), (6, 8, 3, 2)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        taps = []
        for conv in self.convs:
            x = F.relu(conv(x))
            taps.append(x)
        return taps[0], taps[1], taps[2]

    def levels(self) -> list[list[torch.nn.Module]]:
        return [[conv] for conv in self.convs]


@pytest.fixture
def backbone() -> SmallBackbone:
    return SmallBackbone()


@pytest.fixture
def image(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (70, 101, 3), dtype=np.uint8)


def normalised(pixels: np.ndarray, backbone: Backbone) -> Tensor:
    values = (pixels / 255 - np.array(backbone.mean)) / np.array(backbone.std)
    return torch.tensor(values, dtype=torch.float32).permute(0, 3, 1, 2)


def test_the_padding_colour_is_zero_after_normalisation_but_for_rounding(backbone, tolerance):
    pixels = np.full((1, 2, 2, 3), mean_colour(backbone), np.uint8)
    assert CPU.normalised(pixels, backbone.mean, backbone.std).abs().max() < tolerance["uint8"] / min(backbone.std)


def test_pixels_are_normalised_by_mean_and_standard_deviation(backbone, image, tolerance):
    for pixels in (image[None], image[None, :, ::-1]):  # mirrored views have negative strides
        found = CPU.normalised(pixels, backbone.mean, backbone.std)
        torch.testing.assert_close(found, normalised(pixels, backbone), atol=tolerance["float32"], rtol=0)


def test_score_views_are_the_rows_of_all_maps(backbone, image, tolerance):
    net = CamNet(backbone, classes=5).eval()
    views = np.stack([image, image[:, ::-1]])
    found = score_views(net, CPU)(views, np.array([0, 3], np.int32))
    expected = net.activation(normalised(views, backbone))[:, [0, 3]]
    torch.testing.assert_close(found, expected, atol=tolerance["network"], rtol=0)
    assert found.min() >= 0 and not found.requires_grad


def test_no_classes_give_no_maps(backbone, image):
    found = score_views(CamNet(backbone, classes=5).eval(), CPU)(image[None], np.zeros(0, np.int32))
    assert found.shape[:2] == (1, 0)


def fit(image: np.ndarray) -> np.ndarray:
    return resize(image, view_size((image.shape[0], image.shape[1]), 1.0, 32))


def test_the_clustering_feature_is_pooled_from_the_rounded_image_without_dropout(backbone, image, tolerance):
    features_of = pooled_features(backbone.eval(), CPU, fit)
    classes = np.array([0, 2], np.int32)
    found = features_of(image, classes)
    assert found.shape == (2, 8) and np.array_equal(found[0], found[1])
    assert np.array_equal(features_of(image, classes), found)
    fitting = np.ascontiguousarray(image[:64, :96])
    expected = backbone(normalised(fitting[None], backbone))[-1].mean((2, 3))[0].detach().numpy()
    assert features_of(fitting, classes)[0] == pytest.approx(expected, abs=tolerance["network"])


def test_over_a_classes_own_map_every_class_has_a_feature_of_its_own(backbone, image, tolerance):
    net = CamNet(backbone, classes=5).eval()
    fitting = np.ascontiguousarray(image[:64, :96])
    inputs = normalised(fitting[None], backbone)
    maps, deep = net.activation(inputs)[0].detach().numpy(), backbone(inputs)[-1][0].detach().numpy()
    found = pooled_features(backbone, CPU, fit, net)(fitting, np.array([3, 1], np.int32))
    for row, c in zip(found, (3, 1), strict=True):
        weights = maps[c] + 1e-5
        expected = (weights * deep).sum((1, 2)) / weights.sum()
        assert row == pytest.approx(expected, rel=1e-3, abs=tolerance["network"])


@pytest.mark.filterwarnings("error")
def test_a_resized_image_passes_without_a_warning(backbone, image):
    pooled_features(backbone, CPU, fit)(image, np.zeros(1, np.int32))


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (33, 1)])
def test_affinity_features_cover_the_image_and_no_more(backbone, rng, size, tolerance):
    net = AffinityNet(backbone, 8).eval()
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = affinity_features(net, CPU)(image)
    assert found.shape == (448, -(-size[0] // 8), -(-size[1] // 8))
    padded = pad_to_multiple(image, PAD_MULTIPLE, mean_colour(backbone))
    expected = net(normalised(padded[None], backbone))[0, :, : found.shape[1], : found.shape[2]]
    torch.testing.assert_close(found, expected, atol=10 * tolerance["network"], rtol=0)  # the last layer's gain is 4


@pytest.mark.parametrize("size", [(64, 96), (70, 101), (33, 1)])
def test_segmentation_scores_are_probabilities_at_every_pixel(backbone, rng, size, tolerance):
    net = DeepLab(backbone, labels=4, rates=(1, 2)).eval()
    found = segmentation_scores(net, CPU)(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    assert found.shape == (4, *size)
    assert found.min() >= 0 and found.sum(axis=0) == pytest.approx(1.0, abs=tolerance["float32"])


def test_segmentation_scores_are_the_softmax_of_the_largest_logits_over_the_scales(backbone, image, tolerance):
    net = DeepLab(backbone, labels=4, rates=(1, 2)).eval()
    padded = pad_to_multiple(image, PAD_MULTIPLE, mean_colour(backbone))
    logits = net.multi_scale(normalised(padded[None], backbone))[-1]
    full = F.interpolate(logits, size=padded.shape[:2], mode="bilinear", align_corners=False)[0, :, :70, :101]
    found = segmentation_scores(net, CPU)(image)
    assert found == pytest.approx(full.softmax(0).detach().numpy(), abs=tolerance["network"])


def test_an_image_is_brought_to_the_long_side_and_its_scores_back(backbone, image, tolerance):
    net = DeepLab(backbone, labels=4, rates=(1, 2)).eval()
    for conv in net.pyramid.convs():
        torch.nn.init.normal_(conv.weight)
    found = segmentation_scores(net, CPU, long_side=160)(image)
    assert found.shape == (4, 70, 101)
    job = SegmentJob(
        OpenedNetwork(
            network_of(net, CPU),
            Manifest(
                file="", sha256="", kind="segmenter", backbone="", classes=("a", "b", "c"), mean=tuple(backbone.mean),
                std=tuple(backbone.std), stride=backbone.output_stride, made_by="",
                made_from={"pad_multiple": PAD_MULTIPLE, "long_side": 160},
            ),
            "torch",
            Path("net"),
        )
    )  # fmt: skip
    loaded = job.loaded(Source(Path("image.png"), "image"), image)
    assert loaded.inputs[0].shape[1:3] == (128, 160)
    (logits,) = job.run([loaded])
    assert (job.finish(loaded, logits).labels == found.argmax(axis=0)).mean() > 0.999
    own = segmentation_scores(net, CPU, long_side=101)(image)
    assert np.array_equal(own, segmentation_scores(net, CPU)(image))


# Where it runs


def test_a_cpu_resolves_to_single_precision():
    assert Compute.resolve("cpu", "auto") == CPU


def test_bf16_runs_on_a_cpu_within_its_precision(backbone, image, tolerance):
    net = DeepLab(backbone, labels=4, rates=(1, 2)).eval()
    full, half = (segmentation_scores(net, Compute("cpu", precision))(image) for precision in ("fp32", "bf16"))
    assert half.dtype == np.float32 and half == pytest.approx(full, abs=tolerance["half"])
