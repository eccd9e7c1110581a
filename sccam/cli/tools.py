"""Commands about the installation and about weights: doctor, inspect, weights import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from sccam.cli.app import Verbose, app, weights_app
from sccam.cli.printing import print_table
from sccam.cli.terminal import say
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
        say(module.as_json(findings))
    else:
        print_table("", ["", "", "found", "to mend it"], [[f.name, f.state, f.found, f.fix] for f in findings])
    faults = [finding.name for finding in findings if finding.state == "fault"]
    if faults:
        raise typer.Exit(BackendUnavailable.exit_code)
    if not as_json:
        say("nothing here will fail; notes are about what is not needed for everything")


@app.command("inspect")
def inspect_(
    file: Annotated[Path, typer.Argument(help="A run, results, .safetensors, .onnx, .engine, .npz, or an image.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON and nothing else.")] = False,
    verbose: Verbose = False,
) -> None:
    """Says what FILE is; runs nothing of it."""
    from sccam.inspection import inspect

    facts = inspect(file)
    if as_json:
        say(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    width = max(map(len, facts))
    for name, text in facts.items():
        say(f"{name:<{width}}  {text}")


@weights_app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A .params, .pth, .pt or .safetensors file.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write, for network.weights.")],
    backbone: Annotated[str, typer.Option(help="resnet38d, resnet50, resnet101 or any timm CNN.")],
    verbose: Verbose = False,
) -> None:
    """Makes a weight file without pickle that fits a trunk; nothing in FILE is executed."""
    from sccam.nets.convert import import_weights

    done = import_weights(file, out, backbone)
    say(f"{done.path}: {done.tensors} tensors, {done.parameters / 1e6:.1f} million numbers, all of {backbone}'s")
    say(f"sha256 {done.sha256}")
    say(f'use it with --set network.backbone={backbone} --set "network.weights={done.path}"')
