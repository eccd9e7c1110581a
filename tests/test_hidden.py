"""Clusters against the drawn set's looks, and maps against its parts."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from sccam.training.hidden import normalised_mutual_information


def table_of(clusters: np.ndarray, looks: np.ndarray) -> np.ndarray:
    table = np.zeros((clusters.max() + 1, looks.max() + 1))
    np.add.at(table, (clusters, looks), 1)
    return table


def test_it_is_the_usual_score(rng):
    for _ in range(20):
        looks = rng.integers(0, 3, 50)
        clusters = np.where(rng.random(50) < 0.6, looks, rng.integers(0, 4, 50))
        found = normalised_mutual_information(table_of(clusters, looks))
        assert found == pytest.approx(normalized_mutual_info_score(looks, clusters))


def test_its_ends():
    looks = np.array([0, 0, 1, 1, 2, 2])
    assert normalised_mutual_information(table_of(2 - looks, looks)) == pytest.approx(1)
    assert normalised_mutual_information(table_of(np.array([0, 1, 0, 1, 0, 1]), looks)) == pytest.approx(0, abs=1e-9)
    assert normalised_mutual_information(table_of(np.zeros(6, int), np.zeros(6, int))) == 1
    assert normalised_mutual_information(table_of(np.zeros(6, int), looks)) == 0
