"""The projects that were opened last, remembered between sessions of the window."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtCore import QSettings

_KEY = "recent_projects"
_MOST = 8


def recent_projects() -> list[Path]:
    """Projects opened last, the latest first; projects that no longer exist are left out."""
    return [path for path in map(Path, _stored()) if path.is_dir()]


def remember(path: Path) -> None:
    """Put a project at the head of the list."""
    others = [each for each in _stored() if each != str(path)]
    _settings().setValue(_KEY, [str(path), *others][:_MOST])


def _stored() -> list[str]:
    value = _settings().value(_KEY, [])
    # A list of one comes back as a plain text.
    return [value] if isinstance(value, str) else [str(each) for each in value or []]


def _settings() -> QSettings:
    return QSettings(
        QSettings.Format.IniFormat, QSettings.Scope.UserScope, "napari-jrss", "napari-jrss"
    )
