"""Drafts of labels that another program makes, such as TotalSegmentator."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from napari_jrss.errors import JRSSError, did_you_mean
from napari_jrss.inference.totalsegmentator import (
    PROGRAM,
    DraftError,
    TotalSegmentator,
    masks_of,
)
from napari_jrss.io.found import Masks
from napari_jrss.io.nifti import write_nifti
from napari_jrss.labels import LabelTable
from napari_jrss.progress_bar import Bar, long_call
from napari_jrss.project.drafts import KIND, keep_draft, on_scan
from napari_jrss.project.export.labels import scan_header
from napari_jrss.project.project import Project
from napari_jrss.project.records import Split

if TYPE_CHECKING:
    from napari_jrss.training.loop import Cancel

_TELL_S = 1.0
_LISTED = 6


@dataclass(frozen=True)
class DraftUnderWay:
    """The program is at a case: `done` of `total` are done."""

    done: int
    total: int
    case_id: str
    seconds: float  # on this case so far
    said: str  # what the program printed last


@dataclass(frozen=True)
class DraftMade:
    """What became of one case: number `done` of `total`."""

    done: int
    total: int
    case_id: str
    draft: str  # its key
    seconds: float
    # Structures of the project that the program found, and those that it doesn't have.
    found: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    problem: str = ""  # why there is no draft; empty if there is

    def line(self) -> str:
        """It in a line."""
        if self.problem:
            return f"{self.case_id}: {self.problem}"
        line = f"{self.case_id}: a draft with {len(self.found)} structures, {self.seconds:.0f} s"
        if self.lacking:
            line += f"; {PROGRAM} has none named {_listed(self.lacking)}"
        return line


def _bars(*_: object, **__: object) -> Callable[[DraftUnderWay | DraftMade], Bar]:
    def bar(event: DraftUnderWay | DraftMade) -> Bar:
        made = isinstance(event, DraftMade)
        note = f"{event.case_id}, {event.seconds:.0f} s"
        return Bar("drafts", event.done, event.total, note, milestone=made)

    return bar


@long_call(_bars)
def draft_by_totalsegmentator(
    project: Project,
    cases: Sequence[str] | None = None,
    program: TotalSegmentator | None = None,
    *,
    names: Mapping[str, str] | None = None,
    cancel: Cancel | None = None,
) -> Generator[DraftUnderWay | DraftMade, None, list[DraftMade]]:
    """Let TotalSegmentator draft labels; the project keeps them for Review.

    A draft is nobody's label until a person accepts it. Review opens an unlabelled case with its
    draft if there is no teacher's; otherwise it is one more choice to start from.

    Parameters
    ----------
    project
        Open for writing.
    cases
        Ids; None: every training case without a label.
    program
        How it is run.
    names
        Names of its structures and of the project's that they stand for, where they differ.
        Capitals, blanks and the order of words, as in "Left kidney" for ``kidney_left``, don't
        matter anyway.
    cancel
        Its ``is_set()`` is asked ten times a second; True ends the program.

    Returns
    -------
    list of DraftMade
        What became of each case.

    Raises
    ------
    JRSSError
        It isn't installed, or has no structure of the project; or the project is read-only.
    """
    program = program or TotalSegmentator()
    project.check_writable()
    wanted = without_label(project) if cases is None else [project.case(c).case_id for c in cases]
    for ours in (names or {}).values():
        _known_structure(ours, project.table)
    draft = f"{KIND}{PROGRAM}_{_safe(program.version())}_{_safe(program.task)}"
    draft += "_fast" if program.fast else ""
    results: list[DraftMade] = []
    for number, case_id in enumerate(wanted):
        began = time.monotonic()
        found: tuple[str, ...] = ()
        lacking: tuple[str, ...] = ()
        problem = ""
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            scan, out = Path(folder) / "scan.nii.gz", Path(folder) / "segmentations"
            transform = project.attributes(case_id).transform
            try:
                image = transform.turn_to_source(project.scan_image(case_id))
                write_nifti(scan, image, scan_header(transform))
                told = began
                with closing(program.segment(scan, out)) as running:
                    for said in running:
                        if cancel is not None and cancel.is_set():
                            return results
                        if (now := time.monotonic()) - told >= _TELL_S:
                            told = now
                            yield DraftUnderWay(number, len(wanted), case_id, now - began, said)
                masks, found, lacking = _matching(
                    masks_of(out), project.table, names or {}, program
                )
                label = on_scan(project, case_id, masks, project.table).array
                keep_draft(project, case_id, draft, label)
            except NothingInCommonError:
                raise
            except JRSSError as error:
                problem = str(error)
        seconds = time.monotonic() - began
        result = DraftMade(
            number + 1, len(wanted), case_id, draft, seconds, found, lacking, problem
        )
        results.append(result)
        yield result
    return results


class NothingInCommonError(DraftError):
    """The program has no structure of the project."""


def without_label(project: Project) -> list[str]:
    """Ids of the training cases that have no label."""
    return [c.case_id for c in project.cases() if c.split is Split.TRAIN and not c.labelled]


def _matching(
    masks: Masks, table: LabelTable, names: Mapping[str, str], program: TotalSegmentator
) -> tuple[Masks, tuple[str, ...], tuple[str, ...]]:
    """The masks of the project's structures under its names, what these are, and what is lacking.

    A :class:`NothingInCommonError` if there is none.
    """
    ours = {_words(name): each.name for each in table.classes[1:] for name in each.source_names}
    ours |= {_words(each.name): each.name for each in table.classes[1:]}
    chosen = {_words(theirs): our for theirs, our in names.items()}
    files = []
    for theirs, path in masks.files:
        our = chosen.get(_words(theirs)) or ours.get(_words(theirs))
        if our is not None:
            files.append((our, path))
    found = {name for name, _ in files}
    structures = [each.name for each in table.classes[1:]]
    if not files:
        raise NothingInCommonError(
            f"{PROGRAM}'s task {program.task} has no structure of this project "
            f"({_listed(structures)}); it has {_listed([name for name, _ in masks.files])}: say "
            "which is which (--name THEIRS=OURS)"
        )
    lacking = tuple(name for name in structures if name not in found)
    return Masks(masks.folder, tuple(files)), tuple(sorted(found)), lacking


def _words(name: str) -> tuple[str, ...]:
    """The words of a name in any order, without capitals: "Left kidney" is ``kidney_left``."""
    return tuple(sorted(re.findall(r"[a-z0-9]+", name.casefold())))


def _known_structure(name: str, table: LabelTable) -> None:
    names = table.names[1:]
    if name not in names:
        raise DraftError(f"the project has no structure {name!r}{did_you_mean(name, names)}")


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text)[:40]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
