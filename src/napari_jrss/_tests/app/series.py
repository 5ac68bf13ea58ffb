"""A whole series of rounds in one call, as the command line and the window run one in steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from napari_jrss.app.rounds.train import Executor, InThisProcess, plan_series, run_series
from napari_jrss.config import TrainingConfig
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    from napari_jrss.training.events import Event
    from napari_jrss.training.loop import Cancel


def train(
    project: Project,
    config: TrainingConfig,
    rounds: int,
    cancel: Cancel,
    *,
    device: str = "auto",
    resume: bool | None = None,
    pretrain: bool = False,
    executor: Executor | None = None,
) -> Iterator[Event]:
    """Plan a series and run it, in this process unless an `executor` is given."""
    planned = plan_series(project, config, rounds, resume=resume, pretrain=pretrain)
    return run_series(project, planned, cancel, executor or InThisProcess(device))
