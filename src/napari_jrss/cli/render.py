"""What the command line shows: progress bars and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from napari_jrss.app.rounds.train import VALIDATION_DICE, WARNING

if TYPE_CHECKING:
    from napari_jrss.app.evaluation import RoundEvaluated
    from napari_jrss.app.history import HistoryLine
    from napari_jrss.app.pairs.registering import RegistrationReport
    from napari_jrss.app.segmenting import SegmentedScan
    from napari_jrss.app.status import ProjectStatus
    from napari_jrss.doctor import Report
    from napari_jrss.io.dicom import LeftOut
    from napari_jrss.preprocess.ingest import IngestResult
    from napari_jrss.training.events import Event

T = TypeVar("T")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:<17}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True, markup=False),
    )


def ingest_progress(results: Iterable[IngestResult], total: int) -> Iterator[IngestResult]:
    """A bar over the scans as they are written to the cache."""
    failed = 0
    with _progress() as progress:
        task = progress.add_task("preprocessing", total=total, note="")
        for result in results:
            failed += not result.ok
            progress.update(task, advance=1, note=f"{failed} failed" if failed else "")
            yield result


def counting(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """A bar over items as they come, one by one."""
    with _progress() as progress:
        task = progress.add_task(what, total=total, note="")
        for item in items:
            progress.advance(task)
            yield item


@contextmanager
def refining() -> Iterator[Callable[[float], bool]]:
    """A bar over the refinement of one pair, see :data:`napari_jrss.inference.refine.Watch`."""
    with _progress() as progress:
        task = progress.add_task("refining", total=100, note="")

        def watch(done: float) -> bool:
            progress.update(task, completed=round(100 * done))
            return True

        yield watch
        progress.update(task, completed=100)


def import_report(
    results: Sequence[IngestResult],
    unmatched_labels: Sequence[Path],
    left_out: Sequence[LeftOut] = (),
) -> None:
    """What came in, and one table of what did not, by case and reason."""
    console = Console(markup=False)
    came = [result for result in results if result.ok]
    labelled = sum(result.labelled for result in came)
    console.print(f"{len(came)} cases imported, {labelled} with a label")
    cut = [r for r in came if r.label_kept is not None and r.label_kept < 1]
    if len(came) < len(results) or unmatched_labels or cut or left_out:
        table = Table("case", "problem")
        for result in sorted(results, key=lambda r: r.case_id):
            if not result.ok:
                table.add_row(result.case_id, f"left out: {result.reason}")
        for result in sorted(cut, key=lambda r: r.case_id):
            lost = 100 * (1 - (result.label_kept or 0))
            table.add_row(result.case_id, f"{lost:.2g} % of the label lies outside the grid")
        for path in unmatched_labels:
            table.add_row(path.name, "left out: label without an image")
        for entry in left_out:
            table.add_row(entry.what, f"left out: {entry.reason}")
        console.print(table)


def training_progress(events: Iterable[Event]) -> Iterator[Event]:
    """A bar per stage: step, loss, validation Dice, time left."""
    from napari_jrss.training import events as kinds

    with _progress() as progress:
        tasks: dict[str, TaskID] = {}
        best: float | None = None
        for event in events:
            match event:
                case kinds.StageStarted():
                    best = None
                    tasks[event.stage] = progress.add_task(
                        event.stage.replace("_", " "),
                        total=event.steps,
                        completed=event.first_step,
                        note="",
                    )
                case kinds.EpochEnd():
                    best = event.best
                case kinds.StepEnd():
                    note = f"loss {event.losses['total']:.3f}"
                    note += "" if best is None else f", best Dice {best:.3f}"
                    progress.update(tasks[event.stage], completed=event.step, note=note)
                case kinds.CaseScreened() | kinds.CaseJudged() if event.stage in tasks:
                    progress.update(tasks[event.stage], advance=1)
                case kinds.RoundFinished():
                    progress.console.print(_round_line(event.number, event.metrics))
                    if event.warning:
                        progress.console.print(event.warning)
                case _:
                    pass
            yield event


def _round_line(number: int, metrics: dict[str, float]) -> str:
    def dice(name: str) -> str:
        value = metrics.get(f"validation_{name}_dice")
        return "-" if value is None else f"{value:.3f}"

    return (
        f"round {number}: {metrics['labelled']:.0f} labelled, {metrics['accepted']:.0f} "
        f"pseudo-labels accepted; validation Dice: segmentation {dice('segmentation')}, "
        f"registration {dice('registration')}"
    )


def status_tables(report: ProjectStatus) -> None:
    """A project's cases and rounds."""
    console = Console(markup=False)
    z, y, x = report.shape
    spacing = " x ".join(f"{s:g}" for s in report.spacing_mm)
    console.print(
        f"{report.project}\ntraining grid {z} x {y} x {x} voxels of {spacing} mm (z y x), "
        f"{len(report.structures)} structures: {', '.join(report.structures)}"
    )
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
                entry.outcome,
                _figure(entry.metrics.get("accepted"), 0),
                _figure(entry.metrics.get(VALIDATION_DICE)),
                _figure(entry.metrics.get("validation_registration_dice")),
            )
        console.print(rounds)
        console.print("segmentation, registration: mean Dice on the validation cases")
    for entry in report.rounds:
        if entry.number == report.teacher and WARNING in entry.metrics:
            console.print(f"round {entry.number}: {entry.metrics[WARNING]}")
    if report.interrupted_round is not None or report.rounds_left:
        which = (
            f"round {report.interrupted_round} was interrupted"
            if report.interrupted_round is not None
            else f"the series was interrupted after round {report.rounds[-1].number}"
        )
        at_work = f", unless it is still at work: {report.writer}" if report.writer else ""
        console.print(
            f"{which}, {report.rounds_left} more to come: train --resume goes on{at_work}"
        )
    if report.missing_files:
        console.print(
            f"{report.missing_files} files that cases were made from aren't where they were: "
            "'napari-jrss relink' finds them"
        )
    for left in report.unsaved:
        console.print(
            left.problem
            or f"case {left.case_id}: {left.author} changed {left.voxels_changed} voxels, "
            f"which were never accepted, and accepted {left.structures_accepted} structures "
            f"(last at {left.last_change})"
        )


