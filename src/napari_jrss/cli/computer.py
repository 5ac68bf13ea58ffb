"""Commands about this computer: whose name is recorded, and what is installed."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from typer import Argument

from napari_jrss.cli.options import AsJson


def author(
    name: Annotated[str | None, Argument(help='Name to record from now on; "" removes it.')] = None,
) -> None:
    """Set or show the name that is recorded with labels and decisions on this computer."""
    from napari_jrss.app.author import author as known
    from napari_jrss.app.author import remember_author

    if name is None:
        typer.echo(known())
    else:
        typer.echo(f"saved in {remember_author(name)}")


def doctor(as_json: AsJson = False) -> None:
    """Show versions, devices and memory, and what is missing."""
    from napari_jrss.cli.render import doctor_report
    from napari_jrss.doctor import examine

    report = examine()
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
    else:
        doctor_report(report)
    if report.problems:
        raise typer.Exit(1)
