# ruff: noqa: F811 (fixtures of other files are arguments here)
"""Files of somebody else run no code: pickles, arrays of objects, models, engines, manifests, markup, archives.

A canary is a file that a pickle creates as soon as anybody loads it. Each of them is let go of once, in the way that
is not ours, so that one that could not fire is seen.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import subprocess
import sys
import tarfile
import timeit
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from sccam import config as toml
from sccam.artifacts import (
    RunFolder,
    manifest_path,
    read_arrays,
    read_json,
    sha256,
    write_arrays,
    write_json,
    write_manifest,
)
from sccam.data.sample import draw_sample
from sccam.recipe import load_config
from sccam.report import page as report
from sccam.run import train
from sccam.runtime import network_tensorrt
from sccam.runtime.network_tensorrt import engine_facts
from tests.conftest import Cli
from tests.export.test_export_run import write_network
from tests.export.test_tensorrt import FACTS, VERSION
from tests.faults.conftest import Tally
from tests.made_run import make_run
from tests.report.conftest import photos, run  # noqa: F401  (fixtures: a run with maps, clusters and masks)
from tests.runtime.test_folder import model  # noqa: F401  (a fixture: an ONNX file with its manifest)
from tests.test_run import PowerCut, Watcher

ROOT = Path(__file__).resolve().parents[2]
REFUSED = (2, 3)  # a setting; a file

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


def ended(sccam: Cli, tally: Tally, *arguments: object) -> tuple[int, str]:
    """The exit code and all that was printed; what no command should let through is counted."""
    try:
        code, out, err = sccam(*arguments)
    except Exception:
        tally.crashed += 1
        raise
    return code, out + err


def linked(source: Path, target: Path) -> Path:
    """A copy whose files may be replaced, not changed."""
    shutil.copytree(source, target, copy_function=os.link)
    return target


def placed(path: Path, data: bytes) -> Path:
    """A file in place of whatever is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def vouched(path: Path, data: bytes) -> Path:
    """The same, with the manifest that is there made to fit."""
    placed(path, data)
    record = {**read_json(manifest_path(path)), "sha256": sha256(path)}
    placed(manifest_path(path), json.dumps(record).encode())
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A run with its three networks, untrained, a small exported file, and `pictures`."""
    path = make_run(tmp_path_factory.mktemp("made") / "run", ())
    folder = RunFolder(path)
    for kind, file in (
        ("cam_net", folder.classifier(0)), ("affinity_net", folder.affinity_net), ("segmenter", folder.segmenter)
    ):  # fmt: skip
        write_network(file, kind)
    for file in (model, manifest_path(model)):
        placed(folder / f"export/{file.name.replace('net', 'segmenter')}", file.read_bytes())
    write_json(folder / "data.json", {"root": str(path / "pictures"), "classes": ["cat", "dog"]})
    return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few drawn images with tags and masks."""
    draw_sample(tmp_path_factory.mktemp("sample") / "data", images=15, sizes=(49, 66))
    return tmp_path_factory.getbasetemp() / "sample0" / "data"


SMALL = ["network.backbone=test_resnet", "network.weights=none", "network.output_stride=32", "run.workers=1",
         "cam.scales=[1.0]", "cam.long_side=0", "classify.epochs=[1]", "classify.rounds=1"]  # fmt: skip


@pytest.fixture(scope="module")
def begun(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut off before it trained anything."""
    path = tmp_path_factory.mktemp("begun") / "run"
    with pytest.raises(PowerCut):
        train(sample, "demo", path, SMALL, reporter=Watcher(cut_at="round0/classify"))
    return path


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is made in this process: others take seconds to begin."""
    monkeypatch.setattr(report, "worker_count", lambda count: 1)


# Pickles


@dataclass(frozen=True)
class Canary:
    """Bytes in some container, and how they are let go of."""

    name: str
    data: bytes
    fire: Callable[[bytes], object] | None


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function: Callable[..., object], *arguments: object):
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


class Builds:
    """Pickled as an object whose state is a call."""

    def __init__(self, call: Calls):
        self.call = call


