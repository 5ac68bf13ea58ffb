"""Commands that make a project of scans, and say what is in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from napari_jrss.cli.options import AsJson, ProjectPath, UsageError

if TYPE_CHECKING:
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.labels import LabelTable
    from napari_jrss.project.project import Project

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
    from napari_jrss.cli.render import import_report, ingest_progress
    from napari_jrss.config import PreprocessingConfig
    from napari_jrss.io.label_files import label_table_from_csv, label_table_from_files
    from napari_jrss.io.layouts import discover, discover_dicom

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
        table = label_table_from_csv(groups)
    elif cohort.table is not None:
        table = cohort.table
    elif label_files:
        table = label_table_from_files(label_files)
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
        from napari_jrss.io.layouts import write_dicom_map

        write_dicom_map(keep_map, cohort.cases)
    with _made(project, table, config) as made:
        added = made.add_cases(cohort.cases, workers=workers, groups=cohort.groups)
        results = list(ingest_progress(added, len(cohort.cases)))
        import_report(results, cohort.unmatched_labels, cohort.left_out)
        if not any(result.ok for result in results):
            raise UsageError(f"none of {len(results)} scans could be used: {project} wasn't made")


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
    from napari_jrss.io.subjects import read_case_groups
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


def status(project: ProjectPath, as_json: AsJson = False) -> None:
    """Cases by split and label status, rounds and the current teacher."""
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
