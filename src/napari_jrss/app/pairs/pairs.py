"""Registration of pairs: displacement, warped volumes, figures, and drafts from them."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray
from psygnal import Signal

from napari_jrss.app.pairs.files import ScanWarp, on_fixed_scan, write_pair
from napari_jrss.app.pairs.registering import (
    Pair,
    RegistrationReport,
    prepare_registration_input,
    read_registration_input,
    register_labelled,
    register_sides,
    registration_network,
)
from napari_jrss.app.pairs.views import View, view_of
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.errors import ProjectError
from napari_jrss.io.volume import Volume
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Label

if TYPE_CHECKING:
    from torch import device as Device
    from torch.nn import Module

    from napari_jrss.app.session import Session
    from napari_jrss.inference.refine import Watch
    from napari_jrss.io.predictions import Prediction


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every labelled case registered to one case.

    Attributes
    ----------
    fixed
        The case.
    total
        Number of pairs there will be.
    reports
        Figures of the pairs that are done, the best first: by mean Dice where both sides have
        labels, else by the residual, then by the folded voxels.
    draft
        The label that all pairs vote for, once they are done.
    """

    fixed: str
    total: int
    reports: tuple[RegistrationReport, ...] = ()
    draft: Prediction | None = None

    def with_report(self, report: RegistrationReport) -> Comparison:
        """The same with one more pair."""
        return replace(self, reports=tuple(sorted((*self.reports, report), key=_rank)))


@dataclass(frozen=True, eq=False)
class RegisteredVolumes:
    """Two volumes that are no cases, registered, and the moving one on the fixed one's grid."""

    pair: Pair
    warp: ScanWarp


@dataclass(frozen=True)
class Provenance:
    """What a registration was made from: the networks of a round, and labels of cases."""

    round_number: int | None
    versions: Mapping[str, str | None]

    @classmethod
    def of(cls, project: Project, case_ids: Collection[str]) -> Self:
        """The teacher's round and the labels in force, as they are now."""
        teacher = project.teacher
        versions = {c.case_id: c.label_version for c in project.cases() if c.case_id in case_ids}
        return cls(None if teacher is None else teacher.number, versions)

    def outdated(self, project: Project) -> str:
        """What is another now; empty if nothing is."""
        now = self.of(project, self.versions)
        if now.round_number != self.round_number:
            return f"the networks in force are those of round {now.round_number}"
        changed = [name for name in self.versions if now.versions[name] != self.versions[name]]
        return f"{changed[0]} has another label now" if changed else ""