def torch_bytes(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name, data in members.items():
            opened.writestr(name, data)
    return file.getvalue()


def old_tar(data: bytes) -> bytes:
    """As torch 0.1 wrote files."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as opened:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return file.getvalue()


def arrays(value: object, *names: str) -> bytes:
    """An NPZ whose arrays all hold the object."""
    return archive(**{f"{name}.npy": _npy(value) for name in names})


def unsafe_torch(data: bytes) -> object:
    return torch.load(io.BytesIO(data), weights_only=False)


def unsafe_numpy(data: bytes) -> object:
    found = np.load(io.BytesIO(data), allow_pickle=True)
    return [found[name] for name in found.files] if isinstance(found, np.lib.npyio.NpzFile) else found


NAMES = ("features", "present", "parent", "ids", "scores", "classes", "size", "backgrounds")  # of arrays of a run


def canaries(nest: Path) -> list[Canary]:
    """Every way in which a file may ask for `nest` to be made."""
    command, code = f"touch {shlex.quote(str(nest))}", f"open({str(nest)!r}, 'w').close()"
    calls = {
        "os.system": Calls(os.system, command),
        "exec": Calls(exec, code),
        "eval": Calls(eval, code),
        "check_call": Calls(subprocess.check_call, ["touch", str(nest)]),
        "copy": Calls(shutil.copy, __file__, str(nest)),
        "timeit": Calls(timeit.timeit, code, "pass", timeit.default_timer, 1),
    }
    first = calls["os.system"]
    calls["inner file"] = Calls(torch.storage._load_from_bytes, torch_bytes({"a": first}))
    found = [Canary(f"pickle, {name}", pickle.dumps({"a": call}, 2), pickle.loads) for name, call in calls.items()]
    found += [Canary(f"pickle {n}", pickle.dumps([first], n), pickle.loads) for n in (0, 1, 3, 4, 5)]
    found.append(Canary("state", pickle.dumps(Builds(first)), pickle.loads))
    for name in ("exec", "copy", "inner file"):
        weights = {"conv1.weight": torch.ones(2), "conv1.bias": calls[name]}
        found.append(Canary(f"torch archive, {name}", torch_bytes({"state_dict": weights}), unsafe_torch))
        old = torch_bytes(weights, _use_new_zipfile_serialization=False)
        found.append(Canary(f"old torch file, {name}", old, unsafe_torch))
    found += [
        Canary("pickle before an old torch file", pickle.dumps(first) + torch_bytes({}), pickle.loads),
        Canary("tar of torch 0.1", old_tar(pickle.dumps(first)), None),
        Canary("TorchScript", archive(**{"a/data.pkl": pickle.dumps(first), "a/constants.pkl": pickle.dumps(first),
                                         "a/version": b"6", "a/code/a.py": code.encode()}), None),
        Canary("array of objects", _npy(first), unsafe_numpy),
        Canary("arrays of objects", arrays(first, *NAMES), unsafe_numpy),
        Canary("numbers and an array of objects", archive(**_numbers(), **{"more.npy": _npy(first)}), unsafe_numpy),
        Canary("scalar of an array", pickle.dumps(np.array([first], object)), pickle.loads),
        Canary("YAML", f"names: !!python/object/apply:os.system ['{command}']\n".encode(), None),
    ]  # fmt: skip
    return found


def _npy(value: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([value], object), allow_pickle=True)
    return file.getvalue()


def _numbers() -> dict[str, bytes]:
    file = io.BytesIO()
    np.save(file, np.zeros((1, 2, 2), np.float32))
    return {f"{name}.npy": file.getvalue() for name in NAMES if name != "features"}


Words = tuple[object, ...]


@dataclass
class Places:
    """What the entries need: folders that may be copied, and one that is empty."""

    made: Path
    reported: Path
    sample: Path
    begun: Path
    empty: Path
    given: str = ""  # the name of the file that was put

    def copy(self, name: str) -> Path:
        """A copy of one of the folders, of its own."""
        return linked(getattr(self, name), self.empty / name)

    def put(self, path: Path, data: bytes) -> Path:
        """The file that is to be refused, with a manifest that fits where there is one."""
        self.given = path.name
        return vouched(path, data) if manifest_path(path).exists() else placed(path, data)

    def words(self, words: Words, **known: object) -> Words:
        """The command, with paths for words of capitals."""
        known = {
            "FOLDER": self.empty / "given", "RUN": self.made, "REPORTED": self.reported, "DATA": self.sample,
            "MASKS": self.sample / "masks", "IMAGES": self.sample / "images", "PICTURES": self.made / "pictures",
            "MODEL": self.made / "export/segmenter.onnx", "OUT": self.empty / "out",
            "WRITTEN": self.empty / "out.safetensors", **known,
        }  # fmt: skip
        return tuple(known.get(str(word), word) for word in words)


Entry = Callable[[Places, bytes], Words]
ROUND = ("round0/classify", "round0/maps", "round1/cluster")
PSEUDO = ("--task", "pseudo-label")


def resumed(at: Places, name: str, data: bytes, *finished: str) -> Words:
    """A run with these stages finished that finds the file when it goes on."""
    copy = at.copy("begun")
    state = {**read_json(copy / "run.json"), "finished": {stage: {"seconds": 1.0} for stage in ("data", *finished)}}
    placed(copy / "run.json", json.dumps(state).encode())
    for r in (0, 1):
        write_network(RunFolder(copy).classifier(r), "cam_net")
    at.put(copy / name, data)
    return ("train", at.sample, "-c", copy / "config.toml", "--out", copy, "--resume")


def mapless(at: Places, data: bytes) -> Words:
    """A run whose stored maps are all the file."""
    names = [f"round1/activation_maps/{path.stem}.npz" for path in (at.sample / "images").iterdir()]
    words = resumed(at, names[0], data, *ROUND, "round1/classify", "round1/maps")
    for name in names:
        placed(at.empty / "begun" / name, data)
    at.given = ".npz"
    return words


def in_run(of: str, name: str, *words: object) -> Entry:
    """A file of a run, which the command reads: `RUN` stands for the run, `OUT` for a folder to write."""

    def entry(at: Places, data: bytes) -> Words:
        copy = at.copy(of)
        at.put(next(iter(sorted(copy.glob(name))), copy / name), data)
        return at.words(words, RUN=copy)

    return entry


def alone(name: str, *words: object) -> Entry:
    """A file by itself, `FILE`, in a folder `FOLDER`."""

    def entry(at: Places, data: bytes) -> Words:
        path = at.put(at.empty / "given" / name, data)
        return at.words(words, FILE=path, WEIGHTS=f"network.weights={path}")

    return entry


def labelled(name: str) -> Entry:
    """A folder of YOLO labels with the file in it."""

    def entry(at: Places, data: bytes) -> Words:
        placed(at.empty / "given/data.yaml", b"names: [cat, dog]\n")
        for path in (at.sample / "images").iterdir():
            placed(at.empty / f"given/labels/{path.stem}.txt", b"0 0.1 0.1 0.9 0.1 0.9 0.9\n")
        at.put(at.empty / "given" / name, data)
        return ("labels", "convert", at.empty / "given", at.empty / "out", "--to", "masks",
                "--images", at.sample / "images")  # fmt: skip

    return entry


def shelved(at: Places, data: bytes) -> Words:
    """A folder for each class, and the file as the list of classes."""
    for n, path in enumerate(sorted((at.sample / "images").iterdir())):
        placed(at.empty / f"given/{('cat', 'dog')[n % 2]}/{path.name}", path.read_bytes())
    names = at.put(at.empty / "names.txt", data)
    return ("data", "import", at.empty / "given", at.empty / "out", "--from", "folder", "--classes", names)


def entries() -> dict[str, Entry]:
    """Every command that reads a file, given this one."""
    infer = ("infer", "RUN", "PICTURES", "-o", "OUT")
    sets = [word for text in SMALL for word in ("--set", text)]
    imports = ("data", "import", "FILE", "OUT", "--images", "IMAGES")
    report = ("report", "RUN", "--out", "OUT")
    return {
        **{f"weights import {name}": alone(name, "weights", "import", "FILE", "WRITTEN",
                                           "--backbone", "test_resnet")
           for name in ("a.pth", "a.pt", "a.params", "a.safetensors", "a.bin", "a.ckpt", "a.npz", "a")},
        **{f"network.weights={name}": alone(name, "train", "DATA", "-c", "demo", "--out", "OUT", *sets,
                                            "--set", "WEIGHTS")
           for name in ("a.pth", "a.safetensors", "a.params")},
        "segmenter": in_run("made", "segmenter.safetensors", *infer, "--backend", "torch"),
        "cam_net": in_run("made", "round0/cam_net.safetensors", *infer, *PSEUDO),
        "affinity_net": in_run("made", "affinity_net.safetensors", *infer, *PSEUDO),
        "segmenter, export": in_run("made", "segmenter.safetensors", "export", "RUN", "--network", "segmenter",
                                    "--images", "PICTURES"),
        "segmenter.onnx": in_run("made", "export/segmenter.onnx", *infer),
        "manifest": in_run("made", "export/segmenter.onnx.json", *infer),
        **{f"infer {name}": alone(name, "infer", "FILE", "PICTURES", "-o", "OUT")
           for name in ("a.pth", "a.pt", "a.pkl", "a.ckpt", "a.npz", "a.npy")},
        "checkpoint": lambda at, data: resumed(at, "round0_classify.checkpoint.safetensors", data),
        "classifier": lambda at, data: resumed(at, "round0/cam_net.safetensors", data, *ROUND[:2]),
        "subcategories": lambda at, data: resumed(at, "round1/subcategories.npz", data, *ROUND),
        "activation maps": mapless,
        "run.json": in_run("begun", "run.json", "train", "DATA", "-c", "demo", "--out", "RUN", "--resume"),
        **{f"report {name}": in_run("reported", name, *report) for name in (
            "round1/features.npz", "round1/subcategories.npz", "round1/activation_maps/*.npz", "walked_maps/*.npz",
            "round1/cam_net.safetensors", "config.toml", "data.json", "scores.json", "run.json",
            "export/segmenter.onnx.json")},
        **{f"report {option}": alone("a.json", "report", "REPORTED", "--out", "OUT", option, "FILE")
           for option in ("--bench", "--ablation")},
        "ablate": alone("plan.toml", "ablate", "FILE", "--out", "OUT"),
        "recipe": alone("recipe.toml", "train", "DATA", "-c", "FILE", "--out", "OUT"),
        "threshold.json": in_run("made", "threshold.json", *infer, *PSEUDO),
        "walk.json": in_run("made", "walk.json", *infer, *PSEUDO),
        "config.toml": in_run("made", "config.toml", *infer, *PSEUDO),
        **{f"data check {name}": in_run("sample", name, "data", "check", "RUN", "--workers", "1")
           for name in ("tags.csv", "classes.txt", "train.txt", "val.txt")},
        "data split": in_run("sample", "tags.csv", "data", "split", "RUN", "--overwrite"),
        "train": in_run("sample", "tags.csv", "train", "RUN", "-c", "demo", "--out", "OUT"),
        **{f"infer --tags {name}": alone(name, *infer, *PSEUDO, "--tags", "FILE") for name in ("a.csv", "a.json")},
        **{f"data import {name}": alone(name, *imports) for name in ("a.csv", "a.json", "a.pkl")},
        **{f"data import --from {name}": alone("a", *imports, "--from", name)
           for name in ("coco", "labelstudio", "csv")},
        "data import --classes": shelved,
        "labels convert": alone("coco.json", "labels", "convert", "FILE", "OUT", "--to", "masks"),
        "labels convert --classes": alone("names.txt", "labels", "convert", "MASKS", "OUT", "--to", "yolo",
                                          "--classes", "FILE"),
        "labels convert data.yaml": labelled("data.yaml"),
        "eval --classes": alone("names.txt", "eval", "MASKS", "MASKS", "--classes", "FILE"),
        "OUT of infer": alone("infer.json", "infer", "MODEL", "PICTURES", "-o", "FOLDER"),
        **{f"inspect {name}": alone(name, "inspect", "FILE")
           for name in ("a.safetensors", "a.onnx", "a.npz", "a.npy", "a.png", "a.yaml", "a")},
    }  # fmt: skip


@pytest.mark.fault(19, 20)
@pytest.mark.timeout(3600)
def test_no_entry_runs_what_a_pickle_asks_for(
    tally: Tally, full: bool, sccam: Cli, made: Path, run: Path, sample: Path, begun: Path, one_process: None,
    tmp_path: Path,
) -> None:  # fmt: skip
    nest = tmp_path / "canary"
    birds = canaries(nest)
    for bird in birds:
        if bird.fire is not None:
            bird.fire(bird.data)
            assert nest.exists(), f"{bird.name} is no canary"
            nest.unlink()
    for n, (entry, build) in enumerate(entries().items()):
        for k, bird in enumerate(birds):
            if (k - 7 * n) % (3 if full else len(birds)):
                continue
            at = Places(made, run, sample, begun, tmp_path / "at")
            at.empty.mkdir()
            words = build(at, bird.data)
            tally.injected += 1
            code, told = ended(sccam, tally, *words)
            tally.fired += nest.exists()
            assert not nest.exists(), f"{bird.name} fired in {entry}"
            described = code == 0 and entry.startswith("inspect") and "never loaded" in told  # by its header alone
            refused = code in REFUSED and ("error: " in told or "FAULT " in told)
            assert (refused or described) and at.given in told, f"{bird.name} in {entry} ends with {code}: {told}"
            tally.survived += 1
            shutil.rmtree(at.empty)


# ONNX files

WORKER = """
import io, json, os, resource, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

secret, pictures, first, *cases = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_AS, (16 << 30, 16 << 30))
opened = []
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.path.realpath(os.fsdecode(arguments[0])))
sys.addaudithook(hook)

