"""The configurations that the package carries: all load, and voc12 has the paper's and the authors' numbers."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

import sccam
from sccam import config as toml
from sccam.data.sample import CLASSES as SAMPLE_CLASSES
from sccam.errors import ConfigError
from sccam.recipe import RunConfig, built_in_configs, load_config
from sccam.stages.crf import PSA
from sccam.stages.optim import OptimiserConfig

BUILT_IN = sorted(built_in_configs())


def settings_of(cls: type) -> Iterator[tuple[type, str]]:
    """(dataclass, field) of every setting below `cls`."""
    kinds = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = kinds[field.name]
        if isinstance(kind, types.UnionType):
            kind = next(arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        if dataclasses.is_dataclass(kind):
            yield from settings_of(typing.cast(type, kind))
        else:
            yield cls, field.name


def test_the_configurations_that_the_commands_name_are_there():
    assert {"photos", "demo", "voc12"} <= set(BUILT_IN)


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_configuration_reads_back_as_it_was_written(name, tmp_path):
    settings = load_config(name, [])
    (tmp_path / "config.toml").write_text(toml.dump(settings), encoding="utf-8")
    assert load_config(str(tmp_path / "config.toml"), []) == settings
    assert toml.from_mapping(RunConfig, toml.to_dict(settings)) == settings


def test_the_defaults_are_the_paper_but_for_what_voc12_names():
    changed = {line.split(":")[0] for line in toml.differences(RunConfig(), load_config("voc12", []))}
    assert changed == {"cam.round_sizes", "threshold.rule", "measure.every_round", "measure.train_segmenter"}


def test_voc12_is_the_recipe_of_the_paper_and_of_the_authors_code():
    voc = load_config("voc12", [])
    assert (voc.network.backbone, voc.network.output_stride) == ("resnet38d", 8)
    assert (voc.cluster.k, voc.cluster.n_init, voc.cluster.max_iterations) == (10, 10, 300)
    assert (voc.classify.rounds, voc.classify.sub_weight, voc.classify.batch) == (3, 5.0, 16)
    assert [voc.classify.epochs_of(r) for r in range(4)] == [(15, 15), (31, 61), (41, 61), (51, 61)]
    assert voc.classify.restart == "pretrained"
    assert (voc.classify.augment.crop, voc.classify.augment.long_side) == (224, (256, 512))
    assert voc.classify.augment.jitter == (0.3, 0.3, 0.3, 0.1) and voc.classify.augment.flip
    assert voc.classify.augment_of(0).crop == 448
    assert voc.classify.optimiser == OptimiserConfig(
        name="sgd", lr=0.01, head_factor=10.0, momentum=0.9, weight_decay=5e-4, power=0.9, momentum_slip=False
    )
    assert (voc.cam.scales, voc.cam.flip, voc.cam.round_sizes) == ((1.0, 0.5, 1.5, 2.0), True, False)
    assert (voc.threshold.rule, voc.threshold.fixed) == ("fixed", 0.15)
    assert (voc.affinity.alpha_low, voc.walk.alpha, voc.affinity.alpha_high) == (4.0, 16.0, 32.0)
    assert (voc.affinity.radius, voc.affinity.epochs, voc.affinity.batch) == (5, 8, 8)
    assert (voc.affinity.augment.crop, voc.affinity.augment.long_side, voc.affinity.augment.scales) == (448, (), ())
    assert (voc.walk.beta, voc.walk.steps) == (8.0, 256)
    assert voc.affinity.crf == voc.pseudo_label.crf == PSA
    assert (voc.walk.normalise, voc.pseudo_label.sharpen) == (False, 1.0)
    assert (PSA.gaussian_sxy, PSA.gaussian_compat) == (3.0, 3.0)
    assert (PSA.bilateral_sxy, PSA.bilateral_srgb, PSA.bilateral_compat) == (80.0, 13.0, 10.0)
    assert PSA.iterations == 10
    assert (voc.segment.rates, voc.segment.batch, voc.segment.augment.crop) == ((6, 12, 18, 24), 10, 321)
    iterations = voc.segment.epochs * (10_582 // voc.segment.batch)
    assert iterations == pytest.approx(20_000, rel=0.01)  # whole epochs


@pytest.mark.parametrize("name", BUILT_IN)
def test_numbers_that_must_fit_each_other_do(name):
    settings = load_config(name, [])
    assert settings.affinity.alpha_low < settings.walk.alpha < settings.affinity.alpha_high
    assert settings.affinity.augment.crop % 8 == 0  # one label a cell of 8 pixels
    assert settings.segment.scales[0] == 1.0 and settings.cam.scales[0] == 1.0
    assert all(
        len(augment.jitter) in (0, 4) and len(augment.long_side) in (0, 2)
        for augment in (settings.classify.augment, settings.affinity.augment, settings.segment.augment)
    )
    assert settings.network.backbone in ("resnet38d", "tf_efficientnet_lite0")


def test_every_setting_is_read_somewhere():
    code = "\n".join(path.read_text(encoding="utf-8") for path in Path(sccam.__file__).parent.rglob("*.py"))
    read = r'\.{name}\b|function\("{name}"\)'  # as an attribute, or as a row of the backend table
    unread = [
        f"{cls.__name__}.{name}" for cls, name in settings_of(RunConfig) if not re.search(read.format(name=name), code)
    ]
    assert unread == []


def test_the_demo_has_no_more_subcategories_than_the_sample_has_looks():
    assert load_config("demo", []).cluster.k == 3 and len(SAMPLE_CLASSES) == 5


# Names and overrides


def test_overrides_come_on_top_of_a_built_in_configuration():
    settings = load_config("voc12", ["cluster.k=4", "affinity.optimiser.lr=1e-3", "cam.scales=[1.0]"])
    assert (settings.cluster.k, settings.affinity.optimiser.lr, settings.cam.scales) == (4, 1e-3, (1.0,))
    assert settings.classify == load_config("voc12", []).classify


def test_an_unknown_configuration_lists_the_known_ones():
    with pytest.raises(ConfigError, match="no configuration 'vco12'") as caught:
        load_config("vco12", [])
    assert all(name in str(caught.value) for name in BUILT_IN)


def test_a_misspelt_setting_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"unknown setting 'classify\.sub_wieght'") as caught:
        load_config("voc12", ["classify.sub_wieght=1"])
    assert "classify.sub_weight" in str(caught.value.fix)


@pytest.mark.parametrize(
    "setting",
    [
        "classify.epochs=[]",
        "classify.epochs=[-1]",
        "cam.scales=[]",
        "cam.scales=[0.0]",
        "classify.augment.jitter=[0.3]",
        "classify.augment.long_side=[512, 256]",
        "affinity.augment.crop=100",  # no whole number of cells
        "segment.scales=[0.5]",  # the first must be 1
        "threshold.fixed=0.0",  # no exponent crosses there
        "threshold.fixed=1.0",
    ],
)
def test_a_setting_that_would_fail_hours_later_is_refused_at_once(setting):
    with pytest.raises(ConfigError):
        load_config("photos", [setting])
