# ruff: noqa: F811 (fixtures of other files are arguments here)
"""Nothing is downloaded, installed or sent: the whole chain in processes whose every way out is watched and closed.

Two watches, since either may be passed by: Python's audit events, which name what the interpreter does, and a library
that stands before the C library's connect and getaddrinfo, which sees compiled code, too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.conftest import Tally
from tests.runtime.test_folder import model  # noqa: F401  (a fixture: an ONNX file with its manifest)
from tests.test_run import OVERRIDES

ROOT = Path(__file__).resolve().parents[2]

WATCH = """
import json, os, sys

FAMILIES = {2: "IPv4", 10: "IPv6"}
LOADERS = ("pip", "pip3", "uv", "conda", "curl", "wget", "git-remote-https", "ssh", "apt", "apt-get", "npm")

def note(what):
    with open(os.environ["NETWORK_NOTES"], "a") as file:
        file.write(json.dumps({"what": what, "argv": sys.argv[:4]}) + "\\n")

def programs(arguments):
    words = [os.fsdecode(word) for word in arguments if isinstance(word, (str, bytes))]
    return {os.path.basename(word) for text in words for word in text.split()} | {
        after for before, after in zip(words, words[1:]) if before == "-m"}

SENDS = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"}
ASKS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request", "http.client.connect",
        "ftplib.connect", "smtplib.connect"}
STARTS = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.system"}
WATCHED = SENDS | ASKS | STARTS

def hook(event, arguments):
    if event not in WATCHED:
        return
    if event in SENDS:
        family = int(arguments[0].family)
        if family in FAMILIES:
            note(f"{event} {FAMILIES[family]} {arguments[1]!r}")
            raise PermissionError(f"{event} is closed")
    elif event in ASKS:
        note(f"{event} {arguments[0]!r}")
        raise PermissionError(f"{event} is closed")
    else:
        words = [arguments[0]] + list(arguments[1] if len(arguments) > 1 and arguments[1] else [])
        if found := programs(words) & set(LOADERS):
            note(f"{event} {sorted(found)}")
            raise PermissionError(f"{event} of {found} is closed")

sys.addaudithook(hook)
"""

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *line) {
    const char *path = getenv("NETWORK_NOTES");
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0644) : -1;
    if (file >= 0) { if (write(file, line, strlen(line)) < 0) {} close(file); }
}
static int outside(const struct sockaddr *to) {
    return to && (to->sa_family == AF_INET || to->sa_family == AF_INET6);
}
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    static int (*real)(int, const struct sockaddr *, socklen_t);
    if (outside(to)) { note("{\"what\": \"connect in compiled code\"}\n"); errno = ENETUNREACH; return -1; }
    if (!real) real = dlsym(RTLD_NEXT, "connect");
    return real(fd, to, size);
}
ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *to, socklen_t size) {
    static ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
    if (outside(to)) { note("{\"what\": \"sendto in compiled code\"}\n"); errno = ENETUNREACH; return -1; }
    if (!real) real = dlsym(RTLD_NEXT, "sendto");
    return real(fd, data, length, flags, to, size);
}
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    (void)name; (void)service; (void)hints; (void)found;
    note("{\"what\": \"getaddrinfo in compiled code\"}\n");
    return EAI_FAIL;
}
"""