import sccam
from sccam import cli
from sccam.errors import SccamError

def command(*words):
    sys.argv = ["sccam", *words]
    told = io.StringIO()
    try:
        with redirect_stdout(told), redirect_stderr(told):
            cli.main()
    except SystemExit as ended:
        return [ended.code or 0, told.getvalue()]

def loaded(path):
    try:
        results = list(sccam.load(path, threads=1).predict(pictures, threads=1))
    except SccamError as error:
        return [error.exit_code, "error: " + str(error)]
    return [5 if any(result.error for result in results) else 0, ""]

for number, case in enumerate(cases[int(first):], int(first)):
    print(json.dumps({"begun": number}), flush=True)
    opened.clear()
    found = {"inspect": command("inspect", case), "load": loaded(case),
             "infer": command("infer", case, pictures, "-o", case + ".out", "--threads", "1")}
    print(json.dumps({"number": number, "found": found, "secret": secret in opened}), flush=True)
"""
FINE = (0, 2, 3, 5)  # done; a setting; refused; its images failed


@dataclass(frozen=True)
class Handed:
    """What came of a file: exit code and text of each entry, and whether the secret was opened. None: a crash."""

    found: dict[str, tuple[int, str]]
    secret: bool


def handed(cases: list[Path], secret: Path, pictures: Path) -> list[Handed | None]:
    """Hands every file to three entries in a process of its own, which is begun again where one ends it."""
    results: list[Handed | None] = []
    while len(results) < len(cases):
        words = [str(secret.resolve()), str(pictures), str(len(results)), *map(str, cases)]
        done = subprocess.run(
            [sys.executable, "-c", WORKER, *words], capture_output=True, text=True, cwd=secret.parent, timeout=1200,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, errors="replace", check=False,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert lines, done.stderr
        for line in lines:
            if "found" in line:
                found = {name: (code, text) for name, (code, text) in line["found"].items()}
                results.append(Handed(found, line["secret"]))
        if len(results) < len(cases):
            assert lines[-1] == {"begun": len(results)}, done.stderr
            results.append(None)
    return results


def with_manifest(path: Path, data: bytes, like: Path) -> Path:
    """A file that a manifest like that of another one vouches for."""
    placed(path, data)
    record = {**read_json(manifest_path(like)), "file": path.name, "sha256": sha256(path)}
    write_json(manifest_path(path), record)
    return path


def changed(like: Path, change: Callable[[Any], None]) -> bytes:
    """The model with a change."""
    found = onnx.load(like)
    change(found)
    data: bytes = found.SerializeToString()
    return data


def moved_out(tensor: Any, location: str) -> Any:
    """The tensor, whose numbers are to be read from a file."""
    for name in ("raw_data", "float_data", "int64_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def numbers(location: str, kind: int = TensorProto.FLOAT) -> Any:
    """A tensor of three numbers in a file."""
    return moved_out(helper.make_tensor("outside", kind, [3], [0, 1, 2]), location)


def branch(*nodes: Any, constants: tuple[Any, ...] = ()) -> Any:
    out = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [out], constants)


def own_function(*nodes: Any, name: str = "F", **more: Any) -> Any:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, [], ["inner"], nodes, imports, **more)


def outside_models(like: Path, location: str) -> Iterator[tuple[str, bytes]]:
    """Models that read a file, from every place of the format that may hold numbers."""
    Change = Callable[[Any], None]

    def in_place_of_the_bias(*nodes: Any, functions: tuple[Any, ...] = ()) -> Change:
        def change(found: Any) -> None:
            del found.graph.initializer[1]
            found.graph.node[2].input[2] = "inner"
            for node in reversed(nodes):
                found.graph.node.insert(0, node)
            found.functions.extend(functions)
            if functions:
                found.opset_import.append(helper.make_opsetid("own", 1))

        return change

    def sparse(values: Any, indices: Any) -> Any:
        return helper.make_sparse_tensor(values, indices, [3])

    def initializer(found: Any) -> None:
        moved_out(found.graph.initializer[1], location)

    def sparse_initializer(found: Any) -> None:
        del found.graph.initializer[1]
        values = numbers(location)
        values.name = "bias"
        found.graph.sparse_initializer.append(sparse(values, plain_indices))

    def training(found: Any) -> None:
        found.training_info.add().initialization.CopyFrom(branch(constants=(numbers(location),)))

    plain = helper.make_tensor("v", TensorProto.FLOAT, [3], [0, 1, 2])
    plain_indices = helper.make_tensor("i", TensorProto.INT64, [3], [0, 1, 2])
    constant = helper.make_node("Constant", [], ["inner"], value=numbers(location))
    default = helper.make_attribute("value", numbers(location))
    asks = helper.make_node("Constant", [], ["inner"])
    asks.attribute.add(name="value", ref_attr_name="value", type=default.type)
    call = helper.make_node("F", [], ["inner"], domain="own")
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    same = helper.make_node("Identity", ["outside"], ["inner"])
    listed = helper.make_node("Constant", [], ["inner"], value=plain)
    listed.attribute.append(helper.make_attribute("more", [numbers(location)]))

    def chosen(body: Any) -> Any:
        return helper.make_node("If", ["yes"], ["inner"], then_branch=body, else_branch=body)

    changes: dict[str, Change] = {
        "initialiser": initializer,
        "sparse initialiser": sparse_initializer,
        "constant": in_place_of_the_bias(constant),
        "sparse constant": in_place_of_the_bias(
            helper.make_node("Constant", [], ["inner"], sparse_value=sparse(numbers(location), plain_indices))),
        "indices of a sparse constant": in_place_of_the_bias(helper.make_node(
            "Constant", [], ["inner"], sparse_value=sparse(plain, numbers(location, TensorProto.INT64)))),
        "list of tensors": in_place_of_the_bias(listed),
        "branch": in_place_of_the_bias(yes, chosen(branch(same, constants=(numbers(location),)))),
        "constant of a branch": in_place_of_the_bias(yes, chosen(branch(constant))),
        "function": in_place_of_the_bias(call, functions=(own_function(constant),)),
        "default of a function": in_place_of_the_bias(
            call, functions=(own_function(asks, attribute_protos=[default]),)),
        "training": training,
    }  # fmt: skip
    for name, change in changes.items():
        yield name, changed(like, change)


def locations(secret: Path) -> list[str]:
    """How a model may name the file; one of them names an address in memory, as ONNX Runtime does among its own."""
    return ["../secret", str(secret), "link", "secret", f"file://{secret}", "*/_ORT_MEM_ADDR_/*", "sub/../../secret",
            "/dev/stdin", "", "..\\secret", "/proc/self/environ"]  # fmt: skip


@pytest.mark.fault(21)
@pytest.mark.timeout(3600)
def test_a_model_that_points_outside_of_itself_is_refused_and_nothing_there_is_opened(
    tally: Tally,
    full: bool,
    model: Path,
    made: Path,
    tmp_path: Path,
) -> None:
    secret, home = tmp_path / "secret", tmp_path / "home"
    secret.write_bytes(np.arange(3, dtype=np.float32).tobytes())
    home.mkdir()
    (home / "link").symlink_to(secret)
    found = [
        (f"{place}, {location!r}", data)
        for n, location in enumerate(locations(secret))
        for k, (place, data) in enumerate(outside_models(model, location))
        if full or n == 0 or k == n % 11
    ]
    assert {name.partition(",")[0] for name, _ in found} >= {"sparse constant", "default of a function", "branch"}
    cases = [with_manifest(home / f"{n}.onnx", data, model) for n, (_, data) in enumerate(found)]
    tally.injected += len(cases)
    for (name, _), result in zip(found, handed(cases, secret, made / "pictures"), strict=True):
        tally.crashed += result is None
        assert result is not None, name
        assert not result.secret, f"{name} was read"
        for entry, (code, told) in result.found.items():
            assert code == 3 and "other files" in told, f"{name}, {entry}: {told}"
        tally.survived += 1


def strange_models(like: Path) -> Iterator[tuple[str, bytes]]:
    """What is no model, too new, or made to end or fill a program."""
    whole = like.read_bytes()
    yield "empty", b""
    yield "text", b"hello\n"
    yield "PNG", b"\x89PNG\r\n\x1a\n" + bytes(100)
    yield "zip", archive(a=whole)
    yield "pickle", pickle.dumps({"a": 1})
    yield "ONNX Runtime's own format", b"\x20\0\0\0ORTM" + bytes(64)
    yield "a model with the mark of that format", b"\x12\x10xxORTM" + bytes(10) + whole
    yield "doubled", whole + whole
    yield "followed by others", whole + bytes(range(256))

    def opset(version: int, domain: str = "") -> Callable[[Any], None]:
        def change(found: Any) -> None:
            del found.opset_import[:]
            found.opset_import.append(helper.make_opsetid(domain, version))

        return change

    def operator(name: str, domain: str = "") -> Callable[[Any], None]:
        def change(found: Any) -> None:
            found.graph.node[2].op_type, found.graph.node[2].domain = name, domain
            found.opset_import.append(helper.make_opsetid(domain, 1))

        return change

    def field(path: str, value: Any) -> Callable[[Any], None]:
        def change(found: Any) -> None:
            *steps, last = path.split(".")
            for step in steps:
                found = found[int(step)] if step.isdecimal() else getattr(found, step)
            if last.isdecimal():
                found[int(last)] = value
            else:
                setattr(found, last, value)

        return change

    def without(path: str) -> Callable[[Any], None]:
        def change(found: Any) -> None:
            *steps, last = path.split(".")
            for step in steps:
                found = getattr(found, step)
            found.ClearField(last)

        return change

    def own(*functions: Any) -> Callable[[Any], None]:
        def change(found: Any) -> None:
            found.functions.extend(functions)
            found.opset_import.append(helper.make_opsetid("own", 1))
            del found.graph.initializer[1]
            found.graph.node[2].input[2] = "inner"
            found.graph.node.insert(0, calling("F0"))

        return change

    def calling(name: str, out: str = "inner") -> Any:
        return helper.make_node(name, [], [out], domain="own")

    def in_branch(node: Any) -> Any:
        return helper.make_node("If", ["yes"], ["inner"], then_branch=branch(node), else_branch=branch(node))

    def chain(found: Any) -> None:
        found.graph.node[3].output[0] = "n0"
        for n in range(3000):
            found.graph.node.append(helper.make_node("Neg", [f"n{n}"], [f"n{n + 1}" if n < 2999 else "logits"]))

    def context(found: Any) -> None:
        node = found.graph.node.add(op_type="EPContext", domain="com.microsoft", output=["c"])
        node.attribute.append(helper.make_attribute("ep_cache_context", b"../secret"))
        node.attribute.append(helper.make_attribute("embed_mode", 0))
        found.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    leaf = helper.make_node("Constant", [], ["inner"], value=helper.make_tensor("v", TensorProto.FLOAT, [3], [0, 1, 2]))
    laughs = [own_function(calling(f"F{n + 1}", "a"), calling(f"F{n + 1}"), name=f"F{n}") for n in range(40)]
    hidden = [own_function(in_branch(calling(f"F{n + 1}")), name=f"F{n}") for n in range(40)]
    changes = {
        **{f"opset {n}": opset(n) for n in (0, -1, 99, 2**31, 2**62)},
        "opset of another domain": opset(18, "evil.example"),
        "no opset": without("opset_import"),
        "IR 9999": field("ir_version", 9999),
        "IR -1": field("ir_version", -1),
        "operator that nobody knows": operator("NoSuchThing"),
        "operator of another domain": operator("Conv", "evil.example"),
        "operator of a library": operator("Inverse", "com.microsoft.extensions"),
        "context of another runtime": context,
        "no nodes": without("graph.node"),
        "no graph": without("graph"),
        "no inputs": without("graph.input"),
        "no outputs": without("graph.output"),
        "no constants": without("graph.initializer"),
        "circle": field("graph.node.0.input.0", "logits"),
        "another input": field("graph.input.0.name", "other"),
        "input of another type": field("graph.input.0.type.tensor_type.elem_type", TensorProto.STRING),
        "type that does not exist": field("graph.input.0.type.tensor_type.elem_type", 12345),
        "constant without end": field("graph.initializer.0.dims.0", 2**62),
        "constant of negative size": field("graph.initializer.0.dims.0", -3),
        "constant of another size": field("graph.initializer.0.dims.0", 7),
        "constant of texts": field("graph.initializer.0.data_type", TensorProto.STRING),
        "padding without end": lambda found: found.graph.node[2].attribute.append(
            helper.make_attribute("pads", [2**62] * 4)),
        "kernel of nothing": field("graph.node.3.attribute.0.ints.0", 0),
        "steps of nothing": field("graph.node.3.attribute.1.ints.0", 0),
        "axes that do not exist": field("graph.node.1.attribute.0.ints.0", -9),
        "three thousand nodes": chain,
        "function that calls itself": own(own_function(calling("F0"), name="F0")),
        "functions that call each other": own(own_function(calling("F1"), name="F0"),
                                              own_function(calling("F0"), name="F1")),
        "functions that double": own(*laughs, own_function(leaf, name="F40")),
        "functions that double in branches": own(*hidden, own_function(leaf, name="F40")),
    }  # fmt: skip
    for name, change in changes.items():
        yield name, changed(like, change)


RUNS = ("opset of another domain", "IR -1", "three thousand nodes", "a model with the mark of that format")


@pytest.mark.fault(21, 40)
@pytest.mark.timeout(3600)
def test_a_strange_model_is_refused_or_run_and_ends_no_process(
    tally: Tally,
    full: bool,
    model: Path,
    made: Path,
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(12))
    strange, whole, rng = list(strange_models(model)), model.read_bytes(), random.Random(0)
    must_fail = {name for name, _ in strange} - set(RUNS)
    cuts = range(len(whole)) if full else rng.sample(range(len(whole)), 20)
    found = [*strange, *((f"cut at {end}", whole[:end]) for end in cuts)]
    for n in range(300 if full else 40):
        data = bytearray(whole)
        for _ in range(1 + n % 3):
            data[rng.randrange(len(data))] = rng.randrange(256)
        found.append((f"flipped {n}", bytes(data)))
    cases = [with_manifest(tmp_path / f"{n}/net.onnx", data, model) for n, (_, data) in enumerate(found)]
    tally.injected += len(cases)
    for (name, _), result in zip(found, handed(cases, secret, made / "pictures"), strict=True):
        tally.crashed += result is None
        assert result is not None, name
        assert not result.secret, f"{name} made it read another file"
        for entry, (code, told) in result.found.items():
            assert code in FINE and (code in (0, 5) or "error: " in told), f"{name}, {entry}: {code} {told}"
            if entry != "inspect":
                assert (code != 0 or name not in must_fail) and (code == 0 or name not in RUNS), (
                    f"{name}: {code} {told}"
                )
        tally.survived += 1


# Engines


class Watched:
    """A TensorRT that notes what it is asked to deserialise, and can make nothing of it."""

    __version__ = VERSION

    def __init__(self) -> None:
        self.given: list[bytes] = []

    class Logger:
        ERROR = 0

        def __init__(self, level: int) -> None: ...

    def Runtime(self, logger: object) -> Watched:
        return self

    def deserialize_cuda_engine(self, plan: bytes) -> None:
        self.given.append(plan)


def strange_engines(plan: bytes, record: dict[str, Any], full: bool) -> Iterator[tuple[str, bytes, bytes]]:
    """(what is wrong, the engine, its manifest)."""

    def text(value: Any) -> bytes:
        return json.dumps(value).encode()

    def edited(name: str, value: Any) -> bytes:
        found = json.loads(json.dumps(record))
        *steps, last = name.split(".")
        place = found
        for step in steps:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
        return text(found)

    built = ("made_from.tensorrt", "made_from.gpu", "made_from.compute_capability")
    for name in ("sha256", "backend", "kind", "made_from", *built):
        yield f"no {name}", plan, edited(name, None)
    for name in ("sha256", "backend", "kind", *built):
        value: Any
        for value in ("", "other", 9, [], {}):
            yield f"{name} {value!r}", plan, edited(name, value)
    yield "another TensorRT", plan, edited("made_from.tensorrt", "9.0.1")
    yield "another GPU", plan, edited("made_from.gpu", "NVIDIA L4")
    yield "another capability", plan, edited("made_from.compute_capability", "8.9")
    for content in (b"", b"{}", b"[]", b"null", b"no JSON", b"\xff\xfe", pickle.dumps(record), b"[" * 100_000):
        yield f"a manifest {content[:9]!r}", plan, content
    for other in (
        b"",
        b"ftrt",
        plan[:-1],
        plan + b"\0",
        bytes(len(plan)),
        b"ptrt" + plan[4:],
        archive(a=plan),
        plan * 2,
    ):
        yield f"an engine {other[:4]!r} of {len(other)} bytes", other, text(record)
    rng = random.Random(0)
    for _ in range(300 if full else 40):
        flipped = bytearray(plan)
        flipped[rng.randrange(len(plan))] ^= 1 << rng.randrange(8)
        yield "a flipped bit", bytes(flipped), text(record)


@pytest.mark.fault(22, 23)
def test_an_engine_that_is_not_vouched_for_is_never_deserialised(
    tally: Tally, full: bool, sccam: Cli, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library, plan = Watched(), b"ftrt" + np.random.default_rng(0).bytes(400)
    monkeypatch.setitem(sys.modules, "tensorrt", library)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace())
    monkeypatch.setattr(network_tensorrt, "gpu_facts", lambda: FACTS)
    path = placed(tmp_path / "net.engine", plan)
    write_manifest(
        path, kind="segmenter", backbone="none", classes=("cat",), mean=(0.5,) * 3, std=(0.5,) * 3, stride=16,
        made_from={"onnx": "net.onnx", **engine_facts(VERSION, FACTS)}, backend="tensorrt",
    )  # fmt: skip
    record = read_json(manifest_path(path))
    command = ("infer", path, made / "pictures", "-o", tmp_path / "out")
    code, told = ended(sccam, tally, *command)
    assert library.given == [plan] and code == 3 and "cannot read the plan" in told
    library.given.clear()

    cases = [*strange_engines(plan, record, full), ("no manifest", plan, None)]
    for name, engine, manifest in cases:
        placed(path, engine)
        placed(manifest_path(path), manifest or b"")
        if manifest is None:
            manifest_path(path).unlink()
        tally.injected += 1
        code, told = ended(sccam, tally, *command)
        assert library.given == [], f"{name} was deserialised"
        assert code == 3 and "net.engine" in told, f"{name}: {code} {told}"
        tally.survived += 1


# Files of a run, edited

TEXTS: tuple[Any, ...] = (None, 7, [], {}, True)
NUMBERS: tuple[Any, ...] = (None, "16", "", [], {}, True, -1, 2**70, 1e308, "../../x")
LISTS: tuple[Any, ...] = (None, "x", 7, {}, [[]], [None], ["x"], [2**70], [-1])
OBJECTS: tuple[Any, ...] = (None, "x", 7, [], True)
GONE = object()
WHOLE: tuple[Any, ...] = (None, [], "x", 7, [[]], 1.5)


OTHERWISE = {"sha256": ("checksums",), "kind": ("not a ",), "scales": ("scale",), "subcategory_parent": ("sub.weight",)}
"""Fields that an error may name in other words."""


@dataclass(frozen=True)
class Edit:
    """A change of a JSON or TOML file, and the commands that must refuse it."""

    file: str
    field: str  # with dots; empty for all of it
    value: Any
    commands: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        """One of them is in the error."""
        name = next(part for part in reversed(self.field.split(".")) if not part.isdecimal())
        return (name, *OTHERWISE.get(name, ()))

    def apply(self, text: str) -> str:
        """The content of the file, edited."""
        toml_file = self.file.endswith(".toml")
        content: Any = tomllib.loads(text) if toml_file else json.loads(text)
        if not self.field:
            return json.dumps(self.value)
        steps: list[Any] = [int(step) if step.isdecimal() else step for step in self.field.split(".")]
        place, last = content, steps.pop()
        for step in steps:
            place = place[step]
        if self.value is GONE:
            del place[last]
        else:
            place[last] = self.value
        return toml.dump_toml(content) if toml_file else json.dumps(content)


COMMANDS: dict[str, Words] = {
    "infer": ("infer", "RUN", "PICTURES", "-o", "OUT", "--threads", "1", "--backend", "torch"),
    "infer ONNX": ("infer", "RUN", "PICTURES", "-o", "OUT", "--threads", "1"),
    "labels": ("infer", "RUN", "PICTURES", "-o", "OUT", "--threads", "1", *PSEUDO),
    "export": ("export", "RUN", "--network", "segmenter", "--precision", "fp32", "--images", "PICTURES"),
    "export own": ("export", "RUN", "--network", "segmenter", "--precision", "fp32"),
    "report": ("report", "RUN", "--out", "OUT"),
    "inspect": ("inspect", "RUN"),
    "resume": ("train", "DATA", "-c", "RECIPE", "--out", "RUN", "--resume"),
}  # fmt: skip


def edits() -> list[Edit]:
    """Edits that must be refused, of every file that a command reads."""
    found: list[Edit] = []

    def add(file: str, field: str, values: tuple[Any, ...], *commands: str) -> None:
        found.extend(Edit(file, field, value, commands) for value in values)

    manifests = {
        "segmenter.safetensors.json": ("infer", "export"),
        "export/segmenter.onnx.json": ("infer ONNX",),
        "round0/cam_net.safetensors.json": ("labels",),
        "affinity_net.safetensors.json": ("labels",),
    }
    for file, commands in manifests.items():
        add(file, "", WHOLE, *commands)
        for field in ("file", "sha256", "kind", "backbone", "made_by"):
            add(file, field, (*TEXTS, GONE), *commands)
        add(file, "sha256", ("0" * 64, "../../x"), *commands)
        add(file, "kind", ("other", "../../x"), *commands)
        for field in ("stride", "mean.0", "std.1"):
            add(file, field, NUMBERS, *commands)
        for field in ("classes", "mean", "std"):
            add(file, field, (*LISTS, GONE), *commands) if field != "classes" else None
        add(file, "classes", (None, "x", 7, {}, [[]], [None], [7], GONE), *commands)
        for field in ("backend", "precision"):
            add(file, field, TEXTS, *commands)
        for field in ("inputs", "outputs"):
            add(file, field, (None, "x", 7, {}, [[]], [{}], [{"name": 7, "dtype": "x", "shape": []}]), *commands)
        add(file, "parity", ("x", 7, True, []), *commands)
        add(file, "made_from", (*OBJECTS, GONE), *commands)
        add(file, "more", ("a field of another version",), *commands)
    for file in manifests:
        if file.endswith("safetensors.json"):
            add(file, "backbone", ("no such net", "hf-hub:someone/net", "local-dir:/tmp", "../../x"), *manifests[file])
            add(file, "made_from.output_stride", (*NUMBERS, 0, 7), *(manifests[file] if "cam" not in file else ()))
    for field in ("made_from.rates", "made_from.scales", "made_from.subcategory_parent"):
        file = "round0/cam_net.safetensors.json" if "parent" in field else "segmenter.safetensors.json"
        add(file, field, (*LISTS, GONE), *manifests[file])
    add("segmenter.safetensors.json", "made_from.scales", ([], [0.5], [1e9]), "infer", "export")
    add("segmenter.safetensors.json", "made_from.long_side", NUMBERS, "infer")
    add("export/segmenter.onnx.json", "made_from.pad_multiple", NUMBERS, "infer ONNX")
    add("round0/cam_net.safetensors.json", "made_from.maps", (*TEXTS, "other"), "labels")

    add("run.json", "", WHOLE, "inspect", "report", "export", "resume")
    add("run.json", "schema", ("1", None, -1, [], 1.5), "inspect", "report", "export", "resume")
    for field in ("status", "sccam", "started"):
        add("run.json", field, TEXTS, "inspect", "report")
    add("run.json", "finished", OBJECTS, "inspect", "report", "resume")
    add("run.json", "finished.data", OBJECTS, "inspect", "report", "resume")
    add("run.json", "finished.data.seconds", (None, "x", [], {}, True, -1, 1e308), "inspect", "report")
    add("run.json", "data", OBJECTS, "resume")
    add("run.json", "data.root", (*TEXTS, "../../x"), "resume")
    add("threshold.json", "", WHOLE, "labels")
    add("threshold.json", "alpha_walk", (*NUMBERS, GONE), "labels")
    add("walk.json", "", WHOLE, "labels")
    add("walk.json", "steps", (*NUMBERS, 3, GONE), "labels")
    for field in ("cam", "walk", "pseudo_label", "affinity"):
        add("config.toml", field, ("x", 7, [], True), "labels", "report", "resume")
        add("config.toml", field, (GONE,), "labels")
    add("config.toml", "affinity.radius", ("x", -1, 2**70, 0.5, True, []), "labels")
    add("config.toml", "cam.scales", ("x", 7, True, ["x"], [[]]), "labels", "report", "resume")
    add("config.toml", "walk.steps", ("x", -1, 0.5, True, []), "labels", "report", "resume")
    add("config.toml", "cam.grid_stride", ("x", -1, 0.5, True, 0), "labels", "report", "resume")
    add("config.toml", "walk.beta", ("x", True, []), "labels", "report")
    add("config.toml", "network.backbone", (7, True, []), "report", "resume")
    add("config.toml", "more", ({"a": 1}, 7, "x"), "report", "resume")
    add("data.json", "", WHOLE, "inspect", "report", "export own")
    add("data.json", "root", (*TEXTS, GONE), "inspect", "report", "export own")
    add("data.json", "classes", (None, "x", 7, {}, [[]], [None], [7], GONE), "inspect", "report")
    add("scores.json", "", WHOLE, "inspect", "report")
    add("scores.json", "rows", (None, "x", 7, {}, [[]], [None], ["x"], [{}], GONE), "inspect", "report")
    for field in ("stage", "split"):
        add("scores.json", f"rows.0.{field}", (*TEXTS, GONE), "inspect", "report")
    add("scores.json", "rows.0.column", (*TEXTS, "other", GONE), "inspect", "report")
    add("scores.json", "rows.0.miou", ("x", [], {}, True, 7, -1, 1e308, GONE), "inspect", "report")
    add("scores.json", "rows.0.iou", (None, "x", 7, [], {"a": "x"}, GONE), "inspect", "report")
    add("scores.json", "rows.0.images", (None, "x", [], -1), "report")
    add("scores.json", "rows.0.threshold", ("x", [], {}, 1e308), "report")
    add("scores.json", "rows.0.curve", (None, "x", 7, {}, [7], [[1]], [["a", "b"]], [[1e308, -1e308]]), "report")
    return [edit for edit in found if edit.commands]


HARMLESS = (
    Edit("run.json", "more", {"of": "another version"}, ("inspect", "report")),
    Edit("segmenter.safetensors.json", "made_from.more", "../../x", ("infer",)),
    Edit("segmenter.safetensors.json", "made_by", "\x1b[31mme\x1b[0m", ("infer",)),
    Edit("segmenter.safetensors.json", "file", "../../x", ("infer",)),
    Edit("threshold.json", "more", 1, ("labels",)),
    Edit("walk.json", "merits", "x", ("labels",)),
)


@pytest.fixture(scope="module")
def editable(made: Path, begun: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that every command of `COMMANDS` can do something with."""
    path = linked(made, tmp_path_factory.mktemp("editable") / "run")
    state = {**read_json(begun / "run.json"), "finished": {"data": {"seconds": 1.0}}}
    placed(path / "run.json", json.dumps(state).encode())
    placed(path / "scores.json", (run / "scores.json").read_bytes())
    return path


