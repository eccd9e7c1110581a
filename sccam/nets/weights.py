"""Weight files in, tensors by name out. Nothing in a file is ever executed.

.params        MXNet's NDArray container (the ImageNet weights of ResNet-38), read without MXNet
.safetensors   plain tensors
.pth .pt       torch archives, tensors only: a pickle that asks for code is refused
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from sccam.artifacts import check_unpacked, load_tensors
from sccam.errors import SccamError, WeightsError

LIST_MAGIC = 0x112
ARRAY_V1_MAGIC = 0xF993FAC8
ARRAY_V2_MAGIC = 0xF993FAC9
MAX_AXES = 32
MXNET_DTYPES = {0: "<f4", 1: "<f8", 2: "<f2", 3: "u1", 4: "<i4", 5: "i1", 6: "<i8"}
BATCH_NORM_FIELDS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}
IMAGENET_HEADS = ("fc.", "_fc.", "classifier.", "head.fc.", "head.l.", "fc8.", "linear1000.")
NAMES_SHOWN = 6


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a weight file by name, on the CPU; the kind of file is told from its content, then its name.

    Raises:
        WeightsError: the file is missing, broken, or needs code to be run.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise WeightsError(f"cannot read the weight file: {error.strerror}", where=path) from error
    if int.from_bytes(start, "little") == LIST_MAGIC:
        return mxnet_to_resnet38(read_mxnet_params(path), path=path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def load_into(
    module: nn.Module, tensors: Mapping[str, Tensor], *, path: Path | str, ignore: Sequence[str] = ()
) -> list[str]:
    """Copies `tensors` into `module` by name.

    Args:
        ignore: beginnings of names that may be missing or left over, besides an ImageNet classifier's and
            BatchNorm's batch counters.

    Returns:
        The names that were skipped, missing or left over; all of them of the kinds that may be.

    Raises:
        WeightsError: other names are missing or left over, a shape differs, or the file is for another net.
    """
    own = module.state_dict()
    optional = (*IMAGENET_HEADS, *ignore)

    def is_optional(name: str) -> bool:
        return name.startswith(optional) or name.endswith("num_batches_tracked")

    shared = own.keys() & tensors.keys()
    differing = sorted(name for name in shared if own[name].shape != tensors[name].shape and not is_optional(name))
    fitting = {name: tensors[name] for name in shared if own[name].shape == tensors[name].shape}
    if 2 * len(fitting) < len([name for name in own if not is_optional(name)]):
        raise WeightsError(
            f"only {len(fitting)} of {len(own)} tensors fit {type(module).__name__}",
            where=path,
            why="the file belongs to another network",
            fix=f"it begins with {_some(list(tensors))}; the network with {_some(list(own))}",
        )
    missing = sorted(name for name in own.keys() - tensors.keys() if not is_optional(name))
    unexpected = sorted(name for name in tensors.keys() - own.keys() if not is_optional(name))
    problems = [
        *([f"missing: {_some(missing)}"] if missing else []),
        *([f"not part of the network: {_some(unexpected)}"] if unexpected else []),
        *(f"{n}: file {list(tensors[n].shape)}, network {list(own[n].shape)}" for n in differing[:NAMES_SHOWN]),
    ]
    if problems:
        raise WeightsError(
            f"the weights do not fit {type(module).__name__}; " + "; ".join(problems),
            where=path,
            why="the file belongs to a variant of this network",
            fix='choose the matching file, or weights = "none"',
        )
    broken = sorted(n for n, t in fitting.items() if t.is_floating_point() and not torch.isfinite(t).all())
    if broken:
        raise WeightsError(f"the weights hold NaN or infinity: {_some(broken)}", where=path, why="a damaged copy")
    module.load_state_dict(fitting, strict=False)
    return sorted((own.keys() | tensors.keys()) - fitting.keys())


def match_by_order(
    tensors: Mapping[str, Tensor], reference: Mapping[str, Tensor], *, path: Path | str
) -> dict[str, Tensor]:
    """`tensors` under the names of `reference`, one by one, for files that name the same layers differently.

    Raises:
        WeightsError: the count or any shape differs.
    """
    if len(tensors) != len(reference):
        raise WeightsError(
            f"neither names nor number fit: the file has {len(tensors)} tensors, the network {len(reference)}",
            where=path,
            why="the file belongs to another network",
        )
    matched = {}
    for (theirs, tensor), (ours, wanted) in zip(tensors.items(), reference.items(), strict=True):
        if tensor.shape != wanted.shape:
            raise WeightsError(
                f"in order, {theirs} {list(tensor.shape)} meets {ours} {list(wanted.shape)}",
                where=path,
                why="the file belongs to another network",
            )
        matched[ours] = tensor
    return matched


def mxnet_to_resnet38(arrays: Mapping[str, np.ndarray], *, path: Path | str | None = None) -> dict[str, Tensor]:
    """The released ImageNet arrays under this package's names; the 1000-class layer is dropped.

    Raises:
        WeightsError: a name follows no rule, or two arrays claim one name.
    """
    tensors: dict[str, Tensor] = {}
    for name, array in arrays.items():
        bare = name.rpartition(":")[2]  # "arg:" and "aux:" say parameter or running statistic
        if bare.startswith("linear1000_"):
            continue
        ours = _resnet38_name(bare)
        if ours is None or ours in tensors:
            problem = "is not part of ResNet-38" if ours is None else "appears twice"
            raise WeightsError(f"array {name!r} {problem}", where=path, why="the file belongs to another network")
        tensors[ours] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    return tensors


def _resnet38_name(name: str) -> str | None:
    """bn5b2_branch2b1_gamma -> b5_2.bn_branch2b1.weight, and so on."""
    if name == "conv1a_weight":
        return "conv1a.weight"
    if match := re.fullmatch(r"bn7_(\w+)", name):
        field = BATCH_NORM_FIELDS.get(match[1])
        return field and f"bn7.{field}"
    match = re.fullmatch(r"(res|bn)(\d)(?:a|b(\d+))_branch(\d[a-z]?\d?)_(\w+)", name)
    if match is None:
        return None
    kind, level, number, branch, suffix = match.groups()
    field = BATCH_NORM_FIELDS.get(suffix) if kind == "bn" else {"weight": "weight"}.get(suffix)
    block = f"b{level}_{number}" if number else f"b{level}"
    return field and f"{block}.{'bn' if kind == 'bn' else 'conv'}_branch{branch}.{field}"


def read_mxnet_params(path: Path | str) -> dict[str, np.ndarray]:
    """The arrays of an MXNet `.params` file by name ("arg:..." or "aux:...").

    Little-endian throughout: u64 magic, u64 reserved, u64 count, the arrays, u64 count, the names. Every size is
    checked against what is left of the file before memory is taken for it.

    Raises:
        WeightsError: the file is cut short, has bytes left over, or holds anything but dense arrays of numbers.
    """
    with Path(path).open("rb") as file:
        reader = _Reader(file, Path(path))
        if reader.integer("<u8") != LIST_MAGIC:
            raise reader.error("not an MXNet array file")
        reader.integer("<u8")  # reserved
        count = reader.count(smallest=4)
        arrays = [reader.array() for _ in range(count)]
        if reader.count(smallest=8) != count:
            raise reader.error(f"the number of names differs from the {count} arrays")
        names = [reader.text() for _ in range(count)]
        if reader.left:
            raise reader.error(f"{reader.left} bytes are left over")
    if len(set(names)) != count:
        raise WeightsError("two arrays have the same name", where=path)
    return dict(zip(names, arrays, strict=True))


class _Reader:
    """Reads little-endian values and never past the end."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.size = self.left = path.stat().st_size

    def error(self, what: str) -> WeightsError:
        return WeightsError(
            f"broken weight file: {what}",
            where=f"{self.path}, byte {self.size - self.left} of {self.size}",
            why="a download that stopped early, or another kind of file",
            fix="fetch the file again and compare its checksum",
        )

    def values(self, dtype: str, count: int) -> np.ndarray:
        size = np.dtype(dtype).itemsize * count
        if size > self.left:
            raise self.error(f"{size} bytes are announced, {self.left} are left")
        self.left -= size
        return np.frombuffer(bytearray(self.file.read(size)), dtype)

    def integer(self, dtype: str) -> int:
        return int(self.values(dtype, 1)[0])

    def count(self, smallest: int) -> int:
        """A number of entries that take at least `smallest` bytes each."""
        count = self.integer("<u8")
        if count * smallest > self.left:
            raise self.error(f"{count} entries are announced, {self.left} bytes are left")
        return count

    def text(self) -> str:
        raw = self.values("u1", self.integer("<u8")).tobytes()
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("a name is not text") from None

    def array(self) -> np.ndarray:
        """One array in any of the three layouts: v2 and v1 begin with a magic number, the oldest with its rank."""
        axes = self.integer("<u4")
        dimension = "<u4"
        if axes in (ARRAY_V1_MAGIC, ARRAY_V2_MAGIC):
            if axes == ARRAY_V2_MAGIC and self.integer("<i4") != 0:
                raise self.error("a sparse array, where only dense ones are known")
            axes, dimension = self.integer("<u4"), "<i8"
        if not 1 <= axes <= MAX_AXES:
            raise self.error(f"an array with {axes} axes")
        shape = [int(side) for side in self.values(dimension, axes)]
        if min(shape) < 0:
            raise self.error(f"an array of shape {shape}")
        self.values("<i4", 2)  # the device it was on: type and number
        flag = self.integer("<i4")
        if flag not in MXNET_DTYPES:
            raise self.error(f"unknown number type {flag}")
        count = 1
        for side in shape:
            count *= side  # Python integers: no overflow, whatever the file says
        return self.values(MXNET_DTYPES[flag], count).reshape(shape)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError

    try:
        return _unprefixed(load_tensors(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"broken weight file: {error}", where=path, fix="fetch the file again") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        check_unpacked(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        told = [line for line in str(error).splitlines() if line.startswith(("Trying to", "Unsupported"))]
        raise WeightsError(
            "the file is no plain weight archive: it is broken, or asks for code to be run, which is not executed",
            where=path,
            why=told[0][:200] if told else None,  # torch's first lines say how to load it all the same
            fix="save it again as a state dict or as .safetensors",
        ) from error
    except SccamError:  # a second Ctrl-C
        raise
    except Exception as error:  # zip, pickle and storage readers raise a dozen kinds for a broken archive
        raise WeightsError(f"broken weight file: {type(error).__name__}: {error}", where=path) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = content.items() if isinstance(content, Mapping) else ()
    tensors = {n: t for n, t in found if isinstance(n, str) and isinstance(t, Tensor)}
    if not tensors:
        raise WeightsError("the file holds no tensors by name", where=path, fix="save the network's state dict")
    return _unprefixed(tensors)


def _unprefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drops the "module." that data-parallel wrappers put before every name."""
    if tensors and all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


def _some(names: Sequence[str]) -> str:
    rest = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
