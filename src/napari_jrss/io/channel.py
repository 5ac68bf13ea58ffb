"""Messages between two processes over a pair of byte streams: JSON lines, with bytes after them.

A message is one line, a JSON object whose ``kind`` says what it is. Where it has a ``size``, so
many bytes follow. Other lines, such as what a shell prints when somebody logs in, are passed over.
Each side tells the other every few seconds that it is there.
"""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from napari_jrss.errors import JRSSError

BEAT_S = 5.0
SILENCE_S = 60.0
_LONGEST_LINE = 2**20
_LARGEST_BYTES = 2**28
_QUEUED = 64
_POLL_S = 0.05
_BEAT, _STOP = "beat", "stop"


class ChannelError(JRSSError):
    """The other side is gone, or sends what isn't a message."""


@dataclass(frozen=True)
class Message:
    """One message: its kind, what its line says, and the bytes after it."""

    kind: str
    body: dict[str, Any]
    payload: bytes = b""


class Channel:
    """One side of a conversation.

    Parameters
    ----------
    incoming, outgoing
        Where the other side's messages come from, and where messages to it go.
    lost
        Called on a thread of the channel when the other side has hung up (False), or was silent for
        `silence` seconds (True).
    silence
        Seconds without a sign of life, after the first, after which the other side counts as gone.
    """

    def __init__(
        self,
        incoming: IO[bytes],
        outgoing: IO[bytes],
        lost: Callable[[bool], None],
        silence: float = SILENCE_S,
    ) -> None:
        self.stop = threading.Event()  # set when the other side asks to stop
        self._incoming, self._outgoing, self._lost = incoming, outgoing, lost
        self.silence = silence
        self._messages: queue.Queue[Message | None] = queue.Queue(_QUEUED)
        self._writing = threading.Lock()
        self._closed = threading.Event()
        self._heard = math.inf  # a job may wait for hours before its first word
        self._reader = threading.Thread(target=self._read, name="channel", daemon=True)
        self._reader.start()
        threading.Thread(target=self._beat, name="channel's heart", daemon=True).start()

    def send(self, kind: str, payload: bytes = b"", **body: object) -> None:
        """Send a message; a :class:`ChannelError` if nobody reads any more."""
        about = {"kind": kind, **body, **({"size": len(payload)} if payload else {})}
        try:
            with self._writing:
                self._outgoing.write(json.dumps(about).encode() + b"\n" + payload)
                self._outgoing.flush()
        except (OSError, ValueError) as error:  # a ValueError where the stream is closed
            raise ChannelError("the other side has hung up") from error

    def begin_line(self) -> None:
        """End a line that another program may have begun."""
        with self._writing:
            self._outgoing.write(b"\n")

    def ask_to_stop(self) -> None:
        """Set the other side's :attr:`stop`."""
        self.send(_STOP)

    def receive(self, timeout: float = _POLL_S) -> Message | None:
        """The next message; None if none comes in time, a ChannelError after the last one."""
        try:
            message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        if message is None:
            self._messages.put(None)
            raise ChannelError("the other side has hung up")
        return message

    def wait_for(self, *kinds: str) -> Message:
        """Wait for the next message, which must be of one of these kinds."""
        while (message := self.receive(BEAT_S)) is None:
            pass
        if message.kind not in kinds:
            raise ChannelError(f"an unexpected message: {message.kind[:100]!r}")
        return message

    def close(self) -> None:
        """Stop listening and beating; the streams are closed by who opened them."""
        self._closed.set()

    def join(self, timeout: float) -> bool:
        """Wait until nothing can be heard any more; False if somebody may still speak."""
        self._reader.join(timeout)
        return not self._reader.is_alive()

    def _read(self) -> None:
        try:
            while line := self._incoming.readline(_LONGEST_LINE):
                self._heard = time.monotonic()
                about = _message(line)
                if about is None or about["kind"] == _BEAT:
                    continue
                if about["kind"] == _STOP:
                    self.stop.set()
                    continue
                payload = self._bytes(about.pop("size", 0))
                if payload is None:
                    break
                self._put(Message(about.pop("kind"), about, payload))
        except (OSError, ValueError):
            pass  # it broke, or was closed here
        self._put(None)
        if not self._closed.is_set():
            self._lost(False)

    def _bytes(self, size: object) -> bytes | None:
        """So many bytes; None if they don't come."""
        if not isinstance(size, int) or not 0 <= size <= _LARGEST_BYTES:
            return None
        parts, left = [], size
        while left:
            part = self._incoming.read(min(left, 2**16))
            if not part:
                return None
            self._heard = time.monotonic()
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _put(self, message: Message | None) -> None:
        while not self._closed.is_set():
            try:
                self._messages.put(message, timeout=_POLL_S)
            except queue.Full:  # nobody takes what was heard: that isn't the other side's silence
                self._heard = time.monotonic()
            else:
                return

    def _beat(self) -> None:
        while not self._closed.wait(min(BEAT_S, self.silence / 4)):
            if time.monotonic() - self._heard > self.silence:
                self._lost(True)
                return
            # Who waits for a long message to be written beats by its bytes.
            if self._writing.acquire(blocking=False):
                self._writing.release()
                try:
                    self.send(_BEAT)
                except ChannelError:
                    return


def _message(line: bytes) -> dict[str, Any] | None:
    """What a line says, if it is a message."""
    try:
        about = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return about if isinstance(about, dict) and isinstance(about.get("kind"), str) else None