@pytest.mark.fault(23)
@pytest.mark.timeout(3600)
def test_an_edited_file_of_a_run_is_refused_with_its_name_and_the_field(
    tally: Tally, full: bool, sccam: Cli, editable: Path, begun: Path, sample: Path, one_process: None, tmp_path: Path
) -> None:
    cases = [(edit, command) for edit in edits() for command in edit.commands]
    random.Random(0).shuffle(cases)
    harmless = [(edit, command) for edit in HARMLESS for command in edit.commands]
    for n, (edit, command) in enumerate([*harmless, *cases[: None if full else 60]]):
        copy = linked(editable, tmp_path / "run")
        if command == "resume":  # which has settings and images of its own
            shutil.rmtree(copy)
            linked(begun, copy)
        placed(copy / edit.file, edit.apply((copy / edit.file).read_text(encoding="utf-8")).encode())
        known = {"RUN": copy, "PICTURES": editable / "pictures", "OUT": tmp_path / "out", "DATA": sample,
                 "RECIPE": begun / "config.toml"}  # fmt: skip
        words = [known.get(str(word), word) for word in COMMANDS[command]]
        tally.injected += 1
        code, told = ended(sccam, tally, *words)
        about = f"{edit.file} {edit.field} = {str(edit.value)[:40]!r}, {command}: {code} {told}"
        if n < len(harmless):
            assert code == 0, about
        else:
            assert code in REFUSED and "error: " in told, about
            assert Path(edit.file).name.removesuffix(".json") in told, about
            assert not edit.field or any(word in told for word in edit.words), about
        tally.survived += 1
        shutil.rmtree(copy)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


