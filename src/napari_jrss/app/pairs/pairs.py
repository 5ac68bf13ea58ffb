"""Register pairs of cases: warped volumes, figures, and labels as drafts for the review."""

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
    NETWORK,
    WITHOUT_NETWORK,
    Pair,
    Registrar,
    RegistrationReport,
    engine_of,
    prepare_registration_input,
    project_registrar,
    read_registration_input,
    register_labelled,
    register_sides,
    require_engine,
)
from napari_jrss.app.pairs.scans import register_scans
from napari_jrss.app.pairs.views import View, pair_view
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.config import Prealign
from napari_jrss.errors import ProjectError
from napari_jrss.io.volume import Volume
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Label

if TYPE_CHECKING:
    from napari_jrss.app.review.review import Review
    from napari_jrss.app.workspace import Workspace
    from napari_jrss.inference.watch import Watch
    from napari_jrss.io.predictions import Prediction


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every labelled case registered to one case."""

    fixed: str
    total: int  # number of pairs that will be registered
    # Figures of the pairs that are done, the best first: by mean Dice if both cases have labels,
    # else by the residual, then by the folded voxels.
    reports: tuple[RegistrationReport, ...] = ()
    # The label that all pairs vote for, once they are done; None before.
    draft: Prediction | None = None

    def with_report(self, report: RegistrationReport) -> Comparison:
        """The comparison with one more pair."""
        return replace(self, reports=tuple(sorted((*self.reports, report), key=_rank)))


@dataclass(frozen=True, eq=False)
class RegisteredVolumes:
    """Two volumes that aren't cases, registered, and the moving one on the fixed one's grid."""

    pair: Pair
    warp: ScanWarp


@dataclass(frozen=True)
class Provenance:
    """What a registration was made from: the round of the networks, and the labels of the cases."""

    round_number: int | None  # None for an engine that needs no networks
    versions: Mapping[str, str | None]

    @classmethod
    def of(cls, project: Project, case_ids: Collection[str], engine: str) -> Self:
        """The present teacher's round, if it counts, and the labels in force of some cases."""
        versions = {c.case_id: c.label_version for c in project.cases() if c.case_id in case_ids}
        return cls(_round_of(project) if engine == NETWORK else None, versions)

    def outdated(self, project: Project) -> str:
        """What has changed in the project since then, in words; empty if nothing has."""
        if self.round_number is not None and self.round_number != _round_of(project):
            return f"the networks are now those of round {_round_of(project)}"
        now = self.of(project, self.versions, "").versions
        changed = [name for name in self.versions if now[name] != self.versions[name]]
        return f"{changed[0]} has a new label" if changed else ""


def _round_of(project: Project) -> int | None:
    return None if project.teacher is None else project.teacher.number


