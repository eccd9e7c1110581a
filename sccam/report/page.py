"""`sccam report`: one static page of a run, in a folder of its own, that needs no network and no program.

Every section is left out where the run has not come so far. Names of files, classes and tags are escaped by the
template engine; pictures get file names of the page's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from sccam.artifacts import RunFolder, is_leftover, write_text
from sccam.data import open_dataset
from sccam.data.masks import voc_palette
from sccam.errors import DataError, RunFolderError
from sccam.recipe import load_config
from sccam.report import facts
from sccam.report.clusters import montages, weight_map
from sccam.report.gallery import Item, gallery
from sccam.runtime.pool import worker_count
from sccam.structures import Dataset

SECTIONS = {
    "summary": "Summary", "gallery": "Images", "clusters": "Sub-categories", "rounds": "Rounds",
    "classes": "Classes", "curves": "Curves", "figures": "All figures",
}  # fmt: skip
MARK = "sccam report</title>"  # by which a page of ours is known
PICTURES = ("tiles", "members")  # folders beside the page
IMAGES = 200  # of the gallery


def write_report(
    run: Path | str,
    out: Path | str | None = None,
    *,
    data: Path | None = None,
    ablation: Path | None = None,
    bench: Path | None = None,
    images: int = IMAGES,
    workers: int = 0,
) -> Path:
    """Writes the page of a run, finished or not, and returns its index.html.

    Args:
        run: the run folder.
        out: folder of the page; RUN/report by default. What an earlier report left there is replaced.
        data: the image folder, where it is no longer at its place.
        ablation: folder of `sccam ablate`, for mIoU over K.
        bench: JSON file of `sccam bench`, for a table of its rows.
        images: most images of the gallery.
        workers: processes; 0 takes all cores.

    Raises:
        RunFolderError: the folder holds no run, or `out` holds something else than a report.
    """
    folder = RunFolder(run)
    state = folder.state()
    if "schema" not in state:
        raise RunFolderError("this is no run", where=run, fix="give the folder that `sccam train` wrote")
    out = Path(out) if out else folder / "report"
    _emptied(out)
    settings = load_config(str(folder / "config.toml"), [])
    dataset, notes = _dataset(folder, settings.data, data)
    rows, workers = facts.score_rows(folder), worker_count(workers)
    items: list[Item] = []
    total, groups = 0, []
    if dataset is not None:
        items, total = gallery(folder, dataset, out, most=images, map_stride=settings.cam.grid_stride, workers=workers)
        groups = montages(folder, dataset, out, workers=workers)
    classes = dataset.classes if dataset else tuple(_classes(folder))
    rounds, finished = facts.round_table(folder), state.get("finished", {})
    class_titles, class_rows = facts.class_table(rows)
    bench_device, bench_rows = facts.bench_table(bench)
    content: dict[str, Any] = {
        "name": folder.path.resolve().name,
        "status": state.get("status", "unknown"),
        "facts": _facts(state, settings.network.backbone, classes, dataset),
        "notes": notes,
        "classes": classes,
        "tiles": _tiles(rows),
        "items": items,
        "shown": len(items),
        "total": total,
        "splits": sorted({item.split for item in items}),
        "has_scores": any(item.score is not None for item in items),
        "colours": [(name, "rgb({}, {}, {})".format(*colour)) for name, colour in
                    zip(classes, voc_palette(len(classes) + 1)[1:].tolist(), strict=True)],
        "montages": groups,
        "weights": weight_map(folder, classes),
        "rounds": rounds,
        "has_hidden": any("telling" in row for row in rounds),
        "k_charts": facts.k_ablation(ablation),
        "class_titles": class_titles,
        "class_rows": class_rows,
        "confusion": facts.confusion(folder, dataset),
        "thresholds": facts.threshold_charts(rows),
        "losses": facts.loss_charts(folder),
        "rows": rows,
        "column_names": facts.COLUMNS,
        "bench_device": bench_device,
        "bench_rows": bench_rows,
        "parity": facts.parity_table(folder),
        "seconds": [(stage, {"commit": "", "device": "", **found}) for stage, found in finished.items()
                    if "seconds" in found],
    }  # fmt: skip
    page = out / "index.html"
    write_text(page, _rendered(content))
    return page


def _rendered(content: dict[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    place = files("sccam.report") / "templates"
    engine = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = engine.from_string((place / "report.html").read_text(encoding="utf-8"))
    own = {name: Markup((place / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    content = {**content, "style": own["css"], "script": own["js"], "percent": _percent, "share": _share}
    text = template.render(**content, sections=[])
    present = [(id, title) for id, title in SECTIONS.items() if f'<section id="{id}">' in text]
    return template.render(**content, sections=present)


def _percent(value: Any = None) -> str:
    return f"{100 * value:.1f}" if isinstance(value, (int, float)) else "–"


def _share(value: Any = None) -> str:
    return f"{value:.2f}" if isinstance(value, (int, float)) else "–"


def _emptied(out: Path) -> None:
    """Makes the folder; an earlier report is removed, anything else is refused."""
    own = {"index.html", *PICTURES}
    names = {entry.name for entry in out.iterdir()} if out.exists() else set()
    page = out / "index.html"
    left = set(filter(is_leftover, names))  # by a report that was killed
    if names - own - left or (page.exists() and MARK not in page.read_text(encoding="utf-8", errors="replace")):
        raise RunFolderError("the folder holds other files than a report", where=out, fix="choose an empty --out")
    for part in PICTURES:
        shutil.rmtree(out / part, ignore_errors=True)
    for name in left:
        (out / name).unlink()
    out.mkdir(parents=True, exist_ok=True)


def _dataset(folder: RunFolder, options: Any, moved: Path | None) -> tuple[Dataset | None, list[str]]:
    path = folder / "data.json"
    if moved is None and not path.exists():
        return None, ["The run has not read its images yet."]
    root = moved or Path(folder.data()["root"])
    try:
        return open_dataset(root, **asdict(options)), []
    except DataError as error:
        if moved is not None:
            raise
        why = f"The images cannot be read, so no pictures are shown ({error.what})."
        return None, [f"{why} `--data FOLDER` names their new place."]


def _classes(folder: RunFolder) -> list[str]:
    return list(folder.data()["classes"]) if (folder / "data.json").exists() else []


def _facts(state: dict[str, Any], backbone: str, classes: Sequence[str], dataset: Dataset | None) -> list[str]:
    seconds = sum(found.get("seconds", 0.0) for found in state.get("finished", {}).values())
    found = [f"{len(classes)} classes"]
    if dataset is not None:
        masks = len(dataset.masks.paths)
        found.append(f"{len(dataset.train)} training images, {len(dataset.val)} others")
        found.append(f"{masks} true masks, for measuring only" if masks else "no true masks")
    minutes, begun = f"{seconds / 60:.1f} minutes", f"begun {state.get('started', 'unknown')}"
    return [*found, backbone, minutes, begun, f"sccam {state.get('sccam', 'unknown')}"]


def _tiles(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each kind that a run ends with."""
    wanted = {"maps": ("maps/", "image_only", "activation maps"), "walk": ("walk", "image_only", "after the walk"),
              "labels": ("pseudo_labels", "labels", "pseudo labels"), "segmenter": ("segmenter", "labels", "segmenter"),
              "crf": ("segmenter+crf", "labels", "segmenter with CRF")}  # fmt: skip
    tiles = []
    for prefix, column, title in wanted.values():
        fitting = [row for row in rows if row["column"] == column and
                   (row["stage"].startswith(prefix) if prefix.endswith("/") else row["stage"] == prefix)]  # fmt: skip
        if fitting:
            row = fitting[-1]
            tiles.append({"miou": row["miou"], "title": title, "note": f"{row['images']} images, {row['split']}"})
    return tiles
