"""The jobs between maps and pseudo labels: what they write, that it reads back, and that they load no PyTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sccam.artifacts import write_json
from sccam.data.masks import read_mask
from sccam.errors import RunFolderError
from sccam.runtime.backends import Backends
from sccam.runtime.labeler import (
    Alphas,
    affinity_label_job,
    chosen_walk,
    load_map,
    pseudo_label_job,
    refine_job,
    save_map,
    walk_job,
    walk_length_job,
    walked_scores,
)
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.crf import CrfConfig
from sccam.stages.pseudo_label import PseudoLabelConfig
from sccam.stages.walk import WalkConfig
from sccam.stages.walk_length import region_contrast
from sccam.structures import ActivationMap, AffinityField

HEIGHT, WIDTH, MAP_STRIDE, STRIDE = 45, 60, 4, 8
GRID = (6, 8)  # of affinities: ceil(45 / 8), ceil(60 / 8)
ALPHAS = Alphas(low=4.0, high=32.0, walk=16.0)
CRF = CrfConfig(iterations=2)
ROWS = Backends().resolved()
CLASSES = np.array([1, 4], np.int32)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Two bright rectangles on a dark ground, where the maps below are high."""
    pixels = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    pixels[8:36, 4:24], pixels[8:36, 36:56] = (230, 60, 40), (40, 90, 230)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    scores = np.zeros((2, 12, 15), np.float32)
    scores[0, 2:9, 1:6], scores[1, 2:9, 9:14] = 0.95, 0.9
    save_map(tmp_path / "map.npz", ActivationMap(scores, CLASSES), (HEIGHT, WIDTH))
    return tmp_path / "map.npz"


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """The map of an image that shows no class."""
    nothing = ActivationMap(np.zeros((0, 12, 15), np.float32), np.zeros(0, np.int32))
    save_map(tmp_path / "empty.npz", nothing, (HEIGHT, WIDTH))
    return tmp_path / "empty.npz"


def field(value: float = 0.5) -> AffinityField:
    offsets = neighbour_offsets(2)
    return AffinityField(np.full((len(offsets), *GRID), value, np.float32), offsets, STRIDE)


def walk(stored: Path, out: Path, *, alphas: tuple[float, ...] = (16.0,), value: float = 0.5, steps: int = 4) -> Path:
    walk_job(field(value), stored, out, MAP_STRIDE, alphas, WalkConfig(steps=steps), ROWS)
    return out


@pytest.mark.parametrize("normalise", [False, True])
def test_the_merit_of_a_length_is_that_of_the_labels_after_a_walk_of_so_many_steps(image, stored, tmp_path, normalise):
    config = WalkConfig(steps=16, normalise=normalise)
    found = walk_length_job(image, field(), stored, MAP_STRIDE, 16.0, config, ROWS)
    pixels = np.asarray(Image.open(image))
    for steps, merit in zip((1, 2, 4, 8, 16), found, strict=True):
        walk_job(field(), stored, tmp_path / "out.npz", MAP_STRIDE, (16.0,), replace(config, steps=steps), ROWS)
        scores, _ = walked_scores(tmp_path / "out.npz", 0, STRIDE)
        assert merit == pytest.approx(region_contrast(pixels, scores.argmax(axis=0)), abs=0.01), steps
    assert len({round(merit, 3) for merit in found}) > 1


def test_the_walk_of_a_run_has_the_length_that_was_chosen(tmp_path):
    fixed, own = WalkConfig(steps=16), WalkConfig(steps=16, rule="contrast")
    assert chosen_walk(fixed, tmp_path) == fixed
    write_json(tmp_path / "walk.json", {"rule": "contrast", "steps": 4, "merits": {}})
    assert chosen_walk(own, tmp_path) == replace(own, steps=4)
    write_json(tmp_path / "walk.json", {"steps": 5})
    with pytest.raises(RunFolderError, match="a walk of 5 steps, where the settings have 1, 2, 4, 8, 16"):
        chosen_walk(own, tmp_path)


def test_a_map_reads_back_as_it_was_but_for_half_precision(tmp_path, rng, tolerance):
    activation = ActivationMap(rng.random((2, 5, 7), np.float32), CLASSES)
    save_map(tmp_path / "map.npz", activation, (18, 28))
    found, size = load_map(tmp_path / "map.npz")
    assert size == (18, 28) and found.classes.tolist() == [1, 4] and found.scores.dtype == np.float32
    assert found.scores == pytest.approx(activation.scores, abs=tolerance["half"])


def test_affinity_labels_count_the_classes_of_the_image_on_the_affinity_grid(image, stored, tmp_path):
    affinity_label_job(image, stored, tmp_path / "out.png", MAP_STRIDE, STRIDE, ALPHAS, CRF, ROWS)
    labels = read_mask(tmp_path / "out.png")
    assert labels.shape == GRID
    assert (labels[2, 1], labels[2, 5], labels[5, 7]) == (1, 2, 0)
    assert set(np.unique(labels)) <= {0, 1, 2, 255}


