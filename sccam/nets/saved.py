"""A finished weight file and its manifest become the network they came from; nothing else is needed."""

from __future__ import annotations

from pathlib import Path

from sccam.artifacts import Manifest, read_weights_with_manifest
from sccam.errors import RunFolderError
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import build_backbone
from sccam.nets.boundary_net import BoundaryNet
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab

Network = CamNet | AffinityNet | BoundaryNet | DeepLab


def load_network(path: Path, compute: Compute) -> tuple[Network, Manifest]:
    """The network of a weight file, in inference mode on the given device, and its manifest.

    Args:
        path: a file written by `write_weights`; its manifest lies beside it.

    Raises:
        RunFolderError: a file is missing or changed, or the manifest names no kind of network that is known.
    """
    tensors, manifest = read_weights_with_manifest(path)
    built, labels = manifest.made_from, len(manifest.classes) + 1
    # A classifier is trained at any stride and makes its maps at the manifest's; weights do not depend on it.
    stride = manifest.stride if manifest.kind == "cam_net" else built["output_stride"]
    backbone = build_backbone(manifest.backbone, output_stride=stride, weights="none")
    net: Network
    if manifest.kind == "cam_net":
        net = CamNet(backbone, len(manifest.classes), len(built["subcategory_parent"]), built.get("maps", "parent"))
    elif manifest.kind == "affinity_net":
        kind = BoundaryNet if built.get("affinity") == "boundary" else AffinityNet
        net = kind(backbone, manifest.stride)
    elif manifest.kind == "segmenter":
        net = DeepLab(backbone, labels, built["rates"], built["scales"])
    else:
        raise RunFolderError(f"a network of kind {manifest.kind!r} is not known", where=path)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise RunFolderError(f"weights and manifest do not belong together: {error}", where=path) from error
    compute.place(net)
    net.eval()
    return net, manifest
