"""Label Studio: a JSON list of tasks with predictions to start from, and the labeling configuration that fits them.

    FILE.json   tasks; a region is a brush for each class of an image, or polygons with `polygons`. Import it
    FILE.xml    the configuration; paste it into Settings, Labeling Interface, Code before the import

A region's from_name and to_name are the names in the configuration, or Label Studio shows nothing. Images are named by
`image_root` and their file, percent-encoded unless in a bucket; the default is a local storage's. 255 has no place and
is left out.

Read are the regions of a task's first annotation that was not cancelled, or else of its first prediction. A later
region lies over an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.parsers import expat
from xml.sax.saxutils import quoteattr

import numpy as np

from sccam.artifacts import replacing, write_text
from sccam.data.images import image_size
from sccam.data.masks import voc_palette
from sccam.errors import DataError
from sccam.labels.items import NAME_KEY, Found, Labelled, Layout, Names, find_image, safe_name, stem
from sccam.labels.json_parts import JsonParts, line_of
from sccam.labels.paint import checked_size, paint, ring_of
from sccam.labels.polygons import polygons, regions
from sccam.labels.rle import brush, brush_mask
from sccam.structures import BACKGROUND, ByteArray

LOCAL_FILES = "/data/local-files/?d="  # of a local storage; what follows is relative to its document root
FROM_NAME, TO_NAME = "label", "image"  # of the two tags of the configuration
BRUSH, POLYGON = "brushlabels", "polygonlabels"
TAGS = {BRUSH: "BrushLabels", POLYGON: "PolygonLabels"}
PERCENT = 100.0
DIGITS = 5  # behind the point of a percentage: exact for images of less than a million pixels a side


@contextmanager
def writing(path: Path, classes: Sequence[str], layout: Layout) -> Iterator[Callable[[Labelled], int]]:
    """A file of tasks with its configuration; yields what takes an item and tells how many regions were written."""
    root = layout.image_root or LOCAL_FILES
    bucket = "://" in root and not root.startswith("http")  # s3:// and the like take names as they are
    tasks = 0
    with replacing(path) as temporary:
        with temporary.open("w", encoding="ascii") as file:
            file.write("[")

            def add(item: Labelled) -> int:
                nonlocal tasks
                height, width = item.index.shape
                found = regions_of(item.index, classes, layout)
                reference = root + (item.file_name if bucket else quote(item.file_name, errors="surrogateescape"))
                data = {"image": reference, NAME_KEY: item.name, "height": height, "width": width}
                task = {"data": data, "predictions": [{"model_version": "sccam", "result": found}]}
                file.write(",\n" * bool(tasks) + line_of(task))
                tasks += 1
                return len(found)

            yield add
            file.write("]\n")
        write_text(config_path(path), config_text(classes, POLYGON if layout.polygons else BRUSH))


def config_path(path: Path) -> Path:
    """The configuration beside a file of tasks."""
    return path.with_suffix(".xml")


def config_text(classes: Sequence[str], kind: str) -> str:
    """The labeling configuration for the classes, in VOC's colours."""
    tag = TAGS[kind]
    lines = ["<View>", f'  <Image name="{TO_NAME}" value="$image" zoom="true" zoomControl="true"/>']
    lines.append(f'  <{tag} name="{FROM_NAME}" toName="{TO_NAME}">')
    for name, colour in zip(classes, voc_palette(len(classes) + 1)[1:].tolist(), strict=True):
        lines.append(f'    <Label value={quoteattr(name)} background="#{bytes(colour).hex()}"/>')
    return "\n".join([*lines, f"  </{tag}>", "</View>"]) + "\n"


def regions_of(index: ByteArray, classes: Sequence[str], layout: Layout) -> list[dict[str, Any]]:
    """The regions of a mask [H W]: a brush for each class, or a polygon for each connected component."""
    height, width = index.shape
    kind = POLYGON if layout.polygons else BRUSH
    values: list[tuple[int, dict[str, Any]]] = []
    found = regions(index, layout.min_area)
    if layout.polygons:
        for label, ring in zip(found.label.tolist(), polygons(found, layout.tolerance), strict=True):
            points = np.round(ring * PERCENT / (width, height), DIGITS).tolist()
            values.append((label, {"points": points, "closed": True}))
    else:
        label_of = np.r_[np.uint8(BACKGROUND), found.label][found.number]
        for label in np.unique(found.label).tolist():
            values.append((label, {"format": "rle", "rle": brush(label_of == label)}))
    return [
        {
            "id": f"region{number}", "type": kind, "from_name": FROM_NAME, "to_name": TO_NAME,
            "original_width": width, "original_height": height, "image_rotation": 0,
            "value": {**value, kind: [classes[label - 1]]},
        }
        for number, (label, value) in enumerate(values, 1)
    ]  # fmt: skip


def read(path: Path, images: Path | None = None) -> Found:
    """The tasks of a JSON export, or of a file that `writing` wrote.

    Classes have the order of the configuration beside it, or else of the alphabet.

    Args:
        images: where the images are, for the sizes of tasks without any region.

    Raises:
        DataError: it is not a list of tasks, with the line, or no region names a class.
    """
    config = config_path(path)
    classes = _configured(config) if config.is_file() else _named(path)
    if not classes:
        raise DataError("no region names a class", where=path, fix=f"put the labeling configuration into {config}")
    return Found(classes, _items(path, {name: c for c, name in enumerate(classes, 1)}, images))


