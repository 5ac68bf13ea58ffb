"""The one error that a project raises for a user's mistake or a damaged folder."""


class ProjectError(ValueError):
    """A project can't do what was asked; the message is one line that names the file."""
