"""What one window or script works on: a project, the person's settings, and jobs at work.

Each tab of the window has its part here, and each of its buttons one command of that part, so
that a script can do whatever a person can.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path

from psygnal import Signal

from napari_jrss.app.cohort import Cohort
from napari_jrss.app.pairs.pairs import Pairs
from napari_jrss.app.review.autosave import PERIOD_S
from napari_jrss.app.review.review import Review
from napari_jrss.app.rounds.rounds import Rounds
from napari_jrss.app.runner import BusyError, JobRunner
from napari_jrss.errors import ProjectError
from napari_jrss.project.project import Project

_FOR_THE_STEP, _FOR_ITS_END = 0.4, 0.6
"""Shares of the time for closing: for a step to end by itself, and for ending its process."""


class Session:
    """One project at a time, with the commands of the four tabs.

    Attributes
    ----------
    project_changed
        Another project is open, or none.
    cases_changed
        A case was added, labelled, rejected or skipped: N and J may be others.
    rounds_changed
        A round began or ended, or another teacher is in force.
    notified
        A line for the person, such as where something was written.
    project
        The open project, or None.
    author
        The person's name, which every label version needs.
    device
        Where networks run: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    autosave_s
        Seconds after which a correction is on the disk; for cases that are opened from then on.
    training, inference
        Runners of the long and of the short jobs; they don't wait for one another.
    cohort, review, rounds, pairs
        The commands of each tab.
    """

    project_changed = Signal()
    cases_changed = Signal()
    rounds_changed = Signal()
    notified = Signal(str)

    def __init__(self, author: str = "", device: str = "auto") -> None:
        self.author = author
        self.device = device
        self.autosave_s = PERIOD_S
        self.project: Project | None = None
        self.training = JobRunner("training")
        self.inference = JobRunner("inference")
        self.cohort = Cohort(self)
        self.review = Review(self)
        self.rounds = Rounds(self)
        self.pairs = Pairs(self)

    @property
    def open_project(self) -> Project:
        """The open project; :class:`ProjectError` if there is none."""
        if self.project is None:
            raise ProjectError("no project is open")
        return self.project

    def open(self, path: str | Path, read_only: bool = False) -> None:
        """Open a project in place of the present one.

        Raises
        ------
        ProjectError
            See :meth:`napari_jrss.project.project.Project.open`; the present one stays open.
        BusyError
            A round is running on the present one.
        """
        self._refuse_while_training()
        project = Project.open(path, read_only)
        self._replace(project)

    def adopt(self, project: Project) -> None:
        """Work on a project that was just made, in place of the present one.

        Raises
        ------
        BusyError
            A round is running on the present one; the new one is closed again.
        """
        try:
            self._refuse_while_training()
        except BusyError:
            project.close()
            raise
        self._replace(project)

    def close(self, timeout: float = 2.0) -> bool:
        """Stop every job and close the project; whether the jobs stopped in time.

        A round that runs can be resumed. If it runs in a process of its own and its step takes
        too long, it goes on from its last saved state then. A job in this process that doesn't
        stop in time keeps the project's lock until it does.

        Parameters
        ----------
        timeout
            Seconds that the jobs are given.
        """
        until = time.monotonic() + timeout
        runners = (self.training, self.inference, self.cohort.survey, self.rounds.estimator)
        self.training.cancel()
        self.inference.cancel()
        self.rounds.estimator.cancel()
        self.cohort.stop(timeout=0)
        kept = self.project is None or self.review.leave_project(timeout * _FOR_THE_STEP)
        if not self.training.wait(max(0.0, until - time.monotonic() - timeout * _FOR_ITS_END)):
            self.rounds.end_at_once()
        stopped = all([r.wait(max(0.0, until - time.monotonic())) for r in runners])
        self.pairs.queue.wait(max(0.0, until - time.monotonic()))  # holds arrays only
        project, self.project = self.project, None
        if project is not None and stopped:
            project.close()
        elif project is not None:
            # Not a daemon: PyTorch aborts a program that ends in the middle of a step.
            threading.Thread(target=_close_after, args=(project, runners), name="closing").start()
        self.project_changed.emit()
        return stopped and kept

    def _refuse_while_training(self) -> None:
        if self.training.state.busy:
            raise BusyError("a round is running; pause it before another project is opened")

    def _replace(self, project: Project | None) -> None:
        if self.project is not None:
            self.cohort.stop()
            self.review.leave_project()
            self.project.close()
        self.project = project
        self.project_changed.emit()


def _close_after(project: Project, runners: Iterable[JobRunner]) -> None:
    for runner in runners:
        runner.wait()
    project.close()
