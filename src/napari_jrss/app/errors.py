"""Which errors are a person's to mend, told in one line; any other is a fault of the program."""

from __future__ import annotations


def is_ours(error: BaseException) -> bool:
    """Whether the message is for the person: a class of this package, a file, a loss not finite."""
    return isinstance(error, OSError | FloatingPointError) or type(error).__module__.startswith(
        "napari_jrss"
    )


def one_line(error: BaseException) -> str:
    """The message of such an error as one line."""
    return " ".join(str(error).split()) or type(error).__name__
