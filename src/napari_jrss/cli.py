"""The command line ``napari-jrss``: each command is one call that a script can make too.

Heavy imports happen inside the commands, so that ``--help`` is instant.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from pydantic import BaseModel, ValidationError

from napari_jrss import __version__
from napari_jrss.config import PresetName, TrainingConfig
from napari_jrss.experiments import commands
from napari_jrss.session.errors import is_ours

if TYPE_CHECKING:
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.data.labels import LabelTable
    from napari_jrss.project.project import Project

app = typer.Typer(
    name="napari-jrss",
    help="Few-shot segmentation and registration of 3D medical images, without a window.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ProjectPath = Annotated[Path, typer.Argument(metavar="PROJECT", help="Project folder (.jrss).")]
Author = Annotated[
    str | None, typer.Option(help="Your name.", show_default="NAPARI_JRSS_USER or the setting")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Refine = Annotated[
    bool,
    typer.Option("--refine", help="Improve each field on its pair, by what the teacher sees."),
]
Triple = tuple[float, float, float]


def main() -> None:
    """Run the command line: exit code 2 and one line for a user's mistake."""
    try:
        app(standalone_mode=True)
    except ValidationError as error:
        first = error.errors()[0]
        _fail(f"{'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}")
    except (ValueError, OSError, FloatingPointError) as error:
        if not is_ours(error):
            raise
        _fail(str(error))


def _fail(message: str) -> None:
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


class UsageError(ValueError):
    """Options that don't go together."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
def sample(
    dest: Annotated[Path, typer.Argument(help="Folder to write images/, labels/, groups.csv to.")],
    cases: Annotated[int, typer.Option(min=1, help="Number of scans.")] = 12,
    shape: Annotated[tuple[int, int, int], typer.Option(help="Grid z y x in voxels.")] = (
        32,
        40,
        32,
    ),
    structures: Annotated[int, typer.Option(min=1, max=10, help="Labelled structures.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Write a synthetic brain-like cohort as NIfTI."""
    from napari_jrss.sample_data import make_cohort

    make_cohort(dest, cases, shape, seed, structures)
    typer.echo(
        f"{cases} cases in {dest}; next:\n  napari-jrss init PROJECT --images {dest}/images "
        f"--labels {dest}/labels --groups {dest}/groups.csv"
    )


@app.command()
def init(
    project: ProjectPath,
    folder: Annotated[
        Path | None, typer.Option(help="A folder in a known layout (MSD, nnU-Net, LPBA40, TCIA).")
    ] = None,
    dicom: Annotated[
        Path | None,
        typer.Option(help="A folder of DICOM files: one case per image series, by pseudonym."),
    ] = None,
    keep_map: Annotated[
        Path | None,
        typer.Option(help="CSV of which DICOM series each case is; else nothing keeps that."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of scans.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of labels, same names.")] = None,
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV: label,name,class_id,class_name (else background)."),
    ] = None,
    spacing: Annotated[
        Triple | None, typer.Option(help="Voxel size z y x in mm.", show_default="reference case's")
    ] = None,
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Training grid z y x in voxels.", show_default="holds the largest scan"),
    ] = None,
    crop: Annotated[
        Literal["center", "foreground", "labelled"], typer.Option(help="What the grid is about.")
    ] = "center",
    resize: Annotated[
        bool, typer.Option("--resize", help="Stretch the extent to the grid instead of cropping.")
    ] = False,
    prealign: Annotated[
        Literal["none", "center_of_mass", "affine"],
        typer.Option(help="Alignment to the reference case."),
    ] = "none",
    reference: Annotated[
        str | None, typer.Option(help="Reference case.", show_default="first labelled")
    ] = None,
    clip: Annotated[
        tuple[float, float] | None, typer.Option(help="Percentiles to clip intensities at.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes.", show_default="cores")
    ] = None,
) -> None:
    """Make a project of scans and labels: check, preprocess and cache them."""
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.data.labels import LabelTable
    from napari_jrss.data.layouts import discover, discover_dicom
    from napari_jrss.display import import_report, ingest_progress

    if sum(given is not None for given in (folder, images, dicom)) != 1:
        raise UsageError("give either --folder or --images or --dicom")
    if keep_map is not None and dicom is None:
        raise UsageError("--keep-map goes with --dicom")
    if keep_map is not None and keep_map.resolve().is_relative_to(project.resolve()):
        raise UsageError(f"{keep_map}: lies in the project, which holds no patient's identity")
    if dicom is not None:
        cohort = discover_dicom(dicom)
    else:
        cohort = discover(folder) if folder else discover(images=images, labels=labels)
    label_files = [case.label for case in cohort.cases if case.label]
    if groups is not None:
        table = LabelTable.from_csv(groups)
    elif cohort.table is not None:
        table = cohort.table
    elif label_files:
        table = LabelTable.from_label_files(label_files)
    else:
        raise UsageError("no scan has a label: name the structures with --groups CSV")
    config = PreprocessingConfig(
        spacing_mm=spacing,
        shape=shape,
        crop=crop,
        resize=resize,
        prealign=prealign,
        reference_case=reference,
        clip_percentiles=clip,
    )
    if keep_map is not None:  # first, or a case could never be told again
        from napari_jrss.data.dicom import write_map

        write_map(keep_map, cohort.cases)
    with _made(project, table, config) as made:
        added = made.add_cases(cohort.cases, workers=workers, groups=cohort.groups)
        results = list(ingest_progress(added, len(cohort.cases)))
        import_report(results, cohort.unmatched_labels, cohort.left_out)
        if not any(result.ok for result in results):
            raise UsageError(f"none of {len(results)} scans could be used: {project} wasn't made")


