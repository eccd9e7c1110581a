"""The page in a real browser: nothing complains, filters filter, pictures show. Skipped where there is no Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sccam.report.page import write_report
from tests.report.conftest import CLASSES, file_names

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no Chromium with its driver on this machine"),
]


class Browser:
    """A session of the W3C WebDriver protocol, as far as these tests need it."""

    def __init__(self, address: str, profile: Path):
        self.address = address
        options = {"binary": BROWSER, "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/session/{made['sessionId']}"

    def open(self, page: Path) -> None:
        self._send("POST", f"{self.session}/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        return self._send("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def resize(self, width: int, height: int) -> None:
        self._send("POST", f"{self.session}/window/rect", {"width": width, "height": height})

    def complaints(self) -> list[str]:
        found = self._send("POST", f"{self.session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in found]

    def close(self) -> None:
        self._send("DELETE", self.session)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]


@pytest.fixture(scope="module")
def browser(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    page = write_report(run, tmp_path_factory.mktemp("page"), workers=1)
    log = tmp_path_factory.mktemp("driver") / "log"
    driver = subprocess.Popen([str(DRIVER), "--port=0", f"--log-path={log}"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        line = next(line for line in driver.stdout if "started successfully on port" in line)
        port = int(line.rstrip().rstrip(".").rpartition(" ")[2])
        found = Browser(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("profile"))
        found.open(page)
        yield found
        found.close()
    finally:
        driver.terminate()
        driver.wait(timeout=20)


SHOWN = "return [...document.querySelectorAll('article')].filter(a => !a.hidden).map(a => a.dataset.name)"


def choose(browser: Browser, name: str, value: str) -> list[str]:
    """Names of the images that are shown after a filter was set by hand."""
    browser.run(
        f"const field = document.getElementById('filters').elements[{json.dumps(name)}];"
        f"field.value = {json.dumps(value)}; field.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
    return list(browser.run(SHOWN))


def test_the_page_loads_without_a_complaint_and_runs_no_foreign_script(browser):
    assert browser.complaints() == []
    assert browser.run("return typeof boom") == "undefined"
    assert browser.run("return document.scripts.length") == 1


def test_every_picture_shows(browser):
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.run("document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    missing = "return [...document.querySelectorAll('main img')].filter(i => !i.complete || !i.naturalWidth).length"
    for _ in range(50):
        if browser.run(missing) == 0:
            break
        time.sleep(0.1)
    assert browser.run(missing) == 0


def test_filters_show_what_they_say(browser):
    names = file_names()
    assert sorted(choose(browser, "tag", CLASSES[0])) == sorted(names[::2])
    assert choose(browser, "split", "val") == [names[-1]]
    assert choose(browser, "tag", CLASSES[1]) == []
    assert browser.run("return !document.getElementById('none').hidden")
    choose(browser, "split", "")
    assert sorted(choose(browser, "tag", "")) == sorted(names)
    assert choose(browser, "text", "plain") == ["plain"]
    assert len(choose(browser, "text", "")) == len(names)


def test_the_hardest_come_first_and_a_limit_leaves_only_those_below_it(browser):
    hard, easy = choose(browser, "order", "hard"), choose(browser, "order", "easy")
    assert hard == easy[::-1] and hard[-1] == file_names()[0]  # whose pseudo label is the truth
    scores = {a["name"]: float(a["score"]) for a in browser.run(
        "return [...document.querySelectorAll('article')].map(a => ({...a.dataset}))")}  # fmt: skip
    middle = round(100 * sorted(scores.values())[2])
    assert set(choose(browser, "most", str(middle))) == {n for n, s in scores.items() if s <= middle / 100}
    choose(browser, "most", "100")


def test_a_picture_becomes_large_and_small_again(browser):
    browser.run("document.querySelector('.tiles img').click()")
    assert browser.run("return document.getElementById('large').open")
    browser.run("document.getElementById('large').click()")
    assert not browser.run("return document.getElementById('large').open")


@pytest.mark.parametrize("width", [500, 1400])
def test_the_page_fits_its_window(browser, width):
    browser.resize(width, 900)
    assert browser.run("return document.documentElement.scrollWidth <= window.innerWidth")


def test_at_the_end_nothing_has_complained(browser):
    assert browser.complaints() == []