# Markup and control characters

ESCAPES = ("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b2J", "back\x08\x08space", "\x1b[2K\rerror: all is well",
           "\u202egnp.exe", "\x1b]8;;http://evil.example\x1b\\click\x1b]8;;\x1b\\", "bell\x07\x7f")  # fmt: skip
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def escaped_commands(name: str, at: Path, model: Path, sample: Path) -> Iterator[Words]:
    """Commands that have something to say about a name."""
    photographs = linked(sample, at / f"photos {name}")
    pictures = sorted((photographs / "images").iterdir())
    for picture, suffix in zip(pictures, ("png", "jpg"), strict=False):
        placed(picture.with_name(f"{name}{suffix == 'jpg'}.{suffix}"), b"broken")
    yield ("data", "check", photographs, "--workers", "1")
    rows = (photographs / "tags.csv").read_text().splitlines()
    image = rows[1].partition(",")[0]
    cell = '"' + name.replace('"', '""') + '"'
    for row in (f"{image},{cell}", f"{cell},square", f"{image},{cell},{cell}"):
        placed(photographs / "tags.csv", "\n".join([rows[0], row, *rows[2:]]).encode())
        yield ("data", "check", photographs, "--workers", "1")
        yield ("train", photographs, "-c", "demo", "--dry-run")
    placed(photographs / "classes.txt", f"{name}\n".encode())
    yield ("data", "check", photographs, "--workers", "1")
    placed(at / "table.csv", f"image,tags\n{cell},{cell}\n{image},{cell}\n".encode())
    yield ("data", "import", at / "table.csv", at / "imported", "--images", photographs / "images")
    yield ("infer", model, photographs / "images", "-o", at / "out")
    yield ("infer", at / f"{name}.onnx", photographs, "-o", at / "out")
    yield ("inspect", at / name)
    yield ("eval", photographs / "images", photographs / "masks", "--classes", photographs / "classes.txt")
    yield ("train", photographs, "-c", name, "--set", f"network.backbone={name}")
    yield ("train", sample, "-c", "demo", "--set", f"{name}=1")

    def signed(found: Any) -> None:
        found.producer_name = found.graph.node[2].op_type = name
        found.metadata_props.add(key=name, value=name)

    copy = placed(at / "net.onnx", changed(model, signed))
    record = {**read_json(manifest_path(model)), "sha256": sha256(copy), "made_by": name, "classes": [name, "b"]}
    write_json(manifest_path(copy), record)
    yield ("inspect", copy)
    yield ("infer", copy, sample / "images", "-o", at / "other")
    placed(at / "a.npz", archive(**{f"{name}.npy": _numbers()["size.npy"]}))
    yield ("inspect", at / "a.npz")
    run = at / "run"
    write_json(run / "run.json", {"schema": 1, "status": name, "started": name, "sccam": name, "finished": {name: {}}})
    yield ("inspect", run)
    yield ("export", run)


