"""Commands that train rounds, choose among them, and measure them."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel

from napari_jrss.cli.options import AsJson, Author, Device, ProjectPath, Refine
from napari_jrss.config import PresetName, TrainingConfig


def train(
    project: ProjectPath,
    rounds: Annotated[int, typer.Option(min=0, help="Joint rounds after the pre-training.")] = 3,
    preset: Annotated[
        PresetName, typer.Option(help=TrainingConfig.model_fields["preset"].description)
    ] = "fast",
    device: Device = "auto",
    devices: Annotated[int, typer.Option(min=1, help="GPUs or processes.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    tau: Annotated[float | None, typer.Option(min=0, max=1, help="Confidence threshold.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON of settings that replace the preset's.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    resume: Annotated[
        bool | None,
        typer.Option("--resume/--no-resume", help="Go on with, or leave, an interrupted series."),
    ] = None,
    pretrain: Annotated[
        bool,
        typer.Option("--pretrain", help="Pre-train from nothing though there is a teacher."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Pre-train where needed, then run joint rounds. Ctrl-C stops; --resume goes on."""
    from napari_jrss.app.settings import training_config
    from napari_jrss.cli.render import training_progress
    from napari_jrss.project.project import Project

    settings = training_config(preset, config, seed=seed, tau=tau)
    # With several devices, Fabric runs this same command once more for each further one.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with Project.open(project, read_only=not first) as opened, _cancel_on_interrupt() as cancel:
        import torch

        from napari_jrss.app.rounds.train import series_in_words
        from napari_jrss.app.rounds.train import train as run

        if threads is not None:
            torch.set_num_threads(threads)
        events = run(
            opened,
            settings,
            rounds,
            cancel,
            device=device,
            devices=devices,
            resume=resume,
            pretrain=pretrain,
        )
        if resume and first:
            typer.echo(series_in_words(opened), err=True)
        if first:
            events = _print_lines(events) if as_json else training_progress(events)
        for _ in events:
            pass
    if cancel.is_set() and first:
        typer.echo(f"stopped; napari-jrss train {project} --resume goes on", err=True)
        raise typer.Exit(130)


def _print_lines(events: Iterator[Any]) -> Iterator[Any]:
    """Each event as a line of JSON on the standard output."""
    for event in events:
        assert isinstance(event, BaseModel)
        print(event.model_dump_json(), flush=True)
        yield event


@contextmanager
def _cancel_on_interrupt() -> Iterator[threading.Event]:
    """The first Ctrl-C or SIGTERM asks the work to stop; a second Ctrl-C stops it hard."""
    cancel = threading.Event()

    def ask(number: int, frame: object) -> None:
        cancel.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield cancel
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def teacher(
    project: ProjectPath,
    number: Annotated[int, typer.Argument(metavar="ROUND", help="A finished round.")],
    author: Author = None,
) -> None:
    """Put an earlier round's networks in force again; the next round goes on from them."""
    from napari_jrss.app.author import author as known
    from napari_jrss.project.project import Project

    name = known(author)
    with Project.open(project) as opened:
        opened.promote(number, name, "chosen by command")
    typer.echo(f"the teacher of round {number} is in force, chosen by {name}")


def evaluate(
    project: ProjectPath,
    pairs: Annotated[
        Literal["two-fixed", "all"],
        typer.Option(help="Test pairs: two fixed cases with all others moving, or all pairs."),
    ] = "two-fixed",
    rounds: Annotated[
        list[int] | None, typer.Option("--round", help="Only this round (repeatable).")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the two fixed cases.")] = 0,
    refine: Refine = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Figures of every round on the test cases."""
    from napari_jrss.app.evaluation import RoundEvaluated
    from napari_jrss.app.evaluation import evaluate as run
    from napari_jrss.cli.render import evaluation_progress, evaluation_table
    from napari_jrss.project.project import Project

    with Project.open(project) as opened:
        events = run(opened, rounds=rounds, pairs=pairs, seed=seed, refined=refine, device=device)
        shown = events if as_json else evaluation_progress(events)
        summaries = [event for event in shown if isinstance(event, RoundEvaluated)]
    if as_json:
        typer.echo(json.dumps({"rounds": [s.model_dump(mode="json") for s in summaries]}, indent=1))
    else:
        evaluation_table(summaries)
