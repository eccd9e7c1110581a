"""Seeds from a threshold, alpha from a threshold, and rules that find it without masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccam.errors import ConfigError, ShapeError
from sccam.stages.threshold import (
    RULES,
    THRESHOLDS,
    ThresholdConfig,
    alpha_of,
    choose_threshold,
    colour_contrast,
    seed_labels,
    threshold_of,
)
from sccam.stages.walk import background_score
from sccam.structures import ActivationMap

TOLERANCE = {
    "table": 5e-4,  # the published table has three decimals
    "alpha table": 0.05,  # and one decimal for alpha
    "inverse": 1e-9,  # root finding in double precision
    "definition": 1e-6,  # single-precision colours and scores, summed in another order
    "candidates": 0.02,  # thresholds are tried in steps of 0.01
    "near": 0.06,  # the disc below is blurred over about this range of scores
}


def disc(height: int = 48, width: int = 64, seed: int = 0, radius: float = 14) -> tuple[np.ndarray, np.ndarray]:
    """A map that falls off from a centre and reaches 0.4 at the rim of a bright disc on a dark, noisy ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    distance = np.hypot(y - rng.integers(20, 28), x - rng.integers(24, 40))
    highest = np.clip(1 - 0.6 * distance / radius, 0, 1).astype(np.float32)
    image = np.where(distance[..., None] < radius, [200, 120, 60], [40, 60, 80]) + rng.integers(
        -20, 21, (height, width, 3)
    )
    return highest, image.astype(np.uint8)


@pytest.mark.parametrize(("alpha", "threshold"), [(4, 0.276), (8, 0.188), (16, 0.123), (24, 0.094), (32, 0.077)])
def test_alpha_and_threshold_match_the_published_table(alpha, threshold):
    assert threshold_of(alpha) == pytest.approx(threshold, abs=TOLERANCE["table"])


@pytest.mark.parametrize(("threshold", "alpha"), [(0.15, 11.7), (0.20, 7.2), (0.25, 4.8)])
def test_threshold_and_alpha_match_the_published_table(threshold, alpha):
    assert alpha_of(threshold) == pytest.approx(alpha, abs=TOLERANCE["alpha table"])


@given(st.floats(0.001, 0.999))
def test_alpha_and_threshold_are_inverse(threshold):
    assert threshold_of(alpha_of(threshold)) == pytest.approx(threshold, abs=TOLERANCE["inverse"])


def test_the_background_score_crosses_a_class_exactly_at_the_threshold():
    scores = np.linspace(0, 1, 1001, dtype=np.float32).reshape(1, 1, -1)
    by_alpha = background_score(scores, alpha_of(0.2305)) < scores[0]
    assert np.array_equal(by_alpha, scores[0] > 0.2305)


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 1.5])
def test_a_threshold_outside_the_open_interval_has_no_alpha(value):
    with pytest.raises(ConfigError, match="strictly between 0 and 1"):
        alpha_of(value)


def test_an_alpha_that_is_not_positive_has_no_threshold():
    with pytest.raises(ConfigError, match="positive"):
        threshold_of(0.0)


def test_seeds_take_the_highest_class_and_ties_go_to_background():
    scores = np.array([[[0.1, 0.5, 0.3, 0.2]], [[0.0, 0.2, 0.6, 0.0]]], np.float32)
    labels = seed_labels(ActivationMap(scores, np.array([2, 6], np.int32)), 0.2)
    assert labels.tolist() == [[0, 3, 7, 0]]
    assert labels.dtype == np.uint8


def test_an_image_without_classes_is_background():
    empty = ActivationMap(np.zeros((0, 3, 4), np.float32), np.zeros(0, np.int32))
    assert not seed_labels(empty, 0.15).any()


@pytest.mark.parametrize("rule", ["contrast", "edges"])
def test_rules_that_see_colours_find_the_rim_of_a_disc(rule):
    threshold = choose_threshold([disc(seed=k) for k in range(4)], ThresholdConfig(rule=rule))
    assert threshold == pytest.approx(0.4, abs=TOLERANCE["near"])


def test_otsu_separates_two_levels_in_their_middle():
    highest = np.full((20, 20), 0.1, np.float32)
    highest[5:12, 5:12] = 0.7
    threshold = choose_threshold([(highest, np.zeros((20, 20, 3), np.uint8))], ThresholdConfig(rule="otsu"))
    assert threshold == pytest.approx(0.4, abs=TOLERANCE["candidates"])


def test_otsu_equals_its_definition():
    highest, image = disc()
    merit = RULES["otsu"]([(highest, image)])
    values = highest.ravel().astype(float)
    for s, found in zip(THRESHOLDS[::9], merit[::9], strict=True):
        below, above = values[values <= s], values[values > s]
        expected = len(below) * len(above) / len(values) * (below.mean() - above.mean()) ** 2
        assert found == pytest.approx(expected, rel=TOLERANCE["definition"])


