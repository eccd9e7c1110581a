"""What holds for every input, of every row of the backend table that this machine has; and a short run of the fuzzer.

The rows are compared with the paper forms elsewhere; here is the mathematics that all of them owe.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sccam.data.transforms import brought_to, pad_to_multiple, resize
from sccam.labels.polygons import filled, polygons, regions
from sccam.runtime.backends import TABLE, missing, row
from sccam.stages.affinity import pair_loss
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.cam import CamConfig, activation_map
from sccam.stages.crf import CrfConfig
from sccam.stages.walk import BORDERS, WalkConfig, pair_windows, transition
from sccam.structures import AffinityField
from tests.conftest import TOLERANCE
from tests.faults import fuzz
from tests.faults.conftest import Tally
from tests.faults.test_data import examples

SUMS = 1e-5  # of a few hundred numbers in [0, 1], in single precision
WALKED = 5e-5  # of up to 256 steps; the form that takes fewer leaves out 1e-6 of the range
ITERATED = 2e-4  # of up to ten iterations of a mean field, each through an exponential and the lattice

KINDS = ("any", "zero", "one", "tiny", "corners", "nearly equal")


def rows_of(work: str) -> list[str]:
    """The rows of one work that this machine has."""
    return [name for name in TABLE[work] if missing(name) is None]


def numbers(rng: np.random.Generator, shape: Sequence[int], kind: str) -> np.ndarray:
    """Single precision in [0, 1], of a kind that may be hard to compute with."""
    drawn = rng.random(shape)
    values = {
        "any": drawn, "zero": 0 * drawn, "one": 0 * drawn + 1, "tiny": drawn * 1e-30,
        "corners": drawn.round(), "nearly equal": 0.5 + 1e-6 * drawn,
    }[kind]  # fmt: skip
    return np.ascontiguousarray(values, np.float32)


def field_of(rng: np.random.Generator, grid: tuple[int, int], kind: str, radius: int = 3) -> AffinityField:
    """Affinities of an image, 0 where the second cell lies outside."""
    offsets = neighbour_offsets(radius)
    values = np.zeros((len(offsets), *grid), np.float32)
    for r, (dy, dx) in enumerate(offsets.tolist()):
        here, _ = pair_windows(*grid, (dy, dx), offsets, "clean")
        values[r][here] = numbers(rng, values[r][here].shape, kind)
    return AffinityField(values, offsets, 8)


grids = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**32 - 1)
kinds = st.sampled_from(KINDS)


def near(found: np.ndarray, expected: np.ndarray, by: float) -> bool:
    """Whether no number differs by more."""
    return found.shape == expected.shape and (found.size == 0 or float(np.abs(found - expected).max()) <= by)


def row_tests(work: str) -> Any:
    """Each row of one work in turn."""
    return pytest.mark.parametrize("name", rows_of(work))


# Affinities and the walk


@pytest.mark.fault(26)
@pytest.mark.promise("parity")
def test_a_step_of_the_walk_is_a_share_of_every_cell_and_as_likely_there_as_back(tally: Tally, full):
    @examples(1_000 if full else 40)
    @given(grids, kinds, seeds, st.sampled_from(BORDERS), st.sampled_from([1.0, 8.0, 30.0]))
    def check(grid: tuple[int, int], kind: str, seed: int, border: str, beta: float) -> None:
        tally.injected += 1
        field = field_of(np.random.default_rng(seed), grid, kind)
        T = transition(field, WalkConfig(border=border, beta=beta)).toarray().astype(np.float64)
        assert np.abs(T.sum(axis=0) - 1).max() <= SUMS and T.min() >= 0
        both = T / T.diagonal()  # T = A^beta / D by columns, with ones on the diagonal of A: this is A^beta
        assert near(both, both.T, 1e-4)
        tally.survived += 1

    check()


@pytest.mark.fault(26)
@pytest.mark.promise("parity", "same")
@row_tests("walk")
def test_walked_scores_stay_in_their_range_and_know_nothing_of_the_batch(name, tally: Tally, full):
    walk = row("walk", name)

    @examples(400 if full else 20)
    @given(st.lists(st.tuples(grids, kinds, kinds, st.integers(1, 4)), min_size=1, max_size=4), seeds,
           st.sampled_from(BORDERS), st.sampled_from([0, 1, 7, 64, 256]))  # fmt: skip
    def check(images: list[tuple[tuple[int, int], str, str, int]], seed: int, border: str, steps: int) -> None:
        tally.injected += 1
        rng = np.random.default_rng(seed)
        config = WalkConfig(border=border, steps=steps)
        fields = [field_of(rng, grid, kind) for grid, kind, _, _ in images]
        scores = [numbers(rng, (channels, *grid), kind) for grid, _, kind, channels in images]
        walked = walk(scores, fields, config)
        for before, field, after in zip(scores, fields, walked, strict=True):
            assert after.dtype == np.float32 and np.isfinite(after).all()
            low, high = (end(before, axis=(1, 2), keepdims=True) for end in (np.min, np.max))
            assert (after >= low - WALKED).all() and (after <= high + WALKED).all()
            assert np.array_equal(walk([before], [field], config)[0], after), "as if it were alone"
            lone = walk([before[:1]], [field], config)[0]
            assert near(lone, after[:1], WALKED), "a channel walks alone"
        tally.survived += 1

    check()


@pytest.mark.fault(26)
@pytest.mark.promise("parity", "same")
@row_tests("affinity")
def test_affinities_are_shares_the_same_from_either_side_and_in_any_batch(name, tally: Tally, full):
    affinities, offsets = row("affinity", name), neighbour_offsets(3)

    @examples(400 if full else 20)
    @given(st.lists(st.tuples(grids, kinds), min_size=1, max_size=4), st.integers(1, 9), seeds)
    def check(images: list[tuple[tuple[int, int], str]], channels: int, seed: int) -> None:
        tally.injected += 1
        rng = np.random.default_rng(seed)
        features = [10 * numbers(rng, (channels, *grid), kind) for grid, kind in images]
        found = affinities(features, offsets, 8)
        for (grid, kind), one, field in zip(images, features, found, strict=True):
            assert (field.values >= 0).all() and (field.values <= 1).all()
            turned = affinities([np.ascontiguousarray(one[:, ::-1, ::-1])], offsets, 8)[0]
            for r, (dy, dx) in enumerate(offsets.tolist()):
                here, there = pair_windows(*grid, (dy, dx), offsets, "clean")
                assert near(turned.values[r][::-1, ::-1][there], field.values[r][here], SUMS), "i to j as j to i"
                assert kind not in ("zero", "one") or (field.values[r][here] == 1).all(), "equal features"
                outside = np.ones(grid, bool)
                outside[here] = False
                assert not field.values[r][outside].any()
            assert np.array_equal(affinities([one], offsets, 8)[0].values, field.values), "as if it were alone"
        tally.survived += 1

    check()


@pytest.mark.fault(26)
@pytest.mark.promise("parity")
def test_the_loss_of_pairs_is_the_same_from_either_side_and_of_nothing_that_is_unsure(tally: Tally, full):
    offsets = neighbour_offsets(3)

    @examples(600 if full else 25)
    @given(grids, st.sampled_from(["features", "boundary"]), st.floats(0, 1), seeds)
    def check(grid: tuple[int, int], source: str, unsure: float, seed: int) -> None:
        tally.injected += 1
        rng = np.random.default_rng(seed)
        channels = 1 if source == "boundary" else 3
        features = torch.from_numpy(rng.random((2, channels, *grid)).astype(np.float32))
        labels = torch.from_numpy(np.where(rng.random((2, *grid)) < unsure, 255, rng.integers(0, 4, (2, *grid))))
        loss = pair_loss(features, labels, offsets, source=source)
        if source == "features":  # of boundaries, the way from one cell to the other counts, too
            turned = pair_loss(features.flip(2, 3), labels.flip(1, 2), offsets)
            assert all(near(np.asarray(a), np.asarray(b), 1e-4) for a, b in zip(loss, turned, strict=True))
            other = torch.where(labels[:, None] == 255, torch.full_like(features, 7.0), features)
            assert pair_loss(other, labels, offsets).total == loss.total
        renamed = torch.tensor([0, 3, 1, 2, *range(4, 256)])[labels]
        assert near(
            np.asarray(pair_loss(features, renamed, offsets, source=source).total), np.asarray(loss.total), 1e-5
        )
        tally.survived += 1

    check()


# The dense CRF


def scene(rng: np.random.Generator, size: tuple[int, int], labels: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """An image and scores of its labels."""
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    if kind in ("zero", "one"):
        image[:] = 255 * (kind == "one")
    return image, numbers(rng, (labels, *size), kind)


def normalised(scores: np.ndarray) -> np.ndarray:
    """What the CRF begins with: the softmax of the logarithms of scores, none of them less than the rows' own least."""
    clipped = np.maximum(scores, 1e-5)
    return clipped / clipped.sum(axis=0)


