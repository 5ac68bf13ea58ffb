"""What the tests have worker processes do; by itself, so that these import little else."""

import os
import time
from pathlib import Path

import SimpleITK as sitk  # noqa: N813


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
