"""The same function on many things, in spawned processes of one thread each."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.synchronize import Event
from threading import Thread
from typing import TypeVar

import SimpleITK as sitk  # noqa: N813
import zarr

from napari_jrss.errors import JRSSError

Item = TypeVar("Item")
Result = TypeVar("Result")


class WorkersError(JRSSError):
    """No worker process gets as far as its first item."""


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Generator[tuple[Item, Result | Exception]]:
    """Call `function` on each item in worker processes; yield as each ends.

    Parameters
    ----------
    function
        Importable by name.
    items
        Whatever it takes.
    workers
        Processes; none: as many as this process may use cores.

    Yields
    ------
    tuple
        The item, and what the function returned or raised. An item whose process died is tried
        once more by itself, so that it can't take others down; then it yields the
        BrokenProcessPool.

    Raises
    ------
    WorkersError
        If no process gets as far as its first item.

    Notes
    -----
    At most two items per process are under way: memory doesn't grow with their number.
    """
    workers = max(1, min(workers or _cores(), len(items)))
    waiting = deque(items)
    suspects: deque[Item] = deque()
    while waiting:
        yield from _until_broken(function, waiting, suspects, workers, 2 * workers)
    while suspects:
        dead: deque[Item] = deque()
        yield from _until_broken(function, suspects, dead, 1, 1)
        for item in dead:
            yield item, BrokenProcessPool("the worker process died")


def _until_broken(
    function: Callable[[Item], Result],
    waiting: deque[Item],
    lost: deque[Item],
    workers: int,
    at_once: int,
) -> Generator[tuple[Item, Result | Exception]]:
    """Work through `waiting` with one pool; if it breaks, what was under way is lost."""
    # Never forked: a fork copies locks that threads of this process may hold.
    context = get_context("spawn")
    started = context.Event()
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(started,))
    under_way: dict[Future[Result], Item] = {}
    broken = False
    try:
        while (waiting or under_way) and not broken:
            while waiting and len(under_way) < at_once:
                under_way[pool.submit(function, waiting[0])] = waiting[0]
                waiting.popleft()
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    broken = True
                    continue
                item = under_way.pop(future)
                yield item, error if isinstance(error, Exception) else future.result()
    except BrokenProcessPool:  # from submitting: that item still waits, for the next pool
        broken = True
    finally:
        pool.shutdown(cancel_futures=True)
    if broken and not started.is_set():
        raise WorkersError(
            "no worker process can start: a script must make its calls below "
            '`if __name__ == "__main__":`, since each process imports the script; else there is '
            "too little memory"
        )
    lost.extend(under_way.values())


def _begin(started: Event) -> None:
    """Make the process one of one thread, which ends with its parent."""
    started.set()
    Thread(target=_end_with_parent, name="end with parent", daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})


def _end_with_parent() -> None:
    """Wait for the parent's end, however it ends, and follow it: nobody wants the results."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
