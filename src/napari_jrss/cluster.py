"""Workers on other computers, through dask.distributed: a pool for whatever maps over many items.

Each worker sees the project's folder and the scans at the same paths, as on a shared disk. Only a
function's name and its arguments go to a worker, and come back. They go by pickle, so a scheduler
can run any code on its workers, and whoever reaches it can, too: see docs/explanation/reliability.
"""

from __future__ import annotations

import importlib
import logging
import os
import queue
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, Protocol, Self
from urllib.parse import urlsplit
from uuid import uuid4

from napari_jrss import __version__
from napari_jrss.errors import JRSSError
from napari_jrss.pool import DIED, Item, Outcome, Result, Surroundings, Told, surroundings
from napari_jrss.processes import ProcessError, WorkerDiedError, thread_limits

_logger = logging.getLogger(__name__)

TRUST = "NAPARI_JRSS_TRUST_NETWORK"
"""Environment variable: set to 1, a scheduler on another computer may be reached without TLS."""
_CONNECT_S = 10.0
_POLL_S = 0.2
_ASK_S = 1.0


class Flag(Protocol):
    """What a :class:`threading.Event` is."""

    def is_set(self) -> bool:
        """Whether it is set."""
        ...


class ClusterError(JRSSError):
    """A scheduler can't be reached, or its workers aren't fit."""


def is_address(text: str) -> bool:
    """Whether a text is the address of a scheduler, such as ``tcp://host:8786``."""
    return "://" in text


def check_address(address: str, role: Literal["client", "worker"] = "client") -> None:
    """Refuse what isn't the address of a scheduler that may be trusted, as a `role` has it.

    Raises
    ------
    ClusterError
        It is no such address, the package distributed isn't there, the connection to another
        computer would be open to everybody on the network, or there is no certificate for it.
    """
    if find_spec("distributed") is None:
        raise ClusterError("a cluster needs dask: pip install 'napari-jrss[cluster]'")
    parts = urlsplit(address)
    try:
        known = parts.scheme in ("tcp", "tls") and bool(parts.hostname) and bool(parts.port)
    except ValueError:  # of a port that is no number
        known = False
    if not known:
        raise ClusterError(f"{address}: not the address of a scheduler, such as tls://host:8786")
    here = _is_here(parts.hostname or "")
    if parts.scheme == "tcp" and not here and os.environ.get(TRUST) != "1":
        raise ClusterError(
            f"{address}: without TLS, whoever reaches the scheduler can run programs on its "
            f"workers: use tls://, or a tunnel to localhost, or set {TRUST}=1 in a network that "
            "you trust"
        )
    if parts.scheme == "tls":
        try:
            context = _dask().Security().get_connection_args(role).get("ssl_context")
        except OSError as error:
            raise ClusterError(
                f"{address}: the certificates of dask's settings can't be used ({_short(error)})"
            ) from None
        if context is None:
            raise ClusterError(
                f"{address}: dask's settings name no certificates (distributed.comm.tls: ca-file, "
                f"{role}.cert, {role}.key)"
            )


def _is_here(host: str) -> bool:
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


