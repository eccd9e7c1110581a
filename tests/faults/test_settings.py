"""Settings that are wrong in every way, one by one, and clocks that jump: told of, or of no effect; nothing written."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sccam import config as toml
from sccam.cli.printing import CountReporter, LineReporter
from sccam.data.sample import draw_sample
from sccam.errors import ConfigError, SccamError
from sccam.recipe import RunConfig, built_in_configs
from sccam.run import plan
from tests.conftest import Cli
from tests.faults.conftest import Tally
from tests.faults.test_data import examples, with_settings
from tests.runtime.formula import lines
from tests.runtime.test_folder import model  # noqa: F401  (a fixture)

HUGE = "1" + "0" * 30
ENDLESS = "9" * 5_000  # more digits than Python makes a number of
DEEP = "[" * 3_000


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of a settings file."""

    name: str  # dotted
    kind: Any  # its annotation
    default: Any
    limits: typing.Mapping[str, Any]


def every_setting(cls: Any = RunConfig, default: Any = None, prefix: str = "") -> Iterator[Setting]:
    """All keys, those of tables inside tables too."""
    default = cls() if default is None else default
    for field in dataclasses.fields(cls):
        value, kind = getattr(default, field.name), typing.get_type_hints(cls)[field.name]
        if dataclasses.is_dataclass(value):
            yield from every_setting(type(value), value, f"{prefix}{field.name}.")
        else:
            yield Setting(prefix + field.name, kind, value, field.metadata)


SETTINGS = tuple(every_setting())
ANY_TEXT = ("data.train_list", "data.val_list")  # names of files, of VOC folders only
MAY_BE_EMPTY = re.compile(r".*\.augment\.(long_side|scales|jitter)|classify\.schedule_epochs")
WRONG_TYPES = {
    int: ['"3"', "1.5", "true", "[1]", "{ a = 1 }", '"none"', "1e3"],
    float: ['"x"', "true", "[1.0]", "{ a = 1.0 }", '"1,5"'],
    bool: ["1", '"true"', "0.0", "[]", '"yes"'],
    str: ["1", "true", "[]", '["auto"]', "1.5", "{ a = 1 }"],
    tuple: ["1", '"a"', "true", "{ a = 1 }", '["a"]', "[[1]]", "[true, false]", "[1, 'a']"],
}
OUT_OF_RANGE = {
    "run.device": ['"tpu"', '"cuda:x"', '""', '"CPU"', '"cuda:-1"', '"meta"'],
    "network.backbone": ['"resnt50"', '""', '"ResNet50"', '"resnet38"', '"../resnet50"'],
    "threshold.fixed": ["0", "1", "-0.1", "1.1"],
    "affinity.augment.crop": ["441", "8", "4097"],
    "classify.epochs": ["[0]", "[-1]", "[15, 0]"],
    "classify.schedule_epochs": ["[0]", "[-3]"],
    "cam.scales": ["[0]", "[-1.0]", "[1.0, 8.1]"],
    "segment.scales": ["[0.5]", "[1.0, 0]", "[1.0, -0.5]", "[1.0, 9]"],
    "segment.rates": ["[0]", "[-6]", "[6, 513]"],
}
OF_VIEWS = {
    "long_side": ["[256]", "[512, 256]", "[0, 9]", "[-5, 5]", "[1, 2, 3]", "[1, 65536]"],
    "scales": ["[0]", "[1.0, -1.0]", "[8.5]"],
    "jitter": ["[0.1]", "[0.1, 0.1, 0.1, 1.1]", "[-0.1, 0, 0, 0]", "[0.1, 0.1, 0.1, 0.1, 0.1]"],
}
ALLOWED = re.compile(
    r"expected |allowed is|choose from|did you mean|knows |must |is not \[|is not four|multiple of|nearest names|lies? "
)


