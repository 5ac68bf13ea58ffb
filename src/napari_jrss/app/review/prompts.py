"""Prompts on the label under review: nnInteractive draws, and its answer is one action.

The server keeps the prompts of one structure; here is which of them count, so that an undo, a
cancelled call, a forgotten session or another structure never leaves the two sides apart.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from psygnal import Signal

from napari_jrss.app.review.editor import REVERT, Edit
from napari_jrss.app.review.open_case import CurrentCase, OpenCase
from napari_jrss.app.work_queue import WorkQueue
from napari_jrss.errors import ProjectError, one_line
from napari_jrss.inference.prompts import (
    ExpiredError,
    Mask,
    Prompt,
    PromptError,
    PromptKind,
    PromptServer,
)
from napari_jrss.snapshot import Label

_logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Asked:
    """One prompt, the structure after it, and what it changed, if anything."""

    prompt: Prompt
    packed: NDArray[np.uint8]  # the structure's voxels, as bits
    indices: NDArray[np.intp] | None = None
    counts: bool = True  # False once it is undone


@dataclass(eq=False)
class _Object:
    """The prompts on one structure of one case."""

    case: OpenCase
    index: int
    began: Mask | None  # its extent before the first prompt, if the server can start from it
    asked: list[_Asked] = field(default_factory=list)
    in_step: bool = False  # whether the server has just these prompts

    @property
    def counting(self) -> list[_Asked]:
        return [each for each in self.asked if each.counts]

    @property
    def drawn(self) -> Mask | None:
        """The structure after the last prompt that counts."""
        counting = self.counting
        if not counting:
            return self.began
        shape = self.case.image.shape
        bits = np.unpackbits(counting[-1].packed, count=self.case.image.size)
        return bits.view(np.bool_).reshape(shape)


class Prompts:
    """Commands that ask an nnInteractive server; each answer is one action for undo.

    They run on :attr:`queue`, apart from the review's own, and emit :attr:`changed`. Errors go to
    ``queue.failed``. Locked structures and voxels that a person painted stay as they are.
    """

    changed = Signal()  # connected or not, or another state of `working`

    def __init__(self, current: CurrentCase) -> None:
        self._workspace = current.workspace
        self._current = current
        self.queue = WorkQueue("prompts")
        self.server: PromptServer | None = None  # None: not connected
        self._how: tuple[str, str, float] = ("", "", 0.0)
        self._shown: OpenCase | None = None  # the case whose scan the server has
        self._object: _Object | None = None
        self._due: list[str] = []  # what is asked for, in its order
        self._cancelled = 0  # how often all of that was cancelled

    @property
    def working(self) -> str:
        """What the server is asked for, such as "point: liver"; empty if nothing."""
        return self._due[0] if self._due else ""

    # -- commands

    def connect(self, address: str, key: str = "", timeout_s: float = 60.0) -> None:
        """Take a place on a server; for the parameters see :class:`PromptServer`.

        The licence of the weights is then ``server.licence``.
        """
        self.disconnect()

        def connect(wanted: Callable[[], bool]) -> None:
            server = PromptServer(address, key, timeout_s)
            if not wanted():
                server.close()
                return
            self.server, self._how = server, (address, key, timeout_s)

        self._submit("connect", connect)

    def disconnect(self) -> None:
        """Give the place back."""
        server, self.server = self.server, None
        self._forget()
        self.cancel()
        if server is not None:
            self.queue.submit(server.close)
        self.changed.emit()

    def ask(self, index: int, prompt: Prompt) -> None:
        """Show the server something of one structure, and draw what it makes of it.

        Raises
        ------
        ProjectError
            No server is connected, no case is open, the project is read-only, the structure is
            accepted or doesn't exist, or the prompt lies outside of the scan.
        """
        self._workspace.open_project.check_writable()
        case = self._current.open_case
        if self.server is None:
            raise ProjectError("no nnInteractive server is connected")
        names = case.table.names
        if not 0 < index < len(names):
            raise ProjectError(f"there is no structure {index}")
        if index in case.editor.locked:
            raise ProjectError(f"{names[index]} is accepted; withdraw that before changing it")
        if not prompt.within(case.image.shape):
            raise ProjectError("the prompt lies outside of the scan")
        case.editor.sync()
        name = f"{prompt.kind.words}: {names[index]}"
        self._submit(name, lambda wanted: self._ask(case, index, prompt, name, wanted))

    def start_over(self) -> None:
        """Forget the prompts so far; the next one begins anew from the label as it is."""
        self._forget()

    def cancel(self) -> None:
        """Don't wait for the server's answers; those that come change nothing."""
        self._cancelled += 1
        self._due = []
        self.changed.emit()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait at most `timeout` seconds until nothing is asked; whether that is so."""
        return self.queue.wait(timeout)

    def case_left(self) -> None:
        """Another case is open, or none."""
        if self._object is not None and self._object.case is not self._current.case:
            self._forget()
            self.cancel()

    # -- on the queue

    def _ask(
        self,
        case: OpenCase,
        index: int,
        prompt: Prompt,
        name: str,
        wanted: Callable[[], bool],
    ) -> None:
        if not wanted() or self._current.case is not case:
            return
        seen = case.editor.snapshot()
        object_ = self._object_of(case, index, seen)
        try:
            drawn = self._answer(object_, prompt)
        except ExpiredError:
            self._connect_again()
            drawn = self._answer(object_, prompt)
        if not wanted() or self._current.case is not case or self._object is not object_:
            object_.in_step = False
            return
        before = object_.drawn
        edit = self._draw(case, index, before, drawn, name, seen)
        indices = None if edit is None else edit.indices
        object_.asked.append(_Asked(prompt, np.packbits(drawn), indices))
        if edit is None:
            self._workspace.notified.emit(f"{name}: nothing to change there")

    def _object_of(self, case: OpenCase, index: int, seen: Label) -> _Object:
        found = self._object
        if found is None or found.case is not case or found.index != index:
            began = seen == index
            assert self.server is not None
            found = _Object(case, index, began if self.server.refines and began.any() else None)
            self._forget()
            self._object = found
            case.editor.changed.connect(self._follow_undo)
        return found

    def _answer(self, object_: _Object, prompt: Prompt) -> Mask:
        """What the server makes of all prompts that count, and of one more."""
        server = self.server
        if server is None:
            raise PromptError("the nnInteractive server was disconnected")
        if self._shown is not object_.case:
            self._shown, object_.in_step = None, False
            server.show(object_.case.image)
            self._shown = object_.case
        if not object_.in_step:
            server.begin(object_.began)
            for each in object_.counting:
                each.packed = np.packbits(server.ask(each.prompt))
        object_.in_step = False  # unless the answer comes
        drawn = server.ask(prompt)
        object_.in_step = True
        return drawn

    def _draw(
        self,
        case: OpenCase,
        index: int,
        before: Mask | None,
        drawn: Mask,
        name: str,
        seen: Label,
    ) -> Edit | None:
        """Give the structure what the answer added, and take from it what the answer took away."""
        assert self.server is not None
        label, free = seen.copy(), ~case.editor.painted()
        label[drawn & free if before is None else drawn & ~before & free] = index
        if before is not None:
            label[before & ~drawn & (seen == index) & free] = 0
        return case.editor.replace(name, label, seen, maker=self.server.name)

    def _connect_again(self) -> None:
        """Take another place on the server, which has forgotten us, as it does after a pause."""
        if self.server is not None:
            self.server.close()
        self._shown = None
        self.server = PromptServer(*self._how)

    def _follow_undo(self, edit: Edit) -> None:
        """Keep count of which prompts are undone."""
        object_ = self._object
        if object_ is None:
            return
        if edit.name == REVERT or edit.origins is not None:  # the label is another one now
            self._forget()
        for each in object_.asked:
            if each.indices is edit.indices:
                each.counts, object_.in_step = not edit.undoes, False

    def _forget(self) -> None:
        if self._object is not None:
            self._object.case.editor.changed.disconnect(self._follow_undo)
        self._object = None

    # -- how it is told

    def _submit(self, name: str, work: Callable[[Callable[[], bool]], None]) -> None:
        """Do it on the queue; `work` is given what tells whether it wasn't cancelled."""
        of = self._cancelled
        self._due = [*self._due, name]
        self.changed.emit()

        def wanted() -> bool:
            return of == self._cancelled

        def run() -> None:
            try:
                work(wanted)
            except Exception as error:
                if wanted():
                    raise
                _logger.info("an answer that nobody waits for: %s", one_line(error))
            finally:
                if wanted():
                    self._due = self._due[1:]
                    self.changed.emit()

        self.queue.submit(run)

    def supports(self, kind: PromptKind) -> bool:
        """Whether a server is connected that takes this kind of prompt."""
        return self.server is not None and self.server.supports(kind)