@app.command()
def split(
    project: ProjectPath,
    labelled: Annotated[int, typer.Option(min=1, help="Labelled training cases, N.")] = 5,
    validation: Annotated[int, typer.Option(min=0, help="Validation cases.")] = 4,
    test: Annotated[int, typer.Option(min=0, help="Test cases.")] = 0,
    training: Annotated[
        int | None, typer.Option(min=2, help="Training cases, K.", show_default="all others")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    group_by: Annotated[
        str | None, typer.Option(help="CSV:COLUMN of subjects that must not be divided.")
    ] = None,
) -> None:
    """Divide the cases into training, validation and test, whole subjects at a time."""
    from napari_jrss.data.subjects import read_case_groups
    from napari_jrss.project.project import Project

    with Project.open(project) as opened:
        groups = None
        if group_by is not None:
            file, colon, column = group_by.rpartition(":")
            if not colon:
                raise UsageError("--group-by wants FILE.csv:COLUMN")
            groups = read_case_groups(Path(file), column, [c.case_id for c in opened.cases()])
        dealt = opened.split(
            labelled=labelled,
            validation=validation,
            test=test,
            training=training,
            seed=seed,
            groups=groups,
        )
    typer.echo(
        f"training {len(dealt.train)} (labelled {len(dealt.labelled)}), validation "
        f"{len(dealt.validation)}, test {len(dealt.test)}, unused {len(dealt.unused)}"
    )


@app.command()
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
    from napari_jrss.display import training_progress
    from napari_jrss.project.project import Project
    from napari_jrss.session.settings import training_config

    settings = training_config(preset, config, seed=seed, tau=tau)
    # With several devices, Fabric runs this same command once more for each further one.
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    with Project.open(project, read_only=not first) as opened, _cancel_on_interrupt() as cancel:
        import torch

        from napari_jrss.session.training import check_series, series_in_words
        from napari_jrss.session.training import train as run

        if resume and first:
            check_series(opened, settings, rounds, resume, pretrain)
            typer.echo(series_in_words(opened), err=True)
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
        if first:
            events = _print_lines(events) if as_json else training_progress(events)
        for _ in events:
            pass
    if cancel.is_set() and first:
        typer.echo(f"stopped; napari-jrss train {project} --resume goes on", err=True)
        raise typer.Exit(130)


@app.command()
def status(project: ProjectPath, as_json: AsJson = False) -> None:
    """Cases by split and label status, rounds and the current teacher."""
    from napari_jrss.display import status_tables
    from napari_jrss.project.project import Project
    from napari_jrss.session.status import project_status

    with Project.open(project, read_only=True) as opened:
        report = project_status(opened)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        status_tables(report)


@app.command()
def teacher(
    project: ProjectPath,
    number: Annotated[int, typer.Argument(metavar="ROUND", help="A finished round.")],
    author: Author = None,
) -> None:
    """Put an earlier round's networks in force again; the next round goes on from them."""
    from napari_jrss.project.project import Project
    from napari_jrss.session.author import author as known

    name = known(author)
    with Project.open(project) as opened:
        opened.promote(number, name, "chosen by command")
    typer.echo(f"the teacher of round {number} is in force, chosen by {name}")


@app.command(name="next")
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
    from napari_jrss.display import counting
    from napari_jrss.project.project import Project
    from napari_jrss.session.suggest import suggest_now

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


@app.command()
def history(
    project: ProjectPath,
    case: Annotated[str | None, typer.Argument(help="Only this case.")] = None,
    as_json: AsJson = False,
) -> None:
    """What happened to a project or to one of its cases, when, and who did it."""
    from napari_jrss.display import history_table
    from napari_jrss.project.project import Project
    from napari_jrss.session.history import history as story

    with Project.open(project, read_only=True) as opened:
        lines = story(opened, case)
    if as_json:
        typer.echo(json.dumps([line.model_dump() for line in lines], indent=1))
    else:
        history_table(lines)


@app.command()
def restore(
    project: ProjectPath,
    case: Annotated[str, typer.Argument(help="Case id.")],
    version: Annotated[str, typer.Argument(help="Label version to bring back, such as v0001.")],
    author: Author = None,
) -> None:
    """Bring a label version back, as a new version; nothing is overwritten."""
    from napari_jrss.project.project import Project
    from napari_jrss.session.author import author as known

    name = known(author)
    with Project.open(project) as opened:
        made = opened.restore(case, version, name)
    typer.echo(f"{case}: {version} is back in force, as {made}, by {name}")


@app.command()
def relink(
    project: ProjectPath,
    folder: Annotated[Path, typer.Argument(help="Where to look for the scans' files.")],
) -> None:
    """Find scans that were moved again, by their checksums."""
    from napari_jrss.project.project import Project

    with Project.open(project) as opened:
        if not opened.missing_sources():
            typer.echo("nothing is missing")
            return
        found = 0
        for source in opened.find_sources(folder):
            typer.echo(f"{source.case_id}: {source.kind} {source.path}")
            found += 1
        missing = opened.missing_sources()
    typer.echo(f"{found} files found")
    for source in missing:
        typer.echo(f"{source.case_id}: {source.kind} {source.path.name} is still missing")


@app.command()
def recover(
    project: ProjectPath,
    case: Annotated[str, typer.Argument(help="Case id.")],
    author: Author = None,
    discard: Annotated[bool, typer.Option("--discard", help="Give the corrections up.")] = False,
) -> None:
    """Keep corrections that were never accepted, as a new label version."""
    from napari_jrss.project import journal
    from napari_jrss.project.errors import ProjectError
    from napari_jrss.project.project import Project
    from napari_jrss.session.author import author as known

    with Project.open(project) as opened:
        found = journal.recover(opened, case)
        if discard:
            journal.discard(opened, case)
            typer.echo(f"{case}: {found.voxels_changed} corrected voxels given up")
            return
        if not found.voxels_changed:
            raise ProjectError(
                f"case {case}: nothing was corrected, only {len(found.accepted)} structures "
                "accepted one by one; open the case in the window to go on, or --discard them"
            )
        name = known(author)
        going_on, found = journal.Journal.resume(opened, case)
        with going_on:
            going_on.author = name
            made = going_on.accept(found.label)
    typer.echo(
        f"{case}: {found.voxels_changed} voxels that {found.author} corrected are {made} now"
    )


@app.command()
def author(
    name: Annotated[
        str | None, typer.Argument(help='The name to record from now on; "" forgets it.')
    ] = None,
) -> None:
    """Say once who labels and decides on this computer, or show who that is."""
    from napari_jrss.session.author import author as known
    from napari_jrss.session.author import remember_author

    if name is None:
        typer.echo(known())
    else:
        typer.echo(f"kept in {remember_author(name)}")


@app.command()
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
    from napari_jrss.display import evaluation_progress, evaluation_table
    from napari_jrss.project.project import Project
    from napari_jrss.session.evaluation import RoundEvaluated
    from napari_jrss.session.evaluation import evaluate as run

    with Project.open(project) as opened:
        events = run(opened, rounds=rounds, pairs=pairs, seed=seed, refined=refine, device=device)
        shown = events if as_json else evaluation_progress(events)
        summaries = [event for event in shown if isinstance(event, RoundEvaluated)]
    if as_json:
        typer.echo(json.dumps({"rounds": [s.model_dump(mode="json") for s in summaries]}, indent=1))
    else:
        evaluation_table(summaries)


@app.command()
def export(
    project: ProjectPath,
    dest: Annotated[Path, typer.Argument(help="Folder to write to.")],
    dataset: Annotated[
        Literal["nnunet", "decathlon"] | None,
        typer.Option(help="Write the labelled set for this layout instead."),
    ] = None,
    modality: Annotated[
        str, typer.Option(help="What the scans are, for --dataset; nnU-Net knows CT.")
    ] = "MRI",
    dicom_source: Annotated[
        Path | None,
        typer.Option(help="Folder of the DICOM series that cases came from: also DICOM SEG."),
    ] = None,
    ome_zarr: Annotated[
        bool, typer.Option("--ome-zarr", help="Also scans with their labels as OME-Zarr.")
    ] = False,
) -> None:
    """Labels in force and the teacher's labels, in each scan's own geometry."""
    from napari_jrss.data.predictions import PREDICTIONS
    from napari_jrss.display import counting
    from napari_jrss.project.dicom_seg import export_segmentations
    from napari_jrss.project.export import (
        export_dataset,
        export_labels,
        export_ome_zarr,
        export_predictions,
    )
    from napari_jrss.project.project import Project
    from napari_jrss.session.training import teacher_warning

    with Project.open(project, read_only=True) as opened:
        if dataset is not None:
            typer.echo(export_dataset(opened, dest, dataset, modality, dicom_source))
            return
        teacher = opened.teacher
        predictions = None if teacher is None else teacher.folder / PREDICTIONS
        # Each call refuses what it can't export; none writes before its files are asked for.
        parts = {"labels": ("labels", export_labels(opened, dest / "labels"))}
        if predictions is not None:
            files = export_predictions(opened, predictions, dest / "predictions")
            parts["predictions"] = "of the teacher's labels", files
        if dicom_source is not None:
            files = export_segmentations(opened, dest / "dicom-seg", dicom_source)
            parts["dicom-seg"] = "DICOM SEG of labels", files
            if predictions is not None:
                folder = dest / "dicom-seg-predictions"
                files = export_segmentations(opened, folder, dicom_source, predictions)
                parts[folder.name] = "DICOM SEG of the teacher's labels", files
        if ome_zarr:
            files = export_ome_zarr(opened, dest / "ome-zarr", dicom_source)
            parts["ome-zarr"] = "scans with their labels", files
        for name, (what, files) in parts.items():
            written = sum(1 for _ in counting(files, name))
            typer.echo(f"{written} {what} in {dest / name}")
        warning = teacher_warning(opened)
        if warning and predictions is not None:
            typer.echo(warning)


@app.command()
def segment(
    project: ProjectPath,
    scans: Annotated[
        list[Path], typer.Argument(metavar="SCAN...", help="NIfTI files or DICOM series folders.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the labels.")],
    maps: Annotated[
        bool, typer.Option("--maps", help="Also write confidence and uncertainty.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Also write a DICOM SEG for each DICOM series.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Segment scans with the current teacher."""
    from napari_jrss.display import counting, segmented_table
    from napari_jrss.project.project import Project
    from napari_jrss.session.segmenting import segment_scans
    from napari_jrss.session.training import teacher_warning

    with Project.open(project, read_only=True) as opened:
        made = segment_scans(opened, scans, out, maps=maps, dicom_seg=dicom_seg, device=device)
        results = list(made if as_json else counting(made, "segmenting", len(scans)))
        names, warning = opened.table.names[1:], teacher_warning(opened)
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], default=str, indent=1))
    else:
        segmented_table(results, names)
        if warning:
            typer.echo(warning)
    failed = [result for result in results if result.problem]
    if failed:
        raise UsageError(f"{len(failed)} of {len(results)} scans left out: {failed[0].problem}")


@app.command()
def register(
    project: ProjectPath,
    moving: Annotated[str, typer.Option(help="Case id, NIfTI file or DICOM folder.")],
    fixed: Annotated[str, typer.Option(help="Case id, NIfTI file or DICOM folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the warped scan and the field.")],
    refine: Refine = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Register a moving case or scan to a fixed one."""
    from napari_jrss.display import refining, registration_table
    from napari_jrss.project.project import Project
    from napari_jrss.session.pair_files import register_pair

    watching = refining() if refine else nullcontext()
    with Project.open(project, read_only=True) as opened, watching as watch:
        report = register_pair(opened, moving, fixed, out, refine=watch, device=device)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        registration_table(report, out)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Versions, devices, memory, and what is missing."""
    from napari_jrss.display import doctor_report
    from napari_jrss.doctor import examine

    report = examine()
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
    else:
        doctor_report(report)
    if report.problems:
        raise typer.Exit(1)


@contextmanager
def _made(path: Path, table: LabelTable, config: PreprocessingConfig) -> Iterator[Project]:
    """A new project, which isn't left behind if no case comes of it."""
    from napari_jrss.project.project import Project

    empty = False
    try:
        with Project.create(path, table, config) as project:
            try:
                yield project
            finally:
                empty = not project.cases()
    finally:
        if empty:
            shutil.rmtree(path)


app.command()(commands.experiment)
app.command()(commands.report)


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