@pytest.mark.fault(26)
@pytest.mark.promise("parity", "same")
@row_tests("crf")
def test_posteriors_are_distributions_of_any_labels_order_and_batch(name, tally: Tally, full):
    crfs = row("crf", name)

    @examples(300 if full else 12)
    @given(
        st.lists(st.tuples(grids, kinds, st.integers(1, 4)), min_size=1, max_size=3), seeds, st.sampled_from([0, 1, 5])
    )
    def check(images: list[tuple[tuple[int, int], str, int]], seed: int, iterations: int) -> None:
        tally.injected += 1
        rng = np.random.default_rng(seed)
        config = CrfConfig(iterations=iterations)
        scenes = [scene(rng, size, labels, kind) for size, kind, labels in images]
        pictures, scores = [picture for picture, _ in scenes], [scores for _, scores in scenes]
        found = [posteriors[0] for posteriors in crfs(pictures, [[one] for one in scores], config)]
        for picture, given_scores, posterior in zip(pictures, scores, found, strict=True):
            assert posterior.shape == given_scores.shape and posterior.min() >= 0
            assert np.abs(posterior.sum(axis=0) - 1).max() <= SUMS
            alone = crfs([picture], [[given_scores]], config)[0][0]
            assert np.array_equal(alone, posterior), "as if it were alone"
            order = rng.permutation(len(given_scores))
            turned = crfs([picture], [[np.ascontiguousarray(given_scores[order])]], config)[0][0]
            assert near(turned, posterior[order], ITERATED), "names of labels do not matter"
            if (given_scores == given_scores[:1]).all():
                assert near(posterior, np.full_like(posterior, 1 / len(posterior)), ITERATED), "nothing to choose by"
        tally.survived += 1

    check()


