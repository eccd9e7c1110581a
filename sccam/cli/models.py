"""Commands that use what a run has trained: export, infer, bench."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from sccam.cli.app import FAILED_INPUTS, Verbose, app
from sccam.cli.printing import CountReporter, print_results
from sccam.cli.terminal import say
from sccam.errors import ParityError


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
        tell=(lambda text: None) if as_json else say,
    )
    if as_json:
        say(json.dumps({item.path.name: item.parity.as_dict() for item in exported}, indent=2))


@app.command()
def infer(
    model: Annotated[Path, typer.Argument(help="A run, or a .safetensors, .onnx or .engine file of its segmenter.")],
    source: Annotated[
        str, typer.Argument(help="An image, a folder, a pattern, a .tar shard, a .txt list, s3:// and the like, or -.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, overlays and the lists of results.")],
    task: Annotated[str, typer.Option(help="segment, or pseudo-label: training labels by MODEL, a run.")] = "segment",
    tags: Annotated[
        str | None,
        typer.Option(
            help="CSV or JSON of the images' tags; predicted: by the run's classifier, as pseudo-label has them."
        ),
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
    engine: Annotated[str, typer.Option(help="local, or ray: the workers of a Ray cluster.")] = "local",
    workers: Annotated[
        int, typer.Option(min=0, help="Networks at a time on the cluster; 0: one a GPU, or one for two cores.")
    ] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget another model's results in OUT.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Segments or labels the images of SOURCE with MODEL; the same command again does only what is missing."""
    from dataclasses import asdict
    from functools import partial

    from sccam.errors import ConfigError
    from sccam.runtime.folder import Described, checked_saves, collect, predict_to
    from sccam.runtime.image_tags import PREDICTED
    from sccam.runtime.jobs import open_job
    from sccam.runtime.pseudo_labels import check_task
    from sccam.runtime.segmenter import SegmentOptions, crf_of
    from sccam.runtime.sources import part_of, sources
    from sccam.stop import StopRequest

    if engine not in ("local", "ray"):
        raise ConfigError(f"no engine {engine!r}", fix="choose from local, ray")
    options = SegmentOptions(tuple(scale or (1.0,)), flip, size, tile, crf_of(crf))
    check_task(task, options)
    saves, (found, out) = checked_saves(save or ("mask",)), part_of(sources(source), out, shard)
    if engine == "ray":  # whose workers have another working folder
        model, tags = model.absolute(), tags if tags in (None, PREDICTED) else str(Path(tags).absolute())
    opened = partial(
        open_job, model, options, task=task, tags=tags, backend=backend, device=device, allow_fallback=allow_fallback
    )
    reporter = CountReporter(quiet=as_json)

    def begin(job: Described) -> None:
        for note in job.notes():
            reporter.message(note)

    with StopRequest().listening() as stop:

        def progress(done: int, failed: int) -> None:
            reporter.progress(done, failed)
            stop.check()

        if engine == "ray":
            from sccam.runtime.on_ray import connected

            with connected(opened, device=device, labellers=workers, batch=batch) as cluster:
                described = cluster.describe()
                begin(described)
                summary = collect(
                    described, cluster.images, found, out, saves, overwrite=overwrite, on_progress=progress
                )
        else:
            begin(job := opened())
            summary = predict_to(
                job, found, out, saves, batch=batch, threads=threads, overwrite=overwrite, on_progress=progress
            )
    say(json.dumps(asdict(summary), indent=2) if as_json else summary.line())
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
            say("without --run, --images and --tags: not " + ", ".join(OF_A_RUN), file=sys.stderr)
    machine, wrong = facts(device), 0
    results = Path("benchmarks/results")
    if out is None and not quick:
        out = (results if results.is_dir() else Path()) / file_name(device)
    if not as_json:
        rates = machine["ceilings"]
        say(f"{machine['device']}: {rates['gflops']:,.0f} GFLOP/s fp32, {rates['gflops_bf16']:,.0f} bf16, "
              f"{rates['gbytes']:,.0f} GB/s")  # fmt: skip
    for table in run_suites(suites, options):
        wrong += sum(row.wrong for row in table)
        if as_json:
            say("\n".join(json.dumps(row.as_dict()) for row in table), flush=True)
        else:
            print_results(table, machine["ceilings"])
        if out is not None:  # after every table, so that an end before the last loses none
            record(table, out, machine)
    if out is not None and not as_json:
        say(f"figures       {out}")
    if wrong:
        raise ParityError(f"{wrong} rows have results that differ from the reference by more than their limit")
