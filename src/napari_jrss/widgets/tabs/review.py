"""The tab Review: one case, the teacher's prediction of it, and the label that is corrected."""

from collections.abc import Callable

from napari.viewer import Viewer
from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QWidget
from superqt.utils import qthrottled

from napari_jrss.app.author import known_author, remember_author
from napari_jrss.app.pairs.registering import RegistrationReport
from napari_jrss.app.review.editor import Box, Edit
from napari_jrss.app.review.open_case import OpenCase, draft_in_words
from napari_jrss.app.review.review import Leave
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.training.screening import Screened
from napari_jrss.widgets.controls import button, in_column, in_row, local_time, scrolled, wrapped
from napari_jrss.widgets.dialogs.review import ask_leave, ask_name, ask_reason, ask_replace
from napari_jrss.widgets.layers.review import ABOVE, OVERLAYS, ReviewLayers
from napari_jrss.widgets.tables.structures import StructureTable
from napari_jrss.widgets.tabs.review_panels import (
    NEXT,
    REPAIRS,
    DraftPanel,
    PredictionPanel,
    ToolsPanel,
    UnfinishedPanel,
)
from napari_jrss.widgets.tabs.tab import Tab, next_case_text

_REASONS = ["motion or artefacts", "anatomy unlike the others", "too hard for now"]
_REJECTIONS = ["the pseudo-label is wrong", "structures are mixed up"]


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
                "Control-Z": self._do(review.tools.undo),
                "Control-Shift-Z": self._do(review.tools.redo),
                "U": self._do(review.prediction.next_uncertain),
                "I": self._do(self._interpolate),
                "Shift-A": self.accept_case,
            },
            self._painted,
            self._structure_chosen,
            lambda kind, visible: self.prediction.show_overlay(kind, visible),
        )
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
        connect(review.queue.failed, self._tell_error)
        connect(workspace.inference.event, self._show_progress)
        connect(workspace.inference.state_changed, self._inference_changed)
        connect(workspace.project_changed, self._show_case)
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
        self.prediction = PredictionPanel()
        self.prediction.tau_changed.connect(self._tau_chosen)
        self.prediction.shown.connect(self.layers.set_visible)
        self.table = StructureTable()
        self.table.setMinimumHeight(110)
        self.table.chosen.connect(self._row_chosen)
        self.table.accepted.connect(
            lambda index, on: self._do(review.accept_structure, index, on)()
        )
        self.draft = DraftPanel(self._do(review.prediction.propagate))
        self.draft.start.connect(self._start_from)
        self.draft.take.connect(lambda draft: self._with_structure(tools.take_structure, draft))

        self.tools = ToolsPanel(
            {
                "Interpolate": self._do(self._interpolate),
                "Smooth": lambda: self._with_structure(tools.smooth),
                "Fill holes": lambda: self._with_structure(tools.fill_holes),
                "Largest part": lambda: self._with_structure(tools.keep_largest),
                "Undo": self._do(tools.undo),
                "Redo": self._do(tools.redo),
                "Revert": self._do(tools.revert),
                NEXT: self._do(review.prediction.next_uncertain),
            }
        )
        self.progress = wrapped()
        self.status = wrapped()
        self.accept = button(
            "Accept case",
            "Save the label as a new version; the next round trains on it (Shift+A)",
            self.accept_case,
        )
        self.reject = button(
            "Reject…", "Record that the pseudo-label is wrong, and why", self._ask_reject
        )
        self.skip = button("Skip…", "Leave the case for later, and record why", self._ask_skip)

        inner = QWidget()
        body = in_column(
            inner,
            *(self.title, self.notice, self.unfinished, self.prediction, self.table),
            *(self.draft, self.tools, self.progress, self.status),
            in_row(self.accept, self.reject, self.skip, stretch=(2, 1, 1)),
            in_row(self.suggestion, self.open_next, stretch=(1,)),
        )
        body.setStretchFactor(self.table, 1)
        scrolled(inner, self)

    # -- what the person does

    def accept_case(self) -> None:
        """Accept the case; the first time, ask for the person's name."""
        if self._named():
            self._do(self._review.accept)()

    def _ask_reject(self) -> None:
        reason = ask_reason(self, "Reject", "What is wrong with the pseudo-label?", _REJECTIONS)
        if reason is not None and self._named():
            self._do(self._review.reject, reason)()

    def _ask_skip(self) -> None:
        reason = ask_reason(self, "Skip", "Why is the case left for later?", _REASONS)
        if reason is not None and self._named():
            self._do(self._review.skip, reason)()

    def _ask_leave(self, case: OpenCase) -> Leave | None:
        choice = ask_leave(self, case)
        if choice is Leave.ACCEPT and not self._named():
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

    def _open_next(self) -> None:
        suggestion = self._review.suggestion
        if suggestion is None:
            with self._reporting():
                self._review.suggest_next(tell=True)
        else:
            self._do(self._review.open, suggestion.case_id)()

    def _with_structure(self, command: Callable[..., object], *arguments: object) -> None:
        if self.table.index is not None:
            self._do(command, self.table.index, *arguments)()

    def _interpolate(self) -> None:
        index = self.table.index
        if index is not None:
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

    def _structure_chosen(self, index: int) -> None:
        self.table.choose(index)

    def _painted(self, within: Box | None = None) -> None:
        case = self._review.case
        if case is None:
            return
        edit = case.editor.sync(within=within)
        if edit is not None and not edit.shown:
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
        if case is None:
            self.layers.clear()
            self.title.setText(
                "No project is open."
                if project is None
                else "No case is open. Double-click a case in Cohort, or press Suggest below."
            )
            self.table.setRowCount(0)
        else:
            self.layers.show(case, read_only)
            self._row_chosen(self.table.index or 1)
        repairs = [self.tools.buttons[text] for text in (*REPAIRS, "Revert")]
        for widget in (*repairs, self.accept, self.reject, self.skip):
            widget.setEnabled(case is not None and not read_only)
        self.draft.setEnabled(case is not None and not read_only)
        self.table.setEnabled(case is not None)
        self._show_unfinished()
        self._show_suggestion()
        self._show_prediction()

    def _show_prediction(self) -> None:
        case = self._review.case
        if case is not None:
            self.layers.show_prediction()
        known = {
            kind: layer.visible
            for kind in OVERLAYS
            if case is not None
            and case.prediction is not None
            and (layer := self.layers.layer(kind)) is not None
        }
        if case is not None and case.prediction is not None and case.prediction.uncertainty is None:
            known.pop("uncertainty", None)
        self.prediction.show_case(case, known)
        self.tools.buttons[NEXT].setEnabled(case is not None and case.prediction is not None)
        self.draft.show_sources(case)
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
            self.tools.show_steps(None, None)
            return
        self.table.show_rows(case.structures(), project.read_only)
        self.title.setText(f"{case.case_id}: {case.case.split}, {case.case.status}")
        lines = [case.purpose]
        if project.read_only:
            lines.append("The project is open read-only: nothing can be changed or accepted.")
        if case.recovered is not None:
            lines.append(f"Your corrections of {local_time(case.recovered)} are back.")
        self.notice.setText("\n".join(filter(None, lines)))
        self.notice.setVisible(any(lines))
        editor = case.editor
        self.tools.show_steps(editor.undo_name, editor.redo_name)
        minutes, seconds = divmod(int(case.autosave.seconds), 60)
        draft = draft_in_words(editor.origin.draft)
        self.status.setText(
            f"{editor.voxels_changed:,} voxels differ from the draft ({draft}). "
            f"Time on this case: {minutes} min {seconds:02d} s"
        )

    def _show_suggestion(self) -> None:
        suggestion = self._review.suggestion
        self.open_next.setEnabled(self._workspace.project is not None)
        self.open_next.setText("Suggest" if suggestion is None else "Open next")
        self.suggestion.setText("" if suggestion is None else next_case_text(suggestion))

    def _show_region(self) -> None:
        region, case = self._review.prediction.region, self._review.case
        if region is None or case is None or case.regions is None:
            return
        self.layers.look_at(region.at)
        number = case.regions.index(region) + 1
        known = case.prediction is not None and case.prediction.uncertainty is not None
        measure = f"disagreement {region.mean:.2f} nats" if known else f"doubt {region.mean:.2f}"
        self._workspace.notified.emit(
            f"Uncertain region {number} of {len(case.regions)}: {case.table.names[region.index]}, "
            f"{region.volume_ml:.2f} ml, mean {measure}"
        )
        if region.index:
            self.table.choose(region.index)

    def _show_unfinished(self) -> None:
        project = self._workspace.project
        self.unfinished.show_entries([] if project is None else self._review.unfinished)

    def _show_progress(self, event: object) -> None:
        if isinstance(event, RegistrationReport) and self._review.case is not None:
            self.progress.setText(f"{event.moving} is registered to {event.fixed}")

    def _inference_changed(self, state: JobState) -> None:
        if not state.busy:
            self.progress.setText("")
        self.draft.propagate.setEnabled(not state.busy)

    def _tell_error(self, error: Exception) -> None:
        with self._reporting():
            raise error

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Take the layers away; corrections are kept for the next time."""
        self._review.ask = None
        if self._review.case is not None:
            self._review.case.editor.sync()
        self.layers.clear()
        super().closeEvent(event)
