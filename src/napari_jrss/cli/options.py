"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from napari_jrss.errors import JRSSError

ProjectPath = Annotated[Path, Argument(metavar="PROJECT", help="Project folder (.jrss).")]
Author = Annotated[
    str | None, Option(help="Your name.", show_default="NAPARI_JRSS_USER, or as set by author")
]
Device = Annotated[str, Option(help="auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
Engine = Annotated[
    str,
    Option(
        help="jrss (the project's network), or a name that 'napari-jrss engines' lists.",
        show_default="jrss if the project is trained, else refine",
    ),
]
Refine = Annotated[
    bool,
    Option(
        "--refine", help="Improve each displacement field of the network on its own pair of scans."
    ),
]
PlanLevel = Annotated[
    Literal["quick", "balanced", "fine"],
    Option(help="Pre-training and a round in at most 20 min, 2 h or 10 h on this computer."),
]
Budget = Annotated[str | None, Option(help="That time itself, such as 45min, 3h or night (10 h).")]


class UsageError(JRSSError):
    """Options that don't go together."""
