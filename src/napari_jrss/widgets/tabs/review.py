"""The tab Review: one case, the teacher's prediction of it, and the label that is corrected."""

from napari.viewer import Viewer
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QWidget
from superqt.utils import qthrottled

from napari_jrss.app.author import known_author, remember_author
from napari_jrss.app.pairs.registering import RegistrationReport
from napari_jrss.app.review.editor import Box, Edit
from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.app.review.opinions import Dispute
from napari_jrss.app.review.review import Leave
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.project.project import Project
from napari_jrss.times import duration, local_time
from napari_jrss.training.screening import Screened
from napari_jrss.widgets import keys
from napari_jrss.widgets.controls import Scroller, button, in_column, in_row, say, wrapped
from napari_jrss.widgets.dialogs.review import (
    ask_leave,
    ask_missing,
    ask_name,
    ask_reason,
    ask_replace,
)
from napari_jrss.widgets.dialogs.totalsegmentator import DraftDialog
from napari_jrss.widgets.layers.other_images import OtherImageLayers
from napari_jrss.widgets.layers.review import ABOVE, IMAGE, OVERLAYS, ReviewLayers
from napari_jrss.widgets.planes import LinkedPlanes
from napari_jrss.widgets.tables.structures import StructurePanel
from napari_jrss.widgets.tabs.echoes import EchoPanel
from napari_jrss.widgets.tabs.learning import LearningPanel
from napari_jrss.widgets.tabs.opinions import DISPUTE, FIRST, SECOND, SLICE, OpinionsPanel
from napari_jrss.widgets.tabs.prompts import PromptsPanel
from napari_jrss.widgets.tabs.review_panels import (
    NEXT,
    REVERT,
    DraftPanel,
    PredictionPanel,
    StepsPanel,
    ToolsPanel,
    UnfinishedPanel,
    ViewPanel,
)
from napari_jrss.widgets.tabs.review_tools import MouseTools
from napari_jrss.widgets.tabs.tab import Tab, next_case_text
from napari_jrss.widgets.words import SPLITS, STATUSES

_REASONS = ["motion or artefacts", "anatomy unlike the others", "too hard for now"]
_REJECTIONS = ["the teacher's draft is wrong", "structures are mixed up"]


