"""The tab Cohort: the project, its cases, their import, and the names of the structures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtGui import QCloseEvent
from qtpy.QtWidgets import QWidget

from napari_jrss.widgets.bridge import Relay

if TYPE_CHECKING:
    from napari.viewer import Viewer

    from napari_jrss.session.session import Session


class CohortTab(QWidget):
    """Reads the session, calls its commands, and redraws from its signals."""

    def __init__(self, viewer: Viewer, session: Session) -> None:
        super().__init__()
        self._viewer = viewer
        self._session = session
        self._relay = Relay(self)

    def closeEvent(self, event: QCloseEvent) -> None:  # noqa: N802
        """Undo what was connected."""
        self._relay.disconnect_all()
        super().closeEvent(event)
