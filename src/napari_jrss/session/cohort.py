"""The cohort: its cases as a table, import, and which case comes next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_jrss.session.session import Session


class Cohort:
    """Commands of the tab of this name; made by its session."""

    def __init__(self, session: Session) -> None:
        self._session = session
