"""One function on many items, in processes of this computer or of a cluster.

A function that takes long may :func:`tell` what it is at, and ask whether it is
:func:`asked_to_stop`; anywhere else both do nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing import Pipe, get_context, parent_process
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from napari_jrss.errors import JRSSError
from napari_jrss.processes import ProcessError, WorkerDiedError, thread_limits
from napari_jrss.threads import available_cores

_logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

DIED = "its process died; most likely there was too little memory"
_NOT_STARTED = "no worker process can start; most likely there is too little memory"
_POLL_S = 0.2


@dataclass(frozen=True)
class Told:
    """What the function on an item told, while it works on it."""

    message: str


Outcome: TypeAlias = "Result | Told | Exception"


@runtime_checkable
class Pool(Protocol):
    """Processes elsewhere, such as those of a :class:`~napari_jrss.cluster.Cluster`."""

    @property
    def threads(self) -> int:
        """How many items they take at once."""
        ...

    def work(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        ready: Callable[[Item], bool],
    ) -> Generator[tuple[Item, Outcome[Result]] | None]:
        """Call `function` on each item; as :func:`working`."""
        ...


Workers: TypeAlias = "int | Pool | None"
"""Number of processes of this computer, one of each core if None; or a pool elsewhere."""


@dataclass(frozen=True)
class Surroundings:
    """What a function on an item can do about those who asked for it."""

    tell: Callable[[str], None]
    stopped: Callable[[], bool]


surroundings: ContextVar[Surroundings | None] = ContextVar("surroundings", default=None)


def tell(message: str) -> None:
    """Tell those who wait for this item something of the work on it."""
    if (here := surroundings.get()) is not None:
        here.tell(message)


def asked_to_stop() -> bool:
    """Whether nobody waits for this item any more."""
    here = surroundings.get()
    return here is not None and here.stopped()


class AskedToStop:
    """:func:`asked_to_stop` as what a training asks before each step."""

    def is_set(self) -> bool:
        """Whether nobody waits for this item any more."""
        return asked_to_stop()


def in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: Workers = None,
    *,
    environments: Sequence[Mapping[str, str]] | None = None,
    ready: Callable[[Item], bool] = lambda item: True,
) -> Generator[tuple[Item, Result | Exception]]:
    """Call `function` on each item in worker processes; yield as each ends.

    Each process has one item under way, so memory doesn't grow with the number of items. A
    process that dies takes only its own item with it, and is replaced. When the generator is
    closed, the processes are killed. It is a ProcessError if none can start.

    Parameters
    ----------
    function
        Importable by name, or a :func:`functools.partial` of such a function.
    items
        Its arguments.
    workers
        Number of processes of one thread each; none: as many as this process may use cores. Or
        processes elsewhere.
    environments
        Instead of `workers`: for each process, environment variables that it starts with.
    ready
        Whether an item may begin; asked again when another one has ended.

    Yields
    ------
    tuple
        The item, and what the function returned or raised. An item whose process died is tried
        once more, by itself: the others may have taken all the memory. If that process dies too,
        the item yields a :class:`WorkerDiedError`.
    """
    work = working(function, items, workers, environments=environments, ready=ready)
    with closing(work) as steps:
        for step in steps:
            if step is not None and not isinstance(step[1], Told):
                yield step[0], step[1]


def mapped(
    function: Callable[[Item], Result], items: Sequence[Item], workers: Workers
) -> Generator[tuple[Item, Result | Exception]]:
    """As :func:`in_processes`, but one item after the other in this process if `workers` is None.

    What `function` raises in this process isn't caught, unless it is a :class:`JRSSError`.
    """
    if workers is not None:
        yield from in_processes(function, items, workers)
        return
    for item in items:
        try:
            outcome: Result | Exception = function(item)
        except JRSSError as error:
            outcome = error
        yield item, outcome


def working(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: Workers = None,
    *,
    environments: Sequence[Mapping[str, str]] | None = None,
    ready: Callable[[Item], bool] = lambda item: True,
) -> Generator[tuple[Item, Outcome[Result]] | None]:
    """As :func:`in_processes`, but also yield what the functions tell, and now and then None.

    So the caller can show what is under way, and close the generator in the midst of it.
    """
    if isinstance(workers, Pool):
        yield from workers.work(function, items, ready)
        return
    if environments is None:
        environments = [thread_limits(1)] * (workers or available_cores())
    idle = [_Worker(environment) for environment in environments[: len(items)]]
    jobs: dict[Future[Result], tuple[_Worker, int]] = {}
    waiting, died, any_started = list(range(len(items))), set[int](), False
    try:
        while waiting or jobs:
            begin = [i for i in waiting if i not in died and ready(items[i])][: len(idle)]
            for i in begin or ([] if jobs else waiting[:1]):
                waiting.remove(i)
                worker = idle.pop()
                jobs[worker.submit(function, items[i])] = worker, i
            ended = wait(jobs, timeout=_POLL_S, return_when=FIRST_COMPLETED).done
            for worker, i in list(jobs.values()):
                for message in worker.told():
                    yield items[i], Told(message)
            if not ended:
                yield None
            for future in ended:
                worker, i = jobs.pop(future)
                idle.append(worker)
                error = future.exception()
                any_started |= worker.pid.exception() is None
                if isinstance(error, BrokenProcessPool):
                    _logger.warning("a worker process died")
                    if not any_started:
                        raise ProcessError(_NOT_STARTED)
                    worker.renew()
                    if i not in died:
                        died.add(i)
                        waiting.insert(0, i)
                        continue
                    error = WorkerDiedError(DIED)
                yield items[i], error if isinstance(error, Exception) else future.result()
    finally:
        for worker, _ in jobs.values():
            worker.kill()
        for worker in idle:
            worker.pool.shutdown()


class _Worker:
    """One process, which tells its id as soon as it has started."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self._ear: Connection[Any, Any] | None = None
        self.renew()

    def renew(self) -> None:
        if self._ear is not None:
            self._ear.close()
        self._ear, mouth = Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(
            1, get_context("spawn"), initializer=_begin, initargs=(mouth,)
        )
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        # Without this the process would import the program's script, and do all that it does: a
        # script that opens a window would open one for each worker.
        script, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
        try:
            self.pid = self.pool.submit(os.getpid)  # which starts it
            mouth.close()
        finally:
            sys.modules["__main__"] = script
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        try:
            return self.pool.submit(function, item)
        except BrokenProcessPool:  # it died after its last job
            self.renew()
            return self.pool.submit(function, item)

    def told(self) -> list[str]:
        """What the function has told since this was asked last."""
        messages = []
        with suppress(EOFError, OSError):
            while self._ear is not None and self._ear.poll():
                messages.append(str(self._ear.recv()))
        return messages

    def kill(self) -> None:
        with suppress(OSError, BrokenProcessPool):
            os.kill(self.pid.result(), signal.SIGTERM)
        self.pool.shutdown()


def _begin(mouth: Connection[Any, Any]) -> None:
    """Make the process end with its parent, and tell it what functions tell."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    surroundings.set(Surroundings(mouth.send, lambda: False))  # it is killed to stop it
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()  # nobody waits for results any more
        os._exit(1)

    threading.Thread(target=follow, name="end with parent", daemon=True).start()
