"""Commands about this computer: whose name is recorded, and what is installed."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from typer import Argument, Option

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


def worker(
    address: Annotated[
        str, Argument(help="The scheduler's address, such as tls://host:8786 ('dask scheduler').")
    ],
    processes: Annotated[
        int | None,
        Option(min=1, help="Items at once, each in a process.", show_default="one per core"),
    ] = None,
    threads: Annotated[int, Option(min=1, help="CPU threads of each process.")] = 1,
    gpu: Annotated[
        bool, Option("--gpu/--no-gpu", help="Whether each process has a GPU to train on.")
    ] = False,
) -> None:
    """Work for a cluster until it is stopped: read scans, train folds and rounds.

    The computer must see projects and scans at the same paths as those who use the cluster.
    """
    import subprocess

    from napari_jrss.cluster import check_address, worker_command, worker_environment
    from napari_jrss.threads import available_cores

    check_address(address, "worker")
    command = worker_command(address, processes or max(1, available_cores() // threads), gpu)
    try:
        code = subprocess.call(command, env=worker_environment(threads))
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)
