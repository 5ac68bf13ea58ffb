"""One case on the table: its teacher's pseudo-label, screening, and the person's own label."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_jrss.session.session import Session


class Review:
    """Commands of the tab of this name; made by its session."""

    def __init__(self, session: Session) -> None:
        self._session = session
