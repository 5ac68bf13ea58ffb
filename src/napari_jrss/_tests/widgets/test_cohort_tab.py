"""The tab Cohort as a person uses it: folders, dialogs, clicks and keys in a real window."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QDialog, QPushButton

from napari_jrss._tests.widgets.dialogs import answering, choose_folder, click
from napari_jrss.io.predictions import prediction_path
from napari_jrss.project.export.labels import export_label_files
from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_cohort
from napari_jrss.widgets.dialogs.choose_structures import ChooseStructures
from napari_jrss.widgets.dialogs.cohort import ProblemsDialog, SplitDialog, StructuresDialog
from napari_jrss.widgets.dialogs.import_scans import ImportDialog
from napari_jrss.widgets.dialogs.plan import PlanDialog
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.preferences import recent_projects
from napari_jrss.widgets.tables.cases import CASE, CONFIDENCE, DICE, LABEL
from napari_jrss.widgets.tabs.cohort import CohortTab


@pytest.fixture
def tab(dock: MainWidget) -> Iterator[CohortTab]:
    """The tab, and at the end no job and no dialog left."""
    yield dock.cohort
    for dialog in dock.cohort.findChildren(QDialog):
        dialog.reject()
    dock.session.close()


def settled(tab: CohortTab, qtbot: QtBot) -> None:
    """Wait until nothing is looked at any more and the window shows it."""
    session = tab._session

    def case_summarised() -> bool:
        cohort = session.cohort
        busy = cohort.summaries.state.busy or session.workspace.inference.state.busy
        return not busy and all(cohort.appearance(r.case_id) or r.problem for r in cohort.rows())

    qtbot.wait(50)
    qtbot.waitUntil(case_summarised, timeout=60_000)
    qtbot.wait(300)  # the table is redrawn five times a second


def shown(tab: CohortTab, column: int = CASE) -> list[str]:
    proxy = tab.table.shown
    return [proxy.index(row, column).data() for row in range(proxy.rowCount())]


def dialog_of(tab: CohortTab, kind: type[Any]) -> Any:
    dialog = tab.findChild(kind)
    assert dialog is not None
    return dialog


def drop(dock: MainWidget, folder: Path) -> None:
    """A folder is dropped on the dock."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(folder))])
    buttons, keys = Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    dock.dropEvent(QDropEvent(QPointF(5, 5), Qt.DropAction.CopyAction, data, buttons, keys))


def few_labels(folder: Path) -> Path:
    """Eight scans of which three are labelled, and one that is none."""
    make_cohort(folder, cases=8, shape=(16, 24, 16), structures=2)
    for number in range(4, 9):
        (folder / "labels" / f"case_00{number}.nii.gz").unlink()
    (folder / "images" / "case_008.nii.gz").write_bytes(b"no scan")
    return folder


def test_two_clicks_from_a_folder_to_a_project(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, tmp_path: Path
) -> None:
    folder = few_labels(tmp_path / "scans")
    drop(dock, folder)
    dialog = dialog_of(tab, ImportDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=10_000)
    text = dialog.message.text()
    assert "8 scans, 3 with a label" in text
    assert "2 structures: frontal, parietal" in text
    assert "16 x 24 x 16 voxels" in dialog.plan.buttons["balanced"].text()
    assert "as small as the scans' own" in dialog.plan.reasons.text()
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: tab._workspace.inference.state.busy, timeout=5_000)
    settled(tab, qtbot)
    assert (tmp_path / "scans.jrss" / "project.sqlite").is_file()
    assert len(shown(tab)) == 7
    assert shown(tab, LABEL).count("manual") == 3
    assert "3 labelled, 4 to label" in dock._heading.text()
    assert tab.problems.text() == "Problems (1)"
    assert tab.findChild(SplitDialog) is None  # few labels: all of them train
    qtbot.mouseClick(tab.problems, Qt.MouseButton.LeftButton)
    problems = dialog_of(tab, ProblemsDialog)
    assert problems.table.item(0, 0).text() == "case_008"
    assert "case_008.nii.gz" in problems.table.item(0, 1).text()


