"""The command line: reads arguments, calls one function, prints. No arithmetic, no heavy import at the top.

Importing a module of commands hangs them on the app, in the order of `sccam --help`.
"""

from __future__ import annotations

import sys
import traceback

from sccam import __version__
from sccam.cli.app import app, data_app, labels_app, weights_app
from sccam.errors import SccamError

# isort: off
from sccam.cli import runs  # noqa: F401
from sccam.cli import models  # noqa: F401
from sccam.cli import data  # noqa: F401
from sccam.cli import tools  # noqa: F401
# isort: on


@app.command("version")
def version() -> None:
    """Prints the version."""
    print(__version__)


app.add_typer(data_app, name="data")
app.add_typer(labels_app, name="labels")
app.add_typer(weights_app, name="weights")


def main() -> None:
    """Runs the command line; every error becomes four lines and an exit code."""
    arguments = sys.argv[1:]
    verbose = "-v" in arguments or "--verbose" in arguments
    try:
        app()
    except SccamError as error:
        if verbose:
            traceback.print_exc()
        print(_framed(error), file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def _framed(error: SccamError) -> str:
    first, *rest = str(error).split("\n")
    return "\n".join([f"error: {first}  (exit {error.exit_code})", *rest])
