"""Times and durations in a person's words."""

from __future__ import annotations

from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def local_time(utc: str) -> str:
    """A time of the project, ISO 8601 in UTC, as this computer's clock had it."""
    return datetime.fromisoformat(utc).astimezone().strftime("%Y-%m-%d %H:%M")


def duration(seconds: float) -> str:
    """Such as ``40 s``, ``12 min``, ``3.5 h`` or ``4 days``."""
    if seconds < 1.5 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 1.5 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _DAY:.0f} days"
