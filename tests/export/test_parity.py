"""The gate lets equal networks through, stops others, and says by how much."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sccam.export.parity import LIMITS, measure_parity


def batches(count: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (n + 1, 20, 24, 3), dtype=np.uint8) for n in range(count)]


def logits_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """Three classes that prefer red, green and blue."""
    return {"logits": np.ascontiguousarray(np.moveaxis(images.astype(np.float32), -1, 1))}


def measured(candidate, precision="fp32", **options):
    return measure_parity(logits_of, candidate, batches(), precision, runtime="test", **options)


def test_equal_networks_pass_with_error_0_and_full_agreement():
    parity = measured(logits_of)
    assert parity.passed and parity.relative_error == 0 and parity.agreement == 1
    assert parity.images == 3 and parity.cases == ((1, 20, 24), (2, 20, 24))


def test_the_error_is_a_share_of_the_range_of_the_reference():
    def shifted(images):
        return {"logits": logits_of(images)["logits"] + 0.51}

    parity = measured(shifted)
    assert parity.relative_error == pytest.approx(0.51 / 255, rel=1e-3)
    assert parity.errors["logits"]["max_abs"] == pytest.approx(0.51, rel=1e-3)
    assert not parity.passed and "of the range" in parity.failures[0]


def test_half_precision_is_judged_by_agreement_alone():
    def shifted(images):
        return {"logits": logits_of(images)["logits"] + 0.51}

    assert measured(shifted, "fp16").passed


@pytest.mark.parametrize("precision", LIMITS)
def test_swapped_classes_fail_in_every_precision(precision):
    def swapped(images):
        return {"logits": logits_of(images)["logits"][:, ::-1]}

    parity = measured(swapped, precision)
    assert not parity.passed and parity.agreement < 0.5
    assert any("agreement" in failure for failure in parity.failures)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_fail(value):
    def broken(images):
        logits = logits_of(images)["logits"].copy()
        logits[0, 0, 0, 0] = value
        return {"logits": logits}

    assert "NaN or infinite" in measured(broken, "fp16").failures[0]


def test_another_shape_is_an_error():
    with pytest.raises(ValueError, match="has shape"):
        measured(lambda images: {"logits": logits_of(images)["logits"][:, :, 1:]})


def test_cells_where_the_reference_is_undecided_are_counted_apart():
    def tied(images):
        logits = logits_of(images)["logits"].copy()
        logits[:, :, :10] = 7.0
        return {"logits": logits}

    def tied_the_other_way(images):
        logits = tied(images)["logits"].copy()
        logits[:, 2, :10] += 1e-3
        return {"logits": logits}

    parity = measure_parity(tied, tied_the_other_way, batches(), "fp32", runtime="test")
    assert parity.passed and parity.agreement == 1 and parity.undecided == pytest.approx(0.5, abs=0.05)


def test_maps_are_read_with_a_background_so_that_faint_cells_are_no_decision_between_classes():
    def maps(images):
        faint = np.full((len(images), 3, 10, 10), 0.01, np.float32)
        faint[:, 0] += 0.01
        faint[:, 0, 5, 5] = 1.0
        return {"maps": faint}

    def faint_classes_swapped(images):
        swapped = maps(images)["maps"].copy()
        swapped[:, 1] += 0.05
        return {"maps": swapped}

    def object_lost(images):
        lost = maps(images)["maps"].copy()
        lost[:, :, 5, 5] = (0.1, 1.0, 0.1)
        return {"maps": lost}

    assert measure_parity(maps, faint_classes_swapped, batches(), "fp16", runtime="test").agreement == 1
    assert measure_parity(maps, object_lost, batches(), "fp16", runtime="test").agreement == pytest.approx(0.99)


def test_affinities_agree_when_they_lie_on_the_same_side_of_one_half():
    def affinity(images):
        return {"affinity": images[..., 0][:, None].astype(np.float32) / 255}

    def opposite(images):
        return {"affinity": 1 - affinity(images)["affinity"]}

    assert measure_parity(affinity, affinity, batches(), "fp16", runtime="test").agreement == 1
    assert measure_parity(affinity, opposite, batches(), "fp16", runtime="test").agreement < 0.01


def test_labels_agree_pixel_by_pixel():
    def labels(images):
        return {"labels": images[..., 0] // 64}

    def one_wrong(images):
        wrong = labels(images)["labels"].copy()
        wrong[:, 0, 0] += 1
        return {"labels": wrong}

    parity = measure_parity(labels, one_wrong, batches(), "fp16", runtime="test")
    assert parity.agreement == pytest.approx(1 - 1 / 480) and parity.relative_error == 0


def test_int8_must_be_faster_than_fp32_and_the_refusal_says_how_fast_it_is():
    def slow(images):
        time.sleep(0.005)
        return logits_of(images)

    parity = measured(slow, "int8", baseline=logits_of)
    assert not parity.passed and "the speed of fp32" in parity.failures[0] and parity.speed_up < 1
    assert measured(logits_of, "int8", baseline=slow).passed


def test_the_line_for_a_person_says_when_it_failed():
    good, bad = measured(logits_of), measured(lambda images: {"logits": -logits_of(images)["logits"]})
    assert "agreement 100.00 %" in good.line() and "FAILED" not in good.line() and "FAILED" in bad.line()
