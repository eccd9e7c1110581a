"""Settings: frozen dataclasses <-> TOML. This file knows the shape of settings and not one of their names.

A dataclass is a table, a field is a key, a nested dataclass is a table inside. What a file leaves out keeps its
default. For a nested dataclass that is the default of the field that holds it: with `augment: Augment = Augment(321)`
a file that sets another key of `[augment]` keeps the 321. An unknown key is refused and the nearest name offered.

    annotation               in TOML
    int, float, bool, str    whole number, number (3 too, nan never), true or false, text
    tuple[T, ...]            list; tuple[T, U]: list of that length; list[T] as well
    a dataclass              table
    X | None                 X, or the text "none"

Limits stand in the field: `field(default=4, metadata={"min": 1, "max": 50})` or `metadata={"choices": ("psa", "all")}`.
Both ends belong to the range; of a list each element is checked. What depends on two fields belongs in
`__post_init__`, which raises ConfigError.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sccam.errors import ConfigError, short

Config = TypeVar("Config")

NONE = "none"  # TOML has no null; written for None, and read as None where the annotation allows it
_IN_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
MOST_SHOWN = 80  # characters of a wrong value
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def load(cls: type[Config], path: Path | str) -> Config:
    """The settings in a TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, a value has the wrong type or is out of range.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")  # some editors write a byte-order mark
    except FileNotFoundError:
        raise ConfigError("the settings file does not exist", where=path, fix="check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"the settings file is not UTF-8 text: {error.reason}", where=path) from None
    except OSError as error:
        raise ConfigError(f"the settings file cannot be read: {error.strerror}", where=path) from None
    try:
        mapping = tomllib.loads(text)
    except RecursionError:
        raise ConfigError(
            "nested too deeply", where=path, fix="write tables of settings: [table] and key = value"
        ) from None
    except ValueError as error:  # not only TOMLDecodeError: a number may have too many digits
        line = re.search(r"line (\d+)", str(error))
        raise ConfigError(
            f"not valid TOML: {error}",
            where=f"{path}:{line[1]}" if line else path,
            why="text without quotes, a missing bracket, or a key given twice",
            fix="correct that line",
        ) from None
    return from_mapping(cls, mapping, where=path)


def from_mapping(cls: type[Config], mapping: Mapping[str, Any], *, where: object = "settings") -> Config:
    """The settings in a nested mapping, as `tomllib` or `json` returns it.

    Args:
        where: what the errors name as the place, usually the file.

    Raises:
        ConfigError: as for `load`.
    """
    return _Reader(cls, str(where)).table(cls, mapping, "", None)


def override(config: Config, assignments: Sequence[str], *, where: object = "--set") -> Config:
    """`config` with some settings replaced: `["classify.epochs=8", "network.backbone=resnet50"]`; the last one wins.

    A value is read as TOML and, where it is not TOML, as text, so that names need no quotes.

    Raises:
        ConfigError: not of the form name=value, or as for `load`.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        *tables, key = (part.strip() for part in name.split("."))
        if not equals or not all((*tables, key)):
            raise ConfigError(f"not an assignment: {_cut(repr(assignment))}", where=where, fix="write table.name=value")
        table = changes
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{_cut(repr(assignment))} contradicts an assignment of {part!r} before it", where=where
                )
        table[key] = _command_line_value(text.strip())
    return _Reader(type(config), str(where)).table(type(config), changes, "", config)


def to_dict(config: Any) -> dict[str, Any]:
    """The settings as nested dicts of plain values, fit for JSON; tuples become lists."""
    return {name: _plain(getattr(config, name)) for name in _fields(type(config))}


def dump(config: Any) -> str:
    """The settings as TOML with every default written out; `load` gives the same settings back."""
    return dump_toml(to_dict(config))


def differences(a: Any, b: Any) -> list[str]:
    """One line for each setting that differs: `classify.epochs: 8 -> 12`. Empty when the settings are equal."""
    before, after = dict(leaves(to_dict(a))), dict(leaves(to_dict(b)))
    shown = [{name: _shown(value) for name, value in side.items()} for side in (before, after)]
    return [
        f"{name}: {shown[0].get(name, 'absent')} -> {shown[1].get(name, 'absent')}"
        for name in dict.fromkeys((*before, *after))
        if name not in before or name not in after or before[name] != after[name]
    ]


def dump_toml(mapping: Mapping[str, Any]) -> str:
    """A mapping of int, float, bool, str, None, lists of them and mappings as TOML text.

    Raises:
        TypeError: any other type, so that nothing is written that would read back as something else.
    """
    return "\n".join(_toml_lines(mapping, ())).strip("\n") + "\n"


@dataclasses.dataclass(frozen=True, slots=True)
class _Reader:
    """Turns plain values into typed settings. `root` and `where` serve the error texts only."""

    root: type
    where: str

    def table(self, cls: type[Config], given: Any, name: str, base: Any) -> Config:
        """A `cls` with the keys of `given`; the others come from `base`, or are the defaults of `cls`."""
        if not isinstance(given, Mapping):
            raise self.wrong_type(cls, given, name)
        for key in given:
            if key not in _fields(cls):
                raise self.unknown(cls, key, name)
        settings: dict[str, Any] = {}
        for key, field in _fields(cls).items():
            kind, inner = _types(cls)[key], f"{name}.{key}" if name else key
            standard = getattr(base, key) if base is not None else _default(field)
            if key in given:
                settings[key] = self.value(kind, given[key], inner, standard)
                self.check_limits(field.metadata, settings[key], inner)
            elif standard is not dataclasses.MISSING:
                settings[key] = standard
            elif dataclasses.is_dataclass(kind):
                settings[key] = self.value(kind, {}, inner, None)
            else:
                raise ConfigError(f"setting {inner!r} is missing", where=self.where, fix=f"give it {_describe(kind)}")
        try:
            return cls(**settings)
        except ConfigError as error:
            error.where = error.where or (f"{self.where} [{name}]" if name else self.where)
            raise

    def value(self, kind: Any, given: Any, name: str, base: Any) -> Any:
        """`given` as the annotation `kind` wants it."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if types.NoneType in inner:
            if given is None or given == NONE:
                return None
            return self.value(_without_none(kind), given, name, base)
        if dataclasses.is_dataclass(kind):
            return self.table(typing.cast(type, kind), given, name, base if type(base) is kind else None)
        if origin in (tuple, list):
            if not isinstance(given, list | tuple):
                raise self.wrong_type(kind, given, name)
            kinds = [inner[0]] * len(given) if origin is list or inner[-1] is Ellipsis else list(inner)
            if len(kinds) != len(given):
                raise self.wrong_type(kind, given, name)
            return origin(self.value(kinds[i], item, f"{name}[{i}]", None) for i, item in enumerate(given))
        if kind not in _IN_WORDS:
            raise TypeError(f"{name}: settings of type {kind} are not supported; see the table in {__name__}")
        if kind is float and type(given) is int:
            return float(given)
        if type(given) is not kind or given != given:
            raise self.wrong_type(kind, given, name)
        return given

    def check_limits(self, limits: Mapping[str, Any], value: Any, name: str) -> None:
        if isinstance(value, list | tuple):
            for i, item in enumerate(value):
                self.check_limits(limits, item, f"{name}[{i}]")
            return
        low, high, choices = limits.get("min"), limits.get("max"), limits.get("choices")
        if value is None:
            return
        if choices is not None and value not in choices:
            near = difflib.get_close_matches(str(value), map(str, choices), n=1)
            raise ConfigError(
                f"{name} = {_cut(_shown(value))} is not one of the choices",
                where=self.where,
                fix=(f"did you mean {near[0]!r}? " if near else "") + f"choose from {', '.join(map(_shown, choices))}",
            )
        if (low is not None and value < low) or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"at most {high}" if low is None else f"{low} to {high}"
            raise ConfigError(
                f"{name} = {_cut(_shown(value))} is out of range", where=self.where, fix=f"allowed is {allowed}"
            )

    def wrong_type(self, kind: Any, given: Any, name: str) -> ConfigError:
        got = "a table" if isinstance(given, Mapping) else _cut(_shown(given))
        if isinstance(given, str):
            got = f"the text {got}"
        return ConfigError(
            f"{name or 'settings'}: expected {_describe(kind)}, got {got}",
            where=self.where,
            fix=f'write it in quotes: "{given}"' if kind is str and not isinstance(given, Mapping) else None,
        )

    def unknown(self, cls: type, key: str, name: str) -> ConfigError:
        """Offers the nearest name of the same table, or else the same name in another table."""
        table = f"{name}." if name else ""
        near = [table + known for known in difflib.get_close_matches(key, _fields(cls), n=1)]
        elsewhere = [known for known in _names(self.root) if known.split(".")[-1] == key]
        offered = " or ".join(map(repr, near or elsewhere))
        known = f"{f'[{name}]' if name else 'the top level'} knows {', '.join(_fields(cls)) or 'no settings'}"
        return ConfigError(
            f"unknown setting {short(table + key)}",
            where=self.where,
            fix=f"did you mean {offered}? {known}" if offered else known,
        )


def _types(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _fields(cls: Any) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(cls) if field.init}


def _default(field: dataclasses.Field[Any]) -> Any:
    """The field's default, or MISSING."""
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _without_none(kind: Any) -> Any:
    arms = [arm for arm in typing.get_args(kind) if arm is not types.NoneType]
    return arms[0] if len(arms) == 1 else kind


def _names(cls: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings below `cls`."""
    for name in _fields(cls):
        yield prefix + name
        kind = _without_none(_types(cls)[name])
        if dataclasses.is_dataclass(kind):
            yield from _names(kind, f"{prefix}{name}.")


def _describe(kind: Any) -> str:
    """An annotation in words."""
    inner = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return "a table"
    if types.NoneType in inner:
        return f'{_describe(_without_none(kind))} or "{NONE}"'
    if not inner:
        return _IN_WORDS[kind]
    if typing.get_origin(kind) is list or inner[-1] is Ellipsis:
        return f"a list, each element {_describe(inner[0])}"
    return f"a list of {len(inner)}: {', '.join(map(_describe, inner))}"


def _command_line_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):  # a number of too many digits, brackets without end
        return text
    value = parsed.pop("value")
    # a date, or text whose second line happens to be TOML, is text
    return value if isinstance(value, bool | int | float | str | list | dict) and not parsed else text


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def leaves(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of nested settings and their values."""
    for name, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _shown(value: Any) -> str:
    try:
        return NONE if value is None else _toml_value(value)
    except TypeError:
        return repr(value)


def _cut(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _toml_lines(mapping: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Plain values first: below a `[table]` line they would belong to that table."""
    if path:
        yield f"\n[{'.'.join(map(_toml_key, path))}]"
    for name, value in mapping.items():
        if not isinstance(value, Mapping):
            yield f"{_toml_key(name)} = {_toml_value(value)}"
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _toml_lines(value, (*path, name))


def _toml_key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml_value(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(name)} = {_toml_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    if type(value) is bool:
        return "true" if value else "false"
    if value is None or type(value) is str:  # a JSON string is a TOML string, but for DEL, which TOML wants escaped
        return json.dumps(NONE if value is None else value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if type(value) is int or (type(value) is float and not math.isnan(value)):
        return repr(value)
    raise TypeError(f"{value!r} ({type(value).__name__}) has no form in a settings file")
