"""The drawn sample set: a small dataset that the package draws itself, with exact masks, the same for the same seed.

Five classes of drawn objects, each a large plain body and a small telling part. Bodies have the same colours in all
classes, and two shapes between them, so a classifier looks at the telling part only: its activation maps show the
fault that sub-categories, affinity and CRF are there to mend. Each class comes in three looks, the true
sub-categories that clustering should find.

    images/ID.png  masks/ID.png  tags.csv  classes.txt  train.txt  val.txt     as read_folder reads them
    parts/ID.png   1 = telling part, 2 = body
    looks.json     image id -> its objects: class, look, box [top, left, bottom, right) [px], shares of the area
"""

from __future__ import annotations

import colorsys
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from sccam.artifacts import replacing, write_json, write_text
from sccam.data.masks import write_mask
from sccam.errors import DataError
from sccam.structures import ByteArray

FOLDERS = ("images", "masks", "parts")
FILES = ("classes.txt", "tags.csv", "train.txt", "val.txt", "looks.json")
TELLING, BODY = 1, 2
LOOKS = 3
_FINE = 3  # supersampling: shapes are drawn this many times larger, the image averaged, the masks sampled
_VAL_EVERY = 5  # one image in five is for validation

Points = NDArray[np.float64]  # [n 2] (x, y), y downwards
Picture = NDArray[np.float64]  # [H W 3] in [0, 255]
Colour = tuple[int, int, int]

WHITE, CREAM, INK, NAVY = (250, 250, 246), (250, 234, 200), (44, 42, 52), (38, 52, 104)
ORANGE, YELLOW, RUST, WOOD, GLASS = (246, 146, 36), (252, 208, 60), (150, 58, 46), (112, 70, 42), (180, 224, 244)


@dataclass(frozen=True, slots=True)
class Shape:
    """One filled polygon of an object, in units of about the object's size."""

    points: Points
    colour: Colour
    part: int


