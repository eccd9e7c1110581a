"""Metrics: perfect is one, order does not matter, and the sweep equals one evaluation a threshold."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sccam.errors import DataError, ShapeError
from sccam.stages.evaluate import ConfusionMatrix, evaluate_folders, scores, sweep
from sccam.stages.threshold import seed_labels
from sccam.structures import ActivationMap

TOLERANCE = {"mean": 1e-12}  # double-precision means in another order
CLASSES = ("cat", "dog")
MASKS = arrays(np.uint8, (4, 5), elements=st.sampled_from([0, 1, 2, 255]))


def matrix_of(*pairs: tuple[np.ndarray, np.ndarray], class_count: int = 2) -> ConfusionMatrix:
    matrix = ConfusionMatrix(class_count)
    for predicted, true in pairs:
        matrix.add(predicted, true)
    return matrix


def mask(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.uint8)


def plain_iou(predicted: np.ndarray, true: np.ndarray, label: int) -> float:
    known = true != 255
    hit = ((predicted == label) & (true == label)).sum()
    return hit / (((predicted == label) | (true == label)) & known).sum()


@given(MASKS)
def test_a_prediction_equal_to_the_truth_scores_one(true):
    result = scores(matrix_of((np.where(true == 255, 0, true).astype(np.uint8), true)), CLASSES)
    if (true == 255).all():
        assert result.miou is None
    else:
        assert result.miou == result.pixel_accuracy == result.f_score == 1


@given(MASKS, MASKS)
def test_iou_equals_intersection_over_union(predicted, true):
    result = scores(matrix_of((predicted, true)), CLASSES)
    for label, name in enumerate(("background", *CLASSES)):
        if (true == label).any():
            assert result.iou[name] == pytest.approx(plain_iou(predicted, true, label), abs=TOLERANCE["mean"])
        else:
            assert result.iou[name] is None


@given(st.lists(st.tuples(MASKS, MASKS), max_size=5))
def test_the_order_of_images_does_not_matter_and_parts_may_be_merged(pairs):
    whole = matrix_of(*pairs)
    backwards = matrix_of(*pairs[::-1])
    merged = matrix_of(*pairs[:2])
    merged.merge(matrix_of(*pairs[2:]))
    for other in (backwards, merged):
        assert np.array_equal(whole.counts, other.counts)
        assert whole.images == other.images


@given(MASKS, MASKS)
def test_every_known_pixel_is_counted_once(predicted, true):
    assert matrix_of((predicted, true)).counts.sum() == (true != 255).sum()


def test_a_golden_image():
    predicted = mask([0, 0, 1, 1], [0, 1, 1, 2])
    true = mask([0, 0, 0, 1], [255, 1, 1, 1])
    result = scores(matrix_of((predicted, true)), CLASSES)
    assert result.iou == {"background": pytest.approx(2 / 3), "cat": pytest.approx(3 / 5), "dog": None}
    assert result.precision == {"background": 1.0, "cat": 0.75, "dog": None}
    assert result.recall == {"background": pytest.approx(2 / 3), "cat": 0.75, "dog": None}
    assert result.miou == pytest.approx((2 / 3 + 3 / 5) / 2)
    assert result.miou_without_background == pytest.approx(3 / 5)
    assert result.pixel_accuracy == pytest.approx(5 / 7)
    P, R = 0.875, (2 / 3 + 0.75) / 2
    assert result.f_score == pytest.approx(2 * P * R / (P + R))
    assert result.images == 1


def test_a_predicted_ignore_is_a_miss_for_the_truth_and_charges_no_label():
    result = scores(matrix_of((mask([255, 1, 0]), mask([1, 1, 0]))), CLASSES)
    assert result.iou == {"background": 1.0, "cat": 0.5, "dog": None}
    assert result.precision["cat"] == 1
    assert result.recall["cat"] == 0.5


def test_truth_of_ignore_leaves_a_pixel_out():
    result = scores(matrix_of((mask([1, 2, 0]), mask([1, 255, 0]))), CLASSES)
    assert result.miou == 1


def test_a_label_of_the_truth_that_is_never_predicted_has_precision_zero():
    result = scores(matrix_of((mask([0, 0]), mask([0, 1]))), CLASSES)
    assert result.precision["cat"] == 0
    assert result.mean_precision == 0.25


def test_no_images_give_none_and_valid_json():
    result = scores(ConfusionMatrix(2), CLASSES).as_dict()
    assert result["miou"] is None
    assert result["f_score"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_a_completely_wrong_prediction_has_an_f_score_of_zero():
    assert scores(matrix_of((mask([1, 0]), mask([0, 1]))), CLASSES).f_score == 0


def test_up_to_254_classes_are_counted():
    true = np.arange(256, dtype=np.uint8).reshape(16, 16)
    result = scores(matrix_of((true, true), class_count=254), [f"c{k}" for k in range(254)])
    assert result.miou == 1


def test_masks_of_different_size_are_refused():
    with pytest.raises(ShapeError, match="must be equal"):
        matrix_of((np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)))


@pytest.mark.parametrize("kind", ["true", "predicted"])
def test_an_unknown_label_is_named(kind):
    pair = (mask([0, 7]), mask([0, 1])) if kind == "predicted" else (mask([0, 1]), mask([0, 7]))
    with pytest.raises(DataError, match=f"{kind} mask holds label 7, but there are 2 classes"):
        matrix_of(pair)


def test_matrices_of_other_classes_do_not_merge_and_names_must_fit():
    with pytest.raises(ShapeError, match="2 and 3 classes"):
        ConfusionMatrix(2).merge(ConfusionMatrix(3))
    with pytest.raises(ShapeError, match="1 class names"):
        scores(ConfusionMatrix(2), ["cat"])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0]), unique=True, min_size=1))
def test_the_sweep_equals_one_evaluation_for_each_threshold(seed, thresholds):
    rng = np.random.default_rng(seed)
    thresholds = sorted(thresholds)
    present = [np.array([0, 2], np.int32), np.array([1], np.int32), np.zeros(0, np.int32)]
    maps = [
        (
            ActivationMap((rng.integers(0, 9, (len(p), 6, 7)) / 8).astype(np.float32), p),
            rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (6, 7)),
        )
        for p in present
    ]
    for threshold, found in zip(thresholds, sweep(maps, thresholds, 3), strict=True):
        expected = matrix_of(*((seed_labels(a, threshold), t) for a, t in maps), class_count=3)
        assert np.array_equal(found.counts, expected.counts)
        assert found.images == expected.images


def test_the_sweep_refuses_unordered_thresholds_and_other_sizes():
    activation = ActivationMap(np.zeros((1, 2, 2), np.float32), np.array([0], np.int32))
    with pytest.raises(ShapeError, match="ascend"):
        sweep([], [0.5, 0.1], 2)
    with pytest.raises(ShapeError, match="upsample the map"):
        sweep([(activation, np.zeros((4, 4), np.uint8))], [0.5], 2)
    with pytest.raises(DataError, match="label 9"):
        sweep([(activation, np.full((2, 2), 9, np.uint8))], [0.5], 2)


def write(folder, **masks):
    for name, rows in masks.items():
        path = folder / f"{name.replace('__', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array(rows, np.uint8)).save(path)
    return folder


def test_equal_folders_score_one_with_or_without_names(tmp_path):
    truth = write(tmp_path / "true", a=[[0, 1], [2, 255]], sub__b=[[0, 0], [1, 1]])
    guess = write(tmp_path / "predicted", a=[[0, 1], [2, 0]], sub__b=[[0, 0], [1, 1]], extra=[[0]])
    named = evaluate_folders(guess, truth, CLASSES)
    assert named["miou"] == 1
    assert named["images"] == 2
    assert named["iou"] == {"background": 1.0, "cat": 1.0, "dog": 1.0}
    assert json.loads(json.dumps(named, allow_nan=False)) == named
    assert evaluate_folders(str(guess), str(truth))["iou"] == {"background": 1.0, "label 1": 1.0, "label 2": 1.0}


def test_folders_are_scored_pixel_by_pixel(tmp_path):
    truth = write(tmp_path / "true", a=[[0, 0, 1, 1]])
    guess = write(tmp_path / "predicted", a=[[0, 1, 1, 1]])
    assert evaluate_folders(guess, truth, CLASSES)["miou"] == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_masks_that_only_one_folder_has_are_listed_and_not_scored(tmp_path):
    truth = write(tmp_path / "true", a=[[1]], b=[[0]], c=[[2]])
    guess = write(tmp_path / "predicted", b=[[0]], d=[[1]])
    result = evaluate_folders(guess, truth, CLASSES)
    assert (result["images"], result["miou"]) == (1, 1.0)
    assert result["without_prediction"] == ["a", "c"] and result["without_truth"] == ["d"]


def test_folders_without_a_common_name_show_both_sides(tmp_path):
    truth = write(tmp_path / "true", a=[[0]])
    guess = write(tmp_path / "predicted", b=[[0]])
    with pytest.raises(DataError, match="predicted b; true a"):
        evaluate_folders(guess, truth, CLASSES)


def test_missing_and_empty_folders_are_refused(tmp_path):
    truth = write(tmp_path / "true", a=[[0]])
    with pytest.raises(DataError, match="no such folder"):
        evaluate_folders(tmp_path / "nowhere", truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no PNG mask"):
        evaluate_folders(tmp_path / "empty", truth)


def test_a_prediction_of_another_size_names_both_files(tmp_path):
    truth = write(tmp_path / "true", a=[[0, 1]])
    guess = write(tmp_path / "predicted", a=[[0], [1]])
    with pytest.raises(DataError, match=r"(?s)predicted \(2, 1\), true \(1, 2\).*a\.png"):
        evaluate_folders(guess, truth, CLASSES)
