"""What a run ended with, its fields refined for each pair (:mod:`napari_jrss.engine.refine`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from napari_jrss.config import RefinementConfig
from napari_jrss.engine.joint_round import TEACHER
from napari_jrss.engine.refine import RefinedRegistration
from napari_jrss.experiments.methods.mono import networks_of
from napari_jrss.experiments.recipe import Task, Trained


def train(task: Task) -> Trained:
    """Nothing is trained: the networks are those of the last round of the run before."""
    assert task.start is not None
    rounds = {_number(path.parent): path.parent for path in task.start.glob(f"round*/{TEACHER}")}
    if not rounds:
        return Trained(note="no joint round was run")
    trained = networks_of(task, rounds[max(rounds)])
    assert trained.registration is not None
    assert trained.segmentation is not None
    config = RefinementConfig(similarity=task.config.registration.similarity)
    refined = RefinedRegistration(trained.registration, trained.segmentation, config)
    return replace(trained, segmentation=None, registration=refined)


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("round"))
