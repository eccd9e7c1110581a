"""A small run as `sccam train` and `sccam export` leave it, its networks untrained, for tests of what reads a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sccam import config as toml
from sccam.artifacts import RunFolder, write_json, write_text, write_weights
from sccam.data.masks import write_mask
from sccam.export.run import export_run
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.backbones import build_backbone
from sccam.nets.cam_net import CamNet
from sccam.nets.deeplab import DeepLab
from sccam.recipe import load_config

CLASSES = ("cat", "dog", "red fox")
SIZES = ((90, 130), (64, 96), (131, 77), (90, 130))
RADIUS = 3
TAGS = "image,tags\n0.png,cat dog\nin/1.png,red fox\n2,cat\n3.png,\n"


def make_run(path: Path, networks: Sequence[str] = ("cam_net", "affinity_net")) -> Path:
    """Weights, settings and exported fp32 files of the networks."""
    folder = RunFolder(path)
    # A few steps: untrained affinities average everything away, and labels of ties would be decided by rounding.
    walk = ["walk.steps=16", "walk.rule=contrast", "walk.normalise=false"]
    settings = load_config("demo", ["cam.scales=[1.0, 0.5]", "cam.long_side=0", f"affinity.radius={RADIUS}", *walk])
    write_text(folder / "config.toml", toml.dump(settings))
    write_json(folder / "run.json", {"schema": 1, "status": "finished"})
    write_json(folder / "threshold.json", {"alpha_walk": 2.5})
    write_json(folder / "walk.json", {"steps": 4})
    torch.manual_seed(3)
    files = {"cam_net": folder.classifier(0), "affinity_net": folder.affinity_net, "segmenter": folder.segmenter}
    for kind in networks:
        backbone = build_backbone("test_resnet", output_stride=16, weights="none")
        net: Any = {
            "cam_net": lambda: CamNet(backbone, len(CLASSES), 3),  # noqa: B023
            "affinity_net": lambda: AffinityNet(backbone, 8),  # noqa: B023
            "segmenter": lambda: DeepLab(backbone, len(CLASSES) + 1, (1, 2), (1.0,)),  # noqa: B023
        }[kind]()
        write_weights(
            files[kind], net.state_dict(), kind=kind, backbone="test_resnet", classes=CLASSES,
            mean=tuple(backbone.mean), std=tuple(backbone.std), stride=8 if kind == "affinity_net" else 16,
            made_from={"output_stride": 16, "subcategory_parent": [0, 1, 2], "radius": RADIUS, "rates": [1, 2],
                       "scales": [1.0]},
        )  # fmt: skip
    draw(folder / "pictures")
    export_run(
        folder.path, networks=networks, precisions=("fp32",), images=folder / "pictures", tell=lambda text: None
    )  # fmt: skip
    return folder.path


def labelled(data: Path) -> None:
    """A data set of the pictures: two to train on, two unseen, all with tags and masks of stripes."""
    draw(data / "images")
    for name, lines in {
        "tags.csv": ["image,tags", "0.png,cat;red fox", "1.png,dog", "2.png,red fox", "3.png,cat;dog"],
        "classes.txt": list(CLASSES), "train.txt": ["0", "1"], "val.txt": ["2", "3"],
    }.items():  # fmt: skip
        write_text(data / name, "\n".join(lines) + "\n")
    (data / "masks").mkdir()
    for n, size in enumerate(SIZES):
        write_mask(data / "masks" / f"{n}.png", stripes(n, size))


def stripes(n: int, size: tuple[int, int]) -> np.ndarray:
    """The mask of picture n: a class above, background below."""
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 1 + n % len(CLASSES)
    return mask


def draw(folder: Path) -> None:
    """Smooth random pictures."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for n, (height, width) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{n}.png")
