"""Arguments and options that several commands have."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Argument, Option

from napari_jrss.errors import JRSSError

if TYPE_CHECKING:
    from napari_jrss.pool import Workers

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
WorkersOption = Annotated[
    str | None,
    Option(
        "--workers",
        metavar="NUMBER|ADDRESS",
        help="Number of processes; or the scheduler of a cluster, such as tls://host:8786.",
        show_default="one per core",
    ),
]
SharedOption = Annotated[
    str | None,
    Option(
        "--workers",
        metavar="NUMBER|ADDRESS",
        help="Processes that share the work; or a cluster, such as tls://host:8786.",
        show_default="one item after the other",
    ),
]


def names_of(text: str | None) -> tuple[str, ...]:
    """Names that stand between commas."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


class UsageError(JRSSError):
    """Options that don't go together."""


@contextmanager
def workers_of(text: str | None, *folders: Path, gpu: bool = False) -> Iterator["Workers"]:
    """What --workers asks for; the workers of a cluster must see the folders.

    Raises
    ------
    UsageError
        It is neither a number nor an address.
    ClusterError
        The cluster can't be reached, or isn't fit.
    """
    if text is None:
        yield None
    elif text.isdecimal() and int(text) > 0:
        yield int(text)
    elif "://" in text:
        from napari_jrss.cluster import Cluster

        with Cluster(text, folders, gpu=gpu) as cluster:
            yield cluster
    else:
        raise UsageError(f"--workers {text}: a number from 1 on, or the address of a scheduler")
