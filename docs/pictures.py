"""Take the pictures of the tutorial from a real window, and the animation of the README.

    xvfb-run -a -s "-screen 0 1400x900x24" python docs/pictures.py docs/images/window
    xvfb-run -a -s "-screen 0 1920x1080x24" python docs/pictures.py --states docs/images/states

The first does what docs/tutorials/first_project_window.md tells a person to do, on the same
synthetic scans, with the same buttons. The second shows each state of the window in two sizes,
light and dark.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import napari
import numpy as np
from PIL import Image
from qtpy.QtCore import QSettings
from qtpy.QtWidgets import QApplication, QDialog

from napari_jrss.app.cohort import SplitCounts
from napari_jrss.app.runner import JobRunner
from napari_jrss.sample_data import make_cohort
from napari_jrss.widgets.layers.review import LABEL
from napari_jrss.widgets.main_widget import MainWidget

WIDTH, HEIGHT = 1400, 900
LOOP = ("cohort", "rounds", "review", "corrected", "gained")
"""The pictures that make the animation, in order."""
SIZES, THEMES = ((1280, 720), (1920, 1080)), ("dark", "light")


class Pictures:
    """A window on a synthetic cohort, and the folder that its pictures go to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.viewer = napari.Viewer()
        _, dock = self.viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
        assert isinstance(dock, MainWidget)
        self.dock, self.session = dock, dock.session
        self.session.workspace.author = "A. Reader"
        self.viewer.window.resize(WIDTH, HEIGHT)

    def wait(self, done: Callable[[], bool], seconds: float = 900) -> None:
        """Let the window work until something is so."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                raise TimeoutError
            QApplication.processEvents()
            time.sleep(0.05)

    def pause(self, seconds: float) -> None:
        """Let the window draw."""
        end = time.monotonic() + seconds
        self.wait(lambda: time.monotonic() > end)

    def take(self, name: str, widget: object = None) -> None:
        """Save a picture of the window, or of a dialog."""
        self.pause(1.5)
        file = str(self.folder / f"{name}.png")
        if isinstance(widget, QDialog):
            widget.grab().save(file)
        else:
            self.viewer.screenshot(file, canvas_only=False, flash=False)
        print(name, flush=True)

    def quiet(self) -> None:
        """Wait until nothing runs in the background."""
        session = self.session
        self.pause(0.3)
        self.wait(
            lambda: (
                not (
                    session.workspace.inference.state.busy
                    or session.workspace.training.state.busy
                    or session.cohort.summaries.state.busy
                    or session.review.queue.busy
                    or session.pairs.queue.busy
                )
            )
        )
        self.pause(0.5)

    def dialog(self) -> QDialog:
        """The dialog that is open."""
        self.wait(lambda: bool(self.dialogs()), 20)
        return self.dialogs()[0]

    def dialogs(self) -> list[QDialog]:
        """All dialogs that can be seen."""
        return [d for d in self.dock.findChildren(QDialog) if d.isVisible()]

    def train(self, rounds: int, picture: str = "") -> None:
        """Fill in the form of the tab Training and press Start."""
        tab = self.dock.rounds
        self.dock.tabs.setCurrentWidget(tab)
        tab.preset.set("smoke")
        tab.rounds.setValue(rounds)
        tab.start.click()
        self.wait(lambda: self.session.workspace.training.state.busy, 30)
        if picture:
            bar = tab.bar
            self.wait(lambda: bar.maximum() > 0 and bar.value() > 0.6 * bar.maximum())
            self.take(picture)
        self.wait(lambda: not self.session.workspace.training.state.busy)
        assert self.session.workspace.training.error is None, self.session.workspace.training.error
        self.quiet()

    def run(self) -> None:
        """The whole tutorial."""
        self.take("start")
        make_cohort("scans", cases=14, shape=(32, 40, 32), structures=6)
        dock, session = self.dock, self.session
        dock.cohort.take(Path("scans"))
        dialog = self.dialog()
        self.wait(lambda: dialog.start.isEnabled(), 60)
        self.take("import", dialog)
        dialog.start.click()
        self.wait(
            lambda: (
                session.workspace.project is not None
                and len(session.workspace.open_project.cases()) == 14
            )
        )
        self.quiet()
        dialog = self.dialog()
        dialog.labelled.setValue(3)
        dialog.validation.setValue(2)
        dialog.test.setValue(3)
        self.take("split", dialog)
        dialog.start.click()
        self.quiet()
        self.train(rounds=1, picture="rounds")
        self.take("round-finished")
        dock.tabs.setCurrentWidget(dock.cohort)
        dock.cohort.predict.click()
        self.quiet()
        self.take("cohort")
        dock.cohort.next.click()
        self.wait(lambda: session.review.case is not None, 60)
        self.wait(lambda: session.review.open_case.prediction is not None, 60)
        self.quiet()
        self.middle()
        self.take("review")
        self.correct()
        self.take("corrected")
        case_id = session.review.open_case.case_id
        dock.review.accept.click()
        self.quiet()
        self.take("accepted")
        self.train(rounds=1)
        dock.tabs.setCurrentWidget(dock.cohort)
        dock.cohort.predict.click()
        self.quiet()
        self.take("gained")
        tab = dock.registration
        dock.tabs.setCurrentWidget(tab)
        moving = next(c for c in session.workspace.open_project.snapshot().labelled if c != case_id)
        for box, case in ((tab.moving, moving), (tab.fixed, case_id)):
            box.setCurrentIndex(box.findData(case))
        tab.refine.setChecked(True)
        tab.register.click()
        self.wait(lambda: session.pairs.pair is not None, 120)
        self.quiet()
        self.middle()
        self.take("registration")

    def middle(self) -> None:
        """The slice in the middle, as large as the canvas allows."""
        self.viewer.dims.set_current_step(0, int(self.viewer.dims.nsteps[0]) // 2)
        self.viewer.reset_view()

    def correct(self) -> None:
        """One correction as by an expert: the label that the split has hidden."""
        session = self.session
        case = session.review.open_case
        version = session.workspace.open_project.case(case.case_id).reference_version
        truth = session.workspace.open_project.scan_label(case.case_id, version)
        layer = self.viewer.layers[LABEL]
        wrong = np.nonzero(np.asarray(layer.data) != truth)
        with layer.block_history():  # one stroke
            layer.data_setitem(wrong, truth[wrong])
        self.quiet()


class States(Pictures):
    """The window in each of its states, every one in two sizes, light and dark."""

    def state(self, name: str) -> None:
        """Take the four pictures of the present state."""
        for width, height in SIZES:
            self.viewer.window.resize(width, height)
            self.pause(0.5)
            self.viewer.reset_view()
            for theme in THEMES:
                self.viewer.theme = theme
                self.take(f"{name}-{width}-{theme}")

    @contextmanager
    def held(self, runner: JobRunner, reached: Callable[[], bool]) -> Iterator[None]:
        """Hold a job as soon as something is so, while its pictures are taken."""
        go_on, at_it = threading.Event(), threading.Event()

        def hold(_event: object) -> None:
            if reached():
                at_it.set()
                go_on.wait()

        runner.event.connect(hold)
        try:
            self.wait(at_it.is_set)
            yield
        finally:
            go_on.set()  # at first, since a signal that is emitted can't be disconnected
            runner.event.disconnect(hold)

    def run(self) -> None:
        """From nothing to a registered pair, and an error."""
        dock, session = self.dock, self.session
        work = session.workspace
        self.state("empty")
        make_cohort("scans", cases=14, shape=(32, 40, 32), structures=6)
        dock.cohort.take(Path("scans"))
        dialog = self.dialog()
        self.wait(lambda: dialog.start.isEnabled(), 120)
        dialog.start.click()
        with self.held(work.inference, lambda: len(work.open_project.cases()) > 5):
            self.state("importing")
        self.wait(lambda: len(work.open_project.cases()) == 14)
        self.quiet()
        for each in self.dialogs():  # which offers a split
            each.reject()
        session.cohort.split(SplitCounts(0, 0, 0))
        self.quiet()
        self.state("no-label")
        session.cohort.split(SplitCounts(3, 2, 3))
        self.quiet()
        dock.tabs.setCurrentWidget(dock.rounds)
        self.state("no-teacher")
        dock.rounds.preset.set("smoke")
        dock.rounds.rounds.setValue(1)
        dock.rounds.start.click()
        bar = dock.rounds.bar
        self.wait(lambda: work.training.state.busy, 60)
        with self.held(
            work.training, lambda: bar.maximum() > 0 and 2 * bar.value() > bar.maximum()
        ):
            self.state("training")
        self.wait(lambda: not work.training.state.busy)
        assert work.training.error is None, work.training.error
        self.quiet()
        dock.tabs.setCurrentWidget(dock.review)
        dock.review.open_next.click()
        self.wait(lambda: session.review.case is not None, 60)
        self.quiet()
        self.middle()
        self.state("review")
        tab = dock.registration
        dock.tabs.setCurrentWidget(tab)
        case_id = session.review.open_case.case_id
        for box, case in (
            (tab.moving, work.open_project.snapshot().labelled[0]),
            (tab.fixed, case_id),
        ):
            box.setCurrentIndex(box.findData(case))
        tab.register.click()
        self.wait(lambda: session.pairs.pair is not None, 120)
        self.quiet()
        self.middle()
        self.state("pair")
        dock.tabs.setCurrentWidget(dock.cohort)
        broken = Path("broken.jrss")
        broken.mkdir()
        (broken / "project.sqlite").write_text("not a ledger")
        dock.cohort.open_project(broken)
        self.state("error")


def animate(folder: Path) -> None:
    """The README's animation: the steps of the loop, one picture after another."""
    frames = [Image.open(folder / f"{name}.png").convert("RGB") for name in LOOP]
    small = [frame.resize((980, round(980 * frame.height / frame.width))) for frame in frames]
    packed = [frame.quantize(128, dither=Image.Dither.NONE) for frame in small]
    packed[0].save(
        folder / "loop.gif", save_all=True, append_images=packed[1:], duration=2200, loop=0
    )


def pack(folder: Path) -> None:
    """Make the pictures smaller: a window has few colours.

    An octree keeps those of small patches, such as a structure's in the table; a median cut
    doesn't.
    """
    octree = Image.Quantize.FASTOCTREE
    for file in folder.glob("*.png"):
        picture = Image.open(file).convert("RGB")
        picture.quantize(256, octree, dither=Image.Dither.NONE).save(file, optimize=True)


@contextmanager
def settings_of_its_own(folder: Path) -> Iterator[None]:
    """Keep this machine's list of recent projects as it is."""
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder))
    yield


def main() -> None:
    states = sys.argv[1] == "--states"
    folder = Path(sys.argv[-1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work, settings_of_its_own(Path(work)):
        os.chdir(work)  # so that the pictures show no paths of this machine
        pictures = States(folder) if states else Pictures(folder)
        try:
            pictures.run()
        finally:
            pictures.session.close()
            pictures.viewer.close()
    if not states:
        animate(folder)
    pack(folder)


if __name__ == "__main__":
    main()
