"""What napari finds in the manifest: files in and out, sample data, menus, preferences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import nibabel as nib
import numpy as np
import pytest
from napari.layers import Image, Labels
from napari.settings import get_plugin_settings
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from npe2 import PluginManifest
from pytestqt.qtbot import QtBot
from qtpy.QtCore import QObject, QUrl, Slot
from qtpy.QtGui import QDesktopServices

from napari_jrss._tests.app.phantoms import give_networks, make_project
from napari_jrss._tests.io.dicom_phantoms import lps_affine, save, slices
from napari_jrss.project.project import Project
from napari_jrss.sample_data import STRUCTURES
from napari_jrss.widgets import contributions
from napari_jrss.widgets.contributions import SaveError, get_reader
from napari_jrss.widgets.main_widget import MainWidget
from napari_jrss.widgets.preferences import recent_projects

PLUGIN = "napari-jrss"
ORIENTATIONS = ("RAS", "LPS", "PIR", "SAL", "ILA")


def asymmetric(orientation: str) -> nib.Nifti1Image:
    """A scan of 10 x 12 x 14 voxels of 2 x 1.5 x 3 mm, bright at the patient's left front top."""
    data = np.random.default_rng(0).integers(1, 50, (10, 12, 14)).astype(np.int16)
    affine = np.diag([2.0, 1.5, 3.0, 1.0])
    affine[:3, 3] = (-7, 5, 11)
    data[:3, 9:, 11:] = 1000  # RAS: low x is left, high y anterior, high z superior
    upright = nib.Nifti1Image(data, affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(orientation))
    return upright.as_reoriented(turn)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_scan_is_shown_upright_whatever_its_axes(tmp_path: Path, orientation: str) -> None:
    path = tmp_path / "scan.nii.gz"
    nib.save(asymmetric(orientation), path)
    reader = get_reader(str(path))
    assert reader is not None
    ((array, options, kind),) = reader(str(path))
    assert kind == "image"
    assert array.shape == (14, 12, 10)
    # z grows to superior, y to posterior, x to the patient's left.
    assert array[-1, 0, -1] == 1000
    assert np.argwhere(array == 1000).min(0).tolist() == [11, 0, 7]
    assert options["scale"] == pytest.approx((3, 1.5, 2))
    assert options["units"] == ("mm", "mm", "mm")
    # The first voxel (inferior, anterior, right) in LPS mm: x = 7 - 2 * 9, y = -5 - 1.5 * 11.
    assert options["translate"] == pytest.approx((11, -21.5, -11))


def test_an_oblique_scan_is_shown_upright_about_its_centre(tmp_path: Path) -> None:
    image = asymmetric("RAS")
    angle = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    oblique = turn @ image.affine
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), oblique), tmp_path / "a.nii")
    ((array, options, _),) = contributions.read_scan(str(tmp_path / "a.nii"))
    middle = (np.array(array.shape) - 1) / 2
    shown = np.array(options["translate"]) + np.array(options["scale"]) * middle
    in_ras = oblique @ [*(np.array(image.shape) - 1) / 2, 1]
    assert shown == pytest.approx([in_ras[2], -in_ras[1], -in_ras[0]], abs=1e-4)
    true = np.array(options["metadata"]["napari_jrss"]["source_affine"])
    assert np.allclose(np.diag([-1, -1, 1, 1]) @ true, oblique, atol=1e-5)


