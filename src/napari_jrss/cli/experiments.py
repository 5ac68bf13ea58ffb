"""The commands ``napari-jrss experiment`` and ``napari-jrss report``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from napari_jrss.cli.options import workers_of

if TYPE_CHECKING:
    from napari_jrss.experiments.run import RunEnded


def experiment(
    protocol: Annotated[
        Path,
        Argument(
            metavar="PROTOCOL",
            help="YAML file; or smoke, synthetic, hippocampus, hippocampus_fast, ixi, lpba40, "
            "tcia, annotator_synthetic, annotator_hippocampus, annotator_ixi.",
        ),
    ],
    out: Annotated[Path | None, Option(help="Folder of the experiment.")] = None,
    data: Annotated[
        Path | None,
        Option(
            help="Folder that the paths of the protocol are relative to.", show_default="its own"
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        Option(help="Only this method or loop, or runs such as 'jrss-n5-*' (repeatable)."),
    ] = None,
    resume: Annotated[
        bool, Option("--resume", help="Go on with the experiment in the folder.")
    ] = False,
    workers: Annotated[
        str | None,
        Option(
            metavar="NUMBER|ADDRESS",
            help="Processes; or a cluster, such as tls://host:8786.",
            show_default="one per GPU, or core",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        Option(
            min=1, help="CPU threads of each process.", show_default="cores divided by processes"
        ),
    ] = None,
    device: Annotated[str, Option(help="auto, cpu or cuda.")] = "auto",
    list_runs: Annotated[bool, Option("--list", help="Only list the runs.")] = False,
) -> None:
    """Run the methods of a protocol for each N and seed; finished runs are skipped.

    A protocol with an annotator runs its loops: how long a simulated person takes with each.
    """
    from napari_jrss.experiments.annotator.run import loop_runs, run_annotator
    from napari_jrss.experiments.protocol import ProtocolError, load_protocol, plan
    from napari_jrss.experiments.run import chosen_runs, run_experiment

    checked = load_protocol(protocol, data)
    if list_runs:
        chosen = only or ()
        runs = (
            chosen_runs(plan(checked), chosen)
            if checked.annotator is None
            else loop_runs(checked, chosen)
        )
        typer.echo("\n".join(run.id for run in runs))
        return
    if out is None:
        raise ProtocolError("give --out, the folder for the results")
    run_all = run_experiment if checked.annotator is None else run_annotator
    failed = 0
    with workers_of(workers, out.absolute().parent, gpu=device != "cpu") as pool:
        events: Iterator[RunEnded[Any]] = run_all(
            checked,
            out,
            only=only or (),
            resume=resume,
            workers=pool,
            threads=threads,
            device=device,
        )
        for count, ended in enumerate(events, start=1):
            state = "finished before" if ended.skipped else f"{ended.seconds / 60:.1f} min"
            if ended.problem:
                failed, state = failed + 1, ended.problem
            typer.echo(f"[{count}] {ended.run.id}: {state}")
    if failed:
        typer.echo(f"{failed} runs failed; use --resume to try them again", err=True)
        raise typer.Exit(1)
    typer.echo(f"done; napari-jrss report {out} writes the tables")


def report(
    folder: Annotated[Path, Argument(metavar="DIR", help="Folder of an experiment.")],
    labelled: Annotated[
        str | None,
        Option("--labelled", help="N of the main tables.", show_default="the N with most runs"),
    ] = None,
) -> None:
    """Write tables (Markdown, LaTeX), figures (PNG, SVG) and an HTML page of an experiment."""
    from napari_jrss.experiments.annotator.report import write_annotator_report
    from napari_jrss.experiments.report import protocol_of, write_report

    if protocol_of(folder).annotator is not None:
        typer.echo(f"{write_annotator_report(folder)}")
    else:
        typer.echo(f"{write_report(folder, labelled)}")
