"""The dense CRF: a distribution at every pixel, indifferent to the order of labels, faithful to colour edges; the
same numbers as the library that the authors call."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from sccam.errors import BackendUnavailable, NumericError, ShapeError
from sccam.runtime import crf_portable, crf_pydensecrf
from sccam.stages.crf import DEEPLAB, IRN, PRESETS, PSA, CrfConfig, check_inputs, dense_crf

TOLERANCE = {
    "sum": 1e-5,  # single-precision softmax of up to 21 labels
    "order": 1e-4,  # another order of single-precision sums; each of 10 iterations multiplies the difference
}
needs_library = pytest.mark.skipif(find_spec("pydensecrf") is None, reason="pydensecrf is not installed")


def noisy_scene(height: int, width: int, labels: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vertical stripes of one colour a label, and scores that mark the stripes with much noise."""
    rng = np.random.default_rng(seed)
    stripe = np.broadcast_to(np.arange(width) * labels // width, (height, width))
    image = (rng.integers(0, 256, (labels, 3)))[stripe] + rng.integers(-4, 5, (height, width, 3))
    scores = 0.4 * (np.arange(labels)[:, None, None] == stripe) + 0.6 * rng.random((labels, height, width))
    return np.clip(image, 0, 255).astype(np.uint8), scores.astype(np.float32)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 5), (3, 2), (1, 6), (1, 1)])
@pytest.mark.parametrize("labels", [2, 3, 21])
def test_the_posterior_is_a_distribution_for_any_size(size, labels):
    image, scores = noisy_scene(size[0], size[1], labels)
    posterior = dense_crf(image, scores, PSA)
    assert posterior.shape == scores.shape
    assert posterior.dtype == np.float32
    assert np.isfinite(posterior).all()
    assert posterior.min() >= 0
    assert np.abs(posterior.sum(axis=0) - 1).max() <= TOLERANCE["sum"]


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_permuting_the_labels_commutes_with_the_crf(labels):
    image, scores = noisy_scene(15, 22, labels)
    order = np.random.default_rng(1).permutation(labels)
    direct = dense_crf(image, scores, PSA)[order]
    assert np.abs(dense_crf(image, scores[order], PSA) - direct).max() <= TOLERANCE["order"]


def test_without_iterations_the_posterior_is_the_normalised_score():
    image, scores = noisy_scene(6, 7)
    posterior = dense_crf(image, scores, CrfConfig(iterations=0))
    assert np.abs(posterior - scores / scores.sum(axis=0)).max() <= TOLERANCE["sum"]


def test_without_kernel_weights_iterations_change_nothing():
    image, scores = noisy_scene(6, 7)
    posterior = dense_crf(image, scores, CrfConfig(gaussian_compat=0.0, bilateral_compat=0.0))
    assert np.abs(posterior - scores / scores.sum(axis=0)).max() <= TOLERANCE["sum"]


