"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from napari_jrss.errors import JRSSError

ProjectPath = Annotated[Path, typer.Argument(metavar="PROJECT", help="Project folder (.jrss).")]
Author = Annotated[
    str | None,
    typer.Option(help="Your name.", show_default="NAPARI_JRSS_USER, or as set by author"),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Refine = Annotated[
    bool,
    typer.Option("--refine", help="Improve each displacement field on its own pair of scans."),
]


class UsageError(JRSSError):
    """Options that don't go together."""