def draw_sample(
    out: Path | str,
    *,
    images: int = 190,
    seed: int = 0,
    sizes: tuple[int, int] = (96, 192),
    pair_share: float = 0.25,
) -> None:
    """Draws the sample set into a new folder.

    Args:
        out: the folder to make; it must be missing or empty.
        images: how many, one in five of them for validation; at least two a class.
        seed: image n depends on the seed and n only.
        sizes: smallest and largest height and width [px]; multiples of 8 are left out.
        pair_share: share of images that show two classes, in [0, 1].

    Raises:
        DataError: the folder is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("the folder for the sample set is not empty", where=out, fix="name a new folder")
    if images < 2 * len(CLASSES):
        raise ValueError(f"{images} images are too few; {len(CLASSES)} classes need at least {2 * len(CLASSES)}")

    try:
        _write(out, images, seed, sizes, pair_share)
    except BaseException:  # half of a set would be in the way of the next try; the folder was empty
        for name in FOLDERS:
            shutil.rmtree(out / name, ignore_errors=True)
        for name in FILES:
            with suppress(OSError):
                (out / name).unlink()
        raise


def _write(out: Path, images: int, seed: int, sizes: tuple[int, int], pair_share: float) -> None:
    tags, looks = ["image,tags"], {}
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for n in range(images):
        image_id = f"{n:04d}"
        picture, index, parts, objects = _draw_image(n, np.random.default_rng([seed, n]), sizes, pair_share)
        for folder in FOLDERS:
            (out / folder).mkdir(parents=True, exist_ok=True)
        with replacing(out / "images" / f"{image_id}.png") as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        write_mask(out / "masks" / f"{image_id}.png", index)
        write_mask(out / "parts" / f"{image_id}.png", parts)
        tags.append(f"{image_id}.png,{' '.join(sorted(item['class'] for item in objects))}")
        looks[image_id] = objects
        # Runs through classes and lists at different speeds, so each class has its fifth in val.
        block, class_index = divmod(n, len(CLASSES))
        lists["val" if (block + class_index) % _VAL_EVERY == _VAL_EVERY - 1 else "train"].append(image_id)
    write_text(out / "classes.txt", "\n".join(CLASSES) + "\n")
    write_text(out / "tags.csv", "\n".join(tags) + "\n")
    for name, ids in lists.items():
        write_text(out / f"{name}.txt", "\n".join(ids) + "\n")
    write_json(out / "looks.json", looks)


def _draw_image(
    n: int, rng: Generator, sizes: tuple[int, int], pair_share: float
) -> tuple[ByteArray, ByteArray, ByteArray, list[dict[str, Any]]]:
    """Picture u8 [H W 3], class indices and parts u8 [H W], and a record of each object."""
    names = list(CLASSES)
    size = _side(rng, sizes), _side(rng, sizes)
    chosen = [n % len(names)]
    if rng.random() < pair_share:
        chosen.append(int(rng.choice([c for c in range(len(names)) if c not in chosen])))
    regions = _regions(size, len(chosen), rng)

    picture = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))](size, rng)
    index, parts = np.zeros(size, np.uint8), np.zeros(size, np.uint8)
    objects = []
    for place, c in enumerate(chosen):
        look = (n // len(names)) % LOOKS if place == 0 else int(rng.integers(LOOKS))
        shapes = CLASSES[names[c]](look, _body_colour(look, rng))
        placed = _place(shapes, names[c], regions[place], size, rng)
        picture, own = _paint(picture, placed, rng)
        index[own > 0], parts[own > 0] = c + 1, own[own > 0]
        ys, xs = np.nonzero(own)
        objects.append(
            {
                "class": names[c],
                "look": look,
                "box": [int(ys.min()), int(xs.min()), int(ys.max()) + 1, int(xs.max()) + 1],
                "share_of_image": round(float((own > 0).mean()), 4),
                "share_telling": round(float((own == TELLING).sum() / (own > 0).sum()), 4),
            }
        )
    picture += rng.normal(0, 2.5, picture.shape)
    return np.clip(picture.round(), 0, 255).astype(np.uint8), index, parts, objects


def _side(rng: Generator, sizes: tuple[int, int]) -> int:
    allowed = [side for side in range(sizes[0], sizes[1] + 1) if side % 8]
    return int(rng.choice(allowed))


def _regions(size: tuple[int, int], count: int, rng: Generator) -> list[tuple[float, float, float, float]]:
    """Where each object may lie (left, top, right, bottom) [px]: the image, or its halves along the longer side."""
    height, width = size
    if count == 1:
        return [(0, 0, width, height)]
    cut = rng.uniform(0.45, 0.55)
    halves: list[tuple[float, float, float, float]]
    if width >= height:
        halves = [(0, 0, cut * width, height), (cut * width, 0, width, height)]
    else:
        halves = [(0, 0, width, cut * height), (0, cut * height, width, height)]
    return halves if rng.random() < 0.5 else halves[::-1]


def _place(
    shapes: Sequence[Shape], name: str, region: tuple[float, ...], size: tuple[int, int], rng: Generator
) -> list[Shape]:
    """The object turned, mirrored, scaled to its share of the image and moved into its region."""
    upright = name in ("car", "house")
    angle = np.radians(rng.uniform(-9, 9) if upright else rng.uniform(-32, 32))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    mirror = np.array([rng.choice([-1.0, 1.0]), 1.0])
    outlines = [(shape.points * mirror) @ turn for shape in shapes]
    low, high = np.min([o.min(0) for o in outlines], 0), np.max([o.max(0) for o in outlines], 0)

    left, top, right, bottom = region
    margin = 3
    room = np.array([right - left, bottom - top]) - 2 * margin
    share = rng.uniform(0.16, 0.36)  # of its region
    area = (right - left) * (bottom - top)
    filled = _filled_area(outlines)
    scale = min(np.sqrt(share * area / filled), *(room / (high - low)))
    start = np.array([left, top]) + margin + rng.random(2) * (room - scale * (high - low))
    return [
        Shape((outline - low) * scale + start, shape.colour, shape.part)
        for outline, shape in zip(outlines, shapes, strict=True)
    ]


def _filled_area(outlines: Sequence[Points], cells: int = 128) -> float:
    """Area of the union of polygons, by drawing them on a small grid."""
    low, high = np.min([o.min(0) for o in outlines], 0), np.max([o.max(0) for o in outlines], 0)
    cell = float((high - low).max()) / cells
    grid = Image.new("1", (cells, cells))
    for outline in outlines:
        ImageDraw.Draw(grid).polygon([tuple(point) for point in (outline - low) / cell], fill=1)
    return float(np.asarray(grid).sum()) * cell * cell


def _paint(picture: Picture, shapes: Sequence[Shape], rng: Generator) -> tuple[Picture, ByteArray]:
    """The picture with the object on it, and the object's parts u8 [H W], both from the same outlines."""
    height, width = picture.shape[:2]
    colour = Image.new("RGB", (width * _FINE, height * _FINE))
    part = Image.new("L", colour.size)
    for shape in shapes:
        points = [tuple(point) for point in shape.points * _FINE]
        edge = tuple(int(0.62 * value) for value in shape.colour)
        for canvas, fill, line in ((colour, shape.colour, edge), (part, shape.part, shape.part)):
            pen = ImageDraw.Draw(canvas)
            pen.polygon(points, fill=fill)
            pen.line([*points, points[0]], fill=line, width=_FINE, joint="curve")

    opaque = part.point(lambda value: 255 * (value > 0))
    cover = np.asarray(opaque.reduce(_FINE), float)[..., None] / 255
    shadow = opaque.reduce(_FINE).filter(ImageFilter.GaussianBlur(2.5))
    shade = np.roll(np.asarray(shadow, float), (3, 2), (0, 1))[..., None] / 255
    # Light from above: the top of the object a little brighter than its foot.
    rows = np.flatnonzero(cover.any((1, 2)))
    light = np.interp(np.arange(height), [rows[0], rows[-1]], [1.07, 0.91])[:, None, None]
    painted = np.asarray(colour.reduce(_FINE), float) * light
    centre = _FINE // 2
    return picture * (1 - 0.28 * shade) * (1 - cover) + painted, np.array(part)[centre::_FINE, centre::_FINE]


def _body_colour(look: int, rng: Generator) -> Colour:
    """Red to yellow, green to teal, or blue to violet: a look has its colours in every class."""
    hue = rng.uniform(*((-0.03, 0.13), (0.26, 0.48), (0.56, 0.80))[look])
    return _rgb(hue, rng.uniform(0.50, 0.72), rng.uniform(0.72, 0.92))


def _rgb(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return int(255 * red), int(255 * green), int(255 * blue)


# The objects: each takes its look and body colour, and lists its shapes from back to front.


def _fish(look: int, colour: Colour) -> list[Shape]:
    length, depth = ((0.52, 0.27), (0.44, 0.34), (0.56, 0.21))[look]
    tail_x, half, spread = length - 0.06, (0.28, 0.24, 0.26)[look], (0.75, 1.0, 0.55)[look]
    stripes = (5, 4, 6)[look]
    angles = np.linspace(-spread, spread, stripes + 1)
    shapes = []
    for i in range(stripes):
        # A forked tail in the second look: the outer rays are longer.
        reach = [half * (1 + 0.5 * abs(angle) / spread * (look != 2)) for angle in angles[i : i + 2]]
        rim = [(tail_x + r * np.cos(a) + 0.04, r * np.sin(a)) for r, a in zip(reach, angles[i : i + 2], strict=True)]
        shapes.append(Shape(_polygon((tail_x - 0.08, 0), *rim), (NAVY, WHITE)[i % 2], TELLING))
    shapes.append(Shape(_ellipse(0, 0, length, depth), colour, BODY))
    shapes += _eye(-0.66 * length, -0.22 * depth, 0.055)
    return shapes


def _bird(look: int, colour: Colour) -> list[Shape]:
    length, depth = ((0.46, 0.34), (0.40, 0.38), (0.54, 0.28))[look]
    x, y, r = -0.86 * length, -0.88 * depth, 0.155
    beak = (
        _polygon((x - 0.10, y - 0.07), (x - 0.34, y + 0.02), (x - 0.10, y + 0.09)),
        _polygon((x - 0.10, y - 0.09), (x - 0.26, y - 0.06), (x - 0.30, y + 0.12), (x - 0.08, y + 0.10)),
        _polygon((x - 0.10, y - 0.04), (x - 0.46, y + 0.05), (x - 0.10, y + 0.08)),
    )[look]
    crest = [
        _polygon((x + k - 0.04, y - 0.10), (x + 1.6 * k + 0.06, y - 0.29), (x + k + 0.06, y - 0.08))
        for k in ((), (-0.05, 0.02, 0.09), (0.06,))[look]
    ]
    legs = [Shape(_bar((k, 0.8 * depth), (k - 0.03, depth + 0.17), 0.028), ORANGE, TELLING) for k in (-0.07, 0.09)]
    root = 0.7 * length
    tail = _polygon((root, -0.13), (length + 0.22, -0.20), (length + 0.17, 0.02), (root, 0.14))
    return [
        *legs,
        Shape(tail, colour, BODY),
        Shape(_ellipse(0, 0, length, depth), colour, BODY),
        *(Shape(feather, ORANGE, TELLING) for feather in crest),
        Shape(beak, (ORANGE, YELLOW, ORANGE)[look], TELLING),
        Shape(_ellipse(x, y, r, r), (WHITE, INK, CREAM)[look], TELLING),
        *_eye(x - 0.03, y - 0.03, 0.05),
    ]


def _teapot(look: int, colour: Colour) -> list[Shape]:
    width, height = ((0.42, 0.36), (0.38, 0.42), (0.50, 0.30))[look]
    trim = (WHITE, YELLOW, INK)[look]
    spout = _polygon(
        (-0.80 * width, 0.18), (-width - 0.13, 0.02), (-width - 0.22, -0.24), (-width - 0.33, -0.26),
        (-width - 0.30, -0.33), (-width - 0.12, -0.31), (-width - 0.04, -0.12), (-0.86 * width, -0.10),
    )  # fmt: skip
    bend = np.linspace(-1.35, 1.35, 14)
    outer = np.stack([0.86 * width + 0.27 * np.cos(bend), 0.25 * np.sin(bend)], 1)
    inner = np.stack([0.86 * width + 0.18 * np.cos(bend), 0.17 * np.sin(bend)], 1)[::-1]
    handle = np.concatenate([outer, inner])
    knob = _ellipse(0, -height - 0.09, 0.075, 0.065) if look != 1 else _box(0, -height - 0.08, 0.11, 0.14, 0.02)
    return [
        Shape(spout, trim, TELLING),
        Shape(handle, trim, TELLING),
        Shape(knob, trim, TELLING),
        Shape(_ellipse(0, -0.93 * height, 0.5 * width, 0.06), colour, BODY),
        Shape(_ellipse(0, 0, width, height), colour, BODY),
    ]


def _car(look: int, colour: Colour) -> list[Shape]:
    length, height = ((1.10, 0.36), (0.92, 0.46), (1.24, 0.42))[look]
    cabin = (0.10, 0.02, 0.06)[look]
    top = -0.5 * height
    foot, ceiling = top + 0.05, top - 0.24
    roof = _polygon((cabin - 0.38, foot), (cabin - 0.22, ceiling), (cabin + 0.22, ceiling), (cabin + 0.36, foot))
    if look == 2:  # a van
        roof = _box(0.12, top - 0.10, 0.98, 0.34, 0.07)
    shapes = [Shape(roof, colour, BODY), Shape(_box(0, 0, length, height, 0.10), colour, BODY)]
    radius, hub = ((0.135, WHITE), (0.16, YELLOW), (0.12, GLASS))[look]
    for x in ((-0.32, 0.32), (-0.25, 0.27), (-0.42, 0.16, 0.44))[look]:
        shapes.append(Shape(_ellipse(x, 0.5 * height, radius, radius), INK, TELLING))
        shapes.append(Shape(_ellipse(x, 0.5 * height, 0.45 * radius, 0.45 * radius), hub, TELLING))
    lamp = _ellipse(-0.5 * length + 0.05, -0.05, 0.045, 0.045)
    return [*shapes, Shape(lamp, YELLOW, TELLING)]


def _house(look: int, colour: Colour) -> list[Shape]:
    width, height = ((0.84, 0.62), (0.68, 0.82), (1.04, 0.54))[look]
    top, foot = -0.5 * height, 0.5 * height
    rise, over = (0.15, 0.17, 0.11)[look], 0.05
    peak = ((0.0, 0.0), (0.0, 0.0), (-0.22, 0.22))[look]
    eave = 0.5 * width + over
    roof = _polygon((-eave, top + 0.02), (peak[0], top - rise), (peak[1], top - rise), (eave, top + 0.02))
    door_x = (-0.16, 0.0, 0.24)[look]
    door = _box(door_x, foot - 0.13, 0.15, 0.26, 0.02) if look != 1 else _ellipse(door_x, foot - 0.14, 0.09, 0.145)
    windows = (((0.20, -0.02),), ((-0.17, -0.14), (0.17, -0.14)), ((-0.28, 0.0), (-0.04, 0.0)))[look]
    shapes = [
        Shape(_box(0.24 * width, top - 0.16, 0.11, 0.26, 0.01), RUST, TELLING),
        Shape(_box(0, 0, width, height, 0.02), colour, BODY),
        Shape(roof, (RUST, INK, WOOD)[look], TELLING),
        Shape(door, (WOOD, WHITE, NAVY)[look], TELLING),
    ]
    for x, y in windows:
        shapes.append(Shape(_box(x, y, 0.15, 0.15, 0.01), (GLASS, YELLOW, GLASS)[look], TELLING))
    return shapes


CLASSES: dict[str, Callable[[int, Colour], list[Shape]]] = {
    "bird": _bird,
    "car": _car,
    "fish": _fish,
    "house": _house,
    "teapot": _teapot,
}


def _eye(x: float, y: float, radius: float) -> list[Shape]:
    return [
        Shape(_ellipse(x, y, radius, radius), WHITE, TELLING),
        Shape(_ellipse(x - 0.2 * radius, y, 0.5 * radius, 0.5 * radius), INK, TELLING),
    ]


def _ellipse(x: float, y: float, rx: float, ry: float) -> Points:
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1)


