"""The compiled dense CRF gives the posteriors of the paper form and of pydensecrf, on every instruction set."""

from importlib.util import find_spec

import numpy as np
import pytest

from sccam.errors import NumericError, ShapeError
from sccam.runtime import crf_pydensecrf, native
from sccam.runtime.crf_native import dense_crfs
from sccam.stages.crf import DEEPLAB, IRN, PSA, CrfConfig, dense_crf

CLOSE = 1e-4  # single-precision sums in another order; each of 10 iterations multiplies the difference
SETS = native.available()
pytestmark = pytest.mark.skipif(not SETS, reason="the kernels are not compiled")
needs_library = pytest.mark.skipif(find_spec("pydensecrf") is None, reason="pydensecrf is not installed")
every_way = pytest.mark.parametrize(
    ("instruction_set", "threads"), [(name, count) for name in SETS for count in (1, 2)]
)


def scene(height, width, labels, seed=0):
    """Blocks of colours with noise, and scores that mark some of them, with much noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width))
    block = (rows // 9 + columns // 11 * 3) % 7
    image = rng.integers(0, 256, (7, 3))[block] + rng.integers(-12, 13, (height, width, 3))
    scores = 0.3 * (np.arange(labels)[:, None, None] == block % labels) + 0.7 * rng.random((labels, height, width))
    return np.clip(image, 0, 255).astype(np.uint8), scores.astype(np.float32)


def one(image, scores, config=PSA, **how):
    ((posterior,),) = dense_crfs([image], [[scores]], config, **how)
    return posterior


def distance(found, expected):
    return np.abs(found - expected).max()


@every_way
@pytest.mark.parametrize(("height", "width"), [(36, 44), (35, 43), (34, 45), (37, 43)])  # 0, 1, 2, 3 pixels modulo 4
def test_posteriors_are_the_paper_forms(height, width, instruction_set, threads):
    for labels in (2, 3, 21):
        image, scores = scene(height, width, labels)
        found = one(image, scores, instruction_set=instruction_set, threads=threads)
        assert distance(found, dense_crf(image, scores)) <= CLOSE
        assert distance(found, scores / scores.sum(axis=0)) > 0.1  # the kernels did something


@every_way
@needs_library
@pytest.mark.parametrize("config", [PSA, IRN, DEEPLAB], ids=["psa", "irn", "deeplab"])
def test_posteriors_are_pydensecrfs(config, instruction_set, threads):
    image, scores = scene(67, 91, 5)
    ((expected,),) = crf_pydensecrf.dense_crfs([image], [[scores]], config)
    found = one(image, scores, config, instruction_set=instruction_set, threads=threads)
    assert distance(found, expected) <= CLOSE
    assert (found.argmax(axis=0) == expected.argmax(axis=0)).mean() >= 0.9999


@every_way
@needs_library
def test_the_points_at_the_origin_that_fill_up_fours_count(instruction_set, threads):
    """Nine dark pixels: without the vertices around colour (0, 0, 0) at (0, 0) the posterior differs by 0.06."""
    rng = np.random.default_rng(9)
    image, scores = rng.integers(0, 40, (3, 3, 3)).astype(np.uint8), rng.random((3, 3, 3)).astype(np.float32)
    config = CrfConfig(iterations=3, gaussian_compat=0, bilateral_compat=3)
    ((expected,),) = crf_pydensecrf.dense_crfs([image], [[scores]], config)
    assert distance(one(image, scores, config, instruction_set=instruction_set, threads=threads), expected) <= CLOSE
    assert distance(dense_crf(image, scores, config), expected) <= CLOSE


@every_way
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (1, 5000), (5000, 1), (16, 16), (17, 1), (33, 15)])
def test_any_size_of_image_is_the_paper_forms(height, width, instruction_set, threads):
    image, scores = scene(height, width, 3)
    assert (
        distance(one(image, scores, instruction_set=instruction_set, threads=threads), dense_crf(image, scores))
        <= CLOSE
    )


@every_way
def test_any_number_of_labels_is_the_paper_forms(instruction_set, threads):
    for labels in (1, 2, 4, 5, 7, 8, 9, 13, 16, 17, 32, 33, 48, 49, 64, 65, 255):
        image, scores = scene(11, 13, labels)
        found = one(image, scores, instruction_set=instruction_set, threads=threads)
        assert distance(found, dense_crf(image, scores)) <= CLOSE, labels
        assert distance(found.sum(axis=0), 1) <= 1e-5, labels
        assert found.min() >= 0


@every_way
@pytest.mark.parametrize(
    "labels", [(3, 3), (2, 5, 1), (2, 2, 2, 2, 2), (3,) * 6, (20, 8), (21, 3), (40, 17, 2), (1, 1)], ids=str
)
def test_unaries_of_one_image_do_not_touch_each_other(labels, instruction_set, threads):
    image, _ = scene(23, 30, 2)
    unaries = [scene(23, 30, count, seed)[1] for seed, count in enumerate(labels)]
    (together,) = dense_crfs([image], [unaries], instruction_set=instruction_set, threads=threads)
    assert [posterior.shape for posterior in together] == [unary.shape for unary in unaries]
    for posterior, unary in zip(together, unaries, strict=True):
        assert distance(posterior, one(image, unary, instruction_set=instruction_set, threads=threads)) <= CLOSE


@pytest.mark.parametrize("threads", [1, 2, 9])  # with nine, two images at once
@pytest.mark.parametrize("instruction_set", SETS)
def test_an_images_posterior_does_not_depend_on_the_batch(instruction_set, threads):
    how = {"instruction_set": instruction_set, "threads": threads}
    scenes = [scene(30, 40, 3, 1), scene(41, 37, 21, 2), scene(30, 40, 3, 3), scene(5, 9, 2, 4), scene(19, 64, 4, 5)]
    images, scores = [image for image, _ in scenes], [[unary, unary[:2]] for _, unary in scenes]
    for count in (1, 2, 5):
        for batch, (image, unaries) in zip(
            dense_crfs(images[:count], scores[:count], **how), zip(images, scores, strict=True), strict=False
        ):
            (alone,) = dense_crfs([image], [unaries], **how)
            assert all(np.array_equal(a, b) for a, b in zip(batch, alone, strict=True))


@every_way
def test_repeats_agree_to_the_bit(instruction_set, threads):
    image, scores = scene(50, 70, 4)
    first = one(image, scores, instruction_set=instruction_set, threads=threads)
    assert np.array_equal(first, one(image, scores, instruction_set=instruction_set, threads=threads))


@every_way
@pytest.mark.parametrize("config", [CrfConfig(iterations=0), CrfConfig(gaussian_compat=0, bilateral_compat=0)])
def test_without_iterations_or_weights_the_posterior_is_the_normalised_score(
    config, instruction_set, threads, tolerance
):
    image, scores = scene(20, 21, 6)
    scores = np.maximum(scores, 1e-3)  # above the floor of scores
    found = one(image, scores, config, instruction_set=instruction_set, threads=threads)
    assert distance(found, scores / scores.sum(axis=0)) <= tolerance["float32"]


@every_way
@pytest.mark.parametrize("labels", [3, 21])
def test_permuting_the_labels_commutes_with_the_crf(labels, instruction_set, threads):
    image, scores = scene(24, 25, labels)
    order = np.random.default_rng(1).permutation(labels)
    how = {"instruction_set": instruction_set, "threads": threads}
    assert distance(one(image, scores[order], **how), one(image, scores, **how)[order]) <= CLOSE


def test_mirroring_nearly_commutes_with_the_crf():
    """Only nearly: the lattice is not symmetric, so a mirrored image has other vertices and another approximation."""
    image, scores = scene(60, 80, 3)
    mirrored = one(image[:, ::-1], scores[:, :, ::-1])[:, :, ::-1]
    direct = one(image, scores)
    assert (mirrored.argmax(axis=0) == direct.argmax(axis=0)).mean() > 0.97
    assert np.abs(mirrored - direct).mean() < 0.05 < np.abs(direct - scores / scores.sum(axis=0)).mean()


def test_kernels_of_other_positions_are_not_mixed_up():
    image, scores = scene(24, 30, 3)
    tall, tall_scores = scene(30, 24, 3)
    for _ in range(2):  # the second time from the cache
        assert distance(one(image, scores), dense_crf(image, scores)) <= CLOSE
        assert distance(one(tall, tall_scores), dense_crf(tall, tall_scores)) <= CLOSE
        assert distance(one(image, scores, DEEPLAB), dense_crf(image, scores, DEEPLAB)) <= CLOSE


def test_large_weights_do_not_overflow():
    image, scores = scene(20, 20, 3)
    config = CrfConfig(gaussian_compat=500.0, bilateral_compat=1000.0)
    assert distance(one(image, scores, config).sum(axis=0), 1) <= 1e-5


def test_strided_read_only_and_double_inputs_are_left_alone():
    image, scores = scene(20, 26, 3)
    wide = np.repeat(scores.astype(np.float64), 2, axis=2)
    image.setflags(write=False)
    wide.setflags(write=False)
    assert np.array_equal(one(image, wide[:, :, ::2]), one(image, scores))
    assert np.array_equal(one(image[:, ::-1], scores[:, ::-1]), one(image[:, ::-1].copy(), scores[:, ::-1].copy()))


def test_nothing_in_gives_nothing_out():
    image, _ = scene(4, 4, 2)
    assert dense_crfs([], []) == []
    assert dense_crfs([image, image], [[], []]) == [[], []]


BAD = {
    "float image": (lambda image, scores: (image.astype(np.float32), scores), ShapeError, "expected uint8"),
    "grey image": (lambda image, scores: (image[..., 0], scores), ShapeError, "expected uint8"),
    "four channels": (lambda image, scores: (np.dstack([image, image])[..., :4], scores), ShapeError, "expected uint8"),
    "no pixels": (lambda image, scores: (image[:0], scores[:, :0]), ShapeError, "at least one pixel"),
    "no labels": (lambda image, scores: (image, scores[:0]), ShapeError, "no label"),
    "other size": (lambda image, scores: (image, scores[:, 1:]), ShapeError, "upsample the scores first"),
    "flat scores": (lambda image, scores: (image, scores[0]), ShapeError, "upsample the scores first"),
    "nan": (lambda image, scores: (image, scores * np.float32(np.nan)), NumericError, "NaN or infinity"),
    "infinity": (lambda image, scores: (image, scores + np.float32(np.inf)), NumericError, "NaN or infinity"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_inputs_are_refused_in_words(bad):
    spoil, error, words = BAD[bad]
    image, scores = spoil(*scene(6, 8, 3))
    with pytest.raises(error, match=words):
        one(image, scores)


def test_a_batch_of_another_length_than_its_scores_is_refused():
    image, scores = scene(6, 8, 3)
    with pytest.raises(ShapeError, match="2 images, but scores for 1"):
        dense_crfs([image, image], [[scores]])


@every_way
@pytest.mark.parametrize(
    "config",
    [
        CrfConfig(gaussian_sxy=1e-6),
        CrfConfig(bilateral_sxy=1e-3),
        CrfConfig(bilateral_srgb=1e-3),
        CrfConfig(bilateral_srgb=1e-30),
        CrfConfig(gaussian_sxy=0.0),
    ],
    ids=str,
)
def test_a_range_too_small_for_the_keys_is_refused_and_the_next_call_works(config, instruction_set, threads):
    image, scores = scene(31, 33, 3)
    how = {"instruction_set": instruction_set, "threads": threads}
    with pytest.raises(ShapeError, match="larger"):
        one(image, scores, config, **how)
    assert distance(one(image, scores, **how).sum(axis=0), 1) <= 1e-5
