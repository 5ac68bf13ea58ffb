"""Commands that train rounds, choose a teacher, and measure rounds."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

import napari_jrss as jrss
from napari_jrss.cli.options import (
    AsJson,
    Author,
    Device,
    ProjectPath,
    Refine,
    SharedOption,
    UsageError,
    workers_of,
)
from napari_jrss.config import PresetName, TrainingConfig

if TYPE_CHECKING:
    from napari_jrss.app.rounds.launch import RunOn


def train(
    project: ProjectPath,
    rounds: Annotated[int, Option(min=0, help="Joint rounds after the pre-training.")] = 3,
    preset: Annotated[
        PresetName, Option(help=TrainingConfig.model_fields["preset"].description)
    ] = "fast",
    device: Device = "auto",
    devices: Annotated[
        int,
        Option(min=1, help="Number of GPUs, or of processes on a CPU, that share each batch."),
    ] = 1,
    seed: Annotated[int, Option(min=0)] = 0,
    tau: Annotated[float | None, Option(min=0, max=1, help="Confidence threshold.")] = None,
    config: Annotated[
        Path | None, Option(help="JSON file with settings that replace those of the preset.")
    ] = None,
    threads: Annotated[int | None, Option(min=1, help="CPU threads.")] = None,
    resume: Annotated[
        bool | None,
        Option(
            "--resume/--no-resume",
            help="Go on with an interrupted series of rounds, or start a new one.",
        ),
    ] = None,
    pretrain: Annotated[
        bool, Option("--pretrain", help="Pre-train again though there is a teacher.")
    ] = False,
    anyway: Annotated[
        bool,
        Option("--anyway", help="Start also what doesn't fit, or would take more than a week."),
    ] = False,
    on: Annotated[
        str | None,
        Option(
            metavar="COMMAND",
            help="Train on another computer: what stands before the training process, such as "
            "'ssh gpu' or 'srun --gres=gpu:1'; or a cluster's scheduler, such as tls://host:8786.",
        ),
    ] = None,
    remote_python: Annotated[
        str, Option(help="With --on: Python there, in which napari-jrss is installed.")
    ] = "",
    remote_folder: Annotated[
        str,
        Option(help="With --on: the project's folder as it is seen there, if both share it."),
    ] = "",
    log_to: Annotated[
        str | None,
        Option(help="csv:FOLDER or tensorboard:FOLDER: log losses and Dice there, too."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pre-train where needed, then run joint rounds. Ctrl-C stops, --resume goes on."""
    from napari_jrss.app.settings import training_config

    run_on = _run_on(on, remote_python, remote_folder, threads)
    with jrss.Project.open(project) as opened, _cancel_on_interrupt() as cancel:
        from napari_jrss.app.rounds.train import plan_series, series_in_words

        settings = training_config(preset, config, plan=opened.plan, seed=seed, tau=tau)
        if resume:
            plan_series(opened, settings, rounds, resume=resume, pretrain=pretrain)
            typer.echo(series_in_words(opened), err=True)
        if threads is not None and run_on is None:
            import torch

            torch.set_num_threads(threads)
        options: dict[str, Any] = {
            "rounds": rounds,
            "resume": resume,
            "pretrain": pretrain,
            "device": device,
            "devices": devices,
            "anyway": anyway,
            "on": run_on,
            "log_to": log_to,
            "cancel": cancel,
        }
        if as_json:
            for event in jrss.train.events(opened, settings, **options):
                print(event.model_dump_json(), flush=True)
        else:
            jrss.train(opened, settings, **options)
    if cancel.is_set():
        typer.echo(f"stopped; napari-jrss train {project} --resume goes on", err=True)
        raise typer.Exit(130)


def _run_on(command: str | None, python: str, folder: str, threads: int | None) -> "RunOn | None":
    """Where to train, if not on this computer."""
    if command is None:
        if python or folder:
            raise UsageError("--remote-python and --remote-folder go with --on")
        return None
    from napari_jrss.app.rounds.launch import RunOn

    return RunOn(command, python, folder, threads)


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
    number: Annotated[int, Argument(metavar="ROUND", help="A finished round.")],
    author: Author = None,
) -> None:
    """Make an earlier round's teacher the current one; the next round starts from it."""
    from napari_jrss.app.author import author as known

    name = known(author)
    with jrss.Project.open(project) as opened:
        opened.promote(number, name, "chosen by command")
    typer.echo(f"the teacher of round {number} is the current one, chosen by {name}")


def forecast(
    project: ProjectPath,
    preset: Annotated[
        PresetName, typer.Option(help=TrainingConfig.model_fields["preset"].description)
    ] = "fast",
    config: Annotated[
        Path | None, typer.Option(help="JSON file with settings that replace those of the preset.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    workers: SharedOption = None,
    as_json: AsJson = False,
) -> None:
    """Tell what Dice to expect on unlabelled scans, by training without parts of the labels."""
    from napari_jrss.app.forecast import forecast as run
    from napari_jrss.app.settings import training_config
    from napari_jrss.project.project import Project

    with (
        Project.open(project) as opened,
        _cancel_on_interrupt() as cancel,
        workers_of(workers, project, gpu=True) as pool,
    ):
        settings = training_config(preset, config, plan=opened.plan, seed=seed)
        result = run(opened, settings, device=device, workers=pool, cancel=cancel)
    if result is None:
        typer.echo(f"stopped; napari-jrss forecast {project} goes on", err=True)
        raise typer.Exit(130)
    typer.echo(result.model_dump_json(indent=1) if as_json else result.summary())


def evaluate(
    project: ProjectPath,
    pairs: Annotated[
        Literal["two-fixed", "all"],
        Option(help="Pairs to register: two fixed cases with all others moving, or all pairs."),
    ] = "two-fixed",
    rounds: Annotated[
        list[int] | None, Option("--round", help="Only this round (repeatable).")
    ] = None,
    seed: Annotated[int, Option(min=0, help="Draws the two fixed cases.")] = 0,
    refine: Refine = False,
    device: Device = "auto",
    workers: SharedOption = None,
    as_json: AsJson = False,
) -> None:
    """Measure every round on the test cases: Dice, HD95 and the regularity of the fields."""
    with (
        jrss.Project.open(project) as opened,
        workers_of(workers, project, gpu=device != "cpu") as pool,
    ):
        result = jrss.evaluate(
            opened,
            rounds=rounds,
            pairs=pairs,
            seed=seed,
            refine=refine,
            device=device,
            workers=pool,
        )
    if as_json:
        rounds_found = [entry.model_dump(mode="json") for entry in result.rounds]
        found = {"rounds": rounds_found, "forecast": result.forecast}
        typer.echo(json.dumps(found, indent=1))
    else:
        typer.echo(result.summary())
