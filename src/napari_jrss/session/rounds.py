"""Training in the background: start, pause, cancel, resume, and go back to a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_jrss.session.session import Session


class Rounds:
    """Commands of the tab of this name; made by its session."""

    def __init__(self, session: Session) -> None:
        self._session = session
