"""The gate: an exported network leaves only if it computes, on real images, what the network it came from computes.

Two numbers for a network, over all images, sizes and batches together:

    relative error   max |candidate - reference| / (max reference - min reference), the worst of the outputs
    agreement        logits     share of cells with the same arg-max over labels
                     maps       share of cells with the same arg-max over a constant background and the classes, as the
                                method reads maps; the background is `BACKGROUND` of the image's highest score
                     labels     share of equal pixels
                     affinity   share of pairs on the same side of 1/2: same or different

A cell where the reference itself is undecided (its best two closer than `UNDECIDED` of the range) says nothing about
the candidate: such cells are counted apart, and their share is part of the record.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sccam.structures import ByteArray, FloatArray

Network = Callable[[ByteArray], Mapping[str, np.ndarray]]
"""images u8 [N H W 3] -> outputs by name."""

BACKGROUND = 0.15  # Source: SC-CAM, infer_cls.py
UNDECIDED = 1e-4  # of the reference's range; also what fp32 may differ
SPEED_RUNS = 7  # paired, after one warm-up


@dataclass(frozen=True, slots=True)
class Limits:
    """What a precision must reach."""

    relative_error: float | None
    agreement: float
    faster: bool  # than fp32, in the same runtime


LIMITS = {
    "fp32": Limits(1e-4, 0.999, False),
    "fp16": Limits(None, 0.995, False),
    "int8": Limits(None, 0.98, True),
}


@dataclass(frozen=True, slots=True)
class Parity:
    """How far a candidate is from its reference."""

    reference: str  # "torch fp32" | "onnxruntime fp32"
    runtime: str  # "onnxruntime 1.32.0 CPUExecutionProvider"
    images: int
    cases: tuple[tuple[int, int, int], ...]  # (batch, height, width)
    relative_error: float
    errors: dict[str, dict[str, float]]  # output -> max_abs, range
    agreement: float
    undecided: float  # share of cells counted apart
    speed_up: float | None  # over fp32 in the same runtime, median of paired runs; where it was measured
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest; None for an error that is infinite, which JSON has no word for."""
        errors = {name: {key: _or_none(value) for key, value in found.items()} for name, found in self.errors.items()}
        known = {"relative_error": _or_none(self.relative_error), "errors": errors}
        return {"passed": self.passed, **asdict(self), **known}

    def line(self) -> str:
        """One line for a person."""
        speed = "" if self.speed_up is None else f", {self.speed_up:.2f}x the speed of fp32"
        return (
            f"error {self.relative_error:.1e} of the range, agreement {100 * self.agreement:.2f} %{speed}"
            f" ({self.images} images, {len(self.cases)} shapes)" + ("" if self.passed else " FAILED")
        )


def _or_none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def measure_parity(
    reference: Network,
    candidate: Network,
    batches: Sequence[ByteArray],
    precision: str,
    *,
    runtime: str,
    baseline: Network | None = None,
    reference_name: str = "torch fp32",
) -> Parity:
    """Runs both networks on all batches and compares them with the limits of `precision`.

    Args:
        reference: the network in fp32, in torch or what torch was compared with.
        candidate: the exported one.
        batches: images u8 [N H W 3]; several sizes and batch sizes.
        precision: "fp32", "fp16" or "int8".
        runtime: what runs the candidate, for the record.
        reference_name: what the reference is, for the record.
        baseline: the exported network in fp32, in the same runtime; only where speed counts.
    """
    limits = LIMITS[precision]
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    worst: dict[str, float] = {}
    pairs: list[tuple[str, np.ndarray, np.ndarray]] = []
    broken = False
    for batch in batches:
        expected, found = reference(batch), candidate(batch)
        for name, value in expected.items():
            other = found[name]
            if other.shape != value.shape:
                raise ValueError(f"output {name!r} has shape {other.shape}, expected {value.shape}")
            broken |= not np.isfinite(other).all()
            gap = np.abs(other.astype(np.float64) - value.astype(np.float64))
            worst[name] = max(worst.get(name, 0.0), float(np.nan_to_num(gap, nan=np.inf).max()))
            low[name] = min(low.get(name, np.inf), float(value.min()))
            high[name] = max(high.get(name, -np.inf), float(value.max()))
            pairs.append((name, value, other))
    ranges = {name: max(high[name] - low[name], 1e-12) for name in worst}
    decided = equal = cells = 0
    for name, value, other in pairs:
        clear, same = agreeing(name, value, other, UNDECIDED * ranges[name])
        cells += clear.size
        decided += int(clear.sum())
        equal += int((same & clear).sum())
    relative = max((worst[name] / ranges[name] for name in worst if name != "labels"), default=0.0)
    agreement = equal / decided if decided else 1.0
    speed_up = _speed_up(baseline, candidate, batches[0]) if baseline is not None else None
    failures = []
    if broken:
        failures.append("an output is NaN or infinite")
    if limits.relative_error is not None and relative > limits.relative_error:
        failures.append(f"error {relative:.1e} of the range, at most {limits.relative_error:.0e} is allowed")
    if agreement < limits.agreement:
        failures.append(f"agreement {100 * agreement:.2f} %, at least {100 * limits.agreement:g} % is needed")
    if limits.faster and speed_up is not None and speed_up <= 1:
        failures.append(f"{speed_up:.2f}x the speed of fp32: a less exact network must at least be faster")
    return Parity(
        reference=reference_name,
        runtime=runtime,
        images=sum(len(batch) for batch in batches),
        cases=tuple((len(batch), batch.shape[1], batch.shape[2]) for batch in batches),
        relative_error=relative,
        errors={name: {"max_abs": worst[name], "range": ranges[name]} for name in worst},
        agreement=agreement,
        undecided=1 - decided / cells if cells else 0.0,
        speed_up=speed_up,
        failures=tuple(failures),
    )


def agreeing(name: str, value: FloatArray, other: FloatArray, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(which cells are decided in the reference by more than `noise`, which agree); empty for outputs without a
    decision."""
    if name == "labels":
        return np.ones(value.shape, bool), value == other
    if name in ("affinity", "boundary"):
        return np.abs(value - 0.5) > noise, (value > 0.5) == (other > 0.5)
    if value.ndim != 4:  # scores of an image
        return np.zeros(0, bool), np.zeros(0, bool)
    if name == "maps":
        value, other = _with_background(value), _with_background(other)
    best = np.partition(value, -2, axis=1)
    return best[:, -1] - best[:, -2] > noise, value.argmax(axis=1) == other.argmax(axis=1)


def _with_background(maps: FloatArray) -> FloatArray:
    """A constant channel before maps [N C h w]."""
    level = BACKGROUND * maps.max(axis=(1, 2, 3), keepdims=True)
    return np.concatenate([np.broadcast_to(level, (len(maps), 1, *maps.shape[2:])), maps], axis=1)


def _speed_up(baseline: Network, candidate: Network, batch: ByteArray) -> float:
    """Median over pairs of runs, one of each network in turn."""
    ratios = []
    for run in range(SPEED_RUNS + 1):
        started = time.perf_counter()
        baseline(batch)
        between = time.perf_counter()
        candidate(batch)
        ended = time.perf_counter()
        if run:  # the first pair warms up
            ratios.append((between - started) / (ended - between))
    return statistics.median(ratios)