def _box(x: float, y: float, width: float, height: float, corner: float) -> Points:
    """A rectangle around (x, y) with round corners."""
    quarter = np.linspace(0, np.pi / 2, 7)
    arcs = []
    for k, (sx, sy) in enumerate(((1, 1), (-1, 1), (-1, -1), (1, -1))):
        centre = np.array([x + sx * (width / 2 - corner), y + sy * (height / 2 - corner)])
        angle = quarter + k * np.pi / 2
        arcs.append(centre + corner * np.stack([np.cos(angle), np.sin(angle)], 1))
    return np.concatenate(arcs)


def _bar(start: tuple[float, float], end: tuple[float, float], width: float) -> Points:
    along = np.subtract(end, start)
    side = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
    return np.array([start + side, end + side, end - side, start - side])


def _polygon(*points: tuple[float, float]) -> Points:
    return np.array(points, float)


# The backgrounds: muted colours, so that no body has them, and each with a texture of its own.


def _muted(rng: Generator) -> NDArray[np.float64]:
    return np.array(_rgb(rng.random(), rng.uniform(0.05, 0.22), rng.uniform(0.55, 0.88)), float)


def _value_noise(size: tuple[int, int], cell: float, rng: Generator) -> NDArray[np.float64]:
    """Smooth noise [H W 1] in about [-1, 1] with bumps of `cell` [px]."""
    height, width = size
    coarse = rng.uniform(-1, 1, (int(height / cell) + 2, int(width / cell) + 2)).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, float)[..., None]


