"""kill -9 at any moment, then resumed: the same weights, predictions and metrics, bit for bit.

Each run is a process of its own. It kills itself for real, at a step, at an event, or right
before one of its own changes to the folder (seen through Python's audit events).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from napari_jrss._tests.training.phantoms import (
    Never,
    cpu,
    fine_snapshot,
    snapshot,
    tiny_config,
    write_parent,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows"),
]


@dataclass(frozen=True)
class AtEvent:
    """Die when this event comes for the n-th time (from 1) in this process."""

    kind: str
    stage: str
    count: int = 1


@dataclass(frozen=True)
class BeforeChange:
    """Die before the folder is changed so: ``os.rename`` onto or ``os.remove`` of that name."""

    audit: str
    name: str


Moment = AtEvent | BeforeChange

PRETRAINING: tuple[Moment, ...] = (
    BeforeChange("os.rename", "config.json"),
    AtEvent("step_end", "mono_segmentation", 3),
    BeforeChange("os.rename", "mono_segmentation.state.safetensors"),
    BeforeChange("os.rename", "teacher.safetensors"),
    BeforeChange("os.remove", "mono_segmentation.state.safetensors"),
    AtEvent("stage_finished", "mono_segmentation"),
    AtEvent("step_end", "mono_registration", 2),
    BeforeChange("os.remove", "mono_registration.state.safetensors"),
    BeforeChange("os.rename", "u.zarr"),
    AtEvent("case_screened", "prediction", 2),
)
JOINT: tuple[Moment, ...] = (
    AtEvent("case_screened", "screening", 2),
    AtEvent("step_end", "registration_1", 1),
    BeforeChange("os.rename", "registration.safetensors"),
    AtEvent("epoch_end", "student_1", 1),
    BeforeChange("os.rename", "student.safetensors"),
    BeforeChange("os.rename", "teacher.safetensors"),
    BeforeChange("os.remove", "student_1.state.safetensors"),
    BeforeChange("os.rename", "v.zarr"),
)

OWN_VOXELS: tuple[Moment, ...] = (
    AtEvent("case_judged", "labelled_scans", 2),
    AtEvent("step_end", "own_voxels_0", 1),
    AtEvent("epoch_end", "own_voxels_0", 2),
    BeforeChange("os.rename", "own_voxels_0.state.safetensors"),
    AtEvent("step_end", "own_voxels_0", 2),
    BeforeChange("os.rename", "fine.safetensors"),
    BeforeChange("os.remove", "own_voxels_0.state.safetensors"),
    BeforeChange("os.rename", "v.zarr"),
)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _run(folder: Path, parent: Path | None, moment: Moment | None, finer: bool = False) -> None:
    """In a process of its own: run or resume, and die at the moment if it comes.

    `finer`: with scans that are finer than the training grid.
    """
    import torch

    from napari_jrss.training.round import RoundTask, run_round

    torch.set_num_threads(1)
    if isinstance(moment, BeforeChange):

        def watch(audit: str, arguments: tuple[object, ...]) -> None:
            if audit == moment.audit:
                names = {Path(os.fsdecode(a)).name for a in arguments if isinstance(a, str | Path)}
                if moment.name in names:
                    _die()

        sys.addaudithook(watch)
    seen = 0
    cohort = fine_snapshot() if finer else snapshot()
    config = tiny_config(fine={"steps": 6, "crop": 16})
    this = RoundTask(1 if parent else 0, cohort, config, folder, parent)
    for event in run_round(this, cpu(), Never()):
        if isinstance(moment, AtEvent) and event.kind == moment.kind:
            seen += getattr(event, "stage", "") == moment.stage
            if seen == moment.count:
                _die()


@pytest.fixture(scope="module")
def start() -> Callable[..., multiprocessing.process.BaseProcess]:
    """Start a run; the processes are forked from one that has imported PyTorch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["napari_jrss.training.round", __name__])

    def start(*arguments: object) -> multiprocessing.process.BaseProcess:
        process = context.Process(target=_run, args=arguments)
        process.start()
        return process

    return start


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "moments", [PRETRAINING, JOINT, OWN_VOXELS], ids=["pretraining", "joint", "own voxels"]
)
def test_killed_at_one_moment_after_the_other_and_resumed(
    moments: tuple[Moment, ...], start, tmp_path: Path
) -> None:
    parent = write_parent(tmp_path / "parent") if moments is JOINT else None
    finer = moments is OWN_VOXELS
    straight = start(tmp_path / "straight", parent, None, finer)
    straight.join()
    assert straight.exitcode == 0
    for moment in moments:
        process = start(tmp_path / "killed", parent, moment, finer)
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"{moment} did not come"
    last = start(tmp_path / "killed", parent, None, finer)
    last.join()
    assert last.exitcode == 0
    # Safetensors, metrics.jsonl, predictions and configuration, and nothing else.
    assert _files(tmp_path / "killed") == _files(tmp_path / "straight")


def test_killed_from_outside_and_resumed(start, tmp_path: Path) -> None:
    straight = start(tmp_path / "straight", None, None)
    kills = 0
    for delay in (0.2, 0.4):
        process = start(tmp_path / "killed", None, None)
        while process.is_alive() and not (tmp_path / "killed" / "config.json").exists():
            time.sleep(0.01)
        process.join(delay)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills > 0
    last = start(tmp_path / "killed", None, None)
    for process in (straight, last):
        process.join()
        assert process.exitcode == 0
    assert _files(tmp_path / "killed") == _files(tmp_path / "straight")
