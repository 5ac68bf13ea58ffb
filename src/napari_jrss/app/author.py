"""The name under which a person's labels and decisions are recorded: told, never guessed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from napari_jrss.errors import JRSSError, from_os_error
from napari_jrss.io.atomic import write_text

VARIABLE = "NAPARI_JRSS_USER"


class AuthorError(JRSSError):
    """Nobody said who works here, or the setting can't be read or written."""


def settings_file() -> Path:
    """The person's own settings, in the folder that the system has for such files."""
    if sys.platform == "win32":
        folder = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        folder = Path.home() / "Library" / "Application Support"
    else:
        folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "napari-jrss" / "settings.json"


def known_author() -> str:
    """The name in the environment variable :data:`VARIABLE`, else in the settings, else "".

    Raises
    ------
    AuthorError
        The settings can't be read.
    """
    if name := os.environ.get(VARIABLE, "").strip():
        return name
    kept = _settings().get("author", "")
    if not isinstance(kept, str):
        raise AuthorError(f"{settings_file()}: the author is no name")
    return kept.strip()


def author(given: str | None = None) -> str:
    """The name to record.

    Parameters
    ----------
    given
        As the person said it for this once; None: the one that is known.

    Raises
    ------
    AuthorError
        There is none. The account's name in the operating system is nobody's signature, so it
        is never taken.
    """
    name = known_author() if given is None else given.strip()
    if not name:
        raise AuthorError(
            f"who is it? Give --author NAME, set {VARIABLE}, or say it once for all: "
            "napari-jrss author NAME"
        )
    return name


def remember_author(name: str) -> Path:
    """Keep a name in the person's settings; "" forgets it. Returns the settings file.

    Raises
    ------
    AuthorError
        The settings can't be read or written.
    """
    path = settings_file()
    settings = {**_settings(), "author": name.strip()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(settings, indent=1))
    except OSError as error:
        raise AuthorError(f"{path}: can't be written ({from_os_error(error)})") from error
    return path


def _settings() -> dict[str, object]:
    path = settings_file()
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise AuthorError(f"{path}: not a readable settings file ({error})") from error
    if not isinstance(settings, dict):
        raise AuthorError(f"{path}: not a settings file")
    return settings
