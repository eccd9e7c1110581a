"""Which code does which work: one table of rows, chosen by name once, before any work, and passed down.

    native      compiled C++ on the CPU         portable    NumPy, SciPy or torch: the paper forms of stages/
    cupy        CUDA on a GPU                   pydensecrf  the library of the CRF's authors
    blas        k-means, all restarts in one product            sklearn     scikit-learn's

"auto" takes the first row of its line that this machine has. Rows of one line take and give the same; tests compare
every row with the portable one. Nothing falls back in silence: a row asked for by name and not there is an error.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sccam.errors import BackendUnavailable, ConfigError
from sccam.runtime import device_cupy, native

TABLE: dict[str, dict[str, str]] = {
    "affinity": {
        "native": "sccam.runtime.affinity_native:affinity_fields",
        "portable": "sccam.runtime.portable:affinity_fields",
        "cupy": "sccam.runtime.affinity_cupy:affinity_fields",
    },
    "walk": {
        "native": "sccam.runtime.walk_native:random_walks",
        "portable": "sccam.runtime.portable:random_walks",
        "cupy": "sccam.runtime.walk_cupy:random_walks",
    },
    "crf": {
        "native": "sccam.runtime.crf_native:dense_crfs",
        "portable": "sccam.runtime.crf_portable:dense_crfs",
        "cupy": "sccam.runtime.crf_cupy:dense_crfs",
        "pydensecrf": "sccam.runtime.crf_pydensecrf:dense_crfs",
    },
    "merge": {
        "native": "sccam.runtime.merge_native:merge_maps",
        "portable": "sccam.stages.cam:merge_maps",
        "cupy": "sccam.runtime.merge_cupy:merge_maps",
    },
    "k_means": {
        "blas": "sccam.runtime.kmeans_blas:k_means",
        "sklearn": "sccam.stages.cluster:k_means",
    },
}
"""Work -> row -> where its function is. "auto" reads a line from left to right."""

NEVER_AUTO = ("cupy", "pydensecrf")


def _choices(work: str) -> dict[str, tuple[str, ...]]:
    return {"choices": ("auto", *TABLE[work])}


@dataclass(frozen=True, slots=True)
class Backends:
    """The row for each work; as settings they may say "auto", see `resolved`."""

    affinity: str = field(default="auto", metadata=_choices("affinity"))
    walk: str = field(default="auto", metadata=_choices("walk"))
    crf: str = field(default="auto", metadata=_choices("crf"))
    merge: str = field(default="auto", metadata=_choices("merge"))
    k_means: str = field(default="auto", metadata=_choices("k_means"))

    def resolved(self) -> Backends:
        """The same with every "auto" replaced by the name of a row that this machine has.

        Raises:
            BackendUnavailable: a row that was asked for by name is not there.
        """
        names = {}
        for work in TABLE:
            asked = getattr(self, work)
            if asked == "auto":
                rows = [name for name in TABLE[work] if name not in NEVER_AUTO]
                asked = next(name for name in rows if missing(name) is None)
            elif error := missing(asked):
                raise error
            names[work] = asked
        return Backends(**names)

    def function(self, work: str) -> Callable[..., Any]:
        """The function of the chosen row; `self` is resolved."""
        return row(work, getattr(self, work))

    def line(self) -> str:
        """For a person: "walk native, crf native"."""
        return ", ".join(f"{item.name} {getattr(self, item.name)}" for item in dataclasses.fields(self))


def row(work: str, name: str) -> Callable[..., Any]:
    """The function of one row of the table.

    Raises:
        ConfigError: no such row.
    """
    if name not in TABLE.get(work, {}):
        raise ConfigError(f"no {work} by {name!r}", fix=f"choose from {', '.join(TABLE[work])}")
    module, function = TABLE[work][name].split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def missing(name: str) -> BackendUnavailable | None:
    """Why rows of this name cannot work here; None where they can."""
    if name == "native":
        return None if native.available() else native.unavailable()
    if name == "cupy":
        return device_cupy.missing()
    if name == "pydensecrf" and importlib.util.find_spec("pydensecrf") is None:
        return BackendUnavailable("pydensecrf is not installed", where="backends", fix='pip install "sccam[crf]"')
    return None
