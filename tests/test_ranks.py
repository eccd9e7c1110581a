"""Several processes do one run: with the weights of one process, and going on with another number of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sccam.artifacts import RunFolder, read_json, read_tensors
from sccam.data.sample import draw_sample
from sccam.errors import ConfigError
from sccam.nets.dropout import ChannelDropout, share_dropout
from sccam.ranks import Ranks, place
from sccam.stages.affinity import pair_counts, pair_loss
from sccam.stages.affinity_labels import neighbour_offsets
from sccam.stages.segment import labelled_cells, segmentation_loss
from sccam.training.sharing import stage_files
from tests.test_run import OVERRIDES

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = [
    *OVERRIDES, "network.backbone=test_resnet", "network.weights=none", "classify.batch=5", "classify.dropout=0.3",
    "classify.equivariance=0.5", "classify.epochs=[3]", "reactivate.epochs=1", "prototypes.k=2", "segment.balance=0.5",
    "segment.average=0.5", "segment.self_epochs=1", "segment.epochs=2", "segment.optimiser.name=sgd",
    "segment.optimiser.lr=1.0", "segment.optimiser.head_factor=0.01", "segment.optimiser.head_bias_factor=0.01",
]  # fmt: skip
"""The segmenter of so few steps calls everything background, and has next to no gradient when it learns from that:
Adam would make whole steps of the roundings in it. At these rates a step moves every tensor by more than 1e-5."""
STEPPING = """
import time
from sccam import fit
whole = fit._Step.__call__
fit.CHECKPOINT_SECONDS = 0.0

def slow(self, *arguments):
    time.sleep(0.2)
    return whole(self, *arguments)

fit._Step.__call__ = slow
"""
"""Hook: steps that take their time, each with a checkpoint."""


@dataclass
class Started:
    """Processes of one run."""

    processes: list[subprocess.Popen[str]]

    def ended(self) -> list[tuple[int, str]]:
        """Exit code and standard error of each."""
        told = [process.communicate(timeout=600)[1] for process in self.processes]
        return [(process.returncode, text) for process, text in zip(self.processes, told, strict=True)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "sample"
    draw_sample(folder, images=15, sizes=(49, 66))
    return folder


@pytest.fixture
def start(data: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a training in so many processes, as torchrun starts them."""
    running: list[subprocess.Popen[str]] = []

    def started(out: Path, count: int, *words: str, hook: str = "") -> Started:
        (tmp_path / "hooks").mkdir(exist_ok=True)
        (tmp_path / "hooks/sitecustomize.py").write_text(HOOKED.format(hook=hook) if hook else "")
        settings = [word for text in SETTINGS for word in ("--set", text)]
        command = [sys.executable, "-m", "sccam", "train", str(data), "-c", "photos", "--out", str(out)]
        command += [*settings, *words]
        port = free_port()
        for rank in range(count):
            place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
            environment = {
                **os.environ, **{name: str(value) for name, value in place.items()}, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tmp_path / 'hooks'}:{ROOT}",
            }  # fmt: skip
            running.append(
                subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            )
        return Started(running[-count:])

    yield started
    for process in running:
        process.kill()
        process.communicate()


HOOKED = """
import sys

class Finder:
    '''Runs the hook after sccam.run was imported: nothing of the program is imported before the command.'''

    def find_spec(self, name, path=None, target=None):
        if name == "sccam.run":
            sys.meta_path.remove(self)
            exec({hook!r}, {{}})

sys.meta_path.insert(0, Finder())
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("alone") / "run"
    settings = [word for text in SETTINGS for word in ("--set", text)]
    subprocess.run(
        [sys.executable, "-m", "sccam", "train", data, "-c", "photos", "--out", out, *settings], check=True, cwd=ROOT,
        capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert not RunFolder(out).foreign(), "all of it is a run's own"
    return out


NETWORKS = [
    *(f"round{r}/cam_net.safetensors" for r in range(4)), "affinity_net.safetensors", "segmenter.safetensors",
    "self_trained/segmenter.safetensors",
]  # fmt: skip
LABELS = {"affinity/labels": "affinity_labels", "pseudo_labels": "pseudo_labels", "segment/relabel": "self_labels"}
"""Stage -> folder of the labels that the next network learns from."""


def apart(one: Path, other: Path, again: Callable[[], Started]) -> dict[str, float]:
    """What differs between two runs by more than roundings, and how much: nothing of a network by more than 1e-5 (a
    step that is lost: 2e-3 or more), no more than one pixel in a thousand of the labels.

    A rounding is one of half precision once maps lie in their files, and may then decide a pixel that two labels suit
    alike. A network that learned from other labels says nothing about how it was trained, so the second run is then
    given the labels of the first, and goes on from there.

    Args:
        again: resumes the second run as it was trained.
    """
    found = {}
    for stage, folder in LABELS.items():
        share = moved(one / folder, other / folder)
        if share > 1e-3:
            found[folder] = share
        elif share:
            return_to(other, stage)
            shutil.copytree(one / folder, other / folder, dirs_exist_ok=True)
            for code, told in again().ended():
                assert code == 0, told
    for name in NETWORKS:
        first, second = read_tensors(one / name), read_tensors(other / name)
        assert first.keys() == second.keys()
        furthest = float(torch.stack([(first[key] - second[key]).abs().max().double() for key in first]).max())
        if not furthest <= 1e-5:  # NaN is apart, too
            found[name] = furthest
    return found


def return_to(path: Path, stage: str) -> None:
    """Takes back what a finished run did after `stage`."""
    run = RunFolder(path)
    finished = run.state()["finished"]
    kept = list(finished)[: list(finished).index(stage) + 1]
    for later in finished.keys() - set(kept) - {"segment/predict", "scores"}:
        for pattern in stage_files(later):
            for file in filter(Path.is_file, path.glob(pattern)):
                file.unlink()
    for folder in path.glob("predictions*"):
        shutil.rmtree(folder)
    records = [json.dumps(record) for record in lines(path / "metrics.jsonl") if record["stage"] in kept]
    (path / "metrics.jsonl").write_text("".join(f"{record}\n" for record in records))
    run.update(finished={name: finished[name] for name in kept})


def moved(one: Path, other: Path) -> float:
    """The share of pixels with another label."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    pairs = [[np.asarray(Image.open(folder / name)).ravel() for name in names] for folder in (one, other)]
    return float(np.mean(np.concatenate(pairs[0]) != np.concatenate(pairs[1])))


