"""What README and docs/ say can be done: every command exists with its options, every link leads somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import sccam.cli  # noqa: F401  (hangs the commands on the app)
from sccam.cli.app import app
from sccam.stages.segment import SegmentConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
COMMAND = typer.main.get_command(app)


def commands(text: str) -> Iterator[str]:
    """Lines of code blocks, fenced or indented, that call sccam; continuation lines are joined."""
    fenced = False
    lines = iter(text.replace("\\\n", " ").split("\n"))
    for line in lines:
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif (fenced or line.startswith("    ")) and line.strip().startswith("sccam "):
            yield line.strip()


def problem(line: str) -> str:
    """Why a command line cannot be run; empty where it can, as far as its words go."""
    words = shlex.split(line.partition(" #")[0])[1:]
    words = words[: next((n for n, word in enumerate(words) if word in ("|", "&&", ">", "&")), len(words))]
    words = [word for word in words if word not in ("...", "[...]")]
    command, name = COMMAND, ["sccam"]
    while hasattr(command, "commands"):
        if not words:
            return ""
        found = command.commands.get(words[0])
        if found is None:
            return f"{' '.join(name)} has no command {words[0]!r}"
        command, name, words = found, [*name, words[0]], words[1:]
    context = type(COMMAND).context_class(command, info_name=" ".join(name))
    try:
        command.parse_args(context, list(words))
    except Exception as error:  # typer has its own copies of click's classes
        return f"{' '.join(name)}: {error}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_exists_with_its_arguments_and_options(page):
    problems = [f"{line}\n    {why}" for line in commands(page.read_text(encoding="utf-8")) if (why := problem(line))]
    assert not problems, "\n".join(problems)


def test_there_are_commands_to_check():
    assert sum(len(list(commands(page.read_text(encoding="utf-8")))) for page in PAGES) > 40


@pytest.mark.parametrize(
    "line",
    ["sccam trian photos", "sccam train photos --resme", "sccam data chek photos", "sccam infer", "sccam eval a b c",
     "sccam export run --memory much"],
)  # fmt: skip
def test_a_misspelt_command_option_or_number_of_arguments_is_found(line):
    assert problem(line)


def anchors(path: Path) -> set[str]:
    """Names of the headings of a page, as they are linked to."""
    headings = re.findall(r"^#+ +(.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        path = (page.parent / place).resolve() if place else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_of_make_exist(page):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)\b(?=`|\s*#|\s*$)", page.read_text(encoding="utf-8"), re.M))
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_on_the_pages_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S):
        compile(block, page.name, "exec")


def test_the_page_of_settings_is_that_of_the_code():
    space = runpy.run_path(str(ROOT / "docs/settings_page.py"))
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == space["page"](), (
        "run: python docs/settings_page.py"
    )
    assert space["comments"](SegmentConfig)["balance"].startswith("of rare labels")


def test_every_page_is_in_the_navigation_of_the_site():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ *- (\w+\.md)$", text, re.M))
    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_on_the_site_links_into_the_checkout_become_names():
    changed = runpy.run_path(str(ROOT / "docs/links.py"))["on_page_markdown"]
    assert changed("[walk.py](../sccam/stages/walk.py) and [its sums](../a/b.md#sums), [here](data.md)") == (
        "`sccam/stages/walk.py` and its sums (`a/b.md`), [here](data.md)"
    )