def _plain(size: tuple[int, int], rng: Generator) -> Picture:
    return np.broadcast_to(_muted(rng), (*size, 3)).copy()


def _sky(size: tuple[int, int], rng: Generator) -> Picture:
    down = np.linspace(0, 1, size[0])[:, None, None]
    cloud = sum(_value_noise(size, cell, rng) * cell for cell in (36, 18, 9)) / 2.2
    picture: Picture = _muted(rng) * (1 - down) + _muted(rng) * down + cloud
    return picture


def _stripes(size: tuple[int, int], rng: Generator) -> Picture:
    y, x = np.mgrid[: size[0], : size[1]]
    angle, period = rng.uniform(0, np.pi), rng.uniform(9, 22)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    return _plain(size, rng) + 13 * np.clip(3 * wave, -1, 1)[..., None] + 5 * _value_noise(size, 24, rng)


def _grass(size: tuple[int, int], rng: Generator) -> Picture:
    height, width = size
    base = np.array(_rgb(rng.uniform(0.16, 0.30), rng.uniform(0.20, 0.32), rng.uniform(0.50, 0.66)), float)
    canvas = Image.new("RGB", (width * 2, height * 2), tuple(int(value) for value in base))
    pen = ImageDraw.Draw(canvas)
    for _ in range(height * width // 28):
        x, y = rng.uniform(0, width * 2), rng.uniform(0, height * 2 + 16)
        lean, tall = rng.normal(0, 5), rng.uniform(8, 24)
        tint = tuple(int(value) for value in np.clip(base * rng.uniform(0.78, 1.22), 0, 255))
        pen.line([(x, y), (x + lean, y - tall)], fill=tint, width=2)
    return np.asarray(canvas.reduce(2), float) + 6 * _value_noise(size, 30, rng)


def _bricks(size: tuple[int, int], rng: Generator) -> Picture:
    y, x = np.mgrid[: size[0], : size[1]]
    tall = int(rng.integers(9, 16))
    wide = tall * int(rng.integers(1, 3))
    row = y // tall
    shifted = x + (row % 2) * (wide // 2) * (wide > tall)
    tint = rng.normal(0, 8, (size[0] // tall + 1, (size[1] + wide) // wide + 1))
    joint = (y % tall == 0) | (shifted % wide == 0)
    return _plain(size, rng) + np.where(joint, 24.0, tint[row, shifted // wide])[..., None]


def _paper(size: tuple[int, int], rng: Generator) -> Picture:
    fibre = _value_noise(size, 2, rng) * 5 + _value_noise(size, 40, rng) * 8
    base: Picture = np.array(_rgb(rng.uniform(0.08, 0.16), rng.uniform(0.04, 0.16), rng.uniform(0.84, 0.93)), float)
    return base + fibre


def _speckle(size: tuple[int, int], rng: Generator) -> Picture:
    grain = sum(np.sign(_value_noise(size, cell, rng) - 0.5) * strength for cell, strength in ((3, 9), (6, 12)))
    return _plain(size, rng) + grain + 6 * _value_noise(size, 32, rng)


BACKGROUNDS = (_sky, _stripes, _grass, _bricks, _paper, _speckle)
