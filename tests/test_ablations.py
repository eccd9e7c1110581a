"""The ladders that benchmarks/ablations carries are plans that can be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sccam.ablation import read_ablation
from sccam.recipe import load_config

FILES = sorted((Path(__file__).resolve().parent.parent / "benchmarks" / "ablations").glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variant_of_a_ladder_has_settings_that_exist(path):
    plan = read_ablation(path)  # reads the settings of every variant
    assert len(plan.seeds) == 5 and plan.ceiling and {"shipped", "all-updates", "no-rounds"} <= set(plan.variants)


@pytest.mark.parametrize(("ladder", "shipped"), [("photographs", "photos"), ("drawn", "demo")])
def test_the_last_rung_is_what_the_package_ships(ladder, shipped):
    plan = read_ablation(FILES[0].parent / f"{ladder}.toml")
    measured, real = plan.settings("shipped", 0), load_config(shipped, [])
    assert replace(measured, measure=real.measure, run=real.run) == real


def test_there_are_ladders():
    assert [path.stem for path in FILES] == ["drawn", "photographs"]
