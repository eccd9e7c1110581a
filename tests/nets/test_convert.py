"""`sccam weights import`: every tensor arrives, what does not fit is refused, and no code is run."""

from __future__ import annotations

import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file

from sccam import cli
from sccam.errors import ConfigError, WeightsError
from sccam.nets.backbones import TimmNet, build_backbone
from sccam.nets.convert import import_weights


@pytest.fixture
def archive(tmp_path):
    """A torch archive of a timm network with another start than the fixed one."""
    net = build_backbone("test_resnet", output_stride=32, weights="none")
    assert isinstance(net, TimmNet)
    path = tmp_path / "theirs.pth"
    torch.save({"state_dict": {f"module.{name}": t + 1.0 for name, t in net.net.state_dict().items()}}, path)
    return path


def test_a_torch_archive_becomes_safetensors_that_the_trunk_takes(archive, tmp_path):
    done = import_weights(archive, tmp_path / "deep/ours.safetensors", "test_resnet")
    theirs = torch.load(archive, weights_only=True)["state_dict"]
    ours = load_file(done.path)
    assert len(ours) == done.tensors and done.parameters == sum(t.numel() for t in ours.values())
    for name, tensor in ours.items():
        assert torch.equal(tensor.float(), theirs[f"module.{name}"].float())
    trunk = build_backbone("test_resnet", output_stride=16, weights=done.path)
    assert isinstance(trunk, TimmNet)
    for name, tensor in trunk.net.state_dict().items():
        assert torch.equal(tensor, ours[name])


def test_importing_again_gives_the_same_bytes(archive, tmp_path):
    first = import_weights(archive, tmp_path / "a.safetensors", "test_resnet")
    assert first.sha256 == import_weights(archive, tmp_path / "b.safetensors", "test_resnet").sha256


def test_a_file_of_another_network_is_refused_and_nothing_is_written(archive, tmp_path):
    with pytest.raises(WeightsError):
        import_weights(archive, tmp_path / "out.safetensors", "resnet50")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_pickle_that_wants_to_run_something_does_not(tmp_path):
    canary = tmp_path / "canary"

    class Fires:
        def __reduce__(self):
            return (shutil.copy, (__file__, str(canary)))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"weight": Fires()}, protocol=2))
    torch.save({"weight": Fires()}, tmp_path / "worse.pth")
    for name in ("bad.pth", "worse.pth"):
        with pytest.raises(WeightsError):
            import_weights(tmp_path / name, tmp_path / "out.safetensors", "test_resnet")
    assert not canary.exists() and not (tmp_path / "out.safetensors").exists()


def test_another_suffix_is_refused(archive, tmp_path):
    with pytest.raises(ConfigError, match="safetensors"):
        import_weights(archive, tmp_path / "out.pth", "test_resnet")


def test_the_command_says_how_to_use_the_file(archive, tmp_path, monkeypatch, capsys):
    out = tmp_path / "ours.safetensors"
    monkeypatch.setattr("sys.argv", ["sccam", "weights", "import", str(archive), str(out), "--backbone", "test_resnet"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code and f"network.weights={out}" in capsys.readouterr().out