@dataclass(frozen=True)
class Closed:
    """Where notes of attempts are, and the environment in which they are made."""

    notes: Path
    environment: dict[str, str]

    def run(self, *words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Python with these arguments, watched."""
        return subprocess.run(
            [sys.executable, *map(str, words)], cwd=cwd, env=self.environment, capture_output=True, text=True,
            timeout=1200, check=False,
        )  # fmt: skip

    def noted(self) -> list[str]:
        """What was tried so far."""
        text = self.notes.read_text() if self.notes.exists() else ""
        return [json.loads(line)["what"] for line in text.splitlines()]


@pytest.fixture
def closed(tmp_path: Path) -> Closed:
    """An environment without a way out, with an empty home."""
    watch, notes = tmp_path / "watch", tmp_path / "notes"
    for folder in (watch, tmp_path / "home"):
        folder.mkdir()
    (watch / "sitecustomize.py").write_text(WATCH)
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment = {
        **kept, "PYTHONPATH": f"{watch}{os.pathsep}{ROOT}", "NETWORK_NOTES": str(notes), "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home/cache"),
    }  # fmt: skip
    for name in ("HF_HOME", "TORCH_HOME", "HF_HUB_OFFLINE", "PIP_NO_INDEX", "ORT_DISABLE_TELEMETRY"):
        environment.pop(name, None)
    if shutil.which("gcc"):
        (watch / "shim.c").write_text(SHIM)
        library = watch / "shim.so"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, watch / "shim.c", "-ldl"], check=True)
        environment["LD_PRELOAD"] = str(library)
    return Closed(notes, environment)


ATTEMPTS = (
    "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
    "import socket; socket.socket(socket.AF_INET6).connect(('::1', 9))",
    "import socket; socket.getaddrinfo('example.org', 80)",
    "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'', ('127.0.0.1', 9))",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9')",
    "import timm; timm.create_model('resnet18', pretrained=True)",
    "import torch; torch.hub.load_state_dict_from_url('http://127.0.0.1:9/a.pth')",
    "import subprocess, sys; subprocess.run([sys.executable, '-m', 'pip', 'download', 'sccam'])",
    "import os; os.system('curl -s http://127.0.0.1:9')",
    "import subprocess; subprocess.run('wget -q http://127.0.0.1:9', shell=True)",
)
COMPILED = """
import ctypes, socket, struct
libc = ctypes.CDLL(None)
address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(9), socket.inet_aton("127.0.0.1"))
libc.connect(libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0), address, len(address))
"""


@pytest.mark.promise("quiet")
def test_the_watch_sees_every_way_out(tally: Tally, full: bool, closed: Closed, tmp_path: Path) -> None:
    attempts = [*(ATTEMPTS if full else (ATTEMPTS[0], *ATTEMPTS[2:5], *ATTEMPTS[7:]))]
    if "LD_PRELOAD" in closed.environment:
        attempts.append(COMPILED)
    for attempt in attempts:
        tally.injected += 1
        before = len(closed.noted())
        closed.run("-c", attempt, cwd=tmp_path)
        assert len(closed.noted()) > before, f"{attempt} is not seen"
        tally.survived += 1
    fine = "import socket; a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'; print('fine')"
    before = len(closed.noted())
    assert closed.run("-c", fine, cwd=tmp_path).stdout == "fine\n" and len(closed.noted()) == before


def chain(full: bool) -> list[list[object]]:
    """Commands of a user, in their order; few of them on the smallest network there is, or most that there are."""
    small = ["network.backbone=test_resnet", "network.weights=none"]
    sets = [word for text in (*OVERRIDES, *([] if full else small)) for word in ("--set", text)]
    commands: list[list[object]] = [
        ["data", "sample", "photos", "--images", "15"],
        ["train", "photos", "-c", "photos", "--out", "run", *sets],
        ["export", "run", "--network", "segmenter", "--precision", "fp32"],
        ["infer", "run", "photos/images", "-o", "out", "--save", "mask", "--save", "coco"],
        ["report", "run"],
        ["doctor"],
    ]
    if not full:
        return commands
    return [
        *commands,
        ["train", "photos", "-c", "photos", "--out", "again", *sets, "--set", "run.until=maps", "--tensorboard"],
        ["data", "check", "photos"],
        ["data", "split", "photos", "--overwrite"],
        ["export", "run", "--network", "segmenter", "--precision", "fp16", "--triton", "models"],
        ["infer", "run", "photos/images", "-o", "labels", "--task", "pseudo-label", "--tags", "photos/tags.csv"],
        ["infer", "run", "photos/images", "-o", "torch", "--backend", "torch", "--flip", "--crf", "psa"],
        ["labels", "convert", "out", "labels.json", "--to", "labelstudio", "--images", "photos/images"],
        ["data", "import", "out/coco.json", "imported", "--images", "photos/images", "--masks"],
        ["weights", "import", "trunk.pth", "trunk.safetensors", "--backbone", "test_resnet"],
        ["eval", "run/pseudo_labels", "photos/masks"],
        ["inspect", "run/export/segmenter.onnx"],
        ["bench", "--quick", "merge"],
        ["--help"],
        ["version"],
    ]


TRUNK = """
import torch
from sccam.nets.backbones import build_backbone
torch.save(build_backbone("test_resnet", output_stride=32, weights="none").net.state_dict(), "trunk.pth")
"""


SESSION = """
import numpy, onnxruntime, sys, time
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {"image": numpy.zeros((1, 8, 8, 3), numpy.uint8)})
time.sleep(float(sys.argv[2]))
"""


def kept(place: Path) -> list[str]:
    """Files in the home of the watched processes."""
    return [str(path) for path in (place / "home").rglob("*") if path.is_file()]


@pytest.mark.promise("quiet")
def test_onnx_runtime_keeps_nothing_that_it_would_send_to_its_makers(
    tally: Tally, full: bool, closed: Closed, model: Path, tmp_path: Path
) -> None:
    seconds = 15 if full else 0  # after some it begins to send
    closed.run("-c", SESSION, model, seconds, cwd=tmp_path)
    if kept(tmp_path):  # not every build does
        shutil.rmtree(tmp_path / "home")
        assert not full or closed.noted()
    closed.notes.unlink(missing_ok=True)
    for script in ("import sccam\n" + SESSION, "import sccam.runtime.network_onnxruntime\n" + SESSION):
        tally.injected += 1
        closed.run("-c", script, model, seconds, cwd=tmp_path)
        assert kept(tmp_path) == [] and closed.noted() == []
        tally.survived += 1


@pytest.mark.promise("quiet")
@pytest.mark.timeout(3600)
def test_the_whole_chain_asks_nobody_and_ends_well(tally: Tally, full: bool, closed: Closed, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    if full:
        closed.run("-c", TRUNK, cwd=here)
    for command in chain(full):
        tally.injected += 1
        done = closed.run("-m", "sccam.cli", *command, cwd=here)
        assert closed.noted() == [], f"{command}: {closed.noted()}"
        tally.crashed += done.returncode < 0 or "Traceback" in done.stderr
        assert done.returncode == 0, f"{command}: {done.returncode} {done.stdout[-500:]} {done.stderr[-1500:]}"
        tally.survived += 1
    assert kept(tmp_path) == [], "something was fetched, or is kept to be sent"
