"""The estimate before a start: its steps are the engine's, its costs those of a real step."""

from __future__ import annotations

import re
import threading
from collections import Counter

import pytest

from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import SHAPE, Never, tiny_config
from napari_jrss.app.rounds.estimate import WontFitError, estimated, require_fit, steps_of
from napari_jrss.app.rounds.measure import (
    EstimateError,
    Measured,
    StepCost,
    measure_in_own_process,
)
from napari_jrss.project.project import Project
from napari_jrss.training.events import StageStarted
from napari_jrss.training.trainable import RoundError

pytestmark = pytest.mark.slow

STAGES = ("mono_segmentation", "registration", "student", "prediction")


def costs(seconds: float = 1.0, device: str = "cpu") -> Measured:
    cost = StepCost(seconds=(seconds, 0.0), memory=(1e6, 1000.0))
    return Measured(device=device, program=5e8, total=4e9, stages=dict.fromkeys(STAGES, cost))


def test_steps_are_those_that_the_engine_takes_and_earlier_rounds_tell_the_time(
    project: Project,
) -> None:
    config = tiny_config()
    planned = steps_of(config, project.snapshot(), pretrained=False, rounds=1)
    before = estimated(project, config, 1, costs(seconds=3.0))
    assert before.seconds == 3 * sum(planned.values())
    assert before.basis == "from a measured step"

    taken: Counter[str] = Counter()
    for event in train(project, config, 1, Never(), device="cpu"):
        if isinstance(event, StageStarted):
            taken[re.sub(r"_\d+$", "", event.stage)] += event.steps
    del taken["screening"]
    assert planned == taken

    after = estimated(project, config, 2, costs(seconds=3.0))
    assert after.basis == "as earlier rounds took"
    metrics = project.round(1).metrics["step_seconds"]
    steps = steps_of(config, project.snapshot(), pretrained=True, rounds=2)
    assert after.seconds == pytest.approx(sum(n * metrics[stage] for stage, n in steps.items()))
    # Another batch size, network or device: what was is no guide.
    other = tiny_config(segmentation={"batch_size": 4})
    assert estimated(project, other, 2, costs()).basis == "from a measured step"
    assert estimated(project, config, 2, costs(device="cuda")).basis == "from a measured step"


def test_memory_is_the_program_the_volumes_and_a_step(project: Project) -> None:
    estimate = estimated(project, tiny_config(), 0, costs())
    voxels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    assert project.snapshot().shape == SHAPE
    assert estimate.memory == 5e8 + 1e6 + 1000 * voxels + 6 * 5 * voxels
    assert estimate.fits
    assert "0.5 of 3.7 GiB of memory" in estimate.line()


def test_processes_share_cases_and_each_has_its_memory(project: Project) -> None:
    both = costs().model_copy(update={"devices": 2})
    one, two = (estimated(project, tiny_config(), 1, each) for each in (costs(), both))
    assert two.memory == 2 * one.memory
    # Of the two unlabelled cases each predicts one, after the pre-training and after the round.
    assert one.seconds - two.seconds == 2
    assert "on 2 x cpu (from a measured step)" in two.line()


def test_what_can_not_end_on_this_machine_is_refused(project: Project) -> None:
    config = tiny_config()
    require_fit(estimated(project, config, 1, costs()))
    with pytest.raises(WontFitError, match=r"about \d+ days .*--anyway starts it all the same"):
        require_fit(estimated(project, config, 1, costs(seconds=1e6)))
    large = costs().model_copy(update={"program": 8e9})
    with pytest.raises(WontFitError, match="of memory: too much"):
        require_fit(estimated(project, config, 1, large))


@pytest.mark.parametrize("devices", [1, 2])
def test_a_real_step_is_measured_in_processes_of_its_own(devices: int) -> None:
    config, shape = tiny_config(), (16, 24, 16)
    measured = measure_in_own_process(config, 3, shape, "cpu", Never(), devices=devices)
    assert measured is not None
    assert measured.name == ("cpu" if devices == 1 else "2 x cpu")
    assert set(measured.stages) == set(STAGES)
    assert measured.program > 1e8
    for cost in measured.stages.values():
        seconds, memory = cost.at(16 * 24 * 16)
        assert 0 < seconds < 60
        assert 0 <= memory < 1e9


def test_a_measurement_can_be_stopped_and_its_failure_is_one_line() -> None:
    cancel = threading.Event()
    cancel.set()
    assert measure_in_own_process(tiny_config(), 3, (16, 16, 16), "cpu", cancel) is None
    with pytest.raises(RoundError, match="3 devices can't share a step of 2 images"):
        measure_in_own_process(tiny_config(), 3, (16, 16, 16), "cpu", cancel, devices=3)
    with pytest.raises(EstimateError, match=r"could not be measured: .*unknown device 'abacus'"):
        measure_in_own_process(tiny_config(), 3, (16, 16, 16), "abacus", Never())
