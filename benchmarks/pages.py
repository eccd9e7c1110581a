"""What the scripts here share: replacing a table of a page, and the libraries that a result names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = {"better": "**+**", "worse": "**-**", "no difference": "="}  # of a difference, in tables
LIBRARIES = ("torch", "timm", "scikit-learn", "pydensecrf2", "numpy")


def difference_cell(found: Mapping[str, Any]) -> str:
    """A difference [points] as a cell has it: word, mean, and the ends of its interval."""
    return f"{WORDS[found['word']]} {found['mean']:+.1f}, {found['low']:+.1f} to {found['high']:+.1f}"


def replace_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two marks of a page."""
    before, rest = page.read_text(encoding="utf-8").split(begin, 1)
    after = rest.split(end, 1)[1]
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