def test_structures_are_ticked_and_joined_at_the_import(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, tmp_path: Path
) -> None:
    folder = make_cohort(tmp_path / "scans", cases=2, shape=(16, 24, 16), structures=4)
    names = ["left a", "right a", "b", "c"]
    rows = "".join(f"{i},{name}\n" for i, name in enumerate(names, start=1))
    (folder / "groups.csv").write_text(f"label,name\n{rows}")
    tab.take(folder)
    dialog = dialog_of(tab, ImportDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=20_000)
    qtbot.mouseClick(dialog.choose, Qt.MouseButton.LeftButton)
    structures = dialog_of(dialog, ChooseStructures)
    qtbot.mouseClick(structures.pairs, Qt.MouseButton.LeftButton)
    qtbot.keyClicks(structures.filter, "c")
    qtbot.mouseClick(structures.none, Qt.MouseButton.LeftButton)
    assert "2 structures, of 4 found" in structures.message.text()
    qtbot.mouseClick(structures.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "2 structures: a, b" in dialog.message.text(), timeout=20_000)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=20_000)
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(shown(tab)) == 2, timeout=60_000)
    settled(tab, qtbot)
    project = tab._workspace.open_project
    assert project.table.names == ("background", "a", "b")
    assert project.table.classes[1].source_ids == (1, 2)


def test_another_training_grid_is_chosen_in_the_window(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    dock.cohort.open_project(taught)
    settled(tab, qtbot)
    project = tab._workspace.open_project
    (case, *_) = (c.case_id for c in project.cases() if c.label_version)
    before, label = project.grid, project.scan_label(case)
    assert project.teacher is not None
    tab.open_case(case)
    qtbot.mouseClick(tab.plan, Qt.MouseButton.LeftButton)
    dialog = dialog_of(tab, PlanDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=20_000)
    assert "voxels; about" in dialog.choice.buttons["fine"].text()
    qtbot.mouseClick(dialog.choice.buttons["quick"], Qt.MouseButton.LeftButton, pos=QPoint(8, 8))
    assert dialog.choice.plan is not None
    assert dialog.choice.plan.level == "quick"
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: project.plan is not None, timeout=60_000)
    settled(tab, qtbot)
    assert project.plan is not None
    assert project.plan.level == "quick"
    assert project.grid.spacing_mm == before.spacing_mm
    assert np.array_equal(project.scan_label(case), label)
    assert project.teacher is None
    assert tab.findChild(PlanDialog) is None


def test_where_every_scan_has_a_label_a_split_is_offered(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, tmp_path: Path
) -> None:
    make_cohort(tmp_path / "scans", cases=10, shape=(16, 16, 16), structures=1)
    tab.take(tmp_path / "scans")
    dialog = dialog_of(tab, ImportDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=10_000)
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: tab.findChild(SplitDialog) is not None, timeout=60_000)
    split = dialog_of(tab, SplitDialog)
    assert (split.labelled.value(), split.validation.value(), split.test.value()) == (5, 2, 2)
    split.test.setValue(9)
    qtbot.mouseClick(split.start, Qt.MouseButton.LeftButton)
    assert "more labelled cases than there are" in split.message.text()
    split.test.setValue(2)
    qtbot.mouseClick(split.start, Qt.MouseButton.LeftButton)
    settled(tab, qtbot)
    assert "5 labelled, 1 to label" in dock._heading.text()


def test_a_folder_without_scans_says_so(tab: CohortTab, qtbot: QtBot, tmp_path: Path) -> None:
    tab.take(tmp_path)
    dialog = dialog_of(tab, ImportDialog)
    qtbot.waitUntil(lambda: "no scans" in dialog.message.text(), timeout=10_000)
    assert not dialog.start.isEnabled()


