"""The way of every text to the terminal: names of files and classes come from others and must not command it."""

from __future__ import annotations

import re
from typing import TextIO

# C0 and C1 but for line feeds and tabulators, and what turns the direction of text
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """The text with control characters written out, as \\u001b, which JSON reads back."""
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def say(text: object, *, file: TextIO | None = None, flush: bool = False) -> None:
    """Prints a line, or several, with control characters written out."""
    print(visible(str(text)), file=file, flush=flush)
