from __future__ import annotations

import pytest
import torch
from torch import nn

from sccam.nets.phase_conv import PhaseConv2d, has_phases, join_phases, split_phases, use_phase_convs


def dilated(channels: int, kernel: int, dilation: int, bias: bool = False) -> nn.Conv2d:
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=bias)


@pytest.mark.parametrize("dilation", [2, 3, 4])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 5), (3, 2)])
def test_phases_give_the_sums_and_gradients_of_the_dilated_convolution(dilation, kernel, size, tolerance):
    rounding = tolerance["float32"]
    torch.manual_seed(0)
    conv = dilated(6, kernel, dilation, bias=True)
    x = torch.randn(2, 6, *size)
    expected_input, found_input = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected, found = conv(expected_input), PhaseConv2d.of(conv)(found_input)
    torch.testing.assert_close(found, expected, atol=rounding, rtol=rounding)
    direction = torch.randn_like(expected)
    (weight_before,) = torch.autograd.grad(expected, conv.weight, direction, retain_graph=True)
    (weight_after,) = torch.autograd.grad(found, conv.weight, direction, retain_graph=True)
    # A weight sums over all cells of both images.
    torch.testing.assert_close(weight_after, weight_before, atol=10 * rounding, rtol=rounding)
    expected.backward(direction)
    found.backward(direction)
    torch.testing.assert_close(found_input.grad, expected_input.grad, atol=rounding, rtol=rounding)


def test_splitting_and_joining_phases_restore_the_map():
    x = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12)
    assert torch.equal(join_phases(split_phases(x, 4), 4), x)
    assert torch.equal(split_phases(x, 2)[1], x[0, :, ::2, 1::2])


def test_channels_last_memory_is_kept():
    x = torch.randn(1, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    assert PhaseConv2d.of(dilated(4, 3, 2))(x).is_contiguous(memory_format=torch.channels_last)


def test_only_dilated_stride_one_depthwise_convolutions_are_replaced():
    net = nn.Sequential(
        dilated(4, 3, 2),
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.Conv2d(4, 4, 3, stride=2, padding=2, dilation=2, groups=4),
        nn.Sequential(dilated(4, 5, 4)),
    )
    before = net.state_dict()
    assert use_phase_convs(net) == 2
    assert [type(m) is PhaseConv2d for m in (net[0], *net[1:4], net[4][0])] == [True, False, False, False, True]  # type: ignore[index]
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)
    assert use_phase_convs(net) == 0


def test_a_convolution_that_shrinks_the_map_has_no_phases():
    valid = nn.Conv2d(4, 4, 3, dilation=2, groups=4)
    assert not has_phases(valid)
    with pytest.raises(ValueError, match="same padding"):
        PhaseConv2d.of(valid)


def test_an_exported_graph_holds_the_ordinary_dilated_convolution():
    program = torch.export.export(PhaseConv2d.of(dilated(4, 3, 2)), (torch.randn(1, 4, 8, 8),))
    assert "permute" not in str(program.graph)