@pytest.mark.fault(39)
@pytest.mark.timeout(3600)
def test_a_name_does_not_command_the_terminal(
    tally: Tally,
    full: bool,
    sccam: Cli,
    model: Path,
    sample: Path,
    tmp_path: Path,
) -> None:
    for n, text in enumerate(ESCAPES if full else ESCAPES[:3]):
        at = tmp_path / f"{n}"
        at.mkdir()
        for words in escaped_commands(text.replace("/", "∕"), at, model, sample):
            tally.injected += 1
            _, told = ended(sccam, tally, *words)
            found = CONTROLS.search(told)
            assert found is None, f"{words}: {told[max(0, found.start() - 200) : found.end() + 40]!r}"
            assert told
            tally.survived += 1


MARKUP = (
    "<script>boom()</script>",
    "</title><script>boom()</script>",
    '"><img src=x onerror=boom()>',
    "' onload='boom()",
    "javascript:boom()",
    "data:text/html,<script>boom()</script>",
    "{{ cycler.__init__.__globals__.os.system('boom') }}",
    "{% for a in [] %}",
    "</style><style>*{display:none}",
    "</script><script>boom()//",
    "<!--",
    "-->",
    "]]>",
    "&lt;script&gt;",
    "<svg/onload=boom()>",
    "<iframe srcdoc='<script>boom()</script>'>",
    "<base href=//evil.example/>",
    "<a href=javascript:boom()>a</a>",
    "\x1b[31mred\x1b[0m",
    "<b>&amp;\u202e\u2028</b>",
    "`${boom()}`",
    "%s{0.__class__}",
    "<meta http-equiv=refresh content=0;url=//evil.example>",
    "\\u003cscript\\u003eboom()\\u003c/script\\u003e",
    "<form action=//evil.example><input autofocus onfocus=boom()>",
    "</textarea></select></details></svg></math>",
)


