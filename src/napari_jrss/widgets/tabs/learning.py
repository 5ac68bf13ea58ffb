"""The box that lets the teacher learn after each accepted case, and how that goes."""

from qtpy.QtWidgets import QCheckBox, QWidget

from napari_jrss.app.rounds.learning import BUDGET_S
from napari_jrss.app.rounds.progress import Progress
from napari_jrss.app.session import Session
from napari_jrss.times import duration
from napari_jrss.widgets.bridge import Relay, report_errors
from napari_jrss.widgets.controls import in_column, say, wrapped
from napari_jrss.widgets.preferences import prefer_learning


class LearningPanel(QWidget):
    """Whether accepted cases are learned at once, and what the latest one came to."""

    def __init__(self, session: Session, relay: Relay) -> None:
        super().__init__()
        self._learning = session.learning
        self._tell = session.workspace.notified.emit
        self._progress = Progress()
        self.box = QCheckBox(
            "Learn after each accepted case",
            toolTip="The teacher learns from the case that you accepted, so that the next draft is "
            f"better.\nIt takes up to about {duration(BUDGET_S)} in the background, on all but one "
            "of this computer's cores.\nTraining shows it as a round, and can go back to an "
            "earlier teacher.",
        )
        self.box.toggled.connect(self._chosen)
        self.text = wrapped()
        in_column(self, self.box, self.text).setContentsMargins(0, 0, 0, 0)
        relay.connect(self._learning.changed, self._show)
        relay.connect(self._learning.runner.event, self._add)
        relay.connect(session.workspace.project_changed, self._show)
        self._show()

    def _chosen(self, on: bool) -> None:
        self._learning.after_accept = on
        with report_errors(self._tell):
            prefer_learning(on)

    def _add(self, event: object) -> None:
        self._progress.add(event)
        self._show()

    def _show(self) -> None:
        self.box.blockSignals(True)
        self.box.setChecked(self._learning.after_accept)
        self.box.blockSignals(False)
        if self._learning.runner.state.busy:
            text = f"The teacher learns … {self._progress.line()}"
        else:
            self._progress = Progress()
            text = self._learning.learned
        say(self.text, text)
