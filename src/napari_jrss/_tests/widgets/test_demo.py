"""The demo in small, from scans to the second teacher: ``napari examples/lpba_demo.py``."""

from __future__ import annotations

import gzip
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nibabel as nib
import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QSettings

from napari_jrss.app.cohort import SplitCounts
from napari_jrss.app.runner import JobState
from napari_jrss.config import PreprocessingConfig, TrainingConfig, preset
from napari_jrss.labels import LPBA40_GROUPS
from napari_jrss.project.importing import ScanFolders
from napari_jrss.sample_data import make_case, make_cohort
from napari_jrss.widgets.main_widget import MainWidget

pytestmark = pytest.mark.slow


@pytest.fixture
def demo_script(pytestconfig: pytest.Config, tmp_path: Path) -> ModuleType:
    """The script as a module, with a folder of its own."""
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
    QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(tmp_path))
    return script


def small_cohort(
    folder: Path,
) -> tuple[ScanFolders, PreprocessingConfig, SplitCounts, TrainingConfig]:
    make_cohort(folder / "scans", cases=6, shape=(16, 16, 16), structures=2)
    settings = preset("smoke").model_dump()
    for task in ("segmentation", "registration"):
        settings[task]["minimum_steps"] = 4
    settings["joint"] |= {"segmentation_epochs": 1, "registration_epochs": 1, "minimum_steps": 1}
    settings["screening"] |= {"tau": 0.05, "learned_gate": False}
    training = TrainingConfig.model_validate(settings)
    return ScanFolders(folder / "scans"), PreprocessingConfig(), SplitCounts(2, 1, 1), training


def write_like_lpba40(folder: Path, cases: int) -> None:
    """Synthetic brains under the names, in the two files and with the label ids of LPBA40."""
    ids = np.array([0, *(min(c.source_ids) for c in LPBA40_GROUPS.classes[1:])], np.uint8)
    affine = np.diag([8.0, 8.0, 8.0, 1.0])
    for index in range(cases):
        brain, name = make_case(index, (20, 20, 20)), f"S{index + 1:02d}"
        below = folder / "delineation_space" / name
        below.mkdir(parents=True)
        for kind, array in (
            ("skullstripped", (100 * (brain.image - brain.image.min())).astype(np.int16)),
            ("structure.label", ids[brain.labels]),
        ):
            header = below / f"{name}.delineation.{kind}.hdr"
            nib.Nifti1Pair(array.T, affine).to_filename(header)
            voxels = header.with_suffix(".img")
            voxels.with_suffix(".img.gz").write_bytes(gzip.compress(voxels.read_bytes()))
            voxels.unlink()


def test_lpba40_becomes_the_papers_project(
    dock: MainWidget, qtbot: QtBot, demo_script: ModuleType, tmp_path: Path
) -> None:
    write_like_lpba40(tmp_path / "LPBA40", cases=18)
    demo_script.LPBA40 = str(tmp_path / "LPBA40")
    session = dock.session
    demo_script.Demo(dock.cohort._viewer, dock).begin()
    qtbot.waitUntil(lambda: session.workspace.training.state.busy, timeout=90_000)
    project = session.workspace.open_project
    assert project.table.names == LPBA40_GROUPS.names
    cases = project.cases()
    assert Counter(str(case.split) for case in cases) == {"train": 6, "validation": 2, "test": 10}
    labelled = [case.case_id for case in cases if case.labelled]
    assert len(labelled) == 5
    assert set(np.unique(project.label(labelled[0]))) == set(range(11))
    assert project.grid.shape in ((80, 96, 80), (160, 192, 160))
    qtbot.waitUntil(lambda: "5 labelled, 1 to label" in dock._heading.text())
    assert session.close()


def test_from_scans_to_the_second_teacher(
    dock: MainWidget,
    qtbot: QtBot,
    demo_script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    demo_script.cohort = lambda: small_cohort(tmp_path)
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
    assert "2 labelled, 2 to label" in dock._heading.text()
    assert demo_script.mean_dice(session) >= 0

    corrected = session.review.open_case.case_id
    demo.correct()  # then accepts, and runs a round
    until(
        lambda: (
            session.workspace.open_project.teacher is not None and len(session.rounds.history()) > 1
        )
    )
    until(lambda: session.workspace.training.state is JobState.FINISHED)
    assert session.workspace.open_project.case(corrected).status == "corrected"
    assert sum(case.labelled for case in session.workspace.open_project.cases()) == 3
    assert session.workspace.training.error is None
    assert session.workspace.open_project.teacher is not None
    assert session.workspace.open_project.teacher.number == 1
    assert session.close()
