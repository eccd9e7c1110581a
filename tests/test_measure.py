"""Measuring: three named columns, an oracle that nobody beats, and a threshold that has never seen a mask."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam.data.masks import write_mask
from sccam.measure import Measure, ids_checksum
from sccam.runtime.backends import Backends
from sccam.runtime.labeler import save_map, threshold_from_images, walk_job
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.evaluate import ConfusionMatrix, scores
from sccam.stages.threshold import ThresholdConfig, choose_threshold, seed_labels
from sccam.stages.walk import WalkConfig, upsample
from sccam.structures import ActivationMap, AffinityField, LabelSet, TaggedImages, TrueMasks

CLASSES = ("cat", "dog")
SIZE, MAP_STRIDE, STRIDE = (40, 52), 4, 8
IDS = ("a", "b", "c", "d")  # d has no mask


class Folder:
    """Four images with a bright disc, maps that fall off from its centre, and masks of three of them."""

    def __init__(self, root: Path):
        self.root = root
        rng = np.random.default_rng(0)
        y, x = np.mgrid[: SIZE[0], : SIZE[1]]
        present = np.zeros((4, 2), bool)
        for n, id in enumerate(IDS):
            centre = rng.integers(16, 24), rng.integers(18, 34)
            distance = np.hypot(y - centre[0], x - centre[1])
            disc = distance < 12
            pixels = np.where(disc[..., None], [210, 120, 50], [40, 60, 90]) + rng.integers(-9, 10, (*SIZE, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(self.image(id))
            present[n, n % 2] = True
            height, width = (-(-side // MAP_STRIDE) for side in SIZE)
            cells = np.clip(1 - distance / 30, 0, 1)[MAP_STRIDE // 2 :: MAP_STRIDE, MAP_STRIDE // 2 :: MAP_STRIDE]
            maps = ActivationMap(cells[None, :height, :width].astype(np.float32), np.array([n % 2], np.int32))
            save_map(self.map(id), maps, SIZE)
            if id != "d":
                write_mask(self.mask(id), np.where(disc, n % 2 + 1, 0).astype(np.uint8))
        paths = tuple(self.image(id) for id in IDS)
        self.images = TaggedImages("train", paths, LabelSet(present, IDS, CLASSES))
        self.masks = TrueMasks({id: self.mask(id) for id in IDS[:3]}, CLASSES)

    def image(self, id: str) -> Path:
        return self.root / f"{id}.png"

    def mask(self, id: str) -> Path:
        return self.root / f"{id}_mask.png"

    def map(self, id: str) -> Path:
        return self.root / f"{id}.npz"

    def measure(self) -> Measure:
        return Measure(self.images, self.masks, workers=1)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def rows_of_maps(folder: Folder, fixed: float = 0.15, chosen: float = 0.31, steps: int = 20) -> list[dict]:
    return folder.measure().maps("maps/round0", folder.map, MAP_STRIDE, fixed, chosen, steps)


def test_the_three_columns_are_named_and_the_oracle_is_never_beaten(folder):
    fixed, image_only, oracle = rows_of_maps(folder)
    assert [row["column"] for row in (fixed, image_only, oracle)] == ["fixed", "image_only", "oracle"]
    assert (fixed["threshold"], image_only["threshold"]) == (0.15, 0.31)
    assert oracle["miou"] >= max(fixed["miou"], image_only["miou"])
    assert oracle["miou"] == max(miou for _, miou in oracle["curve"]) or oracle["miou"] == pytest.approx(
        max(miou for _, miou in oracle["curve"]), abs=1e-5
    )  # the curve keeps five decimals


@pytest.mark.parametrize("threshold", [0.13, 0.47, 0.999])
def test_a_threshold_between_the_steps_of_the_sweep_is_measured_exactly(folder, threshold):
    matrix = ConfusionMatrix(len(CLASSES))
    for n, id in enumerate(IDS[:3]):
        cells = np.load(folder.map(id))["scores"].astype(np.float32)
        full = ActivationMap(upsample(cells, SIZE, MAP_STRIDE), np.array([n % 2], np.int32))
        matrix.add(seed_labels(full, threshold), np.asarray(Image.open(folder.mask(id))))
    fixed, _, oracle = rows_of_maps(folder, fixed=threshold)
    assert fixed["miou"] == scores(matrix, CLASSES).miou
    assert oracle["miou"] >= fixed["miou"]


def test_the_curve_of_the_oracle_ascends_over_the_whole_range(folder):
    thresholds = [threshold for threshold, _ in rows_of_maps(folder)[2]["curve"]]
    assert thresholds == sorted(set(thresholds)) and thresholds[0] == 0.05 and thresholds[-1] == 0.95
    assert {0.15, 0.31} <= set(thresholds)


def test_only_images_with_a_mask_are_measured_and_named_by_their_checksum(folder):
    for row in rows_of_maps(folder):
        assert row["images"] == 3 and row["split"] == "train" and row["stage"] == "maps/round0"
        assert row["ids_sha256"] == hashlib.sha256(b"a\nb\nc").hexdigest()
        assert row["tags_used"] is True
    assert set(row["iou"]) == {"background", *CLASSES}


def test_a_checksum_knows_the_order_and_the_borders_of_ids():
    assert len({ids_checksum(ids) for ids in (("a", "b"), ("b", "a"), ("ab",), ())}) == 4


def test_masks_measured_against_themselves_are_perfect(folder):
    row = folder.measure().labels("pseudo_labels", folder.mask, tags_used=False)
    assert (row["miou"], row["column"], row["tags_used"], row["images"]) == (1.0, "labels", False, 3)


def test_walked_maps_have_a_row_for_the_alphas_in_use_and_for_the_best(folder):
    offsets = neighbour_offsets(2)
    field = AffinityField(np.full((len(offsets), 5, 7), 0.1, np.float32), offsets, STRIDE)
    alphas, rows = (8.0, 16.0, 1.0, 3.0), Backends().resolved()
    for id in IDS[:3]:
        out = folder.root / f"{id}_walked.npz"
        walk_job(field, folder.map(id), out, MAP_STRIDE, alphas, WalkConfig(steps=2), rows)
    found = folder.measure().walked(lambda id: folder.root / f"{id}_walked.npz", STRIDE, alphas, 16.0, 8.0)
    fixed, image_only, oracle = found
    assert [row["stage"] for row in found] == ["walk"] * 3
    assert (fixed["alpha"], image_only["alpha"]) == (16.0, 8.0)
    assert oracle["miou"] >= max(fixed["miou"], image_only["miou"]) and oracle["miou"] > 0.5
    assert [alpha for alpha, _ in oracle["curve"]] == sorted(alphas)


def test_two_processes_measure_what_one_does(folder):
    one, two = (
        Measure(folder.images, folder.masks, workers).labels("x", folder.mask, tags_used=False) for workers in (1, 2)
    )
    assert one == two


# The threshold from images alone


@pytest.mark.parametrize("rule", ["otsu", "contrast", "edges"])
def test_the_threshold_from_images_reads_no_mask(folder, rule):
    config = ThresholdConfig(rule=rule)
    before = threshold_from_images(folder.images, folder.map, config)
    for id in IDS[:3]:
        folder.mask(id).unlink()
    assert threshold_from_images(folder.images, folder.map, config) == before


def test_the_rule_that_sees_colours_finds_the_rim_of_the_discs(folder):
    found = threshold_from_images(folder.images, folder.map, ThresholdConfig(rule="contrast"))
    assert found == pytest.approx(1 - 12 / 30, abs=0.06)  # a map cell is 4 px, over which the map falls by 0.13


def test_images_without_a_class_say_nothing_about_the_threshold(folder):
    before = threshold_from_images(folder.images, folder.map, ThresholdConfig())
    present = np.array([[1, 0], [0, 1], [1, 0], [0, 1], [0, 0]], bool)
    nothing = ActivationMap(np.zeros((0, 10, 13), np.float32), np.zeros(0, np.int32))
    save_map(folder.map("e"), nothing, SIZE)
    labels = LabelSet(present, (*IDS, "e"), CLASSES)
    more = TaggedImages("train", (*folder.images.paths, folder.image("a")), labels)
    assert threshold_from_images(more, folder.map, ThresholdConfig()) == before


def test_at_most_so_many_images_are_read_spread_over_the_list(folder, monkeypatch):
    read: list[str] = []

    def watched(id: str, root: Folder) -> Path:
        read.append(id)
        return root.map(id)

    threshold_from_images(folder.images, partial(watched, root=folder), ThresholdConfig(), most=2)
    assert read == ["a", "c"]


def test_no_images_give_the_fixed_threshold():
    labels = LabelSet(np.zeros((0, 2), bool), (), CLASSES)
    assert threshold_from_images(TaggedImages("train", (), labels), Path, ThresholdConfig(fixed=0.2)) == 0.2


def test_the_chosen_threshold_is_the_rule_on_maps_and_shrunken_images(folder):
    seen = []
    for id in IDS:
        pixels = Image.open(folder.image(id)).resize((13, 10), Image.Resampling.BICUBIC)
        seen.append((np.load(folder.map(id))["scores"].astype(np.float32).max(axis=0), np.asarray(pixels)))
    config = ThresholdConfig(rule="contrast")
    assert threshold_from_images(folder.images, folder.map, config) == choose_threshold(seen, config)
