"""Commands about a person's labels: which is next, what they were, whose they are."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from napari_jrss.cli.options import AsJson, Author, Device, ProjectPath


def next_case(
    project: ProjectPath,
    propagate: Annotated[
        bool,
        typer.Option("--propagate", help="Also hold propagated labels against the teacher's."),
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Which case to label next, and why."""
    from napari_jrss.app.next_case import suggest_now
    from napari_jrss.cli.render import counting
    from napari_jrss.project.project import Project

    def watch(cases: Sequence[str]) -> Iterable[str]:
        return cases if as_json else counting(cases, "propagating", len(cases))

    with Project.open(project, read_only=True) as opened:
        suggestion = suggest_now(opened, propagate=propagate, device=device, watch=watch)
    if as_json:
        typer.echo(json.dumps(None if suggestion is None else asdict(suggestion), indent=1))
    elif suggestion is None:
        typer.echo("every training case has a label")
    else:
        typer.echo(f"{suggestion.case_id}: {suggestion.reason}")


def history(
    project: ProjectPath,
    case: Annotated[str | None, typer.Argument(help="Only this case.")] = None,
    as_json: AsJson = False,
) -> None:
    """What happened to a project or to one of its cases, when, and who did it."""
    from napari_jrss.app.history import history as story
    from napari_jrss.cli.render import history_table
    from napari_jrss.project.project import Project

    with Project.open(project, read_only=True) as opened:
        lines = story(opened, case)
    if as_json:
        typer.echo(json.dumps([line.model_dump() for line in lines], indent=1))
    else:
        history_table(lines)


def restore(
    project: ProjectPath,
    case: Annotated[str, typer.Argument(help="Case id.")],
    version: Annotated[str, typer.Argument(help="Label version to bring back, such as v0001.")],
    author: Author = None,
) -> None:
    """Bring a label version back, as a new version; nothing is overwritten."""
    from napari_jrss.app.author import author as known
    from napari_jrss.project.project import Project

    name = known(author)
    with Project.open(project) as opened:
        made = opened.restore(case, version, name)
    typer.echo(f"{case}: {version} is back in force, as {made}, by {name}")


def recover(
    project: ProjectPath,
    case: Annotated[str, typer.Argument(help="Case id.")],
    author: Author = None,
    discard: Annotated[bool, typer.Option("--discard", help="Give the corrections up.")] = False,
) -> None:
    """Keep corrections that were never accepted, as a new label version."""
    from napari_jrss.app.author import author as known
    from napari_jrss.errors import ProjectError
    from napari_jrss.project import corrections
    from napari_jrss.project.project import Project

    with Project.open(project) as opened:
        found = corrections.recover(opened, case)
        if discard:
            corrections.discard(opened, case)
            typer.echo(f"{case}: {found.voxels_changed} corrected voxels given up")
            return
        if not found.voxels_changed:
            raise ProjectError(
                f"case {case}: nothing was corrected, only {len(found.info.accepted)} structures "
                "accepted one by one; open the case in the window to go on, or --discard them"
            )
        name = known(author)
        made = corrections.Corrections.resume(opened, found).accept(found.label, name)
    typer.echo(
        f"{case}: {found.voxels_changed} voxels that {found.info.author} corrected are {made} now"
    )
