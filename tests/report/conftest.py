"""A run as `sccam train` leaves it, of images and classes whose names want to be HTML; no network is trained for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from sccam import config as toml
from sccam.artifacts import RunFolder, write_arrays, write_json, write_text
from sccam.data.masks import write_mask
from sccam.recipe import load_config
from sccam.stages.evaluate import ConfusionMatrix, scores

CLASSES = ("<b>car</b>", 'dog" onload="boom()')
IDS = ("<img src=x onerror=boom()>", "</script><script>boom()", "3 & 4", "plain", "fünf\n")
SIZE = (60, 90)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images, with tags and masks; the last one is on the val list."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for n, name in enumerate(file_names()):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8))
        coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC).save(root / "images" / f"{name}.png")
        write_mask(root / "masks" / f"{name}.png", mask(n))
    write_json(root / "tags.json", {name: [CLASSES[n % 2]] for n, name in enumerate(file_names())})
    write_text(root / "classes.txt", "\n".join(CLASSES) + "\n")
    write_text(root / "train.txt", "\n".join(file_names()[:-1]) + "\n")
    write_text(root / "val.txt", file_names()[-1] + "\n")
    return root


def file_names() -> list[str]:
    """The ids as files may be called: a slash would be a folder, a list has one name a line."""
    return [id.replace("/", "∕").strip() for id in IDS]


def mask(n: int) -> np.ndarray:
    """A square of the image's class."""
    index = np.zeros(SIZE, np.uint8)
    index[10:40, 10 + n : 50] = n % 2 + 1
    return index


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with one round of sub-categories."""
    folder = RunFolder(tmp_path_factory.mktemp("runs") / "<i>run")
    folder.path.mkdir()
    names = file_names()
    settings = load_config("demo", ["classify.rounds=1", "network.backbone=test_resnet", "network.weights=none"])
    write_text(folder / "config.toml", toml.dump(settings))
    write_json(folder / "data.json", {"root": str(photos), "classes": list(CLASSES)})
    origin = {"commit": "<b>0123456789", "device": "1 core of <i>some"}
    finished = {"data": {"seconds": 0.5}, "round0/classify": {"seconds": 3.0, **origin}, "scores": {"seconds": 1.0}}
    folder.update(schema=1, status="finished", sccam="0.1.0", started="2026-01-01T00:00:00Z", finished=finished)
    for epoch in range(3):
        folder.log({"stage": "round0/classify", "epoch": epoch, "loss": 1 / (epoch + 1)})
    rng = np.random.default_rng(1)
    fine, coarse = ((-(-SIZE[0] // stride), -(-SIZE[1] // stride)) for stride in (settings.cam.grid_stride, 8))
    for n, name in enumerate(names[:-1]):
        for r in (0, 1):
            arrays: dict[str, np.ndarray] = {"scores": rng.random((1, *fine), np.float32).astype(np.float16),
                      "classes": np.array([n % 2], np.int32), "size": np.array(SIZE)}  # fmt: skip
            write_arrays(folder.activation_map(r, name), arrays)
        walked: dict[str, np.ndarray] = {
            "scores": rng.random((1, *coarse), np.float32),
            "backgrounds": np.full((1, *coarse), 0.4, np.float32),
        }
        write_arrays(folder.walked_map(name), {**walked, "classes": np.array([n % 2]), "size": np.array(SIZE)})
        write_mask(folder.pseudo_label(name), np.roll(mask(n), 5 * n, axis=1))
    write_mask(folder.prediction("val", names[-1]), np.roll(mask(len(names) - 1), 9, axis=0))
    present = np.eye(4, dtype=bool)[[0, 2, 1, 3]]  # image n is of class n % 2, each in a cluster of its own
    parent = np.array([0, 0, 1, 1], np.int32)
    write_arrays(
        folder / "round1/subcategories.npz", {"present": present, "parent": parent, "ids": np.array(names[:-1])}
    )
    write_arrays(folder / "round1/features.npz", {"features": rng.normal(size=(4, 5)).astype(np.float16)})
    heads = {"parent.weight": rng.normal(size=(2, 5, 1, 1)), "sub.weight": rng.normal(size=(4, 5, 1, 1))}
    save_file({name: value.astype(np.float32) for name, value in heads.items()}, folder.classifier(1))
    write_json(folder / "scores.json", {"rows": rows(), "hidden": [], "classes": list(CLASSES)})
    parity = {"passed": True, "runtime": "onnxruntime", "relative_error": 1e-6, "agreement": 1.0, "speed_up": None,
              "failures": []}  # fmt: skip
    write_json(folder / "export/segmenter.onnx.json", {"parity": parity})
    return folder.path


def rows() -> list[dict[str, object]]:
    matrix = ConfusionMatrix(len(CLASSES))
    matrix.add(np.roll(mask(0), 3, axis=0), mask(0))
    matrix.add(mask(1), mask(1))
    found = scores(matrix, CLASSES).as_dict()
    made: list[dict[str, object]] = []
    for r in (0, 1):
        for column, at in (("fixed", 0.15), ("image_only", 0.4), ("oracle", 0.5)):
            row = {"stage": f"maps/round{r}", "column": column, "split": "train", "tags_used": True, "threshold": at}
            made.append({**row, **found})
        made[-1]["curve"] = [[0.1, 0.2], [0.5, 0.6], [0.9, 0.3]]
    made.append({"stage": "pseudo_labels", "column": "labels", "split": "train", "tags_used": True, **found})
    made.append({"stage": "segmenter", "column": "labels", "split": "val", "tags_used": False, **found})
    return made
