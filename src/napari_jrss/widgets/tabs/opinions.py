"""Two opinions on a case, dispute by dispute: the part of Review that decides between them."""

from collections.abc import Callable

from napari.viewer import Viewer
from qtpy.QtWidgets import QGroupBox, QPushButton

from napari_jrss.app.review.open_case import draft_in_words
from napari_jrss.app.session import Session
from napari_jrss.widgets.bridge import Relay, report_errors
from napari_jrss.widgets.controls import button, in_column, in_row, say, wrapped
from napari_jrss.widgets.layers.review import ReviewLayers
from napari_jrss.widgets.tables.structures import StructureTable

DISPUTE, FIRST, SECOND, SLICE = "Next dispute", "Teacher's", "Propagated", "Slice to paint"
_TIPS = {
    DISPUTE: "Go to the largest place where the teacher's draft and the label propagated from\n"
    "the labelled cases differ; then to the next, and leave this one as it is (D).\n"
    "The first time the label is propagated, which takes a while.",
    FIRST: "Here the teacher is right: take its label, and go on (Q)",
    SECOND: "Here the propagated label is right: take it, and go on (W)",
    SLICE: "Go to the slice that Interpolate needs most for the chosen structure (Shift+I)",
}


class OpinionsPanel(QGroupBox):
    """What the teacher and the propagated label dispute, and a button for each answer."""

    def __init__(
        self,
        viewer: Viewer,
        session: Session,
        relay: Relay,
        layers: ReviewLayers,
        table: StructureTable,
    ) -> None:
        super().__init__("Two opinions")
        self._viewer, self._layers, self._table = viewer, layers, table
        self._workspace, self._review = session.workspace, session.review
        self._disputed = disputed = session.review.disputed
        # What the buttons do, for keys.
        self.commands = {
            DISPUTE: self._do(disputed.next),
            FIRST: self._do(disputed.decide, "first"),
            SECOND: self._do(disputed.decide, "second"),
            SLICE: self._do(self._next_slice),
        }
        self.buttons: dict[str, QPushButton] = {
            text: button(text, tip, self.commands[text]) for text, tip in _TIPS.items()
        }
        self.text = wrapped()
        row = in_row(*self.buttons.values(), stretch=(1, 1, 1, 1))
        row.setSpacing(2)
        column = in_column(self, self.text, row)
        column.setContentsMargins(6, 4, 6, 4)
        column.setSpacing(4)
        relay.connect(disputed.changed, self.redraw)
        relay.connect(disputed.dispute_changed, self._show_dispute)
        relay.connect(disputed.slice_wanted, self._show_slice)

    def redraw(self) -> None:
        """Say what is disputed in the case, and let only what is possible be clicked."""
        case, project = self._review.case, self._workspace.project
        disputed, dispute = self._disputed, self._disputed.dispute
        listed = case is not None and disputed.of(case)
        self.buttons[DISPUTE].setEnabled(case is not None and case.prediction is not None)
        self.buttons[SLICE].setEnabled(case is not None)
        for text in (FIRST, SECOND):
            writable = project is not None and not project.read_only
            self.buttons[text].setEnabled(listed and dispute is not None and writable)
        if case is None or dispute is None or not listed:
            say(self.text, "Nothing more is disputed." if listed else "")
            return
        number, names = len(disputed.disputes) - disputed.left, case.table.names
        first, second = (draft_in_words(draft) for draft in disputed.drafts)
        say(
            self.text,
            f"Dispute {number} of {len(disputed.disputes)}, {dispute.volume_ml:.2f} ml: "
            f"{names[dispute.first]} ({first}) or {names[dispute.second]} ({second})?",
        )

    def _next_slice(self) -> None:
        if self._table.index is not None:
            self._disputed.next_slice(self._table.index, int(self._viewer.dims.order[0]))

    def _show_dispute(self) -> None:
        dispute = self._disputed.dispute
        if self._review.case is None or dispute is None:
            return
        self._layers.show_dispute(dispute)
        if index := dispute.first or dispute.second:
            self._table.choose(index)

    def _show_slice(self, axis: int, number: int) -> None:
        if self._review.case is not None:
            self._layers.show_slice(axis, number)

    def _do(self, command: Callable[..., object], *arguments: object) -> Callable[[], None]:
        def slot() -> None:
            with report_errors(self._workspace.notified.emit):
                command(*arguments)

        return slot