def wrong_values(setting: Setting) -> Iterator[tuple[str, str]]:
    """Kind of fault -> a value in TOML, all that are wrong for this setting."""
    origin = typing.get_origin(setting.kind) or setting.kind
    for value in WRONG_TYPES[origin]:
        yield "wrong type", value
    low, high, choices = (setting.limits.get(name) for name in ("min", "max", "choices"))
    step = 1 if setting.kind is int else 0.01
    if low is not None:
        yield "out of range", str(low - step)
        yield "out of range", str(-(2**40)) if setting.kind is int else "-1e300"
    if high is not None:
        yield "out of range", str(high + step)
    if choices is not None:
        for value in ('"typo"', '"Auto"', f'"{choices[-1]} "') if setting.kind is str else ("7", "-1", "64"):
            yield "out of range", value
    last = setting.name.rpartition(".")[2]
    for value in OUT_OF_RANGE.get(setting.name, []) + (OF_VIEWS.get(last, []) if ".augment." in setting.name else []):
        yield "out of range", value
    many = origin is tuple
    if setting.kind is float or many:
        for value in ("nan", "-nan", "inf", "-inf", "1e400"):
            yield "no number" if "n" in value else "huge", f"[{value}]" if many else value
    if origin in (int, float, tuple):
        for value in (HUGE, f"-{HUGE}", ENDLESS):
            yield "huge", f"[1, {value}]" if many else value
    if setting.name not in ANY_TEXT and setting.name != "network.weights":
        if not (many and MAY_BE_EMPTY.fullmatch(setting.name)):
            yield "empty", "[]" if many else '""'
        yield "huge", DEEP
        yield "empty", "{}"


def misspelt(name: str, rng: random.Random) -> str:
    """The name with one slip of the finger in its last part."""
    table, _, key = name.rpartition(".")
    at = rng.randrange(len(key))
    wrong = rng.choice([
        key[:at] + key[at + 1 :], key[:at] + key[at] + key[at:], key[:at] + "x" + key[at:], key.capitalize(),
        key.replace("_", "-") if "_" in key else f"{key}s", key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
    ])  # fmt: skip
    there = any(f"{setting.name}.".startswith(f"{table}.{wrong}.") for setting in SETTINGS)
    return f"{table}.{'x' if there or not wrong else wrong}"


def as_file(name: str, value: str) -> str:
    """A TOML file with this one setting."""
    table, _, key = name.rpartition(".")
    return f"[{table}]\n{key} = {value}\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound folder."""
    folder = tmp_path_factory.mktemp("sound") / "in"
    draw_sample(folder, images=10, sizes=(33, 40))
    return folder