def test_settings_that_can_not_be_are_told(tab: CohortTab, qtbot: QtBot, tmp_path: Path) -> None:
    tab.take(few_labels(tmp_path / "scans"))
    dialog = dialog_of(tab, ImportDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=10_000)
    dialog.preparation.spacing[0].setValue(2)
    qtbot.waitUntil(lambda: "spacing_mm" in dialog.message.text(), timeout=5_000)
    assert not dialog.start.isEnabled()


def test_the_table_shows_sorts_and_filters(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    cases = [case.case_id for case in dock.session.workspace.open_project.cases()]
    assert shown(tab) == cases
    confidence = shown(tab, CONFIDENCE)
    assert any(confidence)
    tab.table.sortByColumn(CONFIDENCE, Qt.SortOrder.DescendingOrder)
    known = [float(text) for text in shown(tab, CONFIDENCE) if text]
    assert known == sorted(known, reverse=True)
    assert len(known) == len([text for text in confidence if text])
    assert any(shown(tab, DICE))  # hidden labels are there to measure by
    tab.table.sortByColumn(CASE, Qt.SortOrder.AscendingOrder)
    tab.group.setCurrentText("Labelled")
    labelled = [
        case.case_id for case in dock.session.workspace.open_project.cases() if case.labelled
    ]
    assert shown(tab) == labelled
    QTest.keyClicks(tab.filter, labelled[-1].upper())
    assert shown(tab) == [labelled[-1]]


def test_every_case_has_its_thumbnail(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    model = tab.table.cases
    icons = [
        model.index(row, CASE).data(Qt.ItemDataRole.DecorationRole)
        for row in range(model.rowCount())
    ]
    assert all(icon is not None and not icon.isNull() for icon in icons)


def test_another_project_with_cases_of_the_same_names_shows_its_own_thumbnails(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(taught, tmp_path / "other.jrss"))
    with Project.open(other) as project:
        ids = [case.case_id for case in project.cases()]
        # each case has the scan of the next one
        paths = [project.case_path(case_id) for case_id in ids]
    for path in paths:
        path.rename(path.with_suffix(".moved"))
    for path, source in zip(paths, [*paths[1:], paths[0]], strict=True):
        source.with_suffix(".moved").rename(path)

    def pictures() -> list[Any]:
        proxy = tab.table.shown
        icons = [proxy.index(row, CASE).data(Qt.ItemDataRole.DecorationRole) for row in range(10)]
        return [icon.pixmap(64).toImage() for icon in icons]

    dock.cohort.open_project(taught)
    settled(tab, qtbot)
    first = pictures()
    dock.cohort.open_project(other)
    settled(tab, qtbot)
    assert pictures() == [*first[1:], first[0]]
    dock.cohort.open_project(taught)
    settled(tab, qtbot)
    assert pictures() == first


def test_thumbnails_show_anterior_up_and_the_left_on_the_right(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, tmp_path: Path
) -> None:
    """A bright block at the patient's left front, in files of four orientations."""
    (tmp_path / "scans" / "labels").mkdir(parents=True)
    rng = np.random.default_rng(0)
    ras = rng.integers(1, 30, (16, 16, 16)).astype(np.int16)
    ras[:5, 11:, :] = 900  # low x is left in RAS, high y anterior
    for number, orientation in enumerate(("RAS", "LPS", "PIR", "SAL")):
        # The same voxels in two files would be one scan.
        image = nib.Nifti1Image(ras + np.int16(number), np.diag([2, 2, 2, 1]))
        turn = nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine),
            nib.orientations.axcodes2ornt(orientation),
        )
        (tmp_path / "scans" / "images").mkdir(exist_ok=True)
        for kind, data in (
            ("images", image),
            ("labels", nib.Nifti1Image((ras > 99) * np.uint8(1), image.affine)),
        ):
            nib.save(data.as_reoriented(turn), tmp_path / "scans" / kind / f"s{number}.nii.gz")
    tab.take(tmp_path / "scans")
    dialog = dialog_of(tab, ImportDialog)
    qtbot.waitUntil(dialog.start.isEnabled, timeout=10_000)
    qtbot.mouseClick(dialog.start, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(shown(tab)) == 4, timeout=60_000)
    settled(tab, qtbot)
    model = tab.table.cases
    for row in range(4):
        icon = model.index(row, CASE).data(Qt.ItemDataRole.DecorationRole)
        image = icon.pixmap(40, 40).toImage()
        right, bottom = image.width() - 4, image.height() - 4
        assert image.pixelColor(right, 4).lightness() > 200
        for x, y in ((4, 4), (4, bottom), (right, bottom)):
            assert image.pixelColor(x, y).lightness() < 60


