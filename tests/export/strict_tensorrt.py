"""A script: our TensorRT code against the real Python bindings of one version, without its native library and a GPU.

    python strict_tensorrt.py FOLDER_OF_BINDINGS MAJOR MODEL.onnx

The bindings' few native functions are replaced by stubs, so that the module imports with every class, enum and
signature as it is. Objects that only a GPU can make are replaced by doubles. A double takes nothing on trust: it has
the attributes that the real class has and no others, it counts and names arguments as the real signature does, and it
returns doubles of the class that the real signature names. So a name that one version lacks fails here.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

FUNCTIONS = {
    "nvinfer": ("createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
                "getBuilderPluginRegistry", "getPluginRegistry"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
}  # fmt: skip
USED: set[str] = set()  # "Class.attribute" of all that our code touched


def load(bindings: Path, major: str) -> ModuleType:
    """The bindings' module, over libraries whose functions return null."""
    with tempfile.TemporaryDirectory() as folder:
        for name, functions in FUNCTIONS.items():
            source = Path(folder, f"{name}.c")
            source.write_text("".join(f"void *{function}() {{ return 0; }}\n" for function in functions))
            library = Path(folder, f"lib{name}.so.{major}")
            subprocess.run(
                ["gcc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{library.name}", "-o", library, source], check=True
            )
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        sys.path.insert(0, str(bindings))
        import tensorrt_bindings

        return tensorrt_bindings


class Signature:
    """One line that pybind11 writes about a method."""

    def __init__(self, text: str) -> None:
        match = re.match(r"\w+\((.*)\)(?: -> (.+))?$", text.strip())
        assert match, text
        arguments = [part for part in re.split(r",\s*(?![^\[(]*[\])])", match[1]) if part]
        self.names = [part.split(":")[0].strip() for part in arguments if not part.startswith("self")]
        self.required = sum("=" not in part for part in arguments if not part.startswith("self"))
        self.returns = (match[2] or "None").split(".")[-1]

    def takes(self, positional: int, named: set[str]) -> bool:
        if self.names and self.names[0].startswith("*"):
            return True
        known = set(self.names[positional:])
        return (
            positional + len(named) <= len(self.names) and named <= known and self.required <= positional + len(named)
        )


class Double:
    """Stands for an object of a real class."""

    def __init__(self, trt: ModuleType, of: type, answers: dict[str, Any]) -> None:
        self.__dict__.update(_trt=trt, _class=of, _answers=answers, _set={})

    def _note(self, name: str) -> str:
        full = f"{self._class.__name__}.{name}"
        if not hasattr(self._class, name):
            raise AttributeError(f"TensorRT {self._trt.__version__} has no {full}")
        USED.add(full)
        return full

    def __setattr__(self, name: str, value: Any) -> None:
        self._note(name)
        assert isinstance(getattr(self._class, name), property), f"{name} is no property"
        self._set[name] = value

    def __getattr__(self, name: str) -> Any:
        full = self._note(name)
        member = getattr(self._class, name)
        if isinstance(member, property):
            return self._set.get(name, self._answers.get(full, 0))
        lines = (member.__doc__ or "").splitlines()
        signatures = [
            Signature(re.sub(r"^\d+\. ", "", line)) for line in lines if re.match(rf"(\d+\. )?{name}\(", line)
        ]
        signatures = [s for s in signatures if s.names[:1] != ["*args"] or len(lines) == 1]
        assert signatures, f"no signature of {full} in its documentation"

        def call(*positional: Any, **named: Any) -> Any:
            fitting = [s for s in signatures if s.takes(len(positional), set(named))]
            if not fitting:
                raise TypeError(f"{full} of TensorRT {self._trt.__version__} does not take {positional} {named}")
            if full in self._answers:
                return self._answers[full](*positional) if callable(self._answers[full]) else self._answers[full]
            returned = getattr(self._trt, fitting[0].returns, None)
            if isinstance(returned, type) and fitting[0].returns not in ("int", "bool"):
                return Double(self._trt, returned, self._answers)
            return {"bool": True, "int": 0}.get(fitting[0].returns)

        return call


