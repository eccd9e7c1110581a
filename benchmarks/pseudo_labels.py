"""Pseudo labels of tagged images, networks included: the job of `sccam infer` against the chain of the stages.

    python benchmarks/pseudo_labels.py RUN IMAGES TAGS [--name photos]      # a row each in results/pseudo_labels.json

    stages     eager torch networks and the paper forms of sccam/stages, image after image: the reference
    authors    the same maps, then a dense matrix and pydensecrf: what people run today
    job        ONNX files of the run (or its weights, where a row says torch), compiled kernels, steps that overlap

Every way reads the same images in every round, one after the other, and gives labels, which are compared in the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sccam.artifacts import RunFolder, write_json
from sccam.bench import eager
from sccam.bench.harness import Contestant, compare
from sccam.data.images import read_image
from sccam.errors import DataError
from sccam.nets.affinity_net import AffinityNet
from sccam.nets.cam_net import CamNet
from sccam.nets.compute import Compute
from sccam.nets.saved import load_network
from sccam.runtime import backends
from sccam.runtime.folder import predict
from sccam.runtime.network_torch import affinity_features, score_views
from sccam.runtime.pseudo_labels import LabelRecipe, PseudoLabelJob, Tags, read_recipe
from sccam.runtime.sources import Source, sources
from sccam.stages.affinity import affinity_field
from sccam.stages.affinity_labels import AFFINITY_STRIDE, neighbour_offsets
from sccam.stages.cam import activation_map
from sccam.stages.crf import dense_crf
from sccam.stages.pseudo_label import label_index, sharpened
from sccam.stages.walk import background_score, divided_by_maximum, pool_to_grid, random_walk, upsample
from sccam.structures import ByteArray

RESULT = Path(__file__).resolve().parent / "results" / "pseudo_labels.json"
IMAGES = 24  # in a round
SETS = 3  # of images, in turn
LIMIT = 1e-3  # share of pixels with another label

Labels = list[ByteArray]


def main() -> None:
    """Times, compares, writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("tags", type=Path)
    parser.add_argument("--name", default="photos")
    arguments = parser.parse_args()
    classes = load_network(RunFolder(arguments.run).weights("cam_net"), Compute.resolve("cpu", "fp32"))[1].classes
    tags = Tags(arguments.tags, classes)
    tagged = [source for source in sources(arguments.images) if has_tags(tags, source)]
    chosen = tagged[:: max(1, len(tagged) // (IMAGES * SETS))][: IMAGES * SETS]
    groups = [chosen[n : n + IMAGES] for n in range(0, len(chosen), IMAGES)]
    recipe = read_recipe(arguments.run)
    contestants = [
        Contestant("stages", chain(arguments.run, recipe, tags, groups, paper_form)),
        Contestant("authors", chain(arguments.run, recipe, tags, groups, authors_way), judged=False),
        Contestant("job, onnxruntime", job(arguments.run, arguments.tags, "onnxruntime", groups)),
        Contestant("job, torch", job(arguments.run, arguments.tags, "torch", groups)),
    ]
    rows = compare(
        "pseudo_labels", f"{arguments.name}, {IMAGES} images a round", contestants, inputs=len(groups), quick=False,
        judge=contestants[0].run, error=differing, limit=LIMIT, agreement=lambda a, b: 1 - differing(a, b),
    )  # fmt: skip
    before = json.loads(RESULT.read_text()) if RESULT.exists() else []
    kept = [row for row in before if not row["case"].startswith(f"{arguments.name},")]
    write_json(RESULT, [*kept, *(asdict(row) for row in rows)])
    for row in rows:
        each = row.seconds.median / IMAGES
        print(f"{row.row:18} {each:.3f} s an image  {row.ratio:.1f}x  same labels {row.agreement}  wrong {row.wrong}")


def has_tags(tags: Tags, source: Source) -> bool:
    """Whether the file has a line for the image."""
    try:
        return len(tags.of(source)) > 0
    except DataError:
        return False


def job(run: Path, tags: Path, backend: str, groups: list[list[Source]]) -> Callable[[int], Labels]:
    """The job, labels in the order of the images."""
    opened = PseudoLabelJob(run, tags, backend)

    def labels(n: int) -> Labels:
        found = {result.source.name: result.labels for result in predict(opened, groups[n])}
        return [found[source.name] for source in groups[n]]  # type: ignore[misc]

    return labels


def chain(
    run: Path, recipe: LabelRecipe, tags: Tags, groups: list[list[Source]], after: Callable[..., ByteArray]
) -> Callable[[int], Labels]:
    """Maps and affinity features in eager torch, then `after`."""
    compute = Compute.resolve("cpu", "fp32")
    cam_net, manifest = load_network(RunFolder(run).weights("cam_net"), compute)
    affinity_net, _ = load_network(RunFolder(run).weights("affinity_net"), compute)
    assert isinstance(cam_net, CamNet) and isinstance(affinity_net, AffinityNet)
    views, features = score_views(cam_net, compute), affinity_features(affinity_net, compute)
    offsets = neighbour_offsets(recipe.radius)

    def label(source: Source) -> ByteArray:
        image, classes = read_image(source.path), tags.of(source)
        maps = activation_map(image, classes, views, recipe.cam, multiple=manifest.stride)
        field = affinity_field(features(image), offsets, AFFINITY_STRIDE)
        return after(image, maps.scores, classes, field, recipe)

    return lambda n: [label(source) for source in groups[n]]


def paper_form(image: ByteArray, maps: Any, classes: Any, field: Any, recipe: LabelRecipe) -> ByteArray:
    """Walk, CRF and labels as the stages write them."""
    probabilities = scores_by(random_walk, image, maps, field, recipe)
    if recipe.pseudo_label.use_crf:
        probabilities = dense_crf(image, probabilities, recipe.pseudo_label.crf)
    return label_index(probabilities, classes, recipe.pseudo_label.confidence)


def authors_way(image: ByteArray, maps: Any, classes: Any, field: Any, recipe: LabelRecipe) -> ByteArray:
    """Walk by a dense matrix, CRF by pydensecrf."""
    probabilities = scores_by(eager.dense_walk, image, maps, field, recipe)
    if recipe.pseudo_label.use_crf:
        crf = backends.row("crf", "pydensecrf")
        ((probabilities,),) = crf([image], [[probabilities]], recipe.pseudo_label.crf)
    return label_index(probabilities, classes, recipe.pseudo_label.confidence)


def scores_by(walk: Callable[..., Any], image: ByteArray, maps: Any, field: Any, recipe: LabelRecipe) -> Any:
    """Probabilities before the CRF [P+1 H W]."""
    size = (image.shape[0], image.shape[1])
    full = upsample(maps, size, recipe.cam.grid_stride)
    channels = np.concatenate([background_score(full, recipe.alpha)[None], full])
    walked = walk(pool_to_grid(channels, field.stride, recipe.walk.border), field, recipe.walk)
    if recipe.walk.normalise:
        walked = divided_by_maximum(walked)
    return sharpened(upsample(walked, size, field.stride), recipe.pseudo_label.sharpen)


def differing(found: Labels, expected: Labels) -> float:
    """Share of all pixels with another label."""
    pixels = sum(labels.size for labels in expected)
    return float(sum((a != b).sum() for a, b in zip(found, expected, strict=True)) / pixels)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
