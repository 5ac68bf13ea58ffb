"""Commands that write labels and fields of scans."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

import napari_jrss as jrss
from napari_jrss.cli.options import (
    AsJson,
    Device,
    Engine,
    ProjectPath,
    Refine,
    SharedOption,
    UsageError,
    workers_of,
)
from napari_jrss.config import Prealign


def export(
    project: ProjectPath,
    dest: Annotated[Path, Argument(help="Folder to write to.")],
    dataset: Annotated[
        Literal["nnunet", "decathlon"] | None,
        Option(help="Write the labelled cases as a data set of this layout instead."),
    ] = None,
    modality: Annotated[
        str, Option(help="Kind of the scans, for --dataset. nnU-Net treats CT in a way of its own.")
    ] = "MRI",
    dicom_source: Annotated[
        Path | None,
        Option(help="Folder of the DICOM series of the cases; DICOM SEG is written too."),
    ] = None,
    ome_zarr: Annotated[
        bool, Option("--ome-zarr", help="Also write scans with their labels as OME-Zarr.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Write labels, yours and the teacher's, in the geometry of each scan."""
    from napari_jrss.app.exporting import EXPORTED
    from napari_jrss.app.rounds.train import teacher_warning
    from napari_jrss.project.export.datasets import export_dataset

    with jrss.Project.open(project, read_only=True) as opened:
        if dataset is not None:
            typer.echo(export_dataset(opened, dest, dataset, modality, dicom_source))
            return
        files = jrss.export_labels(
            opened, dest, dicom_source=dicom_source, ome_zarr=ome_zarr, device=device
        )
        warning = teacher_warning(opened)
    written = Counter(path.parent for path in files)
    for folder, number in written.items():
        typer.echo(f"{number} {EXPORTED[folder.name]} in {folder}")
    if warning and dest / "predictions" in written:
        typer.echo(warning)


def segment(
    project: ProjectPath,
    scans: Annotated[
        list[Path],
        Argument(
            metavar="SCAN...",
            help="Files, or folders of one DICOM series. Where cases have several images: their "
            "files or folders of these, or T1=FILE FLAIR=FILE.",
        ),
    ],
    out: Annotated[Path, Option(help="Folder for the labels.")],
    maps: Annotated[bool, Option("--maps", help="Also write confidence and uncertainty.")] = False,
    dicom_seg: Annotated[
        bool, Option("--dicom-seg", help="Also write a DICOM SEG for each DICOM series.")
    ] = False,
    device: Device = "auto",
    workers: SharedOption = None,
    as_json: AsJson = False,
) -> None:
    """Segment scans that the project need not hold, with its current teacher."""
    from napari_jrss.app.rounds.train import teacher_warning
    from napari_jrss.cli.render import segmented_table

    with (
        jrss.Project.open(project, read_only=True) as opened,
        workers_of(workers, project, *scans, gpu=device != "cpu") as pool,
    ):
        results = jrss.segment_scans(
            opened, scans, out, maps=maps, dicom_seg=dicom_seg, device=device, workers=pool
        )
        names, warning = opened.table.names[1:], teacher_warning(opened)
    if as_json:
        typer.echo(json.dumps([asdict(result) for result in results], default=str, indent=1))
    else:
        segmented_table(results, names)
        if warning:
            typer.echo(warning)
    failed = [result for result in results if result.problem]
    if failed:
        raise UsageError(
            f"{len(failed)} of {len(results)} scans were left out: {failed[0].problem}"
        )


def register(
    scans: Annotated[
        list[str],
        Argument(
            metavar="[PROJECT] MOVING FIXED",
            help="Scans: NIfTI files, DICOM folders or, after a project, ids of its cases.",
        ),
    ],
    out: Annotated[Path, Option(help="Folder for the warped scan and the field.")],
    moving: Annotated[str | None, Option(help="The moving case or scan, after PROJECT.")] = None,
    fixed: Annotated[str | None, Option(help="The fixed case or scan, after PROJECT.")] = None,
    engine: Engine = "",
    refine: Refine = False,
    prealign: Annotated[
        Prealign | None,
        Option(help="What comes before the engine, without a project.", show_default="affine"),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Register a moving scan to a fixed one, with or without a project."""
    from napari_jrss.cli.render import registration_table

    named = [each for each in (moving, fixed) if each is not None]
    given = [*scans, *named]
    if len(given) not in (2, 3) or (named and len(scans) > 1):
        raise UsageError("give two scans, MOVING FIXED, or a project and two of its cases")
    here, there = given[-2:]
    if len(given) == 3:
        if prealign is not None:
            raise UsageError("a project has its own pre-alignment: leave --prealign out")
        with jrss.Project.open(Path(given[0]), read_only=True) as opened:
            pair = jrss.register(opened, here, there, engine=engine, refine=refine, device=device)
            pair.save(out)
    else:
        if refine:
            raise UsageError("--refine improves the field of a project's network: name the project")
        pair = jrss.register(
            here, there, engine=engine, prealign=prealign or "affine", device=device
        )
        pair.save(out)
    if as_json:
        typer.echo(pair.figures.model_dump_json(indent=1))
    else:
        registration_table(pair.figures, out)


def engines(
    project: Annotated[
        Path | None,
        Argument(metavar="[PROJECT]", help="Measure the engines on its labelled cases."),
    ] = None,
    engine: Annotated[
        list[str] | None,
        Option(help="Measure this one; may be given several times.", show_default="all"),
    ] = None,
    pairs: Annotated[int, Option(min=1, help="Most pairs to register by each engine.")] = 20,
    device: Device = "auto",
    workers: SharedOption = None,
    as_json: AsJson = False,
) -> None:
    """List the registration engines, or measure which is best for a project."""
    from napari_jrss.cli.render import engine_list
    from napari_jrss.inference.engines import engines as known

    if project is None:
        engine_list(list(known().values()), as_json)
        return
    with (
        jrss.Project.open(project, read_only=True) as opened,
        workers_of(workers, project, gpu=device != "cpu") as pool,
    ):
        found = jrss.compare_engines(opened, engine, pairs=pairs, device=device, workers=pool)
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else found.summary())