def doubled(trt: ModuleType, answers: dict[str, Any]) -> Any:
    """The module with doubles for what needs a native library; enums and base classes are the real ones."""
    made = {
        name: lambda *_, name=name: Double(trt, getattr(trt, name), answers)
        for name in ("Builder", "OnnxParser", "Runtime")
    }

    class Module:
        def __getattr__(self, name: str) -> Any:
            value = getattr(trt, name)  # AttributeError where this version lacks it
            USED.add(name)
            return made.get(name, value)

    return Module()


def main() -> None:
    """Builds and runs an engine on doubles; prints what was used."""
    bindings, major, model = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    trt = load(bindings, major)
    try:
        trt.Builder(trt.Logger(trt.Logger.ERROR))
    except TypeError:
        pass  # the stub gives no builder: the rest is done on doubles
    else:
        raise SystemExit("the stub made a real builder")

    from sccam.artifacts import write_manifest
    from sccam.export.to_tensorrt import DEFAULT_BUCKETS, build_engine
    from sccam.runtime.gpu import GpuFacts
    from sccam.runtime.network_tensorrt import engine_facts, open_engine

    low, best, high = (
        (*shape, 3) for shape in (DEFAULT_BUCKETS[0].smallest, DEFAULT_BUCKETS[0].best, DEFAULT_BUCKETS[0].largest)
    )
    answers = {
        "IBuilderConfig.add_optimization_profile": 0,
        "Builder.build_serialized_network": b"plan",
        "ITimingCache.serialize": b"cache",
        "ICudaEngine.num_io_tensors": 2,
        "ICudaEngine.num_optimization_profiles": 1,
        "ICudaEngine.get_tensor_name": lambda k: ("image", "maps")[k],
        "ICudaEngine.get_tensor_mode": lambda name: (
            trt.TensorIOMode.INPUT if name == "image" else trt.TensorIOMode.OUTPUT
        ),
        "ICudaEngine.get_tensor_profile_shape": lambda name, k: [low, best, high],
        "ICudaEngine.get_tensor_dtype": trt.DataType.FLOAT,
        "IExecutionContext.get_tensor_shape": (1, 3, 4, 5),
    }
    module = doubled(trt, answers)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.engine")
        plan = build_engine(
            model, library=module, memory_mb=64, timing_cache=Path(folder, "timings"), on_progress=lambda *_: None
        )
        assert plan == b"plan"
        path.write_bytes(plan)
        facts = GpuFacts("a GPU", "9.0", "13.0")
        write_manifest(
            path, kind="cam_net", backbone="none", classes=("cat",), mean=(0.5,) * 3, std=(0.5,) * 3, stride=16,
            made_from=engine_facts(trt.__version__, facts), backend="tensorrt",
        )  # fmt: skip

        class Stream:
            ptr = 1

            def __enter__(self) -> None: ...

            def __exit__(self, *_: object) -> None: ...

            def synchronize(self) -> None: ...

            def begin_capture(self) -> None:
                captured.append("begun")

            def end_capture(self) -> Any:
                captured.append("ended")
                return SimpleNamespace(launch=lambda stream: captured.append("launched"))

        captured: list[str] = []

        class Array(np.ndarray):
            @property
            def data(self) -> Any:
                return SimpleNamespace(ptr=self.ctypes.data)

            def set(self, values: np.ndarray, stream: Stream) -> None:
                self[:] = values

        arrays = SimpleNamespace(
            cuda=SimpleNamespace(Stream=lambda non_blocking: Stream(), alloc=lambda size: SimpleNamespace(ptr=256)),
            asarray=lambda a: a.view(Array),
            empty=lambda shape, dtype: np.zeros(shape, dtype).view(Array),
            asnumpy=lambda a, stream: np.asarray(a),
        )
        network = open_engine(path, library=module, arrays=arrays, facts=facts)
        for _ in range(4):
            found = network(np.zeros((1, 64, 64, 3), np.uint8))
            assert found["maps"].shape == (1, 3, 4, 5) and found["maps"].dtype == np.float32
        assert captured == ["begun", "ended", "launched", "launched"]

        captured.clear()  # an engine that no graph takes
        answers["IExecutionContext.execute_async_v3"] = lambda stream: captured[-1:] != ["begun"]
        network = open_engine(path, library=module, arrays=arrays, facts=facts)
        for _ in range(4):
            assert network(np.zeros((1, 64, 64, 3), np.uint8))["maps"].shape == (1, 3, 4, 5)
        assert captured == ["begun", "ended"]
    print(trt.__version__, *sorted(USED))


if __name__ == "__main__":
    main()
