"""Small charts as SVG text, in the colours of the page: lines, points, and nothing that needs a library.

A chart has no fixed colours but those of its series: axes and text take `currentColor`, so that it reads in light and
dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 260  # [px] of the drawing; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 34  # [px] margins
RADIUS = 3.2  # [px] of a mark
RULE_TEXT = 15  # [px] of a line of text
SERIES = ("#3b6fd4", "#d9622b", "#2c9c69", "#a04fc4", "#b58900", "#c43d5d", "#4aa3b5", "#7a7a7a")


@dataclass(frozen=True, slots=True)
class Series:
    """A named list of points.

    Attributes:
        marks: draw every point, with its text on hovering.
        texts: of the points; empty gives their coordinates.
        radii: of the marks [px].
    """

    name: str
    points: Sequence[tuple[float, float]]
    marks: bool = False
    line: bool = True
    texts: Sequence[str] = ()
    radii: Sequence[float] = ()
    colour: str = ""


def chart(series: Sequence[Series], *, x: str, y: str, rules: Sequence[tuple[float, str]] = ()) -> str:
    """An SVG of lines and points over shared axes; empty where no series has a finite point.

    Args:
        x, y: names of the axes; an axis without a name has no numbers either.
        rules: vertical lines (x, text).
    """
    kept = [[(a, b) for a, b in item.points if math.isfinite(a) and math.isfinite(b)] for item in series]
    everything = [point for points in kept for point in points]
    if not everything:
        return ""
    xs = [a for a, _ in everything] + [a for a, _ in rules]
    axis_x, axis_y = _Axis(min(xs), max(xs)), _Axis(min(b for _, b in everything), max(b for _, b in everything))

    top = TOP + RULE_TEXT * len(rules)  # what is said of rules stands above the curves

    def place(a: float, b: float) -> tuple[float, float]:
        return (
            LEFT + axis_x.share(a) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - axis_y.share(b) * (HEIGHT - top - BOTTOM),
        )

    parts = []
    for value in axis_y.ticks() if y else ():
        _, py = place(axis_x.low, value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py + 4:.1f}" text-anchor="end">{axis_y.text(value)}</text>')
    for value in axis_x.ticks() if x else ():
        px, _ = place(value, axis_y.low)
        parts.append(f'<text x="{px:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{axis_x.text(value)}</text>')
    middle = (top + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>')
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y)}</text>')
    for turn, (value, text) in enumerate(sorted(rules)):  # so that no rule runs through another one's text
        px, _ = place(value, axis_y.low)
        end = px > WIDTH - 160
        row = TOP + RULE_TEXT * turn
        parts.append(f'<line class="rule" x1="{px:.1f}" x2="{px:.1f}" y1="{row}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(
            f'<text x="{px + (-5 if end else 5):.1f}" y="{row + 10}" '
            f'text-anchor="{"end" if end else "start"}">{escape(text)}</text>'
        )
    for number, (item, points) in enumerate(zip(series, kept, strict=True)):
        colour = item.colour or SERIES[number % len(SERIES)]
        places = [place(a, b) for a, b in points]
        if item.line and len(places) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py in places)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if item.marks or len(places) == 1:
            texts = item.texts or [f"{axis_x.text(a)}, {b:.4g}" for a, b in points]
            radii = item.radii or [RADIUS] * len(places)
            for (px, py), text, radius in zip(places, texts, radii, strict=True):
                title = escape(f"{item.name}: {text}" if item.name else text)
                spot = f'cx="{px:.1f}" cy="{py:.1f}" r="{radius:g}"'
                parts.append(f'<circle {spot} fill="{colour}"><title>{title}</title></circle>')
    named = [(item.name, item.colour or SERIES[n % len(SERIES)]) for n, item in enumerate(series) if item.name]
    legend = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in named)
    body = "".join(parts)
    label = escape(f"{y} over {x}" if x and y else "points")
    return (
        f'<figure class="chart"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{body}</svg>'
        f"<figcaption>{legend if len(named) > 1 else ''}</figcaption></figure>"
    )


class _Axis:
    """A range with round ticks."""

    def __init__(self, low: float, high: float):
        if high - low < 1e-12:
            low, high = low - 0.5, high + 0.5
        raw = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(raw))
        self.step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
        self.low, self.high = math.floor(low / self.step) * self.step, math.ceil(high / self.step) * self.step

    def share(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        return [self.low + n * self.step for n in range(round((self.high - self.low) / self.step) + 1)]

    def text(self, value: float) -> str:
        digits = next(d for d in range(12) if abs(round(self.step, d) - self.step) < 1e-6 * self.step)
        return f"{value:.{digits}f}"