class Shape(HTMLParser):
    """Elements with the names of their attributes, what they refer to, and the text of scripts and styles."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.referred: list[tuple[str, str, str]] = []
        self.inside: list[str] = []
        self.own: dict[str, list[str]] = {"script": [], "style": []}
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.referred += [(tag, name, value or "") for name, value in attrs
                          if name in ("href", "src", "action", "style", "srcset", "data")]  # fmt: skip
        self.inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", ()))
        self.inside.append(f"/{tag}")

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1] in self.own:
            self.own[self.inside[-1]].append(data)
        else:
            self.text += data

    def handle_comment(self, data: str) -> None:
        self.elements.append(("comment", ()))

    def handle_decl(self, decl: str) -> None:
        self.elements.append(("declaration", (decl,)))


def renamed(run: Path, photos: Path, at: Path, text: str) -> Words:
    """The report's command for a copy of the run in which every name is made of the text."""
    old = [json.loads((photos / "tags.json").read_text()), (photos / "classes.txt").read_text().splitlines()]
    ids = {id: f"{text.replace('//', '/∕').strip('/')[:80]}{n}" for n, id in enumerate(old[0])}
    # a class may have no colon and nothing that is not printed
    plain = "".join(c for c in text if c.isprintable() and c != ":") or "x"
    classes = {name: f"{plain}{n}" for n, name in enumerate(old[1])}
    photographs, folder = at / "photos", at / f"run {text.replace('/', '∕')[:80]}"
    for source, target in ((photos, photographs), (run, folder)):
        for path in sorted(path for path in source.rglob("*") if path.is_file()):
            below = path.relative_to(source)
            if below.stem in ids and below.parts[0] != "export":
                below = below.parent / f"{ids[below.stem]}{below.suffix}"
            placed(target / below, path.read_bytes())
    tags = {ids[id]: [classes[name] for name in names] for id, names in old[0].items()}
    placed(photographs / "tags.json", json.dumps(tags).encode())
    placed(photographs / "classes.txt", "\n".join(classes.values()).encode())
    for name, chosen in (("train.txt", [*ids.values()][:-1]), ("val.txt", [*ids.values()][-1:])):
        placed(photographs / name, "\n".join(chosen).encode())
    arrays = read_arrays(folder / "round1/subcategories.npz")
    write_arrays(
        folder / "round1/subcategories.npz", {**arrays, "ids": np.array([ids[str(id)] for id in arrays["ids"]])}
    )
    placed(folder / "data.json", json.dumps({"root": str(photographs), "classes": [*classes.values()]}).encode())
    state = {**read_json(folder / "run.json"), "status": text, "sccam": text, "started": text}
    placed(folder / "run.json", json.dumps({**state, "finished": {text: {"seconds": 1.0}}}).encode())
    scores = read_json(folder / "scores.json")
    for row in scores["rows"]:
        row["iou"] = {classes.get(name, name): value for name, value in row["iou"].items()}
        row["split"] = text
    scores["rows"][-1]["stage"] = text
    placed(folder / "scores.json", json.dumps(scores).encode())
    placed(folder / "metrics.jsonl", json.dumps({"stage": text.replace("/", "|"), "epoch": 0, "loss": 1.0}).encode())
    parity = {"passed": False, "runtime": text, "relative_error": 0.5, "agreement": 0.5, "speed_up": None,
              "failures": [text]}  # fmt: skip
    (folder / "export/segmenter.onnx.json").unlink()
    placed(folder / f"export/{text.replace('/', '∕')[:80]}.json", json.dumps({"parity": parity}).encode())
    figures = {"suite": text, "case": text, "row": text, "baseline": text, "ratio": 2.0, "wrong": False,
               "seconds": {"median": 1.0, "q1": 1.0, "q3": 1.0}, "max_error": None}  # fmt: skip
    write_json(at / "bench.json", {"facts": {"device": text}, "rows": [figures]})
    variants = {f"{text}{k}": {"settings": [f"cluster.k={k}"],
                               "rows": [{"stage": "maps", "column": "image_only", "mean": 10.0 * k}]}
                for k in (1, 2, 3)}  # fmt: skip
    write_json(at / "ablation.json", {"baseline": f"{text}1", "variants": variants})
    settings = toml.to_dict(load_config(str(folder / "config.toml"), []))
    settings["network"]["backbone"] = text
    placed(folder / "config.toml", toml.dump_toml(settings).encode())
    return ("report", folder, "--out", at / "page", "--bench", at / "bench.json", "--ablation", at / "ablation.json")


PLACES = 17  # where `renamed` puts the text


@pytest.mark.fault(39)
@pytest.mark.timeout(3600)
def test_markup_in_a_name_is_text_on_the_page_and_nothing_else(
    tally: Tally,
    full: bool,
    sccam: Cli,
    run: Path,
    photos: Path,
    one_process: None,
    tmp_path: Path,
) -> None:
    shapes = []
    for n, text in enumerate(("name", *(MARKUP if full else MARKUP[:5]))):
        at = tmp_path / f"{n}"
        at.mkdir()
        words = renamed(run, photos, at, text)
        tally.injected += PLACES
        code, told = ended(sccam, tally, *words)
        assert code == 0, told
        page = Shape((at / "page/index.html").read_text(encoding="utf-8"))
        shapes.append(page)
        assert sum(tag == "article" for tag, _ in page.elements) == 5 and ("section", ("id",)) in page.elements
        assert page.elements == shapes[0].elements, f"{text!r} changes the page"
        assert page.own == shapes[0].own, f"{text!r} is in a script or style"
        for tag, name, value in page.referred:
            if name == "src":
                assert re.fullmatch(r"(tiles|members)/[\w-]+\.jpg", value) and (at / "page" / value).is_file()
            elif name == "href":
                assert value == "data:," if tag == "link" else re.fullmatch(r"#\w+", value)
            else:
                assert name == "style" and re.fullmatch(r"--v:[\d.]+|background:(#\w+|rgb\([\d, ]+\))", value)
        assert not any(name.startswith("on") for _, names in page.elements for name in names)
        assert page.text.count(text) >= 5, f"{text!r} is not on the page as it is"
        assert {path.name for path in at.iterdir()} >= {"page", "photos"} and not (at / "boom").exists()
        tally.survived += PLACES


# Archives


def bomb(size: int = 1 << 29) -> bytes:
    """A megabyte of array that becomes many."""
    file, block = io.BytesIO(), bytes(1 << 20)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as opened:
        with opened.open("features.npy", "w", force_zip64=True) as member:
            member.write(header.getvalue())
            for _ in range(size >> 20):
                member.write(block)
        for name in NAMES[1:]:
            opened.writestr(f"{name}.npy", _numbers()["present.npy"])
    return file.getvalue()


