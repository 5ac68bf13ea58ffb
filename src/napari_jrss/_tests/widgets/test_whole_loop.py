"""The whole loop as a person walks it: from a folder of scans to labels, by clicks and keys.

Import, pre-train, correct, accept, train again, compare, register, export: on real scans, or on
phantoms where there are none. The training process, the project and the window are real ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QComboBox, QWidget

from napari_jrss import config
from napari_jrss._tests.widgets.dialogs import answering, choose_folder, click, retype, write
from napari_jrss._tests.widgets.person import Person
from napari_jrss._tests.widgets.test_cohort_tab import dialog_of, drop, settled
from napari_jrss.config import preset
from napari_jrss.project.project import Project
from napari_jrss.project.records import Status
from napari_jrss.sample_data import make_cohort
from napari_jrss.widgets.dialogs.import_scans import ImportDialog
from napari_jrss.widgets.layers.review import LABEL, PSEUDO
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.tables.cases import CASE

pytestmark = pytest.mark.slow

TRAINING_MS = 240_000
LABELLED = 3


def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the preset ``smoke`` is here."""
    values = preset("smoke").model_dump()
    values["segmentation"] |= {"minimum_steps": 60}
    values["registration"] |= {"minimum_steps": 10}
    values["joint"] |= {"minimum_steps": 20, "registration_epochs": 1}
    values["screening"] |= {"learned_gate": False}
    values["fine"] |= {"steps": 4}  # most of the time goes into these
    monkeypatch.setattr(config, "_SMOKE", values)


