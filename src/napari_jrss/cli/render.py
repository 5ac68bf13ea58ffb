"""Tables that the command line shows."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from napari_jrss.app.rounds.train import VALIDATION_DICE, WARNING
from napari_jrss.project.records import RoundKind
from napari_jrss.times import duration, local_time

if TYPE_CHECKING:
    from napari_jrss.app.pairs.registering import RegistrationReport
    from napari_jrss.app.segmenting import SegmentedScan
    from napari_jrss.app.status import HistoryLine, ProjectStatus
    from napari_jrss.doctor import Report
    from napari_jrss.inference.engines import Engine
    from napari_jrss.preprocess.plan import Plan
    from napari_jrss.project.importing import Found, ScanRead
    from napari_jrss.project.project import Project

_LISTED = 12  # structures


def found_line(event: Found | ScanRead) -> str:
    """What a folder holds, in a line: its layout, and examples of scans and labels."""
    from napari_jrss.project.importing import Found

    assert isinstance(event, Found)
    cohort = event.cohort
    line = f"layout {cohort.layout}: {event.total} scans, {event.labelled} with a label"
    if cohort.channels:
        images = ", ".join(cohort.channels)
        line += f", images {images} ({cohort.channels[0]} is shown and registered)"
    for case in cohort.cases:
        if isinstance(case.image, Path) and case.label is not None:
            label = case.label if isinstance(case.label, Path) else case.label.folder
            return f"{line}, such as {case.image.name} with {label.parent.name}/{label.name}"
    return line


def import_report(events: Sequence[Found | ScanRead], project: Project | None = None) -> None:
    """Print how many cases were imported, the grid, and a table of problems with the reasons.

    `project` is None if no project came of it.
    """
    from napari_jrss.project.importing import Found, ScanRead, import_summary

    if not events:
        return
    results = [event.result for event in events if isinstance(event, ScanRead)]
    found = [event for event in events if isinstance(event, Found)][-1]
    cohort = found.cohort
    unmatched_labels, left_out = cohort.unmatched_labels, cohort.left_out
    console = Console(markup=False)
    came = [result for result in results if result.ok]
    labelled = sum(result.labelled for result in came)
    console.print(f"{len(came)} cases imported, {labelled} with a label")
    if project is not None:
        if project.plan is not None:
            plan_table([project.plan])
        for line in import_summary(project, cohort, came):
            console.print(line, soft_wrap=True)
    noted: dict[str, list[str]] = defaultdict(list)  # the cases of each note
    for result in came:
        for note in result.notes:
            noted[note].append(result.case_id)
    cut = [r for r in came if r.label_kept is not None and r.label_kept < 1]
    if len(came) < len(results) or unmatched_labels or cut or left_out or noted:
        table = Table("case", "problem")
        for result in sorted(results, key=lambda r: r.case_id):
            if not result.ok:
                table.add_row(result.case_id, f"left out: {result.reason}")
        for result in sorted(cut, key=lambda r: r.case_id):
            lost = 100 * (1 - (result.label_kept or 0))
            table.add_row(result.case_id, f"{lost:.2g} % of the label lies outside the grid")
        for note, ids in sorted(noted.items()):
            more = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
            table.add_row(", ".join(sorted(ids)[:3]) + more, note)
        for path in unmatched_labels:
            table.add_row(path.name, "left out: label without an image")
        for entry in left_out:
            table.add_row(entry.what, f"left out: {entry.reason}")
        console.print(table)


def plan_table(plans: Iterable[Plan]) -> None:
    """Print plans, each with the reasons."""
    console = Console(markup=False)
    for plan in plans:
        console.print(f"plan {plan.line()}", soft_wrap=True)
        for reason in plan.reasons:
            console.print(f"  - {reason}", soft_wrap=True)
        if plan.small:
            listed = ", ".join(f"{name} {n}" for name, n in list(plan.small.items())[:_LISTED])
            more = f" and {len(plan.small) - _LISTED} more" if len(plan.small) > _LISTED else ""
            console.print(f"  - voxels where smallest: {listed}{more}", soft_wrap=True)


def status_tables(report: ProjectStatus) -> None:
    """Print the cases and rounds of a project."""
    console = Console(markup=False)
    z, y, x = report.shape
    spacing = " x ".join(f"{s:g}" for s in report.spacing_mm)
    console.print(
        f"{report.project}\ntraining grid {z} x {y} x {x} voxels of {spacing} mm (z y x), "
        f"{len(report.structures)} structures: {', '.join(report.structures)}"
    )
    if report.plan:
        console.print(f"plan {report.plan}", soft_wrap=True)
    console.print(f"N = {report.labelled} labelled, J = {report.unlabelled} unlabelled")
    cases = Table("split", "label", "cases")
    for split, statuses in report.cases.items():
        for status, count in statuses.items():
            cases.add_row(split, status, str(count))
    console.print(cases)
    if report.failed_imports:
        failed = Table("scan left out", "reason")
        for case_id, reason in report.failed_imports.items():
            failed.add_row(case_id, reason)
        console.print(failed)
    if report.rounds:
        rounds = Table("round", "from", "outcome", "accepted", "segmentation", "registration")
        for entry in report.rounds:
            rounds.add_row(
                f"{entry.number}{' (teacher)' if entry.number == report.teacher else ''}",
                "-" if entry.parent is None else str(entry.parent),
                entry.outcome + (", quick" if entry.kind == RoundKind.QUICK else ""),
                _figure(entry.metrics.get("accepted"), 0),
                _figure(entry.metrics.get(VALIDATION_DICE)),
                _figure(entry.metrics.get("validation_registration_dice")),
            )
        console.print(rounds)
        console.print("segmentation, registration: mean Dice on the validation cases")
    for entry in report.rounds:
        if entry.number == report.teacher and WARNING in entry.metrics:
            console.print(f"round {entry.number}: {entry.metrics[WARNING]}")
    if report.forecast:
        console.print(report.forecast)
    for line in report.outlook:
        console.print(line, soft_wrap=True)
    if report.interrupted_round is not None or report.rounds_left:
        which = f"round {report.interrupted_round} was interrupted"
        if report.interrupted_round is None:
            which = f"the series was interrupted after round {report.rounds[-1].number}"
        at_work = f", unless it is still running: {report.writer}" if report.writer else ""
        console.print(
            f"{which}, {report.rounds_left} more to come: train --resume goes on{at_work}"
        )
    if report.missing_files:
        console.print(
            f"{report.missing_files} files of scans or labels were moved or removed: "
            "'napari-jrss relink' finds moved ones"
        )
    if report.labels_without_source:
        console.print(
            f"{len(report.labels_without_source)} labels are exported with the training grid's "
            "voxels, as the files they were imported from are gone: "
            + ", ".join(report.labels_without_source)
        )
    for left in report.unsaved:
        console.print(
            left.problem
            or f"case {left.case_id}: {left.author} changed {left.voxels_changed} voxels and "
            f"accepted {left.structures_accepted} structures (last at "
            f"{local_time(left.last_change)}), but never "
            "accepted the label: 'napari-jrss recover' keeps it"
        )
    console.print(f"next: {report.next_step}", soft_wrap=True)


def history_table(lines: Sequence[HistoryLine]) -> None:
    """Print one row per event, oldest first, in this computer's time zone."""
    table = Table("when", "what", "case", "version", "by", "", box=SIMPLE)
    for line in lines:
        notes = []
        if line.round is not None:
            notes.append(f"round {line.round}")
        if line.draft not in (None, "imported"):
            notes.append(f"from {line.draft}")
        if line.voxels_changed is not None:
            notes.append(f"{line.voxels_changed} voxels changed")
        if line.seconds is not None:
            notes.append(duration(line.seconds))
        if line.detail:
            notes.append(line.detail)
        when = datetime.fromisoformat(line.at).astimezone()
        cells = (line.event, line.case_id, line.version, line.author, ", ".join(notes))
        table.add_row(f"{when:%Y-%m-%d %H:%M:%S}", *(cell or "-" for cell in cells))
    Console(markup=False).print(table)