@pytest.fixture
def refused(data: Path, tmp_path: Path, sccam: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A training that is expected to be refused with a code; gives what it printed. Nothing may be written."""

    def begun(*_: object) -> None:
        raise AssertionError("training began")

    monkeypatch.setattr("sccam.run.train_all", begun)
    before = sorted(data.rglob("*"))

    def run(*arguments: object, code: int = 2) -> str:
        ended, printed, err = sccam("train", data, "--out", tmp_path / "run", *arguments)
        assert ended == code and not printed and "Traceback" not in err, (arguments, ended, err)
        assert not (tmp_path / "run").exists() and sorted(data.rglob("*")) == before
        assert len(err) < 2_000, "no value fills the screen"
        return err

    return run


def names_it(err: str, setting: Setting) -> bool:
    """Whether a message names the setting: whole, or its table and its last part."""
    table, _, key = setting.name.rpartition(".")
    return setting.name in err or ((f"[{table}]" in err or table in err) and key in err)


@pytest.mark.fault(34)
@pytest.mark.promise("told")
def test_every_wrong_value_of_every_setting_is_refused_with_its_name_and_what_is_allowed(
    refused, tmp_path, tally: Tally, full
):
    cases = [(setting, *case) for setting in SETTINGS for case in wrong_values(setting)]
    random.Random(0).shuffle(cases)
    for n, (setting, kind, value) in enumerate(cases if full else cases[:90]):
        tally.injected += 1
        file = tmp_path / "wrong.toml"
        if n % 2 and DEEP not in value and ENDLESS not in value:  # of which no file is read as far as a name
            file.write_text(as_file(setting.name, value))
            err = refused("-c", file)
            assert str(file) in err or setting.name in ("network.backbone",), err
        else:
            err = refused("-c", "demo", "--set", f"{setting.name}={value}")
        assert names_it(err, setting) and ALLOWED.search(err), (setting.name, kind, value, err)
        tally.survived += 1


@pytest.mark.fault(34)
@pytest.mark.promise("told")
def test_every_misspelt_setting_is_refused_with_the_nearest_name(refused, tmp_path, tally: Tally, full):
    rng = random.Random(1)
    for n, setting in enumerate(SETTINGS if full else SETTINGS[::6]):
        tally.injected += 1
        wrong = misspelt(setting.name, rng)
        if n % 2:
            (tmp_path / "wrong.toml").write_text(as_file(wrong, "1"))
            err = refused("-c", tmp_path / "wrong.toml")
        else:
            err = refused("-c", "demo", "--set", f"{wrong}=1")
        assert f"unknown setting '{wrong}'" in err, err
        table = setting.name.rpartition(".")[0]
        assert f"[{table}] knows" in err and setting.name.rpartition(".")[2] in err.partition("knows")[2], err
        tally.survived += 1


@pytest.mark.fault(34)
@pytest.mark.promise("told")
def test_settings_of_files_and_names_that_are_not_there_are_refused_before_anything_is_written(
    refused, data, tmp_path, tally: Tally, sccam: Cli
):
    long = "n" * 400
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for arguments, code, says in (
        (("-c", "photo"), 2, "built in: demo, photos, voc12"),
        (("-c", ""), 2, "no configuration"),
        (("-c", long), 2, "no configuration"),
        (("-c", tmp_path / "folder.toml"), 2, "no configuration"),
        (("-c", tmp_path / "pipe.toml"), 2, "no configuration"),
        (("-c", "demo", "--set", "network.weights=gone.pth"), 3, "no such weight file"),
        (("-c", "demo", "--set", "network.weights="), 3, "no such weight file"),
        (("-c", "demo", "--set", f"network.weights={long}.pth"), 3, "no such weight file"),
        (("-c", "demo", "--set", "network.backbone=resnet50"), 3, "no installed package carries ImageNet weights"),
        (("-c", "voc12", "--set", "network.output_stride=16", "--set", "network.weights=none"), 2, "output stride 8"),
        (("-c", "demo", "--set", "classify.epochs"), 2, "not an assignment"),
        (("-c", "demo", "--set", "=1"), 2, "not an assignment"),
        (("-c", "demo", "--set", "classify=1"), 2, "expected a table"),
        (("-c", "demo", "--set", "classify.augment=[]"), 2, "expected a table"),
        (("-c", "demo", "--set", "nosuch.table=1"), 2, "unknown setting 'nosuch'"),
        (("-c", "demo", "--set", "network.weights=w\udcff.pth"), 2, "is no text"),
        (("-c", "demo", "--set", "run.seed=1", "--set", "run=2"), 2, "contradicts|expected a table"),
    ):  # fmt: skip
        tally.injected += 1
        err = refused(*arguments, code=code).replace(long, "LONG")
        assert re.search(says, err), (arguments, err)
        tally.survived += 1
    (data / "JPEGImages").mkdir()
    (data / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name in ANY_TEXT:  # names of lists, where there are lists
        tally.injected += 1
        (data / "ImageSets" / "Segmentation" / "here.txt").touch()
        code, _, err = sccam("train", data, "-c", "voc12", "--out", tmp_path / "run", "--set", f"{name}=gone")
        assert code == 3 and "the list is" in err and not (tmp_path / "run").exists(), err
        tally.survived += 1
    for path in sorted((data / "ImageSets").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (data / "ImageSets").rmdir()
    (data / "JPEGImages").rmdir()


TEXTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([
        "[run]\n", "seed = 1\n", "[[run]]\n", "[run.seed]\n", "run = 1\n", "a.b.c = 2\n", "[", "]", "=", '"', "'''",
        '"""', "\n", "\0", "\ud800", "#", "{", "}", "1979-05-27T25:00:00Z", "1979-02-30", "0x", "1__0", "nan",
        "\\u0000", "é = 1\n", "[classify]\nepochs = [1]\n", "[classify]\n", "epochs = [2]\n", DEEP,
        "[run]\nseed = 1e999\n", f"seed = {ENDLESS}\n",
    ]), max_size=6).map("".join),
)  # fmt: skip


