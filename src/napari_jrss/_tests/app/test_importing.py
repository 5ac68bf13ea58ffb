"""Projects made of folders, with what the import says; further scans; labels that come back."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from napari_jrss._tests.io.phantoms import blobs, block_label, write
from napari_jrss.app.importing import add_scans, import_labels
from napari_jrss.app.session import Session
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.layouts import discover
from napari_jrss.io.read import read_header, read_label
from napari_jrss.labels import IGNORED, LabelTable
from napari_jrss.project.export.labels import export_label_files
from napari_jrss.project.importing import Found, ScanFolders, ScanRead, import_summary, read_scans
from napari_jrss.project.project import Project

pytestmark = pytest.mark.slow

AFFINE = np.diag([-2.0, -2, 2, 1])


def scan(path, seed=0, grow=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.pad(blobs(seed=seed), ((0, 0), (0, 0), (0, grow)), mode="edge")
    return write(path, array.T, AFFINE)


def label(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write(path, (block_label() if array is None else array).T, AFFINE)


@pytest.fixture
def folder(tmp_path):
    """Three scans, two with a label."""
    for number in range(3):
        scan(tmp_path / "study" / f"c{number}.nii.gz", number)
    for number in range(2):
        label(tmp_path / "study" / f"c{number}_seg.nii.gz")
    return tmp_path / "study"


def made(path, *args, **options):
    """The project, what was found in the end, and the events of the import."""
    events, happened = Project.from_folders.events(path, *args, workers=1, **options), []
    while True:
        try:
            happened.append(next(events))
        except StopIteration as end:
            *_, found = (event for event in happened if isinstance(event, Found))
            return end.value, [found, *(e for e in happened if isinstance(e, ScanRead))]


def test_an_import_tells_what_it_led_to(folder, tmp_path):
    label(folder / "c1_seg.nii.gz", np.where(block_label() == 2, 9, block_label()))
    scan(folder / "wide.nii.gz", 7, grow=30)
    label(folder / "c2_seg.nii.gz", np.ones((3, 3, 3), np.uint8))  # fits no scan
    groups = tmp_path / "groups.csv"
    groups.write_text("label,name\n1,one\n2,two\n")
    project, (found, *reads) = made(tmp_path / "p.jrss", folder, groups=groups)
    with project:
        results = [event.result for event in reads]
        grid, sizes, unlisted, wide = import_summary(project, found.cohort, results)
    assert grid == "training grid 16 x 16 x 48 voxels of 2 x 2 x 2 mm (z y x), 0.012 million"
    assert sizes == "2 structures, voxels where smallest: one 80, two 175"
    nine = "background, since the table of structures doesn't list it: 9 (175 voxels)"
    assert unlisted == nine
    assert wide.startswith("wide is 28 x 32 x 96 mm (z y x), the others at most 28 x 32 x 36")
    (note,) = [note for result in results for note in result.notes]
    assert note.startswith("without its label: ")
    assert "c2_seg.nii.gz: label of shape (3, 3, 3)" in note
    assert {r.case_id: r.labelled for r in results}["c2"] is False


def test_remarks_are_kept_for_the_window(folder, tmp_path):
    label(folder / "c2_seg.nii.gz", np.ones((3, 3, 3), np.uint8))
    session = Session("A. Reader")
    table = LabelTable.from_ids([1, 2])
    session.adopt(Project.create(tmp_path / "p.jrss", table, PreprocessingConfig()))
    project = session.workspace.open_project
    list(session.cohort.announce(read_scans(project, discover(folder), workers=1)))
    (remark,) = session.cohort.import_notes.values()
    assert remark.startswith("without its label: ")
    assert session.cohort.failed_imports() == {}
    session.close()


def test_labels_far_apart_hint_at_a_pre_alignment(folder, tmp_path):
    for kind in ("c1", "c1_seg"):
        image = nib.load(folder / f"{kind}.nii.gz")
        away = AFFINE.copy()
        away[2, 3] = 120  # mm
        moved = nib.Nifti1Image(np.asarray(image.dataobj), away)
        nib.save(moved, folder / f"{kind}.nii.gz")
    config = PreprocessingConfig(crop="labelled")
    project, (found, *reads) = made(tmp_path / "p.jrss", folder, preprocessing=config)
    with project:
        results = [event.result for event in reads if event.result.ok]
        *_, hint = import_summary(project, found.cohort, results)
    assert "--prealign center_of_mass may make it smaller" in hint


def test_one_scan_in_two_formats_is_one_case(folder, tmp_path):
    image = sitk.ReadImage(str(folder / "c0.nii.gz"))
    sitk.WriteImage(image, str(folder / "copy.nrrd"))
    sitk.WriteImage(image, str(folder / "c0.nii"))
    project, (found, *reads) = made(tmp_path / "p.jrss", folder)
    (left,) = found.cohort.left_out
    assert (left.what, left.reason) == ("c0.nii.gz", "c0.nii of the same name is read")
    with project:
        assert len(project.cases()) == 3
    (reason,) = [read.problem for read in reads if read.problem]
    assert reason.startswith("the same scan as")


def test_a_table_assigns_the_splits(folder, tmp_path):
    table = tmp_path / "cases.csv"
    rows = ["image,label,split", "study/c0.nii.gz,study/c0_seg.nii.gz,train"]
    rows += ["study/c1.nii.gz,study/c1_seg.nii.gz,test", "study/c2.nii.gz,,unused"]
    table.write_text("\n".join(rows))
    project, _ = made(tmp_path / "p.jrss", table)
    with project:
        splits = {case.case_id: str(case.split) for case in project.cases()}
    assert splits == {"c0": "train", "c1": "test", "c2": "unused"}


def test_a_mistyped_project_is_refused_with_a_hint(folder, tmp_path):
    (tmp_path / "projects").mkdir()
    with pytest.raises(ProjectError, match="no such folder for the project; did you mean 'proj"):
        made(tmp_path / "project" / "p.jrss", folder)
    assert not (tmp_path / "project").exists()
    made(tmp_path / "p.jrss", folder)[0].close()
    with pytest.raises(ProjectError, match=r"no such folder; did you mean 'p\.jrss'"):
        Project.open(tmp_path / "q.jrss")


def test_scans_that_come_later(folder, tmp_path):
    project, _ = made(tmp_path / "p.jrss", folder)
    scan(tmp_path / "more" / "d.mha.nii.gz", 8)
    label(tmp_path / "labels" / "d.mha.nii.gz")
    with project:
        found, read = add_scans.events(
            project, ScanFolders(tmp_path / "more", tmp_path / "labels"), 1
        )
        assert isinstance(found, Found)
        assert isinstance(read, ScanRead)
        assert project.case(read.result.case_id).label_version == "v0001"


def test_labels_that_were_corrected_elsewhere_come_back(folder, tmp_path):
    project, _ = made(tmp_path / "p.jrss", folder)
    with project:
        list(export_label_files(project, tmp_path / "out"))
        exported = tmp_path / "out" / "c0.nii.gz"
        image = nib.load(exported)
        array = np.asarray(image.dataobj).copy()
        array[0, 0, 0] = 2
        nib.save(nib.Nifti1Image(array, image.affine), exported)
        label(tmp_path / "out" / "c1.nii.gz", np.full(block_label().shape, 7, np.uint8))
        done = {r.case_id: r for r in import_labels(project, tmp_path / "out", "A. Reader")}
        assert done["c0"].version == "v0002"
        assert "unknown label id 7" in done["c1"].problem
        version = project.label_versions("c0")[-1]
        assert (version.author, version.draft) == ("A. Reader", "file:c0.nii.gz")
        assert version.voxels_changed == 1
        list(export_label_files(project, tmp_path / "again"))
        back = np.asarray(nib.load(tmp_path / "again" / "c0.nii.gz").dataobj)
        np.testing.assert_array_equal(back, array)
        (tmp_path / "empty").mkdir()
        with pytest.raises(ScanError, match="no label files found"):
            import_labels(project, tmp_path / "empty", "A. Reader")
        label(tmp_path / "empty" / "z.nii.gz")
        with pytest.raises(ScanError, match="no label has the name of a case"):
            import_labels(project, tmp_path / "empty", "A. Reader")


@pytest.mark.parametrize(
    ("kind", "written"),
    [("c.nrrd", ".seg.nrrd"), ("c.mha", ".mha"), ("c.mhd", ".mha"), ("c.mgz", ".mgz")],
)
def test_labels_are_written_in_the_kind_of_their_scan(tmp_path, kind, written):
    (tmp_path / "study").mkdir()
    tilted = sitk.Euler3DTransform()
    tilted.SetRotation(0.1, 0.2, 0.3)
    for name, array in ((kind, blobs()), (kind.replace("c.", "c_seg."), block_label())):
        path = tmp_path / "study" / name
        image = sitk.GetImageFromArray(array)
        image.SetDirection(tilted.GetMatrix())
        if name.endswith(".mgz"):
            ras = np.diag([-1.0, -1, 1, 1]) @ np.block(
                [[np.array(tilted.GetMatrix()).reshape(3, 3), np.zeros((3, 1))], [0, 0, 0, 1]]
            )
            nib.save(nib.MGHImage(array.T, ras), path)
        else:
            sitk.WriteImage(image, str(path))
    project, _ = made(tmp_path / "p.jrss", tmp_path / "study")
    with project:
        (path,) = export_label_files(project, tmp_path / "out")
    if kind == "c.nrrd":  # the label's own kind counts
        assert path.name == "c.nrrd"
        path = path.rename(path.with_name("c.seg.nrrd"))
    assert path.name == f"c{written}"
    back, _ = read_label(path)
    np.testing.assert_array_equal(back.array, block_label())
    was = read_header(tmp_path / "study" / kind)
    np.testing.assert_allclose(back.affine, was.affine, atol=1e-5)


def test_ignored_voxels_stay_ignored_from_import_to_export(folder, tmp_path):
    ids = block_label()
    ids[12:, 12:, 12:] = 5
    label(folder / "c0_seg.nii.gz", ids)
    table = LabelTable.from_ids([1, 2]).model_copy(update={"ignored_id": 5})
    cases = discover(folder).cases
    with Project.create(tmp_path / "p.jrss", table, PreprocessingConfig()) as project:
        assert all(result.ok for result in project.add_cases(cases, workers=1))
        stored = project.label("c0")
        assert (stored == IGNORED).sum() == (ids == 5).sum()
        assert (project.snapshot().arrays.label("c0") == IGNORED).sum() == (ids == 5).sum()
        again = project.add_label_version("c0", stored, "me")
        np.testing.assert_array_equal(project.label("c0", again), stored)
        list(export_label_files(project, tmp_path / "out"))
    back = np.asarray(nib.load(tmp_path / "out" / "c0.nii.gz").dataobj)
    np.testing.assert_array_equal(back, ids.T)
