"""Commands about the installation: doctor."""

from __future__ import annotations

from typing import Annotated

import typer

from sccam.cli.app import Verbose, app
from sccam.cli.printing import print_table
from sccam.errors import BackendUnavailable


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Says what works on this machine, what does not, and the command that mends it."""
    from sccam import doctor as module

    findings = module.examine(module.probe())
    if as_json:
        print(module.as_json(findings))
    else:
        print_table("", ["", "", "found", "to mend it"], [[f.name, f.state, f.found, f.fix] for f in findings])
    faults = [finding.name for finding in findings if finding.state == "fault"]
    if faults:
        raise typer.Exit(BackendUnavailable.exit_code)
    if not as_json:
        print("nothing here will fail; notes are about what is not needed for everything")
