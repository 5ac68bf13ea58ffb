"""Prompts on a scan, answered by an nnInteractive server (Isensee et al. 2025, arXiv:2503.08373).

The server runs elsewhere, on this computer or another; ``nninteractive-client`` speaks to it. Its
weights are licensed CC BY-NC-SA 4.0: not for commercial use.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from skimage.draw import disk, line, polygon

from napari_jrss.errors import JRSSError, one_line

_logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

ADDRESS = "http://localhost:1527"
"""Where a server listens that was started on this computer with its defaults."""
LICENCE = "The official weights of nnInteractive are licensed CC BY-NC-SA 4.0: no commercial use."
INSTALL = 'pip install "napari-jrss[prompts]"'
CLIENT = "nninteractive-client"
"""The package that speaks to a server."""
_CONNECT_S, _PREDICT_S, _UPLOAD_S = 5.0, 60.0, 600.0

Mask = NDArray[np.bool_]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class PromptError(JRSSError):
    """The server can't be reached, or didn't answer as it should."""


class PromptKind(StrEnum):
    """Kinds of prompts; the values are the server's names of what it may support."""

    POINT = "points"
    SCRIBBLE = "scribble"
    LASSO = "lasso"
    BOX = "bbox2d"

    @property
    def words(self) -> str:
        """Its name for a person."""
        return {"points": "point", "bbox2d": "box"}.get(self.value, self.value)


@dataclass(frozen=True, eq=False)
class Prompt:
    """What a person shows of one structure, on one slice of a scan.

    Attributes
    ----------
    kind
        What it is.
    box
        Its extent (z, y, x) in voxels: the first, and one beyond the last. A point has one voxel,
        the others lie on one slice.
    inside
        Whether it is part of the structure; False: it isn't.
    mask
        The voxels of a scribble or a lasso within the box.
    """

    kind: PromptKind
    box: Box
    inside: bool = True
    mask: Mask | None = None

    @classmethod
    def point(cls, at: Sequence[float], *, inside: bool = True) -> Self:
        """A voxel (z, y, x)."""
        z, y, x = (round(each) for each in at)
        return cls(PromptKind.POINT, ((z, z + 1), (y, y + 1), (x, x + 1)), inside)

    @classmethod
    def rectangle(
        cls, corners: Sequence[Sequence[float]], axis: int, *, inside: bool = True
    ) -> Self:
        """The rectangle around points (n, 3) on one slice across an axis."""
        low, high = np.rint(np.min(corners, 0)), np.rint(np.max(corners, 0))
        high[axis] = low[axis]
        return cls(PromptKind.BOX, _box(low, high + 1), inside)

    @classmethod
    def scribble(
        cls,
        path: Sequence[Sequence[float]],
        axis: int,
        shape: Sequence[int],
        *,
        width: float = 2,
        inside: bool = True,
    ) -> Self | None:
        """A line along points (n, 3) on one slice across an axis of a scan of a shape.

        `width` is in voxels. None if no voxel of the scan is on it.
        """
        plane, number = _on_slice(path, axis)
        drawn = np.zeros([n for i, n in enumerate(shape) if i != axis], bool)
        corners = np.rint(plane).astype(int)
        for start, end in zip(corners, corners[1:] if len(corners) > 1 else corners, strict=False):
            for row, column in zip(*line(*start, *end), strict=True):
                drawn[disk((row, column), max(width / 2, 0.6), shape=drawn.shape)] = True
        return cls._drawn(PromptKind.SCRIBBLE, drawn, axis, number, shape, inside)

    @classmethod
    def lasso(
        cls,
        path: Sequence[Sequence[float]],
        axis: int,
        shape: Sequence[int],
        *,
        inside: bool = True,
    ) -> Self | None:
        """What a line around it encloses: points (n, 3), as for :meth:`scribble`."""
        plane, number = _on_slice(path, axis)
        drawn = np.zeros([n for i, n in enumerate(shape) if i != axis], bool)
        drawn[polygon(plane[:, 0], plane[:, 1], drawn.shape)] = True
        return cls._drawn(PromptKind.LASSO, drawn, axis, number, shape, inside)

    @classmethod
    def _drawn(
        cls,
        kind: PromptKind,
        drawn: Mask,
        axis: int,
        number: int,
        shape: Sequence[int],
        inside: bool,
    ) -> Self | None:
        if not drawn.any() or not 0 <= number < shape[axis]:
            return None
        rows, columns = np.nonzero(drawn)
        low, high = [rows.min(), columns.min()], [rows.max() + 1, columns.max() + 1]
        mask = np.expand_dims(drawn[low[0] : high[0], low[1] : high[1]], axis)
        low.insert(axis, number)
        high.insert(axis, number + 1)
        return cls(kind, _box(low, high), inside, mask)

    def within(self, shape: Sequence[int]) -> bool:
        """Whether all of it lies in a scan of this shape (z, y, x)."""
        return all(0 <= a < b <= n for (a, b), n in zip(self.box, shape, strict=True))


