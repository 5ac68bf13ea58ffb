"""Learning at once from accepted cases: with the real session, engine and processes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import Never, assert_same_tensors, tiny_config, weights
from napari_jrss.app.next_step import work_state
from napari_jrss.app.rounds import learning
from napari_jrss.app.rounds.learning import LearningError, new_labels, plan_quick_round
from napari_jrss.app.rounds.train import InterruptedSeriesError
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.preprocess import cost
from napari_jrss.project.project import Project
from napari_jrss.project.records import Event as Happened
from napari_jrss.project.records import RoundKind, RoundOutcome, Split
from napari_jrss.training import quick
from napari_jrss.training.events import RoundFinished, StepEnd

pytestmark = pytest.mark.slow

LONG = {"segmentation": {"epochs": 1, "minimum_steps": 100_000}}
WAIT_S = 150


@pytest.fixture(scope="module")
def taught_once(trainable_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cases labelled, four not, two for validation; a teacher that has begun to learn."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("taught") / "brain.jrss"
    shutil.copytree(trainable_once, path)
    with Project.open(path) as project:
        project.split(labelled=2, validation=2, test=0)
        config = tiny_config(
            segmentation_network={"name": "unet"},
            schedule="cosine",
            segmentation={"minimum_steps": 40, "epochs": 1, "loss": "dice_ce"},
        )
        list(train(project, config, 0, Never()))
    torch.set_num_threads(threads)
    return path


@pytest.fixture
def path(taught_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(taught_once, tmp_path / "brain.jrss"))


@pytest.fixture
def session(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """Learns in this process, in a few steps."""
    import torch

    monkeypatch.setattr(learning, "_LEAST_STEPS", 1)
    monkeypatch.setattr(learning, "_MOST_STEPS", 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Session(author="a reader", device="cpu")
    made.learning.own_process = made.rounds.own_process = False
    made.learning.after_accept = True
    made.open(path)
    yield made
    assert made.close(30)
    torch.set_num_threads(threads)


def accept_next(session: Session) -> str:
    """Open the suggested case, correct a few voxels, and accept it."""
    suggestion = session.cohort.suggest()
    assert suggestion is not None
    return accept(session, suggestion.case_id)


def accept(session: Session, case_id: str) -> str:
    review = session.review
    review.open(case_id, "keep")
    assert review.wait(WAIT_S)
    assert session.workspace.inference.wait(WAIT_S)
    assert review.wait(WAIT_S)
    review.open_case.editor.label[5:8, 5:8, 5:8] = 1
    review.accept()
    assert review.wait(WAIT_S)
    return case_id


def last(session: Session) -> tuple[int, RoundKind, RoundOutcome]:
    entry = session.workspace.open_project.rounds()[-1]
    return entry.number, entry.kind, entry.outcome


def once(session: Session, command: Callable[[], object]) -> None:
    """Give a command at the first step that is learned."""

    def watch(event: object) -> None:
        if isinstance(event, StepEnd):
            session.learning.runner.event.disconnect(watch)
            command()

    session.learning.runner.event.connect(watch)


def test_an_accepted_case_is_learned_in_a_process_of_its_own_and_there_is_a_way_back(
    session: Session, path: Path
) -> None:
    session.learning.own_process = True
    told: list[str] = []
    session.workspace.notified.connect(told.append)
    before = weights(path / "rounds" / "0000")["teacher.safetensors"]
    case_id = accept_next(session)
    assert session.learning.wait(WAIT_S)
    assert session.learning.runner.error is None
    project = session.workspace.open_project
    assert last(session) == (1, RoundKind.QUICK, RoundOutcome.FINISHED)
    entry = project.round(1)
    assert (entry.parent, project.require_teacher().number) == (0, 1)
    assert entry.label_versions[case_id] == "v0002"
    assert set(entry.label_versions) > set(project.round(0).label_versions)
    assert not new_labels(project, entry)
    after = weights(entry.folder)["teacher.safetensors"]
    assert any((after[name] != before[name]).any() for name in before)
    assert told[-1] == f"The teacher learned from case {case_id}: the next draft uses it."
    started = [e for e in project.history() if e.kind is Happened.ROUND_STARTED]
    assert started[-1].detail == f"learns from {case_id}"
    assert session.rounds.history()[-1].learned_from == (case_id,)
    # the next case has a draft of the new teacher
    following = session.cohort.suggest()
    assert following is not None
    assert entry.files.has_prediction(following.case_id)
    session.review.open(following.case_id)
    assert session.review.wait(WAIT_S)
    assert session.review.open_case.editor.origin.draft == "round:1"
    session.rounds.promote(0, "the former one was better")
    assert project.require_teacher().number == 0


def test_a_training_counts_what_was_learned_at_once_as_new(session: Session) -> None:
    for _ in range(2):
        accept_next(session)
        assert session.learning.wait(WAIT_S)
    project = session.workspace.open_project
    assert project.require_teacher().number == 2
    assert project.before_quick(project.require_teacher()).number == 0
    accept_next(session)
    assert session.learning.wait(WAIT_S)
    assert "3 labels are new since the last training" in work_state(project).action
    assert not session.rounds.resumable
    with pytest.raises(InterruptedSeriesError, match="pre-trained already"):
        session.rounds.start(tiny_config(), 0)


def test_a_teacher_that_got_worse_does_not_come_into_force(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick, "LEARNING_RATE", 0.5)
    monkeypatch.setattr(quick, "DECAY", 0.0)
    case_id = accept_next(session)
    assert session.learning.wait(WAIT_S)
    project = session.workspace.open_project
    assert last(session) == (1, RoundKind.QUICK, RoundOutcome.FINISHED)
    metrics = project.round(1).metrics
    assert isinstance(metrics[quick.BEFORE], float)
    assert isinstance(metrics[quick.AFTER], float)
    assert metrics[quick.AFTER] < metrics[quick.BEFORE] - 0.05
    assert project.require_teacher().number == 0
    assert session.learning.learned == (
        f"The teacher got worse by case {case_id}: the former teacher stays."
    )
    assert not (project.round(1).folder / "predictions").exists()
    # it is not tried again and again, but the label is learned with the next one
    assert new_labels(project, project.require_teacher()) == [case_id]


def test_validation_cases_judge_and_without_them_the_labels_that_were_known(
    session: Session,
) -> None:
    project = session.workspace.open_project
    accept_next(session)
    assert session.learning.wait(WAIT_S)
    validation = [case for case in project.cases() if case.split is Split.VALIDATION]
    first = project.round(1).files.description().quick
    assert first is not None
    assert set(first.judged) == {case.case_id for case in validation}
    metrics = project.round(1).metrics
    assert metrics["validation_segmentation_dice"] == metrics[quick.AFTER]
    assert quick.ANCHOR_DRAFT_DICE not in metrics

    unused = [replace(case, split=Split.UNUSED) for case in validation]
    project._ledger.assign(unused, "without validation", {})
    known = set(project.snapshot().labelled)
    accept_next(session)
    assert session.learning.wait(WAIT_S)
    second = project.round(2).files.description().quick
    assert second is not None
    assert set(second.judged) == known
    assert "validation_segmentation_dice" not in project.round(2).metrics
    assert quick.ANCHOR_DRAFT_DICE in project.round(2).metrics


def test_drafts_that_got_worse_since_the_last_training_lead_back_to_it(session: Session) -> None:
    """The Dice of drafts of cases that neither teacher had seen is the evidence."""
    for _ in range(2):
        accept_next(session)
        assert session.learning.wait(WAIT_S)
    session.learning.after_accept = False
    case_id = accept_next(session)
    project = session.workspace.open_project
    planned = plan_quick_round(project, "cpu")
    assert planned.quick is not None
    assert (planned.parent, planned.quick.new) == (2, [case_id])
    worse = {quick.DRAFT_DICE: 0.6, quick.ANCHOR_DRAFT_DICE: 0.8}
    project.add_metrics(2, worse, "as if its parent's draft had been bad")
    assert plan_quick_round(project, "cpu").parent == 0


def test_a_case_accepted_meanwhile_is_learned_afterwards(session: Session) -> None:
    project = session.workspace.open_project
    first, second, third, _ = project.snapshot().unlabelled

    def accept_two() -> None:
        accept(session, second)
        accept(session, third)

    once(session, accept_two)
    accept(session, first)
    deadline = time.monotonic() + WAIT_S
    while len(project.rounds()) < 3 or session.learning.runner.state.busy:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    plans = [entry.files.description().quick for entry in project.rounds()[1:]]
    assert [plan.new for plan in plans if plan is not None] == [[first], [second, third]]
    assert [entry.outcome for entry in project.rounds()[1:]] == [RoundOutcome.FINISHED] * 2
    assert not new_labels(project, project.require_teacher())


def test_a_training_ends_it_and_learns_the_same_labels(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_MOST_STEPS", 100_000)
    monkeypatch.setattr(learning, "BUDGET_S", 1e6)
    started = []
    network = {"segmentation_network": {"name": "unet"}}

    def begin() -> None:
        started.append(True)
        session.rounds.start(tiny_config(**network), 0, pretrain=True)

    once(session, begin)
    case_id = accept_next(session)
    assert session.learning.wait(WAIT_S)
    assert started
    assert session.workspace.training.wait(WAIT_S)
    assert session.workspace.training.state is JobState.FINISHED
    project = session.workspace.open_project
    given_up, trained = project.rounds()[1:]
    assert (given_up.kind, given_up.outcome) == (RoundKind.QUICK, RoundOutcome.CANCELLED)
    assert not list(given_up.folder.glob("*.safetensors"))
    assert (trained.kind, trained.outcome) == (RoundKind.TRAINING, RoundOutcome.FINISHED)
    assert trained.label_versions[case_id] == "v0002"
    assert session.learning.runner.state is JobState.CANCELLED


def test_the_choice_of_another_teacher_ends_it(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_next(session)
    assert session.learning.wait(WAIT_S)
    monkeypatch.setattr(learning, "_MOST_STEPS", 100_000)
    monkeypatch.setattr(learning, "BUDGET_S", 1e6)
    begun = threading.Event()
    once(session, begun.set)
    accept_next(session)
    assert begun.wait(WAIT_S)
    session.rounds.promote(0)
    assert not session.learning.runner.state.busy
    assert last(session) == (2, RoundKind.QUICK, RoundOutcome.CANCELLED)
    assert session.workspace.open_project.require_teacher().number == 0


def test_a_case_accepted_during_a_training_is_learned_after_it(session: Session) -> None:
    case_id = session.workspace.open_project.snapshot().unlabelled[0]
    accepted = []

    def watch(event: object) -> None:
        if isinstance(event, StepEnd) and not accepted:
            accepted.append(case_id)
            accept(session, case_id)

    session.workspace.training.event.connect(watch)
    network = {"segmentation_network": {"name": "unet"}}
    session.rounds.start(tiny_config(**network), 0, pretrain=True)
    assert session.workspace.training.wait(WAIT_S)
    assert session.learning.wait(WAIT_S)
    project = session.workspace.open_project
    trained, learned = project.rounds()[1:]
    assert case_id not in trained.label_versions
    assert (learned.kind, learned.parent) == (RoundKind.QUICK, trained.number)
    assert learned.label_versions[case_id] == "v0002"
    assert project.require_teacher().number == learned.number


def test_it_says_why_it_does_not_learn(session: Session, trainable_once: Path) -> None:
    assert session.learning.why_not == "The teacher knows every label already."
    with pytest.raises(LearningError, match="knows every label"):
        session.learning.start()
    session.learning.after_accept = False
    accept_next(session)
    assert session.learning.why_not == ""
    session.rounds.start(
        tiny_config(segmentation_network={"name": "unet"}, **LONG), 0, pretrain=True
    )
    assert session.learning.why_not == "A training runs; it comes after that."
    while last(session)[0] == 0:
        time.sleep(0.05)
    session.rounds.pause()
    assert session.workspace.training.wait(WAIT_S)
    assert session.rounds.resumable
    assert session.learning.why_not == "The training was interrupted: resume it, or give it up."
    session.learning.accepted(next(iter(session.workspace.open_project.snapshot().labelled)))
    assert session.rounds.resumable  # no quick round hides the series
    session.open(trainable_once, read_only=True)
    assert session.learning.why_not == "The project is open read-only."


def test_the_steps_fit_the_time(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_MOST_STEPS", 10**6)
    session.learning.after_accept = False
    accept_next(session)
    project = session.workspace.open_project
    teacher = project.require_teacher()
    seconds = {"mono_segmentation": 0.25, "prediction": 0.5}
    project.add_metrics(teacher.number, {"step_seconds": seconds}, "as measured")

    def planned() -> tuple[int, float]:
        plan = plan_quick_round(project, "cpu").quick
        assert plan is not None
        cases = len(plan.new) + 2 * len(plan.judged) + len(plan.predicted)
        return plan.steps, seconds["mono_segmentation"] * plan.steps + 0.5 * cases

    steps, taken = planned()
    assert learning.BUDGET_S - 12 < taken <= learning.BUDGET_S
    seconds["mono_segmentation"] = 0.5
    project.add_metrics(teacher.number, {"step_seconds": seconds}, "a slower machine")
    assert planned()[0] == pytest.approx(steps / 2, abs=1)
    # before anything was measured here, the cost model says it
    project.add_metrics(teacher.number, {"step_seconds": {}}, "not measured")
    slow = cost.Machine("cpu", 2, 8e9, 50.0, known=True)
    monkeypatch.setattr(learning, "this_machine", lambda device: slow)
    by_model = planned()[0]
    slow = cost.Machine("cpu", 2, 8e9, 100.0, known=True)
    assert planned()[0] < by_model


LEARNS = """
    import sys
    from napari_jrss.app.rounds import learning
    from napari_jrss.app.session import Session
    from napari_jrss.training.events import StepEnd

    learning._MOST_STEPS, learning.BUDGET_S = 10**6, 1e6
    if __name__ == "__main__":
        session = Session(author="a reader", device="cpu")
        session.open(sys.argv[1])
        session.learning.after_accept = True
        session.learning.runner.event.connect(
            lambda event: isinstance(event, StepEnd) and print(event.step, flush=True)
        )
        session.review.open(sys.argv[2])
        session.review.wait()
        session.review.open_case.editor.label[5:8, 5:8, 5:8] = 1
        session.review.accept()
        session.review.wait()
        session.learning.wait()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is POSIX's")
