"""The eager PyTorch row of the network backends: images in, features, maps and logits out. The reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sccam.data.transforms import brought_to, pad_to_multiple, resize
from sccam.nets.backbones import Backbone
from sccam.nets.boundary_net import BoundaryNet, PairNet
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.deeplab import DeepLab
from sccam.nets.saved import Network
from sccam.runtime.upsampling import pixel_scores
from sccam.stages.cam import MAX_EPSILON, ScoreViews
from sccam.stages.segment import upsample_logits
from sccam.structures import ByteArray, FloatArray, IntArray

PAD_MULTIPLE = 32  # [px] covers every stride of every trunk


def mean_colour(backbone: Backbone) -> tuple[int, int, int]:
    """The colour that is 0 after the trunk's normalisation, for padding."""
    red, green, blue = (round(255 * value) for value in backbone.mean)
    return red, green, blue


def pooled_features(
    trunk: Backbone, compute: Compute, view_of: Callable[[ByteArray], ByteArray], maps_of: CamNet | None = None
) -> Callable[[ByteArray, IntArray], FloatArray]:
    """A function (image u8 [H W 3], classes [P]) -> the features that are clustered [P D].

    Args:
        trunk: whose deep tap is averaged.
        view_of: an image as the trunk sees it, its sides a multiple of the stride.
        maps_of: the classifier whose maps weigh the pixels, each class's own; without it all pixels count alike.
    """

    @torch.inference_mode()
    def features(image: ByteArray, classes: IntArray) -> FloatArray:
        with compute.autocast():
            inputs = compute.normalised(view_of(image)[None], trunk.mean, trunk.std)
            deep = trunk(inputs)[-1][0].float().flatten(1)  # [D hw]
            if maps_of is None:
                return np.asarray(deep.mean(dim=1).expand(len(classes), -1).cpu())
            index = torch.as_tensor(classes, device=compute.device).long()
            maps = maps_of.activation_of(inputs, index)[0].float().flatten(1)  # [P hw]
        weights = maps + MAX_EPSILON  # a class that lights up nowhere is averaged over the image
        return np.asarray((weights @ deep.T / weights.sum(dim=1, keepdim=True)).cpu())

    return features


def score_views(net: CamNet, compute: Compute) -> ScoreViews:
    """The rectified parent maps of the given classes, for a stack of views of one size."""
    backbone = net.backbone

    @torch.inference_mode()
    def scores(views: ByteArray, classes: IntArray) -> Tensor:
        with compute.autocast():
            inputs = compute.normalised(views, backbone.mean, backbone.std)
            return net.activation_of(inputs, torch.as_tensor(classes, device=compute.device).long()).float()

    return scores


def affinity_features(net: PairNet, compute: Compute) -> Callable[[ByteArray], Tensor]:
    """A function u8 [H W 3] -> features [D h w], or boundaries [1 h w], on the affinity grid, h = ceil(H / stride)."""
    backbone = net.backbone

    @torch.inference_mode()
    def features(image: ByteArray) -> Tensor:
        height, width = image.shape[:2]
        padded = pad_to_multiple(image, PAD_MULTIPLE, mean_colour(backbone))
        with compute.autocast():
            grid = net(compute.normalised(padded[None], backbone.mean, backbone.std))[0].float()
        return grid[:, : -(-height // net.grid_stride), : -(-width // net.grid_stride)]

    return features


def network_of(net: Network, compute: Compute) -> Callable[[ByteArray], dict[str, np.ndarray]]:
    """A function u8 [N H W 3], sides padded to `PAD_MULTIPLE` -> outputs by name, as the exported graphs give them.

    cam_net       `maps` [N C h w] rectified, `scores` [N C]
    affinity_net  `boundary` [N 1 h w] of a BoundaryNet, else `features` [N D h w]; a CPU has a kernel for affinities
    segmenter     `logits` [N C+1 h w], the maximum over scales
    """
    backbone = net.backbone

    def outputs_of(inputs: Tensor) -> dict[str, Tensor]:
        if isinstance(net, CamNet):
            features = net.features(inputs)
            return {"maps": net.rectified(features, net.map_weight()), "scores": net.logits(features)[0]}
        if isinstance(net, PairNet):
            return {"boundary" if isinstance(net, BoundaryNet) else "features": net(inputs)}
        return {"logits": net.multi_scale(inputs)[-1]}

    @torch.inference_mode()
    def outputs(images: ByteArray) -> dict[str, np.ndarray]:
        with compute.autocast():
            found = outputs_of(compute.normalised(images, backbone.mean, backbone.std))
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    return outputs


def segmentation_scores(net: DeepLab, compute: Compute, long_side: int = 0) -> Callable[[ByteArray], FloatArray]:
    """A function u8 [H W 3] -> class probabilities [C+1 H W]: softmax of the maximum over the net's scales.

    Args:
        long_side: [px] that the image is brought to before the network sees it; 0: it is seen as it is.
    """
    backbone = net.backbone

    @torch.inference_mode()
    def scores(image: ByteArray) -> FloatArray:
        size = (image.shape[0], image.shape[1])
        seen = brought_to(size, long_side)
        padded = pad_to_multiple(resize(image, seen), PAD_MULTIPLE, mean_colour(backbone))
        with compute.autocast():
            logits = net.multi_scale(compute.normalised(padded[None], backbone.mean, backbone.std))[-1]
        if seen == size:
            full = upsample_logits(logits, (padded.shape[0], padded.shape[1]), size)[0]
        else:
            density = [
                cells / pixels * part / whole
                for cells, pixels, part, whole in zip(logits.shape[-2:], padded.shape, seen, size, strict=False)
            ]
            grid = np.asarray(logits[0].float().cpu())
            full = torch.from_numpy(pixel_scores(grid, range(size[0]), range(size[1]), (density[0], density[1])))
        return np.asarray(full.softmax(dim=0).cpu())

    return scores
