from __future__ import annotations

import pytest
import torch
from torch import nn

from sccam.nets.affinity_net import AffinityNet
from sccam.nets.resnet38 import Bottleneck, PlainBlock, ResNet38

CONV_WEIGHTS = 105_023_168  # summed from the table of the released network
NORM_CHANNELS = 23_872
AFFINITY_HEAD_WEIGHTS = 1_413_120


@pytest.fixture(scope="module")
def on_meta() -> ResNet38:
    with torch.device("meta"):
        return ResNet38()


def test_the_trunk_has_the_published_number_of_weights(on_meta):
    convs = [m for m in on_meta.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in on_meta.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(conv.weight.numel() for conv in convs) == CONV_WEIGHTS
    assert sum(norm.num_features for norm in norms) == NORM_CHANNELS
    assert all(conv.bias is None for conv in convs)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((375, 500), (47, 63)),
        ((188, 250), (24, 32)),
        ((562, 750), (71, 94)),
        ((750, 1000), (94, 125)),
    ],
)
def test_taps_lie_on_the_stride_8_grid(on_meta, size, grid):
    taps = on_meta(torch.empty(1, 3, *size, device="meta"))
    assert [tuple(tap.shape) for tap in taps] == [(1, 512, *grid), (1, 1024, *grid), (1, 4096, *grid)]


def test_names_are_those_of_the_released_weights(on_meta):
    names = set(on_meta.state_dict())
    assert {"conv1a.weight", "b2.conv_branch1.weight", "b5_2.bn_branch2b1.running_var", "bn7.bias"} <= names
    assert {"b6.conv_branch2b2.weight", "b7.bn_branch2b2.weight", "b4_5.conv_branch2a.weight"} <= names
    assert "b4_5.conv_branch1.weight" not in names


def test_gradients_begin_at_b3_and_no_norm_trains(on_meta):
    groups = on_meta.train().parameter_groups()
    assert groups["norms"] == []
    trainable = {name.split(".")[0] for name, p in on_meta.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("conv1a", "b2", "bn7")) for name in trainable)
    assert {"b3", "b3_1", "b4", "b5_2", "b6", "b7"} <= trainable
    assert not any(m.training for m in on_meta.modules() if isinstance(m, nn.BatchNorm2d))


def test_the_affinity_head_has_the_published_number_of_weights(on_meta):
    with torch.device("meta"):
        net = AffinityNet(on_meta)
    assert sum(p.numel() for p in net.parameter_groups()["heads"]) == AFFINITY_HEAD_WEIGHTS
    assert net(torch.empty(1, 3, 75, 100, device="meta")).shape == (1, 448, 10, 13)


def test_an_identity_skip_reads_the_raw_input_and_a_projection_the_activated_one():
    x = -torch.ones(1, 4, 5, 5)  # all of it is cut by the first ReLU
    same, wider = PlainBlock(4, 4, 4, 1, 1, 1).eval(), PlainBlock(4, 4, 8, 1, 1, 1).eval()
    with torch.no_grad():
        assert torch.equal(same(x)[0], x)
        assert not wider(x)[0].any()
        assert not same(x)[1].any()


def test_dropout_is_active_in_training_only():
    torch.manual_seed(0)
    block = Bottleneck(8, 16, dilation=2, dropout=0.5)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    x = torch.rand(2, 8, 6, 6)
    with torch.no_grad():
        assert not torch.equal(block(x)[0], block(x)[0])
        block.eval()
        assert torch.equal(block(x)[0], block(x)[0])