def test_a_killed_program_leaves_the_former_teacher_and_learns_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "learns.py"
    script.write_text(textwrap.dedent(LEARNS))
    with Project.open(path, read_only=True) as project:
        first, second = project.snapshot().unlabelled[:2]
    program = subprocess.Popen(
        [sys.executable, str(script), str(path), first],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert program.stdout is not None
    assert program.stdout.readline().strip() == b"1"
    program.send_signal(signal.SIGKILL)
    program.wait()
    program.stdout.close()
    monkeypatch.setattr(learning, "_MOST_STEPS", 4)
    session = Session(author="a reader", device="cpu")
    session.learning.own_process = False
    session.open(path)
    project = session.workspace.open_project
    assert last(session) == (1, RoundKind.QUICK, RoundOutcome.CANCELLED)
    assert not list(project.round(1).folder.glob("*.safetensors"))
    assert project.require_teacher().number == 0
    assert not session.rounds.resumable
    session.learning.after_accept = True
    accept(session, second)
    assert session.learning.wait(WAIT_S)
    assert session.learning.learned == (
        f"The teacher learned from cases {first} and {second}: the next draft uses it."
    )
    assert session.close(30)


@pytest.mark.skipif(sys.platform == "win32", reason="the signal is POSIX's")
def test_a_killed_training_process_leaves_the_former_teacher(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psutil

    monkeypatch.setattr(learning, "_MOST_STEPS", 10**6)
    monkeypatch.setattr(learning, "BUDGET_S", 1e6)
    session.learning.own_process = True
    told: list[str] = []
    session.workspace.notified.connect(told.append)

    def kill() -> None:
        for child in psutil.Process().children(recursive=True):
            if "_run_child" in str(child.cmdline()):
                child.kill()

    once(session, kill)
    accept_next(session)
    assert session.learning.wait(WAIT_S)
    assert session.learning.runner.state is JobState.FAILED
    assert told[-1].startswith("learning at once failed: ")
    project = session.workspace.open_project
    assert last(session) == (1, RoundKind.QUICK, RoundOutcome.FAILED)
    assert not list(project.round(1).folder.glob("*.safetensors"))
    assert project.require_teacher().number == 0


def test_it_learns_the_same_from_the_same_labels(
    session: Session, taught_once: Path, tmp_path: Path
) -> None:
    case_id = accept_next(session)
    assert session.learning.wait(WAIT_S)
    known = weights(session.workspace.open_project.round(1).folder)
    session.open(shutil.copytree(taught_once, tmp_path / "again.jrss"))
    finished: list[RoundFinished] = []
    session.learning.runner.event.connect(
        lambda event: finished.append(event) if isinstance(event, RoundFinished) else None
    )
    accept(session, case_id)
    assert session.learning.wait(WAIT_S)
    assert len(finished) == 1
    assert_same_tensors(weights(session.workspace.open_project.round(1).folder), known)
