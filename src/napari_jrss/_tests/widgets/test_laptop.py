"""A laptop and an ssh account: no label and no teacher, then both, without a GPU here.

The window, the prompts' server and the ``sshd`` are real processes on the loopback; the server
segments by intensity.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtWidgets import QLineEdit

import napari_jrss
from napari_jrss._tests.app import sshd
from napari_jrss._tests.app.phantoms import blocks
from napari_jrss._tests.widgets.dialogs import answering, write
from napari_jrss._tests.widgets.person import Person
from napari_jrss._tests.widgets.test_prompts_panel import connect, drag, server
from napari_jrss._tests.widgets.test_whole_loop import open_by_double_click, show, train
from napari_jrss.inference.prompts import PromptKind
from napari_jrss.io.nifti import write_nifti
from napari_jrss.io.volume import Volume
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.widgets.layers.review import PSEUDO
from napari_jrss.widgets.main_widget import MainWidget

pytest.importorskip("nnInteractive", reason="nninteractive-client is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING),
]
__all__ = ["server"]  # a fixture

SHAPE = (16, 24, 16)


def scans(folder: Path, count: int) -> Path:
    """Scans of two slabs of tissue in noise, and the names of these; no label."""
    (folder / "images").mkdir(parents=True)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 5, SHAPE)
        image = (noise + 60 * blocks(SHAPE, 2, number)).astype(np.float32)
        write_nifti(folder / "images" / f"scan_{number}.nii.gz", image, Volume(image, affine))
    rows = ["label,name,class_id,class_name", "1,lower,1,lower", "2,upper,2,upper"]
    (folder / "groups.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_the_first_label_by_prompts_then_a_teacher_from_the_other_computer(
    dock: MainWidget, qtbot: QtBot, server: str, tmp_path: Path
) -> None:
    folder = scans(tmp_path / "cohort", 4)
    path = tmp_path / "study.jrss"
    options = {"groups": folder / "groups.csv", "workers": 1}
    Project.from_folders(path, folder / "images", **options).close()

    # The first label: one click for each structure.
    dock.session.open(path)
    person = Person(dock, qtbot)
    person.settle()
    case_id = open_by_double_click(dock, person)
    person.tab.prompts.fold.expand(animate=False)
    panel = connect(person, server)
    truth = blocks(SHAPE, 2, int(case_id.removeprefix("scan_")))
    assert person.label.shape == SHAPE
    for index, z in ((1, 6), (2, 10)):
        person.viewer.dims.set_current_step(0, z)
        person.settle()
        person.tab.table.choose(index)
        if not panel.kinds[PromptKind.POINT].isChecked():
            person.click(panel.kinds[PromptKind.POINT])
        drag(person, (z, 12, 8))
    drawn = dice_per_class(person.label, truth, 3)
    assert drawn.min() > 0.8, drawn
    with answering(write("berta")):
        person.click(person.tab.accept)
    assert "1 labelled, 3 to label" in dock._heading.text()

    # The first teacher: trained behind ssh.
    def type_into(field: QLineEdit, text: str) -> None:
        field.selectAll()
        qtbot.keyClicks(field, text)

    environment = {"PYTHONPATH": str(Path(napari_jrss.__file__).parents[1])}
    environment |= {"OMP_NUM_THREADS": "1"}
    (tmp_path / "sshd").mkdir()
    with sshd.serving(tmp_path / "sshd", environment) as there:
        show(dock, dock.rounds)
        type_into(dock.rounds.run_on.lineEdit(), there.command)
        type_into(dock.rounds.remote_python, sys.executable)
        train(dock, qtbot, joint_rounds=0)
        assert not any((there.home / "napari-jrss" / "rounds").glob("*/cases"))  # no copy stays

    project = dock.session.workspace.open_project
    teacher = project.teacher
    assert teacher is not None
    assert teacher.metrics["device"] == "cpu by ssh"
    assert "teacher of round 0" in dock._heading.text()
    assert open_by_double_click(dock, person) != case_id
    assert PSEUDO in person.names()
    found = dice_per_class(
        person.label, blocks(SHAPE, 2, int(person.review.open_case.case_id[-1])), 3
    )
    assert found.min() > 0.5, found
