from __future__ import annotations

import math
import tomllib
from dataclasses import FrozenInstanceError, dataclass, field, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sccam.config import differences, dump, dump_toml, from_mapping, load, override, to_dict
from sccam.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Crop:
    size: int = field(default=448, metadata={"min": 1})
    jitter: tuple[float, ...] = field(default=(), metadata={"min": 0.0, "max": 1.0})


@dataclass(frozen=True, slots=True)
class Classify:
    epochs: int = field(default=15, metadata={"min": 1, "max": 1000})
    lr: float = field(default=0.01, metadata={"min": 0.0})
    frozen: bool = False
    crop: Crop = Crop(size=321)
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Network:
    backbone: str = "resnet38d"
    restart: str = field(default="pretrained", metadata={"choices": ("pretrained", "previous")})
    size: tuple[int, int] = (3, 4)
    scales: list[float] = field(default_factory=lambda: [0.5, 1.0])
    weights: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    seed: int = 0
    network: Network = Network()
    classify: Classify = Classify(epochs=3, limit=7)
    extra: Crop | None = None


@dataclass(frozen=True, slots=True)
class Required:
    name: str
    crop: Crop


@dataclass(frozen=True, slots=True)
class Span:
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ConfigError("low lies above high")


@dataclass(frozen=True, slots=True)
class Nested:
    span: Span = Span()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str, cls: type = Run) -> str:
    with pytest.raises(ConfigError) as caught:
        from_mapping(cls, tomllib.loads(text), where="run.toml")
    assert "run.toml" in str(caught.value.where)
    return str(caught.value)


crops = st.builds(Crop, size=st.integers(1), jitter=st.lists(st.floats(0, 1)).map(tuple))
words = st.text().filter(lambda text: text != "none")
runs = st.builds(
    Run,
    seed=st.integers(),
    network=st.builds(
        Network,
        backbone=st.text(),
        restart=st.sampled_from(["pretrained", "previous"]),
        size=st.tuples(st.integers(), st.integers()),
        scales=st.lists(st.floats(allow_nan=False)),
        weights=st.none() | words,
    ),
    classify=st.builds(
        Classify,
        epochs=st.integers(1, 1000),
        lr=st.floats(0),
        frozen=st.booleans(),
        crop=crops,
        limit=st.none() | st.integers(),
    ),
    extra=st.none() | crops,
)


@given(runs)
def test_what_is_dumped_loads_as_the_same_settings(run: Run) -> None:
    assert from_mapping(Run, tomllib.loads(dump(run))) == run


@given(runs)
def test_the_plain_mapping_gives_the_same_settings(run: Run) -> None:
    assert from_mapping(Run, to_dict(run)) == run


@given(runs, runs)
def test_differences_are_empty_exactly_when_the_settings_are_equal(a: Run, b: Run) -> None:
    assert differences(a, a) == []
    assert (differences(a, b) == []) == (a == b)


@given(st.dictionaries(st.text(), st.text() | st.dictionaries(st.text(), st.text())))
def test_any_key_survives_the_writer(mapping: dict) -> None:
    assert tomllib.loads(dump_toml(mapping)) == mapping


@given(runs)
def test_each_dumped_line_is_an_override_that_changes_nothing(run: Run) -> None:
    lines = [f"network.{line}" for line in dump(run.network).strip().split("\n")]
    assert override(run, lines) == run


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(Run, written(tmp_path, "")) == Run()


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert load(Run, written(tmp_path, "\ufeffseed = 3")).seed == 3


def test_every_default_is_written_out() -> None:
    text = dump(Run())
    assert all(name in text for cls in (Run, Network, Classify, Crop) for name in (f.name for f in fields(cls)))
    assert 'extra = "none"' in text


def test_a_nested_table_keeps_the_defaults_of_the_field_that_holds_it() -> None:
    run = from_mapping(Run, {"classify": {"lr": 1.0, "crop": {"jitter": [0.5]}}})
    assert run.classify == Classify(epochs=3, lr=1.0, limit=7, crop=Crop(size=321, jitter=(0.5,)))


