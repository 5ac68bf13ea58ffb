"""Child processes: what they send, how they end, and what is told of their end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from napari_jrss._tests.jobs import (
    dies_at_3,
    divides,
    echoes,
    fails,
    hangs,
    threads_and_parent,
)
from napari_jrss.pool import in_processes
from napari_jrss.processes import Child, ProcessError, WorkerDiedError

pytestmark = pytest.mark.slow


def answer(child: Child) -> object:
    """The child's next message."""
    while (line := child.receive()) is None:
        pass
    return json.loads(line)


def test_messages_go_both_ways_and_what_is_printed_goes_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "echo.log"
    with Child("echo", echoes, log=log, environment={"ECHO": "Ähm"}) as child:
        child.send('{"a": [1.5, "ä"]}')
        assert answer(child) == {"a": [1.5, "ä"], "environment": "Ähm"}
        child.stop()
        assert answer(child) == "stopped"
    assert log.read_text() == "not a message\n"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (fails, "the file is damaged"),
        (divides, r"ZeroDivisionError: division by zero \(see child.log\)"),
    ],
)
def test_an_error_of_the_child_is_one_line(function, message: str, tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    with Child("test", function, log=log) as child, pytest.raises(ProcessError, match=message):
        answer(child)
    assert ("Traceback" in log.read_text()) == ("see" in message)


@pytest.mark.skipif(os.name == "nt", reason="the signals are POSIX's")
def test_a_child_that_hangs_is_killed_and_one_that_was_killed_is_told_of() -> None:
    with Child("test", hangs) as child:
        assert answer(child) == "hanging"
        pid = child.pid
    assert not psutil.pid_exists(pid)
    with Child("test", hangs) as child:
        assert answer(child) == "hanging"
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ProcessError, match=r"the test process was killed \(SIGKILL, perhaps"):
            answer(child)


def test_a_dying_worker_takes_one_item_with_it():
    results = dict(in_processes(dies_at_3, range(8), 2))
    assert isinstance(results.pop(3), WorkerDiedError)
    assert isinstance(results.pop(5), ValueError)
    assert results == {i: 10 * i for i in (0, 1, 2, 4, 6, 7)}


def test_workers_are_spawned_have_one_thread_and_end_with_the_loop():
    for _, (threads, parent) in in_processes(threads_and_parent, range(3), 2):
        assert (threads, parent) == (1, os.getpid())
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    running = in_processes(dies_at_3, [0] * 40, 1)
    next(running)
    running.close()
    time.sleep(0.1)
    assert {p.pid for p in psutil.Process().children(recursive=True)} <= before


BUSY = """
import sys
from napari_jrss._tests.jobs import (waits)
from napari_jrss.pool import (in_processes)

if __name__ == "__main__":
    list(in_processes(waits, sys.argv[1:], 2))
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL on Windows")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "program.py").write_text(BUSY)
    told = [tmp_path / "first", tmp_path / "second"]
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py", *told])
    alive = []
    try:
        while not all(path.exists() and path.read_text() for path in told):
            assert parent.poll() is None
            time.sleep(0.05)
        workers = [psutil.Process(int(path.read_text())) for path in told]
        parent.kill()
        parent.wait()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
    finally:
        parent.kill()
        for worker in alive:
            worker.kill()


SCRIPT = """
import sys
from napari_jrss._tests.jobs import (threads_and_parent)
from napari_jrss.pool import (in_processes)

print("the script runs")
for item, found in in_processes(threads_and_parent, range(3), 2):
    print(item, found)
"""


def test_a_script_needs_no_guard_since_no_worker_runs_it(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, tmp_path / "program.py"], capture_output=True, text=True, check=True
    )
    told = ended.stdout.splitlines()
    assert told[0] == "the script runs"
    assert len(told) == 4
    assert {line.split()[0] for line in told[1:]} == {"0", "1", "2"}


def test_no_items_start_nothing():
    assert list(in_processes(dies_at_3, [])) == []