def test_a_double_click_and_enter_open_a_case_for_review(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    index = tab.table.shown.index(2, CASE)
    place = tab.table.visualRect(index).center()
    viewport = tab.table.viewport()
    qtbot.mouseClick(viewport, Qt.MouseButton.LeftButton, pos=place)
    qtbot.mouseDClick(viewport, Qt.MouseButton.LeftButton, pos=place)
    review = dock.session.review
    qtbot.waitUntil(lambda: review.case is not None, timeout=10_000)
    assert review.case is not None
    assert review.case.case_id == shown(tab)[2]
    qtbot.waitUntil(lambda: dock.tabs.currentWidget() is dock.review, timeout=5_000)
    dock.tabs.setCurrentWidget(tab)
    tab.table.selectRow(3)
    qtbot.keyClick(tab.table, Qt.Key.Key_Return)
    qtbot.waitUntil(
        lambda: review.case is not None and review.case.case_id == shown(tab)[3], timeout=10_000
    )


def test_the_suggestion_is_said_and_opened(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    suggestion = dock.session.cohort.suggest()
    assert suggestion is not None
    assert suggestion.case_id in tab.suggestion.text()
    assert suggestion.reason[5:] in tab.suggestion.text()
    qtbot.mouseClick(tab.next, Qt.MouseButton.LeftButton)
    review = dock.session.review
    qtbot.waitUntil(lambda: review.case is not None, timeout=10_000)
    assert review.case is not None
    assert review.case.case_id == suggestion.case_id


def test_names_and_colours_are_edited(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    qtbot.mouseClick(tab.structures, Qt.MouseButton.LeftButton)
    dialog = dialog_of(tab, StructuresDialog)
    dialog.table.item(0, 1).setText("frontal lobe")
    dialog.recolour(1, "#123456")
    table = dock.session.workspace.open_project.table
    assert table.names[1] == "frontal lobe"
    assert table.classes[2].colour == "#123456"
    dialog.table.item(0, 1).setText(table.names[2])
    assert "another structure" in dialog.message.text()
    assert dialog.table.item(0, 1).text() == "frontal lobe"


def test_labels_are_exported_to_a_folder_that_is_chosen(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path, tmp_path: Path
) -> None:
    assert not tab.export.isEnabled()
    drop(dock, taught)
    settled(tab, qtbot)
    (tmp_path / "out").mkdir()
    with answering(choose_folder(tmp_path / "out")) as asked:
        click(tab.export)
    assert asked == ["Folder for the labels"]
    settled(tab, qtbot)
    project = dock.session.workspace.open_project
    labelled = {case.case_id for case in project.cases() if case.label_version}
    for folder, cases in (
        ("labels", labelled),
        ("predictions", {c.case_id for c in project.cases()}),
    ):
        files = (tmp_path / "out" / folder).glob("*.nii.gz")
        assert {path.name.removesuffix(".nii.gz") for path in files} == cases
    assert f"labels are in {tmp_path / 'out'}" in dock._message.text()


def test_labels_that_were_corrected_elsewhere_are_brought_back(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path, tmp_path: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    dock.session.workspace.author = "A. Reader"
    project = dock.session.workspace.open_project
    case = next(case.case_id for case in project.cases() if case.label_version)
    for path in export_label_files(project, tmp_path / "out"):
        if path.name != f"{case}.nii.gz":
            path.unlink()
    with answering(choose_folder(tmp_path / "out")) as asked:
        click(tab.bring)
    assert asked == ["Folder of labels"]
    settled(tab, qtbot)
    assert project.label_versions(case)[-1].author == "A. Reader"
    assert "1 labels are new versions" in dock._message.text()


def test_a_project_that_another_holds_opens_read_only(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    with Project.open(taught) as project:
        assert project.teacher is not None
        case_id = project.cases()[0].case_id
        shutil.rmtree(prediction_path(project.teacher.files.predictions, case_id))
        drop(dock, taught)
        settled(tab, qtbot)
        assert dock.session.workspace.open_project.read_only
        assert "read-only" in dock._heading.text()
        assert "open for writing in this program" in dock._message.text()
        assert not tab.split.isEnabled()
        assert not tab.structures.isEnabled()
        assert dock.session.cohort.without_prediction() == [case_id]
        assert not tab.predict.isEnabled()
    drop(dock, taught)
    settled(tab, qtbot)
    assert tab.predict.isEnabled()


def test_the_project_that_is_open_already_stays_writable(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path, tmp_path: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    project = dock.session.workspace.open_project
    (tmp_path / "link.jrss").symlink_to(taught)
    drop(dock, taught)
    drop(dock, tmp_path / "link.jrss")
    with answering(choose_folder(taught)):
        click(tab.open)
    tab._fill_recent()
    tab.recent.menu().actions()[0].trigger()
    settled(tab, qtbot)
    assert dock.session.workspace.project is project
    assert not project.read_only
    assert tab.structures.isEnabled()
    assert "is open already" in dock._message.text()


def test_a_folder_that_is_no_project_leaves_the_open_one(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path, tmp_path: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    (tmp_path / "empty.jrss").mkdir()
    drop(dock, tmp_path / "empty.jrss")
    qtbot.wait(100)
    assert "not a project" in dock._message.text()
    assert dock.session.workspace.open_project.path == taught


def test_recent_projects_are_remembered(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(taught, tmp_path / "other.jrss")
    drop(dock, taught)
    qtbot.wait(100)
    drop(dock, other)
    qtbot.wait(100)
    assert recent_projects() == [other, taught]
    tab._fill_recent()
    actions = tab.recent.menu().actions()
    assert [action.text() for action in actions] == ["other.jrss", "brain.jrss"]
    actions[1].trigger()
    assert dock.session.workspace.open_project.path == taught
    settled(tab, qtbot)


def test_nothing_is_cut_off_and_everything_is_explained(
    dock: MainWidget, tab: CohortTab, qtbot: QtBot, taught: Path
) -> None:
    drop(dock, taught)
    settled(tab, qtbot)
    assert tab.minimumSizeHint().width() <= 440
    for button in tab.findChildren(QPushButton):
        if button.isVisible():
            assert button.toolTip()
            assert button.width() >= button.fontMetrics().horizontalAdvance(button.text())


def test_the_case_is_not_known_where_its_folder_is_gone(
    make_napari_viewer: Callable[..., Any], dock: MainWidget, tab: CohortTab, qtbot: QtBot,
    taught: Path,
) -> None:  # fmt: skip
    case = next(iter(sorted((taught / "cases").iterdir())))
    shutil.rmtree(case)
    drop(dock, taught)
    settled(tab, qtbot)
    assert tab.problems.text() == "Problems (1)"
    tab.group.setCurrentText("Unreadable")
    assert shown(tab) == [case.name.removesuffix(".ome.zarr")]