def history_table(lines: Sequence[HistoryLine]) -> None:
    """One row per thing that happened, oldest first, in this computer's time zone."""
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
            notes.append(f"{line.seconds:.0f} s")
        if line.detail:
            notes.append(line.detail)
        when = datetime.fromisoformat(line.at).astimezone()
        cells = (line.event, line.case_id, line.version, line.author, ", ".join(notes))
        table.add_row(f"{when:%Y-%m-%d %H:%M:%S}", *(cell or "-" for cell in cells))
    Console(markup=False).print(table)


def evaluation_progress(events: Iterable[Any]) -> Iterator[Any]:
    """A counter of evaluated cases and pairs."""
    with _progress() as progress:
        task = progress.add_task("evaluating", total=None, note="")
        for event in events:
            progress.update(task, advance=event.kind != "round_evaluated")
            yield event


def evaluation_table(rounds: Sequence[RoundEvaluated]) -> None:
    """One row per round: mean and standard deviation over the test cases and pairs."""
    console = Console(markup=False)
    table = Table("", "Dice", "HD95 mm", "reg. Dice", "std(Jac)", "folded %", box=SIMPLE)
    for entry in rounds:
        if not table.rows:
            before = entry.registration["dice_before"]
            table.add_row("initial", "-", "-", _mean_std(before), "-", "-")
        segmentation, registration = entry.segmentation, entry.registration
        table.add_row(
            entry.name,
            _mean_std(segmentation["dice"]),
            _mean_std(segmentation["hd95_mm"], 2),
            _mean_std(registration["dice"]),
            _mean_std(registration["std_jacobian"]),
            _mean_std(registration["folded_percent"], 2),
        )
    console.print(table)
    if rounds:
        cases, pairs = rounds[0].segmentation["cases"], rounds[0].registration["pairs"]
        seconds = (
            rounds[-1].segmentation["seconds_per_case"]["mean"],
            rounds[-1].registration["seconds_per_pair"]["mean"],
        )
        console.print(
            f"mean (std) over {cases} test cases and {pairs} pairs of them; "
            f"{seconds[0]:.2f} s per case, {seconds[1]:.2f} s per pair"
        )


def segmented_table(results: Sequence[SegmentedScan], structures: Sequence[str]) -> None:
    """Volume of each structure in each scan, or why a scan was left out."""
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
    Console(markup=False).print(table)


def _volume(ml: float) -> str:
    return f"{ml:.2f}" if ml < 10 else f"{ml:.0f}" if ml >= 1000 else f"{ml:.1f}"


def registration_table(report: RegistrationReport, out: Path) -> None:
    """Figures of one pair."""
    console = Console(markup=False)
    if report.dice:
        table = Table("structure", "Dice before", "Dice after")
        for row in zip(report.structures, report.dice_before, report.dice, strict=True):
            table.add_row(row[0], _figure(row[1]), _figure(row[2]))
        console.print(table)
    seconds = f"{report.seconds:.2f} s" + (", refined" if report.refined else "")
    console.print(
        f"std(Jac) {report.std_jacobian:.3f}, folded voxels {report.folded_percent:.2f} %, "
        f"{seconds}; warped scan and displacement field in {out}"
    )


def doctor_report(report: Report) -> None:
    """What the machine offers, and what is missing."""
    console = Console()
    console.print(f"napari-jrss {report.version}, Python {report.python}, {report.platform}")
    table = Table("package", "version")
    for name, version in report.versions.items():
        table.add_row(name, version or "missing")
    console.print(table)
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
        console.print("nothing is missing")


def _mean_std(statistics: dict[str, Any], digits: int = 3) -> str:
    if statistics["mean"] is None:
        return "-"
    return f"{statistics['mean']:.{digits}f} ({statistics['std']:.{digits}f})"


def _figure(value: object, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"
