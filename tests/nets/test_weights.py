from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sccam.errors import WeightsError
from sccam.nets.weights import load_into, match_by_order, mxnet_to_resnet38, read_mxnet_params, read_weights

ARRAYS = {
    "arg:conv1a_weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "aux:bn7_moving_var": np.array([1.5, 2.5], np.float32),
}


def container(layout: str, arrays: dict[str, np.ndarray] = ARRAYS) -> bytes:
    out = struct.pack("<QQQ", 0x112, 0, len(arrays))
    for array in arrays.values():
        if layout == "v2":
            out += struct.pack("<Ii", 0xF993FAC9, 0)
        elif layout == "v1":
            out += struct.pack("<I", 0xF993FAC8)
        side = "I" if layout == "legacy" else "q"
        out += struct.pack(f"<I{array.ndim}{side}", array.ndim, *array.shape)
        out += struct.pack("<iii", 1, 0, {"float32": 0, "float64": 1, "float16": 2}[array.dtype.name]) + array.tobytes()
    out += struct.pack("<Q", len(arrays))
    for name in arrays:
        out += struct.pack("<Q", len(name)) + name.encode()
    return out


@pytest.mark.parametrize("layout", ["v2", "v1", "legacy"])
def test_each_container_layout_gives_the_same_arrays(tmp_path, layout):
    path = tmp_path / "net.params"
    path.write_bytes(container(layout))
    found = read_mxnet_params(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


@pytest.mark.parametrize("layout", ["v2", "v1", "legacy"])
def test_every_truncation_and_every_extra_byte_is_a_weights_error(tmp_path, layout):
    path = tmp_path / "net.params"
    whole = container(layout)
    for broken in [*(whole[:end] for end in range(len(whole))), whole + b"\0"]:
        path.write_bytes(broken)
        with pytest.raises(WeightsError):
            read_mxnet_params(path)


def test_a_changed_byte_gives_arrays_or_a_weights_error_and_nothing_else(tmp_path):
    path = tmp_path / "net.params"
    whole = container("v2")
    rng = np.random.default_rng(0)
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= int(rng.integers(1, 256))
        path.write_bytes(bytes(broken))
        try:
            read_mxnet_params(path)
        except WeightsError:
            pass


def test_a_size_beyond_the_file_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "net.params"
    path.write_bytes(struct.pack("<QQQ", 0x112, 0, 1) + struct.pack("<I2Iiii", 2, 2**32 - 1, 2**32 - 1, 1, 0, 0))
    with pytest.raises(WeightsError, match="announced"):
        read_mxnet_params(path)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("arg:conv1a_weight", "conv1a.weight"),
        ("arg:res2a_branch2a_weight", "b2.conv_branch2a.weight"),
        ("arg:res5b2_branch2b1_weight", "b5_2.conv_branch2b1.weight"),
        ("arg:res6a_branch1_weight", "b6.conv_branch1.weight"),
        ("arg:bn4b5_branch2a_gamma", "b4_5.bn_branch2a.weight"),
        ("arg:bn7a_branch2b2_beta", "b7.bn_branch2b2.bias"),
        ("aux:bn3a_branch2b1_moving_mean", "b3.bn_branch2b1.running_mean"),
        ("aux:bn7_moving_var", "bn7.running_var"),
    ],
)
def test_released_names_become_ours(theirs, ours):
    assert list(mxnet_to_resnet38({theirs: np.ones(2, np.float32)})) == [ours]


def test_the_classifier_of_the_released_file_is_dropped_and_an_unknown_name_refused():
    assert mxnet_to_resnet38({"arg:linear1000_weight": np.ones(2, np.float32)}) == {}
    with pytest.raises(WeightsError, match="res9a_stem"):
        mxnet_to_resnet38({"arg:res9a_stem_weight": np.ones(2, np.float32)})


def test_a_params_file_is_known_by_its_first_bytes(tmp_path):
    path = tmp_path / "renamed.bin"
    path.write_bytes(container("legacy"))
    assert list(read_weights(path)) == ["conv1a.weight", "bn7.running_var"]


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_torch_files_lose_their_wrapping(tmp_path, wrap, prefix):
    state = {"a.weight": torch.ones(2), "a.bias": torch.zeros(1)}
    torch.save(wrap({prefix + name: tensor for name, tensor in state.items()}), tmp_path / "net.pth")
    assert list(read_weights(tmp_path / "net.pth")) == list(state)


def test_safetensors_are_read(tmp_path):
    save_file({"a.weight": torch.ones(2)}, tmp_path / "net.safetensors")
    assert torch.equal(read_weights(tmp_path / "net.safetensors")["a.weight"], torch.ones(2))


class Trap:
    def __reduce__(self):
        return (print, ("the trap was sprung",))


def test_a_pickle_that_asks_for_code_is_refused_and_not_executed(tmp_path, capsys):
    torch.save({"a": Trap()}, tmp_path / "zip.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps({"a": Trap()}))
    for name in ("zip.pth", "bare.pth"):
        with pytest.raises(WeightsError, match="not executed"):
            read_weights(tmp_path / name)
    assert "sprung" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors", "absent.pth"])
def test_a_broken_or_missing_file_is_a_weights_error(tmp_path, name):
    if name.startswith("broken"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 not really an archive")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / name)


def small_net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_a_head_and_batch_counters_may_be_missing_or_left_over():
    net, other = small_net(), small_net()
    tensors = {n: t for n, t in other.state_dict().items() if "num_batches" not in n}
    skipped = load_into(net, {**tensors, "fc.weight": torch.ones(1000, 4)}, path="x.pth")
    assert skipped == ["1.num_batches_tracked", "fc.weight"]
    assert torch.equal(net[0].weight, other[0].weight)  # type: ignore[arg-type]


def test_missing_left_over_and_misshapen_names_are_all_reported():
    tensors = dict(small_net().state_dict())
    del tensors["2.bias"]
    tensors |= {"extra": torch.ones(1), "0.weight": torch.ones(4, 3, 3, 3)}
    with pytest.raises(WeightsError) as caught:
        load_into(small_net(), tensors, path="x.pth")
    for part in ("missing: 2.bias", "extra", "0.weight: file [4, 3, 3, 3], network [4, 3, 1, 1]", "x.pth"):
        assert part in str(caught.value)
    del tensors["0.weight"], tensors["extra"]
    load_into(small_net(), tensors, path="x.pth", ignore=("2.", "0.weight"))


def test_a_file_for_another_network_is_refused():
    with pytest.raises(WeightsError, match="only 0 of"):
        load_into(small_net(), {"layer.weight": torch.ones(2)}, path="x.pth")


def test_weights_with_nan_are_refused():
    tensors = {n: t.clone() for n, t in small_net().state_dict().items()}
    tensors["0.weight"][0, 0] = float("nan")
    with pytest.raises(WeightsError, match="NaN"):
        load_into(small_net(), tensors, path="x.pth")


def test_matching_by_order_checks_every_shape():
    reference = {"a": torch.ones(2), "b": torch.ones(3)}
    assert list(match_by_order({"x": torch.ones(2), "y": torch.ones(3)}, reference, path="x")) == ["a", "b"]
    with pytest.raises(WeightsError, match="in order"):
        match_by_order({"x": torch.ones(3), "y": torch.ones(2)}, reference, path="x")
    with pytest.raises(WeightsError, match=r"3 tensors|1 tensors"):
        match_by_order({"x": torch.ones(2)}, reference, path="x")
