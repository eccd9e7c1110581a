"""`sccam report`: what is on the page, that names are text on it, and that a half-finished run has one, too."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sccam.artifacts import RunFolder, read_json, write_json
from sccam.data.masks import write_mask
from sccam.errors import DataError, RunFolderError
from sccam.report.facts import k_ablation
from sccam.report.gallery import _score_job
from sccam.report.page import write_report
from tests.report.conftest import CLASSES, file_names


class Page(HTMLParser):
    """Elements and text of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(name) == value for name, value in wanted.items())]


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> tuple[Path, Page]:
    out = tmp_path_factory.mktemp("page")
    path = write_report(run, out, workers=1)
    return path, Page(path)


def test_every_section_of_a_finished_run_is_there_and_linked(page):
    _, found = page
    sections = [a["id"] for a in found.all("section")]
    assert sections == ["summary", "gallery", "clusters", "rounds", "classes", "curves", "figures"]
    assert [a["href"] for a in found.all("a")] == [f"#{id}" for id in sections]


def test_names_of_files_and_classes_are_text_and_nothing_else(page):
    _, found = page
    assert len(found.all("script")) == 1 and not found.all("b", onload="boom()")
    handlers = [name for _, attributes in found.tags for name in attributes if name.startswith("on")]
    assert handlers == []
    names = {a["data-name"] for a in found.all("article")}
    assert names == set(file_names())
    tags = {tag for a in found.all("article") for tag in json.loads(a["data-tags"] or "")}
    assert tags == set(CLASSES)


def test_nothing_on_the_page_comes_from_elsewhere_and_every_picture_is_there(page):
    path, found = page
    sources = [a["src"] for a in found.all("img") if a.get("src")]
    assert len(sources) > 20 and all((path.parent / str(source)).is_file() for source in sources)
    assert not found.all("link", rel="stylesheet") and not [a for a in found.all("script") if a.get("src")]
    assert "http" not in path.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")


def test_an_image_shows_every_stage_in_its_order(page):
    _, found = page
    text = "\n".join(found.text)
    first = text.index("\nimage\n")
    places = [text.index(f"\n{title}\n", first) for title in ("map, round 0", "map, round 1", "walked", "pseudo label")]
    assert places == sorted(places) and "\nsegmenter\n" in text and "\ntruth\n" in text


def test_the_score_of_an_image_is_that_of_its_last_mask(page):
    _, found = page
    scores = {a["data-name"]: float(a["data-score"] or "nan") for a in found.all("article")}
    names = file_names()
    assert scores[names[0]] == 1.0  # its pseudo label is the truth
    assert scores[names[1]] > scores[names[2]] > scores[names[3]]  # each is shifted farther


def test_a_label_that_only_the_mask_has_counts_against_it(tmp_path):
    truth, mask = np.zeros((10, 10), np.uint8), np.zeros((10, 10), np.uint8)
    mask[:5] = 1
    write_mask(tmp_path / "truth.png", truth)
    write_mask(RunFolder(tmp_path).pseudo_label("a"), mask)
    score, name = _score_job(tmp_path, "train", "a", tmp_path / "truth.png", ("cat", "dog"))
    assert (score, name) == (0.25, "pseudo label")  # half of the background, none of the cat


def test_clusters_have_sizes_and_their_members(page):
    _, found = page
    text = " ".join("".join(found.text).split())
    assert text.count("1 image ") >= 4 and "silhouette" in text


def test_a_run_that_has_only_begun_has_a_page(run, tmp_path):
    folder = RunFolder(tmp_path / "begun")
    folder.path.mkdir()
    shutil.copy(run / "config.toml", folder / "config.toml")
    folder.update(schema=1, status="running", finished={})
    (folder / "round0_classify.checkpoint.safetensors").write_bytes(b"")
    with (folder / "metrics.jsonl").open("w") as file:
        file.write('{"stage": "round0/classify", "epoch": 0, "loss": 2.0}\n{"stage": "round0/cl')
    path = write_report(folder.path, workers=1)
    assert path == folder / "report/index.html"
    assert [a["id"] for a in Page(path).all("section")] == ["curves"]
    assert "has not read its images yet" in path.read_text()