def test_patches_of_whole_numbers_are_labels(tmp_path: Path) -> None:
    label = np.zeros((12, 12, 12), np.uint8)
    label[2:8, 2:8, 2:8] = 3
    nib.save(nib.Nifti1Image(label, np.eye(4)), tmp_path / "label.nii.gz")
    ((_, _, kind),) = contributions.read_scan(str(tmp_path / "label.nii.gz"))
    assert kind == "labels"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_are_saved_in_the_geometry_of_their_scan(
    make_napari_viewer: Callable[..., Any], tmp_path: Path, orientation: str
) -> None:
    scan = asymmetric(orientation)
    scan.header["qform_code"], scan.header["sform_code"] = 1, 2
    nib.save(scan, tmp_path / "scan.nii.gz")
    viewer = make_napari_viewer()
    (image,) = viewer.open(tmp_path / "scan.nii.gz", plugin=PLUGIN)
    assert isinstance(image, Image)
    contributions.new_labels(viewer)
    labels = viewer.layers[-1]
    assert isinstance(labels, Labels)
    labels.data = (image.data == 1000).astype(np.uint8) * 7
    assert labels.save(str(tmp_path / "out.nii.gz"), plugin=PLUGIN)
    saved = nib.load(tmp_path / "out.nii.gz")
    assert saved.get_data_dtype() == np.uint8
    expected = (np.asanyarray(scan.dataobj) == 1000) * 7
    assert np.array_equal(np.asanyarray(saved.dataobj), expected)
    assert np.allclose(saved.affine, scan.affine)
    for field in ("qform_code", "sform_code", "pixdim"):
        assert np.array_equal(saved.header[field], nib.load(tmp_path / "scan.nii.gz").header[field])


def test_a_label_that_knows_no_scan_is_refused(
    make_napari_viewer: Callable[..., Any], tmp_path: Path
) -> None:
    viewer = make_napari_viewer()
    labels = viewer.add_labels(np.zeros((4, 4, 4), np.uint8), name="mine")
    with pytest.raises(SaveError, match=r"'mine' doesn't know the geometry.*New labels"):
        labels.save(str(tmp_path / "out.nii.gz"), plugin=PLUGIN)
    assert list(tmp_path.iterdir()) == []


def test_a_project_opens_in_the_dock(
    make_napari_viewer: Callable[..., Any], tmp_path: Path
) -> None:
    small_project = make_project(tmp_path)
    viewer = make_napari_viewer()
    assert viewer.open(str(small_project), plugin=PLUGIN) == []
    widget = contributions.dock_of(viewer)
    assert isinstance(widget, MainWidget)
    assert widget.session.workspace.open_project.path == small_project
    cases = next((small_project / "cases").glob("*.ome.zarr"))
    image, label = viewer.open(str(cases), plugin=PLUGIN)
    assert (type(image), type(label)) == (Image, Labels)
    assert image.data.shape == label.data.shape == widget.session.workspace.open_project.grid.shape


def test_dicom_layers_are_named_after_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "head"
    values = np.arange(480, dtype=np.int16).reshape(6, 8, 10)
    for patient in ("a", "b"):
        save(folder / patient, slices(values, lps_affine()))
    names = [layer[1]["name"] for layer in contributions.read_dicom(str(folder))]
    assert names == ["head 1", "head 2"]
    (layer,) = contributions.read_dicom(str(folder / "a"))
    assert layer[1]["name"] == "a"


def test_other_folders_and_files_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    assert get_reader(str(tmp_path)) is None
    assert get_reader(str(tmp_path / "notes.txt")) is None
    assert get_reader(["a.nii", "b.nii"]) is None


def test_sample_data_opens(make_napari_viewer: Callable[..., Any]) -> None:
    viewer = make_napari_viewer()
    image, labels = viewer.open_sample(PLUGIN, "synthetic_brain")
    assert (type(image), type(labels)) == (Image, Labels)
    assert labels.data.max() == len(STRUCTURES)
    assert tuple(labels.scale) == tuple(image.scale) == (2.5, 2.5, 2.5)


