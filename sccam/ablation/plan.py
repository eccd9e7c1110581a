"""The plan of an ablation: variants of a recipe, seeds and data, from one TOML file."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from sccam.data.text import nearest
from sccam.errors import ConfigError
from sccam.recipe import RunConfig, load_config

KEYS = ("data", "config", "seeds", "baseline", "ceiling", "pairs", "variants")
CEILING = "supervised"  # the folder of its runs
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Ablation:
    """The plan of a file."""

    data: Path
    config: str
    seeds: tuple[int, ...]
    baseline: str
    variants: dict[str, tuple[str, ...]]  # name -> settings as "table.name=value"
    ceiling: str = ""  # the variant whose segmenter is trained on true masks, too; none without
    pairs: tuple[tuple[str, str], ...] = ()  # variant and another one, which is compared with it beside the baseline

    def settings(self, variant: str, seed: int) -> RunConfig:
        """Of one run."""
        return load_config(self.config, [*self.variants[variant], f"run.seed={seed}"])


def read_ablation(path: Path | str, folder: Path | None = None, *, first_seeds: int = 0) -> Ablation:
    """The plan in a TOML file; every variant's settings are read once, so that a bad one ends before any work.

    Args:
        path: the file.
        folder: of the images, in place of the one that the file names.
        first_seeds: take only so many of the seeds; 0 takes all.

    Raises:
        ConfigError: the file is missing or not TOML; an unknown key, a wrong type, an impossible setting.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no file of variants: {error}", where=path) from None
    for key in content:
        if key not in KEYS:
            raise ConfigError(
                f"unknown key {key!r}", where=path, why=nearest(key, KEYS), fix=f"known: {', '.join(KEYS)}"
            )
    data, config = content.get("data", None if folder is None else str(folder)), content.get("config", "photos")
    seeds, variants = content.get("seeds", [0]), content.get("variants")
    if not isinstance(data, str):
        raise ConfigError("data must name a folder", where=path, fix='data = "photos"')
    if not isinstance(config, str):
        raise ConfigError("config must be a name or a file", where=path)
    if not (_is_list_of(seeds, int) and len(set(seeds)) == len(seeds) and seeds and min(seeds) >= 0):
        raise ConfigError("seeds must be different whole numbers from 0", where=path, fix="seeds = [0, 1, 2]")
    if not (isinstance(variants, dict) and variants and all(_is_list_of(v, str) for v in variants.values())):
        raise ConfigError(
            "variants must be a table of lists of settings", where=path, fix='[variants]\nplain = ["cluster.k=1"]'
        )
    for name in variants:
        if name == CEILING or not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a folder", where=path, fix="use letters, digits, dot, dash")
    baseline = content.get("baseline", next(iter(variants)))
    if baseline not in variants:
        raise ConfigError(f"no variant {baseline!r}", where=path, why=nearest(str(baseline), variants))
    ceiling = content.get("ceiling", False)
    if isinstance(ceiling, bool):
        ceiling = baseline if ceiling else ""
    if not isinstance(ceiling, str):
        raise ConfigError("ceiling must be true, false or the name of a variant", where=path)
    if ceiling and ceiling not in variants:
        raise ConfigError(f"no variant {ceiling!r}, which ceiling names", where=path, why=nearest(ceiling, variants))
    pairs = content.get("pairs", [])
    if not (isinstance(pairs, list) and all(_is_list_of(pair, str) and len(pair) == 2 for pair in pairs)):
        raise ConfigError("pairs must be lists of two variants", where=path, fix='pairs = [["ten-clusters", "plain"]]')
    for name in (name for pair in pairs for name in pair if name not in variants):
        raise ConfigError(f"no variant {name!r}, which pairs name", where=path, why=nearest(name, variants))
    beside = path.parent / config
    plan = Ablation(
        data=folder or path.parent / data,
        config=str(beside) if beside.is_file() else config,
        seeds=tuple(seeds[: first_seeds or None]),
        baseline=baseline,
        variants={name: tuple(settings) for name, settings in variants.items()},
        ceiling=ceiling,
        pairs=tuple((ours, theirs) for ours, theirs in pairs),
    )
    for name in variants:
        try:
            plan.settings(name, 0)
        except ConfigError as error:
            error.where = f"{path}, variant {name}: {error.where or ''}".rstrip(": ")
            raise
    return plan


def run_folder(out: Path, variant: str, seed: int) -> Path:
    """Where one run lies."""
    return out / "runs" / variant / f"seed{seed}"


def _is_list_of(value: object, kind: type) -> bool:
    return isinstance(value, list) and all(type(item) is kind for item in value)
