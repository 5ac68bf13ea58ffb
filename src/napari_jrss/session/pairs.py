"""Registration of pairs: displacement, warped volumes, figures, and drafts from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from napari_jrss.session.session import Session


class Pairs:
    """Commands of the tab of this name; made by its session."""

    def __init__(self, session: Session) -> None:
        self._session = session