def boastful() -> bytes:
    """An array that claims to be larger than any memory."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)})
    return archive(**{f"{name}.npy": header.getvalue() + bytes(64) for name in NAMES})


def linking(suffix: str, target: str) -> bytes:
    """An archive whose first member is a link, and whose second is written through it."""
    file = io.BytesIO()
    if suffix == "zip":
        with zipfile.ZipFile(file, "w") as opened:
            member = zipfile.ZipInfo("images")
            member.external_attr = 0o120777 << 16
            opened.writestr(member, target)
            opened.writestr("images/evil", b"")
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz" if suffix == "gz" else "w") as opened:
        link = tarfile.TarInfo("images")
        link.type, link.linkname = tarfile.SYMTYPE, target
        opened.addfile(link)
        opened.addfile(tarfile.TarInfo("images/evil"), io.BytesIO())
    return file.getvalue()


def archives(outside: Path) -> dict[str, bytes]:
    """Archives that write where they should not, or grow."""
    return {
        "steps up": archive(**{"../evil": b"x", "images/../../evil": b"x", "images/a.png": b"\x89PNG"}),
        "absolute": archive(**{f"{outside}/evil": b"x"}),
        "backslashes": archive(**{"..\\..\\evil": b"x", "C:\\evil": b"x"}),
        "link": linking("zip", str(outside)),
        "link of a tar": linking("tar", str(outside)),
        "link of a packed tar": linking("gz", ".."),
        "steps of an array": archive(**{"../evil.npy": _numbers()["size.npy"], **_numbers()}),
        "bomb": bomb(),
        "boastful": boastful(),
        "cut off": archive(a=bytes(1000))[:-30],
        "nothing": archive(),
        "seven": b"7z\xbc\xaf\x27\x1c" + bytes(64),
    }  # fmt: skip


def of_archives() -> dict[str, Entry]:
    """Every command that takes a folder or a file, given an archive."""
    given = "FILE"
    found = {
        "train": alone("a.zip", "train", given, "-c", "demo", "--out", "OUT"),
        "data check": alone("a.tar.gz", "data", "check", given, "--workers", "1"),
        "data split": alone("a.zip", "data", "split", given),
        "infer SOURCE": alone("a.zip", "infer", "MODEL", given, "-o", "OUT"),
        "infer MODEL": alone("a.zip", "infer", given, "PICTURES", "-o", "OUT"),
        "infer a run": alone("a.zip", "infer", given, "PICTURES", "-o", "OUT", *PSEUDO),
        "export": alone("a.zip", "export", given),
        "report": alone("a.zip", "report", given, "--out", "OUT"),
        "report --data": alone("a.zip", "report", "RUN", "--out", "OUT", "--data", given),
        "inspect a.zip": alone("a.zip", "inspect", given),
        "eval": alone("a.zip", "eval", given, "MASKS"),
        "ablate": alone("a.zip", "ablate", given, "--out", "OUT"),
        "recipe": alone("a.zip", "train", "DATA", "-c", given, "--out", "OUT"),
        "--tags": alone("a.zip", "infer", "RUN", "PICTURES", "-o", "OUT", *PSEUDO, "--tags", given),
        "data import --images": alone("a.zip", "data", "import", "DATA", "OUT", "--from", "folder", "--images", given),
    }
    for format in ("", "coco", "labelstudio", "voc", "csv", "folder"):
        choice = ("--from", format) if format else ()
        found[f"data import {format}"] = alone("a.zip", "data", "import", given, "OUT", "--images", "IMAGES", *choice)
    for format in ("", "coco", "labelstudio", "voc", "yolo", "masks"):
        choice = ("--from", format) if format else ()
        found[f"labels convert {format}"] = alone("a.zip", "labels", "convert", given, "OUT", "--to", "yolo", *choice)
    for name in ("a.npz", "a.pth", "a.safetensors", "a.params", "a.zip"):
        found[f"weights import {name}"] = alone(
            name, "weights", "import", given, "WRITTEN", "--backbone", "test_resnet"
        )
    names = ("round1/features.npz", "round1/subcategories.npz", "round1/activation_maps/*.npz", "walked_maps/*.npz")
    return found | {name: in_run("reported", name, "report", "RUN", "--out", "OUT") for name in names}


@pytest.mark.fault(40)
@pytest.mark.timeout(3600)
def test_an_archive_is_refused_where_a_folder_or_a_file_belongs_and_nothing_of_it_is_unpacked(
    tally: Tally, full: bool, sccam: Cli, made: Path, run: Path, sample: Path, begun: Path, one_process: None,
    tmp_path: Path,
) -> None:  # fmt: skip
    found = archives(tmp_path / "outside")
    (tmp_path / "outside").mkdir()
    before = peak_memory()
    for n, (entry, build) in enumerate(of_archives().items()):
        for k, (name, data) in enumerate(found.items()):
            if (k - 5 * n) % (1 if full else len(found)):
                continue
            at = Places(made, run, sample, begun, tmp_path / "at")
            at.empty.mkdir()
            words = build(at, data)
            there = {path for path in tmp_path.rglob("*")}
            tally.injected += 1
            code, told = ended(sccam, tally, *words)
            new = {path for path in tmp_path.rglob("*")} - there
            if entry == "infer SOURCE":  # a file with a name of its own is an image that cannot be read
                (line,) = (at.empty / "out/errors.jsonl").read_text().splitlines()
                code, told = {5: 3}.get(code, code), f"error: {line}"
            assert code in REFUSED and ("error: " in told or "FAULT " in told), f"{name}, {entry}: {code} {told}"
            assert at.given in told, f"{name}, {entry}: {told}"
            assert all(at.empty / "out" in (path, *path.parents) for path in new), f"{name}, {entry}: {new}"
            assert not any("evil" in path.name for path in new) and not any((tmp_path / "outside").iterdir())
            tally.survived += 1
            shutil.rmtree(at.empty)
    assert peak_memory() - before < 300, "something was unpacked"


def peak_memory() -> float:
    """[MB] that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


ENTITIES = (
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file://SECRET">]>',
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "file://SECRET"> %p;]>',
    '<!DOCTYPE a SYSTEM "file://SECRET">',
    '<!DOCTYPE a PUBLIC "-//x" "http://127.0.0.1:9/x.dtd">',
    "<!DOCTYPE a [" + "".join(f'<!ENTITY x{n} "{f"&x{n - 1};" * 10}">' for n in range(1, 20)) + '<!ENTITY x0 "ha">'
    '<!ENTITY x "&x19;">]>',
    '<!DOCTYPE a [<!ENTITY x "' + "A" * 100_000 + '">]>',
)


@pytest.mark.fault(40)
def test_an_annotation_with_entities_is_refused_and_reads_nothing(
    tally: Tally, full: bool, sccam: Cli, sample: Path, tmp_path: Path
) -> None:
    secret = placed(tmp_path / "secret", b"the secret")
    images = sorted((sample / "images").iterdir())
    body = "<annotation><object><name>{}</name></object></annotation>"
    for n, entity in enumerate(ENTITIES):
        for encoding in ("utf-8", "utf-16", "utf-32") if full else ("utf-8", "utf-16"):
            tree = tmp_path / f"{n}{encoding}"
            for image in images:
                placed(tree / "JPEGImages" / image.name, image.read_bytes())
                placed(tree / f"Annotations/{image.stem}.xml", body.format("square").encode())
            text = entity.replace("SECRET", str(secret)) + body.format("&x;" * 50)
            placed(tree / f"Annotations/{images[0].stem}.xml", text.encode(encoding))
            placed(tree / "ImageSets/Segmentation/train_aug.txt", "\n".join(i.stem for i in images).encode())
            placed(tree / "ImageSets/Segmentation/val.txt", images[1].stem.encode())
            for words in (
                ("data", "import", tree, tree / "out", "--from", "voc"),
                ("data", "check", tree, "--workers", "1"),
                ("train", tree, "-c", "demo", "--out", tree / "run"),
            ):
                tally.injected += 1
                code, told = ended(sccam, tally, *words)
                assert code in (3, 5) and images[0].stem in told, f"{entity[:60]}, {words[0]}: {code} {told}"
                assert "the secret" not in told and "haha" not in told and len(told) < 20_000
                made = (tree / "out").rglob("*.json")
                assert not any("the secret" in path.read_text(encoding="utf-8") for path in made)
                tally.survived += 1