class Pairs:
    """The commands of the tab Registration.

    Each command that computes runs as a job of ``workspace.inference``.
    """

    pair_changed = Signal()  # another pair is in `pair`, or none
    # `comparison` has one more pair, or its draft, or is another one or None.
    comparison_changed = Signal()
    view_made = Signal(str)  # a view of the pair that was asked for is ready, see `view`
    refining = Signal(float)  # fraction of the present pair's refinement that is done, 0 to 1
    # Carries the result of `register_volumes`, a `RegisteredVolumes`.
    volumes_registered = Signal(object)
    refined_changed = Signal(bool)  # carries the new value of `refined`
    engine_changed = Signal(str)  # carries the new value of `engine`

    def __init__(self, workspace: Workspace, review: Review) -> None:
        self._workspace = workspace
        self._review = review
        self.pair: Pair | None = None  # the latest registered pair, or None
        self.queue = WorkQueue("pairs")  # makes the views
        self._views: dict[tuple[View, int], NDArray[Any] | None] = {}
        # The latest case that all labelled cases were registered to, or None.
        self.comparison: Comparison | None = None
        self._refined = False
        # Why the pair or the comparison was dropped, see `forget_outdated`; else empty.
        self.outdated = ""
        self._pair_basis = self._comparison_basis = Provenance(None, {})
        workspace.project_changed.connect(self._forget)

    @property
    def engine(self) -> str:
        """The engine that registers from now on, also for Propagate; empty: the project's network.

        A project without networks has :data:`napari_jrss.app.pairs.registering.WITHOUT_NETWORK`
        in their place.
        """
        return self._workspace.engine

    @engine.setter
    def engine(self, engine: str) -> None:
        if engine != self._workspace.engine:
            self._workspace.engine = engine
            self.engine_changed.emit(engine)

    @property
    def engine_in_use(self) -> str:
        """Name of the engine that the open project's pairs are registered by."""
        return engine_of(self._workspace.open_project, self.engine)

    @property
    def refined(self) -> bool:
        """Whether registrations from now on refine each field of the network on its pair.

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

        A :class:`ProjectError` if the two are the same case, or the engine is the network and
        the project has none; an ``EngineError`` if it isn't installed.
        """
        project, engine = self._ready()
        if moving == fixed:
            raise ProjectError(f"{moving}: choose two different cases")

        def work(cancel: threading.Event) -> Iterator[RegistrationReport]:
            basis = Provenance.of(project, (moving, fixed), engine)
            registrar = self._registrar(project, engine, cancel)
            sides = (
                read_registration_input(project, moving),
                read_registration_input(project, fixed),
            )
            pair = register_sides(registrar, *sides, project.table.names)
            if not cancel.is_set() and self._workspace.project is project:
                self.outdated, self._pair_basis = "", basis
                self.pair, self._views = pair, {}
                self.pair_changed.emit()
            yield pair.report

        self._workspace.inference.start(work)

    def view(self, view: View, across: int = 0) -> NDArray[Any] | None:
        """A view of the pair, see :func:`~napari_jrss.app.pairs.views.pair_view`.

        None if it isn't ready; it is made then, and :attr:`view_made` is emitted.
        """
        pair, views = self._present(), self._views
        spacing_mm = self._workspace.open_project.grid.spacing_mm
        key = (view, across)
        if key not in views:
            views[key] = None

            def make() -> None:
                if views is self._views:
                    views[key] = pair_view(pair, view, spacing_mm, across)
                    self.view_made.emit(view)

            self.queue.submit(make)
        return views[key]

    def compare(self, case_id: str) -> None:
        """Register every other labelled case to a case; their labels vote for a draft."""
        project, engine = self._ready()
        atlases = set(project.snapshot().labelled) - {case_id}

        def work(cancel: threading.Event) -> Iterator[RegistrationReport]:
            comparison = Comparison(case_id, len(atlases))
            basis = Provenance.of(project, {case_id, *atlases}, engine)
            registrar = self._registrar(project, engine, cancel)
            for each in register_labelled(project, case_id, registrar):
                if cancel.is_set() or self._workspace.project is not project:
                    return
                if isinstance(each, RegistrationReport):
                    comparison = comparison.with_report(each)
                    yield each
                else:
                    comparison = replace(comparison, draft=each)
                self.outdated, self._comparison_basis = "", basis
                self.comparison = comparison
                self.comparison_changed.emit()

        self._workspace.inference.start(work)

    def register_volumes(
        self,
        moving: Volume,
        fixed: Volume,
        names: tuple[str, str],
        *,
        engine: str = "",
        prealign: Prealign = "affine",
    ) -> None:
        """Register two volumes that aren't cases; emits :attr:`volumes_registered`.

        Their affines (LPS mm) say where they lie; `names` are for the report. The network of the
        open project, where that is the `engine`, sees them on its training grid. Any other engine
        needs no project, and `prealign` says what comes before it.
        """
        opened = self._workspace.project
        engine = engine or self.engine
        if not engine:
            engine = WITHOUT_NETWORK if opened is None else engine_of(opened)
        project = self._workspace.open_project if engine == NETWORK else None
        require_engine(engine, project)

        def work(cancel: threading.Event) -> Iterator[RegistrationReport]:
            if project is None:
                pair = register_scans(
                    *(moving, fixed, engine),
                    prealign=prealign,
                    names=names,
                    watch=self._watch(cancel),
                    device=self._workspace.device,
                )
            else:
                registrar = self._registrar(project, engine, cancel)
                here = prepare_registration_input(project, names[0], moving)
                there = prepare_registration_input(project, names[1], fixed)
                pair = register_sides(registrar, here, there, project.table.names)
            warp = on_fixed_scan(pair)
            if not cancel.is_set():
                self.volumes_registered.emit(RegisteredVolumes(pair, warp))
            yield pair.report

        self._workspace.inference.start(work)

    def forget_outdated(self) -> None:
        """Drop results of networks, or labels, that aren't in force any more."""
        project, pair, comparison = self._workspace.project, self.pair, self.comparison
        if project is None:
            return
        if pair is not None and (why := self._pair_basis.outdated(project)):
            self.outdated = f"{why}: register {pair.moving.name} to {pair.fixed.name} again"
            self.pair, self._views = None, {}
            self.pair_changed.emit()
        if comparison is not None and (why := self._comparison_basis.outdated(project)):
            self.outdated = f"{why}: register all labelled cases to {comparison.fixed} again"
            self.comparison = None
            self.comparison_changed.emit()

    def following(self, moving: str, fixed: str) -> tuple[str, str]:
        """The pair after this one: the next moving case, or else the next fixed case."""
        ids = [case.case_id for case in self._workspace.open_project.cases()]
        if len(ids) < 2:
            raise ProjectError("registration needs two cases")
        pairs = [(m, f) for f in ids for m in ids if m != f]
        now = pairs.index((moving, fixed)) if (moving, fixed) in pairs else -1
        return pairs[(now + 1) % len(pairs)]

    def send_to_review(self) -> None:
        """Open the fixed case for review, with the warped label as a draft.

        A :class:`ProjectError` if there is no pair, it is outdated, or its moving case has no
        label. For corrections of the present case see
        :meth:`napari_jrss.app.review.review.Review.open`.
        """
        self.forget_outdated()
        pair = self._present()
        if pair.registered.label is None:
            raise ProjectError(f"{pair.moving.name} has no label to warp")
        self._draft(pair.fixed.name, pair.registered.label, [pair.moving.name])

    def send_draft_to_review(self) -> None:
        """The same with the label that all labelled cases voted for, see :meth:`compare`."""
        self.forget_outdated()
        comparison = self.comparison
        if comparison is None or comparison.draft is None:
            raise ProjectError(self.outdated or "register all labelled cases to a case first")
        moving = sorted(report.moving for report in comparison.reports)
        self._draft(comparison.fixed, comparison.draft.label, moving)

    def _draft(self, case_id: str, label: Label, moving: Sequence[str]) -> None:
        if self._review.open(case_id):
            self._review.draft_from(label, "case:" + ",".join(moving))

    def export(self, folder: Path) -> None:
        """Write the present pair into ``<moving>_to_<fixed>`` in a folder.

        The files are those of :func:`napari_jrss.app.pairs.files.write_pair`.
        """
        self.forget_outdated()
        pair, table = self._present(), self._workspace.open_project.table
        out = folder / f"{pair.moving.name}_to_{pair.fixed.name}"

        def work(cancel: threading.Event) -> Iterator[Path]:
            yield from write_pair(pair, table, out)
            self._workspace.notified.emit(f"field and warped volumes are in {out}")

        self._workspace.inference.start(work)

    def _registrar(self, project: Project, engine: str, cancel: threading.Event) -> Registrar:
        return project_registrar(
            project,
            engine,
            refined=self.refined and engine == NETWORK,
            watch=self._watch(cancel),
            device=self._workspace.device,
        )

    def _watch(self, cancel: threading.Event) -> Watch:
        """What follows a pair's refinement and can stop it."""

        def watch(done: float) -> bool:
            self.refining.emit(done)
            return not cancel.is_set()

        return watch

    def _ready(self) -> tuple[Project, str]:
        """The open project and the engine, which can be used."""
        project, engine = self._workspace.open_project, self.engine_in_use
        require_engine(engine, project)
        return project, engine

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