@pytest.mark.fault(34)
@pytest.mark.promise("told")
def test_a_settings_file_of_any_bytes_is_read_or_refused_by_its_name(tmp_path, tally: Tally, full):
    file = tmp_path / "any.toml"
    sound = [path.read_bytes() for path in built_in_configs().values()]

    @st.composite
    def contents(draw: st.DrawFn) -> bytes:
        if draw(st.booleans()):
            return draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"])) + draw(TEXTS).encode(
                "utf-8", "surrogatepass"
            )
        data = bytearray(draw(st.sampled_from(sound)))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data) - 1))
            data[at : at + draw(st.integers(0, 20))] = draw(st.binary(max_size=3))
        return bytes(data)

    @examples(600 if full else 100)
    @given(contents())
    def check(content: bytes) -> None:
        tally.injected += 1
        file.write_bytes(content)
        try:
            settings = toml.load(RunConfig, file)
        except ConfigError as error:
            assert str(file) in str(error.where) and len(str(error)) < 3_000, error
        else:
            assert toml.from_mapping(RunConfig, toml.to_dict(settings)) == settings
        tally.survived += 1

    check()


@pytest.mark.fault(34)
@pytest.mark.promise("told")
def test_assignments_of_any_text_are_taken_or_refused(tally: Tally, full):
    names = st.one_of(st.sampled_from([setting.name for setting in SETTINGS]), st.text(max_size=12))

    @examples(600 if full else 100)
    @given(names, TEXTS, st.sampled_from(["=", "", " = ", "=="]))
    def check(name: str, value: str, between: str) -> None:
        tally.injected += 1
        try:
            settings = toml.override(RunConfig(), [f"{name}{between}{value}"])
        except ConfigError as error:
            assert "--set" in str(error.where) and len(str(error)) < 6_000, error
        else:
            assert toml.from_mapping(RunConfig, toml.to_dict(settings)) == settings
        tally.survived += 1

    check()


@pytest.mark.fault(34)
def test_plans_for_settings_that_are_at_their_limits_are_made(data, tally: Tally, full):
    """What is allowed is not refused by something else, such as a number that is too large for an array."""
    cases = [(s, value) for s in SETTINGS for end in ("min", "max") if (value := s.limits.get(end)) is not None]
    cases += [(s, value) for s in SETTINGS for value in s.limits.get("choices", ())]
    cases += [(s, 2**31 - 1) for s in SETTINGS if s.kind is int and not s.limits.keys() & {"max", "choices"}]
    together = {"prototypes.context": ["prototypes.foreground=1"], "prototypes.foreground": ["prototypes.context=0"]}
    skipped = ("threshold.fixed", "affinity.augment.crop")  # whose own rule is narrower than their limits
    for setting, value in cases if full else cases[::4]:
        if setting.name in skipped:
            continue
        tally.injected += 1
        written = toml.dump_toml({"x": value}).partition("=")[2].strip()
        try:
            plan(data, "demo", [*together.get(setting.name, []), f"{setting.name}={written}"])
        except SccamError as error:
            raise AssertionError((setting.name, value)) from error
        tally.survived += 1


# Clocks

ZONES = (
    "UTC",
    "Pacific/Kiritimati",
    "America/St_Johns",
    "Asia/Kathmandu",
    "Etc/GMT+12",
    "XXX-25:59:59",
    "nonsense/zone",
    "",
)


class Jumping:
    """A clock that runs, and every now and then jumps by hours or years, forwards or, if it may, back."""

    def __init__(self, seed: int, *ways: int):
        self.rng, self.now, self.ways = random.Random(seed), 1_700_000_000.0, ways or (-1, 1)

    def __call__(self) -> float:
        self.now += self.rng.random()
        if self.rng.random() < 0.2:
            self.now += self.rng.choice(self.ways) * 10 ** self.rng.uniform(0, 6)
        return self.now


