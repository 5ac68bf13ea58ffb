"""What the window remembers: napari's Preferences, and the projects that were opened last."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from napari.settings import get_plugin_settings
from qtpy.QtCore import QSettings

from napari_jrss.app.author import known_author
from napari_jrss.app.rounds.launch import RunOn
from napari_jrss.app.session import Session

PLUGIN = "napari-jrss"
_RECENT, _MOST = "recent_projects", 8
_RUN_ON = "run_on"
_PROMPT_SERVER = "prompt_server"


def default_tau() -> float | None:
    """The person's default confidence threshold for new rounds; None: that of the preset."""
    return float(_page().work.tau) or None


def follow_preferences(session: Session) -> Callable[[], None]:
    """Apply the preferences to a session, now and when they change.

    If they hold no name, the name set by ``napari-jrss author`` is used. What is returned stops
    following them.
    """
    page, workspace = _page(), session.workspace

    def apply(_event: object = None) -> None:
        workspace.device = page.work.device
        workspace.autosave_s = page.work.autosave
        workspace.author = page.person.author.strip() or known_author()

    def apply_refine(_event: object = None) -> None:
        session.pairs.refined = page.work.refine

    def apply_learn(_event: object = None) -> None:
        session.learning.after_accept = page.work.learn

    def apply_echo(_event: object = None) -> None:
        session.review.echoes.after_accept = page.work.echo

    def apply_ahead(_event: object = None) -> None:
        session.review.ahead.cases = page.work.ahead

    apply()
    apply_refine()
    apply_learn()
    apply_echo()
    apply_ahead()
    work = page.work.events
    connected = [(each, apply) for each in (page.person.events.author, work.device, work.autosave)]
    # Apart from the others: a change of those must not undo what was ticked in the tab since.
    connected += [(work.refine, apply_refine), (work.learn, apply_learn)]
    connected += [(work.echo, apply_echo), (work.ahead, apply_ahead)]
    for signal, follower in connected:
        signal.connect(follower)

    def end() -> None:
        for signal, follower in connected:
            signal.disconnect(follower)

    return end


def prefer_learning(on: bool) -> None:
    """Keep whether each accepted case is learned at once."""
    _page().work.learn = on


def _page() -> Any:
    return get_plugin_settings(PLUGIN)


def recent_projects() -> list[Path]:
    """Projects opened last, the latest first; projects that no longer exist are left out."""
    return [path for path in map(Path, _stored()) if path.is_dir()]


def remember(path: Path) -> None:
    """Put a project at the head of the list."""
    others = [each for each in _stored() if each != str(path)]
    _settings().setValue(_RECENT, [str(path), *others][:_MOST])


def recent_run_on() -> list[RunOn]:
    """Where rounds ran last, if not on this computer; the latest first."""
    known = []
    for text in _stored(_RUN_ON):
        with suppress(ValueError, TypeError):  # as another version wrote it
            known.append(RunOn(**json.loads(text)))
    return known


def remember_run_on(run_on: RunOn) -> None:
    """Put another computer at the head of the list, and forget what was said of it before."""
    others = [each for each in recent_run_on() if each.command != run_on.command]
    texts = [json.dumps(asdict(each)) for each in (run_on, *others)]
    _settings().setValue(_RUN_ON, texts[:_MOST])


def prompt_server() -> str:
    """Address of the nnInteractive server that was connected last; empty if there was none."""
    return str(_settings().value(_PROMPT_SERVER, ""))


def remember_prompt_server(address: str) -> None:
    """Keep the address of an nnInteractive server."""
    _settings().setValue(_PROMPT_SERVER, address)


def _stored(key: str = _RECENT) -> list[str]:
    value = _settings().value(key, [])
    # A list of one comes back as a plain text.
    return [value] if isinstance(value, str) else [str(each) for each in value or []]


def _settings() -> QSettings:
    return QSettings(QSettings.Format.IniFormat, QSettings.Scope.UserScope, PLUGIN, PLUGIN)
