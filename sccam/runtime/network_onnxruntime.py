"""The ONNX Runtime row of the network backends: an exported file in, a function of images out. Loads no PyTorch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from sccam.errors import BackendUnavailable, ModelFileError
from sccam.structures import ByteArray

INPUT = "image"
CPU = "CPUExecutionProvider"
MOST_BYTES = 2**31  # protobuf's own limit; a larger file would need external data
MOST_NODES = 1_000_000  # after functions are put in place of their calls; the exported networks have some hundreds

PROVIDERS = {"cpu": CPU, "cuda": "CUDAExecutionProvider"}
CUDA_OPTIONS = {"cudnn_conv_algo_search": "HEURISTIC"}  # the default tries every algorithm for each new size: 0.6 s


def read_onnx(path: Path) -> bytes:
    """The bytes of an ONNX file that is safe to hand to a runtime: one file, nothing outside it.

    Raises:
        ModelFileError: it is no ONNX model, or it points to other files.
        BackendUnavailable: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise BackendUnavailable("reading a model needs onnx", fix='pip install "sccam[onnx]"') from error
    try:
        size = path.stat().st_size
        data = path.read_bytes() if size < MOST_BYTES else b""
    except OSError as error:
        raise ModelFileError(f"cannot be read: {error.strerror}", where=path) from error
    try:
        model = onnx.load_from_string(data)
    except Exception as error:  # protobuf raises classes of its own, which differ by version
        raise ModelFileError("not an ONNX model", where=path, why="another kind of file, or cut off") from error
    if not model.graph.node or not model.opset_import:
        raise ModelFileError("not an ONNX model: it has no graph", where=path, why="another kind of file, or cut off")
    outside = [tensor.name for tensor in _tensors(model) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    if outside:
        raise ModelFileError(
            f"{len(outside)} tensors lie in other files, the first is {outside[0]!r}",
            where=path,
            why="external data can name any file of this machine",
            fix="save the model as one file",
        )
    if _expanded(model) > MOST_NODES:
        raise ModelFileError(
            "its functions call one another without end", where=path, why="a file made to fill the memory",
            fix="export the network without functions",
        )  # fmt: skip
    return data


def onnx_facts(path: Path) -> dict[str, str]:
    """What a model file says of itself, for a person; nothing of it is run.

    Raises:
        ModelFileError, BackendUnavailable: as `read_onnx`.
    """
    data = read_onnx(path)
    with _damage_told(path):
        return _facts_of(data)


def _facts_of(data: bytes) -> dict[str, str]:
    import onnx

    model = onnx.load_from_string(data)

    def described(values: Any) -> str:
        found = []
        for value in values:
            kind = value.type.tensor_type
            shape = ", ".join(size.dim_param or str(size.dim_value) for size in kind.shape.dim)
            found.append(f"{value.name} {onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name} [{shape}]")
        return "; ".join(found)

    operators = Counter(node.op_type for node in model.graph.node)
    numbers = sum(math.prod(tensor.dims) for tensor in model.graph.initializer)
    return {
        "operator set": ", ".join(f"{item.domain or 'ai.onnx'} {item.version}" for item in model.opset_import),
        "made by": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": described(model.graph.input),
        "outputs": described(model.graph.output),
        "operators": ", ".join(f"{name} {count}" for name, count in operators.most_common()),
        "numbers": f"{numbers:,}",
        **{f"says {entry.key}": entry.value.replace("\n", ", ") for entry in model.metadata_props},
    }


@contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """Whatever the onnx library raises at a graph with flipped bytes becomes one error: a name is then no text, a type
    has no such number."""
    try:
        yield
    except Exception as error:
        raise ModelFileError(f"the graph is damaged: {type(error).__name__}: {error}", where=path) from error


def open_onnx(
    path: Path, device: str = "cpu", *, threads: int = 0, features: bool = False, allow_fallback: bool = False
) -> OnnxNetwork:
    """A function of images; the session lives as long as the function.

    Args:
        path: an ONNX file.
        device: "cpu", or "cuda" for the provider of that name.
        threads: of the CPU provider; 0 takes all cores.
        features: of an affinity network: see `cut_to_features`.
        allow_fallback: run on the CPU where CUDA was asked for and does not work.

    Raises:
        ModelFileError: see `read_onnx`; or ONNX Runtime refuses the graph.
        BackendUnavailable: onnxruntime is not installed, or would run on another device than asked for.
    """
    data = read_onnx(path)
    if features:
        with _damage_told(path):
            data = cut_to_features(data)
    return session_of(data, device, threads=threads, where=path, allow_fallback=allow_fallback)


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime was built with the CUDA provider; whether it works, only a session tells."""
    try:
        return PROVIDERS["cuda"] in _onnxruntime().get_available_providers()
    except BackendUnavailable:
        return False


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable("running an ONNX file needs onnxruntime", fix='pip install "sccam[onnx]"') from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendUnavailable(
            "the installed onnxruntime is empty",
            why="onnxruntime and onnxruntime-gpu share a folder, and one of them was removed",
            fix="pip install --force-reinstall onnxruntime (or onnxruntime-gpu); sccam doctor tells which",
        )
    return onnxruntime


def cut_to_features(data: bytes) -> bytes:
    """An exported affinity network that ends with the `features` f32 [N D h w] from which its affinities are made.

    On a CPU the kernel `affinity` makes them many times as fast as the graph, offset by offset. The features are what
    the one Pad reads whose result is sliced; a graph without such a Pad is returned as it is.
    """
    import onnx

    model = onnx.load_from_string(data)
    graph = model.graph
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    pads = [node for node in graph.node if node.op_type == "Pad" and readers.get(node.output[0]) == {"Slice"}]
    if len(pads) != 1:
        return data
    makers = {output: node for node in graph.node for output in node.output}
    needed: set[int] = set()
    pending = [pads[0].input[0]]
    while pending:
        node = makers.get(pending.pop())
        if node is not None and id(node) not in needed:
            needed.add(id(node))
            pending += node.input
    kept = [node for node in graph.node if id(node) in needed]
    kept.append(onnx.helper.make_node("Cast", [pads[0].input[0]], ["features"], to=onnx.TensorProto.FLOAT))
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    output = onnx.helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["N", "D", "h", "w"])
    cut = onnx.helper.make_graph(kept, graph.name, graph.input, [output], constants)
    result: bytes = onnx.helper.make_model(
        cut, opset_imports=model.opset_import, ir_version=model.ir_version, functions=model.functions
    ).SerializeToString()
    return result


def session_of(
    data: bytes,
    device: str = "cpu",
    *,
    threads: int = 0,
    where: object = None,
    allow_fallback: bool = False,
    cuda_options: Mapping[str, str] = CUDA_OPTIONS,
) -> OnnxNetwork:
    """As `open_onnx`, for the bytes of a model that was checked or made here."""
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Threads that spin between calls would take the cores from those that read, label and write.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Else bytes with the mark of its own format were read as that, and not as the graph that was checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    wanted = PROVIDERS[device]

    def session_on(providers: Sequence[Any]) -> Any:
        # Without its own fallback, which prints on standard output and goes on.
        return onnxruntime.InferenceSession(data, options, providers=providers, enable_fallback=0)

    try:
        try:
            session = session_on([(wanted, dict(cuda_options)), CPU] if device == "cuda" else [CPU])
        except Exception:  # its classes are private
            if device == "cpu":
                raise
            session = session_on([CPU])
    except Exception as error:
        raise ModelFileError(f"ONNX Runtime {onnxruntime.__version__} refuses it: {error}", where=where) from error
    used = session.get_providers()[0]
    if used != wanted and not allow_fallback:
        raise BackendUnavailable(
            f"{wanted} was asked for, {used} would run",
            where=where,
            why="the installed onnxruntime has no such provider, or its libraries are missing",
            fix="install onnxruntime-gpu without onnxruntime beside it; or ask for the CPU, or --allow-fallback",
        )
    return OnnxNetwork(session, "cpu" if used == CPU else device)


class OnnxNetwork:
    """images u8 [N H W 3] -> outputs by name.

    Input and outputs are bound, so that a GPU's copies go straight between its memory and the arrays.
    """

    def __init__(self, session: Any, device: str):
        self.device = device  # that really runs it
        self._session = session
        self._names = [output.name for output in session.get_outputs()]

    def __call__(self, images: ByteArray) -> dict[str, np.ndarray]:
        """The outputs, on the CPU; may be called from several threads at a time."""
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT, np.ascontiguousarray(images))
        for name in self._names:
            binding.bind_output(name)
        self._session.run_with_iobinding(binding)
        return dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True))


def runtime_name(provider: str = CPU) -> str:
    """What runs a file, for a record."""
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__} {provider}"


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model, wherever it stands: the format has a dozen places for one, and may get more."""
    pending = [model]
    while pending:
        message = pending.pop()
        if message.DESCRIPTOR.name == "TensorProto":
            yield message
            continue
        for field, value in message.ListFields():
            if field.message_type is not None:
                pending += [value] if hasattr(value, "DESCRIPTOR") else value


def _expanded(model: Any) -> float:
    """Nodes that a runtime makes of a model when it puts functions in place of their calls; infinite where a function
    calls itself."""
    functions = {(function.domain, function.name): list(_with_branches(function.node)) for function in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[Any]) -> int:
        return sum(sizes.get((node.domain, node.op_type), 1) for node in nodes)

    calls = {
        key: {(node.domain, node.op_type) for node in nodes} & functions.keys() for key, nodes in functions.items()
    }
    try:
        for key in TopologicalSorter(calls).static_order():
            sizes[key] = min(size(functions[key]), MOST_NODES + 1)
    except CycleError:
        return math.inf
    return size(_with_branches(model.graph.node))


def _with_branches(nodes: Iterable[Any]) -> Iterator[Any]:
    """The nodes and those of graphs inside of them."""
    pending = list(nodes)
    while pending:
        node = pending.pop()
        yield node
        for attribute in node.attribute:
            for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                pending += graph.node
