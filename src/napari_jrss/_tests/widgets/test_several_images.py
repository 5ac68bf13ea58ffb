"""Cases of two images in the window: chosen in the import's dialog, shown beside the scan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid
from pytestqt.qtbot import QtBot
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_jrss._tests.io.dicom_phantoms import lps_affine, save, slices
from napari_jrss._tests.io.phantoms import blobs
from napari_jrss._tests.widgets.person import Person
from napari_jrss.sample_data import make_cohort
from napari_jrss.widgets.dialogs.import_scans import ImportDialog
from napari_jrss.widgets.layers.review import IMAGE
from napari_jrss.widgets.main_widget import MainWidget


def test_series_of_a_study_are_named_before_the_import(
    dock: MainWidget, qtbot: QtBot, tmp_path: Path
) -> None:
    folder = tmp_path / "dicom"
    _write_studies(folder, {"a": ("t1 mprage", "ax flair"), "b": ("t1 mprage",)})
    (tmp_path / "groups.csv").write_text("label,name,class_id,class_name\n1,blob,1,blob\n")
    dock.session.workspace.author = "anna"
    dock.cohort.take(folder)
    dialog = dock.cohort.findChild(ImportDialog)

    def listed() -> list[str]:
        return [dialog.studies.item(i).text() for i in range(dialog.studies.count())]

    qtbot.waitUntil(lambda: listed() == ["1 x ax flair", "2 x t1 mprage"], timeout=60_000)
    dialog.series.setFocus()
    QTest.keyClicks(dialog.series, "T1=*mprage*, T2")
    qtbot.waitUntil(lambda: "no study has all images" in dialog.message.text(), timeout=60_000)
    assert listed() == ["1 x ax flair", "2 x t1 mprage"]
    assert not dialog.start.isEnabled()
    for _ in "T2":
        QTest.keyClick(dialog.series, Qt.Key.Key_Backspace)
    QTest.keyClicks(dialog.series, "FLAIR")
    qtbot.waitUntil(lambda: len(listed()) == 2 and dialog.start.isEnabled(), timeout=60_000)
    assert listed() == [
        "study in a: T1 is 't1 mprage', FLAIR is 'ax flair'",
        "Left out: study in b/0 (1 series): has no FLAIR: no series is described as *FLAIR*",
    ]
    assert [dialog.shown.itemText(i) for i in range(2)] == ["T1", "FLAIR"]
    _picture(dialog, "studies")
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.session.workspace.project is not None, timeout=60_000)
    qtbot.waitUntil(lambda: not dock.session.workspace.inference.state.busy, timeout=60_000)
    project = dock.session.workspace.open_project
    assert project.channels == ("T1", "FLAIR")
    assert len(project.cases()) == 1

    # Studies that come later need the same images, which are found by their names.
    later = tmp_path / "later"
    _write_studies(later, {"c": ("ax flair", "t1 mprage"), "d": ("ax flair",)})
    dock.cohort.add.click()
    adding = dock.cohort.findChildren(ImportDialog)[-1]
    QTest.keyClicks(adding.images.edit, str(later))
    qtbot.waitUntil(adding.start.isEnabled, timeout=60_000)
    assert [adding.studies.item(i).text() for i in range(adding.studies.count())] == [
        "study in c: T1 is 't1 mprage', FLAIR is 'ax flair'",
        "Left out: study in d/0 (1 series): has no T1: no series is described as *T1*",
    ]
    _picture(adding, "adding")
    qtbot.mouseClick(adding.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(project.cases()) == 2, timeout=60_000)
    first, second = (case.case_id for case in project.cases())
    assert project.channel_images(second).shape == project.channel_images(first).shape
    assert len(project.channel_images(second)) == 2


def _write_studies(folder: Path, studies: Mapping[str, Sequence[str]]) -> None:
    """DICOM studies of one patient each: of each, the descriptions of its series."""
    for study, kinds in studies.items():
        uid = generate_uid()
        for number, kind in enumerate(kinds):
            values = blobs().astype(np.int16) + ord(study)  # the same scan is taken only once
            made = slices(values, lps_affine(), "MR", study=uid, patient=study)
            for each in made:
                each.SeriesDescription = kind
            save(folder / study / str(number), made)


def test_two_images_are_imported_and_shown(dock: MainWidget, qtbot: QtBot, tmp_path: Path) -> None:
    make_cohort(tmp_path / "scans", 2, (16, 24, 16), structures=1, spacing_mm=6.0, flair=True)
    session = dock.session
    session.workspace.author = "anna"
    dock.cohort.take(tmp_path / "scans")
    dialog = dock.cohort.findChild(ImportDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=60_000)
    assert "2 scans, 2 with a label" in dialog.message.text()
    assert "Images of each case: FLAIR, T1" in dialog.message.text()
    assert dialog.shown.currentText() == "FLAIR"
    dialog.shown.setFocus()
    QTest.keyClick(dialog.shown, Qt.Key.Key_Down)
    assert dialog.shown.currentText() == "T1"
    qtbot.waitUntil(lambda: "Images of each case: T1, FLAIR" in dialog.message.text(), timeout=9000)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=60_000)
    _picture(dialog, "dialog")
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: session.workspace.project is not None, timeout=60_000)
    qtbot.waitUntil(lambda: not session.workspace.inference.state.busy, timeout=60_000)
    project = session.workspace.open_project
    assert project.channels == ("T1", "FLAIR")
    assert len(project.cases()) == 2

    person = Person(dock, qtbot)
    person.settle()
    session.review.open("case_001")
    person.settle()
    review, viewer = session.review, person.viewer
    flair = dock.review.other_images.layer("FLAIR")
    scan = dock.review.layers.layer(IMAGE)
    assert viewer.layers.index(flair) == viewer.layers.index(scan) + 1
    assert not flair.visible
    flair.visible = True
    other = review.other_image("FLAIR")
    assert flair.data is not None
    np.testing.assert_array_equal(flair.data, other.array)
    assert flair.data.shape[0] < scan.data.shape[0]  # its own, thicker slices
    # Both fill the same place in the world.
    middles = [np.array(layer.extent.world).mean(0) for layer in (scan, flair)]
    np.testing.assert_allclose(*middles, atol=0.01)
    sizes = [np.array(layer.data.shape) * layer.scale for layer in (scan, flair)]
    np.testing.assert_allclose(*sizes, atol=0.01)
    # The lesion of the label, drawn on T1, is what is bright in FLAIR, and not in T1.
    label = review.open_case.editor.label
    middle = np.argwhere(label == 2).mean(0)
    values = []
    for layer in (flair, scan):
        at = layer.world_to_data(scan.data_to_world(middle))
        values.append(layer.data[tuple(np.rint(at).astype(int))] / layer.contrast_limits[1])
    assert values[0] > 0.8
    dock.review.layers.look_at(tuple(middle))
    person.settle()
    _picture(dock.window(), "flair")

    flair.visible = False
    review.open("case_002")
    person.settle()
    assert flair in viewer.layers
    flair.visible = True
    np.testing.assert_array_equal(flair.data, review.other_image("FLAIR").array)
    session.close()
    person.settle()
    assert flair not in viewer.layers


def _picture(widget: object, name: str) -> None:
    """For whoever wants to see it: JRSS_PICTURES is a folder."""
    if folder := os.environ.get("JRSS_PICTURES"):
        widget.grab().save(f"{folder}/{name}.png")