@pytest.mark.fault(26)
@pytest.mark.promise("parity")
@row_tests("crf")
def test_without_weights_of_its_kernels_a_posterior_is_the_softmax_it_began_with(name, tally: Tally, full):
    crfs = row("crf", name)

    @examples(300 if full else 12)
    @given(grids, st.sampled_from(["any", "one", "nearly equal"]), st.integers(1, 5), seeds, st.integers(0, 10))
    def check(size: tuple[int, int], kind: str, labels: int, seed: int, iterations: int) -> None:
        tally.injected += 1
        picture, given_scores = scene(np.random.default_rng(seed), size, labels, kind)
        given_scores = np.maximum(given_scores, np.float32(0.01))  # rows agree on how small a score may be, not here
        config = CrfConfig(iterations=iterations, gaussian_compat=0.0, bilateral_compat=0.0)
        posterior = crfs([picture], [[given_scores]], config)[0][0]
        assert near(posterior, normalised(given_scores), 1e-4)
        tally.survived += 1

    check()


# Maps and clusters


@pytest.mark.fault(26)
@pytest.mark.promise("parity")
@row_tests("merge")
def test_a_mirrored_image_has_mirrored_maps_and_other_names_of_tags_change_their_order_alone(name, tally: Tally, full):
    merge = row("merge", name)

    @examples(300 if full else 15)
    @given(st.tuples(st.integers(8, 60), st.integers(8, 60)), st.integers(1, 5), seeds,
           st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0]), min_size=1, max_size=3))  # fmt: skip
    def check(size: tuple[int, int], classes: int, seed: int, scales: list[float]) -> None:
        tally.injected += 1
        rng = np.random.default_rng(seed)
        kernels = torch.from_numpy(rng.normal(size=(6, 3, 8, 8)).astype(np.float32))  # knows left from right

        def views(pixels: np.ndarray, of: np.ndarray) -> torch.Tensor:
            images = torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255
            return torch.relu(torch.nn.functional.conv2d(images, kernels[of.tolist()], stride=8))

        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        config, present = CamConfig(scales=tuple(scales)), np.sort(rng.permutation(6)[:classes]).astype(np.int32)

        def maps(pixels: np.ndarray, of: np.ndarray) -> np.ndarray:
            return activation_map(np.ascontiguousarray(pixels), of, views, config, multiple=8, merge=merge).scores

        found, order = maps(image, present), rng.permutation(classes)
        assert found.min() >= 0 and found.max() <= 1
        assert near(maps(image[:, ::-1], present), found[..., ::-1], TOLERANCE["float32"] * 10)
        assert near(maps(image, present[order]), found[order], TOLERANCE["float32"])
        assert near(maps(image, present[:1]), found[:1], TOLERANCE["float32"]), "other tags do not matter"
        tally.survived += 1

    check()


