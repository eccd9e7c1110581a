from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from sccam.artifacts import (
    RunFolder,
    append_json_line,
    read_arrays,
    read_json,
    read_tensors,
    read_weights_with_manifest,
    replacing,
    sha256,
    write_arrays,
    write_json,
    write_tensors,
    write_text,
    write_weights,
)
from sccam.errors import ResourceError, RunFolderError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_reader_sees_the_old_file_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_in_the_block_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_file_lies_in_the_same_folder_and_keeps_the_suffix(tmp_path: Path) -> None:
    with replacing(tmp_path / "a.npz") as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".npz")
        assert temporary.name.startswith(".")
        temporary.touch()


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_full_or_closed_disk_is_named_and_the_old_file_stays(tmp_path: Path, number: int) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(ResourceError) as caught, replacing(path):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in caught.value.what
    assert caught.value.where == str(path) and caught.value.fix
    assert path.read_text() == "old"


def test_other_errors_of_the_system_pass_through(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "a"):
        raise IsADirectoryError(errno.EISDIR, "a folder")


def test_text_is_written_as_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "Größe")
    assert (tmp_path / "a.txt").read_bytes() == "Größe".encode()


def test_json_comes_back_and_ends_with_a_newline(tmp_path: Path) -> None:
    value = {"name": "Größe", "scores": [0.5, None, True], "inner": {"n": 1}}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text(encoding="utf-8").endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_is_no_json_number_and_keeps_the_old_file(tmp_path: Path, value: float) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": value})
    assert read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("read", [read_json, read_arrays, read_tensors])
def test_a_missing_file_is_named(tmp_path: Path, read) -> None:
    with pytest.raises(RunFolderError, match="missing") as caught:
        read(tmp_path / "absent")
    assert caught.value.where == str(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
@pytest.mark.parametrize("read", [read_json, read_arrays, read_tensors])
def test_a_broken_file_is_named(tmp_path: Path, read, content: bytes) -> None:
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(RunFolderError) as caught:
        read(tmp_path / "broken")
    assert caught.value.where == str(tmp_path / "broken")


def test_arrays_come_back_with_their_names_types_and_values(tmp_path: Path, rng: np.random.Generator) -> None:
    arrays = {
        "scores": rng.random((2, 3, 4), dtype=np.float32),
        "classes": np.array([0, 5], np.int32),
        "present": np.zeros((0, 3), bool),
        "ids": np.array(["a", "Größe"]),
    }
    write_arrays(tmp_path / "a.npz", arrays)
    back = read_arrays(tmp_path / "a.npz")
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


@pytest.mark.parametrize("array", [np.array([{}], object), np.array([(1, None)], [("a", "i4"), ("b", "O")])])
def test_arrays_of_objects_are_not_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(TypeError, match="'bad'"):
        write_arrays(tmp_path / "a.npz", {"bad": array})
    assert names(tmp_path) == []


def test_pickled_arrays_are_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", bad=np.array([{}], object))
    with pytest.raises(RunFolderError, match="broken array file"):
        read_arrays(tmp_path / "a.npz")


def test_a_cut_array_file_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "a.npz"
    write_arrays(path, {"a": rng.random(1000)})
    whole = path.read_bytes()
    for length in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RunFolderError):
            read_arrays(path)


def test_tensors_come_back_with_their_names_types_and_values(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {
        "weight": torch.randn(3, 4).t().requires_grad_(),  # neither contiguous nor detached
        "half": torch.randn(5).to(torch.bfloat16),
        "count": torch.tensor(7),
    }
    write_tensors(tmp_path / "a.safetensors", tensors, {"made_by": "a test"})
    back = read_tensors(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_cut_weight_file_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunFolderError, match="broken weight file"):
        read_tensors(path)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_checksum_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_json_lines_are_appended_one_record_a_line(tmp_path: Path) -> None:
    records = [{"epoch": 0, "note": "two\nlines"}, {"epoch": 1, "note": "Größe"}]
    for record in records:
        append_json_line(tmp_path / "metrics.jsonl", record)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == records


def test_a_json_line_that_cannot_be_written_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    append_json_line(tmp_path / "a.jsonl", {"loss": 1.0})
    with pytest.raises(ValueError):
        append_json_line(tmp_path / "a.jsonl", {"loss": float("nan")})
    assert (tmp_path / "a.jsonl").read_text() == '{"loss": 1.0}\n'


FACTS = {
    "kind": "cam_net",
    "backbone": "resnet38d",
    "classes": ("cat", "dog"),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "stride": 8,
    "made_from": {"k": [10, 4]},
}


def test_weights_come_back_with_a_manifest_that_names_them(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "cam_net.safetensors"
    written = write_weights(path, {"a": torch.arange(3.0)}, **FACTS)
    tensors, manifest = read_weights_with_manifest(path)
    assert torch.equal(tensors["a"], torch.arange(3.0))
    assert manifest.sha256 == written.sha256 == sha256(path)
    assert manifest.made_by.startswith("sccam ")
    assert {name: plain(getattr(manifest, name)) for name in FACTS} == {name: plain(FACTS[name]) for name in FACTS}


def plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_weights_that_are_not_those_of_the_manifest_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "cam_net.safetensors"
    write_weights(path, {"a": torch.zeros(3)}, **FACTS)
    write_tensors(path, {"a": torch.ones(3)})
    with pytest.raises(RunFolderError, match="checksums differ"):
        read_weights_with_manifest(path)


@pytest.mark.parametrize("name", ["a.safetensors", "a.safetensors.json"])
def test_weights_without_their_manifest_are_missing_and_the_other_way_round(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    write_weights(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, **FACTS)
    (tmp_path / name).unlink()
    with pytest.raises(RunFolderError, match="missing"):
        read_weights_with_manifest(tmp_path / "a.safetensors")


def test_a_run_folder_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        RunFolder(tmp_path / "run"),
        pytest.raises(RunFolderError, match="another process"),
        RunFolder(tmp_path / "run"),
    ):
        pass
    with RunFolder(tmp_path / "run"):
        pass  # free again


def test_a_run_folder_lets_go_of_its_lock_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunFolder(tmp_path / "run"):
        raise KeyError
    with RunFolder(tmp_path / "run"):
        pass


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(ResourceError, match="cannot use the run folder"), RunFolder(tmp_path / "run"):
        pass


def test_a_new_run_has_no_state_and_keeps_what_it_is_given(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        assert run.state() == {}
        run.update(seed=1, device="cpu")
        run.update(seed=2)
    assert RunFolder(tmp_path / "run").state() == {"seed": 2, "device": "cpu"}


def test_finished_stages_are_remembered_with_their_facts(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.finish("round0", seconds=1.5)
        run.finish("affinity")
    again = RunFolder(tmp_path / "run")
    assert [again.finished(stage) for stage in ("round0", "affinity", "segment")] == [True, True, False]
    assert again.state()["finished"]["round0"] == {"seconds": 1.5}


def test_a_run_logs_one_record_a_line(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.log({"epoch": 0})
        run.log({"epoch": 1})
        assert (run / "metrics.jsonl").read_text() == '{"epoch": 0}\n{"epoch": 1}\n'
