"""Random views of a training image, and the padding and resizing that every network input shares.

Order as in the authors' loaders (psa voc12/data.py): resize, mirror, colour jitter, crop with padding in the mean
colour. The resize computes only the pixels that the crop keeps, and the jitter runs on the crop; against the
authors' order that changes only the mean grey that the contrast step pulls towards.
All images stay uint8 RGB [H W 3]; normalisation is the network's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageEnhance

from sccam.errors import ConfigError
from sccam.structures import IGNORE, LONGEST_SIDE, MOST_SCALE, ByteArray


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Settings of a random view. `long_side` wins over `scales` where both are given."""

    crop: int = field(default=224, metadata={"min": 16, "max": 4096})  # [px]
    long_side: tuple[int, ...] = (256, 512)  # [px] (low, high), uniform; () leaves the size to `scales`
    scales: tuple[float, ...] = ()  # one of these factors at random; () keeps the size
    flip: bool = True
    jitter: tuple[float, ...] = (0.3, 0.3, 0.3, 0.1)  # brightness, contrast, saturation, hue; () switches it off

    def __post_init__(self) -> None:
        sides = self.long_side
        if (
            len(sides) not in (0, 2)
            or any(not 1 <= side <= LONGEST_SIDE for side in sides)
            or list(sides) != sorted(sides)
        ):
            raise ConfigError(f"long_side {list(sides)} is not [low, high] in 1 to {LONGEST_SIDE} pixels, nor []")
        if any(not 0 < scale <= MOST_SCALE for scale in self.scales):
            raise ConfigError(f"scales {list(self.scales)} must be factors in (0, {MOST_SCALE:g}]")
        if len(self.jitter) not in (0, 4) or any(not 0 <= amount <= 1 for amount in self.jitter):
            raise ConfigError(f"jitter {list(self.jitter)} is not four amounts in [0, 1], nor []")


def augment(
    image: ByteArray,
    config: AugmentConfig,
    rng: np.random.Generator,
    *,
    fill: tuple[int, int, int],
    label: ByteArray | None = None,
) -> tuple[ByteArray, ByteArray | None]:
    """A random view: image [crop crop 3] and, if given, its label map [crop crop] with 255 outside the image.

    Args:
        fill: colour outside the image; the network's mean, so that it is 0 after normalisation.
    """
    height, width = image.shape[:2]
    scale = _draw_scale(config, max(height, width), rng)
    scaled = (max(1, round(height * scale)), max(1, round(width * scale)))
    top, bottom, pad_top = _window(scaled[0], config.crop, rng)
    left, right, pad_left = _window(scaled[1], config.crop, rng)
    # The window in coordinates of the unscaled image: only what the crop keeps is resampled.
    box = (
        left * width / scaled[1],
        top * height / scaled[0],
        right * width / scaled[1],
        bottom * height / scaled[0],
    )
    size = (right - left, bottom - top)
    mirrored = config.flip and rng.random() < 0.5

    view = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, box=box)
    if config.jitter:
        view = _jitter(view, config.jitter, rng)
    pixels = np.empty((config.crop, config.crop, 3), dtype=np.uint8)
    pixels[:] = fill
    inside = np.s_[pad_top : pad_top + size[1], pad_left : pad_left + size[0]]
    pixels[inside] = np.asarray(view)
    cropped_label = None
    if label is not None:
        cropped_label = np.full((config.crop, config.crop), IGNORE, dtype=np.uint8)
        cropped_label[inside] = np.asarray(Image.fromarray(label).resize(size, Image.Resampling.NEAREST, box=box))
    if mirrored:
        pixels = np.ascontiguousarray(pixels[:, ::-1])
        cropped_label = None if cropped_label is None else np.ascontiguousarray(cropped_label[:, ::-1])
    return pixels, cropped_label


def resize(image: ByteArray, size: tuple[int, int]) -> ByteArray:
    """The image at (height, width), bicubic on uint8 as the authors resize."""
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def brought_to(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """(height, width) of an image that is brought to a long side; its own where that is 0."""
    if not long_side:
        return size
    height, width = (max(1, round(side * long_side / max(size))) for side in size)
    return height, width


def pad_to_multiple(image: ByteArray, multiple: int, fill: tuple[int, int, int]) -> ByteArray:
    """The image with its right and bottom padded in colour `fill` until both sides are multiples of `multiple`."""
    height, width = image.shape[:2]
    padded_size = (-(-height // multiple) * multiple, -(-width // multiple) * multiple)
    if padded_size == (height, width):
        return image
    padded = np.empty((*padded_size, 3), dtype=np.uint8)
    padded[:] = fill
    padded[:height, :width] = image
    return padded


def _draw_scale(config: AugmentConfig, long_side: int, rng: np.random.Generator) -> float:
    if config.long_side:
        low, high = config.long_side[0], config.long_side[-1]
        return float(rng.integers(low, high + 1)) / long_side
    return float(rng.choice(config.scales)) if config.scales else 1.0


def _window(side: int, crop: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(start, end) of the part of a side that the crop keeps, and where that part lies in the crop."""
    slack = side - crop
    start = int(rng.integers(0, abs(slack) + 1))
    return (start, start + crop, 0) if slack >= 0 else (0, side, start)


def _jitter(view: Image.Image, strength: tuple[float, ...], rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation by a factor in [1 - s, 1 + s] and a hue turn in [-s, s], in random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    amounts = rng.uniform(-1.0, 1.0, size=4) * np.asarray(strength)
    for step in rng.permutation(4):
        amount = float(amounts[step])
        if step < 3:
            view = enhancers[step](view).enhance(1.0 + amount)
        elif strength[3] > 0:
            hsv = np.array(view.convert("HSV"))
            hsv[..., 0] += np.uint8(round(amount * 255) % 256)  # hue is an angle: uint8 wraps as it should
            view = Image.fromarray(hsv, mode="HSV").convert("RGB")
    return view
