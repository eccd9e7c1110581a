"""`sccam weights import`: a weight file of another program becomes one without pickle that fits a trunk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sccam.artifacts import sha256, write_tensors
from sccam.errors import ConfigError
from sccam.nets.backbones import TimmNet, build_backbone


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written."""

    path: Path
    sha256: str
    tensors: int
    parameters: int


def import_weights(file: Path | str, out: Path | str, backbone: str) -> Imported:
    """Reads the file, fits it to the trunk tensor by tensor, and writes the trunk's tensors as safetensors.

    Args:
        file: .params of MXNet (ResNet-38), .pth or .pt, .safetensors; a pickle that asks for code is refused.
        out: a .safetensors file, for `network.weights`.
        backbone: as in `network.backbone`.

    Raises:
        ConfigError: `out` has another suffix; an unknown trunk.
        WeightsError: the file is broken or belongs to another network; with the first names that do not fit.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise ConfigError(f"the file to write must end with .safetensors, not {out.suffix!r}", where=out)
    stride = 8 if backbone == "resnet38d" else 32
    net = build_backbone(backbone, output_stride=stride, weights=file)
    tensors = (net.net if isinstance(net, TimmNet) else net).state_dict()
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(out, tensors, {"made_from": f"sha256 {sha256(file)}"})  # one entry: their order varies
    return Imported(out, sha256(out), len(tensors), sum(tensor.numel() for tensor in tensors.values()))