def test_from_a_folder_of_scans_to_labels(
    make_napari_viewer: Callable[..., Any],
    qtbot: QtBot,
    pytestconfig: pytest.Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On the screen, where layers are drawn: closing a project while painting crashed once.
    viewer = make_napari_viewer(show=True)
    _, dock = viewer.window.add_plugin_dock_widget("napari-jrss", "JRSS")
    few_steps(monkeypatch)
    scans, spacing_mm = tmp_path / "scans", None
    real = pytestconfig.rootpath.parent / "shared" / "data" / "hippocampus_msd"
    if real.is_dir():
        spacing_mm = 2
        for kind in ("images", "labels"):
            (scans / kind).mkdir(parents=True)
            for scan in sorted((real / kind).iterdir())[:7]:
                shutil.copy(scan, scans / kind)
    else:
        make_cohort(scans, cases=7, shape=(16, 24, 16), structures=2)
    case_id = walk(dock, qtbot, keep_labels(scans), tmp_path / "out", spacing_mm)
    # labels lie on the scan's own voxels: not one may be lost
    with Project.open(tmp_path / "scans.jrss", read_only=True) as project:
        accepted = project.table.to_source_ids(project.scan_label(case_id))
    exported = np.asarray(nib.load(tmp_path / "out" / "labels" / f"{case_id}.nii.gz").dataobj)
    for found, wanted in zip(
        np.unique(exported, return_counts=True),
        np.unique(accepted, return_counts=True),
        strict=True,
    ):
        np.testing.assert_array_equal(found, wanted)


def keep_labels(folder: Path) -> Path:
    """Leave only the first labels; the other scans have none."""
    for path in sorted((folder / "labels").iterdir())[LABELLED:]:
        path.unlink()
    return folder


def walk(
    dock: MainWidget, qtbot: QtBot, folder: Path, out: Path, spacing_mm: int | None = None
) -> str:
    """From a folder of seven scans, three of them labelled, to exported labels.

    Returns the case that was corrected.
    """
    person = Person(dock, qtbot)
    import_scans(dock, qtbot, folder, spacing_mm)
    assert "3 labelled, 4 to label, no teacher yet" in dock._heading.text()

    train(dock, qtbot, joint_rounds=0)
    assert "teacher of round 0" in dock._heading.text()

    case_id = open_by_double_click(dock, person)
    assert {case_id, PSEUDO, LABEL} < set(person.names())
    proposed = person.label.copy()
    person.stroke(1)
    painted = person.label.copy()
    assert np.count_nonzero(painted != proposed) > 0
    with answering(write("berta")):
        person.click(person.tab.accept)
    assert "4 labelled, 3 to label" in dock._heading.text()

    train(dock, qtbot, joint_rounds=1)
    assert "teacher of round 1" in dock._heading.text()
    assert dock.rounds.table.rowCount() == 2
    project = dock.session.workspace.open_project
    np.testing.assert_array_equal(project.scan_label(case_id), painted)
    assert project.case(case_id).status is Status.CORRECTED
    version = project.label_versions(case_id)[-1].version
    assert project.snapshot(1).label_versions[case_id] == version

    assert open_by_double_click(dock, person) != case_id
    assert PSEUDO in person.names()  # the second teacher's

    register(dock, qtbot, case_id)

    show(dock, dock.cohort)
    out.mkdir()
    with answering(choose_folder(out)):
        click(dock.cohort.export)
    settled(dock.cohort, qtbot)
    source = nib.load(folder / "images" / f"{case_id}.nii.gz")
    exported = nib.load(out / "labels" / f"{case_id}.nii.gz")
    assert exported.shape == source.shape
    np.testing.assert_allclose(exported.affine, source.affine, atol=1e-5)
    predicted = {path.name.removesuffix(".nii.gz") for path in (out / "predictions").glob("*.gz")}
    assert predicted >= set(project.snapshot(1).unlabelled)
    assert dock.session.close()
    return case_id


def show(dock: MainWidget, tab: QWidget) -> None:
    """Click on the title of a tab."""
    bar = dock.tabs.tabBar()
    place = bar.tabRect(dock.tabs.indexOf(tab)).center()
    QTest.mouseClick(bar, Qt.MouseButton.LeftButton, pos=place)
    assert dock.tabs.currentWidget() is tab


def import_scans(dock: MainWidget, qtbot: QtBot, folder: Path, spacing_mm: int | None) -> None:
    drop(dock, folder)
    dialog = dialog_of(dock.cohort, ImportDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=20_000)
    if spacing_mm is not None:
        for box in dialog.preparation.spacing:
            retype(box, str(spacing_mm))
        qtbot.waitUntil(lambda: ": 2 mm" in dialog.plan.buttons["fine"].text(), timeout=20_000)
        qtbot.waitUntil(dialog.start.isEnabled, timeout=20_000)
    click(dialog.start)
    qtbot.waitUntil(lambda: dock.session.workspace.project is not None, timeout=20_000)
    qtbot.waitUntil(lambda: len(dock.session.workspace.open_project.cases()) == 7, timeout=60_000)
    settled(dock.cohort, qtbot)


def train(dock: MainWidget, qtbot: QtBot, joint_rounds: int) -> None:
    tab = dock.rounds
    show(dock, tab)
    choose(tab.preset.widget, "smoke")
    choose(tab.device, "cpu")
    retype(tab.tau.widget, "0.3")
    retype(tab.rounds, str(joint_rounds))
    click(tab.start)
    runner = dock.session.workspace.training
    assert dock.session.rounds.own_process
    qtbot.waitUntil(lambda: not runner.state.busy, timeout=TRAINING_MS)
    assert runner.error is None
    qtbot.waitUntil(lambda: "Finished" in tab.status.text(), timeout=5_000)


def choose(box: Any, text: str) -> None:
    """Choose an entry of a combo box by its first letters, as the keyboard does."""
    assert isinstance(box, QComboBox)
    QTest.keyClicks(box, text)
    assert box.currentText().startswith(text)


def open_by_double_click(dock: MainWidget, person: Person) -> str:
    """Open the first case that has no label."""
    show(dock, dock.cohort)
    settled(dock.cohort, person.qtbot)
    table = dock.cohort.table
    unlabelled = dock.session.workspace.open_project.snapshot().unlabelled[0]
    rows = range(table.shown.rowCount())
    index = next(i for r in rows if (i := table.shown.index(r, CASE)).data() == unlabelled)
    table.scrollTo(index)
    place = table.visualRect(index).center()
    QTest.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=place)
    QTest.mouseDClick(table.viewport(), Qt.MouseButton.LeftButton, pos=place)
    person.settle()
    assert person.review.open_case.case_id == unlabelled
    assert dock.tabs.currentWidget() is dock.review
    return unlabelled


def register(dock: MainWidget, qtbot: QtBot, fixed: str) -> None:
    """Register a labelled case onto this one, and look at it."""
    tab = dock.registration
    show(dock, tab)
    moving = next(c for c in dock.session.workspace.open_project.snapshot().labelled if c != fixed)
    for box, case in ((tab.moving, moving), (tab.fixed, fixed)):
        box.setCurrentIndex(box.findData(case))
    click(tab.register)
    runner, queue = dock.session.workspace.inference, dock.session.pairs.queue
    qtbot.waitUntil(
        lambda: not tab._asked and not runner.state.busy and not queue.busy, timeout=60_000
    )
    qtbot.wait(100)
    pair = dock.session.pairs.pair
    assert pair is not None
    assert pair.registered.field.shape == (3, *dock.session.workspace.open_project.grid.shape)
    assert tab.layers.layer("Warped image") is not None
