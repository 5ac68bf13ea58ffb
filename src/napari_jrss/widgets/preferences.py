"""The page of this plugin in napari's Preferences, and the session that follows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from napari.settings import get_plugin_settings

from napari_jrss.app.author import known_author
from napari_jrss.app.session import Session

PLUGIN = "napari-jrss"


def default_tau() -> float:
    """The person's default confidence threshold for new rounds."""
    return float(_page().work.tau)


def follow_preferences(session: Session) -> Callable[[], None]:
    """Apply the preferences to a session, now and when they change.

    If they hold no name, the name set by ``napari-jrss author`` is used.

    Returns
    -------
    Callable
        Stops following them.
    """
    page, workspace = _page(), session.workspace

    def apply(_event: object = None) -> None:
        workspace.device = page.work.device
        workspace.autosave_s = page.work.autosave
        workspace.author = page.person.author.strip() or known_author()

    def apply_refine(_event: object = None) -> None:
        session.pairs.refined = page.work.refine

    apply()
    apply_refine()
    work = page.work.events
    # Apart from the others: a change of those must not undo what was ticked in the tab since.
    connected = [(work.refine, apply_refine)]
    connected += [
        (signal, apply) for signal in (page.person.events.author, work.device, work.autosave)
    ]
    for signal, follower in connected:
        signal.connect(follower)

    def end() -> None:
        for signal, follower in connected:
            signal.disconnect(follower)

    return end


def _page() -> Any:
    return get_plugin_settings(PLUGIN)