def test_segmenting_without_a_project_says_so(
    make_napari_viewer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(contributions, "show_error", shown.append)
    viewer = make_napari_viewer()
    contributions.segment_selected(viewer)
    viewer.open_sample(PLUGIN, "synthetic_brain")
    viewer.layers.selection.active = viewer.layers[0]
    contributions.segment_selected(viewer)
    assert shown == ["select the image layer of one scan first", "no project is open"]


def test_a_scan_renamed_while_it_is_segmented_gets_its_label(
    dock: MainWidget, qtbot: QtBot, taught: Path
) -> None:
    with Project.open(taught) as project:
        give_networks(project)
    dock.session.workspace.device = "cpu"
    dock.session.open(taught)
    viewer = napari.current_viewer()
    scan, _ = viewer.open_sample(PLUGIN, "synthetic_brain")
    viewer.layers.selection.active = scan
    contributions.segment_selected(viewer)
    scan.name = "my brain"
    qtbot.waitUntil(lambda: "my brain by the teacher" in viewer.layers, timeout=60_000)
    assert viewer.layers["my brain by the teacher"].data.shape == scan.data.shape
    dock.session.close()


def test_preferences_reach_the_session(dock: MainWidget) -> None:
    page = get_plugin_settings(PLUGIN)
    page.person.author = "Ada Lovelace"
    page.work.device = "cpu"
    page.work.autosave = 2.5
    assert (dock.session.workspace.author, dock.session.workspace.device) == ("Ada Lovelace", "cpu")
    assert dock.session.workspace.autosave_s == 2.5


def test_a_preference_says_whether_pairs_are_refined_until_the_box_does(
    dock: MainWidget, qtbot: QtBot
) -> None:
    page, box = get_plugin_settings(PLUGIN), dock.registration.refine
    assert not box.isChecked()
    page.work.refine = True
    assert dock.session.pairs.refined
    qtbot.waitUntil(box.isChecked)
    box.click()
    page.work.autosave = 2.5
    assert not dock.session.pairs.refined
    qtbot.wait(50)
    assert not box.isChecked()


def test_menus_stand_in_the_manifest() -> None:
    manifest = PluginManifest.from_distribution(PLUGIN)
    manifest.validate_imports()
    menus = manifest.contributions.menus
    assert {"napari/layers/segment", "napari/layers/register"} <= set(menus)


def test_the_log_of_the_project_opened_last_is_shown(
    make_napari_viewer: Callable[..., Any], qtbot: QtBot, tmp_path: Path
) -> None:
    viewer = make_napari_viewer()
    _, view = viewer.window.add_plugin_dock_widget(PLUGIN, "Log")
    assert "open a project first" in view.message.text()
    assert not view.open_file.isEnabled()
    contributions.dock_of(viewer).cohort.open_project(make_project(tmp_path))
    qtbot.waitUntil(lambda: bool(recent_projects()))
    view.refresh.click()
    assert str(tmp_path / "brain.jrss" / "napari-jrss.log") in view.message.text()
    assert "opened brain.jrss" in view.text.toPlainText().splitlines()[-1]
    opened: list[QUrl] = []
    handler = _UrlHandler(opened)
    QDesktopServices.setUrlHandler("file", handler, "take")
    view.open_file.click()
    QDesktopServices.unsetUrlHandler("file")
    assert opened == [QUrl.fromLocalFile(str(tmp_path / "brain.jrss" / "napari-jrss.log"))]


class _UrlHandler(QObject):
    """Takes what the desktop is asked to open."""

    def __init__(self, opened: list[QUrl]) -> None:
        super().__init__()
        self._opened = opened

    @Slot(QUrl)
    def take(self, url: QUrl) -> None:
        self._opened.append(url)


def test_an_unexpected_error_is_told_in_one_line_and_logged_with_its_traceback(
    make_napari_viewer: Callable[..., Any],
    qtbot: QtBot,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dock = contributions.dock_of(make_napari_viewer())
    dock.cohort.open_project(make_project(tmp_path))

    def fail() -> None:
        raise KeyError("no such structure")

    dock.cohort._do(fail)()
    qtbot.waitUntil(lambda: "Unexpected error (KeyError" in dock._message.text())
    assert "Plugins > JRSS > Log" in dock._message.text()
    text = (tmp_path / "brain.jrss" / "napari-jrss.log").read_text()
    assert "ERROR napari_jrss.widgets.bridge: unexpected error in the window: KeyError" in text
    assert "in fail" in text
    caplog.clear()  # it was expected here