@pytest.mark.fault(10)
@pytest.mark.promise("parity")
@row_tests("k_means")
def test_the_inertia_never_rises_with_another_pass_and_the_points_decide_it_alone(name, tally: Tally, full):
    k_means = row("k_means", name)

    @examples(200 if full else 12)
    @given(st.integers(2, 40), st.integers(1, 6), st.integers(1, 6), st.sampled_from(["any", "corners", "one"]), seeds)
    def check(points: int, channels: int, k: int, kind: str, seed: int) -> None:
        tally.injected += 1
        rng = np.random.default_rng(seed)
        X = numbers(rng, (points, channels), kind)
        k = min(k, points)
        inertias = [k_means(X, k, n_init=1, max_iterations=passes, seed=7).inertia for passes in (1, 2, 3, 5, 10, 50)]
        scatter = float(((X - X.mean(axis=0)) ** 2).sum())
        slack = 1e-5 * scatter + 1e-9
        assert all(after <= before + slack for before, after in pairwise(inertias)), inertias
        assert inertias[0] <= scatter + slack, "no worse than one cluster"
        best = k_means(X, k, n_init=5, max_iterations=50, seed=7)
        centres = np.stack([X[best.assignment == c].mean(axis=0) for c in best.assignment])
        assert best.inertia == pytest.approx(float(((X - centres) ** 2).sum()), rel=1e-3, abs=1e-4)
        tally.survived += 1

    check()


# Sizes and polygons


@pytest.mark.fault(7)
@pytest.mark.promise("parity")
def test_what_is_padded_or_brought_to_a_size_comes_back(tally: Tally, full):
    @examples(600 if full else 80)
    @given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([1, 8, 16, 32]), st.integers(0, 4096), seeds)
    def check(height: int, width: int, multiple: int, long_side: int, seed: int) -> None:
        tally.injected += 1
        rng = np.random.default_rng(seed)
        small = rng.integers(0, 256, (1 + height % 61, 1 + width % 61, 3)).astype(np.uint8)
        padded = pad_to_multiple(small, multiple, (1, 2, 3))
        assert np.array_equal(padded[: small.shape[0], : small.shape[1]], small)
        assert not padded.shape[0] % multiple and not padded.shape[1] % multiple
        grey = np.full_like(small, 77)
        assert np.array_equal(resize(resize(grey, (9, 13)), (grey.shape[0], grey.shape[1])), grey)
        there = brought_to((height, width), long_side)
        assert max(there) == (long_side or max(height, width)) and min(there) >= 1
        back = brought_to(there, max(height, width) if long_side else 0)
        factor = max(height, width) / max(there)  # a pixel there is so many here
        assert all(abs(a - b) <= factor / 2 + 1 for a, b in zip(back, (height, width), strict=True)) or min(there) == 1
        tally.survived += 1

    check()


@pytest.mark.fault(8)
@pytest.mark.promise("parity")
def test_polygons_fill_the_pixels_that_they_were_drawn_around(tally: Tally, full):
    @examples(200 if full else 25)
    @given(
        st.tuples(st.integers(1, 24), st.integers(1, 24)), st.integers(1, 5), seeds, st.sampled_from([0.0, 0.5, 1.0])
    )
    def check(size: tuple[int, int], labels: int, seed: int, tolerance: float) -> None:
        tally.injected += 1
        index = np.random.default_rng(seed).integers(0, labels + 1, size).astype(np.uint8)
        found = regions(index)
        for number, ring in enumerate(polygons(found, tolerance), 1):
            inside, drawn = found.number == number, filled(np.asarray(ring), size)
            if tolerance == 0:
                assert np.array_equal(drawn, inside)
            assert drawn.any() and (drawn & inside).sum() >= 0.2 * (drawn | inside).sum()
        tally.survived += 1

    check()


# The fuzzer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fault(1, 8, 9)
@pytest.mark.promise("told")
@pytest.mark.parametrize("target", list(fuzz.TARGETS))
def test_mutated_input_is_read_or_refused_and_nothing_else(target, tally: Tally, full):
    runs = 20_000 if full else 1_000
    found = fuzz.plain(target, runs=runs)
    tally.injected += found.runs
    assert not found.findings, found.told(target)
    fewest = 2 if target == "shards" else 6  # what is wrong with a shard is told from one line
    assert found.runs >= runs and found.read > 0 and found.new_paths >= fewest
    tally.notes = {"runs a second": round(found.runs / found.seconds), "new paths": found.new_paths}
    tally.survived += found.runs
