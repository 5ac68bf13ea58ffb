"""What one window or script works on: a project, the person's settings, and jobs at work.

Each tab of the window has its part here, and each of its buttons one command of that part, so
that a script can do whatever a person can.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

from napari_jrss.app.cohort import Cohort
from napari_jrss.app.pairs.pairs import Pairs
from napari_jrss.app.planning import change_plan
from napari_jrss.app.review.review import Review
from napari_jrss.app.rounds.control import RoundControl
from napari_jrss.app.rounds.learning import Learning
from napari_jrss.app.runner import BusyError, JobRunner
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.app.workspace import Workspace
from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.layouts import FoundCohort
from napari_jrss.labels import LabelTable
from napari_jrss.pool import Workers
from napari_jrss.preprocess.plan import Plan
from napari_jrss.project.importing import ScanRead, read_first_scans
from napari_jrss.project.plans import CaseMoved
from napari_jrss.project.project import Project

_FOR_THE_STEP, _FOR_ITS_END = 0.4, 0.6
"""Shares of the time for closing: for a step to end by itself, and for ending its process."""


class Session:
    """One project at a time, with the commands of the four tabs."""

    def __init__(self, author: str = "", device: str = "auto") -> None:
        # The open project, the person's settings, and the jobs.
        self.workspace = workspace = Workspace(author, device)
        # The commands of each tab.
        self.cohort = Cohort(workspace)
        self.review = Review(workspace, self.cohort)
        self.rounds = RoundControl(workspace)
        self.learning = Learning(workspace, self.cohort)
        self.review.accepted.connect(self.learning.accepted)
        self.pairs = Pairs(workspace, self.review)
        self._keep_open = False

    def open(self, path: str | Path, read_only: bool = False) -> None:
        """Open a project in place of the present one, which stays open if that fails."""
        self.workspace.require_no_training()
        self._replace(Project.open(path, read_only))

    def adopt(self, project: Project, keep_open: bool = False) -> None:
        """Work on a project that is open already, in place of the present one.

        With `keep_open` it stays open when this session has done with it. If a round is running on
        the present one, the new one is closed again (:class:`BusyError`).
        """
        try:
            self.workspace.require_no_training()
        except BusyError:
            if not keep_open:
                project.close()
            raise
        self._replace(project, keep_open)

    def make_project(
        self,
        path: Path,
        cohort: FoundCohort,
        table: LabelTable,
        config: PreprocessingConfig,
        plan: Plan | None = None,
        workers: Workers = None,
    ) -> None:
        """Make a project, open it, and read the scans in the background.

        If none of the scans could be used, that is the job's error, and the project is removed.

        Parameters
        ----------
        path
            The new folder, by custom ``<name>.jrss``.
        cohort
            The scans, as :func:`~napari_jrss.project.importing.look_into` finds them.
        table, config
            The structures, and how scans reach the training grid.
        plan
            Why so, and how it is trained on; it is kept with the project.
        workers
            Processes; None: one per core.
        """
        self.workspace.require_idle()
        self.workspace.require_no_training()
        project = Project.create(path, table, config, plan, cohort.channels)
        self._replace(project)

        def work(cancel: threading.Event) -> Iterator[ScanRead]:
            try:
                yield from self.cohort.announce(read_first_scans(project, cohort, cancel, workers))
            finally:
                if not project.path.exists():
                    self._replace(None)

        self.workspace.inference.start(work)

    def change_plan(self, plan: Plan) -> None:
        """Bring the cases of the open project to the grid of another plan, in the background.

        See :func:`~napari_jrss.app.planning.change_plan`. The case under review is closed first.

        Raises
        ------
        ProjectError
            The project is read-only.
        BusyError
            Another job is running.
        """
        workspace, project = self.workspace, self.workspace.writable_project
        workspace.require_idle()
        workspace.require_no_training()
        self.cohort.stop()
        self.learning.stop()
        self.review.stop_background()
        self.review.leave_project()
        author = workspace.author or None

        def work(cancel: threading.Event) -> Iterator[CaseMoved]:
            with closing(change_plan.events(project, plan, author)) as events:
                for event in events:
                    yield event
                    if cancel.is_set():
                        return

        workspace.inference.start(work)

    def close(self, timeout: float = 2.0) -> bool:
        """Stop every job and close the project; whether the jobs stopped within `timeout` seconds.

        A round that runs can be resumed. If it runs in a process of its own and its step takes too
        long, it goes on from its last saved state then. A job in this process that doesn't stop in
        time keeps the project's lock until it does.
        """
        workspace, until = self.workspace, time.monotonic() + timeout
        runners = (
            workspace.training,
            workspace.inference,
            workspace.learning,
            self.cohort.summaries,
            self.rounds.estimator,
            workspace.background,
        )
        workspace.training.cancel()
        workspace.inference.cancel()
        self.learning.stop(timeout=0)
        self.rounds.estimator.cancel()
        self.cohort.stop(timeout=0)
        self.review.stop_background(timeout=0)
        self.review.prompts.disconnect()
        kept = workspace.project is None or self.review.leave_project(timeout * _FOR_THE_STEP)
        if not workspace.training.wait(max(0.0, until - time.monotonic() - timeout * _FOR_ITS_END)):
            self.rounds.end_at_once()
        stopped = all([r.wait(max(0.0, until - time.monotonic())) for r in runners])
        for queue in (self.pairs.queue, self.review.prompts.queue):  # they hold arrays only
            queue.wait(max(0.0, until - time.monotonic()))
        project, workspace.project = workspace.project, None
        if self._keep_open:
            pass
        elif project is not None and stopped:
            project.close()
        elif project is not None:
            # Not a daemon: PyTorch aborts a program that ends in the middle of a step.
            threading.Thread(target=_close_after, args=(project, runners), name="closing").start()
        workspace.project_changed.emit()
        return stopped and kept

    def _replace(self, project: Project | None, keep_open: bool = False) -> None:
        workspace = self.workspace
        if workspace.project is not None:
            self.cohort.stop()
            self.learning.stop()
            self.review.stop_background()
            self.review.leave_project()
            if not self._keep_open:
                workspace.project.close()
        workspace.project, self._keep_open = project, keep_open
        workspace.project_changed.emit()


def _close_after(project: Project, runners: Iterable[JobRunner | WorkQueue]) -> None:
    for runner in runners:
        runner.wait()
    project.close()
