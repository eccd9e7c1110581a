from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import Backbone
from sccam.nets.boundary_net import BoundaryNet
from sccam.nets.cam_net import CamNet, lengths
from sccam.nets.deeplab import DeepLab, Pyramid


class TinyBackbone(Backbone):
    """Three strided convolutions: the taps' strides and a trunk to train, and nothing else."""

    name, channels, strides, output_stride, dropout = "tiny", (4, 6, 8), (8, 16, 32), 32, 0.5

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 8, padding=1)
        self.second = nn.Conv2d(4, 6, 3, 2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 8, 3, 2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shallow = F.relu(self.first(x))
        middle = F.relu(self.norm(self.second(shallow)))
        return shallow, middle, F.relu(self.third(middle))

    def levels(self) -> list[list[nn.Module]]:
        return [[self.first], [self.second, self.norm], [self.third]]


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def test_logits_are_the_means_of_unrectified_maps(images, tolerance):
    rounding = tolerance["float32"]
    net = CamNet(TinyBackbone(), classes=5, subcategories=12).eval()
    parent, sub = net(images)
    maps = net.parent(net.backbone(images)[-1])
    torch.testing.assert_close(parent, maps.mean((2, 3)), atol=rounding, rtol=rounding)
    torch.testing.assert_close(net.activation(images), F.relu(maps), atol=rounding, rtol=rounding)
    assert sub is not None and sub.shape == (2, 12)


def test_pooled_features_times_the_head_are_the_logits(images, tolerance):
    rounding = tolerance["float32"]
    net = CamNet(TinyBackbone(), classes=5).eval()
    parent, sub = net(images)
    assert sub is None
    found = net.backbone(images)[-1].mean((2, 3)) @ net.parent.weight.flatten(1).T
    torch.testing.assert_close(found, parent, atol=rounding, rtol=rounding)


def test_maps_of_chosen_classes_are_rows_of_all_maps(images):
    net = CamNet(TinyBackbone(), classes=5).eval()
    torch.testing.assert_close(net.activation_of(images, [3, 1]), net.activation(images)[:, [3, 1]])
    assert net.activation_of(images, []).shape == (2, 0, 3, 4)


@pytest.mark.parametrize("maps", ["reactivated", "prototypes"])
def test_other_maps_are_their_formula_and_leave_the_logits_alone(images, maps, tolerance):
    torch.manual_seed(0)
    net = CamNet(TinyBackbone(), classes=5, maps=maps).eval()
    assert net.second is not None
    features = net.backbone(images)[-1]
    if maps == "prototypes":
        features = features / features.square().sum(dim=1, keepdim=True).sqrt().clamp(min=1e-12)
        weight = net.second.weight
    else:
        weight = net.parent.weight + net.second.weight
    rounding = tolerance["float32"]
    torch.testing.assert_close(net.activation(images), F.relu(F.conv2d(features, weight)), atol=rounding, rtol=rounding)
    torch.testing.assert_close(net.activation_of(images, [3, 1]), net.activation(images)[:, [3, 1]])
    plain = CamNet(net.backbone, classes=5).eval()
    plain.parent.load_state_dict(net.parent.state_dict())
    assert torch.equal(net(images)[0], plain(images)[0])


def test_lengths_stay_within_fp16_and_features_of_nothing_have_one():
    features = torch.full((1, 2048, 1, 2), 200.0, dtype=torch.float16)  # the sum of their squares is beyond fp16
    features[..., 1] = 0
    found = lengths(features)
    assert found.shape == (1, 1, 1, 2) and found.isfinite().all()
    assert found[0, 0, 0, 0].item() == pytest.approx(200 * 2048**0.5, rel=1e-3)
    assert (features / found)[..., 1].eq(0).all()


def test_dropout_touches_logits_in_training_and_never_maps_or_features(images):
    torch.manual_seed(0)
    net = CamNet(TinyBackbone(), classes=5).train()
    assert not torch.equal(net(images)[0], net(images)[0])
    assert torch.equal(net.activation(images), net.activation(images))


@pytest.mark.parametrize(("size", "grid"), [((96, 128), (12, 16)), ((75, 101), (10, 13))])
def test_affinity_features_lie_on_the_stride_8_grid(size, grid):
    net = AffinityNet(TinyBackbone())
    features = net(torch.rand(1, 3, *size))
    assert features.shape == (1, 448, *grid)
    assert features.min() >= -1  # ELU


def test_boundaries_are_probabilities_on_the_stride_8_grid():
    net = BoundaryNet(TinyBackbone())
    boundary = net(torch.rand(2, 3, 75, 101))
    assert boundary.shape == (2, 1, 10, 13)
    assert 0 < boundary.min() < boundary.max() < 1


def test_the_pyramid_is_the_sum_of_its_dilated_convolutions(tolerance):
    rounding = tolerance["float32"]
    torch.manual_seed(0)
    rates = (1, 2, 3)
    pyramid = Pyramid(5, 4, rates)
    assert [name for name, _ in pyramid.named_parameters()][:2] == ["rate1.weight", "rate1.bias"]
    for parameter in pyramid.parameters():
        nn.init.normal_(parameter)
    for size in ((6, 7), (2, 2), (1, 9)):
        x = torch.randn(2, 5, *size)
        state = dict(pyramid.named_parameters())
        expected = sum(
            F.conv2d(x, state[f"rate{r}.weight"], state[f"rate{r}.bias"], padding=r, dilation=r) for r in rates
        )
        torch.testing.assert_close(pyramid(x), expected, atol=10 * rounding, rtol=rounding)  # sums of 135 products


def test_gradients_of_a_batch_in_parts_add_up_to_those_of_the_whole(tolerance):
    torch.manual_seed(0)
    pyramid, x = Pyramid(5, 4, (1, 2, 3)), torch.randn(4, 5, 6, 7)

    def gradients(parts: int) -> list[Tensor]:
        pyramid.zero_grad(set_to_none=True)
        for part in x.chunk(parts):
            pyramid(part).square().sum().backward()
        return [parameter.grad.clone() for parameter in pyramid.parameters() if parameter.grad is not None]

    assert len(gradients(1)) == 6
    for whole, summed in zip(gradients(1), gradients(4), strict=True):
        torch.testing.assert_close(summed, whole, atol=0, rtol=100 * tolerance["float32"])


def test_the_last_of_the_scales_is_the_largest_logit_anywhere(images):
    net = DeepLab(TinyBackbone(), labels=6).eval()
    *each, best = net.multi_scale(images)
    assert [tuple(logits.shape[-2:]) for logits in each] == [(3, 4), (3, 3), (2, 2)]
    torch.testing.assert_close(each[0], net(images))
    assert (best >= each[0]).all()
    resized = [F.interpolate(part, size=(3, 4), mode="bilinear", align_corners=False) for part in each]
    torch.testing.assert_close(best, torch.stack(resized).amax(0))


def test_the_pyramid_starts_small_and_unbiased():
    net = DeepLab(TinyBackbone(), labels=6)
    assert all(0.005 < weight.std() < 0.015 for weight in net.head_weights())
    assert not any(bias.any() for bias in net.head_biases())


@pytest.mark.parametrize(
    "make",
    [
        lambda b: CamNet(b, 5, 10),
        lambda b: CamNet(b, 5, 0, "reactivated"),
        AffinityNet,
        BoundaryNet,
        lambda b: DeepLab(b, 6),
    ],
    ids=["cam", "reactivated", "affinity", "boundary", "deeplab"],
)
def test_every_trainable_parameter_is_in_exactly_one_group(make):
    backbone = TinyBackbone()
    backbone.freeze(1)
    net = make(backbone)
    groups = net.parameter_groups()
    assert set(groups) == {"weights", "norms", "heads", "head_biases"}
    grouped = [id(p) for group in groups.values() for p in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in net.parameters() if p.requires_grad}


def test_batch_norm_stays_in_eval_mode_inside_a_training_net():
    net = CamNet(TinyBackbone(), 5).train()
    assert net.training and net.dropout.training and not net.backbone.norm.training  # type: ignore[union-attr]
