"""What a JSON file must hold. A file that somebody edited is refused by its name and the field that is wrong.

str, bool           text; true or false
dict, list          an object or a list of anything
Number(...)         a number in a range, never NaN or infinite
("a", "b")          one of these texts
[kind]  [kind, 3]   a list of any length; of three
{"name": kind}      an object with these fields; "name?" may be missing; others are left alone
{...: kind}         an object whose other fields are all of the kind
Maybe(kind)         null, or of the kind
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sccam.errors import RunFolderError

Kind = Any
"""One of those above."""

SHOWN = 60  # characters of a wrong value
_IN_WORDS = {str: "text", bool: "true or false", dict: "an object", list: "a list"}


@dataclass(frozen=True, slots=True)
class Number:
    """Both ends belong to the range."""

    low: float = -math.inf
    high: float = math.inf
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if math.isinf(self.low) and math.isinf(self.high):
            return kind
        if math.isinf(self.high):
            return f"{kind} from {self.low:g} on"
        return f"{kind} from {self.low:g} to {self.high:g}"

    def holds(self, value: Any) -> bool:
        """Whether the value is such a number; true and false are none."""
        kinds = (int,) if self.whole else (int, float)
        return type(value) in kinds and (type(value) is int or math.isfinite(value)) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Maybe:
    """Null, or of the kind."""

    kind: Kind


def check(value: Any, kind: Kind, where: object, name: str = "") -> None:
    """Refuses a value that is not of the kind.

    Args:
        value: as `json.loads` gives it.
        where: the file, for the error.
        name: of the value in the file; empty for all of it.

    Raises:
        RunFolderError: with the file, the field, what belongs there and what is there.
    """
    for problem in _problems(value, kind, name):
        raise RunFolderError(
            problem, where=where, why="the file was edited by hand, is damaged, or was written by another version",
            fix="copy it from where it was made, or make it again",
        )  # fmt: skip


def _problems(value: Any, kind: Kind, name: str) -> Iterator[str]:
    if isinstance(kind, Maybe):
        if value is not None:
            yield from _problems(value, kind.kind, name)
    elif isinstance(kind, Mapping):
        if not isinstance(value, dict):
            yield _wrong(name, "an object", value)
            return
        known = {str(field).removesuffix("?"): inner for field, inner in kind.items() if field is not ...}
        for field, inner in known.items():
            full = f"{name}.{field}" if name else field
            if field in value:
                yield from _problems(value[field], inner, full)
            elif f"{field}?" not in kind:
                yield f"{full} is missing"
        for field in value.keys() - known.keys() if ... in kind else ():
            yield from _problems(value[field], kind[...], f"{name}.{field}" if name else field)
    elif isinstance(kind, list):
        inner, *count = kind
        if not isinstance(value, list) or (count and len(value) != count[0]):
            yield _wrong(name, f"a list of {count[0]}" if count else "a list", value)
            return
        for n, item in enumerate(value):
            yield from _problems(item, inner, f"{name}[{n}]")
    elif isinstance(kind, tuple):
        if value not in kind:
            yield _wrong(name, " or ".join(map(repr, kind)), value)
    elif isinstance(kind, Number):
        if not kind.holds(value):
            yield _wrong(name, str(kind), value)
    elif type(value) is not kind:
        yield _wrong(name, _IN_WORDS[kind], value)


def _wrong(name: str, expected: str, value: Any) -> str:
    if isinstance(value, dict | list):
        shown = "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    else:
        shown = json.dumps(value, ensure_ascii=False)
    return f"{name or 'the file'}: expected {expected}, found {shown[:SHOWN]}{'...' if len(shown) > SHOWN else ''}"


# What the files of a run hold. A field that nothing reads is not named.

SHARE, COUNT = Number(0, 1), Number(0, whole=True)
CELLS = Number(1, 1024, whole=True)  # [px per cell], dilations and radii [cells]
SIDE = Number(0, 1 << 16, whole=True)  # [px]
FINITE = Number(-1e9, 1e9)  # what may be drawn
SCORE = Maybe(SHARE)
_SPEC = {"name": str, "dtype": str, "shape": list}
_MADE_FROM = {
    "output_stride?": CELLS, "subcategory_parent?": [COUNT], "maps?": ("parent", "reactivated", "prototypes"),
    "affinity?": str, "radius?": CELLS, "rates?": [CELLS], "scales?": [Number(1e-3, 8)], "long_side?": SIDE,
    "pad_multiple?": CELLS, "subtract?": Maybe(SHARE),
}  # fmt: skip
MANIFEST = {
    "file": str, "sha256": str, "kind": str, "backbone": str, "classes": [str], "mean": [SHARE, 3],
    "std": [Number(1e-6, 1e6), 3], "stride": CELLS, "made_by": str, "made_from": _MADE_FROM, "backend?": str,
    "precision?": str, "inputs?": [_SPEC], "outputs?": [_SPEC], "parity?": Maybe(dict),
}  # fmt: skip
PARITY = {
    "passed": bool, "runtime": str, "relative_error": Number(0), "agreement": SHARE, "speed_up": Maybe(Number()),
    "failures": [str],
}  # fmt: skip
RUN = {
    "schema?": COUNT, "status?": str, "sccam?": str, "started?": str, "data?": {"root?": str, "sha256?": str},
    "finished?": {...: {"seconds?": Number(0, 1e9), "commit?": str, "device?": str}}, "spent?": {...: Number(0, 1e9)},
}  # fmt: skip
DATA = {"root": str, "classes": [str]}
ALPHA = Number(0, 1e6)  # an exponent
THRESHOLD = {"threshold": SHARE, "alpha_low": ALPHA, "alpha_high": ALPHA, "alpha_walk": ALPHA}
WALK = {"steps": COUNT}
_ROW = {
    "stage": str, "split": str, "column": ("fixed", "image_only", "oracle", "labels"), "images": COUNT, "miou": SCORE,
    "mean_precision?": SCORE, "mean_recall?": SCORE, "iou": {...: SCORE}, "threshold?": SHARE, "alpha?": FINITE,
    "curve?": [[FINITE, 2]],
}  # fmt: skip
SCORES = {"rows": [_ROW], "hidden?": [{"round": COUNT}]}
EPOCH = {"stage": str, "epoch?": COUNT, "loss?": Number()}
