"""Commands that write labels and fields of scans."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from napari_jrss.cli.options import AsJson, Device, ProjectPath, Refine, UsageError


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
    from napari_jrss.app.rounds.train import teacher_warning
    from napari_jrss.cli.render import counting
    from napari_jrss.project.export.datasets import export_dataset, export_ome_zarr
    from napari_jrss.project.export.dicom_seg import export_segmentations
    from napari_jrss.project.export.labels import export_labels, export_predictions
    from napari_jrss.project.project import Project

    with Project.open(project, read_only=True) as opened:
        if dataset is not None:
            typer.echo(export_dataset(opened, dest, dataset, modality, dicom_source))
            return
        teacher = opened.teacher
        predictions = None if teacher is None else teacher.files.predictions
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
    from napari_jrss.app.rounds.train import teacher_warning
    from napari_jrss.app.segmenting import segment_scans
    from napari_jrss.cli.render import counting, segmented_table
    from napari_jrss.project.project import Project

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
    from napari_jrss.app.pairs.files import register_pair
    from napari_jrss.cli.render import refining, registration_table
    from napari_jrss.project.project import Project

    watching = refining() if refine else nullcontext()
    with Project.open(project, read_only=True) as opened, watching as watch:
        report = register_pair(opened, moving, fixed, out, refine=watch, device=device)
    if as_json:
        typer.echo(report.model_dump_json(indent=1))
    else:
        registration_table(report, out)
