"""Prompts in the tab Review: a server of nnInteractive draws what a person points at."""

from collections.abc import Callable
from urllib.parse import urlsplit

import numpy as np
from napari.viewer import Viewer
from qtpy.QtWidgets import QCheckBox, QLineEdit, QPushButton, QWidget

from napari_jrss.app.session import Session
from napari_jrss.inference.prompts import (
    ADDRESS,
    LICENCE,
    Prompt,
    PromptKind,
    client_problem,
)
from napari_jrss.widgets.controls import button, in_column, in_row, say, wrapped
from napari_jrss.widgets.forms import folded
from napari_jrss.widgets.layers.drawing import Drawing
from napari_jrss.widgets.layers.review import ReviewLayers
from napari_jrss.widgets.preferences import prompt_server, remember_prompt_server

_KINDS = {
    PromptKind.POINT: ("Point", "Click on the chosen structure", "point"),
    PromptKind.SCRIBBLE: ("Scribble", "Draw a line along the chosen structure", "path"),
    PromptKind.LASSO: ("Lasso", "Draw around the chosen structure in this slice", "path"),
    PromptKind.BOX: ("Box", "Drag a box around the chosen structure in this slice", "rectangle"),
}
_LOCAL = ("localhost", "127.0.0.1", "::1")


class PromptsPanel(QWidget):
    """Connects to a server, and turns what is drawn on the canvas into prompts.

    `chosen` gives the structure that is chosen, `do` calls a command and reports its error.
    """

    def __init__(
        self,
        viewer: Viewer,
        session: Session,
        layers: ReviewLayers,
        chosen: Callable[[], int | None],
        do: Callable[..., Callable[[], None]],
    ) -> None:
        super().__init__()
        self._prompts = session.review.prompts
        self._review, self._workspace = session.review, session.workspace
        self._layers, self._chosen, self._do = layers, chosen, do
        self.drawing = Drawing(viewer, self._drawn, self._ended)
        self._kind: PromptKind | None = None
        self.about = wrapped()
        self.address = QLineEdit(prompt_server() or ADDRESS)
        self.address.setToolTip("Address of the nnInteractive server")
        self.address.textChanged.connect(lambda _: self.show_state())
        self.key = QLineEdit(placeholderText="key, if it wants one")
        self.key.setEchoMode(QLineEdit.EchoMode.Password)
        self.key.setToolTip("What the server was started with as --api-key; it isn't stored")
        self.connect_: QPushButton = button(
            "Connect", "Connect to the server, or give the connection up", self._connect
        )
        self.kinds: dict[PromptKind, QPushButton] = {}
        for kind, (text, tip, _) in _KINDS.items():
            made = QPushButton(text, checkable=True, toolTip=f"{tip}; hold Ctrl for what isn't it")
            made.clicked.connect(lambda on=False, kind=kind: self._choose(kind if on else None))
            self.kinds[kind] = made
        self.outside = QCheckBox("Not it", toolTip="Show what isn't part of it, without Ctrl")
        self.outside.toggled.connect(lambda on: setattr(self.drawing, "inside", not on))
        self.anew: QPushButton = button(
            "Start over",
            "Forget what was shown so far; the label stays, and the next prompt begins from it",
            do(self._prompts.start_over),
        )
        self.cancel: QPushButton = button(
            "Cancel", "Don't wait for the server's answer", do(self._prompts.cancel)
        )
        self.busy = wrapped()
        self.fold = folded("Prompts (nnInteractive)")
        self.fold.setToolTip("A server draws the chosen structure from a few clicks or lines")
        inner = QWidget()
        column = in_column(
            inner,
            self.about,
            in_row(self.address, self.key, self.connect_, stretch=(3, 2)),
            in_row(*self.kinds.values(), self.outside, stretch=(1, 1, 1, 1)),
            in_row(self.busy, self.anew, self.cancel, stretch=(1,)),
        )
        column.setContentsMargins(6, 0, 6, 4)
        column.setSpacing(4)
        self.fold.addWidget(inner)
        in_column(self, self.fold).setContentsMargins(0, 0, 0, 0)
        self.show_state()

    def show_state(self) -> None:
        """Show whether a server is connected, and what it is asked for."""
        server, problem = self._prompts.server, client_problem()
        working = self._prompts.working
        project, case = self._workspace.project, self._review.case
        writable = project is not None and not project.read_only
        ready = server is not None and case is not None and writable
        for kind, made in self.kinds.items():
            made.setEnabled(ready and self._prompts.supports(kind))
        for each in (self.outside, self.anew):
            each.setEnabled(ready)
        if not ready:
            self.drawing.end()
        self.address.setEnabled(server is None)
        self.key.setVisible(server is None)
        self.connect_.setText("Connect" if server is None else "Disconnect")
        self.connect_.setEnabled(not problem and not (server is None and working))
        self.cancel.setEnabled(bool(working))
        say(self.busy, f"{working[:1].upper()}{working[1:]} …" if working else "")
        if problem:
            self.about.setText(f"{problem}\n{LICENCE}")
        elif server is None:
            self.about.setText(f"{LICENCE} {self._where()}")
        else:
            use = ": no commercial use" if "NC" in server.licence else ""
            self.about.setText(f"{server.name}. Licence of its weights: {server.licence}{use}.")

    def case_shown(self) -> None:
        """Another case, or none, is on the canvas: draw on its label."""
        kind, self._kind = self._kind, None
        self.drawing.end()
        self.show_state()
        if kind is not None and self.kinds[kind].isEnabled():
            self._choose(kind)

    def close_drawing(self) -> None:
        """Let go of the canvas."""
        self.drawing.end()

    def _where(self) -> str:
        host = urlsplit(self.address.text()).hostname or ""
        if host in _LOCAL:
            return "The scan is sent to that server, on this computer."
        return "The scan leaves this computer, without names: it is sent to that server."

    def _connect(self) -> None:
        if self._prompts.server is not None:
            self._do(self._prompts.disconnect)()
            return
        address = self.address.text().strip()
        remember_prompt_server(address)
        self._do(self._prompts.connect, address, self.key.text().strip())()

    def _choose(self, kind: PromptKind | None) -> None:
        self.drawing.end()
        label = self._layers.label
        if kind is not None and label is not None:
            self._kind = kind
            self.drawing.begin(label, _KINDS[kind][2])
        self._show_kind()

    def _ended(self) -> None:
        self._kind = None
        self._show_kind()

    def _show_kind(self) -> None:
        for kind, made in self.kinds.items():
            made.setChecked(kind is self._kind)

    def _drawn(self, points: np.ndarray, axis: int, inside: bool) -> None:
        case, kind, index = self._review.case, self._kind, self._chosen()
        if case is None or kind is None or index is None:
            return
        shape = case.image.shape
        prompt: Prompt | None
        if kind is PromptKind.POINT:
            prompt = Prompt.point(points[-1], inside=inside)
        elif kind is PromptKind.BOX:
            low, high = np.zeros(3), np.array(shape) - 1
            prompt = Prompt.rectangle(np.clip(points, low, high), axis, inside=inside)
        elif kind is PromptKind.SCRIBBLE:
            server = self._prompts.server
            width = 2.0 if server is None else server.scribble_width
            prompt = Prompt.scribble(points, axis, shape, width=width, inside=inside)
        else:
            prompt = Prompt.lasso(points, axis, shape, inside=inside)
        if prompt is not None:
            self._do(self._prompts.ask, index, prompt)()
