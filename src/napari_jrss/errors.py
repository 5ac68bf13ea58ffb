"""The exceptions of this package, and one way from any expected error to one line."""

from collections.abc import Iterable
from difflib import get_close_matches

from pydantic import ValidationError


class JRSSError(ValueError):
    """The base of all exceptions of this package.

    Its message is one line for the person: what is wrong, with which file, and what to do.
    """


class ScanError(JRSSError):
    """A scan, a label file or a folder of them can't be used; the message names it."""


class ProjectError(JRSSError):
    """A project can't do what was asked, or is damaged; the message names the file."""


EXPECTED = (JRSSError, OSError, FloatingPointError, ValidationError)
"""Errors that a person can act on. Any other exception is a fault of the program."""


def one_line(error: BaseException) -> str:
    """Describe an error in one line, without Python's own notation.

    A ``ValidationError`` is described by its first fault, an ``OSError`` by its file and reason.
    """
    if isinstance(error, ValidationError):
        text = from_validation(error)
    elif isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, OSError):
        text = from_os_error(error)
    else:
        text = str(error)
    return " ".join(text.split()) or type(error).__name__


def from_validation(error: ValidationError) -> str:
    """Describe the first fault that pydantic found: the setting's name and what is wrong."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:40] for part in fault["loc"])
    reason = fault["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def from_os_error(error: OSError) -> str:
    """Return the system's reason, such as ``No space left on device``; the file isn't named."""
    return error.strerror or " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the most similar known one, if any."""
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
