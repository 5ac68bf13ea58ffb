"""Cases that may have an error which was corrected in another one, found in the background."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from psygnal import Signal

from napari_jrss.app.pairs.registering import (
    WITHOUT_NETWORK,
    Registrar,
    project_registrar,
)
from napari_jrss.app.review import echo
from napari_jrss.app.review.opinions import Dispute, disputes
from napari_jrss.geometry import spacing_mm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari_jrss.app.cohort import Cohort
    from napari_jrss.app.workspace import Workspace
    from napari_jrss.inference.partners import Field
    from napari_jrss.project.project import Project
    from napari_jrss.project.records import Round
    from napari_jrss.snapshot import Label

MOST_CASES = 12
"""Cases that are looked at after a correction, those that look most like the corrected one."""
MOST_VOTERS = 4
"""Other labelled cases that are asked about a place."""
BUDGET_S = 120.0
"""Seconds after which no further case is looked at."""


@dataclass(frozen=True, eq=False)
class Echo:
    """A place of a case where the teacher may be wrong as it was in a corrected one.

    Attributes
    ----------
    case_id, corrected
        The case, and the one in which a person corrected the error.
    place
        On the case's own scan: the class by the teacher, and the one that may be right.
    """

    case_id: str
    corrected: str
    place: Dispute


class Echoes:
    """Names the cases that may have an error which was just corrected; nothing is changed.

    The teacher's errors in an accepted case are carried to other cases without a label. A place is
    named where the teacher says there what was wrong here, and at least half of the other
    labelled cases agree with the correction. The work is done on ``workspace.background``.

    Attributes
    ----------
    after_accept
        Whether each accepted case is followed up.
    found
        The largest place of each case, by its id. All are dropped when another teacher is in
        force, those of a case when it gets a label.
    looking
        What is being looked at, in words; empty if nothing is.
    """

    changed = Signal()  # `found` or `looking` changed

    def __init__(self, workspace: Workspace, cohort: Cohort) -> None:
        self._workspace, self._cohort = workspace, cohort
        self.after_accept = False
        self.found: dict[str, Echo] = {}
        self.looking = ""
        self._teacher: Round | None = None
        self._cancel = threading.Event()
        workspace.project_changed.connect(self._forget)
        workspace.rounds_changed.connect(self._rounds_changed)

    def accepted(self, case_id: str) -> None:
        """Follow up a case that was accepted just now, if that is wanted and possible."""
        if self.found.pop(case_id, None) is not None:
            self.changed.emit()
        project = self._workspace.project
        if self.after_accept and project is not None:
            self.look(case_id)

    def look(self, case_id: str) -> None:
        """Look for the errors that the teacher made in a labelled training case.

        Nothing is looked for without a teacher, or where it hasn't predicted the case.
        """
        project, cancel = self._workspace.open_project, self._cancel
        teacher = self._teacher = project.teacher
        if teacher is not None and case_id in project.snapshot().labelled:
            self._workspace.background.submit(lambda: self._look(project, teacher, case_id, cancel))

    def stop(self) -> None:
        """Stop looking; what was found stays."""
        self._cancel.set()
        self._cancel = threading.Event()

    def _look(
        self, project: Project, teacher: Round, case_id: str, cancel: threading.Event
    ) -> None:
        prediction = None if cancel.is_set() else teacher.files.prediction(case_id)
        if prediction is None:
            return
        from napari_jrss.inference.device import leave_a_core

        leave_a_core()
        accepted = project.label(case_id)
        wrong = echo.corrections(prediction.label, accepted, project.grid.spacing_mm)
        others = self._like(project, teacher, case_id) if wrong else []
        voters = [name for name in project.snapshot().labelled if name != case_id][:MOST_VOTERS]
        registrar = project_registrar(
            project,
            WITHOUT_NETWORK,
            watch=lambda done: not cancel.is_set(),
            device=self._workspace.device,
        )
        until = time.monotonic() + BUDGET_S
        try:
            for number, other in enumerate(others, start=1):
                if cancel.is_set() or time.monotonic() > until:
                    return
                self._say(f"Looking for the same errors in other cases: {number} of {len(others)}")
                place = self._place_in(project, teacher, registrar, case_id, other, wrong, voters)
                if cancel.is_set() or place is None:
                    continue
                before = self.found.get(other)
                if before is None or before.place.volume_ml < place.volume_ml:
                    self.found[other] = Echo(other, case_id, place)
                    self.changed.emit()
        finally:
            self._say("")

    def _like(self, project: Project, teacher: Round, case_id: str) -> list[str]:
        """Cases without a label that the teacher predicted, those most like a case first."""
        ranked = self._cohort.most_like(case_id, project.snapshot().unlabelled)
        return [name for name in ranked if teacher.files.has_prediction(name)][:MOST_CASES]

    def _place_in(
        self,
        project: Project,
        teacher: Round,
        registrar: Registrar,
        case_id: str,
        other: str,
        wrong: Sequence[Dispute],
        voters: Sequence[str],
    ) -> Dispute | None:
        """The largest place of another case where one of the errors may be, on its scan."""
        from napari_jrss.inference.predict import warp_array

        prediction, fixed = teacher.files.prediction(other), project.image(other)

        def carried(name: str) -> tuple[Field, Label]:
            field = registrar.field(project.image(name), fixed)
            return field, warp_array(project.label(name), field, nearest=True)

        assert prediction is not None
        field, label = carried(case_id)
        candidates = []
        for correction in wrong:
            place = echo.carried_place(correction, field)
            here = echo.same_confusion(correction, place, prediction.label, label)
            if here.any():
                candidates.append((correction, here))
        if not candidates:
            return None
        votes = [carried(name)[1] for name in voters]
        supported = [
            (correction, here)
            for correction, here in candidates
            if echo.support(correction, here, votes) >= echo.SUPPORT
        ]
        if not supported:
            return None
        correction, here = max(supported, key=lambda each: np.count_nonzero(each[1]))
        transform = project.attributes(other).transform
        on_scan = transform.label_to_scan(here.astype(np.uint8)).astype(bool)
        first = np.full(on_scan.shape, correction.first, np.uint8)
        second = np.where(on_scan, np.uint8(correction.second), first)
        parts = disputes(first, second, spacing_mm(transform.scan_affine))
        return parts[0] if parts else None

    def _say(self, what: str) -> None:
        self.looking = what
        self.changed.emit()

    def _rounds_changed(self) -> None:
        project = self._workspace.project
        if project is not None and self._teacher is not None and project.teacher != self._teacher:
            self._forget()

    def _forget(self) -> None:
        self.stop()
        self._teacher, self.found = None, {}
        self.changed.emit()
