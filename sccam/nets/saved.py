"""A finished weight file and its manifest become the network they came from; nothing else is needed."""

from __future__ import annotations

from pathlib import Path

from sccam.artifacts import Manifest, manifest_path, read_weights_with_manifest
from sccam.errors import ConfigError, RunFolderError
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import build_backbone
from sccam.nets.boundary_net import BoundaryNet
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab

Network = CamNet | AffinityNet | BoundaryNet | DeepLab

NEEDED = {
    "cam_net": ("subcategory_parent",),
    "affinity_net": ("output_stride",),
    "segmenter": ("output_stride", "rates", "scales"),
}
"""Kind -> what its manifest's `made_from` must tell."""


def load_network(path: Path, compute: Compute) -> tuple[Network, Manifest]:
    """The network of a weight file, in inference mode on the given device, and its manifest.

    Args:
        path: a file written by `write_weights`; its manifest lies beside it.

    Raises:
        RunFolderError: a file is missing or changed, or the manifest names no kind of network that is known.
    """
    tensors, manifest = read_weights_with_manifest(path)
    if manifest.kind not in NEEDED:
        raise RunFolderError(f"a network of kind {manifest.kind!r} is not known", where=manifest_path(path))
    for name in NEEDED[manifest.kind]:
        if name not in manifest.made_from:
            raise RunFolderError(f"made_from.{name} is missing", where=manifest_path(path))
    try:
        net = _net_of(manifest)
        net.load_state_dict(tensors)
    except (RuntimeError, ValueError, ConfigError) as error:
        raise RunFolderError(f"weights and manifest do not belong together: {error}", where=path) from error
    compute.place(net)
    net.eval()
    return net, manifest


def _net_of(manifest: Manifest) -> Network:
    """With random weights."""
    built, labels = manifest.made_from, len(manifest.classes) + 1
    # A classifier is trained at any stride and makes its maps at the manifest's; weights do not depend on it.
    stride = manifest.stride if manifest.kind == "cam_net" else built["output_stride"]
    backbone = build_backbone(manifest.backbone, output_stride=stride, weights="none")
    if manifest.kind == "cam_net":
        return CamNet(backbone, len(manifest.classes), len(built["subcategory_parent"]), built.get("maps", "parent"))
    if manifest.kind == "affinity_net":
        kind = BoundaryNet if built.get("affinity") == "boundary" else AffinityNet
        return kind(backbone, manifest.stride)
    return DeepLab(backbone, labels, built["rates"], built["scales"])