def tasks_of(path: Path) -> Iterator[Any]:
    """The tasks of an export, one at a time; DataError with its line where it is no list."""
    with JsonParts(path) as parts:
        for task, _, _ in parts.array():
            yield task
        if parts.peek():
            raise DataError("not valid JSON: more behind the end", where=path)


def _named(path: Path) -> tuple[str, ...]:
    """The classes that regions name. What is wrong with a task is told when it is converted."""
    names: set[str] = set()
    for task in tasks_of(path):
        try:
            names |= {_label(result, "") for result in _regions(task, "")}
        except DataError:
            continue
    return tuple(sorted(names))


def _items(path: Path, labels: dict[str, int], images: Path | None) -> Iterator[Labelled | DataError]:
    names = Names()
    for number, task in enumerate(tasks_of(path), 1):
        try:
            yield _item(task, f"{path}: task {number}", labels, images, names)
        except DataError as error:
            yield error


def _item(task: Any, where: str, labels: dict[str, int], images: Path | None, names: Names) -> Labelled:
    found = _regions(task, where)
    data = task["data"] if isinstance(task.get("data"), dict) else {}
    image = file_of(data, where)
    wish = safe_name(data[NAME_KEY], where) if NAME_KEY in data else stem(image)
    index = np.zeros(_size(found, data, image, images, where), np.uint8)
    for number, result in enumerate(found, 1):
        where_region = f"{where}, region {result.get('id', number)!r}"
        label = _label(result, where_region)
        if label not in labels:
            raise DataError(
                f"unknown class {label!r}",
                where=where_region,
                fix="add it to the labeling configuration beside the file",
            )
        _paint(index, result, labels[label], where_region)
    return Labelled(names.free(wish, image), image, index, where)


def results_of(task: Any, where: str) -> list[dict[str, Any]] | None:
    """What people said of a task: of its first annotation that was not cancelled, else of its first prediction.

    None where it has neither: nobody has looked at it, which is not the same as seeing nothing.

    Raises:
        DataError: it is no task, or its annotations are no lists.
    """
    if not isinstance(task, dict):
        raise DataError("not a task", where=where)
    for key in ("annotations", "predictions"):
        sets = task.get(key) or []
        if not isinstance(sets, list) or not all(isinstance(one, dict) for one in sets):
            raise DataError(f"{key} are no list of objects", where=where)
        for one in sets:
            if one.get("was_cancelled"):
                continue
            results = one.get("result") or []
            if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
                raise DataError("a result is no list of regions", where=where)
            return results
    return None


def _regions(task: Any, where: str) -> list[dict[str, Any]]:
    """The regions of a task; results of other kinds, such as choices, are no regions."""
    return [result for result in results_of(task, where) or () if "original_width" in result]


def _label(result: dict[str, Any], where: str) -> str:
    kind, value = result.get("type"), result.get("value")
    if kind not in (BRUSH, POLYGON) or not isinstance(value, dict):
        raise DataError(
            f"a region of type {kind!r} is no mask", where=where, fix=f"label with {' or '.join(TAGS.values())}"
        )
    names = value.get(kind)
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise DataError(f"a region has the labels {names!r}; one is needed", where=where)
    return names[0]


def _paint(index: ByteArray, result: dict[str, Any], label: int, where: str) -> None:
    height, width = index.shape
    if [result.get("original_height"), result.get("original_width")] != [height, width]:
        raise DataError(f"regions of different sizes; the first is for {width} x {height} px", where=where)
    value = result["value"]
    if result["type"] == POLYGON:
        points = value.get("points")
        if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
            raise DataError("a polygon has no list of points", where=where)
        paint(
            index, ring_of([number for point in points for number in point], where) * (width, height) / PERCENT, label
        )
        return
    try:
        index[brush_mask(value.get("rle"), (height, width))] = label
    except DataError as error:
        raise DataError(error.what, where=where, why=error.why) from error


def _size(
    found: list[dict[str, Any]], data: dict[str, Any], image: str, images: Path | None, where: str
) -> tuple[int, int]:
    if found:
        return checked_size(found[0].get("original_height"), found[0]["original_width"], where)
    if "height" in data and "width" in data:
        return checked_size(data["height"], data["width"], where)
    file = find_image(images, image)
    if images is None or not file:
        raise DataError(
            "the size of its image is unknown", where=where, why="the task has no region",
            fix="give the folder of images with --images",
        )  # fmt: skip
    return image_size(images / file)


def file_of(data: dict[str, Any], where: str) -> str:
    """The image of a task as a relative file: what `?d=` names, or the path of its address."""
    reference = data.get("image")
    if not isinstance(reference, str):
        reference = next((value for value in data.values() if isinstance(value, str)), "")
    try:
        address = urlsplit(reference)
        local = parse_qs(address.query, errors="surrogateescape").get("d")
        file = local[0] if local else unquote(address.path, errors="surrogateescape")
    except ValueError:
        file = ""
    return safe_name(file.replace("\\", "/"), where)


def _configured(path: Path) -> tuple[str, ...]:
    """The values of <Label> in a labeling configuration. Document types are refused: entities can grow to gigabytes."""
    names: list[str] = []

    def refuse(*_: object) -> None:
        raise DataError("the configuration declares a document type", where=path, fix="remove its <!DOCTYPE>")

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "Label" and "value" in attributes:
            names.append(attributes["value"])

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    try:
        parser.Parse(path.read_bytes(), True)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from error
    except (expat.ExpatError, ValueError, LookupError) as error:
        raise DataError(f"not valid XML: {error}", where=f"{path}:{parser.CurrentLineNumber}") from error
    return tuple(dict.fromkeys(names))