def segmented_table(results: Sequence[SegmentedScan], structures: Sequence[str]) -> None:
    """Print the volume of each structure in each scan, or why a scan was left out."""
    table = Table("scan", "confidence", "seconds", "volumes (ml)")
    for result in results:
        if result.problem:
            table.add_row(result.scan.name, "-", "-", result.problem)
            continue
        volumes = zip(structures, result.volumes_ml, strict=True)
        table.add_row(
            result.scan.name,
            _figure(result.mean_confidence),
            f"{result.seconds:.2f}",
            ", ".join(f"{name} {_volume(volume)}" for name, volume in volumes),
        )
    console = Console(markup=False)
    console.print(table)
    for result in results:
        for note in result.notes:
            console.print(f"{result.scan.name}: {note}", soft_wrap=True)


def _volume(ml: float) -> str:
    return f"{ml:.2f}" if ml < 10 else f"{ml:.0f}" if ml >= 1000 else f"{ml:.1f}"


def registration_table(report: RegistrationReport, out: Path) -> None:
    """Print the figures of one pair."""
    console = Console(markup=False)
    if report.dice:
        table = Table("structure", "Dice before", "Dice after")
        for row in zip(report.structures, report.dice_before, report.dice, strict=True):
            table.add_row(row[0], _figure(row[1]), _figure(row[2]))
        console.print(table)
    console.print(
        f"std(Jac) {report.std_jacobian:.3f}, folded voxels {report.folded_percent:.2f} %, "
        f"residual {report.residual_before:.2f} -> {report.residual:.2f} SD, "
        f"{report.seconds:.2f} s, {report.method}; warped scan and displacement field in {out}"
    )
    for note in report.notes:
        console.print(note, soft_wrap=True)


