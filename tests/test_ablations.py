"""The ladders that benchmarks/ablations carries are plans that can be run."""

from __future__ import annotations

from pathlib import Path

import pytest

from sccam.ablation import read_ablation

FILES = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "ablations").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_of_a_ladder_has_settings_that_exist(path):
    plan = read_ablation(path)  # reads the settings of every variant
    assert len(plan.seeds) == 5 and plan.ceiling and {"shipped", "all-updates", "no-rounds"} <= set(plan.variants)


def test_there_are_ladders():
    assert [path.stem for path in FILES] == ["drawn", "photographs"]
