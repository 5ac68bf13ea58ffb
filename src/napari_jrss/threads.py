"""Threads of this process: one function on many items, and work that lets others go first.

NumPy and the codecs let each other run.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_BEHIND = 10  # niceness of work behind a window
_MOST = 8  # more would wait for the memory


def available_cores() -> int:
    """Number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_threads() -> int:
    """Number of threads that compute at once: one for each core, or ``OMP_NUM_THREADS``.

    Worker processes have that variable, and PyTorch keeps to it.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(available_cores(), int(limit) if limit.isdigit() else sys.maxsize))


def in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What a function returns for each item, in their order.

    There are as many threads as :func:`usable_threads`, eight at most. The first error is raised
    once no thread works any more.
    """
    threads = min(usable_threads(), _MOST)
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads, "part") as pool:
        return list(pool.map(function, items))


def step_back() -> None:
    """Let what this thread does, and threads that it starts, wait for others.

    For work behind a window; the thread should end with that work.
    """
    if sys.platform == "linux":  # elsewhere this would be the whole process
        least = max(_BEHIND, os.getpriority(os.PRIO_PROCESS, 0))
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), least)
