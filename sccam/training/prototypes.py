"""The round of local prototypes: other maps of the last classifier, for which nothing is trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import relu

from sccam.data.images import read_image
from sccam.data.transforms import resize
from sccam.errors import NumericError
from sccam.nets.cam_net import CamNet, lengths
from sccam.stages.cam import merged_views
from sccam.stages.prototypes import Kinds, class_prototype, kinds_of, scale_of
from sccam.stages.threshold import MapAndImage, colour_contrast
from sccam.structures import BoolArray, ByteArray, FloatArray, IntArray
from sccam.training.context import RunContext
from sccam.training.rounds import classifier_of, view_of

MOST_IMAGES = 1000  # of a class, that its pixels are of
MOST_COMPARED = 100  # images that maps are compared on
MOST_BYTES = 1 << 30  # of the pixels of all classes that are kept in memory
MOST_CELLS = 128  # along the longer side of a map that is compared


@torch.inference_mode()
def find_prototypes(run: RunContext, r: int) -> None:
    """Round r: the last classifier with maps from local prototypes, or with its own where the images prefer those."""
    config, stride = run.config.prototypes, run.config.network.output_stride
    before = classifier_of(run, r - 1)
    kinds = _kinds(run, before)
    scale = scale_of(kinds, config)
    own = np.asarray(before.map_weight().float().cpu())  # what a class that lights up nowhere keeps
    weights = np.repeat(own[None], len(config.subtract), axis=0)  # [n C D]
    for c, found in kinds:
        for weight, share in zip(weights, config.subtract, strict=True):
            weight[c] = class_prototype(found, c, config, scale=scale, subtract=share)
    contrasts = _contrasts(run, before, weights) if len(weights) > 1 else []
    best = int(np.argmax(contrasts)) - 1 if contrasts else 0  # -1: the classifier's own maps
    if contrasts:
        kept = "the classifier's own" if best < 0 else f"prototypes less {config.subtract[best]:g} of the context"
        told = ", ".join(f"{value:.3f}" for value in contrasts)
        run.reporter.message(f"maps: {kept}; share of the colours that its own and prototypes tell apart: {told}")
    net = CamNet(run.backbone(stride), len(run.dataset.classes), 0, before.maps if best < 0 else "prototypes")
    state = {name: values for name, values in before.state_dict().items() if not name.startswith("sub.")}
    if best >= 0:
        state["second.weight"] = torch.from_numpy(weights[best])[:, :, None, None]
    net.load_state_dict(state)
    run.write_network(
        net, net.backbone, run.folder.classifier(r), kind="cam_net", stride=stride,
        made_from={
            "subcategory_parent": [], "round": r, "maps": net.maps, "scale": round(scale, 4), "contrasts": contrasts,
            "subtract": config.subtract[best] if best >= 0 else None,
        },
    )  # fmt: skip


def _kinds(run: RunContext, net: CamNet) -> list[tuple[int, Kinds]]:
    """(c, the kinds of its pixels) of every class c that lights up in a training image that has it."""
    config, images = run.config.prototypes, run.train_images
    weight = net.map_weight().float()
    parent = np.asarray(weight.cpu())
    pixels: list[list[np.ndarray]] = [[] for _ in images.classes]
    present = images.labels.present
    rows = images_of_pixels(present)
    most = min(config.most, MOST_BYTES // parent.nbytes)
    share = most / np.maximum(present[rows].sum(axis=0), 1)  # pixels that an image may give to a class
    for n in run.watched(rows):
        classes = np.flatnonzero(present[n])
        features = _features(run, net, view_of(run, 1.0, read_image(images.paths[n]))[None])[0].flatten(1).T  # [h w D]
        # By PyTorch: after NumPy's product its threads go on spinning, and halve the speed of the next network's run
        scores = np.asarray((features @ weight[classes].T).cpu())  # [h w c]
        found = np.asarray(features.cpu())
        if not np.isfinite(found).all():
            raise NumericError(
                "a feature is NaN or infinite", where=f"image {images.ids[n]}", why="the classifier diverged",
                fix="lower classify.optimiser.lr and train again",
            )  # fmt: skip
        for c, of_class in zip(classes.tolist(), scores.T, strict=True):
            chosen = np.flatnonzero(of_class > config.least_map * max(float(of_class.max()), 0.0))
            chosen = chosen[:: max(1, int(np.ceil(len(chosen) / max(share[c], 1))))]
            pixels[c].append(found[chosen])
    seed, fit = run.config.run.seed, run.backends.function("k_means")
    whole = [(c, np.concatenate(found)) for c, found in enumerate(pixels) if found]
    return [(c, kinds_of(found, parent, config, seed=seed, fit=fit)) for c, found in whole if len(found)]


def images_of_pixels(present: BoolArray) -> list[int]:
    """Images whose pixels are clustered: at most MOST_IMAGES are taken for each class. present [N C]."""
    return sorted({n for of_class in present.T for n in _some(np.flatnonzero(of_class), MOST_IMAGES)})


def _some(rows: np.ndarray, most: int) -> list[int]:
    """Every n-th of them, so that at most so many are left."""
    return [int(n) for n in rows[:: max(1, -(-len(rows) // most))]]


def _contrasts(run: RunContext, net: CamNet, weights: FloatArray) -> list[float]:
    """How well maps tell the images' colours apart: those of the classifier, then those of prototypes [n C D]."""
    images, merge, second = run.train_images, run.backends.function("merge"), torch.from_numpy(weights)
    second = second.to(run.compute.device)
    pairs: list[list[MapAndImage]] = [[] for _ in range(1 + len(weights))]

    def score_views(views: ByteArray, classes: IntArray) -> Tensor:
        index = torch.as_tensor(classes, device=run.compute.device).long()
        features = _features(run, net, views)
        own = net.rectified(features, net.map_weight()[index])
        others = relu(torch.einsum("vdhw,npd->vnphw", features, second[:, index])).flatten(1, 2) / lengths(features)
        return torch.cat([own, others], dim=1)

    for n in run.watched(_some(np.flatnonzero(images.labels.present.any(axis=1)), MOST_COMPARED)):
        image = read_image(images.paths[n])
        classes = np.flatnonzero(images.labels.present[n]).astype(np.int32)
        cam = replace(run.config.cam, grid_stride=max(run.config.cam.grid_stride, -(-max(image.shape) // MOST_CELLS)))
        maps = merged_views(image, classes, score_views, cam, multiple=run.config.network.output_stride, merge=merge)
        small = resize(image, (maps.shape[1], maps.shape[2]))
        for kept, part in zip(pairs, maps.reshape(len(pairs), len(classes), *maps.shape[1:]), strict=True):
            kept.append((part.max(axis=0), small))
    return [colour_contrast(kept, run.config.threshold) for kept in pairs]


def _features(run: RunContext, net: CamNet, views: ByteArray) -> Tensor:
    """Views u8 [V H W 3] -> the deep tap [V D h w]."""
    with run.compute.autocast():
        inputs = run.compute.normalised(views, net.backbone.mean, net.backbone.std)
        return torch.as_tensor(net.backbone(inputs)[-1].float())
