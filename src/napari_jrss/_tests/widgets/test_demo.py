"""The demo in small, from scans to the second teacher: ``napari examples/lpba_demo.py``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QSettings

from napari_jrss.config import PreprocessingConfig, TrainingConfig, preset
from napari_jrss.sample_data import make_cohort
from napari_jrss.session.cohort import SplitSizes
from napari_jrss.session.importing import Source
from napari_jrss.session.runner import JobState
from napari_jrss.widgets.main_widget import MainWidget


@pytest.fixture
def demo_script(pytestconfig: pytest.Config, tmp_path: Path) -> ModuleType:
    """The script as a module, its cohort and its training in small."""
    path = pytestconfig.rootpath / "examples" / "lpba_demo.py"
    if not path.is_file():
        pytest.skip("examples/ belongs to a checkout")
    spec = importlib.util.spec_from_file_location("lpba_demo", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.FOLDER = tmp_path
    script.SCREENSHOTS = ""
    script.cohort = lambda: small_cohort(tmp_path)
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(tmp_path))
    return script


def small_cohort(folder: Path) -> tuple[Source, PreprocessingConfig, SplitSizes, TrainingConfig]:
    make_cohort(folder / "scans", cases=6, shape=(16, 16, 16), structures=2)
    settings = preset("smoke").model_dump()
    for task in ("segmentation", "registration"):
        settings[task]["minimum_steps"] = 4
    settings["joint"] |= {"segmentation_epochs": 1, "registration_epochs": 1}
    settings["screening"] |= {"tau": 0.05, "learned_gate": False}
    training = TrainingConfig.model_validate(settings)
    return Source(folder / "scans"), PreprocessingConfig(), SplitSizes(2, 1, 1), training


def test_from_scans_to_the_second_teacher(
    dock: MainWidget, qtbot: QtBot, demo_script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    session = dock.session
    session.rounds.own_process = False
    demo = demo_script.Demo(dock.cohort._viewer, dock)
    demo.begin()

    def until(condition: Callable[[], bool]) -> None:
        qtbot.waitUntil(condition, timeout=90_000)

    until(lambda: "reviewing" in demo.shown)
    assert "pseudo-labels on the screen after" in capsys.readouterr().out
    assert dock.tabs.currentWidget() is dock.review
    until(lambda: "press Accept" in dock._message.text())
    assert "N = 2 labelled, J = 2 unlabelled" in dock._heading.text()
    assert demo_script.mean_dice(session) >= 0

    corrected = session.review.on_table.case_id
    demo.correct()  # then accepts, and runs a round
    until(lambda: session.open_project.teacher is not None and len(session.rounds.history()) > 1)
    until(lambda: session.training.state is JobState.FINISHED)
    assert session.open_project.case(corrected).status == "corrected"
    assert sum(case.labelled for case in session.open_project.cases()) == 3
    assert session.training.error is None
    assert session.open_project.teacher is not None
    assert session.open_project.teacher.number == 1
    assert session.close()
