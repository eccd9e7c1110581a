"""Commands of sccam in processes of their own, many of them quickly, to be killed, stopped and starved.

One process imports the libraries once and forks for each command, so a command begins at once; where that could matter,
as for memory, it is started as `python -m sccam`. Every command is a process group, so that none is left behind.

A `hook` is Python text that a command's process runs before the command: it makes a disk slow or a moment hold still.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # [s] that nothing takes, on however slow a machine


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What the condition gives once it is true; AssertionError after so long."""
    ends = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < ends, f"waited {seconds:.0f} s in vain"
        time.sleep(0.002)
    return found


class Program:
    """A command that runs, or has run; its output, its process and its end lie as files in a folder."""

    def __init__(self, place: Path):
        self.place, self.sent = place, 0  # the last signal that was sent to it
        self.pid = int(until(lambda: self._read("pid")))

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not (self.place / "end").exists()

    def send(self, number: int) -> bool:
        """Sends a signal; whether there was a living process to receive it."""
        if not self.running():
            return False
        self.sent = number
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def kill(self) -> bool:
        """SIGKILL and the end; whether it was this that ended it."""
        self.send(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""
        return int(json.loads(until(lambda: self._read("end")))["code"])

    @property
    def told(self) -> str:
        """What it has written to both streams."""
        return (self.place / "told").read_text(encoding="utf-8", errors="replace")

    @property
    def seconds(self) -> float:
        """How long it ran."""
        self.wait()
        return float(json.loads(self._read("end"))["seconds"])

    @property
    def crashed(self) -> bool:
        """Whether it ended by a signal that nobody sent, or with a traceback."""
        code = self.wait()
        return "Traceback" in self.told or (code < 0 and -code != self.sent)

    def _read(self, name: str) -> str:
        path = self.place / name
        return path.read_text() if path.exists() else ""


class Programs:
    """Starts commands; a context manager, which ends what is left of them."""

    def __init__(self, place: Path):
        self.place, self.count = place, itertools.count()
        self.started: list[Program] = []

    def __enter__(self) -> Programs:
        command = [sys.executable, "-m", "tests.faults.processes"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.parent = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self.parent.stdin is not None
        self.parent.stdin.close()
        self.parent.wait()
        for program in self.started:
            with contextlib.suppress(ProcessLookupError):  # workers of one that was killed may be left
                os.killpg(program.pid, signal.SIGKILL)

    def start(
        self,
        *arguments: object,
        hook: str = "",
        fresh: bool = False,
        before: list[str] | None = None,
        largest_file: int | None = None,
    ) -> Program:
        """Starts `sccam ARGUMENTS`.

        Args:
            hook: Python text that runs before the command.
            fresh: as `python -m sccam` instead of a fork.
            before: a command whose arguments the fresh command is, such as unshare.
            largest_file: [bytes] that a file may have (RLIMIT_FSIZE).
        """
        place = self.place / f"{next(self.count)}"
        place.mkdir(parents=True)
        asked = {
            "place": str(place), "arguments": [str(argument) for argument in arguments], "hook": hook, "fresh": fresh,
            "before": before or [], "largest_file": largest_file,
        }  # fmt: skip
        assert self.parent.stdin is not None and self.parent.poll() is None
        self.parent.stdin.write(json.dumps(asked) + "\n")
        self.parent.stdin.flush()
        program = Program(place)
        self.started.append(program)
        return program

    def run(self, *arguments: object, **options: Any) -> Program:
        """A command that has ended."""
        program = self.start(*arguments, **options)
        program.wait()
        return program


# In the process that forks


def _serve() -> None:
    """A command for each line, until there are no more."""
    import sklearn.cluster  # noqa: F401
    import timm  # noqa: F401

    import sccam.export.run
    import sccam.report.page
    import sccam.run  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    for line in sys.stdin:
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return _keep(json.loads(line))
    os._exit(0)


def _keep(asked: dict[str, Any]) -> None:
    """Starts the command, waits for it, and writes down how it ended."""
    place = Path(asked["place"])
    pid = os.fork()
    if pid == 0:
        return _become(asked)
    started = time.monotonic()
    _written(place / "pid", str(pid))
    _, status = os.waitpid(pid, 0)
    code, seconds = os.waitstatus_to_exitcode(status), time.monotonic() - started
    _written(place / "end", json.dumps({"code": code, "seconds": seconds}))
    os._exit(0)


def _become(asked: dict[str, Any]) -> None:
    """Is the command from here on; ends as it ends."""
    os.setsid()
    told = os.open(Path(asked["place"]) / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, told, told)):
        os.dup2(file, number)
    if asked["largest_file"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["largest_file"],) * 2)
    if asked["fresh"]:
        hooks = Path(asked["place"]) / "hooks"
        hooks.mkdir()
        (hooks / "sitecustomize.py").write_text(asked["hook"])
        os.environ["PYTHONPATH"] = f"{hooks}{os.pathsep}{ROOT}"
        command = [*asked["before"], sys.executable, "-m", "sccam", *asked["arguments"]]
        os.execvp(command[0], command)
    sys.argv = ["sccam", *asked["arguments"]]
    code: Any = 1
    try:
        exec(compile(asked["hook"], "hook", "exec"), {})
        from sccam.cli import main

        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an end does; to tear down torch takes
    sys.stdout.flush()  # longer than most commands here
    os._exit(code)


def _written(path: Path, text: str) -> None:
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    temporary.replace(path)


@contextlib.contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """Something mounted at a folder, which is unmounted in the end."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *options, str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


if __name__ == "__main__":
    _serve()
