"""Several series of a DICOM study are the images of one case."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.uid import generate_uid
from typer.testing import CliRunner

from napari_jrss._tests.io.dicom_phantoms import lps_affine, save, slices
from napari_jrss._tests.project.test_dicom_privacy import assert_none_of, planted
from napari_jrss.cli import app
from napari_jrss.errors import ScanError
from napari_jrss.io.dicom import DicomSeries
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.project.project import Project

pytestmark = pytest.mark.slow

MPRAGE, FLAIR, T2 = "t1 mprage sag", "AX FLAIR 3mm", "T2 TSE"
# First voxels lie alike, spacings and directions differ.
AFFINES = {
    MPRAGE: lps_affine("LPS", (1, 1, 1)),
    FLAIR: lps_affine("LPS", (1.2, 1.1, 2)),
    T2: lps_affine("PLS", (1.5, 1, 1)),
}
SHAPES = {MPRAGE: (24, 26, 28), FLAIR: (12, 24, 23), T2: (24, 28, 17)}


def seen(kind: str, seed: int) -> NDArray[np.int16]:
    """A blob at a place of its own in the scanner, dark in FLAIR and bright in the others."""
    z, y, x = np.indices(SHAPES[kind])
    at = np.einsum("ij,j...->i...", AFFINES[kind], np.stack([x, y, z, np.ones_like(x)]))[:3]
    centre = (AFFINES[MPRAGE] @ (14, 13, 12 + seed, 1))[:3]
    away = ((at - centre[:, None, None, None]) ** 2).sum(0)
    blob = np.exp(-away / (2 * 5.0**2))
    return np.rint(800 - 500 * blob if kind == FLAIR else 200 + 600 * blob).astype(np.int16)


def save_study(folder: Path, *kinds: str, seed: int = 0, patient: str) -> None:
    study = generate_uid()
    for number, kind in enumerate(kinds):
        made = slices(seen(kind, seed), AFFINES[kind], "MR", study=study, patient=patient)
        for each in made:
            each.SeriesDescription = kind
        save(folder / patient / f"{number}", made)


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two whole studies, one without FLAIR, and one with two series of T1."""
    folder = tmp_path / "dicom"
    save_study(folder, FLAIR, MPRAGE, T2, patient="PID-one-planted")
    save_study(folder, MPRAGE, FLAIR, seed=2, patient="PID-two-planted")
    save_study(folder, MPRAGE, T2, patient="PID-without-planted")
    save_study(folder, MPRAGE, FLAIR, seed=6, patient="PID-twice-planted")
    again = slices(seen(MPRAGE, 1), AFFINES[MPRAGE], "MR", patient="PID-twice-planted")
    first = next((folder / "PID-twice-planted" / "0").iterdir())
    for each in again:
        each.StudyInstanceUID = pydicom.dcmread(first).StudyInstanceUID
        each.SeriesDescription = "T1 post"
    save(folder / "PID-twice-planted" / "9", again)
    return folder


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(each) for each in arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return str(done.output)


def groups(folder: Path) -> Path:
    path = folder / "groups.csv"
    path.write_text("label,name,class_id,class_name\n1,blob,1,blob\n")
    return path


def test_series_of_a_study_become_the_images_of_a_case(studies: Path, tmp_path: Path) -> None:
    path, map_file = tmp_path / "study.jrss", tmp_path / "map.csv"
    told = run(
        *("init", path, "--dicom", studies, "--groups", groups(tmp_path), "--keep-map", map_file),
        *("--channels", "T1,FLAIR", "--shape", 24, 24, 24, "--spacing", 1, 1, 1, "--workers", 1),
    )
    assert "PID-without-planted" in told
    left = {e.reason for e in discover_dicom(studies, channels=["T1", "FLAIR"]).left_out}
    assert "has no FLAIR: no series is described as *FLAIR*" in left
    assert any("which series is T1? *T1* fits 'T1 post', 't1 mprage sag'" in why for why in left)
    assert "none of T1, FLAIR" in left  # T2
    with Project.open(path) as project:
        assert project.channels == ("T1", "FLAIR")
        cases = [case.case_id for case in project.cases()]
        assert len(cases) == 2
        assert len({case.group for case in project.cases()}) == 2
        for case in cases:
            first, other = project.channel_images(case)
            inside = np.s_[4:20, 4:20, 4:20]
            # what is bright in T1 is dark in FLAIR, at the same place
            assert np.corrcoef(first[inside].ravel(), other[inside].ravel())[0, 1] < -0.99
            about = project.attributes(case)
            assert {about.source, *(each.source for each in about.channels)} == {"dicom"}
        assert project.missing_sources() == []
    with map_file.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["case_id"], row["image"], row["description"]) for row in rows} == {
        (case, name, kind) for case in cases for name, kind in (("T1", MPRAGE), ("FLAIR", FLAIR))
    }
    assert {row["patient_id"] for row in rows} == {"PID-one-planted", "PID-two-planted"}
    assert_none_of(planted(studies) | {MPRAGE, FLAIR}, path)


def test_further_studies_are_added_and_all_images_are_exported(
    studies: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "study.jrss", tmp_path / "Dataset001_Blob"
    run(
        *("init", path, "--dicom", studies, "--groups", groups(tmp_path)),
        *("--channels", "T1=*mprage*,FLAIR=*flair*", "--shape", 24, 24, 24, "--workers", 1),
    )
    more = tmp_path / "more"
    save_study(more, FLAIR, MPRAGE, seed=4, patient="PID-more-planted")
    run("add", path, more, "--channels", "T1=*mprage*,FLAIR=*flair*", "--workers", 1)
    with Project.open(path) as project:
        cases = [case.case_id for case in project.cases()]
        assert len(cases) == 4
        for case in cases[:2]:
            label = np.zeros(project.grid.shape, np.uint8)
            label[8:14, 8:14, 8:14] = 1
            project.add_label_version(case, label, author="reader one")
        project.split(labelled=2)
    whole = tmp_path / "whole"
    for each in (studies, more):
        for patient in each.iterdir():
            (whole / patient.name).parent.mkdir(exist_ok=True)
            patient.rename(whole / patient.name)
    run("export", path, out, "--dataset", "nnunet", "--dicom-source", whole)
    for case in cases[:2]:
        first, other = (
            np.asarray(nib.load(out / "imagesTr" / f"{case}_{n:04d}.nii.gz").dataobj)
            for n in (0, 1)
        )
        assert first.shape == other.shape
        inside = np.s_[6:20, 6:20, 6:18]
        assert np.corrcoef(first[inside].ravel(), other[inside].ravel())[0, 1] < -0.99


@pytest.mark.parametrize(
    ("channels", "why"),
    [
        (("T1", "PET"), r"no study has all images \(has no PET"),
        (("T1", "T1"), "name each image once"),
        (("T1=*mprage*", "T1ce=*mprage*"), r"which series is T1ce\? \*mprage\* fits"),
    ],
)
def test_what_no_study_has_is_told_in_a_line(
    studies: Path, channels: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ScanError, match=why) as told:
        discover_dicom(studies, channels=channels)
    assert "\n" not in str(told.value)


def test_without_names_each_series_is_a_case_that_can_be_chosen(studies: Path) -> None:
    assert len(discover_dicom(studies).cases) == 3 + 2 + 2 + 3
    chosen = [case.image for case in discover_dicom(studies, series="*flair*").cases]
    assert [s.description for s in chosen if isinstance(s, DicomSeries)] == [FLAIR] * 3
