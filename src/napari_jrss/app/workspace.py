"""What every part of a session works on: the open project, the person, and the job runners."""

from __future__ import annotations

from psygnal import Signal

from napari_jrss.app.review.autosave import PERIOD_S
from napari_jrss.app.runner import BusyError, JobRunner
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.errors import ProjectError
from napari_jrss.project.project import Project


class Workspace:
    """The open project, the person's settings, and the jobs that run."""

    project_changed = Signal()  # another project is open, or none
    # A case was added, labelled, rejected or skipped; N and J may have changed.
    cases_changed = Signal()
    rounds_changed = Signal()  # a round began or ended, or another teacher is in force
    notified = Signal(str)  # a message for the person, such as where something was written

    def __init__(self, author: str = "", device: str = "auto") -> None:
        self.author = author  # the person's name, which every label version needs
        self.device = device  # where networks run: `auto`, `cpu`, `cuda` or `mps`
        # What registers pairs and propagates labels, see Pairs.engine.
        self.engine = ""
        # Seconds after which a correction is on the disk; for cases that are opened from then on.
        self.autosave_s = PERIOD_S
        self.project: Project | None = None  # the open project, or None
        # Runners of the long and of the short jobs; they don't wait for one another.
        self.training = JobRunner("training")
        self.inference = JobRunner("inference")
        # Learns from accepted labels; a training ends what runs there.
        self.learning = JobRunner("learning")
        # What nobody waits for; who gives it work says how to stop that.
        self.background = WorkQueue("background")

    @property
    def open_project(self) -> Project:
        """The open project; :class:`ProjectError` if there is none."""
        if self.project is None:
            raise ProjectError("no project is open")
        return self.project

    @property
    def writable_project(self) -> Project:
        """The open project; :class:`ProjectError` if there is none, or it is read-only."""
        project = self.open_project
        project.check_writable()
        return project

    def require_idle(self) -> None:
        """Raise a :class:`BusyError` while a short job runs."""
        if self.inference.state.busy:
            raise BusyError("another job is running; wait for it, or stop it first")

    def stop_learning(self, timeout: float | None = 10.0) -> bool:
        """End what learns at once; whether it ended within `timeout` seconds."""
        self.learning.cancel()
        return self.learning.wait(timeout)

    def require_no_training(self) -> None:
        """Raise a :class:`BusyError` while a round runs."""
        if self.training.state.busy:
            raise BusyError("a round is running; pause it before another project is opened")
