"""What commands print: progress on the error stream, tables on the standard one."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sccam.cli.terminal import say, visible
from sccam.errors import SccamError

if TYPE_CHECKING:
    from sccam.importing import Imported


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
            rate = done / max(1e-6, now - self.started)
            text = f"{done} images, {rate:.1f} a second" + (f", {failed} failed" * bool(failed))
            self.message(text)

    def message(self, text: str) -> None:
        """A line of its own."""
        if not self.quiet:
            say(text, file=sys.stderr)


class FirstErrors:
    """Failed entries on the error stream: the first as they come, of the others how many."""

    SHOWN = 20

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, error: SccamError) -> None:
        self.count += 1
        if self.count <= self.SHOWN:
            say(error.line(), file=sys.stderr)

    def close(self) -> None:
        """Tells how many were not shown."""
        if self.count > self.SHOWN:
            say(f"... and {self.count - self.SHOWN} more", file=sys.stderr)


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
        text = f"{self.name}  {done}/{total}  {rate:.1f}/s  {duration(left)} left  {note}".rstrip()
        if self.living:
            self._write(f"\r\x1b[2K{text}" + ("\n" if done >= total else ""))
        else:
            self._line(text)

    def message(self, text: str) -> None:
        """A line of its own."""
        self._line(f"\r\x1b[2K{visible(text)}" if self.living else visible(text))

    def _line(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        if not self.quiet:
            self.stream.write(text)
            self.stream.flush()


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def print_scores(scores: dict[str, Any], folder: Path) -> None:
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
                percent(row["miou"]),
                percent(row["f_score"]),
            ]
        )
    if rows:
        print_table("", ["stage", "column", "setting", "split", "images", "tags given", "mIoU", "F"], rows)
    total = sum(scores["seconds"].values())
    memory = scores["peak_memory_mb"]
    say(f"{duration(total)} in all" + (f", peak memory {memory:.0f} MB" if memory else ""))
    for name in ("overview.png", "scores.json", "pseudo_labels", "segmenter.safetensors"):
        if (folder / name).exists():  # a run may end before
            say(f"{name.partition('.')[0].replace('_', ' '):13} {folder / name}")
    say(f"next: sccam report {folder}")


def print_results(table: list[Any], ceilings: dict[str, float]) -> None:
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
    print_table(
        f"{first.suite}: {first.case}",
        ["way", "ms", "quartiles", "speed", "vs tuned", "of ceiling", "MB", "error", "same labels"],
        rows,
    )


def print_survey(found: Any) -> None:
    """What `sccam data check` found, the verdict last."""
    from sccam.check import shown

    if found.balance:
        shares = found.mask_pixels
        rows = [[name, str(train), str(val), percent(shares.get(name)) if shares else ""]
                for name, train, val in found.balance]  # fmt: skip
        print_table("", ["class", "train", "val", "% of mask pixels" if shares else ""], rows)
    lists = ", ".join(f"{count} {name}" for name, count in found.images.items())
    say(f"images      {lists or 'not known'}; {found.masks} masks, for measuring only")
    if found.sizes:
        small, middle, large = (f"{width} x {height}" for height, width in found.sizes)
        modes = ", ".join(f"{count} {mode}" for mode, count in found.modes.items())
        say(f"sizes       {small} px the smallest, {middle} the median, {large} the largest; {modes}")
    meet = sorted(found.pairs, key=lambda pair: -pair[2])[:5]
    if meet:
        say("together    " + "; ".join(f"{a} with {b}: {both} images" for a, b, both, _ in meet))
    if found.minutes:
        say(f"estimate    {found.minutes:.0f} minutes on two cores and {found.gigabytes:.1f} GB for `sccam train -c "
              "photos`, from rates measured on small photographs; a GPU takes far less")  # fmt: skip
    for line in found.advice:
        say(f"advice      {line}")
    for kind, places in found.notes.items():
        say(f"note        {kind}: {shown(places)}")
    for kind, places in found.faults.items():
        say(f"FAULT       {kind}: {shown(places)}")
    count = sum(map(len, found.faults.values()))
    say(f"{count} faults: sccam train refuses this folder" if count else "no fault: sccam train takes this folder")


def print_imported(done: Imported) -> None:
    """What `sccam data import` wrote, and what to do next."""
    rows = [[name, *map(str, counts)] for name, counts in [*done.classes.items(), ("images", done.images)]]
    columns = [n for n in (1, 2, 3) if any(row[n] != "0" for row in rows)]
    names = {1: "train", 2: "val", 3: "in no list"}
    print_table("", ["class", *(names[n] for n in columns)], [[row[0], *(row[n] for n in columns)] for row in rows])
    if done.masks:
        say(f"{done.masks} masks, for measuring only")
    if done.copied:
        say(f"{done.copied} images were copied, because they could not be linked or --copy was given")
    if done.untagged:
        say(f"{done.untagged} images carry none of the classes (kept as negatives, or left out without --negatives)")
    if done.other_tags:
        shown = ", ".join(f"{name} ({count})" for name, count in list(done.other_tags.items())[:5])
        say(f"not among the classes: {shown}{', ...' if len(done.other_tags) > 5 else ''}")
    if done.unseen:
        say(f"left out, no training image shows them: {', '.join(done.unseen)}")
    if done.hint:
        say(f"note  {done.hint}")
    if done.failed:
        say(f"{done.failed} entries failed")
    say(f"next: sccam data check {done.out}")


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=visible(title) or None, box=None, header_style="bold")
    for name in header:
        table.add_column(visible(name))
    for row in rows:
        table.add_row(*map(visible, row))
    width = None if sys.stdout.isatty() else 120  # a pipe has no width of its own
    Console(width=width, markup=False, emoji=False).print(table)  # a class may be called [red] or :bee:
