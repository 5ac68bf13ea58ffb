"""A round in a process of its own: the window stays quick, and a GPU is free when it ends.

The parent holds the project's writer lock and records the round. The child opens the project
read-only, runs the round into its folder, and sends the round's events.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel

from napari_jrss.config import TrainingConfig
from napari_jrss.processes import Child, Parent
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round
from napari_jrss.training.trainable import check_devices

if TYPE_CHECKING:
    from napari_jrss.training.events import Cancelled, Event
    from napari_jrss.training.loop import Cancel

_logger = logging.getLogger(__name__)

LOG = "training.log"
PATIENCE_S = 60.0
NICENESS = 5


class _Settings(BaseModel):
    """What the child gets ready for."""

    project: Path
    device: str
    devices: int
    threads: int
    config: TrainingConfig


class InOwnProcess:
    """Rounds run in a spawned process each; a :class:`napari_jrss.app.rounds.train.Executor`.

    Parameters
    ----------
    devices
        Number of GPUs, or of processes on the CPU, that share each batch.
    threads
        CPU threads of all of them; none: as many as there are cores, less one for the window.
    at_once
        Set by somebody who can't wait for the end of a step: a process that was asked to stop is
        then ended, and the round goes on from its last saved state.
    patience
        Seconds that a process which was asked to stop is given for its present step.
    """

    def __init__(
        self,
        project: Path,
        device: str = "auto",
        *,
        devices: int = 1,
        threads: int | None = None,
        at_once: Cancel | None = None,
        patience: float = PATIENCE_S,
    ) -> None:
        self.device = device
        self._asked_for = device
        self._project = project
        self._devices = devices
        self._threads = max(1, (threads or default_threads()) // devices)
        self._at_once = at_once
        self._patience = patience
        self._child: Child | None = None

    @property
    def process(self) -> int | None:
        """Id of the process while there is one."""
        return None if self._child is None else self._child.pid

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Start the process, which checks its device and the networks; False if cancelled."""
        self.close()
        check_devices(config, self._devices)
        self._child = Child(
            "training",
            _train,
            log=self._project / LOG,
            environment={"OMP_NUM_THREADS": str(self._threads)},
        )
        settings = _Settings(
            project=self._project,
            device=self._asked_for,
            devices=self._devices,
            threads=self._threads,
            config=config,
        )
        self._child.send(settings.model_dump_json())
        while (line := self._child.receive()) is None:
            if cancel.is_set():
                return False
        self.device = str(json.loads(line))
        _logger.info("the training process runs on %s", self.device)
        return True

    def run(self, project: Project, entry: Round, cancel: Cancel) -> Iterator[Event]:
        """Relay the events of the round; a ``ProcessError`` if it fails."""
        from napari_jrss.training.events import Cancelled, RoundFinished, parse_event

        child = self._child
        assert child is not None
        child.send(str(entry.number))
        position = Position()
        asked: float | None = None
        try:
            while True:
                if cancel.is_set() and asked is None:
                    asked = time.monotonic()
                    child.stop()
                if asked is not None and (
                    (self._at_once is not None and self._at_once.is_set())
                    or time.monotonic() - asked > self._patience
                ):
                    yield position.cancelled()
                    return
                line = child.receive()
                if line is None:
                    continue
                event = parse_event(line)
                position.add(event)
                yield event
                if isinstance(event, RoundFinished | Cancelled):
                    return
        finally:
            self.close()

    def close(self) -> None:
        """End the process if it still runs: it is asked, then killed."""
        if self._child is not None:
            self._child.close()
            self._child = None


class Position:
    """Where a round stands on the disk, for the end of a process that can't tell."""

    def __init__(self) -> None:
        self._stage, self._saved = "", 0

    def add(self, event: Event) -> None:
        """Take an event in."""
        from napari_jrss.training.events import EpochEnd, StageStarted

        if isinstance(event, StageStarted):
            self._stage, self._saved = event.stage, event.first_step
        elif isinstance(event, EpochEnd) and event.validation is not None:
            self._saved = event.step

    def cancelled(self) -> Cancelled:
        """The event of a round that was stopped in the middle of a step."""
        from napari_jrss.training.events import Cancelled

        return Cancelled(stage=self._stage, step=self._saved)


def default_threads() -> int:
    """CPU threads of a training process: the window keeps one core."""
    return max(1, (os.cpu_count() or 2) - 1)


def _train(parent: Parent) -> None:
    """The process: get ready, wait for a round's number, run the round.

    The further processes of a training on several devices do the same.
    """
    import torch

    from napari_jrss.app.rounds.peers import Peers, ending
    from napari_jrss.app.rounds.train import InThisProcess

    line = parent.receive().decode().strip()
    settings = _Settings.model_validate_json(line)
    torch.set_num_threads(settings.threads)

    with Peers(_train, settings.devices, ending(parent)) as peers:
        step_back()
        peers.send(line)
        executor = InThisProcess(settings.device, settings.devices)
        executor.prepare(settings.config, parent.stop)
        parent.send(json.dumps(executor.device))
        number = int(parent.receive())
        peers.send(str(number))
        with Project.open(settings.project, read_only=True) as project:
            for event in executor.run(project, project.round(number), parent.stop):
                parent.send(event.model_dump_json())


def step_back() -> None:
    """Lower this process's priority: the window, and a person's other programs, go first."""
    process, windows = psutil.Process(), getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", None)
    process.nice(min(19, process.nice() + NICENESS) if windows is None else windows)
