"""Draws the pictures of benchmarks/README.md from results/DEVICE-DATE.json, the files of `sccam bench`.

    python benchmarks/plots.py      # plots/DEVICE-WHAT.png; `make bench-tables` does this before it writes the pages

Each function draws one picture of one device, and gives None where the rows for it do not exist. Hues are those of
Okabe and Ito, told apart by colour-blind readers; a marker or a label says the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from measured import NETWORKS, Device, Row, best, cases, devices, headlines, images_a_second
from PIL import Image
from tables import PLOTS, number

from sccam.artifacts import replacing
from sccam.bench import exponents

OUT = Path(__file__).resolve().parent / "plots"
WIDTH = 9.0  # [in]
DPI = 200  # a README shows 900 px, screens have twice as many
BATCH = re.compile(r"(?P<network>.+), batch (?P<batch>\d+)")
INK, QUIET, FAINT = "#222222", "#767676", "#d9d9d9"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
HUES, SHAPES = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK), "osD^vP*"
RUNTIMES = {"eager": QUIET, "compiled": ORANGE, "onnxruntime": BLUE, "openvino": GREEN, "tensorrt": VERMILION}
MARKERS = {"fp16": "s", "bf16": "D", "int8": "^", "fp32": "o"}
PLAIN = FuncFormatter(lambda value, _: f"{value:,.10g}")  # 0.01, not a power of ten
BESIDE = {"va": "center", "fontsize": 8.5, "bbox": {"boxstyle": "square,pad=0.1", "fc": "white", "ec": "none"}}
STYLE = {
    "font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "lines.linewidth": 1.6,
    "axes.labelcolor": INK, "axes.edgecolor": FAINT, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 10, "axes.titlelocation": "left",
    "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    "xtick.color": QUIET, "xtick.labelcolor": INK, "xtick.minor.size": 0,
    "ytick.color": QUIET, "ytick.labelcolor": INK, "ytick.minor.size": 0,
    "legend.frameon": False, "legend.fontsize": 9,
    "figure.constrained_layout.w_pad": 0.12, "figure.constrained_layout.h_pad": 0.06,
}  # fmt: skip


def main() -> None:
    """Draws what there is."""
    for path in write(devices(), OUT):
        print(path)


def write(found: Sequence[Device], folder: Path) -> list[Path]:
    """The pictures of all devices; others that stand in the folder go."""
    draw = dict(zip(PLOTS, (speed_up, throughput, ceiling, scaling), strict=True))
    written = []
    with rc_context(STYLE):
        for device in found:
            for name, function in draw.items():
                figure = function(device)
                if figure is not None:
                    written.append(folder / f"{device.slug}-{name}.png")
                    _save(figure, written[-1])
    for path in set(folder.glob("*.png")) - set(written):
        path.unlink()
    return written


def _save(figure: Figure, path: Path) -> None:
    """A quarter of the bytes: few hues are told apart, so a palette holds them."""
    drawn = BytesIO()
    figure.savefig(drawn, dpi=DPI, format="png")
    with replacing(path) as temporary, Image.open(drawn) as image:
        image.convert("RGB").quantize(dither=Image.Dither.NONE).save(temporary, format="PNG", optimize=True)


def speed_up(device: Device) -> Figure | None:
    """A bar a headline: how many times as fast as the eager way, and where the fastest tuned one is."""
    lines = headlines(device)
    if not lines:
        return None
    figure, axes = _lines(len(lines), 0.44)
    for place, line in enumerate(lines):
        ratio, tuned = line.row["ratio"], None if line.tuned is None else line.tuned["ratio"]
        axes.barh(place, ratio - 1, left=1, height=0.58, color=BLUE)
        if tuned is not None:
            axes.plot(tuned, place, **_mark("D", ORANGE))
        axes.annotate(f"{number(ratio)} ×  {line.row['row']}", (max(1, ratio, tuned or 0), place), xytext=(9, 0),
                      textcoords="offset points", color=BLUE, **BESIDE)  # fmt: skip
    ratios = [way["ratio"] for line in lines for way in (line.row, line.tuned) if way is not None]
    axes.set_yticks(range(len(lines)), [f"{line.work}\n{line.row['case']}" for line in lines])
    axes.set_xlim(min(0.8, *ratios) / 1.1, max(10, *ratios) * 2)
    if max(ratios) < 100:
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.axvline(1, color=QUIET, linewidth=1)
    axes.set_xlabel("times as fast as the eager way")
    axes.grid(axis="y", visible=False)
    tuned_mark = Line2D([], [], label="fastest tuned eager way", **_mark("D", ORANGE))
    figure.legend(handles=[Patch(color=BLUE, label="best way of this package"), tuned_mark], loc="outside upper right",
                  ncols=2)  # fmt: skip
    return figure


def throughput(device: Device) -> Figure | None:
    """A panel a network: images a second against the batch, a line a way."""
    networks: dict[str, list[tuple[int, Row]]] = {}
    for row in device.rows:
        match = BATCH.fullmatch(row["case"])
        if row["suite"] == NETWORKS and match is not None:
            networks.setdefault(match["network"], []).append((int(match["batch"]), row))
    networks = {name: rows for name, rows in networks.items() if len({batch for batch, _ in rows}) > 1}
    if not networks:
        return None
    looks = _looks(dict.fromkeys(row["row"] for rows in networks.values() for _, row in rows))
    figure, panels = _panels(len(networks), 3.0)
    for axes, (network, rows) in zip(panels, networks.items(), strict=True):
        for way in dict.fromkeys(row["row"] for _, row in rows):
            x, y = np.array(sorted((batch, images_a_second(row)) for batch, row in rows if row["row"] == way)).T
            axes.plot(x, y, **looks[way])
        batches = sorted({batch for batch, _ in rows})
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, map(str, batches))
        axes.set_ylim(bottom=0)
        axes.set_title(network)
        axes.set_xlabel("batch")
        axes.set_ylabel("images a second")
    figure.legend(handles=[Line2D([], [], label=way, **look) for way, look in looks.items()],
                  loc="outside lower center", ncols=4)  # fmt: skip
    return figure


def ceiling(device: Device) -> Figure | None:
    """A line a case: shares of the device's fp32 or copy rate that the ways in fp32 reached."""
    kinds = (
        ("eager way", "s", QUIET),
        ("fastest tuned eager way", "D", ORANGE),
        ("best way of this package", "o", BLUE),
    )
    lines = []
    for suite, rows in device.suites():
        for case, ways in cases(row for row in rows if row["x"] is None).items():
            chosen = best(
                suite, [row for row in ways if row["row"] == row["baseline"] or _precision(row["row"]) == "fp32"]
            )
            if chosen is not None and chosen.row["of_ceiling"]:
                lines.append((f"{suite}: {case}", (chosen.eager, chosen.tuned, chosen.row)))
    if not lines:
        return None
    figure, axes = _lines(len(lines), 0.28)
    for place, (_, ways) in enumerate(lines):
        reached = [0.0 if row is None else 100 * row["of_ceiling"] for row in ways]
        for share, (_, marker, hue) in zip(reached, kinds, strict=True):
            if share > 0:  # it is stored with four digits; less has no place on the axis
                axes.plot(share, place, **_mark(marker, hue))
        axes.annotate(f"{number(reached[-1])} %  {ways[-1]['row']}", (1.02, place), xycoords=("axes fraction", "data"),
                      color=BLUE, **BESIDE)  # fmt: skip
    axes.set_yticks(range(len(lines)), [name for name, _ in lines])
    shares = [100 * row["of_ceiling"] for _, ways in lines for row in ways if row is not None and row["of_ceiling"]]
    axes.set_xlim(min(10, *shares) / 1.5, max(100, *shares) * 1.5)
    axes.axvline(100, color=QUIET, linewidth=1)
    axes.set_xlabel("share of the fp32 or the copy rate, whichever binds [%]")
    figure.legend(handles=[Line2D([], [], label=label, **_mark(marker, hue)) for label, marker, hue in kinds],
                  loc="outside upper right", ncols=3)  # fmt: skip
    return figure