class Cluster:
    """The workers of a scheduler; a :class:`~napari_jrss.pool.Pool`.

    Parameters
    ----------
    address
        Of the scheduler, such as ``tls://host:8786``. Certificates are those of dask's settings.
    folders
        Folders and files that every worker must see at the same path.
    gpu
        Items go to workers that have a GPU, where there are such.
    patience
        Seconds to wait for a worker while there is none, and for one that was asked to stop.
    at_once
        Set by somebody who doesn't wait for a worker that was asked to stop.

    Raises
    ------
    ClusterError
        The scheduler can't be reached; there is no worker; or a worker has another version, or
        doesn't see a folder.
    """

    def __init__(
        self,
        address: str,
        folders: Sequence[Path] = (),
        *,
        gpu: bool = False,
        patience: float = 30.0,
        at_once: Flag | None = None,
    ) -> None:
        check_address(address)
        self._address, self._patience, self._gpu = address, patience, gpu
        self._at_once = at_once
        try:
            self._client = _dask().Client(
                address, timeout=_CONNECT_S, set_as_default=False, heartbeat_interval="2s"
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise ClusterError(f"{address}: no scheduler answers ({_short(error)})") from None
        try:
            self._check(folders)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, which goes on without this program; safe to call again."""
        self._client.close(timeout=_CONNECT_S)

    @property
    def threads(self) -> int:
        """How many items the workers take at once."""
        return sum(self._client.nthreads().values())

    def _check(self, folders: Sequence[Path]) -> None:
        self._wait_for_worker()
        paths = [str(folder.absolute()) for folder in folders if folder.exists()]
        found: dict[str, tuple[str, list[str]] | Exception]
        found = self._client.run(_about, paths, on_error="return")
        for worker, about in found.items():
            if isinstance(about, Exception):
                raise ClusterError(f"{worker}: has no napari-jrss that works ({_short(about)})")
            version, unseen = about
            if version != __version__:
                raise ClusterError(
                    f"{worker}: has napari-jrss {version}, and this computer {__version__}"
                )
            if unseen:
                raise ClusterError(f"{worker}: doesn't see {unseen[0]}; share it at that path")
        _logger.info("%d workers at %s", len(found), self._address)

    def _wait_for_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=self._patience)
        except TimeoutError:
            raise ClusterError(
                f"{self._address}: no worker is there; start one: napari-jrss worker "
                f"{self._address}"
            ) from None

    def work(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        ready: Callable[[Item], bool],
    ) -> Generator[tuple[Item, Outcome[Result]] | None]:
        """Call `function` on each item on the workers; see :func:`napari_jrss.pool.working`.

        An item whose worker dies is begun again on another one, up to four times. When the
        generator is closed, the functions are asked to stop.
        """
        job = f"napari-jrss-{uuid4().hex}"
        heard: queue.SimpleQueue[tuple[int, str | None]] = queue.SimpleQueue()
        stop = _dask().Variable(f"{job}-stop", client=self._client)
        stop.set(False)
        self._client.subscribe_topic(job, lambda event: heard.put(event[1]))
        waiting, jobs = list(range(len(items))), dict[int, Any]()
        resources = self._resources()
        alive = time.monotonic()
        try:
            while waiting or jobs:
                begin = [i for i in waiting if ready(items[i])]
                for i in begin or ([] if jobs else waiting[:1]):
                    waiting.remove(i)
                    jobs[i] = future = self._client.submit(
                        _run,
                        *(function, items[i], i, job, str(Path.cwd())),
                        key=f"{job}-{i}",
                        pure=False,
                        resources=resources,
                    )
                    future.add_done_callback(lambda _, i=i: heard.put((i, None)))
                try:
                    i, message = heard.get(timeout=_POLL_S)
                except queue.Empty:
                    alive = self._see_workers(alive)
                    yield None
                    continue
                if message is not None:
                    yield items[i], Told(message)
                elif (future := jobs.pop(i, None)) is not None:
                    yield items[i], _outcome(future)
        finally:
            if self._reachable():
                if jobs:
                    stop.set(True)
                    until = time.monotonic() + self._patience
                    while time.monotonic() < until and not all(j.done() for j in jobs.values()):
                        if self._at_once is not None and self._at_once.is_set():
                            break
                        time.sleep(_POLL_S)
                    self._client.cancel(list(jobs.values()))
                self._client.unsubscribe_topic(job)

    def _resources(self) -> dict[str, int] | None:
        """What a job asks for: a GPU, where there is one and it wants one."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        has = self._gpu and any(each["resources"].get("GPU") for each in workers)
        return {"GPU": 1} if has else None

    def _reachable(self) -> bool:
        return bool(self._client.status == "running")

    def _see_workers(self, alive: float) -> float:
        """When a worker was there last; ClusterError if that is too long ago."""
        if not self._reachable():
            raise ClusterError(f"{self._address}: the connection to the scheduler broke")
        if self._client.scheduler_info(n_workers=1)["workers"]:
            return time.monotonic()
        if time.monotonic() - alive > self._patience:
            raise ClusterError(
                f"{self._address}: no worker has been there for {self._patience:.0f} s"
            )
        return alive


def _dask() -> Any:
    return importlib.import_module("distributed")


def _about(paths: Sequence[str]) -> tuple[str, list[str]]:
    """On a worker: its version, and those of the paths that it doesn't see."""
    return __version__, [path for path in paths if not Path(path).exists()]


class _Stop:
    """Whether a job was stopped; the scheduler is asked now and then only."""

    def __init__(self, job: str) -> None:
        self._variable = _dask().Variable(f"{job}-stop")
        self._asked, self._stopped = 0.0, False

    def __call__(self) -> bool:
        if not self._stopped and time.monotonic() - self._asked > _ASK_S:
            self._asked = time.monotonic()
            with suppress(TimeoutError):
                self._stopped = bool(self._variable.get(timeout=_ASK_S))
        return self._stopped


def _run(
    function: Callable[[Item], Result], item: Item, number: int, job: str, folder: str
) -> Result:
    """On a worker: call the function on one item, whose paths may be relative to a folder."""
    with suppress(OSError):  # it isn't seen here, so no path is meant to be relative to it
        os.chdir(folder)
    worker = _dask().get_worker()
    here = Surroundings(lambda message: worker.log_event(job, (number, message)), _Stop(job))
    token = surroundings.set(here)
    try:
        if here.stopped():
            raise ProcessError("the job was stopped before it began")
        return function(item)
    finally:
        surroundings.reset(token)


def _outcome(future: Any) -> Any:
    """What a function returned or raised."""
    try:
        return future.result()
    except _dask().KilledWorker:
        return WorkerDiedError(f"on several workers {DIED}")
    except _dask().CancelledError as error:
        return ProcessError(f"the cluster dropped a job ({_short(error)})")
    except Exception as error:
        return error


def _short(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def worker_command(address: str, processes: int, gpu: bool) -> list[str]:
    """The command of a worker, which takes one item at a time in each process."""
    resources = ["--resources", "GPU=1"] if gpu else []
    return [
        *(sys.executable, "-m", "distributed.cli.dask_worker", address),
        *("--nthreads", "1", "--nworkers", str(processes), "--no-dashboard"),
        *("--death-timeout", "60", *resources),
    ]


def worker_environment(threads: int) -> dict[str, str]:
    """The variables of that command, whose processes have so many CPU threads."""
    prefix = "DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__"
    limits = {prefix + name: value for name, value in thread_limits(threads).items()}
    return {**os.environ, **limits, **thread_limits(threads)}