def _on_slice(path: Sequence[Sequence[float]], axis: int) -> tuple[NDArray[np.float64], int]:
    """Points (n, 2) on a slice, and its number."""
    points = np.asarray(path, np.float64)
    return np.delete(points, axis, axis=1), round(float(points[0, axis]))


def _box(low: Any, high: Any) -> Box:
    z, y, x = ((int(a), int(b)) for a, b in zip(low, high, strict=True))
    return z, y, x


def client_problem() -> str:
    """What to install so that a server can be asked; empty if nothing."""
    return "" if find_spec("nnInteractive") else f"{CLIENT} is not installed: {INSTALL}"


class PromptServer:
    """A place on an nnInteractive server, for one scan at a time; :meth:`close` gives it back.

    One thread may use it at a time. Every method that asks the server raises a
    :class:`PromptError` of one line if that can't be done.

    Parameters
    ----------
    address
        Such as ``http://gpu-box:1527``.
    key
        What the server was started with as ``--api-key``; empty: the environment variable
        ``NN_INTERACTIVE_API_KEY``, if there is one.
    timeout_s
        Longest time for one answer in seconds.

    Attributes
    ----------
    name
        The program and its version, such as "nnInteractive 2.6.0".
    licence
        Licence of the weights, as the server tells it.
    """

    def __init__(self, address: str, key: str = "", timeout_s: float = _PREDICT_S) -> None:
        self.address = address.strip()
        self._timeout_s = timeout_s
        if problem := client_problem():
            raise PromptError(problem)
        with self._asking("connect"):
            from nnInteractive.inference.remote import nnInteractiveRemoteInferenceSession

            self._session: nnInteractiveRemoteInferenceSession = (
                nnInteractiveRemoteInferenceSession(
                    self.address,
                    api_key=key or None,
                    connect_timeout=_CONNECT_S,
                    read_timeout=timeout_s,
                    set_image_read_timeout=max(timeout_s, _UPLOAD_S),
                )
            )
        theirs, ours = str(self._session.INFERENCE_SESSION_VERSION), metadata.version(CLIENT)
        if theirs.split(".")[0] != ours.split(".")[0]:
            self.close()
            raise PromptError(
                f"the nnInteractive server {self.address} is version {theirs}, and {CLIENT} here "
                f"is {ours}: install the same version on both sides"
            )
        self.name = f"nnInteractive {theirs}"
        told = self._session.license
        self.licence = "unknown" if told in (None, "", "!!MISSING!!") else str(told)
        self.scribble_width = float(np.max(self._session.preferred_scribble_thickness or 2))

    def supports(self, kind: PromptKind) -> bool:
        """Whether the server's model takes this kind of prompt."""
        return bool(self._session.supported_interactions.get(str(kind), False))

    @property
    def refines(self) -> bool:
        """Whether it can start from what is drawn already."""
        return bool(self._session.supports_initial_label)

    def show(self, image: NDArray[Any]) -> None:
        """Send a scan (z, y, x) with its own intensities."""
        with self._asking("send the scan"):
            self._session.set_image(np.ascontiguousarray(image)[None])
            self._session.set_target_buffer(np.zeros(image.shape, np.uint8))

    def begin(self, drawn: Mask | None = None) -> None:
        """Begin with another structure, from what is drawn of it already (z, y, x)."""
        with self._asking("begin"):
            self._session.reset_interactions()
            if drawn is not None and self.refines:
                self._session.add_initial_seg_interaction(drawn.astype(np.uint8))

    def ask(self, prompt: Prompt) -> Mask:
        """The structure (z, y, x) after one more prompt."""
        if not self.supports(prompt.kind):
            raise PromptError(f"the model of {self.address} takes no {prompt.kind.words}")
        with self._asking("answer"):
            session, box = self._session, [list(each) for each in prompt.box]
            if prompt.kind is PromptKind.POINT:
                session.add_point_interaction([a for a, _ in box], prompt.inside)
            elif prompt.kind is PromptKind.BOX:
                session.add_bbox_interaction(box, prompt.inside)
            else:
                assert prompt.mask is not None
                add = (
                    session.add_scribble_interaction
                    if prompt.kind is PromptKind.SCRIBBLE
                    else session.add_lasso_interaction
                )
                add(prompt.mask.astype(np.uint8), prompt.inside, interaction_bbox=box)
            assert session.target_buffer is not None
            answer: Mask = session.target_buffer.astype(bool)
            return answer

    def close(self) -> None:
        """Give the place back; safe to call again, and where the server is gone."""
        try:
            self._session.close()
        except Exception as error:  # it is only a courtesy to the server
            _logger.info("%s: the session wasn't given back: %s", self.address, one_line(error))

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Say in one line why the server doesn't answer as it should."""
        try:
            yield
        except JRSSError:
            raise
        except Exception as error:
            raise self._told(error, what) from error

    def _told(self, error: Exception, what: str) -> PromptError:
        import httpx
        from nnInteractive.inference.remote import ServerAtCapacityError, SessionExpiredError

        where = f"the nnInteractive server {self.address}"
        if isinstance(error, SessionExpiredError):
            return ExpiredError(f"{where} has forgotten this session, as after a pause")
        if isinstance(error, ServerAtCapacityError):
            return PromptError(f"{where} serves as many people as it may: try again later")
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return PromptError(f"{self.address!r} is no address of a server, such as {ADDRESS}")
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return PromptError(
                f"nothing answers at {self.address}: start nninteractive-server there, or check "
                "the address"
            )
        if isinstance(error, httpx.TimeoutException):
            return PromptError(f"{where} took longer than {self._timeout_s:g} s to {what}")
        if isinstance(error, httpx.HTTPStatusError):
            return PromptError(_refusal(error.response, where, what))
        if isinstance(error, httpx.TransportError):
            return PromptError(f"{where} broke off: it ended, or the connection did")
        if isinstance(error, KeyError | TypeError | ValueError | struct.error | RuntimeError):
            versions = f"{CLIENT} is {metadata.version(CLIENT)}"
            return PromptError(
                f"{where} answers as another version does ({versions}; {one_line(error)}): install "
                "the same version on both sides"
            )
        return PromptError(f"{where} can't {what} ({one_line(error)})")


class ExpiredError(PromptError):
    """The server has forgotten the session; a new one can be begun."""


def _refusal(response: Any, where: str, what: str) -> str:
    """What a refused request means."""
    code = response.status_code
    if code in (401, 403):
        return f"{where} wants another key: it was started with --api-key"
    if code in (404, 405, 422):
        return (
            f"{where} doesn't know how to {what} (HTTP {code}): it is another program, or an older "
            "version"
        )
    if code == 413:
        return f"{where} has too little memory for this scan"
    try:
        detail = str(response.json()["detail"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError):
        detail = f"HTTP {code}"
    return f"{where} can't {what} ({' '.join(detail.split())[:200]})"
