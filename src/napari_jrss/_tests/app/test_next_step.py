"""Where the work on a project stands, and what comes next."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.app.phantoms import describe, give_teacher, make_project
from napari_jrss.app.next_case import first_case
from napari_jrss.app.next_step import TRAIN_AFTER, Step, StepState, work_state
from napari_jrss.app.status import project_status
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status
from napari_jrss.times import duration, local_time


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.open(make_project(tmp_path)) as project:
        yield project


def label(project: Project, count: int) -> None:
    """Accept labels of some unlabelled cases."""
    for case_id in project.snapshot().unlabelled[:count]:
        array = np.ones(project.grid.shape, np.uint8)
        project.add_label_version(case_id, array, "A. Reader", status=Status.ACCEPTED)


def test_without_a_project_the_import_comes_first() -> None:
    work = work_state(None)
    assert work.next is Step.IMPORT
    assert work.states[Step.IMPORT] is StepState.NEXT
    assert set(work.states.values()) == {StepState.NEXT, StepState.LATER}


def test_labels_without_a_teacher_call_for_a_training(project: Project) -> None:
    work = work_state(project)
    assert (work.next, work.action) == (
        Step.TRAIN,
        "Train a first teacher on 5 labelled cases.",
    )
    assert work.states[Step.LABEL] is StepState.DONE
    assert work.details[Step.IMPORT] == "10 cases"
    assert project_status(project).next_step == work.action


def test_scans_without_any_label_call_for_one(project: Project) -> None:
    project.split(labelled=0, validation=1, test=1)
    work = work_state(project)
    assert work.next is Step.LABEL
    assert work.action.startswith("Label a first scan: paint it, or begin with prompts")
    # Where the scans have been looked at, it says which.
    first = first_case(project)
    assert first is not None
    assert project_status(project).next_step.startswith(f"Label {first.case_id}, the most typical")
    label(project, 1)
    assert first_case(project) is None
    assert first.case_id not in project_status(project).next_step


def test_with_a_teacher_its_drafts_are_reviewed_until_there_is_news_for_it(
    project: Project,
) -> None:
    give_teacher(project)
    work = work_state(project)
    assert (work.next, work.details[Step.REVIEW]) == (Step.REVIEW, "3 left")
    label(project, 1)
    assert work_state(project).next is Step.REVIEW
    label(project, 2)
    assert TRAIN_AFTER == 3
    work = work_state(project)
    assert work.next is Step.TRAIN
    assert work.action == "3 labels are new since the last training: train again."


def test_when_the_teacher_knows_every_label_the_export_comes(project: Project) -> None:
    label(project, 3)
    give_teacher(project)
    assert work_state(project).next is Step.EXPORT


def test_what_runs_is_said(project: Project) -> None:
    work = work_state(project, training=True)
    assert work.states[Step.TRAIN] is StepState.RUNNING
    assert work.action.startswith("A training runs.")
    work = work_state(project, importing=True)
    assert work.states[Step.IMPORT] is StepState.RUNNING
    assert work.action == "The scans are being read."
    assert work.states[Step.LABEL] is StepState.LATER  # more may come


def test_an_interrupted_training_is_resumed_first(project: Project) -> None:
    give_teacher(project)
    teacher = project.require_teacher().number
    project.start_round(teacher, describe(project), project.snapshot().label_versions)
    assert "resume" in work_state(project).action


def test_durations_and_times_are_a_persons() -> None:
    told = [duration(s) for s in (1, 80, 600, 12_600, 15_381_720)]
    assert told == ["1 s", "80 s", "10 min", "3.5 h", "178 days"]
    assert len(local_time("2026-01-02T03:04:05+00:00")) == len("2026-01-02 03:04")
