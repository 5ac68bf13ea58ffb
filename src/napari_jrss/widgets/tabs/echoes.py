"""Other cases that may have an error which was just corrected, and a button that goes there."""

from qtpy.QtWidgets import QComboBox, QWidget

from napari_jrss.app.session import Session
from napari_jrss.widgets.bridge import Relay, report_errors
from napari_jrss.widgets.controls import button, in_column, in_row, say, wrapped


class EchoPanel(QWidget):
    """What is looked at, and what was found; hidden where there is neither."""

    def __init__(self, session: Session, relay: Relay) -> None:
        super().__init__()
        self._workspace, self._review = session.workspace, session.review
        self._echoes = echoes = session.review.echoes
        self.text = wrapped()
        self.cases = QComboBox(
            toolTip="Where the teacher may be wrong as it was in a case that you corrected.\n"
            "Nothing was changed there."
        )
        self.cases.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        self.go = button("Go there", "Open the case, and outline the place", self._go)
        self.stop = button("Stop", "Look at no further case", echoes.stop)
        in_column(
            self, self.text, in_row(self.cases, self.go, self.stop, stretch=(1,))
        ).setContentsMargins(0, 0, 0, 0)
        relay.connect(echoes.changed, self.redraw)
        self.redraw()

    def redraw(self) -> None:
        """Say what was found, and what is looked at."""
        found, project = self._echoes.found, self._workspace.project
        number = len(found)
        self.setVisible(bool(found or self._echoes.looking))
        self.stop.setVisible(bool(self._echoes.looking))
        self.go.setEnabled(bool(found))
        kept = self.cases.currentData()
        self.cases.clear()
        for case_id, each in found.items() if project is not None else ():
            names, place = project.table.names, each.place
            self.cases.addItem(
                f"{case_id}: {names[place.second]}, not {names[place.first]}, "
                f"{place.volume_ml:.2f} ml, as in {each.corrected}",
                case_id,
            )
        self.cases.setVisible(bool(found))
        self.go.setVisible(bool(found))
        self.cases.setCurrentIndex(max(self.cases.findData(kept), 0))
        told = "1 other case may have" if number == 1 else f"{number} other cases may have"
        lines = [f"{told} an error that you corrected:"] if found else []
        lines += [f"{self._echoes.looking} …"] if self._echoes.looking else []
        say(self.text, "\n".join(lines))

    def _go(self) -> None:
        found = self._echoes.found.get(self.cases.currentData())
        if found is not None:
            with report_errors(self._workspace.notified.emit):
                self._review.open_at(found.case_id, found.place)
