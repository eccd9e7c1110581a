"""A run's settings: one dataclass of the stages' own dataclasses, read from TOML and written back resolved."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from sccam import config as toml
from sccam.errors import ConfigError, short
from sccam.runtime.backends import Backends
from sccam.stages.affinity import AffinityConfig
from sccam.stages.cam import CamConfig
from sccam.stages.classify import ClassifyConfig
from sccam.stages.cluster import ClusterConfig
from sccam.stages.crf import DEEPLAB, CrfConfig
from sccam.stages.prototypes import PrototypeConfig
from sccam.stages.pseudo_label import PseudoLabelConfig
from sccam.stages.reactivate import ReactivateConfig
from sccam.stages.segment import SegmentConfig
from sccam.stages.threshold import ThresholdConfig
from sccam.stages.walk import WalkConfig

LARGEST = 2**31 - 1  # of any number in the settings: what libraries take as a size, a count or a seed
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,2})?")


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Where, how and how far a run is computed. `workers`, `parts` and `until` change nothing but roundings."""

    seed: int = field(default=0, metadata={"min": 0})
    device: str = "auto"  # "auto": cuda where there is one, else cpu
    precision: str = field(default="auto", metadata={"choices": ("auto", "fp32", "bf16", "fp16")})
    workers: int = field(default=0, metadata={"min": 0})  # processes for CRF and walk, threads for views; 0: cores
    parts: int = field(default=1, metadata={"min": 1})  # of a process's batch, one after the other: less memory
    until: str = field(
        default="segmenter", metadata={"choices": ("maps", "pseudo_labels", "segmenter")}
    )  # last product
    deterministic: bool = False  # only algorithms that give the same bits each time; slower on a GPU

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise ConfigError(f"run.device = {short(self.device)} is none", fix="choose from auto, cpu, cuda, cuda:1")


@dataclass(frozen=True, slots=True)
class DataSettings:
    """How the input folder is read."""

    train_list: str = "train_aug"  # VOC layout only
    val_list: str = "val"  # VOC layout only
    allow_negative: bool = False  # images without any tag are background


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The trunk that classifier, affinity network and segmenter start from."""

    backbone: str = "resnet38d"
    weights: str = "auto"  # "auto" | "none" | a file (.params, .pth, .safetensors)
    output_stride: int = field(default=8, metadata={"choices": (8, 16, 32)})  # of maps and affinity features
    train_stride: int = field(default=0, metadata={"choices": (0, 8, 16, 32)})  # of the classifier in training; 0: same
    freeze: int = field(default=-1, metadata={"min": -1})  # leading stages without gradient; -1: as the authors


@dataclass(frozen=True, slots=True)
class MeasureConfig:
    """What is measured where masks exist. Nothing here reaches a trainer."""

    every_round: bool = True  # maps of every round, or of the last only
    train_segmenter: bool = True  # the segmenter on the training images, too
    crf_at_test: bool = True  # a row with the dense CRF after the segmenter
    crf: CrfConfig = DEEPLAB  # of that row
    oracle_steps: int = field(default=50, metadata={"min": 2, "max": 200})  # thresholds of the oracle's sweep


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Everything that decides what a run computes."""

    run: RunSettings = RunSettings()
    backends: Backends = Backends()
    data: DataSettings = DataSettings()
    network: NetworkConfig = NetworkConfig()
    cluster: ClusterConfig = ClusterConfig()
    classify: ClassifyConfig = ClassifyConfig()
    reactivate: ReactivateConfig = ReactivateConfig()
    prototypes: PrototypeConfig = PrototypeConfig()
    cam: CamConfig = CamConfig()
    threshold: ThresholdConfig = ThresholdConfig()
    affinity: AffinityConfig = AffinityConfig()
    walk: WalkConfig = WalkConfig()
    pseudo_label: PseudoLabelConfig = PseudoLabelConfig()
    segment: SegmentConfig = SegmentConfig()
    measure: MeasureConfig = MeasureConfig()

    def __post_init__(self) -> None:
        for name, value in toml.leaves(toml.to_dict(self)):
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, int | float) and not -LARGEST <= item <= LARGEST:
                    raise ConfigError(f"{name} = {item} is out of range", fix=f"allowed is at most {LARGEST}")
                if isinstance(item, str) and item.encode("utf-8", "replace").decode() != item:
                    raise ConfigError(f"{name} = {item!r} is no text", fix="give a file a name in UTF-8")

    @property
    def rounds(self) -> tuple[str, ...]:
        """What each round is: "plain", then "subcategories", and, where they are on, "reactivated" and "prototypes"."""
        kinds = ["plain", *["subcategories"] * self.classify.rounds]
        kinds += ["reactivated"] * (self.reactivate.epochs > 0) + ["prototypes"] * (self.prototypes.k > 0)
        return tuple(kinds)

    def epochs_of(self, r: int) -> int:
        """Epochs that round r trains for."""
        kind = self.rounds[r]
        if kind in ("plain", "subcategories"):
            return self.classify.epochs_of(r)[0]
        return self.reactivate.epochs if kind == "reactivated" else 0

    @property
    def last_round(self) -> int:
        """The one whose maps become pseudo labels."""
        return len(self.rounds) - 1


def built_in_configs() -> dict[str, Path]:
    """Name → file of the configurations that the package carries."""
    folder = Path(str(resources.files("sccam") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_config(name_or_path: str, overrides: list[str]) -> RunConfig:
    """The settings of a built-in configuration or a TOML file, with `a.b=c` overrides applied.

    Raises:
        ConfigError: no such configuration or file; an unknown key, wrong type or value out of range.
    """
    built_in = built_in_configs()
    path = built_in.get(name_or_path, Path(name_or_path))
    if not os.path.isfile(path):  # Path.is_file() raises on a name that is too long
        raise ConfigError(
            f"no configuration {short(name_or_path)}",
            why="neither a built-in name nor a file",
            fix=f"built in: {', '.join(built_in)}; or give the path of a TOML file",
        )
    return toml.override(toml.load(RunConfig, path), overrides)
