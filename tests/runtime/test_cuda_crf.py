"""The GPU's dense CRF, run on the CPU: pydensecrf's numbers for every size and label count, the same bits each time."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from sccam.errors import NumericError, ResourceError, ShapeError
from sccam.runtime import crf_lattice
from sccam.runtime.crf_cupy import dense_crfs
from sccam.stages.crf import DEEPLAB, IRN, PSA, CrfConfig, dense_crf
from tests.gpu.make_golden import CASES, read_golden
from tests.runtime.cuda_cases import ERROR, crf_scores, difference, photo
from tests.runtime.cuda_shim.device import ShimDevice

needs_library = pytest.mark.skipif(find_spec("pydensecrf") is None, reason="pydensecrf is not installed")
SOFT = CrfConfig(gaussian_compat=0.4, bilateral_compat=0.6)  # posteriors stay far from 0 and 1
SIZES = [(12, 16), (13, 15), (9, 10), (5, 5), (1, 6), (1, 1), (3, 2)]  # all remainders of N modulo 4


@needs_library
@pytest.mark.parametrize("config", [PSA, IRN, DEEPLAB, SOFT], ids=["psa", "irn", "deeplab", "soft"])
@pytest.mark.parametrize("labels", [2, 3, 21])
def test_a_ragged_batch_equals_pydensecrf(device, config, labels):
    # Undecided scores under strong weights: ten iterations would make 1e-3 of a perturbation of 1e-7, three do not.
    config = config if config is SOFT else replace(config, iterations=3)
    images = [photo(*size, seed=n) for n, size in enumerate(SIZES)]
    scores = [[crf_scores(*size, labels, seed=n)] for n, size in enumerate(SIZES)]
    for image, (one,), (found,) in zip(images, scores, dense_crfs(images, scores, config, device=device), strict=True):
        expected = dense_crf(image, one, config)
        assert difference(found, expected) <= ERROR["crf"]
        assert np.array_equal(found.argmax(axis=0), expected.argmax(axis=0))


@needs_library
@pytest.mark.parametrize("config", [PSA, IRN, DEEPLAB], ids=["psa", "irn", "deeplab"])
def test_ten_iterations_on_scores_that_follow_the_image_equal_pydensecrf(device, config):
    image, scores = photo(37, 43), crf_scores(37, 43, 4)
    scores *= 0.3
    scores[image[..., 0] // 64, np.arange(37)[:, None], np.arange(43)] += 0.6
    ((found,),) = dense_crfs([image], [[scores]], config, device=device)
    assert difference(found, dense_crf(image, scores, config)) <= ERROR["crf"]


@needs_library
@pytest.mark.parametrize("name", CASES)
def test_stored_posteriors_are_those_of_pydensecrf(name):
    image, scores, config, posterior = read_golden(name)
    assert difference(dense_crf(image, scores, config), posterior) <= ERROR["crf"]


@pytest.mark.parametrize("name", CASES)
def test_posteriors_equal_the_stored_ones_of_pydensecrf(device, name):
    image, scores, config, posterior = read_golden(name)
    ((found,),) = dense_crfs([image], [[scores]], config, device=device)
    assert difference(found, posterior) <= ERROR["crf"]


@needs_library
def test_vertices_of_padding_pixels_count(device, monkeypatch):
    """pydensecrf pads to four pixels with zeros; in this image of 30 pixels the blur passes through their vertices."""
    image, scores = np.full((5, 6, 3), 12, np.uint8), crf_scores(5, 6, 3)
    config = CrfConfig(bilateral_srgb=12.54, bilateral_sxy=17.57, bilateral_compat=3.0, gaussian_compat=0.1)
    expected = dense_crf(image, scores, config)
    ((found,),) = dense_crfs([image], [[scores]], config, device=device)
    monkeypatch.setattr(crf_lattice, "PADDED_TO", 1)  # no padding
    ((without,),) = dense_crfs([image], [[scores]], config, device=device)
    assert difference(found, expected) <= ERROR["crf"]
    assert difference(without, expected) > 10 * ERROR["crf"]


@needs_library
@pytest.mark.parametrize("labels", [5, 37])
def test_rows_with_many_pixels_equal_pydensecrf(device, labels):
    image = np.full((41, 53, 3), 90, np.uint8)  # one colour: some vertices gather hundreds of pixels
    image[30:, 20:] = 180
    scores = crf_scores(41, 53, labels)
    ((found,),) = dense_crfs([image], [[scores]], SOFT, device=device)
    assert difference(found, dense_crf(image, scores, SOFT)) <= ERROR["crf"]


@needs_library
def test_a_table_that_is_too_small_is_replaced(device):
    image, scores = photo(20, 22, noise=120), crf_scores(20, 22, 2)
    config = CrfConfig(gaussian_compat=0.5, bilateral_sxy=2.0, bilateral_srgb=2.0)  # nearly six vertices a pixel
    ((found,),) = dense_crfs([image], [[scores]], config, device=device)
    assert difference(found, dense_crf(image, scores, config)) <= ERROR["crf"]


@needs_library
def test_the_next_batch_of_the_same_sizes_is_right_too(device):
    scores = [[crf_scores(16, 18, 3)], [crf_scores(11, 13, 5)]]
    # Few colours, then many, so that buffers grow; then few again, so that they are too large.
    for noise in (0, 100, 5, 60):
        images = [photo(16, 18, noise, noise), photo(11, 13, noise + 1, noise)]
        found = dense_crfs(images, scores, SOFT, device=device)
        for image, (one,), (posterior,) in zip(images, scores, found, strict=True):
            assert difference(posterior, dense_crf(image, one, SOFT)) <= ERROR["crf"]


def test_unaries_of_one_image_do_not_touch_each_other(device):
    image = photo(14, 17)
    unaries = [crf_scores(14, 17, labels, seed=labels) for labels in (3, 1, 21, 4)]
    (together,) = dense_crfs([image], [unaries], PSA, device=device)
    for unary, posterior in zip(unaries, together, strict=True):
        ((alone,),) = dense_crfs([image], [[unary]], PSA, device=device)
        assert np.array_equal(alone, posterior)


def test_results_depend_on_neither_the_batch_nor_the_order_of_threads(device, kernel_folder):
    images = [photo(*size, seed=n) for n, size in enumerate(SIZES)]
    scores = [[crf_scores(*size, 2 + n)] * (1 + n % 2) for n, size in enumerate(SIZES)]
    together = dense_crfs(images, scores, SOFT, device=device)
    for seed in (1, 2):
        other = ShimDevice(kernel_folder, seed=seed)
        turned = dense_crfs(images[::-1], scores[::-1], SOFT, device=other)[::-1]
        alone = [dense_crfs([image], [each], SOFT, device=other)[0] for image, each in zip(images, scores, strict=True)]
        for whole, back, one in zip(together, turned, alone, strict=True):
            assert all(map(np.array_equal, whole, back))
            assert all(map(np.array_equal, whole, one))
    again = dense_crfs(images, scores, SOFT, device=device)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(again, together, strict=True))


def test_the_posterior_is_a_distribution(device):
    ((found,),) = dense_crfs([photo(20, 31)], [[crf_scores(20, 31, 6)]], PSA, device=device)
    assert found.min() >= 0
    assert np.abs(found.sum(axis=0) - 1).max() <= 1e-6  # six roundings


def test_without_iterations_the_posterior_is_the_normalised_score(device):
    scores = crf_scores(6, 7, 3) + 0.1
    ((found,),) = dense_crfs([photo(6, 7)], [[scores]], CrfConfig(iterations=0), device=device)
    clipped = np.clip(scores, 1e-5, 1)
    assert difference(found, clipped / clipped.sum(axis=0)) <= 1e-6  # a logarithm and its exponential


def test_one_label_is_certain_and_no_unary_gives_no_posterior(device):
    image = photo(5, 6)
    found = dense_crfs([image, image], [[np.full((1, 5, 6), 0.3, np.float32)], []], PSA, device=device)
    assert (found[0][0] == 1).all()
    assert found[1] == []
    assert dense_crfs([], [], PSA, device=device) == []


def test_tensors_are_taken_as_they_are(device):
    image, scores = photo(8, 9), crf_scores(8, 9, 3)
    ((found,),) = dense_crfs([torch.as_tensor(image)], [[torch.as_tensor(scores)]], PSA, device=device)
    ((expected,),) = dense_crfs([image], [[scores]], PSA, device=device)
    assert np.array_equal(found, expected)


def test_a_range_too_small_for_the_lattice_is_an_error_not_a_wrong_answer(device):
    image, scores = photo(8, 9), crf_scores(8, 9, 3)
    with pytest.raises(ShapeError, match=r"80 px and 0\.05 grey levels, are too small"):
        dense_crfs([image], [[scores]], CrfConfig(bilateral_srgb=0.05), device=device)
    ((found,),) = dense_crfs([image], [[scores]], PSA, device=device)  # the device still works
    assert np.isfinite(found).all()


def test_a_full_device_halves_the_batch(device, kernel_folder):
    images, scores = [photo(16, 16, n) for n in range(4)], [[crf_scores(16, 16, 3, n)] for n in range(4)]
    expected = dense_crfs(images, scores, PSA, device=device)
    small = ShimDevice(kernel_folder, room=600_000)  # room for one or two of the four
    found = dense_crfs(images, scores, PSA, device=small)
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(found, expected, strict=True))
    with pytest.raises(ResourceError, match="no room for one image"):
        dense_crfs(images, scores, PSA, device=ShimDevice(kernel_folder, room=1000))


def test_wrong_crf_input_is_named(device):
    image, scores = photo(5, 6), crf_scores(5, 6, 3)
    with pytest.raises(ShapeError, match=r"image is float32 \(5, 6, 3\), expected uint8"):
        dense_crfs([image.astype(np.float32)], [[scores]], PSA, device=device)
    with pytest.raises(ShapeError, match=r"scores have shape \(3, 6, 5\), the image \(5, 6\)"):
        dense_crfs([image], [[scores.transpose(0, 2, 1)]], PSA, device=device)
    with pytest.raises(ShapeError, match="2 images, 1 lists"):
        dense_crfs([image, image], [[scores]], PSA, device=device)
    with pytest.raises(ShapeError, match="one call takes 256"):
        dense_crfs([image], [[np.ones((254, 5, 6), np.float32)] * 5], PSA, device=device)
    bad = scores.copy()
    bad[0, 0, 0] = np.nan
    ((expected,),) = dense_crfs([image], [[scores]], PSA, device=device)
    with pytest.raises(NumericError, match="NaN or infinity"):
        dense_crfs([image], [[bad]], PSA, device=device)
    ((found,),) = dense_crfs([image], [[scores]], PSA, device=device)  # no trace of the NaN in the plan's buffers
    assert np.array_equal(found, expected)
