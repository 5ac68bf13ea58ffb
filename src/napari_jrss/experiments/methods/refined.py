"""What a run ended with, its fields refined for each pair (:mod:`napari_jrss.inference.refine`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from napari_jrss.config import RefinementConfig
from napari_jrss.experiments.methods.mono import networks_of
from napari_jrss.experiments.recipe import Task, Trained
from napari_jrss.inference.refine import RefinedRegistration
from napari_jrss.io.round_files import RoundFiles


def train(task: Task) -> Trained:
    """Nothing is trained: the networks are those of the last round of the runs before."""
    *_, last = (path.parent for run in task.before for path in _teachers(run))
    trained = networks_of(task, last)
    assert trained.registration is not None
    assert trained.segmentation is not None
    config = RefinementConfig(
        control_spacings=(2,), steps=(50,), similarity=task.config.registration.similarity
    )
    refined = RefinedRegistration(trained.registration, trained.segmentation, config)
    return replace(trained, segmentation=None, registration=refined)


def _teachers(run: Path) -> list[Path]:
    """Of a run's rounds, in their order."""
    paths = run.glob(f"round*/{RoundFiles(run).teacher.name}")
    return sorted(paths, key=lambda path: int(path.parent.name.removeprefix("round")))