@pytest.mark.slow
@pytest.mark.parametrize(("count", "parts"), [(1, 3), (2, 1), (2, 2)])
def test_processes_and_parts_give_the_weights_of_one_process_that_sees_the_whole_batch(
    count, parts, start, alone, tmp_path
):
    out, settings = tmp_path / "run", ("--set", f"run.parts={parts}")
    for code, told in start(out, count, *settings).ended():
        assert code == 0 and "Warning" not in told, told
    assert not apart(alone, out, lambda: start(out, count, *settings, "--resume"))
    assert len(list(out.rglob("*.png"))) == len(list(alone.rglob("*.png")))
    assert not list(out.rglob("*.checkpoint.*"))
    losses = [record["loss"] for record in lines(out / "metrics.jsonl") if "loss" in record]
    expected = [record["loss"] for record in lines(alone / "metrics.jsonl") if "loss" in record]
    assert losses == pytest.approx(expected, rel=1e-4)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_stopped_run_goes_on_with_another_number_of_processes(before, after, start, alone, tmp_path):
    out = tmp_path / "run"
    started = start(out, before, hook=STEPPING)
    until(lambda: list(out.glob("*.checkpoint.safetensors")), started)
    started.processes[-1].send_signal(signal.SIGTERM)  # one of them hears it, all of them stop
    for code, told in started.ended():
        assert code == 128 + signal.SIGTERM and "what was finished is saved" in told, told
    assert read_json(out / "run.json")["status"] == "interrupted"
    for code, told in start(out, after, "--resume").ended():
        assert code == 0, told
    assert not apart(alone, out, lambda: start(out, after, "--resume"))


def until(condition: Callable[[], object], started: Started) -> None:
    ends = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < ends and all(process.poll() is None for process in started.processes)
        time.sleep(0.02)


# Parts of a batch


def test_dropout_of_parts_is_that_of_the_whole():
    dropout, x = ChannelDropout(0.4), torch.randn(7, 5, 3, 2).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(3)
    whole, found = dropout(x), []
    for first, end in ((0, 2), (2, 3), (3, 7)):
        torch.manual_seed(3)
        share_dropout(torch.nn.Sequential(dropout), (first, 7))
        found.append(dropout(x[first:end]))
    assert torch.equal(torch.cat(found), whole) and (whole == 0).any()
    share_dropout(dropout, None)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), whole) and torch.equal(dropout.eval()(x), x)


def test_the_losses_of_parts_add_up_to_that_of_the_whole(rng):
    labels = torch.from_numpy(rng.integers(0, 3, (5, 9, 8)))
    labels[1] = 255  # an image without a label, whose part has no pair of its own
    labels[2, :4] = 255
    features, offsets = torch.randn(5, 4, 9, 8), neighbour_offsets(3)
    logits = [torch.randn(5, 4, 9, 8), torch.randn(5, 4, 5, 4)]
    pairs, cells = pair_counts(labels, offsets), labelled_cells(labels, [(9, 8), (5, 4)])
    affinity, segmentation = torch.zeros(()), torch.zeros(())
    for part in (slice(0, 1), slice(1, 2), slice(2, 5)):
        affinity += pair_loss(features[part], labels[part], offsets, counts=pairs).total
        segmentation += segmentation_loss([scale[part] for scale in logits], labels[part], counts=cells)
    assert torch.allclose(affinity, pair_loss(features, labels, offsets).total, atol=1e-6)
    assert torch.allclose(segmentation, segmentation_loss(logits, labels), atol=1e-6)
    nothing = torch.full_like(labels, 255)
    assert segmentation_loss(logits, nothing, counts=torch.zeros(2)) == 0 and pair_counts(nothing, offsets).sum() == 0


def test_every_item_is_in_one_share_and_a_process_alone_has_them_all():
    items = list(range(11))
    assert Ranks().share(items) == items and Ranks().told(3) == 3 and Ranks().gathered("a") == ["a"]
    shares = [Ranks(rank, 4).share(items) for rank in range(4)]
    assert sorted(item for share in shares for item in share) == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert np.array_equal(Ranks().summed(torch.ones(2)), np.ones(2))


def test_variables_of_torchrun_that_are_no_numbers_are_refused(monkeypatch):
    monkeypatch.setenv("RANK", "one")
    with pytest.raises(ConfigError, match="RANK"):
        place()
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert place() == (0, 1, 0, 1)
