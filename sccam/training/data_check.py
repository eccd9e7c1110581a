"""Before anything is trained: every image decoded once, every mask read in full, and the data written down."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sccam.artifacts import write_json
from sccam.data.checks import check_cluster_counts, validate_masks
from sccam.data.images import read_image
from sccam.data.masks import write_labelmap
from sccam.errors import DataError, ImageError, printable
from sccam.measure import ids_checksum
from sccam.training.context import RunContext

MOST_LISTED = 20  # broken images named in the message


def check_data(run: RunContext) -> None:
    """Decodes every image and mask once, and writes data.json and labelmap.txt.

    Raises:
        DataError: images that cannot be read, named together; a mask that does not fit.
    """
    dataset = run.dataset
    images = [*dataset.train.paths, *dataset.val.paths]
    broken: list[ImageError] = []
    with ThreadPoolExecutor(run.workers) as pool:
        for done, error in enumerate(pool.map(_error_in, images), 1):
            broken += [error] if error else []
            run.reporter.progress(done, len(images))
            run.stop.check()
    if broken:
        listed = "\n".join(f"    {printable(str(error.where))}: {error.what}" for error in broken[:MOST_LISTED])
        raise DataError(
            f"{len(broken)} of {len(images)} images cannot be read\n{listed}",
            where=dataset.root,
            fix="repair or remove these files and their tags; nothing was trained",
        )
    warnings = [*dataset.warnings, *validate_masks(dataset)]
    if run.config.classify.rounds > 0:
        warnings += check_cluster_counts(dataset, run.config.cluster.k)
    for warning in warnings:
        run.reporter.message(f"note: {warning}")
    lists = {part.split: list(part.ids) for part in (dataset.train, dataset.val)}
    counts = dataset.train.labels.present.sum(axis=0).tolist()
    write_json(
        run.folder / "data.json",
        {
            "root": str(dataset.root),
            "classes": list(dataset.classes),
            "images_per_class": dict(zip(dataset.classes, counts, strict=True)),
            "masks": len(dataset.masks.paths),
            "warnings": warnings,
            "lists": {name: {"sha256": ids_checksum(ids), "ids": ids} for name, ids in lists.items()},
        },
    )
    write_labelmap(run.folder / "labelmap.txt", dataset.classes)


def _error_in(path: Path) -> ImageError | None:
    try:
        read_image(path)
    except ImageError as error:
        return error
    return None
