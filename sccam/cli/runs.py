"""Commands that make a run and look at it: train, ablate, report, eval."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sccam.cli.app import FAILED_INPUTS, Verbose, app
from sccam.cli.printing import LineReporter, duration, percent, print_scores, print_table
from sccam.cli.terminal import say


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Folder of images with tags, or a VOC 2012 folder.")],
    config: Annotated[str, typer.Option("--config", "-c", help="photos, demo, voc12, or a TOML file.")] = "photos",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME of the data folder by default.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting: table.name=value; repeatable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the folder first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the input, print the plan, train nothing.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The same bits each time: --set run.deterministic=true.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write events for TensorBoard into RUN/events, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Trains the whole chain on DATA: classifier rounds, maps, affinity, walk, pseudo labels, segmenter."""
    from sccam import run
    from sccam.callbacks import TensorBoard
    from sccam.ranks import place

    first = place()[0] == 0  # of the processes that torchrun started; the others have nothing to say
    reporter = LineReporter(quiet=as_json or not first)
    folder = out or Path("runs") / data.resolve().name
    overrides = [*(set_ or []), *(["run.deterministic=true"] if deterministic else [])]
    if dry_run:
        planned = run.plan(data, config, overrides)
        say(json.dumps(planned, indent=2, ensure_ascii=False) if as_json else run.plan_text(planned, folder))
        return
    callbacks = [TensorBoard(folder / "events")] if tensorboard and first else []
    scores = run.train(
        data, config, folder, overrides, resume=resume, overwrite=overwrite, reporter=reporter, callbacks=callbacks
    )
    if not first:
        return
    if as_json:
        say(json.dumps(scores, indent=2, ensure_ascii=False))
    else:
        print_scores(scores, folder)


@app.command()
def plan(
    data: Annotated[Path, typer.Argument(help="Folder of images with tags, or a VOC 2012 folder.")],
    config: Annotated[str, typer.Option("--config", "-c", help="photos, demo, voc12, or a TOML file.")] = "photos",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting: table.name=value; repeatable.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the run, as torchrun would start it.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Says what `train` will take on DATA: time, disk and memory, from a few steps of every stage on this machine."""
    from sccam.forecast import forecast

    found = forecast(data, config, set_ or [], gpus=gpus, reporter=LineReporter(quiet=as_json))
    if as_json:
        say(json.dumps(found, indent=2))
        return
    pilot = found["pilot"]
    rows = [
        [stage["stage"], f"{stage['items']} {stage['what']}".strip() if stage["items"] else "",
         f"{stage['seconds_each']:.3g} s" if stage["items"] else "", duration(stage["seconds"]),
         f"/ {gpus}" if stage["shared"] else ""]
        for stage in found["stages"]
    ]  # fmt: skip
    print_table("", ["stage", "work", "each, measured", "expected", "GPUs"], rows)
    memory = f"{found['memory_mb']:.0f} MB" if found["memory_mb"] else "not known"
    if found["gpu_memory_mb"] is not None:
        memory += f", {found['gpu_memory_mb']} MB on the GPU"
    say(f"time          {duration(found['seconds'])}")
    say(f"disk          {found['disk_mb']} MB")
    say(f"memory        {memory}")
    say(
        f"measured      on {pilot['device']}, {pilot['images']} images ({pilot['files']} files) in"
        f" {duration(pilot['seconds'])}; the expected time and disk are extrapolated from that"
    )
    if gpus > 1:
        say(
            f"assumed       that {gpus} GPUs are {gpus} times as fast where they share the work; nobody has measured it"
        )
    if gpus > 1 and not pilot["device"].startswith("cuda"):
        say("note          this machine has no GPU that works: its figures say nothing about GPUs")


@app.command()
def ablate(
    file: Annotated[Path, typer.Argument(help="TOML file of data, seeds and variants.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the runs and the result.")],
    data: Annotated[Path | None, typer.Option(help="Image folder, in place of the one that FILE names.")] = None,
    report_only: Annotated[bool, typer.Option(help="Train nothing; measure what is finished.")] = False,
    seeds: Annotated[int, typer.Option(min=0, help="Only the first so many seeds of FILE; 0: all.")] = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds at a time, each with its share of the cores.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Trains variants of a recipe over seeds and says what helps; the same command again does only what is missing."""
    from sccam import ablation as module

    def reporter(name: str) -> LineReporter:
        if not as_json:
            say(f"== {name}", file=sys.stderr)
        return LineReporter(quiet=as_json)

    variants = module.read_ablation(file, data, first_seeds=seeds)
    result = module.ablate(variants, out, jobs=jobs, reporter_of=reporter, train_missing=not report_only)
    if as_json:
        say(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        header, lines = module.table(result)
        print_table("mIoU in %, mean ± deviation over seeds (difference to the baseline, 95 %)", header, lines)
        say(f"figures       {out / 'ablation.json'}")
    for name, error in result["errors"].items():
        say(f"failed: {name}: {error}", file=sys.stderr)
    if result["errors"]:
        raise typer.Exit(FAILED_INPUTS)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder, of a finished or a half-finished run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the page; RUN/report by default.")] = None,
    data: Annotated[Path | None, typer.Option(help="The image folder, where it was moved.")] = None,
    ablation: Annotated[Path | None, typer.Option(help="Folder of `sccam ablate`, for mIoU over K.")] = None,
    bench: Annotated[Path | None, typer.Option(help="JSON file of `sccam bench`, for its table.")] = None,
    images: Annotated[int, typer.Option(min=0, help="Most images of the gallery.")] = 200,
    verbose: Verbose = False,
) -> None:
    """Writes a page to look at: every stage of every image, sub-categories, curves, tables."""
    from sccam.report.page import write_report

    say(write_report(run, out, data=data, ablation=ablation, bench=bench, images=images))


@app.command("eval")
def evaluate(
    predicted: Annotated[Path, typer.Argument(help="Folder of predicted index PNGs.")],
    true: Annotated[Path, typer.Argument(help="Folder of true index PNGs.")],
    classes: Annotated[Path | None, typer.Option(help="Class names, one a line, without background.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Scores PREDICTED masks against TRUE masks, matched by name; 255 in the truth is left out."""
    from sccam.data.folder import read_classes
    from sccam.stages.evaluate import evaluate_folders

    result = evaluate_folders(predicted, true, None if classes is None else read_classes(classes))
    for key, text in (
        ("without_prediction", "true masks have no prediction"),
        ("without_truth", "predictions no truth"),
    ):
        if result[key]:
            say(f"note: {len(result[key])} {text} and are not scored, {result[key][0]} the first", file=sys.stderr)
    if as_json:
        say(json.dumps(result, indent=2, ensure_ascii=False))
        return
    rows = [
        [name, percent(result["iou"][name]), percent(result["precision"][name]), percent(result["recall"][name])]
        for name in result["iou"]
    ]
    mean = ["mean", *(percent(result[key]) for key in ("miou", "mean_precision", "mean_recall"))]
    print_table(f"{result['images']} images", ["class", "IoU", "precision", "recall"], [*rows, mean])