def scaling(device: Device) -> Figure | None:
    """A panel a case: seconds against its size, and the fitted power of each way."""
    fits = exponents(device.rows)
    if not fits:
        return None
    what_grows = dict.fromkeys(fit["case"] for fit in fits)
    figure, panels = _panels(len(what_grows), 3.4)
    for axes, case in zip(panels, what_grows, strict=True):
        sizes = set()
        for fit, hue, marker in zip((fit for fit in fits if fit["case"] == case), cycle(HUES), cycle(SHAPES)):
            rows = [row for row in device.rows if row["row"] == fit["row"] and row["case"].rpartition(" = ")[0] == case]
            x, y = np.array(sorted((row["x"], row["seconds"]["median"]) for row in rows if row["x"] is not None)).T
            level = np.log(y).mean() - fit["exponent"] * np.log(x).mean()  # least squares goes through the mean
            axes.plot(x, y, **_mark(marker, hue))
            axes.plot(x, np.exp(level) * x ** fit["exponent"], color=hue, marker=marker, markevery=[], markersize=7,
                      label=f"{fit['row']}: {fit['exponent']:.2f}")  # fmt: skip
            sizes |= set(x.tolist())
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(sorted(sizes), [f"{size:,g}" for size in sorted(sizes)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PLAIN)
        axes.set_title(case)
        axes.set_ylabel("seconds")
        axes.legend(title="exponent", alignment="left", loc="upper left", bbox_to_anchor=(-0.03, -0.08))
    return figure


def _lines(count: int, height: float) -> tuple[Figure, Axes]:
    """Room for named lines from the top down, on a logarithmic axis."""
    figure = Figure((WIDTH, height * count + 1.0), layout="constrained")
    axes = figure.add_subplot(xscale="log", ylim=(count - 0.4, -0.6))
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="y", labelsize=8.5, length=0)
    return figure, axes


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Two in a row."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure((WIDTH, height * rows + 0.6), layout="constrained")  # and room for a legend
    return figure, [figure.add_subplot(rows, columns, n + 1) for n in range(count)]


def _mark(marker: str, hue: str) -> dict[str, Any]:
    return {"marker": marker, "color": hue, "markeredgecolor": "white", "markersize": 8, "linestyle": "none"}


def _precision(way: str) -> str:
    """The one that its name says, or else fp32."""
    return next((precision for precision in MARKERS if precision in way), "fp32")


def _looks(ways: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Hue by runtime, marker by precision; a second way with both the same is hollow and dotted."""
    looks: dict[str, dict[str, Any]] = {}
    taken = set()
    for way in ways:
        hue = RUNTIMES.get(way.split()[0].rstrip(","), PURPLE)
        marker = MARKERS[_precision(way)]
        looks[way] = {"color": hue, "marker": marker, "markersize": 6, "linestyle": "-" if marker == "o" else "--"}
        if (hue, marker) in taken:
            looks[way] |= {"markerfacecolor": "white", "linestyle": ":"}
        taken.add((hue, marker))
    return looks


if __name__ == "__main__":
    main()
