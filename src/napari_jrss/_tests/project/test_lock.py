"""One writer per project, in real processes; a dead one's lock is free at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from napari_jrss.errors import ProjectError
from napari_jrss.project.lock import WriterLock, holder

HOLD = textwrap.dedent(
    """
    import sys, os, time
    from pathlib import Path
    from napari_jrss.project.lock import (WriterLock)
    lock = WriterLock(Path(sys.argv[1]))
    if "fork" in sys.argv and os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
    """
)


def hold(path: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process


def wait_until_held(path: Path) -> None:
    for _ in range(1000):
        if holder(path):
            return
        time.sleep(0.01)
    raise AssertionError("nobody took the lock")


@pytest.mark.slow
def test_a_second_program_is_told_who_holds_it_and_since_when(tmp_path: Path) -> None:
    path = tmp_path / "project.lock"
    process = hold(path)
    try:
        wait_until_held(path)
        with pytest.raises(ProjectError, match=rf"process {process.pid} on .* since 20\d\d-"):
            WriterLock(path)
    finally:
        process.kill()
        process.wait()


def test_who_writes_is_told_to_those_who_only_look(tmp_path: Path) -> None:
    path = tmp_path / "project.lock"
    assert holder(path) == ""
    lock = WriterLock(path)
    assert holder(path).startswith("open for writing in this program already, since ")
    lock.release()
    assert holder(path) == ""


@pytest.mark.slow
def test_a_killed_programs_lock_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "project.lock"
    process = hold(path)
    wait_until_held(path)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert f"process {process.pid} on" in holder(path)  # it never said goodbye
    lock = WriterLock(path)
    assert "in this program already" in holder(path)
    lock.release()
    assert holder(path) == ""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")
def test_a_forked_worker_does_not_outlive_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "project.lock"
    process = hold(path, "fork")
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # the worker is still there
        WriterLock(path).release()
    finally:
        os.kill(child, signal.SIGKILL)


def test_one_program_cannot_hold_it_twice_and_release_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "project.lock"
    lock = WriterLock(path)
    with pytest.raises(ProjectError, match="open for writing in this program already"):
        WriterLock(path)
    lock.release()
    lock.release()
    WriterLock(path).release()


def test_a_lock_whose_text_is_nonsense_still_locks(tmp_path: Path) -> None:
    path = tmp_path / "project.lock"
    lock = WriterLock(path)
    path.with_name("project.writer").write_text('{"process": []}')
    with pytest.raises(ProjectError, match="open for writing in another program"):
        WriterLock(path)
    lock.release()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "project.lock").symlink_to(outside)
    with pytest.raises(ProjectError, match="can't be written"):
        WriterLock(tmp_path / "project.lock")
    assert outside.read_text() == "precious"
