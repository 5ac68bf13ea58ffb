"""Commands about this computer: who works on it, and what it has."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from napari_jrss.cli.options import AsJson


def author(
    name: Annotated[
        str | None, typer.Argument(help='The name to record from now on; "" forgets it.')
    ] = None,
) -> None:
    """Say once who labels and decides on this computer, or show who that is."""
    from napari_jrss.app.author import author as known
    from napari_jrss.app.author import remember_author

    if name is None:
        typer.echo(known())
    else:
        typer.echo(f"kept in {remember_author(name)}")


def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, memory, and what is missing."""
    from napari_jrss.cli.render import doctor_report
    from napari_jrss.doctor import examine

    report = examine()
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
    else:
        doctor_report(report)
    if report.problems:
        raise typer.Exit(1)