def test_a_cell_on_which_the_two_backgrounds_disagree_is_unsure(image, tmp_path):
    """At a score of 0.2, (1 - 0.2)^4 is more and (1 - 0.2)^32 is less than the class: neither is sure."""
    scores = np.zeros((1, 12, 15), np.float32)
    scores[0, :, 5:10], scores[0, :, 10:] = 0.2, 0.9
    save_map(tmp_path / "map.npz", ActivationMap(scores, CLASSES[:1]), (HEIGHT, WIDTH))
    out = tmp_path / "out.png"
    affinity_label_job(image, tmp_path / "map.npz", out, MAP_STRIDE, STRIDE, ALPHAS, CrfConfig(iterations=0), ROWS)
    assert read_mask(out)[:, [0, 3, 7]].tolist() == [[0, 255, 1]] * GRID[0]


def test_walked_scores_hold_classes_and_one_background_for_each_alpha(stored, tmp_path):
    out = walk(stored, tmp_path / "out.npz", alphas=(16.0, 2.0))
    for index, alpha in enumerate((16.0, 2.0)):
        scores, classes = walked_scores(out, index, STRIDE)
        assert scores.shape == (3, HEIGHT, WIDTH) and classes.tolist() == [1, 4]
        assert scores.min() >= 0 and scores.max() <= 1
        alone, _ = walked_scores(walk(stored, tmp_path / f"{alpha}.npz", alphas=(alpha,)), 0, STRIDE)
        assert np.array_equal(scores, alone)
    strong, weak = (walked_scores(out, index, STRIDE)[0][0] for index in (1, 0))
    assert (strong >= weak).all() and (strong > weak).any()


def test_without_affinities_the_walk_leaves_each_cell_its_mean(stored, tmp_path, tolerance):
    walked, _ = walked_scores(walk(stored, tmp_path / "out.npz", value=0.0, steps=50), 0, STRIDE)
    still, _ = walked_scores(walk(stored, tmp_path / "still.npz", steps=0), 0, STRIDE)
    assert walked == pytest.approx(still, abs=tolerance["half"])


@pytest.mark.parametrize("crf", [True, False])
def test_pseudo_labels_are_background_present_classes_and_ignore(image, stored, tmp_path, crf):
    walked, out = walk(stored, tmp_path / "walked.npz", value=0.1), tmp_path / "label.png"
    pseudo_label_job(image, walked, out, STRIDE, PseudoLabelConfig(use_crf=crf, crf=CRF), ROWS)
    index = read_mask(out, class_count=5)
    assert index.shape == (HEIGHT, WIDTH) and set(np.unique(index)) == {0, 2, 5}
    assert (index[20, 12], index[20, 46], index[42, 30]) == (2, 5, 0)
    pseudo_label_job(image, walked, out, STRIDE, PseudoLabelConfig(use_crf=crf, crf=CRF, confidence=1.0), ROWS)
    assert (read_mask(out) == 255).any()


def test_an_image_without_classes_goes_through_all_jobs_as_background(image, empty, tmp_path):
    affinity_label_job(image, empty, tmp_path / "affinity.png", MAP_STRIDE, STRIDE, ALPHAS, CRF, ROWS)
    assert read_mask(tmp_path / "affinity.png").shape == GRID and not read_mask(tmp_path / "affinity.png").any()
    walked = walk(empty, tmp_path / "walked.npz")
    pseudo_label_job(image, walked, tmp_path / "label.png", STRIDE, PseudoLabelConfig(crf=CRF), ROWS)
    assert not read_mask(tmp_path / "label.png").any()


def test_refining_follows_the_probabilities_where_they_are_sure(image, tmp_path):
    probabilities = np.full((3, HEIGHT, WIDTH), 0.01, np.float32)
    probabilities[0] = 0.98
    probabilities[:, 8:36, 4:24] = np.array([0.01, 0.01, 0.98], np.float32)[:, None, None]
    refine_job(image, probabilities, tmp_path / "out.png", CRF, ROWS)
    index = read_mask(tmp_path / "out.png")
    assert (index[20, 12], index[20, 46]) == (2, 0) and index.shape == (HEIGHT, WIDTH)


def test_a_missing_map_names_the_file(image, tmp_path):
    with pytest.raises(RunFolderError, match="missing") as caught:
        affinity_label_job(image, tmp_path / "no.npz", tmp_path / "out.png", MAP_STRIDE, STRIDE, ALPHAS, CRF, ROWS)
    assert caught.value.where == str(tmp_path / "no.npz") and not (tmp_path / "out.png").exists()


def test_a_worker_that_makes_labels_loads_no_pytorch():
    code = "import sys, sccam.runtime.labeler; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert found.stdout.strip() == "False", found.stderr
