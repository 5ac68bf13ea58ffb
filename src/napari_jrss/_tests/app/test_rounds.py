"""The commands of the tab Training, from a script, with the real engine."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from napari_jrss._tests.training.phantoms import assert_same_tensors, tiny_config, weights
from napari_jrss.app.rounds.train import InterruptedSeriesError, OutOfMemoryError
from napari_jrss.app.runner import BusyError, JobState
from napari_jrss.app.session import Session
from napari_jrss.config import NetworkConfig, TrainingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome
from napari_jrss.training.events import RoundFinished, StepEnd

pytestmark = pytest.mark.slow

LONG = {"segmentation": {"epochs": 1, "minimum_steps": 100_000}}
WAIT_S = 150


def cannot_allocate(config: NetworkConfig, channels: int, classes: int, dropout: float) -> None:
    """What PyTorch says when the computer's memory is full."""
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate")


@pytest.fixture
def path(trainable_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trainable_once, tmp_path / "brain.jrss"))


@pytest.fixture
def session(path: Path) -> Iterator[Session]:
    """Rounds in this process: what is tested here is the same for both places."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = Session(author="a reader", device="cpu")
    made.rounds.own_process = False
    made.open(path)
    yield made
    assert made.close()
    assert made.workspace.training.name not in {thread.name for thread in threading.enumerate()}
    torch.set_num_threads(threads)


def run(session: Session, config: TrainingConfig, rounds: int, **options: bool) -> None:
    session.rounds.start(config, rounds, **options)
    assert session.workspace.training.wait(WAIT_S)


def stop_at(session: Session, step: int, command: Callable[[], None]) -> None:
    """Give a command when a stage has come to this step."""

    def watch(event: object) -> None:
        if isinstance(event, StepEnd) and event.step == step:
            command()

    session.workspace.training.event.connect(watch)
    session.workspace.training.state_changed.connect(
        lambda state: (
            state.busy or session.workspace.training.event.disconnect(watch, missing_ok=True)
        )
    )


def outcomes(session: Session) -> list[tuple[int, str, bool]]:
    return [(row.number, str(row.outcome), row.is_teacher) for row in session.rounds.history()]


def test_rounds_finish_and_their_history_says_what_they_reached(session: Session) -> None:
    told: list[int] = []
    session.workspace.rounds_changed.connect(lambda: told.append(len(session.rounds.history())))
    run(session, tiny_config(seed=4), 1)
    assert session.workspace.training.state is JobState.FINISHED
    first, second = session.rounds.history()
    assert (first.parent, second.parent) == (None, 0)
    assert (second.outcome, second.is_teacher) == (RoundOutcome.FINISHED, True)
    assert (second.preset, second.tau, second.seed) == ("paper", 0.2, 4)
    assert (second.labelled, second.accepted) == (2, 2)
    assert 0 <= (second.segmentation_dice or -1) <= 1
    assert 0 <= (second.registration_dice or -1) <= 1
    assert set(second.label_versions.values()) == {"v0001"}
    assert told[-1] == 2
    curves = session.rounds.curves()
    assert list(curves.losses) == [
        "mono_segmentation",
        "mono_registration",
        "registration_1",
        "student_1",
    ]
    assert curves.dice["student_1"].x == [2, 4]

    session.rounds.promote(0, "the pre-training was better")
    assert outcomes(session) == [(0, "finished", True), (1, "finished", False)]
    last = session.workspace.open_project.history()[-1]
    assert (last.author, last.detail) == ("a reader", "the pre-training was better")
    run(session, tiny_config(), 1)
    assert outcomes(session)[-1] == (2, "finished", True)
    assert session.rounds.history()[-1].parent == 0


def test_paused_and_resumed_ends_as_the_straight_run(
    session: Session, path: Path, tmp_path: Path
) -> None:
    other = Session(device="cpu")
    other.rounds.own_process = False
    other.open(
        shutil.copytree(path, tmp_path / "other.jrss", ignore=shutil.ignore_patterns("*.lock"))
    )
    run(other, tiny_config(seed=3), 1)
    expected = [weights(entry.folder) for entry in other.workspace.open_project.rounds()]
    other.close()

    stop_at(session, 3, session.rounds.pause)
    run(session, tiny_config(seed=3), 1)
    assert session.workspace.training.state is JobState.CANCELLED
    assert outcomes(session) == [(0, "cancelled", False)]
    interrupted = session.rounds.interrupted
    assert interrupted is not None
    assert session.rounds.resumable
    with pytest.raises(InterruptedSeriesError, match=r"round 0 was interrupted .* resume it"):
        session.rounds.start(tiny_config(), 1)
    session.rounds.resume()
    assert session.workspace.training.wait(WAIT_S)
    assert outcomes(session) == [(0, "finished", False), (1, "finished", True)]
    for entry, tensors in zip(session.workspace.open_project.rounds(), expected, strict=True):
        assert_same_tensors(weights(entry.folder), tensors)
    assert not session.rounds.resumable


def test_cancelled_is_left_for_good(session: Session, path: Path) -> None:
    run(session, tiny_config(), 0)
    stop_at(session, 1, session.rounds.cancel)
    run(session, tiny_config(), 2)
    assert outcomes(session) == [(0, "finished", True), (1, "cancelled", False)]
    assert session.rounds.interrupted is None
    assert not session.rounds.resumable
    with pytest.raises(InterruptedSeriesError, match="no interrupted round to resume"):
        session.rounds.resume()
    session.close()
    session.open(path)
    assert not session.rounds.resumable
    run(session, tiny_config(), 1)
    assert outcomes(session)[-1] == (2, "finished", True)


def test_a_paused_series_can_be_left_and_started_anew(session: Session) -> None:
    stop_at(session, 1, session.rounds.pause)
    run(session, tiny_config(), 0)
    assert session.rounds.resumable
    session.rounds.cancel()
    assert not session.rounds.resumable
    stop_at(session, 1, session.rounds.pause)
    run(session, tiny_config(), 0)
    run(session, tiny_config(), 0, anew=True)
    assert outcomes(session)[-1] == (2, "finished", True)


def test_a_series_cancelled_between_two_rounds_is_left_for_good(session: Session) -> None:
    session.rounds.own_process = True
    session.workspace.training.event.connect(
        lambda event: session.rounds.cancel() if isinstance(event, RoundFinished) else None
    )
    run(session, tiny_config(), 2)
    assert session.workspace.training.state is JobState.CANCELLED
    assert outcomes(session) == [(0, "finished", True)]
    assert not session.rounds.resumable
    assert (
        session.workspace.open_project.history()[-1].detail == "the rounds still to come were left"
    )
    assert session.rounds.history()[0].segmentation_dice is not None
    with pytest.raises(InterruptedSeriesError, match="no interrupted round to resume"):
        session.rounds.resume()


def test_a_round_that_fails_says_why_and_leaves_the_teacher(session: Session) -> None:
    run(session, tiny_config(), 0)
    run(session, tiny_config(screening={"tau": 1.0}), 1)
    assert session.workspace.training.state is JobState.FAILED
    assert "passes tau = 1.0" in str(session.workspace.training.error)
    assert outcomes(session) == [(0, "finished", True), (1, "failed", False)]
    assert "passes tau = 1.0" in session.rounds.history()[1].problem
    run(
        session,
        tiny_config(segmentation_network={"name": f"{__name__}:cannot_allocate"}),
        0,
        anew=True,
        pretrain=True,
    )
    assert isinstance(session.workspace.training.error, OutOfMemoryError)
    assert "lower the batch sizes (now 2 and 2)" in str(session.workspace.training.error)
    assert outcomes(session)[-1] == (2, "failed", False)
    assert session.workspace.open_project.teacher == session.workspace.open_project.round(0)


def test_a_correction_during_a_round_enters_the_next_one(session: Session) -> None:
    project = session.workspace.open_project
    case = project.snapshot().unlabelled[0]
    label = project.label(project.snapshot().labelled[0])
    stop_at(session, 2, lambda: project.add_label_version(case, label, "a reader"))
    # The label comes more than once: every stage has a step 2.
    run(session, tiny_config(), 1)
    first, second = session.rounds.history()
    assert case not in first.label_versions
    assert case in second.label_versions
    assert (first.labelled, second.labelled) == (2, 3)


def test_what_cannot_be_started_is_refused_at_once(session: Session, path: Path) -> None:
    with pytest.raises(InterruptedSeriesError, match="no interrupted round"):
        session.rounds.resume()
    with pytest.raises(ValueError, match="rounds must be at least 0"):
        session.rounds.start(tiny_config(), -1)
    session.close()
    session.open(path, read_only=True)
    for command in (
        lambda: session.rounds.start(tiny_config(), 1),
        session.rounds.cancel,
        lambda: session.rounds.promote(0),
    ):
        with pytest.raises(ProjectError, match="read-only"):
            command()
    session.close()
    with pytest.raises(ProjectError, match="no project is open"):
        session.rounds.start(tiny_config(), 1)
    assert session.rounds.history() == []
    assert not session.rounds.resumable


def test_no_other_project_while_a_round_runs(session: Session, path: Path, tmp_path: Path) -> None:
    other = shutil.copytree(path, tmp_path / "other.jrss", ignore=shutil.ignore_patterns("*.lock"))
    session.rounds.start(tiny_config(**LONG), 0)
    with pytest.raises(BusyError, match="pause it before another project"):
        session.open(other)
    with Project.open(other):
        pass  # it was not left locked
    with pytest.raises(BusyError, match="pause it before another project"):
        session.adopt(Project.open(other))
    with Project.open(other):
        pass
    with pytest.raises(BusyError, match="still running"):
        session.rounds.start(tiny_config(), 0, anew=True)
    with pytest.raises(BusyError, match="its progress says"):
        session.rounds.estimate(tiny_config(), 0)
    started = time.monotonic()
    assert session.close()
    assert time.monotonic() - started < 2
    with Project.open(path) as project:
        assert project.unfinished_round() is not None


def test_what_another_training_takes_is_measured_anew(session: Session) -> None:
    deformed = tiny_config(segmentation={"registration_augmentation": 0.7})
    found: list[object] = []
    session.rounds.estimator.event.connect(found.append)
    for config in (tiny_config(), deformed):
        session.rounds.estimate(config, 0)
        assert session.rounds.estimator.wait(120)
        assert session.rounds.estimator.state is JobState.FINISHED, session.rounds.estimator.error
    assert len(found) == 2


def test_a_slot_that_raises_leaves_the_round_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(str(args.exc_value)))

    def bad(event: object) -> None:
        if isinstance(event, RoundFinished):
            raise RuntimeError("a fault of the window")

    session.workspace.training.event.connect(bad)
    run(session, tiny_config(), 0)
    assert outcomes(session) == [(0, "finished", True)]
    assert reported == ["a fault of the window"]


def test_in_a_process_of_its_own_paused_by_closing_and_resumed(
    session: Session, path: Path
) -> None:
    assert Session().rounds.own_process
    session.rounds.own_process = True
    steps = threading.Event()
    session.workspace.training.event.connect(
        lambda event: steps.set() if event.kind == "step_end" else None
    )
    session.rounds.start(tiny_config(**LONG), 0)
    assert steps.wait(WAIT_S)
    started = time.monotonic()
    assert session.close()
    assert time.monotonic() - started < 2
    session.open(path)
    interrupted = session.rounds.interrupted
    assert interrupted is not None
    assert interrupted.outcome is RoundOutcome.CANCELLED
