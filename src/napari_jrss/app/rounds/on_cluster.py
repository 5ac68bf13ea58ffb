"""Rounds on a worker of a cluster, which sees the project's folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from napari_jrss.app.rounds.process import Position
from napari_jrss.app.rounds.train import InThisProcess
from napari_jrss.cluster import Cluster
from napari_jrss.config import TrainingConfig
from napari_jrss.networks.build import check_network
from napari_jrss.pool import AskedToStop, Told, tell, working
from napari_jrss.processes import ProcessError
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round

if TYPE_CHECKING:
    from napari_jrss.training.events import Event
    from napari_jrss.training.loop import Cancel

_logger = logging.getLogger(__name__)


class OnCluster:
    """Rounds run on a worker, one with a GPU where there is one; an ``Executor``.

    If the worker dies, another one goes on from the round's last saved state. This process records
    the round, so that it is in the project once, however often it is begun.

    Parameters
    ----------
    address
        Of the scheduler, as of :class:`~napari_jrss.cluster.Cluster`.
    at_once
        Set by somebody who can't wait for the end of a step of a round that was asked to stop.
    """

    def __init__(
        self, project: Path, address: str, device: str = "auto", *, at_once: Cancel | None = None
    ) -> None:
        self.device = self._asked_for = device
        self._project, self._address = project, address
        self._at_once = at_once
        self._cluster: Cluster | None = None

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Reach the scheduler and look at its workers; False if cancelled."""
        for network in (config.segmentation_network, config.registration_network):
            check_network(network)
        if self._cluster is None:
            self._cluster = Cluster(self._address, [self._project], gpu=True, at_once=self._at_once)
        self.device = f"{self._asked_for} by dask"
        return not cancel.is_set()

    def run(self, project: Project, entry: Round, cancel: Cancel) -> Iterator[Event]:
        """Relay the events of the round; a ``ProcessError`` if it fails."""
        from napari_jrss.training.events import Cancelled, RoundFinished, parse_event

        job = (str(self._project), entry.number, self._asked_for)
        position = Position()
        with closing(working(_train, [job], self._cluster)) as steps:
            for step in steps:
                if cancel.is_set():
                    yield position.cancelled()
                    return
                outcome = None if step is None else step[1]
                if isinstance(outcome, Exception):
                    raise outcome
                if not isinstance(outcome, Told):
                    continue
                event = parse_event(outcome.message)
                position.add(event)
                yield event
                if isinstance(event, RoundFinished | Cancelled):
                    return
        raise ProcessError(f"the worker of round {entry.number} ended without a result")

    def close(self) -> None:
        """Leave the cluster."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None


def _train(job: tuple[str, int, str]) -> None:
    """On a worker: run or resume one round, and tell its events."""
    folder, number, device = job
    executor, stop = InThisProcess(device), AskedToStop()
    with Project.open(folder, read_only=True) as project:
        entry = project.round(number)
        executor.prepare(entry.files.training_config(), stop)
        for event in executor.run(project, entry, stop):
            tell(event.model_dump_json())
