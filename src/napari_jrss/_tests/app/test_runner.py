"""The endings of a job, with a fake engine; the real one is in test_rounds.py."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from napari_jrss.app.runner import BusyError, JobRunner, JobState


@pytest.fixture
def runner() -> Iterator[JobRunner]:
    """A runner whose thread is gone when the test is."""
    before = set(threading.enumerate())
    made = JobRunner("test job")
    yield made
    made.cancel()
    assert made.wait(5)
    assert set(threading.enumerate()) <= before


def counting(until: int):
    def work(cancel: threading.Event) -> Iterator[int]:
        yield from range(until)

    return work


def endless(cancel: threading.Event) -> Iterator[int]:
    number = 0
    while not cancel.is_set():
        yield number
        number += 1
        time.sleep(0.001)


def story(runner: JobRunner) -> tuple[list[JobState], list[object]]:
    states: list[JobState] = []
    events: list[object] = []
    runner.state_changed.connect(states.append)
    runner.event.connect(events.append)
    return states, events


def test_a_job_finishes_with_its_events_in_order(runner: JobRunner) -> None:
    states, events = story(runner)
    runner.start(counting(3))
    assert runner.wait(5)
    assert events == [0, 1, 2]
    assert states == [JobState.RUNNING, JobState.FINISHED]
    assert runner.error is None


def test_a_job_is_cancelled_and_another_can_start(runner: JobRunner) -> None:
    states, _ = story(runner)
    runner.start(endless)
    runner.cancel()
    runner.cancel()
    assert runner.wait(5)
    assert states == [JobState.RUNNING, JobState.CANCELLING, JobState.CANCELLED]
    runner.start(counting(1))
    assert runner.wait(5)
    assert runner.state is JobState.FINISHED


def test_a_job_that_fails_says_why(runner: JobRunner) -> None:
    def work(cancel: threading.Event) -> Iterator[int]:
        yield 1
        raise ValueError("no structure passes tau")

    states, events = story(runner)
    runner.start(work)
    assert runner.wait(5)
    assert states == [JobState.RUNNING, JobState.FAILED]
    assert events == [1]
    assert str(runner.error) == "no structure passes tau"
    runner.start(counting(1))
    assert runner.wait(5)
    assert runner.error is None


def test_one_job_at_a_time(runner: JobRunner) -> None:
    runner.start(endless)
    with pytest.raises(BusyError, match="test job is still running"):
        runner.start(endless)
    assert runner.state is JobState.RUNNING


def test_a_slot_that_raises_is_reported_and_the_job_goes_on(
    runner: JobRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(str(args.exc_value)))

    def bad(value: object) -> None:
        raise RuntimeError(f"a fault of the window at {value}")

    runner.event.connect(bad)
    runner.state_changed.connect(bad)
    runner.start(counting(2))
    assert runner.wait(5)
    assert runner.state is JobState.FINISHED
    assert runner.error is None
    assert reported == [
        f"a fault of the window at {moment}" for moment in ("running", 0, 1, "finished")
    ]


def test_a_slot_of_the_job_does_not_wait_for_itself(runner: JobRunner) -> None:
    answers: list[bool] = []
    runner.event.connect(lambda _: answers.append(runner.wait(60)))
    runner.start(counting(1))
    assert runner.wait(5)
    assert answers == [False]


def test_waiting_has_an_end_while_the_job_has_none(runner: JobRunner) -> None:
    runner.start(endless)
    assert not runner.wait(0.05)
    assert runner.state is JobState.RUNNING


def test_cancelling_nothing_changes_nothing(runner: JobRunner) -> None:
    states, _ = story(runner)
    runner.cancel()
    assert runner.wait(0)
    assert (states, runner.state) == ([], JobState.IDLE)
