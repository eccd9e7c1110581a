"""A hook of `make docs`: links to files of the checkout, which the site does not hold, become the files' names."""

from __future__ import annotations

import re
from typing import Any

LINK = re.compile(r"\[([^\]]+)\]\(\.\./([^)#\s]+)[^)\s]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with such links as text and code."""

    def named(match: re.Match[str]) -> str:
        text, path = match.groups()
        plain = text.strip("`")
        return f"`{path}`" if plain in path else f"{text} (`{path}`)"

    return LINK.sub(named, markdown)
