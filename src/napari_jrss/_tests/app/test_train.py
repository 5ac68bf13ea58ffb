"""A project is pre-trained, gets better by rounds, and goes on where it was interrupted."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import napari_jrss as jrss
from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import (
    AfterSteps,
    Never,
    assert_same_tensors,
    tiny_config,
    weights,
)
from napari_jrss.app.evaluation import evaluate
from napari_jrss.app.rounds.process import InOwnProcess
from napari_jrss.app.rounds.train import InterruptedSeriesError
from napari_jrss.app.status import history, project_status
from napari_jrss.cli import app
from napari_jrss.errors import ProjectError
from napari_jrss.inference.load import load_registration, load_student, load_teacher
from napari_jrss.project.corrections import Corrections
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome
from napari_jrss.training.events import Cancelled, Event, RoundFinished, StepEnd
from napari_jrss.training.trainable import RoundError

pytestmark = pytest.mark.slow


def run(
    project: Project,
    rounds: int,
    cancel: AfterSteps | None = None,
    resume: bool | None = None,
    **changes: object,
) -> list[Event]:
    events = train(
        project, tiny_config(**changes), rounds, cancel or Never(), device="cpu", resume=resume
    )
    return list(events)


def outcomes(project: Project) -> list[tuple[int, int | None, RoundOutcome]]:
    return [(entry.number, entry.parent, entry.outcome) for entry in project.rounds()]


def teacher(project: Project) -> int | None:
    return None if project.teacher is None else project.teacher.number


def test_pretraining_then_a_round_each_promoted_and_evaluated(project: Project) -> None:
    events = run(project, 1)
    assert [e.number for e in events if isinstance(e, RoundFinished)] == [0, 1]
    assert outcomes(project) == [(0, None, RoundOutcome.FINISHED), (1, 0, RoundOutcome.FINISHED)]
    assert teacher(project) == 1
    last = project.rounds()[-1]
    assert last.metrics["labelled"] == 2
    assert set(last.label_versions) == {
        *project.snapshot().labelled,
        *project.snapshot().validation,
    }
    import torch

    device = torch.device("cpu")
    assert not project.round(0).files.student.exists()
    networks = (load_teacher, load_student, load_registration)
    for network in (load(last.files, device) for load in networks):
        assert not network.training

    told = list(evaluate(project, device="cpu").rounds)
    assert [(e.number, e.name) for e in told] == [(0, "Mono-Nets"), (1, "JRSS round 1")]
    assert told[0].segmentation["cases"] == 2
    assert told[0].registration["pairs"] == 2
    assert (last.folder / "evaluation.jsonl").read_text().count("\n") == 4

    # The next series starts from the current teacher, also after a roll-back.
    project.promote(0)
    run(project, 1)
    assert outcomes(project)[-1] == (2, 0, RoundOutcome.FINISHED)
    assert teacher(project) == 2


def test_without_a_registration_network_pairs_are_refined_from_zero(project: Project) -> None:
    changes = {
        "registration": {"epochs": 0, "minimum_steps": 0},
        "joint": {"student": "perturbed", "segmentation_epochs": 1, "registration_epochs": 0},
    }
    events = run(project, 1, **changes)
    assert not any("registration" in str(getattr(event, "stage", "")) for event in events)
    for entry in project.rounds():
        assert not entry.files.registration.exists()
        assert "validation_registration_dice" not in entry.metrics
    labelled = project.snapshot().labelled
    for refine in (False, True):
        report = jrss.register(project, labelled[0], labelled[1], refine=refine).figures
        assert report.refined
        assert report.residual < report.residual_before
    told = evaluate(project, device="cpu").rounds
    assert told[-1].registration["pairs"] == 2

    with pytest.raises(RoundError, match=r"round 1, .* has no registration network to go on with"):
        run(project, 1)


def test_a_round_that_falls_behind_says_so_and_the_earlier_teacher_comes_back(
    project: Project,
) -> None:
    run(project, 1)
    for number, dice in ((0, 0.99), (1, 0.5)):
        project.add_metrics(number, {"validation_segmentation_dice": dice}, "for this test")
    *_, last = run(project, 1)
    assert isinstance(last, RoundFinished)
    said = "On the validation cases round 0 segments better (Dice 0.990, now 0."
    assert said in last.warning
    assert said in str(project.round(2).metrics["warning"])
    assert "segments better" not in str(project.round(1).metrics.get("warning", ""))

    project.close()
    command = ["teacher", str(project.path), "0", "--author", "Ada"]
    told = CliRunner().invoke(app, command)
    assert told.output == "the teacher of round 0 is the current one, chosen by Ada\n"
    with Project.open(project.path) as again:
        assert teacher(again) == 0
        (event,) = [e for e in history(again) if e.round == 0 and "command" in e.detail]
        assert event.author == "Ada"


def test_test_cases_and_hidden_labels_never_train(project: Project) -> None:
    snapshot = project.snapshot()
    held_out = {c.case_id for c in project.cases()} - {*snapshot.training, *snapshot.validation}
    assert len(held_out) == 2
    run(project, 0)
    description = json.loads((project.round(0).folder / "config.json").read_text())
    named = {
        case for role in ("labelled", "unlabelled", "validation") for case in description[role]
    }
    assert not named & held_out
    with pytest.raises(KeyError, match="no label in this snapshot"):
        snapshot.arrays.label(snapshot.unlabelled[0])


def test_an_interrupted_series_goes_on_as_it_was_asked_for(
    project: Project, trainable_once: Path, tmp_path: Path
) -> None:
    import shutil

    with Project.open(shutil.copytree(trainable_once, tmp_path / "other.jrss")) as other:
        run(other, 1, seed=3)
        straight = [weights(entry.folder) for entry in other.rounds()]

    first = run(project, 1, AfterSteps(3), seed=3)
    assert isinstance(first[-1], Cancelled)
    assert outcomes(project) == [(0, None, RoundOutcome.CANCELLED)]
    assert teacher(project) is None
    # Settings of the command that resumes do not count.
    stop = threading.Event()
    settings = tiny_config(seed=99)
    for event in train(project, settings, 7, stop, device="cpu", resume=True):
        if isinstance(event, StepEnd) and event.stage == "student_1":
            stop.set()
    assert isinstance(event, Cancelled)
    assert outcomes(project) == [(0, None, RoundOutcome.FINISHED), (1, 0, RoundOutcome.CANCELLED)]
    assert teacher(project) == 0
    third = run(project, 5, resume=True)
    assert [e.number for e in third if isinstance(e, RoundFinished)] == [1]
    assert teacher(project) == 1
    for entry, expected in zip(project.rounds(), straight, strict=True):
        assert_same_tensors(weights(entry.folder), expected)


def test_without_being_told_an_interrupted_series_is_an_error(project: Project) -> None:
    run(project, 1, AfterSteps(2))
    with pytest.raises(InterruptedSeriesError, match="round 0 was interrupted"):
        run(project, 1)
    assert outcomes(project) == [(0, None, RoundOutcome.CANCELLED)]
    run(project, 0, resume=False)
    assert outcomes(project) == [
        (0, None, RoundOutcome.CANCELLED),
        (1, None, RoundOutcome.FINISHED),
    ]
    assert teacher(project) == 1


def test_there_must_be_something_to_resume_and_something_to_do(project: Project) -> None:
    with pytest.raises(InterruptedSeriesError, match="no interrupted round to resume"):
        run(project, 1, resume=True)
    run(project, 0)
    with pytest.raises(InterruptedSeriesError, match="no interrupted round to resume"):
        run(project, 1, resume=True)
    with pytest.raises(InterruptedSeriesError, match="pre-trained already"):
        run(project, 0)
    assert outcomes(project) == [(0, None, RoundOutcome.FINISHED)]


def test_a_project_is_pre_trained_again_with_another_network_and_rounds_follow(
    project: Project,
) -> None:
    run(project, 1)
    config = tiny_config(
        segmentation_network={"name": "vm_unet"},
        segmentation={"include_background": False},
        screening={"tau": 0.0, "class_gate": "none"},
    )
    again = train(project, config, 1, AfterSteps(3), device="cpu", pretrain=True)
    assert isinstance([*again][-1], Cancelled)
    assert outcomes(project)[-1] == (2, None, RoundOutcome.CANCELLED)
    assert teacher(project) == 1
    run(project, 0, resume=True)
    assert outcomes(project)[2:] == [
        (2, None, RoundOutcome.FINISHED),
        (3, 2, RoundOutcome.FINISHED),
    ]
    assert teacher(project) == 3
    assert [project.round(n).files.training_config() for n in (2, 3)] == [config, config]
    assert weights(project.round(2).folder).keys() < weights(project.round(3).folder).keys()
    names = [entry.name for entry in evaluate(project, device="cpu").rounds]
    assert names == ["Mono-Nets", "JRSS round 1", "Mono-Nets, round 2", "JRSS round 3"]


def test_pre_training_again_needs_no_unlabelled_case(project: Project) -> None:
    run(project, 0)
    for case in project.snapshot().unlabelled:
        label = np.zeros(project.snapshot().shape, np.uint8)
        label[4:8] = 1
        project.add_label_version(case, label, "a reader")
    with pytest.raises(RoundError, match="all of them are labelled"):
        run(project, 1)
    events = [*train(project, tiny_config(), 0, Never(), device="cpu", pretrain=True)]
    assert isinstance(events[-1], RoundFinished)
    assert project.round(1).label_versions.keys() > project.round(0).label_versions.keys()


def test_a_round_that_fails_leaves_the_teacher_and_its_reason(project: Project) -> None:
    run(project, 0)
    with pytest.raises(RoundError, match=r"passes tau = 1\.0"):
        run(project, 1, screening={"tau": 1.0})
    assert outcomes(project)[-1] == (1, 0, RoundOutcome.FAILED)
    assert "tau = 1.0" in str(project.rounds()[-1].metrics["error"])
    assert teacher(project) == 0
    run(project, 1, resume=False)
    assert outcomes(project)[-1] == (2, 0, RoundOutcome.FINISHED)
    assert teacher(project) == 2


def test_a_consumer_that_walks_away_leaves_a_round_that_can_be_resumed(project: Project) -> None:
    events = train(project, tiny_config(), 0, Never(), device="cpu")
    for event in events:
        if isinstance(event, StepEnd) and event.step == 3:
            break
    events.close()  # type: ignore[attr-defined]
    assert outcomes(project) == [(0, None, RoundOutcome.CANCELLED)]
    finished = run(project, 0, resume=True)
    assert isinstance(finished[-1], RoundFinished)
    assert teacher(project) == 0


def test_walking_away_after_the_last_event_keeps_the_round(project: Project) -> None:
    events = train(project, tiny_config(), 0, Never(), device="cpu")
    for event in events:
        if isinstance(event, RoundFinished):
            break
    events.close()  # type: ignore[attr-defined]
    assert outcomes(project) == [(0, None, RoundOutcome.FINISHED)]
    assert teacher(project) == 0


def test_a_label_that_comes_during_a_round_enters_the_next_one(project: Project) -> None:
    run(project, 1, AfterSteps(3))
    before = project.snapshot()
    case = before.unlabelled[0]
    label = project.label(before.labelled[0])
    project.add_label_version(case, label, "a reader")
    run(project, 1, resume=True)
    first, second = project.rounds()
    assert case not in first.label_versions
    assert case in second.label_versions
    assert second.metrics["labelled"] == 3


@pytest.mark.parametrize("rounds", [-1, -5])
def test_a_negative_number_of_rounds_is_refused(rounds: int, project: Project) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 0"):
        run(project, rounds, AfterSteps(2))
    assert outcomes(project) == []


def test_a_device_that_is_not_there_starts_no_round(project: Project) -> None:
    with pytest.raises(ValueError, match="unknown device 'abacus'"):
        list(train(project, tiny_config(), 0, Never(), device="abacus"))
    assert outcomes(project) == []


@pytest.mark.parametrize("place", ["here", "own process"])
def test_a_network_that_is_unknown_starts_no_round(place: str, project: Project) -> None:
    config = tiny_config(segmentation_network={"name": "oblisk"})
    where = InOwnProcess(project.path, "cpu") if place == "own process" else None
    with pytest.raises(ValueError, match="unknown network 'oblisk'"):
        list(train(project, config, 0, Never(), device="cpu", executor=where))
    assert outcomes(project) == []


def test_a_series_killed_between_two_rounds_is_not_passed_over(project: Project) -> None:
    events = train(project, tiny_config(), 2, Never(), device="cpu")
    for event in events:
        if isinstance(event, RoundFinished):
            break
    events.close()  # type: ignore[attr-defined]
    assert outcomes(project) == [(0, None, RoundOutcome.FINISHED)]
    status = project_status(project)
    assert (status.interrupted_round, status.rounds_left) == (None, 2)
    with pytest.raises(InterruptedSeriesError, match="after round 0, 2 still to come: resume it"):
        run(project, 1)
    case_id, blank = project.cases()[0].case_id, np.zeros(project.grid.shape, np.uint8)
    painted = blank[0].copy()
    painted[0, 0] = 1
    Corrections(project, case_id, "blank", blank, "Ada").save({0: painted})
    (left,) = project_status(project).unsaved
    assert (left.author, left.voxels_changed, left.problem) == ("Ada", 1, "")
    told = CliRunner().invoke(app, ["status", str(project.path)], env={"COLUMNS": "200"}).output
    assert "the series was interrupted after round 0, 2 more to come: train --resume" in told
    assert "Ada changed 1 voxels and accepted" in told
    run(project, 0, AfterSteps(1), resume=True)
    assert project_status(project).interrupted_round == 1


def test_evaluating_needs_a_finished_round(project: Project) -> None:
    with pytest.raises(ProjectError, match="needs a finished round"):
        evaluate(project, device="cpu")
    run(project, 0, AfterSteps(1))
    with pytest.raises(ProjectError, match="needs a finished round"):
        evaluate(project, rounds=[0], device="cpu")