def test_an_optional_table_starts_from_its_class() -> None:
    assert from_mapping(Run, {"extra": {}}).extra == Crop()


def test_none_takes_an_optional_setting_away_and_stays_away_after_a_round_trip() -> None:
    run = override(Run(), ["classify.limit=none"])
    assert run.classify.limit is None
    assert from_mapping(Run, tomllib.loads(dump(run))) == run


def test_none_is_a_word_where_the_setting_is_not_optional() -> None:
    assert override(Run(), ["network.backbone=none"]).network.backbone == "none"


def test_a_whole_number_is_a_number_and_becomes_a_float() -> None:
    lr = from_mapping(Run, {"classify": {"lr": 1}}).classify.lr
    assert (lr, type(lr)) == (1.0, float)


def test_lists_become_what_the_annotation_says() -> None:
    network = from_mapping(Run, {"network": {"size": [1, 2], "scales": [1, 2]}}).network
    assert (network.size, network.scales) == ((1, 2), [1.0, 2.0])


def test_settings_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        from_mapping(Run, {}).seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("network.backbone=resnet50", replace(Run(), network=Network(backbone="resnet50"))),
        ('network.backbone="a b"', replace(Run(), network=Network(backbone="a b"))),
        ("network.backbone=a=b # c", replace(Run(), network=Network(backbone="a=b # c"))),
        ("network.backbone=2007-05-27", replace(Run(), network=Network(backbone="2007-05-27"))),
        ("network.backbone=1\nseed = 9", replace(Run(), network=Network(backbone="1\nseed = 9"))),
        ("network.backbone=", replace(Run(), network=Network(backbone=""))),
        (" network . size = [5, 6] ", replace(Run(), network=Network(size=(5, 6)))),
        ("seed=7", Run(seed=7)),
        ("network={size = [5, 6]}", replace(Run(), network=Network(size=(5, 6)))),
        ("extra.size=5", Run(extra=Crop(size=5))),
    ],
)
def test_an_assignment_is_read_as_toml_or_else_as_text(assignment: str, expected: Run) -> None:
    assert override(Run(), [assignment]) == expected


def test_an_override_keeps_all_other_settings() -> None:
    run = Run(seed=5, classify=Classify(epochs=9, lr=0.5), extra=Crop(size=9))
    changed = override(run, ["classify.lr=0.25", "extra.jitter=[1]", "seed=6", "seed=7"])
    assert changed == Run(seed=7, classify=Classify(epochs=9, lr=0.25), extra=Crop(size=9, jitter=(1.0,)))
    assert override(run, []) == run


@pytest.mark.parametrize("assignment", ["seed", "=3", "network.=3", ".seed=3", ""])
def test_what_is_not_an_assignment_is_refused(assignment: str) -> None:
    with pytest.raises(ConfigError, match=r"not an assignment[\s\S]*table\.name=value"):
        override(Run(), [assignment])


@pytest.mark.parametrize("pair", [["seed=1", "seed.x=2"], ["seed.x=2", "seed=1.5"]])
def test_assignments_that_contradict_each_other_are_refused(pair: list[str]) -> None:
    with pytest.raises(ConfigError, match="seed"):
        override(Run(), pair)


def test_differences_name_the_setting_and_both_values() -> None:
    a = Run(extra=Crop(jitter=(0.5,)))
    b = override(Run(), ["classify.epochs=12", "network.backbone=resnet50", "classify.limit=none"])
    assert differences(a, b) == [
        'network.backbone: "resnet38d" -> "resnet50"',
        "classify.epochs: 3 -> 12",
        "classify.limit: 7 -> none",
        "extra.size: 448 -> absent",
        "extra.jitter: [0.5] -> absent",
        "extra: absent -> none",
    ]


def test_an_unknown_key_is_refused_with_the_nearest_name() -> None:
    text = refusal("[network]\nbackbon = 'x'")
    assert "unknown setting 'network.backbon'" in text and "did you mean 'network.backbone'?" in text


