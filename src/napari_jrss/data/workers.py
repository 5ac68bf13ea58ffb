"""The same function on many things, in spawned processes of one thread each."""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

import SimpleITK as sitk  # noqa: N813
import zarr

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], workers: int | None = None
) -> Iterator[tuple[Item, Result | Exception]]:
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

    Notes
    -----
    At most two items per process are under way: memory doesn't grow with their number.
    """
    workers = max(1, min(workers or _cores(), len(items)))
    waiting = deque(items)
    alone: list[Item] = []
    while waiting:
        yield from _until_broken(function, waiting, alone, workers)
    for item in alone:
        again: list[Item] = []
        yield from _until_broken(function, deque([item]), again, 1)
        if again:
            yield item, BrokenProcessPool("the worker process died")


def _until_broken(
    function: Callable[[Item], Result], waiting: deque[Item], lost: list[Item], workers: int
) -> Iterator[tuple[Item, Result | Exception]]:
    """Work through `waiting` with one pool; what was under way when it broke goes to `lost`."""
    # Never forked: a fork copies locks that threads of this process may hold.
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread)
    under_way: dict[Future[Result], Item] = {}
    try:
        while (waiting or under_way) and not lost:
            while waiting and len(under_way) < 2 * workers:
                future = pool.submit(function, waiting[0])
                under_way[future] = waiting.popleft()
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                item = under_way.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    lost.append(item)
                elif isinstance(error, Exception):
                    yield item, error
                else:
                    yield item, future.result()
    except BrokenProcessPool:  # submitting found it broken; nothing left `waiting`
        pass
    finally:
        lost.extend(under_way.values())
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    zarr.config.set({"threading.max_workers": 1, "async.concurrency": 1})


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
