"""A round in a process of its own, held against the same round in this process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import (
    Never,
    assert_same_tensors,
    kinds,
    tiny_config,
    weights,
)
from napari_jrss.app.rounds.process import LOG, NICENESS, InOwnProcess
from napari_jrss.config import NetworkConfig
from napari_jrss.networks.unet import VoxelMorphUNet
from napari_jrss.processes import ProcessError
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome
from napari_jrss.training.events import Cancelled, Event, RoundFinished, StepEnd
from napari_jrss.training.trainable import RoundError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the signals are POSIX's"),
]

LONG = {"segmentation": {"epochs": 1, "minimum_steps": 100_000}}


def noisy_network(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    """A network that prints, as libraries do."""
    print("not an event")
    return VoxelMorphUNet(channels, classes, config.leaky_slope, dropout)


def huge_network(config: NetworkConfig, channels: int, classes: int, dropout: float) -> nn.Module:
    """What PyTorch says when the GPU is full."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


@pytest.fixture
def place(project: Project) -> Iterator[InOwnProcess]:
    made = InOwnProcess(project.path, "cpu", threads=1)
    yield made
    assert made.process is None
    assert not [p for p in psutil.Process().children() if "_run_child" in str(p.cmdline())]


def run(place: InOwnProcess, project: Project, rounds: int = 0, **changes: object) -> list[Event]:
    return list(train(project, tiny_config(**changes), rounds, Never(), executor=place))


def gone(pid: int, within: float) -> bool:
    until = time.monotonic() + within
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_the_same_events_and_the_same_weights_as_in_this_process(
    place: InOwnProcess, project: Project, trainable_once: Path, tmp_path: Path
) -> None:
    network = {"registration_network": {"name": f"{__name__}:noisy_network"}}
    with Project.open(shutil.copytree(trainable_once, tmp_path / "here.jrss")) as other:
        here = list(train(other, tiny_config(**network), 1, Never(), device="cpu"))
        expected = [weights(entry.folder) for entry in other.rounds()]
    nice: set[int] = set()
    there = []
    for event in train(project, tiny_config(**network), 1, Never(), executor=place):
        there.append(event)
        if isinstance(event, StepEnd):
            nice.add(psutil.Process(place.process).nice())
    assert kinds(there) == kinds(here)
    assert [e.losses for e in there if isinstance(e, StepEnd)] == [
        e.losses for e in here if isinstance(e, StepEnd)
    ]
    for entry, tensors in zip(project.rounds(), expected, strict=True):
        assert entry.outcome is RoundOutcome.FINISHED
        assert_same_tensors(weights(entry.folder), tensors)
        assert entry.metrics["device"] == "cpu"
        assert all(seconds > 0 for seconds in entry.metrics["step_seconds"].values())
    assert project.teacher is not None
    assert project.teacher.number == 1
    assert nice == {min(19, psutil.Process().nice() + NICENESS)}
    assert "not an event" in (project.path / LOG).read_text()


def test_killed_then_stopped_then_resumed_to_the_same_weights(
    place: InOwnProcess, project: Project, trainable_once: Path, tmp_path: Path
) -> None:
    with Project.open(shutil.copytree(trainable_once, tmp_path / "here.jrss")) as other:
        list(train(other, tiny_config(), 0, Never(), device="cpu"))
        expected = weights(other.round(0).folder)

    def killed_at_step_3() -> None:
        for event in train(project, tiny_config(), 0, Never(), executor=place):
            if isinstance(event, StepEnd) and event.step == 3:
                os.kill(place.process, signal.SIGKILL)

    with pytest.raises(ProcessError, match=r"was killed \(SIGKILL, perhaps because memory"):
        killed_at_step_3()
    [entry] = project.rounds()
    assert entry.outcome is RoundOutcome.FAILED
    assert "was killed" in entry.metrics["error"]
    assert project.teacher is None

    cancel = threading.Event()
    events = []
    for event in train(project, tiny_config(), 0, cancel, resume=True, executor=place):
        events.append(event)
        if isinstance(event, StepEnd) and event.stage == "mono_registration":
            cancel.set()
    assert isinstance(events[-1], Cancelled)
    # The process had begun its next step at most by the time it was asked.
    assert len([e for e in events if getattr(e, "stage", "") == "mono_registration"]) < 8
    assert project.round(0).outcome is RoundOutcome.CANCELLED

    last = list(train(project, tiny_config(), 0, Never(), resume=True, executor=place))
    assert isinstance(last[-1], RoundFinished)
    assert_same_tensors(weights(project.round(0).folder), expected)