def test_contrast_equals_its_definition():
    highest, image = disc()
    merit = RULES["contrast"]([(highest, image)])
    colours, scores = image.reshape(-1, 3).astype(float), highest.ravel()
    total = np.square(colours - colours.mean(axis=0)).sum()
    for s, found in zip(THRESHOLDS[::9], merit[::9], strict=True):
        below, above = colours[scores <= s], colours[scores > s]
        gap = np.square(below.mean(axis=0) - above.mean(axis=0)).sum()
        assert found == pytest.approx(len(below) * len(above) / len(scores) * gap / total, rel=TOLERANCE["definition"])


def test_colour_contrast_is_taken_where_the_rule_puts_the_threshold():
    pairs = [disc(seed=k) for k in range(4)]
    merit, config = RULES["contrast"](iter(pairs)), ThresholdConfig("otsu_contrast")
    chosen = choose_threshold(pairs, config)
    assert colour_contrast(pairs, config) == pytest.approx(merit[np.flatnonzero(THRESHOLDS == chosen)[0]])
    assert colour_contrast(pairs, ThresholdConfig("fixed", 0.3)) == pytest.approx(merit[THRESHOLDS.tolist().index(0.3)])
    shuffled = [(np.random.default_rng(0).permuted(highest), image) for highest, image in pairs]
    assert colour_contrast(shuffled, config) < 0.01 < 0.5 < colour_contrast(pairs, config)
    with pytest.raises(ShapeError):
        colour_contrast([(pairs[0][0][1:], pairs[0][1])], config)


def test_the_two_together_choose_between_what_each_would():
    pairs = [disc(seed=k) for k in range(4)]
    first, second = RULES["otsu"](iter(pairs)), RULES["contrast"](iter(pairs))
    together = RULES["otsu_contrast"](iter(pairs))
    assert together == pytest.approx(first / first.max() * second / second.max())
    alone = sorted(choose_threshold(pairs, ThresholdConfig(rule=rule)) for rule in ("otsu", "contrast"))
    assert alone[0] <= choose_threshold(pairs, ThresholdConfig(rule="otsu_contrast")) <= alone[1]


def test_edges_equals_its_definition():
    highest, image = disc(40, 48)
    merit = RULES["edges"]([(highest, image)])
    colours = image.astype(float)
    pairs = [((y, x), (y + dy, x + dx)) for dy, dx in ((1, 0), (0, 1)) for y in range(40 - dy) for x in range(48 - dx)]
    mean = np.mean([np.linalg.norm(colours[i] - colours[j]) for i, j in pairs])
    for s, found in zip(THRESHOLDS[::19], merit[::19], strict=True):
        cut = [np.linalg.norm(colours[i] - colours[j]) for i, j in pairs if (highest[i] > s) != (highest[j] > s)]
        assert found == pytest.approx(np.mean(cut) / mean, rel=TOLERANCE["definition"])


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_order_of_images_does_not_matter(rule):
    maps = [disc(seed=k) for k in range(5)]
    config = ThresholdConfig(rule=rule)
    assert choose_threshold(iter(maps), config) == choose_threshold(maps[::-1], config)


@pytest.mark.parametrize("rule", sorted(RULES))
def test_nothing_to_choose_by_gives_the_fixed_threshold(rule):
    config = ThresholdConfig(rule=rule, fixed=0.2)
    grey = np.full((6, 8, 3), 90, np.uint8)
    flat = np.zeros((6, 8), np.float32)
    assert choose_threshold([], config) == 0.2
    assert choose_threshold([(flat, grey), (flat + 1, grey)][:1], config) == 0.2
    assert choose_threshold([(np.ones((1, 1), np.float32), grey[:1, :1])], config) == 0.2


@pytest.mark.parametrize("rule", ["contrast", "otsu_contrast", "edges"])
def test_images_of_one_colour_say_nothing_about_a_threshold(rule):
    highest, image = disc()
    config = ThresholdConfig(rule=rule)
    assert choose_threshold([(highest, image * 0 + 7)], config) == config.fixed
    assert choose_threshold([(highest, image), (highest, image * 0)], config) == choose_threshold(
        [(highest, image)], config
    )


@pytest.mark.parametrize("rule", sorted(RULES))
def test_images_may_have_different_sizes(rule):
    assert 0 < choose_threshold([disc(48, 64), disc(50, 70, seed=1)], ThresholdConfig(rule=rule)) < 1


def test_the_fixed_rule_reads_no_map():
    def never():
        raise AssertionError("read")
        yield

    assert choose_threshold(never(), ThresholdConfig(rule="fixed", fixed=0.3)) == 0.3


def test_every_rule_is_a_choice_of_the_config():
    choices = ThresholdConfig.__dataclass_fields__["rule"].metadata["choices"]
    assert set(choices) == {"fixed", *RULES}


def test_an_unknown_rule_lists_the_known_ones():
    with pytest.raises(ConfigError, match="fixed, otsu, contrast, otsu_contrast, edges"):
        choose_threshold([], ThresholdConfig(rule="median"))


def test_a_map_and_image_of_different_size_are_refused():
    highest, image = disc()
    with pytest.raises(ShapeError, match="shrink the image"):
        choose_threshold([(highest, image[::2])], ThresholdConfig())