class ReviewTab(Tab):
    """One case under review, with the tools to correct its label."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__(viewer, session)
        workspace = self._workspace
        self._review = review = session.review
        self._shown: Screened | None = None
        self.layers = ReviewLayers(
            viewer,
            {
                **{key: lambda key=key: self.mouse.press(key) for key in MouseTools.KEYS},
                keys.REDO: self._do(review.tools.redo),
                keys.NEXT_UNCERTAIN: self._do(review.prediction.next_uncertain),
                keys.INTERPOLATE: self._do(self._interpolate),
                keys.NEXT_SLICE: lambda: self.opinions.commands[SLICE](),
                keys.NEXT_DISPUTE: lambda: self.opinions.commands[DISPUTE](),
                keys.FIRST_OPINION: lambda: self.opinions.commands[FIRST](),
                keys.SECOND_OPINION: lambda: self.opinions.commands[SECOND](),
                keys.ALONE: lambda: self.view.alone.toggle(),
                keys.CONTOURS: lambda: self.view.outlines.toggle(),
                keys.PLANES: lambda: self.view.planes.click(),
                keys.SEARCH: lambda: self.structures.search.setFocus(),
                keys.ACCEPT: self.accept_case,
                keys.NEXT_CASE: self._open_next,
            },
            self._painted,
            self._structure_chosen,
            lambda kind, visible: self.prediction.show_overlay(kind, visible),
            lambda mode, size: self.brush.show_brush(mode, size),
        )
        self.other_images = OtherImageLayers(viewer, review.other_image)
        self._build()
        self._redraw_soon = qthrottled(self._redraw_numbers, timeout=100)

        connect = self._relay.connect
        connect(review.case_changed, self._show_case)
        connect(review.prediction.changed, self._show_prediction)
        connect(review.prediction.screened, self._show_tau)
        connect(review.label_changed, self._show_edit)
        connect(review.status_changed, self._show_status)
        connect(review.suggestion_changed, self._show_suggestion)
        connect(review.prediction.region_changed, self._show_region)
        connect(review.unfinished_changed, self._show_unfinished)
        connect(review.place_wanted, self._show_place)
        connect(review.queue.failed, self._tell_error)
        connect(workspace.background.failed, self._tell_error)
        connect(workspace.inference.event, self._show_progress)
        connect(workspace.inference.state_changed, self._inference_changed)
        connect(review.prediction.draft_made, self._show_draft)
        connect(review.tools.working_changed, self._show_busy)
        connect(review.prompts.changed, self.prompts.show_state)
        connect(review.prompts.queue.failed, self._tell_error)
        connect(workspace.project_changed, self._show_case)
        viewer.dims.events.current_step.connect(self._slice_changed)
        review.ask = self._ask_leave
        self._show_case()

    # -- how it looks

    def _build(self) -> None:
        review, tools = self._review, self._review.tools
        self.title = wrapped()
        self.notice = wrapped()
        self.unfinished = UnfinishedPanel()
        self.unfinished.recover.connect(lambda case_id: self._do(review.open, case_id)())
        self.unfinished.discard.connect(
            lambda case_id: self._do(review.discard_unfinished, case_id)()
        )
        self.suggestion = wrapped()
        self.open_next = button(
            "Open next", "Open the case whose label would help training most", self._open_next
        )
        self.view = ViewPanel()
        self.view.brightness.connect(self._brightness_chosen)
        self.view.alone.toggled.connect(self.layers.set_alone)
        self.view.outlines.toggled.connect(self.layers.set_outlines)
        self.planes = LinkedPlanes(self._viewer, self.layers)
        self.view.planes.toggled.connect(self.planes.show)
        self.prediction = PredictionPanel()
        self.prediction.tau_changed.connect(self._tau_chosen)
        self.prediction.shown.connect(self.layers.set_visible)
        self.structures = StructurePanel(self._structures_here)
        self.table = self.structures.table
        self.table.chosen.connect(self._row_chosen)
        self.table.visited.connect(self._go_to)
        self.table.accepted.connect(
            lambda index, on: self._do(review.accept_structure, index, on)()
        )
        self.draft = DraftPanel(
            self._do(review.prediction.propagate),
            self._do(lambda: DraftDialog(self._session, self).open()),
        )
        self.draft.start.connect(self._start_from)
        self.draft.take.connect(
            lambda draft: self.mouse.with_structure(tools.take_structure, draft)
        )
        self.opinions = OpinionsPanel(
            self._viewer, self._session, self._relay, self.layers, self.table
        )
        self.mouse = MouseTools(
            *(self._viewer, review, self.layers, self.planes, self._relay, self.draft),
            lambda: self.table.index,
            self._do,
        )
        self.brush = self.mouse.brush
        self.tools = ToolsPanel(
            {
                "Interpolate": self._do(self._interpolate),
                "Smooth": lambda: self.mouse.with_structure(tools.smooth),
                "Fill holes": lambda: self.mouse.with_structure(tools.fill_holes),
                "Largest part": lambda: self.mouse.with_structure(tools.keep_largest),
                REVERT: self._do(tools.revert),
            },
            self.mouse.more,
        )
        self.prompts = PromptsPanel(
            self._viewer, self._session, self.layers, lambda: self.table.index, self._do
        )
        self.steps = StepsPanel(
            {
                "Undo": lambda: self.mouse.press(keys.UNDO),
                "Redo": self._do(tools.redo),
                NEXT: self._do(review.prediction.next_uncertain),
            }
        )
        self.progress = wrapped()
        self.status = wrapped()
        self.learning = LearningPanel(self._session, self._relay)
        self.echoes = EchoPanel(self._session, self._relay)
        self.accept = button(
            "Accept",
            "Save the label as a new version, and go on to the next case. The next training uses "
            "it (Shift+A)",
            self.accept_case,
        )
        self.reject = button(
            "Reject…", "Record that the teacher's draft is wrong, and why", self._ask_reject
        )
        self.skip = button("Skip…", "Leave the case for later, and record why", self._ask_skip)

        self._work = QWidget()
        body = in_column(
            self._work,
            *(self.title, self.notice, self.structures, self.brush, self.view, self.prediction),
            *(self.draft, self.opinions, self.tools, self.prompts),
            *(self.progress, self.status, self.learning),
        )
        body.setStretchFactor(self.structures, 1)
        body.addStretch(0)
        body.setSpacing(6)
        body.setContentsMargins(0, 0, 0, 0)
        self.empty = wrapped()
        page = QWidget()
        whole = in_column(
            page, self.unfinished, self.echoes, self.empty, self._work, self.suggestion
        )
        whole.setStretchFactor(self._work, 1)
        whole.addStretch(0)
        whole.setContentsMargins(6, 6, 6, 0)
        scroll = Scroller(page)
        decisions = in_row(
            self.accept, self.reject, self.skip, self.open_next, stretch=(2, 1, 1, 1)
        )
        decisions.setSpacing(4)
        # What each case needs stays on the screen, however low the window is.
        column = in_column(self, scroll, self.mouse.region, self.steps, decisions)
        column.setStretchFactor(scroll, 1)
        column.setSpacing(4)
        column.setContentsMargins(4, 0, 4, 4)

    # -- what the person does

    def accept_case(self) -> None:
        """Accept the case; the first time, ask for the person's name."""
        case = self._review.case
        with self._reporting():
            self._review.tools.region.take()  # what is shown is what is accepted
        if (case is None or self._complete(case)) and self._named():
            with self._reporting():
                self._review.accept(go_on=True)

    def _complete(self, case: OpenCase) -> bool:
        """Whether no structure became empty, or the person means it."""
        case.editor.sync()
        missing = case.missing() if case.editor.label.any() else []
        return not missing or ask_missing(self, case, missing)

    def _ask_reject(self) -> None:
        reason = ask_reason(self, "Reject", "What is wrong with the teacher's draft?", _REJECTIONS)
        if reason is not None and self._named():
            with self._reporting():
                self._review.reject(reason, go_on=True)

    def _ask_skip(self) -> None:
        reason = ask_reason(self, "Skip", "Why is the case left for later?", _REASONS)
        if reason is not None and self._named():
            with self._reporting():
                self._review.skip(reason, go_on=True)

    def _ask_leave(self, case: OpenCase) -> Leave | None:
        choice = ask_leave(self, case)
        if choice is Leave.ACCEPT and not (self._complete(case) and self._named()):
            return None
        return choice

    def _named(self) -> bool:
        """Whether the person's name is known; ask for it if not."""
        with self._reporting():
            name = self._workspace.author or known_author()
            if not name and (name := ask_name(self)):
                remember_author(name)
            self._workspace.author = name
            return bool(name)
        return False

    def _start_from(self, draft: str) -> None:
        case = self._review.case
        if case is None or not self._review.unsaved or ask_replace(self, case):
            with self._reporting():
                self._review.start_from(draft, replace=True)

    def open_suggested(self) -> None:
        """Open the case whose label would help most."""
        if self._review.suggestion is None:
            suggestion = self._session.cohort.suggest()
            if suggestion is not None:
                self._do(self._review.open, suggestion.case_id)()
                return
        self._open_next()

    def _open_next(self) -> None:
        suggestion = self._review.suggestion
        if suggestion is None:
            with self._reporting():
                self._review.suggest_next(tell=True)
        else:
            self._do(self._review.open, suggestion.case_id)()

    def _interpolate(self) -> None:
        index = self.table.index
        if index is not None and not self._review.tools.working:
            # Across the slices that are looked at.
            self._review.tools.interpolate(index, int(self._viewer.dims.order[0]))

    def _tau_chosen(self, tau: float) -> None:
        box = self.prediction.boxes[ABOVE]
        if box.isEnabled() and not box.isChecked():
            box.setChecked(True)
        self._do(self._review.prediction.set_tau, tau)()

    def _row_chosen(self, index: int) -> None:
        label = self.layers.label
        if label is not None and label.selected_label != index:
            label.selected_label = index

    def _go_to(self, index: int) -> None:
        """Go to a structure where the slice that is looked at doesn't hold it."""
        case = self._review.case
        if case is not None and index not in self._structures_here():
            at = case.middle_of(index, int(self._viewer.dims.order[0]))
            if at is not None:
                self.layers.look_at(at)

    def _structures_here(self) -> set[int]:
        """Structures in the slice that is looked at."""
        case, label = self._review.case, self.layers.label
        if case is None or label is None:
            return set()
        axis = int(self._viewer.dims.order[0])
        number = round(float(label.world_to_data(self._viewer.dims.point)[axis]))
        if not 0 <= number < case.editor.label.shape[axis]:
            return set()
        return case.structures_in(axis, number)

    def _slice_changed(self, event: object = None) -> None:
        self.structures.slice_changed()

    def _brightness_chosen(self, name: str) -> None:
        case = self._review.case
        if case is not None and name in case.windows:
            self.layers.set_limits(case.windows[name])

    def _structure_chosen(self, index: int) -> None:
        self.table.choose(index)

    def _painted(self, within: Box | None = None) -> None:
        case = self._review.case
        if case is None:
            return
        if self.mouse.draw_region(within):
            return
        edit = case.editor.sync(within=within)
        if edit is not None and edit.refused:
            self._workspace.notified.emit(
                "An accepted structure stays as it is; remove its tick to paint on it"
                if case.editor.locked
                else f"There is no such structure; choose one of the {len(case.table.names) - 1} "
                "in the table"
            )

    # -- what the session says

    def _show_case(self) -> None:
        case, project = self._review.case, self._workspace.project
        read_only = project is not None and project.read_only
        self._work.setVisible(case is not None)
        self.empty.setVisible(case is None)
        for part in (self.steps, self.accept, self.reject, self.skip):
            part.setVisible(case is not None)
        if case is None:
            self.layers.clear()
            self.other_images.clear()
            self.empty.setText(_no_case(project))
            self.table.clear_rows()
        else:
            self.layers.show(case, read_only)
            if project is not None and (scan := self.layers.layer(IMAGE)) is not None:
                self.other_images.show(case, project.channels[1:], scan)
            self._row_chosen(self.table.index or 1)
            self._brightness_chosen(self.view.show_case(case))
            self.layers.set_alone(self.view.alone.isChecked())
            self.layers.set_outlines(self.view.outlines.isChecked())
        for widget in (self.accept, self.skip, self.brush):
            widget.setEnabled(case is not None and not read_only)
        self.draft.setEnabled(case is not None and not read_only)
        self.table.setEnabled(case is not None)
        self.prompts.case_shown()
        self._show_busy()
        self.mouse.show_case()
        self._show_unfinished()
        self._show_suggestion()
        self._show_prediction()

    def _show_busy(self) -> None:
        """Let no tool be asked for twice while one works."""
        case, project = self._review.case, self._workspace.project
        working = self._review.tools.working
        ready = case is not None and project is not None and not project.read_only and not working
        for each in (*self.tools.buttons.values(), self.mouse.more, self.draft.take_one):
            each.setEnabled(ready)
        if working:
            self.progress.setText(f"{working[:1].upper()}{working[1:]} …")
        elif not self._workspace.inference.state.busy:
            self.progress.setText("")

    def _show_draft(self, case_id: str, draft: str) -> None:
        case = self._review.case
        if case is not None and case.case_id == case_id:
            self.draft.show_sources(case)
            self.draft.choose(draft)

    def _show_prediction(self) -> None:
        case = self._review.case
        if case is not None:
            self.layers.show_prediction()
        seen = {
            kind: layer.visible
            for kind in OVERLAYS
            if case is not None
            and case.prediction is not None
            and (layer := self.layers.layer(kind)) is not None
        }
        if case is not None and case.prediction is not None and case.prediction.uncertainty is None:
            seen.pop("uncertainty", None)
        self.prediction.show_case(case, seen)
        known = case is not None and case.prediction is not None
        self.steps.buttons[NEXT].setEnabled(known)
        project = self._workspace.project
        self.reject.setEnabled(known and project is not None and not project.read_only)
        self._show_propagate()
        self.draft.show_sources(case)
        self.opinions.redraw()
        self._redraw_numbers()

    def _show_status(self) -> None:
        case = self._review.case
        if case is not None:
            self.layers.recolour(case)
        self.draft.show_sources(case)
        self._redraw_soon()

    def _show_tau(self) -> None:
        case = self._review.case
        # Of many moves of the slider, all of which are told of, the latest is shown once.
        if case is not None and case.screened is not None and case.screened is not self._shown:
            self._shown = case.screened
            self.prediction.show_words(case.screened)
            self.layers.show_tau()
            self._redraw_soon()

    def _show_edit(self, edit: Edit) -> None:
        self.layers.show_edit(edit)
        self._redraw_soon()

    def _redraw_numbers(self) -> None:
        case, project = self._review.case, self._workspace.project
        if case is None or project is None:
            self.status.setText("")
            self.notice.hide()
            self.steps.show_steps(None, None)
            return
        self.structures.show_rows(case.structures(), project.read_only)
        self.title.setText(
            f"{case.case_id}: {SPLITS[case.case.split]}, {STATUSES[case.case.status]}"
        )
        lines = [case.purpose]
        if project.read_only:
            lines.append("The project is open read-only: nothing can be changed or accepted.")
        if case.recovered is not None:
            lines.append(f"Your corrections of {local_time(case.recovered)} are back.")
        self.notice.setText("\n".join(filter(None, lines)))
        self.notice.setVisible(any(lines))
        editor = case.editor
        self.steps.show_steps(editor.undo_name, editor.redo_name)
        self.status.setText(
            f"{editor.voxels_changed:,} voxels differ from what it began from. "
            f"{duration(case.autosave.seconds)} on this case."
        )

    def _show_suggestion(self) -> None:
        suggestion = self._review.suggestion
        self.open_next.setEnabled(self._workspace.project is not None)
        self.open_next.setText("Suggest" if suggestion is None else "Open next")
        say(self.suggestion, "" if suggestion is None else next_case_text(suggestion))

    def _show_region(self) -> None:
        region, case = self._review.prediction.region, self._review.case
        if region is None or case is None or case.regions is None:
            return
        self.layers.show_region(region)
        number = case.regions.index(region) + 1
        self._workspace.notified.emit(
            f"Uncertain region {number} of {len(case.regions)}: {case.table.names[region.index]}, "
            f"{region.volume_ml:.2f} ml"
        )
        if region.index:
            self.table.choose(region.index)

    def _show_place(self, place: Dispute) -> None:
        self.layers.show_dispute(place)
        self.table.choose(place.second or place.first)

    def _show_unfinished(self) -> None:
        project = self._workspace.project
        self.unfinished.show_entries([] if project is None else self._review.unfinished)

    def _show_progress(self, event: object) -> None:
        if isinstance(event, RegistrationReport) and self._review.case is not None:
            self.progress.setText(f"{event.moving} is registered to {event.fixed}")

    def _inference_changed(self, state: JobState) -> None:
        if not state.busy:
            self.progress.setText("")
        self._show_propagate()

    def _show_propagate(self) -> None:
        case, project = self._review.case, self._workspace.project
        busy = self._workspace.inference.state.busy
        cases = [] if project is None else project.cases()  # none while the first are read
        others = {each.case_id for each in cases if each.labelled}
        possible = case is not None and bool(others - {case.case_id})
        self.draft.propagate.setEnabled(possible and not busy)

    def _tell_error(self, error: Exception) -> None:
        with self._reporting():
            raise error

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Take the layers away; corrections are kept for the next time."""
        self._review.ask = None
        self._viewer.dims.events.current_step.disconnect(self._slice_changed)
        if self._review.case is not None:
            self._review.case.editor.sync()
        self.planes.close()
        self.prompts.close_drawing()
        self.layers.close()
        self.other_images.clear()
        super().closeEvent(event)


def _no_case(project: Project | None) -> str:
    """What to do where no case is open."""
    if project is None:
        return "No project is open.\n\nImport scans or open a project in Cohort."
    if not project.cases():
        return "The project has no cases yet. Add scans in Cohort."
    return (
        "No case is open.\n\n"
        "Here you correct the label of one case: paint, let tools smooth and fill, and accept it. "
        "Open next takes the case whose label would help most; a double click in Cohort opens any "
        "case."
    )
