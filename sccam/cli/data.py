"""Commands about images and labels: data sample, data import, data check, data split, labels convert."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from sccam.cli.app import FAILED_INPUTS, Verbose, data_app, labels_app
from sccam.cli.printing import CountReporter, FirstErrors, print_imported, print_survey, print_table
from sccam.cli.terminal import say
from sccam.errors import DataError


@data_app.command("sample")
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to write; must be empty or absent.")],
    images: Annotated[int | None, typer.Option(min=10, help="How many images to draw.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same images.")] = 0,
    verbose: Verbose = False,
) -> None:
    """Draws a small set of images with tags, exact masks and hidden sub-categories, to try everything on."""
    from sccam.data.sample import draw_sample

    started = time.monotonic()
    draw_sample(out, seed=seed) if images is None else draw_sample(out, images=images, seed=seed)
    say(f"drew the sample set into {out} in {time.monotonic() - started:.1f} s")


@data_app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="A COCO, Label Studio or CSV file; a VOC or class folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; must be empty or absent.")],
    from_: Annotated[
        str | None, typer.Option("--from", help="coco, labelstudio, voc, csv or folder; by default what lies there.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of the images, where it is not that of SOURCE.")] = None,
    val: Annotated[Path | None, typer.Option(help="A second source, whose images become val.txt.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names, one a line: only these, in this order.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Of a CSV file, if its name is unusual.")] = None,
    tag_column: Annotated[str | None, typer.Option(help="The same for the tags.")] = None,
    separator: Annotated[str, typer.Option(help="Between the tags of a cell; by default ; and | and commas.")] = "",
    negatives: Annotated[
        bool, typer.Option("--negatives", help="Keep images without any of the classes, as examples of none.")
    ] = False,
    masks: Annotated[bool, typer.Option("--masks", help="Masks as well; they are for measuring only.")] = False,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the images, where hard links would do.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Makes a folder for `sccam train` from tags in another program's format; bad entries are listed."""
    from sccam.importing import Columns, import_tags

    reporter, errors = CountReporter(quiet=as_json), FirstErrors()
    done = import_tags(
        source,
        out,
        from_=from_,
        val=val,
        images=images,
        classes=classes,
        columns=Columns(image_column, tag_column, separator),
        negatives=negatives,
        masks=masks,
        copy=copy,
        on_error=errors,
        on_progress=reporter.progress,
    )
    errors.close()
    say(json.dumps(done.as_dict(), indent=2, ensure_ascii=False)) if as_json else print_imported(done)
    if done.failed:
        raise typer.Exit(FAILED_INPUTS)


@data_app.command("check")
def check(
    data: Annotated[Path, typer.Argument(help="Folder of images with tags, or a VOC 2012 folder.")],
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 for the cores.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Reads every image, tag and mask of DATA and says all that is wrong with them at once; nothing is written."""
    from sccam.check import check_folder
    from sccam.runtime.pool import worker_count

    reporter = CountReporter(quiet=as_json)
    found = check_folder(data, workers=worker_count(workers), on_progress=reporter.progress)
    say(json.dumps(found.as_dict(), indent=2, ensure_ascii=False)) if as_json else print_survey(found)
    if found.faults:
        raise typer.Exit(DataError.exit_code)


@data_app.command("split")
def split(
    data: Annotated[Path, typer.Argument(help="Folder of images with tags.")],
    val: Annotated[float, typer.Option(help="Share of the images for val.txt.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same lists.")] = 0,
    group_by: Annotated[
        str | None,
        typer.Option(help="folder, or a regular expression: images whose ids agree in its first group stay together."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace lists that are there.")] = False,
    verbose: Verbose = False,
) -> None:
    """Writes train.txt and val.txt with the same shares of every tag; copies of an image stay on one side."""
    from sccam.data.split import split_folder

    done = split_folder(data, val, seed, group_by=group_by, overwrite=overwrite)
    rows = [[name, str(a), str(b)] for name, a, b in zip(done.classes, done.train, done.val, strict=True)]
    print_table("", ["class", "train.txt", "val.txt"], [*rows, ["images", *map(str, done.images)]])
    if done.copies:
        say(f"{done.copies} images are copies of others and stay on their side")
    lone = [name for name, count in zip(done.classes, done.val, strict=True) if not count]
    if lone:
        say(f"not in val.txt: {', '.join(lone)}; their images all belong together, or there is one only")


@labels_app.command("convert")
def convert_labels(
    source: Annotated[Path, typer.Argument(help="A folder or file of labels; OUT of sccam infer is one.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; a .json file for coco and labelstudio.")],
    to: Annotated[str, typer.Option("--to", help="masks, coco, yolo, labelstudio or voc.")],
    from_: Annotated[str | None, typer.Option("--from", help="The same; by default what lies there.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one a line: where there are none, or their order.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images: their suffixes, and sizes for yolo.")
    ] = None,
    polygons: Annotated[bool, typer.Option("--polygons", help="Polygons, not run lengths.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="How far a polygon's border may move in pixels; 1 by default, 0 for exact ones."),
    ] = None,
    min_area: Annotated[int, typer.Option(min=0, help="Leave out regions of fewer pixels.")] = 0,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="One annotation for a class of an image (coco).")
    ] = False,
    image_root: Annotated[str, typer.Option(help="Goes before image names: /data/local-files/?d=photos/")] = "",
    map_: Annotated[list[str] | None, typer.Option("--map", help="Replace a mask value: 255=1; repeatable.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier output of the same format.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Writes the labels at SOURCE to OUT in another format; bad inputs are listed, the rest is converted."""
    from sccam.labels.convert import convert, parse_values
    from sccam.labels.items import DEFAULT_TOLERANCE, Layout

    moved = DEFAULT_TOLERANCE if tolerance is None else tolerance
    layout = Layout(polygons, moved, min_area, per_class, image_root)
    reporter = CountReporter(quiet=as_json)
    done = convert(
        source,
        out,
        to,
        from_=from_,
        classes=classes,
        images=images,
        values=parse_values(map_ or ()),
        layout=layout,
        overwrite=overwrite,
        on_error=lambda error: say(error.line(), file=sys.stderr),
        on_progress=reporter.progress,
    )
    say(json.dumps(done.as_dict(), indent=2) if as_json else done.line())
    if done.failed:
        raise typer.Exit(FAILED_INPUTS)
