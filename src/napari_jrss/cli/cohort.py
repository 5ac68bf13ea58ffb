"""Commands that make a project of scans, and show what is in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

import napari_jrss as jrss
from napari_jrss.cli.options import (
    AsJson,
    Author,
    Budget,
    PlanLevel,
    ProjectPath,
    UsageError,
    WorkersOption,
    names_of,
    workers_of,
)

if TYPE_CHECKING:
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.project.importing import Found, ScanRead

Shape = tuple[int, int, int]
Triple = tuple[float, float, float]


def sample(
    dest: Annotated[Path, Argument(help="Folder to write images/, labels/, groups.csv to.")],
    cases: Annotated[int, Option(min=1, help="Number of scans.")] = 12,
    shape: Annotated[Shape, Option(help="Grid z y x in voxels.")] = (32, 40, 32),
    structures: Annotated[int, Option(min=1, max=10, help="Labelled structures.")] = 10,
    seed: Annotated[int, Option(min=0)] = 0,
    real: Annotated[
        bool,
        Option(
            "--real",
            help="Download real scans instead: hippocampi of the Medical Segmentation Decathlon "
            "(27 MB, CC BY-SA 4.0).",
        ),
    ] = False,
    flair: Annotated[
        bool, Option("--flair", help="Write a second image of each case, which shows a lesion.")
    ] = False,
) -> None:
    """Write a synthetic brain-like cohort as NIfTI, or download a real one."""
    if real:
        from napari_jrss.real_sample import CREDIT, fetch_hippocampi

        fetch_hippocampi(dest, cases)
        typer.echo(CREDIT, nl=False)
    else:
        jrss.make_cohort(dest, cases, shape, seed, structures, flair=flair)
    typer.echo(
        f"{cases} cases in {dest}; next:\n  napari-jrss init PROJECT --images {dest}/images "
        f"--labels {dest}/labels --groups {dest}/groups.csv"
    )


def init(
    project: ProjectPath,
    folder: Annotated[
        Path | None,
        Option(
            help="A folder in a known layout (MSD, nnU-Net, BIDS, TotalSegmentator, a folder for "
            "each case, ...), or a CSV file: image,label,subject,split."
        ),
    ] = None,
    dicom: Annotated[
        Path | None,
        Option(
            help="A folder of DICOM files: a case for each image series, or for each study with "
            "--channels, under a pseudonym."
        ),
    ] = None,
    keep_map: Annotated[
        Path | None,
        Option(help="CSV file to write which DICOM series each case is; nothing else keeps that."),
    ] = None,
    images: Annotated[Path | None, Option(help="Folder of scans.")] = None,
    labels: Annotated[
        Path | None,
        Option(
            help="Folder of labels with the names of the scans, or of a folder of masks for each."
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        Option(
            help="Table of the structures: CSV (label,name,class_id,class_name), or as FreeSurfer, "
            "ITK-SNAP, Slicer or BIDS write it. Labels that it doesn't list are background."
        ),
    ] = None,
    series: Annotated[
        str | None,
        Option(
            help="Which images of a study: DICOM's series description, such as '*T1*', or T2w in "
            "BIDS.",
            show_default="all series; T1w",
        ),
    ] = None,
    channels: Annotated[
        str | None,
        Option(
            metavar="T1,FLAIR",
            help="Which images of each case, where it has several: segmentation sees all, the "
            "first is shown and registered. Of DICOM the series of a study whose description holds "
            "the name, or fits a pattern: 'T1=*mprage*,FLAIR=*tirm*'.",
            show_default="all that each case has; of DICOM each series is a case",
        ),
    ] = None,
    spacing: Annotated[
        Triple | None, Option(help="Voxel size z y x in mm.", show_default="planned")
    ] = None,
    shape: Annotated[
        Shape | None,
        Option(help="Training grid z y x in voxels.", show_default="planned"),
    ] = None,
    crop: Annotated[
        Literal["center", "foreground", "labelled"] | None,
        Option(help="What the training grid is centred on.", show_default="planned"),
    ] = None,
    resize: Annotated[
        bool, Option("--resize", help="Resample the extent to the grid instead of cropping.")
    ] = False,
    prealign: Annotated[
        Literal["none", "center_of_mass", "affine"],
        Option(help="Align each scan to the reference case."),
    ] = "none",
    reference: Annotated[
        str | None, Option(help="Reference case.", show_default="first labelled")
    ] = None,
    clip: Annotated[
        tuple[float, float] | None, Option(help="Percentiles at which to clip intensities.")
    ] = None,
    window: Annotated[
        tuple[float, float] | None,
        Option(help="Intensities to clip to, such as HU.", show_default="planned for CT"),
    ] = None,
    plan: PlanLevel = "balanced",
    budget: Budget = None,
    workers: WorkersOption = None,
) -> None:
    """Make a project of scans and labels: each is checked and brought to the training grid."""
    from napari_jrss.cli.render import found_line, import_report
    from napari_jrss.progress_bar import finish, shown
    from napari_jrss.project.importing import import_bars

    given = [path for path in (folder, images, dicom) if path is not None]
    if len(given) != 1:
        raise UsageError("give either --folder or --images or --dicom")
    options: dict[str, Any] = {
        "groups": groups,
        "dicom": dicom is not None,
        "series": series,
        "channels": names_of(channels),
        "keep_map": keep_map,
        "preprocessing": _wishes(
            spacing_mm=spacing,
            shape=shape,
            crop=crop,
            resize=resize or None,
            prealign=None if prealign == "none" else prealign,
            reference_case=reference,
            clip_percentiles=clip,
            clip_values=window,
        ),
        "plan": plan,
        "budget": budget,
    }
    happened: list[Found | ScanRead] = []

    def note(event: Found | ScanRead) -> None:
        if not happened:  # before the scans are read
            typer.echo(found_line(event), err=True)
        happened.append(event)

    with workers_of(workers, given[0], project.absolute().parent) as pool:
        events = jrss.Project.from_folders.events(
            project, given[0], labels, workers=pool, **options
        )
        try:
            made = finish(shown(events, import_bars()), note)
        except BaseException:
            import_report(happened)
            raise
    with made:
        import_report(happened, made)


def _wishes(**given: object) -> PreprocessingConfig:
    """The settings of the training grid that were given; the plan chooses the others."""
    from napari_jrss.config import PreprocessingConfig

    return PreprocessingConfig.model_validate(
        {name: value for name, value in given.items() if value is not None}
    )


def plan(
    project: ProjectPath,
    level: Annotated[
        Literal["quick", "balanced", "fine"] | None,
        Option("--use", help="Follow this plan from now on.", show_default="only show them"),
    ] = None,
    budget: Budget = None,
    spacing: Annotated[
        Triple | None, Option(help="Voxel size z y x in mm.", show_default="planned")
    ] = None,
    author: Author = None,
    workers: WorkersOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what training grids would cost on this computer, or change to one of them.

    Labels, history and decisions stay; the next training begins with a pre-training.
    """
    from napari_jrss.app.author import author as known
    from napari_jrss.app.planning import change_plan, propose
    from napari_jrss.cli.render import plan_table

    wishes = None if spacing is None else _wishes(spacing_mm=spacing)
    with jrss.Project.open(project, read_only=level is None) as opened:
        plans = propose(opened, budget, wishes)
        if level is not None:
            chosen = plans[level if budget is None else "balanced"]
            with workers_of(workers, project) as pool:
                change_plan(opened, chosen, known(author), workers=pool)
            plans = {chosen.level: chosen}
    if as_json:
        shown = {name: each.model_dump(mode="json") for name, each in plans.items()}
        typer.echo(json.dumps(shown, indent=1))
    else:
        plan_table(plans.values())