def test_a_key_in_the_wrong_table_is_sent_to_the_right_one() -> None:
    assert "did you mean 'classify.epochs'?" in refusal("epochs = 3")


def test_a_key_like_no_other_is_answered_with_the_names_that_exist() -> None:
    text = refusal("[extra]\nzzz = 3")
    assert "did you mean" not in text and "[extra] knows size, jitter" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1.0", "seed: expected a whole number, got 1.0"),
        ("seed = true", "seed: expected a whole number, got true"),
        ("seed = '1'", 'seed: expected a whole number, got the text "1"'),
        ("seed = {a = 1}", "seed: expected a whole number, got a table"),
        ("seed = 2007-05-27", "seed: expected a whole number, got datetime.date(2007, 5, 27)"),
        ("classify.lr = true", "classify.lr: expected a number, got true"),
        ("classify.lr = nan", "classify.lr: expected a number, got nan"),
        ("classify.frozen = 1", "classify.frozen: expected true or false, got 1"),
        ("classify.limit = 'x'", 'classify.limit: expected a whole number, got the text "x"'),
        ("classify.crop.jitter = 0.5", "classify.crop.jitter: expected a list, each element a number, got 0.5"),
        ("classify.crop.jitter = [0.5, 'x']", 'classify.crop.jitter[1]: expected a number, got the text "x"'),
        ("network = 3", "network: expected a table, got 3"),
        ("network.backbone = 18", "network.backbone: expected text, got 18"),
        ("network.size = [1]", "network.size: expected a list of 2: a whole number, a whole number, got [1]"),
    ],
)
def test_a_wrong_type_is_named_with_the_expected_one_and_the_value(text: str, message: str) -> None:
    assert refusal(text).startswith(message + "\n")


@pytest.mark.parametrize(
    ("text", "message", "allowed"),
    [
        ("classify.epochs = 0", "classify.epochs = 0 is out of range", "1 to 1000"),
        ("classify.epochs = 1001", "classify.epochs = 1001 is out of range", "1 to 1000"),
        ("classify.lr = -0.1", "classify.lr = -0.1 is out of range", "at least 0.0"),
        ("classify.crop.jitter = [0, 2]", "classify.crop.jitter[1] = 2.0 is out of range", "0.0 to 1.0"),
        ("network.restart = 'prev'", 'network.restart = "prev" is not one of the choices', '"pretrained", "previous"'),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_allowed(text: str, message: str, allowed: str) -> None:
    answer = refusal(text)
    assert message in answer and allowed in answer


@pytest.mark.parametrize("epochs", [1, 1000])
def test_both_ends_belong_to_the_range(epochs: int) -> None:
    assert from_mapping(Run, {"classify": {"epochs": epochs}}).classify.epochs == epochs


def test_a_missing_setting_is_named_and_a_missing_table_is_filled_from_its_defaults() -> None:
    assert "setting 'name' is missing" in refusal("", Required)
    assert from_mapping(Required, {"name": "a"}) == Required("a", Crop())


def test_an_error_of_the_dataclass_itself_gets_its_place() -> None:
    assert "run.toml [span]" in refusal("span.low = 3.0", Nested)


def test_settings_that_depend_on_each_other_are_replaced_together() -> None:
    assert override(Nested(), ["span.low=5", "span.high=6.0"]) == Nested(Span(5.0, 6.0))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist[\s\S]*absent\.toml"):
        load(Run, tmp_path / "absent.toml")


def test_a_folder_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Run, tmp_path)


def test_broken_toml_is_answered_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not valid TOML[\s\S]*settings\.toml:2\n"):
        load(Run, written(tmp_path, "seed = 1\nnetwork.backbone = resnet50\n"))


def test_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes("# Größe".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        load(Run, path)


@pytest.mark.parametrize("value", [math.nan, {1, 2}, object(), b"x"])
def test_what_toml_cannot_say_is_not_written(value: object) -> None:
    with pytest.raises(TypeError, match="no form in a settings file"):
        dump_toml({"a": value})
