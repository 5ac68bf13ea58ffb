"""From scans to pseudo-labels in the window: ``napari examples/lpba_demo.py``.

With the folder of LPBA40 in the variable NAPARI_JRSS_LPBA40, the cohort is its 40 brains with the
paper's ten structures; without it, synthetic brains with the same ten. Five cases keep their
label, the pre-training starts in the background, and the first pseudo-labels open for review.

The project is kept in NAPARI_JRSS_DEMO (by default ``demo/window`` in the current folder), and a
second start goes on with it. With a folder in NAPARI_JRSS_SCREENSHOTS the demo runs by itself: it
takes pictures, corrects one case as an expert would, runs a joint round, and ends.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import napari
import numpy as np
from qtpy.QtCore import QTimer

from napari_jrss.app.cohort import SplitCounts
from napari_jrss.app.runner import JobState
from napari_jrss.app.session import Session
from napari_jrss.config import PreprocessingConfig, TrainingConfig, preset
from napari_jrss.project.importing import ScanFolders, groups_file_of, look_into
from napari_jrss.project.records import RoundOutcome
from napari_jrss.sample_data import make_cohort
from napari_jrss.widgets.bridge import Relay
from napari_jrss.widgets.layers.review import LABEL
from napari_jrss.widgets.main_widget import MainWidget

LPBA40 = os.environ.get("NAPARI_JRSS_LPBA40", "")
FOLDER = Path(os.environ.get("NAPARI_JRSS_DEMO", "demo/window")).absolute()
SCREENSHOTS = os.environ.get("NAPARI_JRSS_SCREENSHOTS", "")
SYNTHETIC_CASES = 20


def cohort() -> tuple[ScanFolders, PreprocessingConfig, SplitCounts, TrainingConfig]:
    """Where the scans are, and what suits them and this machine."""
    if LPBA40:
        import torch

        # The paper's field of view; on a CPU at half its resolution.
        fine = torch.cuda.is_available()
        shape, spacing = ((160, 192, 160), 1.0) if fine else ((80, 96, 80), 2.0)
        config = PreprocessingConfig(shape=shape, spacing_mm=(spacing,) * 3, crop="foreground")
        return ScanFolders(Path(LPBA40)), config, SplitCounts(5, 2, 10), preset("fast")
    folder = FOLDER / "synthetic_cohort"
    if not (folder / "groups.csv").exists():
        make_cohort(folder, SYNTHETIC_CASES, (32, 40, 32))
    source = ScanFolders(folder, groups=groups_file_of(folder))
    return source, PreprocessingConfig(), SplitCounts(5, 2, 4), for_synthetic_brains()


def for_synthetic_brains() -> TrainingConfig:
    """As much training as fits into a minute and a half of four cores."""
    settings = preset("smoke").model_dump()
    settings["segmentation"]["minimum_steps"] = 250
    settings["registration"]["minimum_steps"] = 60
    return TrainingConfig.model_validate(settings)


class Demo:
    """Each step begins when the session says that the one before has ended."""

    def __init__(self, viewer: napari.Viewer, dock: MainWidget) -> None:
        self.viewer, self.dock, self.session = viewer, dock, dock.session
        self.session.workspace.author = self.session.workspace.author or "demo"
        self.started = time.monotonic()
        self.source, self.preprocessing, self.sizes, self.training = cohort()
        self.shown: set[str] = set()
        relay = Relay(dock)
        relay.connect(self.session.workspace.inference.state_changed, self.imported)
        relay.connect(self.session.workspace.rounds_changed, self.trained)
        relay.connect(self.session.review.case_changed, self.reviewing)
        relay.connect(self.session.review.prediction.changed, self.reviewing)
        dock.destroyed.connect(relay.disconnect_all)

    def begin(self) -> None:
        """Make the project, or go on with the one of an earlier start."""
        path = FOLDER / ("lpba40.jrss" if LPBA40 else "synthetic.jrss")
        if path.exists():
            self.dock.cohort.open_project(path)
            self.train_or_review()
            return
        *_, found = look_into(self.source, self.preprocessing)
        assert found.table is not None
        self.say("The scans are read in the background.")
        self.session.make_project(path, found.cohort, found.table, self.preprocessing)

    def imported(self, state: JobState) -> None:
        """Hide all labels but five, and start the pre-training."""
        project = self.session.workspace.project
        if state is not JobState.FINISHED or project is None or project.rounds():
            return
        self.session.cohort.split(self.sizes)
        self.train_or_review()

    def train_or_review(self) -> None:
        """Go on where the project stands: train, resume, or review."""
        if self.session.workspace.open_project.teacher is not None:
            self.review()
        elif self.session.rounds.resumable:
            self.session.rounds.resume()
        else:
            self.session.rounds.start(self.training, rounds=0)
            self.say(
                "Both networks learn from five labelled scans; Training shows how far they are and "
                "how long it takes. The first pseudo-labels open by themselves."
            )
        self.picture("1-cohort", after=3000)

    def trained(self) -> None:
        """The teacher is there, or is another one."""
        project = self.session.workspace.project
        done = [] if project is None else project.rounds()
        if not done or done[-1].outcome is not RoundOutcome.FINISHED:
            return
        if len(done) == 1:
            self.review()
        elif SCREENSHOTS:
            self.end()

    def review(self) -> None:
        """Put the case on the table that the suggestion names."""
        suggestion = self.session.cohort.suggest()
        if suggestion is not None:
            self.session.review.open(suggestion.case_id)

    def reviewing(self) -> None:
        """Say that the first pseudo-labels are on the screen."""
        case = self.session.review.case
        if case is None or case.prediction is None or "reviewing" in self.shown:
            return
        self.shown.add("reviewing")
        seconds = time.monotonic() - self.started
        print(f"pseudo-labels on the screen after {seconds:.0f} s")
        self.say(
            "This is the teacher's proposal. Mend what is wrong with napari's brush, press Accept, "
            "then Start on the tab Training: the next teacher learns from your correction."
        )
        self.picture("2-pseudo-labels", after=1500)
        if SCREENSHOTS:
            QTimer.singleShot(3000, self.correct)

    # -- by itself, with NAPARI_JRSS_SCREENSHOTS

    def correct(self) -> None:
        """One correction, as by an expert: the label that the split has hidden."""
        session = self.session
        case = session.review.open_case
        self.dice_before = mean_dice(session)
        version = session.workspace.open_project.case(case.case_id).reference_version
        truth = session.workspace.open_project.label(case.case_id, version)
        layer = self.viewer.layers[LABEL]
        wrong = np.nonzero(np.asarray(layer.data) != truth)
        layer.data_setitem(wrong, truth[wrong])  # as the brush does it
        QTimer.singleShot(2000, self.accept)

    def accept(self) -> None:
        """Make the correction a label version."""
        self.picture("3-corrected", after=0)
        self.session.review.accept()
        QTimer.singleShot(2000, self.next_round)

    def next_round(self) -> None:
        """Start a joint round, which learns from the correction."""
        self.dock.tabs.setCurrentWidget(self.dock.rounds)
        self.session.rounds.start(self.training, rounds=1)
        self.picture("4-round", after=8000)

    def end(self) -> None:
        """Print what the round gained, show the next case, and close the window."""
        after = mean_dice(self.session)
        print(f"mean Dice of the pseudo-labels: {self.dice_before:.3f} before, {after:.3f} after")
        self.picture("5-second-teacher", after=1000)
        QTimer.singleShot(2000, self.review)
        self.picture("6-next-case", after=6000)
        QTimer.singleShot(8000, self.viewer.close)

    def say(self, line: str) -> None:
        """Show a line below the tabs."""
        self.session.workspace.notified.emit(line)

    def picture(self, name: str, after: int) -> None:
        """Save a picture of the window, so many milliseconds from now."""
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.viewer.window.resize(1600, 1000)
            file = Path(SCREENSHOTS, f"{name}.png")
            QTimer.singleShot(
                after, lambda: self.viewer.screenshot(str(file), canvas_only=False, flash=False)
            )


def mean_dice(session: Session) -> float:
    """Mean Dice of the teacher's labels with those that the split has hidden."""
    session.cohort.summarise()
    session.cohort.summaries.wait(60)
    dice = [row.figures.dice for row in session.cohort.rows() if row.figures is not None]
    return float(np.mean([value for value in dice if value is not None]))


def main() -> None:
    """Open the window with the dock, and begin."""
    viewer = napari.Viewer()
    _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    Demo(viewer, dock).begin()
    napari.run()


if __name__ == "__main__":
    main()