def add(
    project: ProjectPath,
    scans: Annotated[
        Path, Argument(help="Folder of scans in any layout, of DICOM files, or a CSV file.")
    ],
    labels: Annotated[
        Path | None,
        Option(
            help="Folder of labels with the names of the scans, or of a folder of masks for each."
        ),
    ] = None,
    series: Annotated[str | None, Option(help="Which images of a study, as for init.")] = None,
    channels: Annotated[
        str | None,
        Option(
            metavar="T1,FLAIR",
            help="Which images of each case, as for init.",
            show_default="those of the project",
        ),
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Add further scans, with their labels if they have any, to a project."""
    from napari_jrss.app.importing import add_scans
    from napari_jrss.cli.render import import_report
    from napari_jrss.progress_bar import counting, finish, shown
    from napari_jrss.project.importing import ScanFolders

    happened: list[Found | ScanRead] = []
    with jrss.Project.open(project) as opened, workers_of(workers, project, scans) as pool:
        folders = ScanFolders(scans, labels, series=series, channels=names_of(channels))
        events = add_scans.events(opened, folders, pool)
        try:
            finish(shown(events, counting("reading scans")), happened.append)
        finally:
            import_report(happened, opened)


def split(
    project: ProjectPath,
    labelled: Annotated[int, Option(min=1, help="Labelled training cases, N.")] = 5,
    validation: Annotated[int, Option(min=0, help="Validation cases.")] = 4,
    test: Annotated[int, Option(min=0, help="Test cases.")] = 0,
    training: Annotated[
        int | None, Option(min=2, help="Training cases, K.", show_default="all others")
    ] = None,
    seed: Annotated[int, Option(min=0)] = 0,
    group_by: Annotated[
        str | None,
        Option(help="FILE.csv:COLUMN of the subject of each case; a subject is never divided."),
    ] = None,
) -> None:
    """Divide the cases into training, validation and test; a subject is never divided."""
    from napari_jrss.io.layouts import read_case_groups

    with jrss.Project.open(project) as opened:
        groups = None
        if group_by is not None:
            file, colon, column = group_by.rpartition(":")
            if not colon:
                raise UsageError("--group-by must be FILE.csv:COLUMN")
            groups = read_case_groups(Path(file), column, [c.case_id for c in opened.cases()])
        sizes = {"labelled": labelled, "validation": validation, "test": test}
        assigned = opened.split(**sizes, training=training, seed=seed, groups=groups)
    typer.echo(
        f"training {len(assigned.train)} (labelled {len(assigned.labelled)}), validation "
        f"{len(assigned.validation)}, test {len(assigned.test)}, unused {len(assigned.unused)}"
    )


def status(project: ProjectPath, as_json: AsJson = False) -> None:
    """Show the cases by split and label status, the rounds and the current teacher."""
    from napari_jrss.app.status import project_status
    from napari_jrss.cli.render import status_tables

    with jrss.Project.open(project, read_only=True) as opened:
        report = project_status(opened)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        status_tables(report)


def relink(
    project: ProjectPath, folder: Annotated[Path, Argument(help="Folder to search for the files.")]
) -> None:
    """Find scans that were moved, by their checksums."""
    with jrss.Project.open(project) as opened:
        if not opened.missing_sources():
            typer.echo("no file is missing")
            return
        found = 0
        for source in opened.find_sources(folder):
            typer.echo(f"{source.case_id}: {source.kind} {source.path}")
            found += 1
        missing = opened.missing_sources()
    typer.echo(f"{found} files found")
    for source in missing:
        typer.echo(f"{source.case_id}: {source.kind} {source.path.name} is still missing")
