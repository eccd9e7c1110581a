"""The Typer applications that the commands hang on, and what all commands share."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    help="From images with tags to a pixel-level segmenter (SC-CAM).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make and look at image folders.", no_args_is_help=True)
labels_app = typer.Typer(help="Masks in the formats of other tools.", no_args_is_help=True)
weights_app = typer.Typer(help="Weight files of other programs.", no_args_is_help=True)

FAILED_INPUTS = 5  # exit code: finished, but some inputs failed

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]
