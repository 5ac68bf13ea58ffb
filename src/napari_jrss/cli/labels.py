"""Commands about labels: which case is next, their history, and earlier versions."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

import napari_jrss as jrss
from napari_jrss.cli.options import AsJson, Author, Device, ProjectPath, UsageError


def next_case(
    project: ProjectPath,
    propagate: Annotated[
        bool,
        Option(
            "--propagate",
            help="Also compare the teacher's label with the one propagated from labelled cases.",
        ),
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Suggest which case to label next, and say why."""
    from napari_jrss.app.next_case import suggest_now
    from napari_jrss.progress_bar import counted

    def watch(cases: Sequence[str]) -> Iterable[str]:
        return counted(cases, "propagating", len(cases))

    with jrss.Project.open(project, read_only=True) as opened:
        suggestion = suggest_now(opened, propagate=propagate, device=device, watch=watch)
    if as_json:
        typer.echo(json.dumps(None if suggestion is None else asdict(suggestion), indent=1))
    elif suggestion is None:
        typer.echo("every training case has a label")
    else:
        typer.echo(f"{suggestion.case_id}: {suggestion.reason}")


def draft(
    project: ProjectPath,
    cases: Annotated[
        list[str] | None, Argument(help="Case ids; every training case without a label by default.")
    ] = None,
    source: Annotated[
        Literal["totalsegmentator"], Option("--from", help="The program that draws.")
    ] = "totalsegmentator",
    task: Annotated[
        str, Option(help="Which of its models, such as total for CT or total_mr for MR.")
    ] = "total",
    fast: Annotated[bool, Option("--fast", help="Its model of 3 mm, which a CPU can do.")] = False,
    device: Annotated[str, Option(help="gpu, cpu or mps.", show_default="the program's own")] = "",
    names: Annotated[
        list[str] | None,
        Option(
            "--name",
            metavar="THEIRS=OURS",
            help="Which of the project's structures one of the program's is, if the names differ.",
        ),
    ] = None,
    executable: Annotated[
        str, Option(help="Path of the program.", show_default="the one on the search path")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Let TotalSegmentator draft labels, to be corrected and accepted in Review."""
    from napari_jrss.app.drafting import draft_by_totalsegmentator
    from napari_jrss.inference.totalsegmentator import TotalSegmentator

    pairs = [each.partition("=") for each in names or ()]
    if any(not ours for _, _, ours in pairs):
        raise UsageError("--name must be THEIRS=OURS, such as liver=Liver")
    program = TotalSegmentator(task, fast, device, executable)
    chosen = {theirs.strip(): ours.strip() for theirs, _, ours in pairs}
    with jrss.Project.open(project) as opened:
        results = draft_by_totalsegmentator(opened, cases or None, program, names=chosen)
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=1))
    else:
        for result in results:
            typer.echo(result.line())
    if any(result.problem for result in results):
        raise typer.Exit(1)


def history(
    project: ProjectPath,
    case: Annotated[str | None, Argument(help="Case id; all cases by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """List what was done to a project or to one of its cases, when and by whom."""
    from napari_jrss.app.status import history as story
    from napari_jrss.cli.render import history_table

    with jrss.Project.open(project, read_only=True) as opened:
        lines = story(opened, case)
    if as_json:
        typer.echo(json.dumps([line.model_dump() for line in lines], indent=1))
    else:
        history_table(lines)


def restore(
    project: ProjectPath,
    case: Annotated[str, Argument(help="Case id.")],
    version: Annotated[str, Argument(help="Label version to bring back, such as v0001.")],
    author: Author = None,
) -> None:
    """Make an earlier label version the current one, as a new version."""
    from napari_jrss.app.author import author as known

    name = known(author)
    with jrss.Project.open(project) as opened:
        made = opened.restore(case, version, name)
    typer.echo(f"{case}: {version} is the current label again, as {made}, by {name}")


def import_labels(
    project: ProjectPath,
    folder: Annotated[
        Path, typer.Argument(help="Folder of labels by case id, as export writes them.")
    ],
    author: Author = None,
    as_json: AsJson = False,
) -> None:
    """Make labels that were corrected elsewhere the current ones, as new versions."""
    from napari_jrss.app.author import author as known
    from napari_jrss.app.importing import import_labels as run

    name = known(author)
    with jrss.Project.open(project) as opened:
        results = run(opened, folder, name)
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], indent=1))
        return
    for result in results:
        made = result.problem or f"{result.version} is the current label, by {name}"
        typer.echo(f"{result.case_id}: {made}")


def recover(
    project: ProjectPath,
    case: Annotated[str, Argument(help="Case id.")],
    author: Author = None,
    discard: Annotated[bool, Option("--discard", help="Throw the corrections away.")] = False,
) -> None:
    """Keep corrections that were never accepted, as a new label version of the case."""
    from napari_jrss.app.author import author as known
    from napari_jrss.errors import ProjectError
    from napari_jrss.project import corrections

    with jrss.Project.open(project) as opened:
        found = corrections.recover(opened, case)
        if discard:
            corrections.discard(opened, case)
            typer.echo(f"{case}: {found.voxels_changed} corrected voxels were thrown away")
            return
        if not found.voxels_changed:
            accepted = len(found.info.accepted)
            raise ProjectError(
                f"case {case}: no voxel was corrected, and {accepted} structures were accepted one "
                "by one: open the case in napari to go on, or use --discard"
            )
        name = known(author)
        made = corrections.Corrections.resume(opened, found).accept(found.label, name)
    typer.echo(
        f"{case}: {found.voxels_changed} voxels that {found.info.author} corrected are now in "
        f"{made}"
    )
