"""Progress told from events, as a bar and as curves."""

from __future__ import annotations

import pytest

from napari_jrss.app.rounds.progress import Curve, Progress, duration, joined, words
from napari_jrss.training.events import (
    CaseScreened,
    EpochEnd,
    RoundFinished,
    StageFinished,
    StageStarted,
    StepEnd,
)


def step(number: int, loss: float = 0.5, stage: str = "student_2") -> StepEnd:
    return StepEnd(stage=stage, step=number, steps=100, losses={"total": loss}, seconds=1)


def epoch(number: int, at: int, dice: float | None, stage: str = "student_2") -> EpochEnd:
    return EpochEnd(
        stage=stage, epoch=number, step=at, losses={"total": 1 / number}, validation=dice, best=dice
    )


def test_a_line_says_stage_step_epoch_loss_dice_and_time_left() -> None:
    now = [0.0]
    progress = Progress(clock=lambda: now[0])
    assert progress.line() == ""
    progress.add(StageStarted(stage="student_2", steps=100, first_step=40, best=0.7))
    assert progress.line() == "student, round 2: 40 of 100, best Dice 0.700"
    for number in (41, 42):
        now[0] += 2.0
        progress.add(step(number))
    progress.add(epoch(3, 42, 0.75))
    assert (
        progress.line()
        == "student, round 2: 42 of 100, epoch 3, loss 0.500, best Dice 0.750, 2 min left"
    )
    assert progress.seconds_left == pytest.approx(58 * 2.0)
    progress.add(StageFinished(stage="student_2", best=0.75))
    assert progress.step == 100
    progress.add(RoundFinished(number=2, metrics={}))
    assert progress.line() == ""


def test_predicted_cases_count_as_steps() -> None:
    progress = Progress()
    progress.add(StageStarted(stage="prediction", steps=2))
    case = CaseScreened(
        stage="prediction",
        case_id="a",
        accepted=True,
        kept_fraction=1,
        class_confidence=[],
        classes_passed=[],
    )
    progress.add(case)
    assert progress.line().startswith("prediction: 1 of 2")
    assert progress.seconds_left is not None


def test_a_resumed_stage_draws_its_repeated_epochs_once() -> None:
    progress = Progress()
    progress.read([epoch(1, 10, 0.5), epoch(2, 20, 0.6)])
    progress.add(StageStarted(stage="student_2", steps=100, first_step=10))
    progress.add(epoch(2, 20, 0.6))
    assert progress.dice["student_2"] == Curve([10, 20], [0.5, 0.6])
    assert progress.losses["student_2"].x == [10, 20]


def test_stages_are_joined_one_after_the_other() -> None:
    first, second = Curve([10, 20], [4.0, 2.0]), Curve([5, 10], [0.5, 0.25])
    assert joined([first, second]) == Curve([10, 20, 25, 30], [4.0, 2.0, 0.5, 0.25])
    assert joined([first, second], relative=True).y == [1.0, 0.5, 1.0, 0.5]
    assert joined([]) == Curve()


def test_words_and_durations() -> None:
    assert words("mono_registration") == "first training, registration"
    assert words("registration_12") == "registration, round 12"
    assert words("screening") == "screening"
    assert [duration(s) for s in (40, 600, 12_600)] == ["40 s", "10 min", "3.5 h"]
