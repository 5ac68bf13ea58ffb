"""The name under which a person's labels and decisions are recorded.

It is never guessed from the account of the operating system.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import platformdirs

from napari_jrss.errors import JRSSError, from_os_error
from napari_jrss.io.atomic import write_text

VARIABLE = "NAPARI_JRSS_USER"


class AuthorError(JRSSError):
    """No author is known, or the settings file can't be read or written."""


def settings_file() -> Path:
    """The person's own settings file, in the system's folder for such files."""
    folder = platformdirs.user_config_path("napari-jrss", appauthor=False, roaming=True)
    return folder / "settings.json"


def known_author() -> str:
    """The name in the environment variable :data:`VARIABLE`, else in the settings, else "".

    Raises an :class:`AuthorError` if the settings can't be read.
    """
    if name := os.environ.get(VARIABLE, "").strip():
        return name
    kept = _settings().get("author", "")
    if not isinstance(kept, str):
        raise AuthorError(f"{settings_file()}: the author isn't a text")
    return kept.strip()


def author(given: str | None = None) -> str:
    """The name to record: `given`, or the known one; an :class:`AuthorError` if there is none."""
    name = known_author() if given is None else given.strip()
    if not name:
        raise AuthorError(
            f"a name is needed: give --author NAME, set {VARIABLE}, or keep a name for good with "
            "'napari-jrss author NAME'"
        )
    return name


def remember_author(name: str) -> Path:
    """Keep a name in the person's settings; "" forgets it. Returns the settings file.

    Raises an :class:`AuthorError` if the settings can't be read or written.
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
