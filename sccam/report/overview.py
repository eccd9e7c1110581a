"""One picture of a run: a few images, and beside each what every stage made of it.

Columns: image | activation map of the last round | walked scores | pseudo label | segmenter's mask | true mask.
A tile whose file is not there is left grey; a column of nothing but such tiles is left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sccam.artifacts import RunFolder, replacing
from sccam.data.examples import EXAMPLES, example_rows
from sccam.data.images import read_image
from sccam.data.masks import BLEND, coloured, read_mask
from sccam.recipe import RunConfig
from sccam.runtime.labeler import load_map, walked_scores
from sccam.stages.affinity_labels import AFFINITY_STRIDE
from sccam.stages.walk import upsample
from sccam.structures import ByteArray, Dataset, FloatArray

TILE = 200  # [px] longer side of a picture
GAP = 8  # [px]
CAPTION = 24  # [px]
PAPER, INK, ABSENT = (255, 255, 255), (40, 40, 40), (225, 225, 225)


def write_overview(folder: RunFolder, dataset: Dataset, config: RunConfig, *, rows: int = EXAMPLES) -> Path:
    """Writes the picture of up to `rows` training images into the run folder, as overview.png."""
    images, last = dataset.train, config.last_round
    sheet = _Sheet(("image", "activation map", "after the walk", "pseudo label", "segmenter", "true mask"))
    for n in example_rows(dataset, rows):
        id, image = images.ids[n], read_image(images.paths[n])
        tiles: list[ByteArray | None] = [image, None, None]
        if (file := folder.activation_map(last, id)).exists():
            activation, size = load_map(file)
            tiles[1] = heat(image, upsample(activation.scores, size, config.cam.grid_stride))
        if (file := folder.walked_map(id)).exists():
            walked, _ = walked_scores(file, 0, AFFINITY_STRIDE)
            tiles[2] = heat(image, walked[1:] / max(walked.max(), 1e-6))
        for mask in (folder.pseudo_label(id), folder.prediction("train", id), dataset.masks.paths.get(id)):
            tiles.append(coloured(image, read_mask(mask)) if mask is not None and mask.exists() else None)
        sheet.add(", ".join(np.array(images.classes)[images.labels.present[n]]), tiles)
    path = folder / "overview.png"
    with replacing(path) as temporary:
        sheet.picture().save(temporary, format="PNG", optimize=True)
    return path


def heat(image: ByteArray, scores: FloatArray) -> ByteArray:
    """The image in grey under its highest class score, from blue (0) over green to red (1).

    Args:
        image: u8 [H W 3].
        scores: [P H W] in [0, 1].
    """
    highest = scores.max(axis=0, initial=0.0)[..., None]
    colour = np.concatenate([1.5 - np.abs(4 * highest - k) for k in (3, 2, 1)], axis=-1).clip(0, 1) * 255
    grey = image.mean(axis=-1, keepdims=True)
    return (BLEND * colour + (1 - BLEND) * grey).astype(np.uint8)


class _Sheet:
    """Rows of equal tiles under a line of titles."""

    def __init__(self, titles: tuple[str, ...]):
        self.titles = titles
        self.rows: list[tuple[str, list[Image.Image | None]]] = []

    def add(self, caption: str, tiles: list[ByteArray | None]) -> None:
        self.rows.append((caption, [None if tile is None else _thumbnail(tile) for tile in tiles]))

    def picture(self) -> Image.Image:
        there = [column for column in range(len(self.titles)) if any(tiles[column] for _, tiles in self.rows)]
        heights = [max([tile.height for tile in tiles if tile] or [TILE]) for _, tiles in self.rows]
        width = GAP + len(there) * (TILE + GAP)
        sheet = Image.new("RGB", (width, 2 * GAP + CAPTION + sum(h + CAPTION + GAP for h in heights)), PAPER)
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=15)
        for place, column in enumerate(there):
            draw.text((GAP + place * (TILE + GAP), GAP), self.titles[column], INK, font=font)
        y = GAP + CAPTION
        for (caption, tiles), height in zip(self.rows, heights, strict=True):
            for place, column in enumerate(there):
                x, tile = GAP + place * (TILE + GAP), tiles[column]
                if tile is None:
                    draw.rectangle((x, y, x + TILE - 1, y + height - 1), ABSENT)
                else:
                    sheet.paste(tile, (x, y))
            draw.text((GAP, y + height + 2), caption, INK, font=font)
            y += height + CAPTION + GAP
        return sheet


def _thumbnail(tile: ByteArray) -> Image.Image:
    scale = TILE / max(tile.shape[:2])
    size = (max(1, round(tile.shape[1] * scale)), max(1, round(tile.shape[0] * scale)))
    return Image.fromarray(tile).resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