@pytest.mark.fault(33)
def test_no_time_that_is_left_is_negative_whatever_the_clock_says(tally: Tally, full, capsys, monkeypatch):
    for seed in range(400 if full else 60):
        rng, clock = random.Random(seed), Jumping(seed)
        tally.injected += 1
        with monkeypatch.context() as patched:
            patched.setattr(time, "monotonic", clock)
            reporter, counter = LineReporter(quiet=False), CountReporter(quiet=False)
            reporter.living = bool(seed % 2)
            total = rng.randint(1, 50)
            reporter.stage("stage")
            for done in range(rng.randint(1, total), total + 1):
                reporter.progress(done, total, "note")
                counter.progress(done, done // 3)
        _, err = capsys.readouterr()
        left = re.findall(r"(\S+)/s  (\S+) left", err)
        assert left and all(re.fullmatch(r"(\d+:)?\d+:\d\d", duration) for _, duration in left), err
        assert all(float(rate) >= 0 for rate, _ in left) and "-" not in err.replace("stage", ""), err
        tally.survived += 1


@pytest.mark.fault(33)
@pytest.mark.promise("again")
def test_clocks_and_zones_change_no_byte_of_what_infer_writes(
    model, tmp_path, tally: Tally, full, sccam: Cli, monkeypatch  # noqa: F811
):  # fmt: skip
    root, rng = tmp_path / "in", np.random.default_rng(0)
    root.mkdir()
    for n, stamp in enumerate((0, 1, -5_000_000_000, 2**31, 2**33, 1_700_000_000)):  # of 1811 and of 2242, too
        Image.fromarray(rng.integers(0, 256, (24 + n, 31, 3), np.uint8)).save(root / f"{n}.png")
        os.utime(root / f"{n}.png", (stamp, stamp))

    def written(out: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
        files = {path.name: path.read_bytes() for path in sorted((out / "masks").rglob("*.png"))}
        log = sorted(lines(out / "predictions.jsonl"), key=lambda line: line["name"])
        return files, [{key: value for key, value in line.items() if key != "ms"} for line in log]

    assert sccam("infer", model, root, "-o", tmp_path / "plain", "--threads", 1)[0] == 0
    expected = written(tmp_path / "plain")
    for n in range(24 if full else 3):
        tally.injected += 1
        with monkeypatch.context() as patched:
            patched.setenv("TZ", ZONES[n % len(ZONES)])
            time.tzset()
            for clock in ("time", "monotonic", "perf_counter"):
                patched.setattr(time, clock, Jumping(n))
            code, _, err = sccam("infer", model, root, "-o", tmp_path / str(n), "--threads", 1)
        time.tzset()
        assert code == 0 and written(tmp_path / str(n)) == expected, err
        code, printed, _ = sccam("infer", model, root, "-o", tmp_path / str(n), "--threads", 1, "--json")
        assert code == 0 and json.loads(printed)["skipped"] == len(expected[0])
        tally.survived += 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.fault(33)
@pytest.mark.promise("same", "told")
def test_clocks_and_zones_change_no_weight_of_a_run(data, tmp_path, tally: Tally, full, sccam: Cli, monkeypatch):
    settings = with_settings("classify.rounds=0", "measure.every_round=false")

    def run(out: Path) -> tuple[bytes, list[float], str]:
        code, _, err = sccam("train", data, "-c", "photos", "--out", out, *settings)
        assert code == 0, err
        losses = [line["loss"] for line in lines(out / "metrics.jsonl") if "loss" in line]
        return (out / "round0/cam_net.safetensors").read_bytes(), losses, err

    weights, losses, _ = run(tmp_path / "plain")
    assert losses
    for n in range(6 if full else 1):
        tally.injected += 1
        with monkeypatch.context() as patched:
            patched.setenv("TZ", ZONES[n + 1])
            time.tzset()
            patched.setattr(time, "time", Jumping(n))
            patched.setattr(time, "monotonic", Jumping(n, 1))  # a machine that slept: this clock never goes back
            patched.setattr(time, "gmtime", lambda real=time.gmtime: real(1_700_000_000))
            found = run(tmp_path / str(n))
        time.tzset()
        assert found[0] == weights and found[1] == losses
        assert not re.search(r"-\d+:\d\d left", found[2])
        state = json.loads((tmp_path / str(n) / "run.json").read_text())
        assert state["started"] == state["ended"] == "2023-11-14T22:13:20Z", "in UTC, wherever it runs"
        tally.survived += 1
