"""The cohort's commands as a script uses them, without a window."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from napari_jrss._tests.io.dicom_phantoms import lps_affine, save, slices
from napari_jrss.app.case_summary import thumbnail
from napari_jrss.app.cohort import SplitCounts
from napari_jrss.app.exporting import LabelWritten
from napari_jrss.app.runner import BusyError, JobState
from napari_jrss.app.session import Session
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.io.layouts import discover
from napari_jrss.io.predictions import Prediction
from napari_jrss.io.read import read_volume
from napari_jrss.labels import LabelTable
from napari_jrss.project.importing import (
    Found,
    ScanFolders,
    ScanRead,
    groups_file_of,
    look_into,
)
from napari_jrss.project.project import Project
from napari_jrss.project.records import Event, RoundOutcome
from napari_jrss.sample_data import make_cohort


@pytest.fixture
def session(project: Project) -> Iterator[Session]:
    """A session on the small cohort: 2 labelled, 2 not, 2 for validation, 2 for tests."""
    session = Session(author="Ada")
    session.adopt(project)
    yield session
    session.close()


def predicted(project: Project, case_ids: list[str], confidence: float = 0.8) -> None:
    """A finished round whose teacher says of these cases exactly what a label says."""
    number = project.start_round(None, "{}", project.snapshot().label_versions).number
    for case_id in case_ids:
        label = project.label(case_id, "v0001")
        sure = np.where(label > 0, confidence, 1).astype(np.float16)
        project.round(number).files.write_prediction(
            case_id, Prediction(label, sure, sure * 0 + 0.25)
        )
    project.finish_round(number, RoundOutcome.FINISHED, promote=True)


def looked(session: Session) -> None:
    session.cohort.summarise()
    assert session.cohort.summaries.wait(20)
    assert session.cohort.summaries.error is None


def test_rows_say_split_status_and_versions(session: Session, project: Project) -> None:
    case = next(c.case_id for c in project.cases() if c.labelled)
    project.restore(case, "v0001", "Ada")
    rows = {row.case_id: row for row in session.cohort.rows()}
    assert list(rows) == [c.case_id for c in project.cases()]
    assert rows[case].labels == 2
    assert (rows[case].split, rows[case].status) == ("train", "manual")
    assert rows[case].figures is None


def test_figures_are_known_after_looking(session: Session, project: Project) -> None:
    hidden = [c.case_id for c in project.cases() if c.reference_version]
    predicted(project, hidden)
    seen: list[str] = []
    session.cohort.case_summarised.connect(seen.append)
    looked(session)
    assert set(seen) == {c.case_id for c in project.cases()}
    rows = {row.case_id: row for row in session.cohort.rows()}
    for case_id in hidden:
        known = rows[case_id].figures
        assert known is not None
        assert known.confidence == pytest.approx(0.8, abs=1e-3)
        assert known.uncertainty == pytest.approx(0.25, abs=1e-3)
        assert known.dice == 1  # the hidden label is the ground truth
    seen.clear()
    looked(session)
    assert seen == []  # nothing is read twice


def test_a_training_label_is_no_ground_truth(session: Session, project: Project) -> None:
    labelled = [c.case_id for c in project.cases() if c.labelled]
    predicted(project, labelled)
    looked(session)
    rows = {row.case_id: row for row in session.cohort.rows()}
    assert all(rows[c].figures.dice is None for c in labelled)  # type: ignore[union-attr]


def test_another_teacher_makes_the_figures_anew(session: Session, project: Project) -> None:
    hidden = [c.case_id for c in project.cases() if c.reference_version]
    predicted(project, hidden, 0.8)
    looked(session)
    predicted(project, hidden, 0.6)
    assert session.cohort.rows()[0].figures is None
    looked(session)
    known = {r.case_id: r.figures for r in session.cohort.rows()}
    assert known[hidden[0]].confidence == pytest.approx(0.6, abs=1e-3)  # type: ignore[union-attr]


def test_a_damaged_case_is_said_and_the_others_are_looked_at(
    session: Session, project: Project
) -> None:
    case = project.cases()[0].case_id
    (project.case_path(case) / "0" / "zarr.json").write_text("{")
    looked(session)
    rows = {row.case_id: row for row in session.cohort.rows()}
    assert case in rows[case].problem
    assert session.cohort.appearance(case) is None
    assert all(session.cohort.appearance(c) is not None for c in rows if c != case)


def test_thumbnails_are_upright_in_millimetres() -> None:
    plane = np.zeros((20, 40), np.float32)
    plane[:10, 20:] = 1  # anterior, the patient's left
    small = thumbnail(plane, (2.0, 1.0))
    assert small.shape == (48, 48)
    assert small[12, 36] == 255
    assert small[36, 12] == 0


def test_looking_stops_when_the_project_closes(session: Session) -> None:
    session.cohort.summarise()
    assert session.close()
    assert session.cohort.summaries.state in (JobState.CANCELLED, JobState.FINISHED)
    assert session.cohort.rows() == []


def test_structures_are_renamed_and_recoloured(session: Session, project: Project) -> None:
    ids = [c.source_ids for c in project.table.classes]
    session.cohort.rename(1, "  Frontal   lobe ")
    session.cohort.recolour(2, "#ABCDEF")
    with Project.open(project.path, read_only=True) as again:
        assert again.table.names[1] == "Frontal lobe"
        assert again.table.classes[2].colour == "#abcdef"
        assert [c.source_ids for c in again.table.classes] == ids
        changes = [e for e in again.history() if e.kind is Event.STRUCTURE_CHANGED]
    assert [e.author for e in changes] == ["Ada", "Ada"]
    assert "frontal" in changes[0].detail


@pytest.mark.parametrize(
    ("index", "name", "reason"),
    [(0, "air", "no structure 0"), (9, "air", "no structure 9"), (1, " ", "at least 1"),
     (1, "parietal", "another structure")],
)  # fmt: skip
def test_a_name_that_can_not_be(session: Session, index: int, name: str, reason: str) -> None:
    with pytest.raises(ProjectError, match=reason):
        session.cohort.rename(index, name)
    with pytest.raises(ProjectError, match="should match pattern"):
        session.cohort.recolour(1, "reddish")


@pytest.mark.slow
def test_from_a_folder_to_a_project(tmp_path: Path) -> None:
    """Five labelled scans and two unlabelled ones, one of them broken: all that can train does."""
    folder = make_cohort(tmp_path / "scans", cases=7, shape=(16, 24, 16), structures=2)
    for number in (6, 7):
        (folder / "labels" / f"case_00{number}.nii.gz").unlink()
    (folder / "images" / "case_007.nii.gz").write_bytes(b"no scan")
    config = PreprocessingConfig(shape=(16, 24, 16))
    source = ScanFolders(folder, groups=groups_file_of(folder))
    *_, found = look_into(source, config, threading.Event())
    assert isinstance(found, Found)
    assert found.complete
    assert (len(found.cohort.cases), found.labelled) == (7, 5)
    assert found.table is not None
    assert found.plans["quick"].shape == (16, 24, 16)

    session = Session()
    events: list[ScanRead] = []
    session.workspace.inference.event.connect(events.append)
    plan = found.plans["quick"]
    made = found.cohort, found.table, plan.preprocessing, plan
    session.make_project(tmp_path / "new.jrss", *made, workers=1)
    with pytest.raises(BusyError):
        session.make_project(tmp_path / "other.jrss", found.cohort, found.table, config)
    assert not (tmp_path / "other.jrss").exists()
    assert session.workspace.inference.wait(60)
    assert session.workspace.inference.error is None
    assert (events[-1].done, events[-1].total) == (7, 7)
    assert sum(row.status.has_label for row in session.cohort.rows()) == 5
    assert len(session.cohort.rows()) == 6
    assert "case_007" in session.cohort.failed_imports()["case_007"]
    # Nothing is to be measured here: every label trains.
    assert session.cohort.usual_split() == SplitCounts(None, 0, 0)
    session.close()


@pytest.mark.slow
def test_a_project_that_no_scan_came_into_is_removed(tmp_path: Path) -> None:
    folder = make_cohort(tmp_path / "scans", cases=2, shape=(16, 16, 16), structures=1)
    for scan in (folder / "images").iterdir():
        nib.save(nib.Nifti1Image(np.zeros((16, 16, 16)), np.eye(4)), scan)
    *_, found = look_into(ScanFolders(folder))
    session = Session()
    path = tmp_path / "new.jrss"
    session.make_project(
        path, found.cohort, found.require_table(), PreprocessingConfig(), workers=1
    )
    assert session.workspace.project is not None
    assert session.workspace.inference.wait(60)
    assert "none of 2 scans could be used" in str(session.workspace.inference.error)
    assert session.workspace.project is None
    assert not path.exists()
    session.close()


def test_a_project_can_outlive_the_session(project: Project) -> None:
    session = Session()
    session.adopt(project, keep_open=True)
    session.close()
    assert project.cases()
    session.adopt(project)
    session.close()
    with pytest.raises(ProjectError):
        project.cases()


def test_too_many_numbers_in_the_labels_are_told_before_the_import(tmp_path: Path) -> None:
    folder = make_cohort(tmp_path / "scans", cases=1, shape=(16, 16, 16), structures=1)
    many = np.arange(4096, dtype=np.int16).reshape(16, 16, 16)
    (label,) = (folder / "labels").iterdir()
    nib.save(nib.Nifti1Image(many, np.eye(4)), label)
    with pytest.raises(ScanError, match="more than 254 ids"):
        list(look_into(ScanFolders(folder)))


@pytest.mark.slow
def test_an_import_can_be_stopped(tmp_path: Path) -> None:
    folder = make_cohort(tmp_path / "scans", cases=6, shape=(16, 16, 16), structures=1)
    config = PreprocessingConfig()
    *_, found = look_into(ScanFolders(folder), config, threading.Event())
    assert found.table is not None
    session = Session()
    session.workspace.inference.event.connect(lambda _: session.workspace.inference.cancel())
    session.make_project(tmp_path / "new.jrss", found.cohort, found.table, config, workers=1)
    assert session.workspace.inference.wait(60)
    assert session.workspace.inference.state is JobState.CANCELLED
    assert 1 <= len(session.cohort.rows()) < 6
    session.close()


def test_looking_into_a_folder_without_scans(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no scans"):
        list(look_into(ScanFolders(tmp_path), PreprocessingConfig(), threading.Event()))
    made = slices(np.arange(960, dtype=np.int16).reshape(12, 8, 10), lps_affine())
    save(tmp_path / "gap", made[:5] + made[6:])
    (tmp_path / "AAA.txt").write_text("no DICOM")
    with pytest.raises(ScanError, match="a slice is missing"):
        list(look_into(ScanFolders(tmp_path), PreprocessingConfig(), threading.Event()))


def test_a_split_is_dealt_through_the_session(session: Session) -> None:
    changed: list[bool] = []
    session.workspace.cases_changed.connect(lambda: changed.append(True))
    assignment = session.cohort.split(SplitCounts(3, 1, 1), seed=1)
    assert changed
    assert (len(assignment.labelled), len(assignment.test)) == (3, 1)


def test_predicting_needs_a_teacher(session: Session) -> None:
    assert session.cohort.without_prediction() == []
    with pytest.raises(ProjectError, match="no trained networks yet"):
        session.cohort.predict()


def test_labels_are_exported_in_their_scans_geometry(
    session: Session, project: Project, tmp_path: Path
) -> None:
    hidden = [c.case_id for c in project.cases() if c.reference_version]
    predicted(project, hidden)
    labelled = [c.case_id for c in project.cases() if c.label_version]
    said: list[str] = []
    session.workspace.notified.connect(said.append)
    written: list[LabelWritten] = []
    session.workspace.inference.event.connect(written.append)
    session.cohort.export(tmp_path / "out")
    assert session.workspace.inference.wait(20)
    assert session.workspace.inference.error is None
    assert [w.done for w in written] == list(range(1, written[0].total + 1))
    for folder, cases in (("labels", labelled), ("predictions", hidden)):
        files = {path.name for path in (tmp_path / "out" / folder).glob("*.nii.gz")}
        assert files == {f"{case_id}.nii.gz" for case_id in cases}
        for case_id in cases:
            ours = read_volume(tmp_path / "out" / folder / f"{case_id}.nii.gz")
            scan = Path(project.attributes(case_id).source)
            original = read_volume(scan.parents[1] / "labels" / scan.name)
            np.testing.assert_allclose(ours.affine, original.affine, atol=1e-5)
            np.testing.assert_array_equal(ours.array, original.array)
    assert said == [f"{len(written)} labels are in {tmp_path / 'out'}"]
    shutil.rmtree(tmp_path / "out" / "labels")
    corrected = tmp_path / "out" / "predictions" / f"{hidden[0]}.nii.gz"
    corrected.write_bytes(b"corrected in another program")
    session.cohort.export(tmp_path / "out")
    assert session.workspace.inference.wait(20)
    assert f"edited since: {corrected.name}; move" in str(session.workspace.inference.error)
    assert corrected.read_bytes() == b"corrected in another program"
    assert not (tmp_path / "out" / "labels").exists()


@pytest.mark.slow
def test_an_export_of_nothing_or_into_a_file_is_told(tmp_path: Path) -> None:
    make_cohort(tmp_path / "scans", cases=2, shape=(16, 16, 16), structures=1)
    table = LabelTable.from_ids([1])
    session = Session()
    session.adopt(Project.create(tmp_path / "p.jrss", table, PreprocessingConfig()))
    with pytest.raises(ProjectError, match="no labels to export yet"):
        session.cohort.export(tmp_path / "out")
    session.cohort.add(discover(tmp_path / "scans"), workers=1)
    assert session.workspace.inference.wait(30)
    (tmp_path / "out").write_text("a file")
    session.cohort.export(tmp_path / "out")
    assert session.workspace.inference.wait(20)
    assert "can't be made" in str(session.workspace.inference.error)
    assert session.close()
