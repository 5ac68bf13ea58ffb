"""The command line ``napari-jrss``: each command is one call that a script can make too.

Heavy imports happen inside the commands, so that ``--help`` is instant.
"""

import sys
from typing import Annotated

import typer
from typer import Option

from napari_jrss import __version__
from napari_jrss.cli import cohort, computer, experiments, labels, scans
from napari_jrss.cli import training as rounds
from napari_jrss.errors import EXPECTED, one_line
from napari_jrss.logs import log_to_stderr

app = typer.Typer(
    name="napari-jrss",
    help="Few-shot segmentation and registration of 3D medical images, without a window.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

COMMANDS = {
    "A project": (
        *(cohort.sample, cohort.init, cohort.plan, cohort.add, cohort.split, cohort.status),
        cohort.relink,
    ),
    "Rounds": (rounds.train, rounds.teacher, rounds.evaluate, rounds.forecast),
    "Labels": (
        labels.next_case,
        labels.draft,
        labels.history,
        labels.restore,
        labels.recover,
        labels.import_labels,
    ),
    "Scans": (scans.export, scans.segment, scans.register, scans.engines),
    "Experiments": (experiments.experiment, experiments.report),
    "This computer": (computer.author, computer.doctor, computer.worker),
}
for panel, commands in COMMANDS.items():
    for command in commands:
        name = {labels.next_case: "next", labels.import_labels: "import-labels"}.get(command)
        app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Run the command line: exit code 2 and one line for a user's mistake."""
    try:
        app(standalone_mode=True)
    except EXPECTED as error:
        typer.echo(f"error: {one_line(error)}", err=True)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _verbose(wanted: bool) -> None:
    if wanted:
        log_to_stderr()


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    verbose: Annotated[
        bool, Option("--verbose", "-v", callback=_verbose, help="Also log to the standard error.")
    ] = False,
) -> None:
    """Options of all commands."""
