"""Rounds that run elsewhere: behind a command, or on a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from napari_jrss.app.rounds.launch import InLaunchedProcess, LaunchError, RunOn
from napari_jrss.cluster import is_address

if TYPE_CHECKING:
    from napari_jrss.app.rounds.train import Executor
    from napari_jrss.training.loop import Cancel


def executor_elsewhere(
    project: Path,
    run_on: RunOn,
    device: str,
    devices: int = 1,
    *,
    at_once: Cancel | None = None,
) -> Executor:
    """What runs rounds where `run_on` says; its command may be the address of a scheduler.

    Raises
    ------
    LaunchError
        A Python or a folder is given for a cluster, whose workers have their own; or several
        devices, while a round runs on one worker.
    """
    if not is_address(run_on.command):
        return InLaunchedProcess(project, run_on, device, devices=devices, at_once=at_once)
    if run_on.python or run_on.folder:
        raise LaunchError(
            f"{run_on.command}: a cluster's workers have their own Python, and see the project at "
            "the same path: leave out both"
        )
    if devices > 1:
        raise LaunchError(f"{run_on.command}: a round runs on one device of a cluster's worker")
    from napari_jrss.app.rounds.on_cluster import OnCluster

    return OnCluster(project, run_on.command.strip(), device, at_once=at_once)
