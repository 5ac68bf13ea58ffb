"""The further processes of a training on several devices; each takes a part of every batch."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Self

from napari_jrss.errors import JRSSError, one_line
from napari_jrss.processes import Child, Parent, ProcessError

_POLL_S = 0.2
_TELLING_S = 2.0


class Peers:
    """The other processes of a training that this process is the first of.

    They end with this process, which should be one of its own: its environment then says which of
    the processes it is.

    Parameters
    ----------
    function
        What each of them runs, as of :class:`~napari_jrss.processes.Child`.
    devices
        Number of processes, this one included; nothing happens if it is 1, or if this process is a
        peer itself.
    failed
        Gets what a peer died of, in a thread. This process may wait for that peer then, so it
        should be ended.
    """

    def __init__(
        self, function: Callable[[Parent], None], devices: int, failed: Callable[[str], None]
    ) -> None:
        self._children: list[Child] = []
        self._closed = threading.Event()
        if devices == 1 or "LOCAL_RANK" in os.environ:
            return
        port = free_port()
        os.environ |= _rank(0, port)
        for rank in range(1, devices):
            name = f"training {rank + 1} of {devices}"
            self._children.append(Child(name, function, environment=_rank(rank, port)))
        threading.Thread(target=self._watch, args=(failed,), name="peers", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, *_: object) -> None:
        if error is not None and not isinstance(error, JRSSError) and self._children:
            time.sleep(_TELLING_S)  # a peer's death, which is told, may be the reason
        self._closed.set()
        for child in self._children:
            child.close()

    def send(self, line: str) -> None:
        """Send all of them a line of JSON."""
        for child in self._children:
            child.send(line)

    def _watch(self, failed: Callable[[str], None]) -> None:
        try:
            while not self._closed.wait(_POLL_S):
                for child in self._children:
                    while child.receive() is not None:
                        pass
        except ProcessError as error:
            if not self._closed.is_set():
                failed(one_line(error))


def ending(parent: Parent) -> Callable[[str], None]:
    """What ends this process when a peer has died, and tells its parent why."""

    def failed(reason: str) -> None:
        parent.send(json.dumps({"error": reason, "fault": True}))
        os._exit(1)

    return failed


def free_port() -> int:
    """A port of this computer that nobody listens at now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _rank(rank: int, port: int) -> dict[str, str]:
    """The variables by which lightning-fabric knows a process of several on this computer."""
    return {
        "LOCAL_RANK": str(rank),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
