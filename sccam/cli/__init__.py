"""The command line: reads arguments, calls one function, prints. No arithmetic, no heavy import at the top.

Importing a module of commands hangs them on the app, in the order of `sccam --help`.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import traceback

from sccam import __version__
from sccam.cli.app import app, data_app, labels_app, weights_app
from sccam.cli.terminal import say
from sccam.errors import Interrupted, ResourceError, SccamError
from sccam.stop import SIGNALLED

# isort: off
from sccam.cli import runs  # noqa: F401
from sccam.cli import models  # noqa: F401
from sccam.cli import data  # noqa: F401
from sccam.cli import tools  # noqa: F401
# isort: on


@app.command("version")
def version() -> None:
    """Prints the version."""
    say(__version__)


app.add_typer(data_app, name="data")
app.add_typer(labels_app, name="labels")
app.add_typer(weights_app, name="weights")


def main() -> None:
    """Runs the command line; every error becomes four lines and an exit code."""
    arguments = sys.argv[1:]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file name may have bytes that are no text, or no letter of it
            stream.reconfigure(errors="backslashreplace")
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        app()
    except SccamError as error:
        raise SystemExit(_told(error, verbose)) from None
    except OSError as error:  # a disk that no code of ours wrote to or read from by its name
        reason = error.strerror or str(error)
        fix = "free some space, or choose another place that may be read and written"
        raise SystemExit(_told(ResourceError(reason, where=error.filename, fix=fix), verbose)) from None
    except KeyboardInterrupt:  # before a command has begun, or after its end
        _hurry()
        raise SystemExit(SIGNALLED + signal.SIGINT) from None


def _told(error: SccamError, verbose: bool) -> int:
    """Prints the error; its exit code."""
    if isinstance(error, Interrupted):
        _hurry()
    if verbose:
        traceback.print_exc()
    say(_framed(error), file=sys.stderr)
    return error.exit_code


def _hurry() -> None:
    """It ends already, so one more Ctrl-C has nothing to say, but may hurry it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os._exit(SIGNALLED + number))


def _framed(error: SccamError) -> str:
    first, *rest = str(error).split("\n")
    rank, count = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")  # as torchrun sets them
    who = f"process {rank} of {count}: " if count != "1" else ""
    return "\n".join([f"{who}error: {first}  (exit {error.exit_code})", *rest])
