"""What the tests have worker processes do; by itself, so that these import little else."""

import json
import os
import signal
import time
from pathlib import Path

import SimpleITK as sitk  # noqa: N813

from napari_jrss.errors import ProjectError
from napari_jrss.processes import Parent


def threads_and_parent(_: object) -> tuple[int, int]:
    """Threads that SimpleITK may use, and the process that started this one."""
    return sitk.ProcessObject.GetGlobalDefaultNumberOfThreads(), os.getppid()


def waits(path: str) -> None:
    """Tell who this process is, then be busy for longer than any test lasts."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def dies_at_3(item: int) -> int:
    """Ten times the item; 3 kills the process and 5 is a mistake."""
    if item == 3:
        os.kill(os.getpid(), 9)
    if item == 5:
        raise ValueError("five")
    time.sleep(0.02)
    return item * 10


def echoes(parent: Parent) -> None:
    """Send one message back, then say when it is asked to stop."""
    print("not a message", flush=True)
    message = json.loads(parent.receive())
    parent.send(json.dumps({**message, "environment": os.environ["ECHO"]}))
    parent.stop.wait()
    parent.send('"stopped"')


def fails(parent: Parent) -> None:
    """A mistake of the person."""
    raise ProjectError("the file is damaged")


def divides(parent: Parent) -> None:
    """A fault of the program."""
    print(1 / 0)


def hangs(parent: Parent) -> None:
    """Neither end by itself, nor when asked to."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    parent.send('"hanging"')
    os.kill(os.getpid(), signal.SIGSTOP)
