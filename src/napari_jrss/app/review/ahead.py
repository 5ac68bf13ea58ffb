"""Drafts of the cases that come next, made before a person opens them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from napari_jrss.app.pairs.registering import (
    RegistrationReport,
    engine_of_votes,
    project_registrar,
    register_labelled,
)
from napari_jrss.app.review.consensus import propagated_drafts
from napari_jrss.app.review.open_case import CurrentCase

if TYPE_CHECKING:
    from napari_jrss.app.cohort import Cohort
    from napari_jrss.project.project import Project
    from napari_jrss.snapshot import Label

USUAL = 2
"""Cases that a window has drafts ready of."""
MOST_VOTERS = 10
"""Labelled cases that are registered to a case, those that look most like it."""


@dataclass(frozen=True, eq=False)
class ReadyDraft:
    """A draft that was made ahead.

    Attributes
    ----------
    drafts
        Class indices (z, y, x) on the scan's own voxels, by what they were made from, as in
        ``Project.add_label_version``: the vote, then its average with the teacher if there is one.
    round_number
        The round of the teacher then; None if there was none.
    versions
        The labels that voted, by case.
    """

    drafts: Mapping[str, Label]
    round_number: int | None
    versions: Mapping[str, str | None]


class DraftsAhead:
    """Makes the draft of **Propagate** for the cases that come next, in the background.

    It is the average of the teacher and the vote of labelled cases that are registered, or the
    vote alone while there is no teacher. A case that has none yet opens as it would without. The
    work is done on ``workspace.background``.
    """

    def __init__(self, current: CurrentCase, cohort: Cohort) -> None:
        self._current, self._workspace, self._cohort = current, current.workspace, cohort
        self._cases = 0
        self._ready: dict[str, ReadyDraft] = {}
        self._failed: set[tuple[str, int | None]] = set()  # cases and rounds, not tried again
        self._cancel = threading.Event()
        self._workspace.project_changed.connect(self._forget)
        self._workspace.rounds_changed.connect(self.refresh)

    @property
    def cases(self) -> int:
        """Of how many cases that come next drafts are made; 0: of none."""
        return self._cases

    @cases.setter
    def cases(self, cases: int) -> None:
        self._cases = cases
        self.refresh()

    def draft_of(self, case_id: str) -> ReadyDraft | None:
        """The draft of a case if one was made that isn't outdated."""
        found, project = self._ready.get(case_id), self._workspace.project
        if found is None or project is None:
            return None
        teacher = project.teacher
        now = {case.case_id: case.label_version for case in project.cases()}
        same = found.round_number == (None if teacher is None else teacher.number)
        same = same and all(now.get(name) == version for name, version in found.versions.items())
        return found if same else None

    def refresh(self) -> None:
        """Make drafts of the cases that come next, as far as they have none."""
        if self._cases and self._workspace.project is not None:
            cancel = self._cancel
            self._workspace.background.submit(lambda: self._go_on(cancel))

    def prepare(self, case_ids: Iterable[str]) -> None:
        """Make drafts of these cases, whatever comes next."""
        project, cancel = self._workspace.open_project, self._cancel
        for case_id in case_ids:
            self._workspace.background.submit(partial(self._make, project, case_id, cancel))

    def stop(self) -> None:
        """Stop making drafts, until :meth:`refresh` or :meth:`prepare` is called again."""
        self._cancel.set()
        self._cancel = threading.Event()

    def _go_on(self, cancel: threading.Event) -> None:
        project = self._workspace.project
        # it is called again once the teacher has learned, and once more is known of the cases
        soon = self._workspace.learning.state.busy or self._cohort.summaries.state.busy
        if cancel.is_set() or project is None or soon:
            return
        here = self._current.case
        after = None if here is None else here.case_id
        wanted = [each.case_id for each in self._cohort.suggestions(self._cases, after)]
        for name in set(self._ready) - set(wanted):
            del self._ready[name]
        number = None if project.teacher is None else project.teacher.number
        for name in wanted:
            ready = self.draft_of(name)
            latest = ready is not None and set(ready.versions) == set(self._voters(project, name))
            if latest or (name, number) in self._failed:
                continue
            try:
                self._make(project, name, cancel)
            except Exception:
                self._failed.add((name, number))
                raise
            if self.draft_of(name) is not ready:
                self.refresh()
            return

    def _voters(self, project: Project, case_id: str) -> list[str]:
        labelled = [name for name in project.snapshot().labelled if name != case_id]
        return self._cohort.most_like(case_id, labelled)[:MOST_VOTERS]

    def _make(self, project: Project, case_id: str, cancel: threading.Event) -> None:
        voters = self._voters(project, case_id)
        if cancel.is_set() or project.read_only or not voters:
            return
        from napari_jrss.app.review.prediction_review import at_own_voxels, teacher_prediction
        from napari_jrss.inference.device import leave_a_core

        leave_a_core()
        device, teacher = self._workspace.device, project.teacher
        now = {case.case_id: case.label_version for case in project.cases()}
        registrar = project_registrar(
            project,
            engine_of_votes(project, self._workspace.engine),
            watch=lambda done: not cancel.is_set(),
            device=device,
        )
        prediction = (
            None if teacher is None else teacher_prediction(project, teacher, case_id, device)
        )
        for found in register_labelled(project, case_id, registrar, voters):
            if cancel.is_set():
                return
            if isinstance(found, RegistrationReport):
                continue
            number = None if teacher is None else teacher.number
            drafts = propagated_drafts(voters, found, prediction, number)
            labels = {
                key: at_own_voxels(
                    project, teacher if each is not found else None, case_id, each, device
                )
                for key, each in drafts.items()
            }
            versions = {name: now[name] for name in voters}
            self._ready[case_id] = ReadyDraft(labels, number, versions)

    def _forget(self) -> None:
        self.stop()
        self._ready.clear()
        self._failed.clear()