class Pairs:
    """Commands of the tab of this name; made by its session.

    Each command that computes is a job on the session's ``inference`` runner.

    Attributes
    ----------
    pair_changed
        Another pair is in :attr:`pair`, or none.
    comparison_changed
        Another pair is in :attr:`comparison`, or its draft, or there is none.
    view_made
        A view of the pair that was asked for is there, see :meth:`view`.
    refining
        What share of the present pair's refinement is done, from 0 to 1.
    volumes_registered
        The :class:`RegisteredVolumes` that :meth:`register_volumes` was asked for.
    desk
        Where the views are made.
    pair
        The latest registered pair.
    comparison
        The latest case that all labelled cases were registered to.
    refined_changed
        Whether pairs are to be refined, see :attr:`refined`, is another now.
    outdated
        Why one of these two was forgotten, see :meth:`forget_outdated`; empty if it wasn't.
    """

    pair_changed = Signal()
    comparison_changed = Signal()
    view_made = Signal(str)
    refining = Signal(float)
    volumes_registered = Signal(object)
    refined_changed = Signal(bool)

    def __init__(self, session: Session) -> None:
        self._session = session
        self.pair: Pair | None = None
        self.queue = WorkQueue("pairs")
        self._views: dict[tuple[View, int], NDArray[Any] | None] = {}
        self.comparison: Comparison | None = None
        self._refined = False
        self.outdated = ""
        self._pair_basis = self._comparison_basis = Provenance(None, {})
        session.project_changed.connect(self._forget)

    @property
    def refined(self) -> bool:
        """Whether the next registrations improve each field on its pair.

        See :mod:`napari_jrss.inference.refine`.
        """
        return self._refined

    @refined.setter
    def refined(self, refined: bool) -> None:
        if refined != self._refined:
            self._refined = refined
            self.refined_changed.emit(refined)

    def register(self, moving: str, fixed: str) -> None:
        """Register one case of the project to another.

        Raises
        ------
        ProjectError
            If no project is open, it has no networks, or the two are the same case.
        BusyError
            While another short job runs.
        """
        project = self._ready()
        if moving == fixed:
            raise ProjectError(f"{moving}: choose two different cases")

        def work(cancel: threading.Event) -> Iterator[RegistrationReport]:
            basis = Provenance.of(project, (moving, fixed))
            network, device = self._network(project, cancel)
            sides = (
                read_registration_input(project, moving),
                read_registration_input(project, fixed),
            )
            pair = register_sides(network, *sides, project.table.names, device)
            if not cancel.is_set() and self._session.project is project:
                self.outdated, self._pair_basis = "", basis
                self.pair, self._views = pair, {}
                self.pair_changed.emit()
            yield pair.report

        self._session.inference.start(work)

    def view(self, view: View, across: int = 0) -> NDArray[Any] | None:
        """A view of the pair, see :func:`~napari_jrss.app.pairs.views.view_of`.

        None if it has not been made yet: then it is being made, and :attr:`view_made` tells.
        """
        pair, views = self._present(), self._views
        spacing_mm = self._session.open_project.grid.spacing_mm
        key = (view, across)
        if key not in views:
            views[key] = None

            def make() -> None:
                if views is self._views:
                    views[key] = view_of(pair, view, spacing_mm, across)
                    self.view_made.emit(view)

            self.queue.submit(make)
        return views[key]

    def compare(self, case_id: str) -> None:
        """Register every other labelled case to a case, and fuse their labels to a draft.

        Raises
        ------
        ProjectError, BusyError
            As :meth:`register`.
        """
        project = self._ready()
        atlases = set(project.snapshot().labelled) - {case_id}
        device = self._session.device

        def work(cancel: threading.Event) -> Iterator[RegistrationReport]:
            comparison = Comparison(case_id, len(atlases))
            basis = Provenance.of(project, {case_id, *atlases})
            refine = self._watch(cancel)
            for each in register_labelled(project, case_id, refine=refine, device=device):
                if cancel.is_set() or self._session.project is not project:
                    return
                if isinstance(each, RegistrationReport):
                    comparison = comparison.with_report(each)
                    yield each
                else:
                    comparison = replace(comparison, draft=each)
                self.outdated, self._comparison_basis = "", basis
                self.comparison = comparison
                self.comparison_changed.emit()

        self._session.inference.start(work)

    def register_volumes(self, moving: Volume, fixed: Volume, names: tuple[str, str]) -> None:
        """Register two volumes that are no cases; `volumes_registered` brings the result.

        Parameters
        ----------
        moving, fixed
            Each where its affine says, LPS mm.
        names
            Of the two, for the report.

        Raises
        ------
        ProjectError, BusyError
            As :meth:`register`.
        """
        project = self._ready()

        def work(cancel: threading.Event) -> Iterator[RegistrationReport]:
            network, device = self._network(project, cancel)
            here = prepare_registration_input(project, names[0], moving)
            there = prepare_registration_input(project, names[1], fixed)
            pair = register_sides(network, here, there, project.table.names, device)
            warp = on_fixed_scan(pair)
            if not cancel.is_set():
                self.volumes_registered.emit(RegisteredVolumes(pair, warp))
            yield pair.report

        self._session.inference.start(work)

    def forget_outdated(self) -> None:
        """Forget what was registered by networks, or from labels, that aren't in force any more."""
        project, pair, comparison = self._session.project, self.pair, self.comparison
        if project is None:
            return
        if pair is not None and (why := self._pair_basis.outdated(project)):
            self.outdated = f"{why}: register {pair.moving.name} to {pair.fixed.name} anew"
            self.pair, self._views = None, {}
            self.pair_changed.emit()
        if comparison is not None and (why := self._comparison_basis.outdated(project)):
            self.outdated = f"{why}: register all labelled cases to {comparison.fixed} anew"
            self.comparison = None
            self.comparison_changed.emit()

    def following(self, moving: str, fixed: str) -> tuple[str, str]:
        """The pair after this one: the next moving case, and after the last the next fixed one."""
        ids = [case.case_id for case in self._session.open_project.cases()]
        if len(ids) < 2:
            raise ProjectError("registration needs two cases")
        pairs = [(m, f) for f in ids for m in ids if m != f]
        now = pairs.index((moving, fixed)) if (moving, fixed) in pairs else -1
        return pairs[(now + 1) % len(pairs)]

    def send_to_review(self) -> None:
        """Make the warped label a draft of the fixed case, which is put on Review's table.

        Raises
        ------
        ProjectError
            If no pair has been registered, or one of its labels or the networks are others now,
            or its moving case has no label.
        UnsavedError
            See :meth:`napari_jrss.app.review.review.Review.open`.
        """
        self.forget_outdated()
        pair = self._present()
        if pair.registered.label is None:
            raise ProjectError(f"{pair.moving.name} has no label that could be warped")
        self._draft(pair.fixed.name, pair.registered.label, [pair.moving.name])

    def send_draft_to_review(self) -> None:
        """The same with the label that all labelled cases vote for, see :meth:`compare`."""
        self.forget_outdated()
        comparison = self.comparison
        if comparison is None or comparison.draft is None:
            raise ProjectError(self.outdated or "register all labelled cases to a case first")
        moving = sorted(report.moving for report in comparison.reports)
        self._draft(comparison.fixed, comparison.draft.label, moving)

    def _draft(self, case_id: str, label: Label, moving: Sequence[str]) -> None:
        review = self._session.review
        if review.open(case_id):
            review.draft_from(label, "case:" + ",".join(moving))

    def export(self, folder: Path) -> None:
        """Write the present pair into ``<moving>_to_<fixed>`` of a folder.

        The files are those of :func:`napari_jrss.app.pairs.files.write_pair`.

        Raises
        ------
        ProjectError
            As :meth:`send_to_review`, but for the label.
        BusyError
            While another short job runs.
        """
        self.forget_outdated()
        pair, table = self._present(), self._session.open_project.table
        out = folder / f"{pair.moving.name}_to_{pair.fixed.name}"

        def work(cancel: threading.Event) -> Iterator[Path]:
            yield from write_pair(pair, table, out)
            self._session.notified.emit(f"field and warped volumes are in {out}")

        self._session.inference.start(work)

    def _network(self, project: Project, cancel: threading.Event) -> tuple[Module, Device]:
        return registration_network(project, self._session.device, self._watch(cancel))

    def _watch(self, cancel: threading.Event) -> Watch | None:
        """Tells how far the refinement of a pair is, and ends it when the job is to stop.

        None where pairs aren't to be refined.
        """
        if not self.refined:
            return None

        def watch(done: float) -> bool:
            self.refining.emit(done)
            return not cancel.is_set()

        return watch

    def _ready(self) -> Project:
        project = self._session.open_project
        project.require_teacher()
        return project

    def _present(self) -> Pair:
        if self.pair is None:
            raise ProjectError(self.outdated or "register a pair first")
        return self.pair

    def _forget(self) -> None:
        self.pair, self.comparison, self._views, self.outdated = None, None, {}, ""
        self.pair_changed.emit()
        self.comparison_changed.emit()


def _rank(report: RegistrationReport) -> tuple[bool, float, float, float]:
    dice = report.mean_dice
    return dice is None, -(dice or 0), report.residual, report.folded_percent
