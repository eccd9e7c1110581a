"""Writes settings.md from the settings themselves: python docs/settings_page.py

Names, types, defaults and limits are those of the dataclasses, meanings and sources the comments beside their fields.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import tokenize
import typing
from pathlib import Path
from typing import Any

from sccam import config as toml
from sccam.recipe import RunConfig, built_in_configs, load_config

PAGE = Path(__file__).resolve().with_name("settings.md")
HEAD = """# Every setting

Written by `python docs/settings_page.py` from the code; a test compares. A setting goes into a TOML file under its
table, or on the command line: `--set table.name=value`. Defaults are the paper's or the authors' numbers where there
are any; the last column has what the built-in configurations change.
"""
COLUMNS = ("setting", "default", "allowed", "meaning and source", "otherwise in")


def page() -> str:
    """The content of settings.md."""
    built_in = {name: load_config(name, []) for name in built_in_configs()}
    parts = [HEAD]
    for table in dataclasses.fields(RunConfig):
        parts.append(f"## [{table.name}]\n")
        kind = typing.get_type_hints(RunConfig)[table.name]
        if kind.__doc__:
            parts.append(kind.__doc__.strip().split("\n")[0] + "\n")
        parts.append(
            "| setting | default | allowed | meaning and source | otherwise in |\n| --- | --- | --- | --- | --- |"
        )
        configs = {name: getattr(config, table.name) for name, config in built_in.items()}
        parts.append("\n".join(rows(kind, getattr(RunConfig(), table.name), configs)) + "\n")
    return "\n".join(parts)


def rows(kind: type, default: Any, configs: dict[str, Any], prefix: str = "") -> list[str]:
    """A line for every field of a table; tables inside it are unfolded."""
    meanings, found = comments(kind), []
    for field in dataclasses.fields(kind):
        value, name = getattr(default, field.name), prefix + field.name
        others = {config: getattr(table, field.name) for config, table in configs.items()}
        if dataclasses.is_dataclass(value):
            found += rows(type(value), value, others, f"{name}.")
            continue
        changed = ", ".join(f"{config}: `{shown(other)}`" for config, other in others.items() if other != value)
        cells = (f"`{name}`", f"`{shown(value)}`", allowed(field), meanings.get(field.name, ""), changed)
        found.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return found


def shown(value: Any) -> str:
    """As TOML has it."""
    return toml.dump_toml({"x": list(value) if isinstance(value, tuple) else value}).partition("=")[2].strip()


def allowed(field: dataclasses.Field[Any]) -> str:
    """Choices or limits."""
    rules = field.metadata
    if "choices" in rules:
        return ", ".join(f"`{shown(choice)}`" for choice in rules["choices"])
    low, high = rules.get("min"), rules.get("max")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"from {low}" if low is not None else f"up to {high}" if high is not None else ""


def comments(kind: type) -> dict[str, str]:
    """What stands behind each field of a dataclass in its source."""
    source = inspect.getsource(kind)
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = token.string.lstrip("# ").strip()
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    fields = [node for node in tree.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    return {
        node.target.id: " ".join(lines[n] for n in range(node.lineno, (node.end_lineno or 0) + 1) if n in lines)
        for node in fields
        if isinstance(node.target, ast.Name)
    }


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
