"""Commands that make a project of scans, and show what is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from napari_jrss.cli.options import AsJson, ProjectPath, UsageError

if TYPE_CHECKING:
    from napari_jrss.project.importing import Found, ScanRead

Triple = tuple[float, float, float]


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


def init(
    project: ProjectPath,
    folder: Annotated[
        Path | None,
        typer.Option(
            help="A folder in a known layout (MSD, nnU-Net, BIDS, TotalSegmentator, a folder for "
            "each case, ...), or a CSV file: image,label,subject,split."
        ),
    ] = None,
    dicom: Annotated[
        Path | None,
        typer.Option(help="A folder of DICOM files: one case per image series, under a pseudonym."),
    ] = None,
    keep_map: Annotated[
        Path | None,
        typer.Option(
            help="CSV file to write which DICOM series each case is; nothing else keeps that."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of scans.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labels with the names of the scans, or of a folder of masks for each."
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="Table of the structures: CSV (label,name,class_id,class_name), or as FreeSurfer, "
            "ITK-SNAP, Slicer or BIDS write it. Labels that it doesn't list are background."
        ),
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(
            help="Which images of a study: DICOM's series description, such as '*T1*', or T2w in "
            "BIDS.",
            show_default="all series; T1w",
        ),
    ] = None,
    spacing: Annotated[
        Triple | None, typer.Option(help="Voxel size z y x in mm.", show_default="reference case's")
    ] = None,
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option(help="Training grid z y x in voxels.", show_default="holds the largest scan"),
    ] = None,
    crop: Annotated[
        Literal["center", "foreground", "labelled"],
        typer.Option(help="What the training grid is centred on."),
    ] = "center",
    resize: Annotated[
        bool, typer.Option("--resize", help="Resample the extent to the grid instead of cropping.")
    ] = False,
    prealign: Annotated[
        Literal["none", "center_of_mass", "affine"],
        typer.Option(help="Align each scan to the reference case."),
    ] = "none",
    reference: Annotated[
        str | None, typer.Option(help="Reference case.", show_default="first labelled")
    ] = None,
    clip: Annotated[
        tuple[float, float] | None, typer.Option(help="Percentiles at which to clip intensities.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes.", show_default="one per core")
    ] = None,
) -> None:
    """Make a project of scans and labels: each is checked and brought to the training grid."""
    from napari_jrss.cli.render import found_line, import_report
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.progress_bar import counting, finish, shown
    from napari_jrss.project.project import Project

    given = [path for path in (folder, images, dicom) if path is not None]
    if len(given) != 1:
        raise UsageError("give either --folder or --images or --dicom")
    events = Project.from_folders.events(
        project,
        given[0],
        labels,
        groups=groups,
        dicom=dicom is not None,
        series=series,
        keep_map=keep_map,
        preprocessing=PreprocessingConfig(
            spacing_mm=spacing,
            shape=shape,
            crop=crop,
            resize=resize,
            prealign=prealign,
            reference_case=reference,
            clip_percentiles=clip,
        ),
        workers=workers,
    )
    happened: list[Found | ScanRead] = []

    def note(event: Found | ScanRead) -> None:
        if not happened:  # before the scans are read
            typer.echo(found_line(event), err=True)
        happened.append(event)

    try:
        made = finish(shown(events, counting("reading scans")), note)
    except BaseException:
        import_report(happened)
        raise
    with made:
        import_report(happened, made)


def add(
    project: ProjectPath,
    scans: Annotated[
        Path, typer.Argument(help="Folder of scans in any layout, of DICOM files, or a CSV file.")
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Folder of labels with the names of the scans, or of a folder of masks for each."
        ),
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Which images of a study, as for init.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes.", show_default="one per core")
    ] = None,
) -> None:
    """Add further scans, with their labels if they have any, to a project."""
    from napari_jrss.app.importing import add_scans
    from napari_jrss.cli.render import import_report
    from napari_jrss.progress_bar import counting, finish, shown
    from napari_jrss.project.importing import ScanFolders
    from napari_jrss.project.project import Project

    happened: list[Found | ScanRead] = []
    with Project.open(project) as opened:
        events = add_scans.events(opened, ScanFolders(scans, labels, series=series), workers)
        try:
            finish(shown(events, counting("reading scans")), happened.append)
        finally:
            import_report(happened, opened)


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
        str | None,
        typer.Option(
            help="FILE.csv:COLUMN of the subject of each case; a subject is never divided."
        ),
    ] = None,
) -> None:
    """Divide the cases into training, validation and test; a subject is never divided."""
    from napari_jrss.io.layouts import read_case_groups
    from napari_jrss.project.project import Project

    with Project.open(project) as opened:
        groups = None
        if group_by is not None:
            file, colon, column = group_by.rpartition(":")
            if not colon:
                raise UsageError("--group-by must be FILE.csv:COLUMN")
            groups = read_case_groups(Path(file), column, [c.case_id for c in opened.cases()])
        assigned = opened.split(
            labelled=labelled,
            validation=validation,
            test=test,
            training=training,
            seed=seed,
            groups=groups,
        )
    typer.echo(
        f"training {len(assigned.train)} (labelled {len(assigned.labelled)}), validation "
        f"{len(assigned.validation)}, test {len(assigned.test)}, unused {len(assigned.unused)}"
    )


def status(project: ProjectPath, as_json: AsJson = False) -> None:
    """Show the cases by split and label status, the rounds and the current teacher."""
    from napari_jrss.app.status import project_status
    from napari_jrss.cli.render import status_tables
    from napari_jrss.project.project import Project

    with Project.open(project, read_only=True) as opened:
        report = project_status(opened)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        status_tables(report)


def relink(
    project: ProjectPath,
    folder: Annotated[Path, typer.Argument(help="Folder to search for the files.")],
) -> None:
    """Find scans that were moved, by their checksums."""
    from napari_jrss.project.project import Project

    with Project.open(project) as opened:
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
