"""The page of this plugin in napari's Preferences, and the session that goes by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.settings import get_plugin_settings

from napari_jrss.session.author import known_author
from napari_jrss.session.session import Session

PLUGIN = "napari-jrss"


def default_tau() -> float:
    """The confidence threshold that the person wants new rounds to begin with."""
    return float(_page().work.tau)


def follow_preferences(session: Session) -> Callable[[], None]:
    """Set a session's author, device and autosave from the preferences, now and when they change.

    Without a name there, the one that ``napari-jrss author`` keeps counts.

    Returns
    -------
    Callable
        Ends it.
    """
    page = _page()

    def apply(_event: object = None) -> None:
        session.device = page.work.device
        session.autosave_s = page.work.autosave
        session.author = page.person.author.strip() or known_author()

    apply()
    signals = (page.person.events.author, page.work.events.device, page.work.events.autosave)
    for signal in signals:
        signal.connect(apply)

    def end() -> None:
        for signal in signals:
            signal.disconnect(apply)

    return end


def _page() -> Any:
    return get_plugin_settings(PLUGIN)