@pytest.mark.parametrize("config", [PSA, IRN, DEEPLAB], ids=["psa", "irn", "deeplab"])
def test_noise_inside_a_colour_region_is_removed(config):
    image, scores = noisy_scene(40, 60)
    truth = np.broadcast_to(np.arange(60) * 3 // 60, (40, 60))
    before = (scores.argmax(axis=0) == truth).mean()
    after = (dense_crf(image, scores, config).argmax(axis=0) == truth).mean()
    assert before < 0.99 < after


def test_strided_arrays_give_the_same_posterior_as_copies():
    image, scores = noisy_scene(12, 20)
    mirrored = dense_crf(image[:, ::-1], scores[:, :, ::-1], PSA)
    assert np.array_equal(mirrored, dense_crf(image[:, ::-1].copy(), scores[:, :, ::-1].copy(), PSA))


def test_the_inputs_are_left_alone_and_repeats_agree():
    image, scores = noisy_scene(12, 20)
    image_before, scores_before = image.copy(), scores.copy()
    first, second = dense_crf(image, scores, PSA), dense_crf(image, scores, PSA)
    assert np.array_equal(first, second)
    assert np.array_equal(image, image_before)
    assert np.array_equal(scores, scores_before)


def test_scores_of_zero_and_double_precision_are_fine():
    image, scores = noisy_scene(6, 6)
    posterior = dense_crf(image, np.zeros_like(scores, dtype=np.float64), PSA)
    assert np.abs(posterior - 1 / 3).max() <= TOLERANCE["order"]


def test_a_single_label_is_certain():
    image, scores = noisy_scene(4, 5, 1)
    assert np.array_equal(dense_crf(image, scores, PSA), np.ones((1, 4, 5), np.float32))


def test_the_presets_are_the_authors_numbers():
    numbers = {
        name: (c.iterations, c.gaussian_sxy, c.gaussian_compat, c.bilateral_sxy, c.bilateral_srgb, c.bilateral_compat)
        for name, c in PRESETS.items()
    }
    assert numbers == {"psa": (10, 3, 3, 80, 13, 10), "irn": (10, 3, 3, 50, 5, 10), "deeplab": (10, 1, 3, 67, 3, 4)}


@needs_library
@pytest.mark.parametrize("size", [(24, 32), (25, 33), (26, 33), (27, 33), (1, 6), (1, 1), (1, 700)])
@pytest.mark.parametrize("labels", [2, 3, 21])
def test_the_posterior_is_that_of_pydensecrf_for_any_number_of_pixels_modulo_four(size, labels):
    image, scores = noisy_scene(size[0], size[1], labels)
    image[: size[0] // 2] = 255 - image[: size[0] // 2]
    ((expected,),) = crf_pydensecrf.dense_crfs([image], [[scores]])
    found = dense_crf(image, scores)
    assert np.abs(found - expected).max() <= TOLERANCE["order"]
    assert np.abs(found - scores / scores.sum(axis=0)).max() > 0.01  # the kernels did something


@needs_library
@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_every_preset_gives_pydensecrfs_posterior(config):
    image, scores = noisy_scene(31, 41, 4)
    ((expected,),) = crf_pydensecrf.dense_crfs([image], [[scores]], config)
    assert np.abs(dense_crf(image, scores, config) - expected).max() <= TOLERANCE["order"]


def test_the_portable_row_gives_every_unary_its_own_posterior():
    image, scores = noisy_scene(12, 15, 4)
    other, one = noisy_scene(9, 10, 2)
    batch = crf_portable.dense_crfs([image, other, image], [[scores, scores[:2]], [one], []], IRN)
    assert [len(posteriors) for posteriors in batch] == [2, 1, 0]
    assert np.array_equal(batch[0][0], dense_crf(image, scores, IRN))
    assert np.array_equal(batch[0][1], dense_crf(image, scores[:2], IRN))
    assert np.array_equal(batch[1][0], dense_crf(other, one, IRN))


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "sccam\[crf\]"'):
        crf_pydensecrf.dense_crfs([noisy_scene(4, 4)[0]], [[noisy_scene(4, 4)[1]]])


def test_wrong_inputs_are_refused_with_their_shapes():
    image, scores = noisy_scene(6, 8)
    with pytest.raises(ShapeError, match="upsample the scores first"):
        dense_crf(image, scores[:, ::2], PSA)
    with pytest.raises(ShapeError, match="expected uint8"):
        dense_crf(image.astype(np.float32), scores, PSA)
    with pytest.raises(ShapeError, match="expected uint8"):
        dense_crf(image[..., 0], scores, PSA)


def test_empty_inputs_are_refused():
    image, scores = noisy_scene(6, 8)
    with pytest.raises(ShapeError, match="at least one pixel"):
        dense_crf(image[:0], scores[:, :0], PSA)
    with pytest.raises(ShapeError, match="no label"):
        dense_crf(image, scores[:0], PSA)
    with pytest.raises(ShapeError, match="1 images, but scores for 2"):
        check_inputs([image], [[scores], [scores]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_are_refused(value):
    image, scores = noisy_scene(6, 8)
    scores[1, 2, 3] = value
    with pytest.raises(NumericError, match="NaN or infinity"):
        dense_crf(image, scores, PSA)


@pytest.mark.parametrize("config", [CrfConfig(gaussian_sxy=1e-6), CrfConfig(bilateral_srgb=0.01)], ids=["sxy", "srgb"])
def test_a_range_too_small_for_the_lattice_is_refused(config):
    image, scores = noisy_scene(6, 8)
    with pytest.raises(ShapeError, match="larger"):
        dense_crf(image, scores, config)