def engine_list(engines: Sequence[Engine], as_json: bool) -> None:
    """Print the registration engines, what they are, and what to install for them."""
    if as_json:
        lines = [{"name": e.name, "about": e.about, "state": e.state} for e in engines]
        print(json.dumps(lines, indent=1))
        return
    table = Table("engine", "what it is", "")
    for engine in engines:
        table.add_row(engine.name, engine.about, escape(engine.state))
    console = Console()
    console.print(table)
    console.print("napari-jrss engines PROJECT measures which is best on your labelled cases")


def doctor_report(report: Report) -> None:
    """Print versions, devices and memory of this computer, and what is missing."""
    console = Console()
    console.print(f"napari-jrss {report.version}, Python {report.python}, {report.platform}")
    table = Table("package", "version")
    for name, version in report.versions.items():
        table.add_row(name, version or "missing")
    console.print(table)
    engines = (f"{name} ({state})" for name, state in report.engines.items())
    console.print(f"registration engines: {escape(', '.join(engines))}", soft_wrap=True)
    partners = (f"{name} ({state})" for name, state in report.partners.items())
    console.print(f"helpers for labels: {escape(', '.join(partners))}", soft_wrap=True)
    if report.torch_build:
        console.print(f"PyTorch is built for {report.torch_build}")
    for device in report.devices:
        console.print(f"{device.name}: {device.description}, {device.memory_gib:.1f} GiB")
    console.print(
        f"memory: {report.free_memory_gib:.1f} of {report.memory_gib:.1f} GiB free\n"
        f"window: {escape(report.window)}\n"
        f"log: {report.log}"
    )
    for problem in report.problems:
        console.print(f"[red]problem:[/red] {escape(problem)}")
    if not report.problems:
        console.print("all packages that napari-jrss requires are there")


def _figure(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"
