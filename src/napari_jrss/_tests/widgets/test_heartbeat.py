"""The window's heart goes on beating while a round trains and a person works.

How fast it beats is for benchmarks/responsiveness.py to say; a busy machine decides that. Here a
beat may be late by what two busy cores and OpenGL in software cost, not by what a training does.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytestqt.qtbot import QtBot
from qtpy.QtCore import QTimer

from napari_jrss._tests.app.conftest import trainable_once as trainable_once
from napari_jrss._tests.training.phantoms import tiny_config
from napari_jrss._tests.widgets.person import Person
from napari_jrss.app.review.review import Leave
from napari_jrss.training.events import StepEnd
from napari_jrss.widgets.main_widget import MainWidget

BEAT_MS = 10
LATE_S = 5.0
"""The training below takes minutes: in the window's thread it would hold every beat as long."""


@contextmanager
def heartbeat() -> Iterator[list[float]]:
    """A timer's gaps in seconds, complete at the end of the block."""
    gaps: list[float] = []
    last = [time.perf_counter()]

    def beat() -> None:
        now = time.perf_counter()
        gaps.append(now - last[0])
        last[0] = now

    timer = QTimer()
    timer.setInterval(BEAT_MS)
    timer.timeout.connect(beat)
    timer.start()
    try:
        yield gaps
    finally:
        timer.stop()
        beat()


def test_it_beats_while_a_round_trains_and_a_person_paints_and_switches(
    dock: MainWidget, qtbot: QtBot, trainable_once: Path, tmp_path: Path
) -> None:
    session = dock.session
    session.workspace.author, session.workspace.device = "anna", "cpu"
    session.open(shutil.copytree(trainable_once, tmp_path / "brain.jrss"))
    person = Person(dock, qtbot)
    steps: list[StepEnd] = []
    session.workspace.training.event.connect(
        lambda e: steps.append(e) if isinstance(e, StepEnd) else None
    )
    with heartbeat() as gaps:
        session.rounds.start(
            tiny_config(segmentation={"epochs": 1, "minimum_steps": 100_000}), rounds=0
        )
        qtbot.waitUntil(lambda: len(steps) > 3, timeout=120_000)
        before = len(steps)
        for number in (0, 1, 0):
            person.open(number)
            person.stroke(1)
            for z in range(4, 12):
                person.viewer.dims.set_point(0, z)
                qtbot.wait(20)
            session.review.close_case(Leave.KEEP)
            person.settle()
        assert len(steps) > before  # the round went on meanwhile
    assert len(gaps) > 50
    assert max(gaps) < LATE_S
    assert session.close(timeout=10)


def test_a_window_that_is_held_up_is_noticed(dock: MainWidget, qtbot: QtBot) -> None:
    with heartbeat() as gaps:
        qtbot.wait(50)
        QTimer.singleShot(0, lambda: time.sleep(LATE_S))
        qtbot.wait(50)
    assert max(gaps) >= LATE_S


def test_a_full_garbage_collection_passes_over_what_was_imported(dock: MainWidget) -> None:
    assert dock.session.workspace.project is None
    assert gc.get_freeze_count() > 100_000
