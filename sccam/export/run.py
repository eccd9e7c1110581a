"""A finished run becomes deployable files: `sccam export`.

    OUT/NAME.onnx  NAME.fp16.onnx  NAME.int8.onnx  NAME.engine      NAME is cam_net, affinity_net or segmenter

Images for the comparison and for int8's ranges are the run's own training images, or any folder's. Where the run's are
gone, drawn ones serve for the comparison; int8's ranges are never taken from drawn images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from sccam.artifacts import RunFolder
from sccam.data.images import IMAGE_SUFFIXES, read_image
from sccam.errors import ConfigError, DataError, ParityError, RunFolderError
from sccam.export.int8 import CALIBRATION_IMAGES
from sccam.export.network import PARITY_IMAGES, EngineOptions, Exported, Tell, export_network
from sccam.export.precision import PRECISIONS
from sccam.export.to_tensorrt import tensorrt_library
from sccam.export.triton import write_triton
from sccam.nets.compute import Compute
from sccam.nets.saved import load_network
from sccam.runtime.gpu import gpu_facts
from sccam.structures import ByteArray

NETWORKS = ("cam_net", "affinity_net", "segmenter")


def export_run(
    run: Path,
    *,
    out: Path | None = None,
    networks: Sequence[str] = NETWORKS,
    precisions: Sequence[str] = ("fp32", "fp16"),
    images: Path | None = None,
    labels: bool = False,
    single_scale: bool = False,
    pamr: int = 0,
    engines: EngineOptions | None = None,
    triton: Path | None = None,
    tell: Tell = print,
) -> list[Exported]:
    """Exports the networks of a finished run.

    Args:
        run: the run folder.
        out: where to write; RUN/export by default.
        networks: some of `NETWORKS`.
        precisions: some of "fp32", "fp16", "int8".
        images: a folder of images to compare and calibrate with; the run's training images by default.
        labels: the segmenter gives label indices instead of logits.
        single_scale: the segmenter runs at scale 1 only.
        pamr: steps of pixel-adaptive refinement inside the segmenter's graph; needs `labels`.
        engines: build a TensorRT engine from every file, too.
        triton: a model repository to put every file (or its engine) in that passed.
        tell: told of every file in one line.

    Raises:
        ConfigError: an unknown network or precision.
        RunFolderError: no run, or one whose networks are not all trained.
        DataError: no images to compare with.
        ParityError: some file did not pass; those that did are there.
        BackendUnavailable: engines are asked for, and TensorRT or a GPU is missing.
    """
    _known(networks, NETWORKS, "network")
    _known(precisions, PRECISIONS, "precision")
    if pamr and not labels:
        raise ConfigError("the refinement inside the graph ends in labels", fix="add --labels, or leave out --pamr")
    if engines is not None:  # what is missing is said before minutes of work
        tensorrt_library()
        gpu_facts()
    folder = RunFolder(run)
    state = folder.state()
    if "schema" not in state:
        raise RunFolderError("this is no run", where=run, fix="give the folder that `sccam train` wrote")
    files = {name: folder.weights(name) for name in NETWORKS}
    if missing := [name for name in networks if not files[name].exists()]:
        raise RunFolderError(
            f"the run has no {missing[0]} yet",
            where=files[missing[0]],
            why=f"its status is {state.get('status')!r}",
            fix=f"finish it with: sccam train ... --out {run} --resume, or export what is there with --network",
        )
    pictures, seen = (sample_images(images), "given") if images else _own_or_drawn(folder, precisions, tell)
    out = out or folder / "export"
    exported: list[Exported] = []
    for name in networks:
        net, manifest = load_network(files[name], Compute.resolve("cpu", "fp32"))
        options = {"labels": labels, "multi_scale": not single_scale, "pamr": pamr} if name == "segmenter" else {}
        exported += export_network(
            net,
            manifest,
            out / name,
            pictures,
            precisions,
            source=files[name],
            pictures_from=seen,
            tell=tell,
            engines=engines,
            **options,
        )
    if triton is not None:
        for item in exported:
            if item.parity.passed and (item.path.suffix == ".engine") == (engines is not None):
                tell(f"{write_triton(item.path, triton)}: for Triton")
    refuse_failed(exported)
    return exported


def refuse_failed(exported: Iterable[Exported]) -> None:
    """Raises ParityError if some file did not pass."""
    failed = [item for item in exported if not item.parity.passed]
    if failed:
        listed = "\n".join(f"    {item.path.name}: {'; '.join(item.parity.failures)}" for item in failed)
        raise ParityError(
            f"{len(failed)} exported files do not compute what they should\n{listed}",
            where=failed[0].path.parent,
            why="the precision is too low for this network" if failed[0].precision != "fp32" else None,
            fix="leave these precisions out with --precision; the files that passed are there",
        )


def sample_images(files: Iterable[Path] | Path) -> list[ByteArray]:
    """Images to calibrate with and others to compare on, as far as there are any, spread evenly over a folder or list.

    Raises:
        DataError: there is none.
    """
    if isinstance(files, Path):
        found = sorted(path for path in files.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
        if not found:
            raise DataError("no images", where=files, fix="give a folder of images like those the network will see")
        files = found
    files = list(files)
    most = CALIBRATION_IMAGES + PARITY_IMAGES
    step = max(1, len(files) // most)
    return [read_image(path) for path in files[::step][:most]]


def _own_or_drawn(folder: RunFolder, precisions: Sequence[str], tell: Tell) -> tuple[list[ByteArray], str]:
    """The run's training images, or drawn ones if those are gone; and which of the two, "training" or "drawn"."""
    from sccam.data import open_dataset
    from sccam.data.sample import draw_sample
    from sccam.recipe import load_config

    root = folder.data()["root"]
    settings = load_config(str(folder / "config.toml"), []).data
    try:
        return sample_images(open_dataset(root, **asdict(settings)).train.paths), "training"
    except DataError as error:
        if "int8" in precisions:
            raise DataError(
                f"the run's own images cannot be read: {error.what}",
                where=root,
                why="int8 takes its ranges from images like those the network will see",
                fix="give some with --images FOLDER, or leave int8 out",
            ) from error
        tell(f"the run's own images cannot be read ({error.what}); comparing on drawn ones, see --images")
    with tempfile.TemporaryDirectory() as drawn:
        draw_sample(Path(drawn, "sample"), images=PARITY_IMAGES, sizes=(224, 320))
        return sample_images(Path(drawn, "sample", "images")), "drawn"


def _known(asked: Sequence[str], known: Sequence[str], what: str) -> None:
    for name in asked:
        if name not in known:
            raise ConfigError(f"no {what} {name!r}", fix=f"choose from {', '.join(known)}")
