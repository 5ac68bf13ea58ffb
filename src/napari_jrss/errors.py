"""The exceptions of this package: each message is one line that a person can act on."""

from __future__ import annotations


class JRSSError(Exception):
    """Above all exceptions that this package raises for a user's mistake or a damaged file."""


class ScanError(JRSSError, ValueError):
    """A scan, a label or a folder that can't be used; one line that names it."""


class ProjectError(JRSSError, ValueError):
    """A project can't do what was asked; the message is one line that names the file."""
