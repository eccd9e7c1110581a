"""The command line: reads arguments, calls one function, prints. No arithmetic, no heavy import at the top."""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from sccam import __version__
from sccam.errors import ParityError, SccamError

app = typer.Typer(
    help="From images with tags to a pixel-level segmenter (SC-CAM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make and look at image folders.", no_args_is_help=True)
app.add_typer(data_app, name="data")
labels_app = typer.Typer(help="Masks in the formats of other tools.", no_args_is_help=True)
app.add_typer(labels_app, name="labels")


FAILED_INPUTS = 5  # exit code: finished, but some inputs failed

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]


@app.command()
def train(
    data: Annotated[Path, typer.Argument(help="Folder of images with tags, or a VOC 2012 folder.")],
    config: Annotated[str, typer.Option("--config", "-c", help="photos, demo, voc12, or a TOML file.")] = "photos",
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME of the data folder by default.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="A setting: table.name=value; repeatable.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run in the folder first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the input, print the plan, train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Trains the whole chain on DATA: classifier rounds, maps, affinity, walk, pseudo labels, segmenter."""
    from sccam import run

    reporter = LineReporter(quiet=as_json)
    folder = out or Path("runs") / data.resolve().name
    overrides = set_ or []
    if dry_run:
        plan = run.plan(data, config, overrides)
        print(json.dumps(plan, indent=2, ensure_ascii=False) if as_json else run.plan_text(plan, folder))
        return
    scores = run.train(data, config, folder, overrides, resume=resume, overwrite=overwrite, reporter=reporter)
    if as_json:
        print(json.dumps(scores, indent=2, ensure_ascii=False))
    else:
        _print_scores(scores, folder)


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
            print(f"== {name}", file=sys.stderr)
        return LineReporter(quiet=as_json)

    plan = module.read_ablation(file, data, first_seeds=seeds)
    result = module.ablate(plan, out, jobs=jobs, reporter_of=reporter, train_missing=not report_only)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        header, lines = module.table(result)
        _print_table("mIoU in %, mean ± deviation over seeds (difference to the baseline, 95 %)", header, lines)
        print(f"figures       {out / 'ablation.json'}")
    for name, error in result["errors"].items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    if result["errors"]:
        raise typer.Exit(FAILED_INPUTS)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder, of a finished or a half-finished run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder of the page; RUN/report by default.")] = None,
    data: Annotated[Path | None, typer.Option(help="The image folder, where it was moved.")] = None,
    ablation: Annotated[Path | None, typer.Option(help="Folder of `sccam ablate`, for mIoU over K.")] = None,
    images: Annotated[int, typer.Option(min=0, help="Most images of the gallery.")] = 200,
    verbose: Verbose = False,
) -> None:
    """Writes a page to look at: every stage of every image, sub-categories, curves, tables."""
    from sccam.report.page import write_report

    print(write_report(run, out, data=data, ablation=ablation, images=images))


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
            print(f"note: {len(result[key])} {text} and are not scored, {result[key][0]} the first", file=sys.stderr)
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    rows = [
        [name, _percent(result["iou"][name]), _percent(result["precision"][name]), _percent(result["recall"][name])]
        for name in result["iou"]
    ]
    mean = ["mean", *(_percent(result[key]) for key in ("miou", "mean_precision", "mean_recall"))]
    _print_table(f"{result['images']} images", ["class", "IoU", "precision", "recall"], [*rows, mean])


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished run.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; RUN/export by default.")] = None,
    network: Annotated[
        list[str] | None, typer.Option(help="cam_net, affinity_net or segmenter; repeatable, all by default.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, fp16 or int8; repeatable, fp32 and fp16 by default.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to compare and calibrate with; the run's own by default.")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="The segmenter gives label indices, not logits.")] = False,
    single_scale: Annotated[
        bool,
        typer.Option("--single-scale", help="The segmenter runs at scale 1 only, not at the scales of its training."),
    ] = False,
    pamr: Annotated[
        int, typer.Option(min=0, help="With --labels: so many steps of refinement by colours inside the graph, 10 say.")
    ] = 0,
    engine: Annotated[bool, typer.Option("--engine", help="Build TensorRT engines, too; needs a GPU.")] = False,
    bucket: Annotated[
        list[str] | None,
        typer.Option(help="Input sizes of the engines: NAME=1x32x32:4x384x512:16x512x512, smallest:best:largest."),
    ] = None,
    memory: Annotated[
        int | None, typer.Option(min=16, help="Most scratch memory for an engine in MiB; all by default.")
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="File of kernel times, to build engines faster.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build engines that are there again.")] = False,
    triton: Annotated[Path | None, typer.Option(help="Write a Triton model repository into this folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity numbers as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Writes the networks of RUN as ONNX files and engines, each compared on real images with its original."""
    from sccam.export.network import EngineOptions
    from sccam.export.run import NETWORKS, export_run
    from sccam.export.to_tensorrt import DEFAULT_BUCKETS, parse_bucket

    buckets = tuple(map(parse_bucket, bucket)) if bucket else DEFAULT_BUCKETS
    exported = export_run(
        run,
        out=out,
        networks=network or NETWORKS,
        precisions=precision or ("fp32", "fp16"),
        images=images,
        labels=labels,
        single_scale=single_scale,
        pamr=pamr,
        engines=EngineOptions(buckets, memory, timing_cache, rebuild) if engine or rebuild else None,
        triton=triton,
        tell=(lambda text: None) if as_json else print,
    )
    if as_json:
        print(json.dumps({item.path.name: item.parity.as_dict() for item in exported}, indent=2))


@app.command()
def infer(
    model: Annotated[Path, typer.Argument(help="A run, or a .safetensors, .onnx or .engine file of its segmenter.")],
    source: Annotated[str, typer.Argument(help="An image, a folder, a pattern, a .txt list, or - for standard input.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, overlays and the lists of results.")],
    task: Annotated[str, typer.Option(help="segment, or pseudo-label: training labels by MODEL, a run.")] = "segment",
    tags: Annotated[
        Path | None, typer.Option(help="CSV or JSON of the tags for pseudo-label; predicted ones without it.")
    ] = None,
    save: Annotated[
        list[str] | None,
        typer.Option(help="mask, overlay, scores, coco, yolo, labelstudio or voc; repeatable, mask by default."),
    ] = None,
    scale: Annotated[list[float] | None, typer.Option(help="Scale of a view; repeatable, views are averaged.")] = None,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirror image of every view.")] = False,
    size: Annotated[int, typer.Option(min=0, help="Longest side [px] the network sees; 0: the model's own.")] = 0,
    tile: Annotated[int, typer.Option(min=0, help="Side [px] of tiles; 0: tiles for images above 4 Mpx.")] = 0,
    crf: Annotated[str | None, typer.Option(help="Refine masks with a dense CRF: psa, irn or deeplab.")] = None,
    backend: Annotated[str, typer.Option(help="auto, torch, onnxruntime or tensorrt.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    allow_fallback: Annotated[
        bool, typer.Option("--allow-fallback", help="Run on the CPU where ONNX Runtime cannot use the GPU asked for.")
    ] = False,
    batch: Annotated[int, typer.Option(min=0, help="Images a batch at most; 0 tries which number is fastest.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads to read and to write; 0 for the cores.")] = 0,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: only every n-th image, beginning with the i-th, from 0; RANK/WORLD_SIZE by default."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget another model's results in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Segments or labels the images of SOURCE with MODEL; the same command again does only what is missing."""
    from dataclasses import asdict

    from sccam.runtime.folder import LabelJob, checked_saves, predict_to
    from sccam.runtime.network import open_network
    from sccam.runtime.pseudo_labels import PseudoLabelJob, check_task
    from sccam.runtime.segmenter import SegmentJob, SegmentOptions, crf_of
    from sccam.runtime.sources import part_of, sources
    from sccam.stop import StopRequest

    options = SegmentOptions(tuple(scale or (1.0,)), flip, size, tile, crf_of(crf))
    check_task(task, options, tags)
    saves, (found, out) = checked_saves(save or ("mask",)), part_of(sources(source), out, shard)
    job: LabelJob
    if task == "segment":
        network = open_network(model, "segmenter", backend, device=device, allow_fallback=allow_fallback)
        job = SegmentJob(network, options)
    else:
        job = PseudoLabelJob(model, tags, backend, device=device, allow_fallback=allow_fallback)
    reporter = CountReporter(quiet=as_json)
    for note in job.notes():
        reporter.message(note)
    with StopRequest().listening() as stop:

        def progress(done: int, failed: int) -> None:
            reporter.progress(done, failed)
            stop.check()

        summary = predict_to(
            job, found, out, saves, batch=batch, threads=threads, overwrite=overwrite, on_progress=progress
        )
    print(json.dumps(asdict(summary), indent=2) if as_json else summary.line())
    if summary.failed:
        raise typer.Exit(FAILED_INPUTS)


@app.command()
def bench(
    suites: Annotated[list[str] | None, typer.Argument(help="Suites to run; all by default.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: to see that it works.")] = False,
    images: Annotated[Path | None, typer.Option(help="Folder of photographs; drawn ones by default.")] = None,
    run: Annotated[Path | None, typer.Option(help="A finished run with exported files, for whole folders.")] = None,
    tags: Annotated[Path | None, typer.Option(help="Tags of the photographs, for pseudo labels.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row and nothing else.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="JSON file; by default DEVICE-DATE.json in benchmarks/results or here, none if --quick."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Times the runtime against the eager way, in pairs, and checks its results in the same run."""
    from sccam.bench import OF_A_RUN, SUITES, Options, record, run_suites
    from sccam.bench.machine import facts, file_name

    options = Options(quick, device, images, run, tags)
    if not suites:
        suites = [name for name in SUITES if name not in OF_A_RUN or (run and images and tags)]
        if len(suites) < len(SUITES):
            print("without --run, --images and --tags: not " + ", ".join(OF_A_RUN), file=sys.stderr)
    machine, wrong = facts(device), 0
    results = Path("benchmarks/results")
    if out is None and not quick:
        out = (results if results.is_dir() else Path()) / file_name(device)
    if not as_json:
        rates = machine["ceilings"]
        print(f"{machine['device']}: {rates['gflops']:,.0f} GFLOP/s fp32, {rates['gflops_bf16']:,.0f} bf16, "
              f"{rates['gbytes']:,.0f} GB/s")  # fmt: skip
    for table in run_suites(suites, options):
        wrong += sum(row.wrong for row in table)
        if as_json:
            print("\n".join(json.dumps(row.as_dict()) for row in table), flush=True)
        else:
            _print_results(table, machine["ceilings"])
        if out is not None:  # after every table, so that an end before the last loses none
            record(table, out, machine)
    if out is not None and not as_json:
        print(f"figures       {out}")
    if wrong:
        raise ParityError(f"{wrong} rows have results that differ from the reference by more than their limit")


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
    print(f"drew the sample set into {out} in {time.monotonic() - started:.1f} s")


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
    from sccam.labels.convert import convert, error_line, parse_values
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
        on_error=lambda error: print(error_line(error), file=sys.stderr),
        on_progress=reporter.progress,
    )
    print(json.dumps(done.as_dict(), indent=2) if as_json else done.line())
    if done.failed:
        raise typer.Exit(FAILED_INPUTS)


@app.command("version")
def version() -> None:
    """Prints the version."""
    print(__version__)


class CountReporter:
    """Progress where nobody knows how much there is: a line now and then."""

    SECONDS = 15.0

    def __init__(self, *, quiet: bool):
        self.quiet, self.started, self.told_at = quiet, time.monotonic(), time.monotonic()

    def progress(self, done: int, failed: int) -> None:
        """Images done and failed so far."""
        now = time.monotonic()
        if now - self.told_at >= self.SECONDS:
            self.told_at = now
            text = f"{done} images, {done / (now - self.started):.1f} a second" + (f", {failed} failed" * bool(failed))
            self.message(text)

    def message(self, text: str) -> None:
        """A line of its own."""
        if not self.quiet:
            print(text, file=sys.stderr)


class LineReporter:
    """Progress on the terminal: one living line with rate and time left, or plain lines where there is no terminal."""

    PLAIN_SECONDS = 15.0  # between progress lines that cannot be overwritten

    def __init__(self, *, quiet: bool):
        self.stream = sys.stderr
        self.quiet = quiet
        self.living = self.stream.isatty()
        self.name = ""
        self.started = time.monotonic()
        self.first_done: int | None = None  # items that were there when the stage was resumed
        self.told_at = 0.0

    def stage(self, name: str) -> None:
        """Begins a stage."""
        self.name, self.started, self.told_at, self.first_done = name, time.monotonic(), 0.0, None
        if not self.living:
            self._line(f"{name} ...")

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Items done in the stage."""
        now = time.monotonic()
        if self.first_done is None:
            self.first_done = done - 1
        pause = 0.1 if self.living else self.PLAIN_SECONDS
        if now - self.told_at < pause and done < total:
            return
        if not self.living and self.told_at == 0.0 and done < total:
            self.told_at = now
            return
        self.told_at = now
        rate = (done - self.first_done) / max(1e-6, now - self.started)
        left = max(0.0, (total - done) / rate) if rate > 0 else 0.0
        text = f"{self.name}  {done}/{total}  {rate:.1f}/s  {_duration(left)} left  {note}".rstrip()
        if self.living:
            self._write(f"\r\x1b[2K{text}" + ("\n" if done >= total else ""))
        else:
            self._line(text)

    def message(self, text: str) -> None:
        """A line of its own."""
        self._line(f"\r\x1b[2K{text}" if self.living else text)

    def _line(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        if not self.quiet:
            self.stream.write(text)
            self.stream.flush()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _print_scores(scores: dict[str, Any], folder: Path) -> None:
    rows = []
    for row in scores["rows"]:
        setting = next((f"{key} {row[key]:.2f}" for key in ("threshold", "alpha") if key in row), "")
        rows.append(
            [
                row["stage"],
                row["column"],
                setting,
                row["split"],
                str(row["images"]),
                "yes" if row["tags_used"] else "no",
                _percent(row["miou"]),
                _percent(row["f_score"]),
            ]
        )
    _print_table("", ["stage", "column", "setting", "split", "images", "tags given", "mIoU", "F"], rows)
    total = sum(scores["seconds"].values())
    memory = scores["peak_memory_mb"]
    print(f"{_duration(total)} in all" + (f", peak memory {memory:.0f} MB" if memory else ""))
    print(f"picture       {folder / 'overview.png'}")
    print(f"scores        {folder / 'scores.json'}")
    print(f"pseudo labels {folder / 'pseudo_labels'}")
    print(f"segmenter     {folder / 'segmenter.safetensors'}")


def _print_results(table: list[Any], ceilings: dict[str, float]) -> None:
    from sccam.bench.harness import of_ceiling

    shares = [of_ceiling(row.as_dict(), ceilings) for row in table]
    rows = [
        [
            row.row,
            f"{1e3 * row.seconds.median:.2f}",
            f"{1e3 * row.seconds.q1:.2f} to {1e3 * row.seconds.q3:.2f}",
            f"{row.ratio:.1f}x" + ("" if row.goal is None else f" (goal {row.goal:g})"),
            "" if row.strong_ratio is None else f"{row.strong_ratio:.1f}x",
            "" if share is None else f"{100 * share:.0f} %",
            "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
            "" if row.max_error is None else f"{row.max_error:.1e}" + (" WRONG" if row.wrong else ""),
            "" if row.agreement is None else f"{100 * row.agreement:.3f} %",
        ]
        for row, share in zip(table, shares, strict=True)
    ]
    first = table[0]
    _print_table(
        f"{first.suite}: {first.case}",
        ["way", "ms", "quartiles", "speed", "vs tuned", "of ceiling", "MB", "error", "same labels"],
        rows,
    )


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=None, header_style="bold")
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 120  # a pipe has no width of its own
    Console(width=width).print(table)


def main() -> None:
    """Runs the command line; every error becomes four lines and an exit code."""
    arguments = sys.argv[1:]
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        app()
    except SccamError as error:
        if verbose:
            traceback.print_exc()
        print(_framed(error), file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _framed(error: SccamError) -> str:
    first, *rest = str(error).split("\n")
    return "\n".join([f"error: {first}  (exit {error.exit_code})", *rest])


if __name__ == "__main__":
    main()