def test_a_process_that_does_not_stop_is_ended(project: Project) -> None:
    at_once, cancel = threading.Event(), threading.Event()
    place = InOwnProcess(project.path, "cpu", threads=1, at_once=at_once)
    events = []
    asked = 0.0
    for event in train(project, tiny_config(**LONG), 0, cancel, executor=place):
        events.append(event)
        if isinstance(event, StepEnd) and not asked:
            pid, asked = place.process, time.monotonic()
            os.kill(pid, signal.SIGSTOP)
            at_once.set()
            cancel.set()
    assert time.monotonic() - asked < 5  # its patience would have been 60
    assert events[-1] == Cancelled(stage="mono_segmentation", step=0)
    assert gone(pid, 0)
    assert project.round(0).outcome is RoundOutcome.CANCELLED


PARENT = """
import sys, threading
from pathlib import Path
from napari_jrss.config import (TrainingConfig)
from napari_jrss.project.project import (Project)
from napari_jrss._tests.app.series import (train)
from napari_jrss.app.rounds.process import (InOwnProcess)

path, config = Path(sys.argv[1]), TrainingConfig.model_validate_json(sys.argv[2])
place = InOwnProcess(path, "cpu", threads=1)
with Project.open(path) as project:
    for event in train(project, config, 0, threading.Event(), executor=place):
        print(place.process, event.kind, "torch" in sys.modules, flush=True)
"""


def test_it_ends_when_its_parent_is_killed_which_needs_no_pytorch(project: Project) -> None:
    project.close()
    config = tiny_config(**LONG).model_dump_json()
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(project.path), config],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        process, kind, pytorch = parent.stdout.readline().split()
        while kind != "step_end":
            process, kind, pytorch = parent.stdout.readline().split()
        pid = int(process)
        assert pytorch == "False"
        assert psutil.pid_exists(pid)
        parent.kill()
    assert gone(pid, 2.0)
    # The dead program left no lock, and a round that counts as one to resume.
    with Project.open(project.path) as opened:
        assert opened.unfinished_round().outcome is RoundOutcome.RUNNING


def test_a_device_that_is_not_there_starts_no_round(project: Project) -> None:
    place = InOwnProcess(project.path, "abacus")
    with pytest.raises(ProcessError, match="unknown device 'abacus'"):
        run(place, project)
    assert project.rounds() == []


def test_a_full_gpu_is_told_with_what_to_lower(place: InOwnProcess, project: Project) -> None:
    network = {"segmentation_network": {"name": f"{__name__}:huge_network"}}
    with pytest.raises(ProcessError, match=r"memory .* is not enough .* lower the batch"):
        run(place, project, **network)
    assert project.round(0).outcome is RoundOutcome.FAILED


def test_a_stop_before_the_process_is_ready_starts_no_round(
    place: InOwnProcess, project: Project
) -> None:
    cancel = threading.Event()
    cancel.set()
    assert list(train(project, tiny_config(), 0, cancel, executor=place)) == []
    assert project.rounds() == []


def test_two_processes_share_each_batch_of_a_round(project: Project) -> None:
    place = InOwnProcess(project.path, "cpu", devices=2, threads=2)
    events = run(place, project, rounds=1)
    assert [event.number for event in events if isinstance(event, RoundFinished)] == [0, 1]
    assert project.teacher is not None
    assert project.teacher.metrics["device"] == "2 x cpu"
    # as many steps as one process takes
    assert project.teacher.files.metrics.exists()
    assert sum(isinstance(event, StepEnd) for event in events) == STEPS


STEPS = 5 + 3 + 2 + 2 * 2
"""Of both trainings of the pre-training, and of the registration and student of a round."""


def test_the_death_of_one_of_two_processes_is_told_and_the_round_goes_on(project: Project) -> None:
    place = InOwnProcess(project.path, "cpu", devices=2, threads=2)

    killed = 0.0

    def one_killed() -> None:
        nonlocal killed
        for event in train(project, tiny_config(**LONG), 0, Never(), executor=place):
            if isinstance(event, StepEnd) and event.step == 3:
                [other] = psutil.Process(place.process).children()
                killed = time.monotonic()
                other.kill()

    with pytest.raises(ProcessError, match=r"training 2 of 2 process was killed \(SIGKILL"):
        one_killed()
    assert time.monotonic() - killed < 30
    assert place.process is None
    cancel = threading.Event()
    for event in train(project, tiny_config(), 0, cancel, resume=True, executor=place):
        if isinstance(event, StepEnd):
            cancel.set()
    assert project.round(0).outcome is RoundOutcome.CANCELLED
    assert not [p for p in psutil.Process().children() if "_run_child" in str(p.cmdline())]


def test_more_processes_than_images_in_a_step_start_no_round(project: Project) -> None:
    place = InOwnProcess(project.path, "cpu", devices=3)
    with pytest.raises(RoundError, match="3 devices can't share a step of 2 images"):
        run(place, project)
    assert project.rounds() == []
