"""The `names` of a YOLO data.yaml, in the forms in which programs write them; the rest of the file is not looked at.

    names: [cat, "dog"]        names: {0: cat, 1: dog}        names:            names:
                                                                - cat             0: cat
                                                                - dog             1: dog

A whole YAML parser would be one more dependency for one key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from sccam.data.checks import check_names
from sccam.data.text import read_lines
from sccam.errors import DataError

# A quoted text, or anything up to the end of its entry
_SCALAR = r"""("(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|[^\s,\[\]{}"'][^,\[\]{}]*)"""
_ENTRY = re.compile(rf"\s*(?:([0-9]{{1,6}})\s*:\s+)?{_SCALAR}\s*(?:,|$)")
_BLOCK = re.compile(r"\s*(?:-|([0-9]{1,6})\s*:)\s+(.*)$")


def names_text(classes: Sequence[str]) -> str:
    """The lines that name the classes."""
    return "names:\n" + "".join(f"  {c}: {json.dumps(name, ensure_ascii=False)}\n" for c, name in enumerate(classes))


def names_in(path: Path) -> tuple[str, ...]:
    """The names of the classes in a data.yaml.

    Raises:
        DataError: there are none, or they are written in another form.
    """
    lines = read_lines(path)
    start = next((number for number, line in enumerate(lines) if re.match(r"names\s*:(\s|$)", line)), None)
    if start is None:
        raise _unknown(f"{path}", "no line begins with names:")
    rest = _without_comment(lines[start].partition(":")[2]).strip()
    found = _flow(lines, start, rest, path) if rest else _block(lines, start + 1, path)
    numbers = [number for number, _, _ in found]
    if not found or sorted(numbers) != list(range(len(found))):
        raise _unknown(f"{path}:{start + 1}", f"indices {numbers[:8]} are not 0, 1, 2, ...")
    ordered = sorted(found)
    check_names([name for _, name, _ in ordered], [where for _, _, where in ordered])
    return tuple(name for _, name, _ in ordered)


def _flow(lines: list[str], start: int, text: str, path: Path) -> list[tuple[int, str, str]]:
    where = f"{path}:{start + 1}"
    closing = {"[": "]", "{": "}"}.get(text[0])
    for line in lines[start + 1 :]:
        if closing is None or text.endswith(closing):
            break
        text += " " + _without_comment(line).strip()
    if closing is None or not text.endswith(closing):
        raise _unknown(where, f"not a list: {text[:40]!r}")
    found: list[tuple[int, str, str]] = []
    inner, at = text[1:-1].strip().removesuffix(","), 0
    while at < len(inner):
        match = _ENTRY.match(inner, at)
        if match is None:
            raise _unknown(where, f"not a name: {inner[at : at + 40]!r}")
        found.append((int(match[1]) if match[1] else len(found), _scalar(match[2], where), where))
        at = match.end()
    return found


def _block(lines: list[str], start: int, path: Path) -> list[tuple[int, str, str]]:
    found: list[tuple[int, str, str]] = []
    for number, line in enumerate(lines[start:], start + 1):
        text = _without_comment(line)
        if not text.strip():
            continue
        match = _BLOCK.match(text)
        if match is None:
            break  # the next key
        where = f"{path}:{number}"
        found.append((int(match[1]) if match[1] else len(found), _scalar(match[2].strip(), where), where))
    return found


def _without_comment(line: str) -> str:
    """The line up to a # that stands behind a space and in no quotation marks."""
    quoted: str | None = None
    for at, character in enumerate(line):
        if quoted is not None:
            quoted = None if character == quoted and line[at - 1] != "\\" else quoted
        elif character in "\"'" and (at == 0 or line[at - 1] in " [{,"):
            quoted = character
        elif character == "#" and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


def _scalar(text: str, where: str) -> str:
    text = text.strip()
    if text[:1] == "'" and text[-1:] == "'" and len(text) > 1:
        return text[1:-1].replace("''", "'")
    if text[:1] == '"':
        try:
            return str(json.loads(text))
        except ValueError:
            raise _unknown(where, f"not a quoted name: {text[:40]!r}") from None
    if not text or text[0] in "[{&*!|>%@`-":
        raise _unknown(where, f"not a name: {text[:40]!r}")
    return text


def _unknown(where: str, what: str) -> DataError:
    return DataError(
        f"names of the classes not understood: {what}", where=where,
        fix='write names: ["first", "second"], or give the names with --classes',
    )  # fmt: skip
