"""A project trained on a GPU: estimates, a full memory, and what is left of it afterwards."""

from __future__ import annotations

import pytest
import torch

from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import Never, tiny_config
from napari_jrss.app.rounds.measure import measure_in_own_process, one_step
from napari_jrss.app.rounds.process import InOwnProcess
from napari_jrss.app.rounds.train import OutOfMemoryError
from napari_jrss.inference.device import make_fabric
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome
from napari_jrss.training.events import RoundFinished

pytestmark = pytest.mark.gpu

STAGES = ("mono_segmentation", "registration", "student")
GRID = (96, 96, 96)


def test_a_round_in_a_process_of_its_own_takes_no_memory_here(project: Project) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    place = InOwnProcess(project.path, "cuda")
    event = list(train(project, tiny_config(), 1, Never(), executor=place))[-1]
    assert isinstance(event, RoundFinished)
    assert [entry.outcome for entry in project.rounds()] == [RoundOutcome.FINISHED] * 2
    assert project.round(1).metrics["device"] == "cuda"
    assert place.process is None  # and with it went its memory
    assert torch.cuda.max_memory_reserved() == before


def test_a_full_memory_is_told_in_one_line_and_leaves_the_teacher(project: Project) -> None:
    list(train(project, tiny_config(), 0, Never(), device="cuda"))
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-4)
    try:
        with pytest.raises(OutOfMemoryError, match="memory of the GPU is not enough for round 1"):
            list(train(project, tiny_config(), 1, Never(), device="cuda"))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [entry.outcome for entry in project.rounds()] == [
        RoundOutcome.FINISHED,
        RoundOutcome.FAILED,
    ]
    assert project.teacher == project.round(0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_estimate_of_memory_is_what_a_step_takes(precision: str) -> None:
    config = tiny_config(precision=precision)
    measured = measure_in_own_process(config, 3, GRID, "cuda", Never())
    assert measured is not None
    assert measured.device == "cuda"
    assert measured.total == torch.cuda.get_device_properties(0).total_memory
    for stage in STAGES:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step = one_step(stage, config, 3, GRID, make_fabric("cuda", config.precision))
        for _ in range(2):
            step()
        taken = torch.cuda.max_memory_reserved() - before
        _, estimate = measured.stages[stage].at(GRID[0] * GRID[1] * GRID[2])
        assert 0.5 < estimate / taken < 2
        del step