def test_images_that_are_gone_leave_a_note_and_may_be_named(run, photos, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    write_json(moved / "data.json", {**read_json(moved / "data.json"), "root": str(tmp_path / "nowhere")})
    page = Page(write_report(moved, workers=1))
    assert "gallery" not in [a["id"] for a in page.all("section")] and "--data FOLDER" in "".join(page.text)
    page = Page(write_report(moved, data=photos, workers=1))
    assert len(page.all("article")) == len(file_names())
    with pytest.raises(DataError):
        write_report(moved, data=tmp_path / "nowhere", workers=1)


def test_a_picture_that_is_broken_leaves_a_gap_and_the_page_is_made(run, photos, tmp_path):
    broken = tmp_path / "photos"
    shutil.copytree(photos, broken)
    (broken / "masks" / f"{file_names()[0]}.png").unlink()  # else its size would be compared before
    (broken / "images" / f"{file_names()[0]}.png").write_bytes(b"no image")
    path = write_report(run, tmp_path / "page", data=broken, workers=1)
    assert "this image could not be read" in path.read_text()


def test_few_images_are_the_hardest_and_some_others(run, tmp_path):
    page = Page(write_report(run, tmp_path / "page", images=2, workers=1))
    scores = [float(a["data-score"] or "nan") for a in page.all("article")]
    assert len(scores) == 2 and "2 of 5 images" in "".join(page.text)
    everything = Page(write_report(run, tmp_path / "all", workers=1)).all("article")
    assert min(scores) == min(float(a["data-score"] or "nan") for a in everything)


def test_a_report_replaces_an_earlier_one_and_no_other_folder(run, tmp_path):
    out = tmp_path / "page"
    write_report(run, out, workers=1)
    (out / "tiles/old.jpg").write_bytes(b"")
    write_report(run, out, workers=1)
    assert not (out / "tiles/old.jpg").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("years of work")
    with pytest.raises(RunFolderError, match="other files"):
        write_report(run, tmp_path / "other", workers=1)
    assert (tmp_path / "other/thesis.txt").exists()
    (tmp_path / "site/tiles").mkdir(parents=True)
    (tmp_path / "site/index.html").write_text("<title>my site</title>")
    with pytest.raises(RunFolderError, match="other files"):
        write_report(run, tmp_path / "site", workers=1)
    assert "my site" in (tmp_path / "site/index.html").read_text()


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="no run"):
        write_report(tmp_path)


def test_the_curve_over_k_takes_variants_that_change_nothing_else(tmp_path):
    def variant(mean: float, *settings: str) -> dict[str, object]:
        return {"settings": [*settings, "run.until=maps"],
                "rows": [{"stage": "maps", "column": "image_only", "split": "train", "mean": mean}]}  # fmt: skip

    variants = {"plain": variant(50.0), "two": variant(51.0, "cluster.k=2"), "ten": variant(52.5, "cluster.k=10"),
                "other": variant(60.0, "cluster.k=5", "cam.long_side=640")}  # fmt: skip
    write_json(tmp_path / "ablation.json", {"baseline": "plain", "variants": variants})
    ((title, drawing),) = k_ablation(tmp_path)
    assert "clusters of a class" in title and drawing.count("<circle") == 3 and "ten: 52.5" in drawing
    variants["one"] = {**variants["plain"], "settings": ["cluster.k=1", "run.until=maps"]}
    write_json(tmp_path / "ablation.json", {"baseline": "plain", "variants": variants})
    ((_, drawing),) = k_ablation(tmp_path)
    assert "one: " in drawing and "plain: " not in drawing  # rounds with K = 1 are what the others are held against
    assert k_ablation(None) == []


def test_a_stage_has_its_seconds_and_where_it_is_told_its_code_and_device(page):
    _, found = page
    told = found.text[found.text.index("Seconds") :]
    stage = told.index("round0/classify")
    assert told[stage : stage + 4] == ["round0/classify", "3.0", "<b>0123456789", "1 core of <i>some"]
    scores = told.index("scores")
    assert told[scores : scores + 2] == ["scores", "1.0"] and not told[scores + 2].strip()


def test_rows_of_a_benchmark_are_shown_with_their_device(run, tmp_path):
    row = {"suite": "walk", "case": "a < b", "row": "native", "baseline": "eager", "ratio": 12.5, "wrong": True,
           "seconds": {"median": 0.002, "q1": 0.001, "q3": 0.003}, "max_error": 1e-6}  # fmt: skip
    write_json(tmp_path / "bench.json", {"facts": {"device": "some device"}, "rows": [row]})
    text = " ".join(Page(write_report(run, tmp_path / "page", bench=tmp_path / "bench.json", workers=1)).text)
    assert "Speed on some device" in text and "12.50 ×" in text and "a < b" in text and "WRONG" in text
