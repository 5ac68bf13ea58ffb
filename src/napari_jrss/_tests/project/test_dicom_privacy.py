"""No byte of a project tells who a DICOM scan shows."""

from __future__ import annotations

import csv
import gzip
import os
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import zarr

from napari_jrss._tests.io.dicom_phantoms import (
    BIRTH,
    NAME,
    PATIENT,
    lps_affine,
    save,
    slices,
    structures,
)
from napari_jrss._tests.io.phantoms import blobs
from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.case_store import read_attributes
from napari_jrss.project.project import Project

TABLE = LabelTable.from_ids([1], {1: "part"})


def heap(folder: Path) -> Path:
    """Three series of a named patient in folders of that name, one damaged and one missing one."""
    body = (blobs((14, 16, 18)) * 3).astype(np.int16)
    mine = folder / f"{NAME} {BIRTH}"
    for number, order in enumerate(("LPS", "PIR")):
        affine = lps_affine(order, (1.5, 1.2, 1), 4 * number)
        save(mine / f"{PATIENT}-{number}", slices(np.roll(body, number, 1), affine))
    damaged = save(mine / f"damaged {NAME}", slices(body, lps_affine()))
    for path in damaged.iterdir():
        d = pydicom.dcmread(path)
        d.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
        d.PixelData = pydicom.encaps.encapsulate([b"no JPEG 2000" * 20])
        d["PixelData"].is_undefined_length = True
        d.save_as(path)
    save(mine / f"gap {NAME}", [d for k, d in enumerate(slices(body, lps_affine())) if k != 5])
    save(mine / "plans", [structures()])
    (mine / f"{NAME}.txt").write_text(NAME)
    return folder


def planted(folder: Path) -> set[str]:
    """Everything that tells a patient or a series apart, from the files and their paths."""
    found = {NAME, PATIENT, BIRTH, *NAME.split("^"), "Doctor", str(folder)}
    for path in folder.rglob("*"):
        found.add(path.name if len(path.name) > 6 else str(path))
        if path.is_file() and path.suffix != ".txt":
            d = pydicom.dcmread(path, stop_before_pixels=True)
            found |= {str(e.value) for e in d.iterall() if e.VR in ("UI", "PN")}
    return {f for f in found if not f.startswith("1.2.840.10008")}


def every_byte(project: Path) -> dict[str, bytes]:
    """The content of a project, also unpacked: arrays, gzip and the rows of the ledger."""
    held = {"names": "\n".join(str(p.relative_to(project)) for p in project.rglob("*")).encode()}
    for path in project.rglob("*"):
        if path.is_file():
            held[str(path)] = path.read_bytes()
            if path.suffix == ".gz":
                held[f"{path} unpacked"] = gzip.decompress(path.read_bytes())
            if path.name == "zarr.json" and b'"node_type": "array"' in path.read_bytes():
                array = np.asarray(zarr.open_array(path.parent, mode="r")[:])
                held[f"{path.parent} unpacked"] = array.tobytes()
            if path.suffix == ".sqlite":
                with sqlite3.connect(path) as database:
                    held[f"{path} rows"] = "\n".join(database.iterdump()).encode()
    return held


def assert_none_of(words: set[str], project: Path) -> None:
    content = every_byte(project)
    assert any("unpacked" in name for name in content)
    for name, held in content.items():
        for word in words:
            for code in ("utf-8", "utf-16-le", "utf-16-be"):
                assert word.encode(code) not in held, f"{word} in {name}"


@pytest.mark.slow
def test_the_search_finds_what_is_planted(tmp_path: Path) -> None:
    folder = heap(tmp_path / "in")
    words = planted(folder)
    assert len(words) > 40
    project = Project.create(tmp_path / "p.jrss", TABLE, PreprocessingConfig())
    list(project.add_cases(discover_dicom(folder).cases, workers=1))
    project.close()
    case = next((project.path / "cases").glob("*.zarr"))
    group = zarr.open_group(case, mode="r+")
    group.attrs["slip"] = {"who": [NAME]}
    with pytest.raises(AssertionError, match=r"in .*zarr"):
        assert_none_of(words, project.path)


@pytest.mark.slow
def test_a_project_holds_nothing_of_a_patient(tmp_path: Path) -> None:
    folder = heap(tmp_path / "in")
    cohort = discover_dicom(folder)
    assert len(cohort.cases) == 3
    assert any("missing" in entry.reason for entry in cohort.left_out)
    config = PreprocessingConfig(prealign="center_of_mass", crop="foreground")
    with Project.create(tmp_path / "p.jrss", TABLE, config) as project:
        results = list(project.add_cases(cohort.cases, workers=1, groups=cohort.groups))
        assert sorted(r.ok for r in results) == [False, True, True]
        (failed,) = project.failed_imports()
        assert failed.reason.startswith(f"{failed.case_id}: slice 1: damaged pixels")
        case, other = project.cases()
        assert case.group == other.group  # one patient is never divided between splits
        assert str(case.group).startswith("patient-")
        label = np.zeros(project.grid.shape, np.uint8)
        label[2:5, 2:5, 2:5] = 1
        project.add_label_version(case.case_id, label, author="reader one")
        project.split(labelled=1)
        attributes = read_attributes(project.case_path(case.case_id))
        assert attributes.source == "dicom"
        assert project.grid.reference == project.path / "reference.nii.gz"
        assert project.grid.reference.is_file()
    assert_none_of(planted(folder), tmp_path / "p.jrss")
    (tmp_path / "p.jrss").rename(tmp_path / "moved.jrss")
    with Project.open(tmp_path / "moved.jrss", read_only=True) as project:
        assert project.grid.reference == project.path / "reference.nii.gz"


@pytest.mark.slow
def test_a_series_that_is_imported_again_makes_no_second_case(tmp_path: Path) -> None:
    folder = heap(tmp_path / "in")
    with Project.create(tmp_path / "p.jrss", TABLE, PreprocessingConfig()) as project:
        first = list(project.add_cases(discover_dicom(folder).cases, workers=1))
        cases = {case.case_id for case in project.cases()}
        again = list(project.add_cases(discover_dicom(folder).cases, workers=1))
        assert sum(r.ok for r in first) == 2
        assert {r.reason for r in again if "same" in r.reason} == {
            f"the same scan as {case}" for case in cases
        }
        assert not any(r.ok for r in again)
        assert {case.case_id for case in project.cases()} == cases
        assert len(list((project.path / "cases").iterdir())) == 2


@pytest.mark.slow
def test_the_map_is_kept_on_request_and_outside(tmp_path: Path) -> None:
    folder = heap(tmp_path / "in")
    groups = tmp_path / "groups.csv"
    groups.write_text("label,name\n1,part\n")

    def init(project: str, *more: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "napari_jrss", "init", project, "--dicom", str(folder)]
        return subprocess.run(
            [*command, "--groups", str(groups), "--workers", "1", *map(str, more)],
            capture_output=True,
            encoding="utf-8",
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "200"},
            check=False,
        )

    refused = init("p.jrss", "--keep-map", "p.jrss/map.csv")
    assert refused.returncode == 2
    assert "lies in the project" in refused.stderr
    assert not (tmp_path / "p.jrss").exists()
    done = init("p.jrss", "--keep-map", "map.csv")
    assert done.returncode == 0, done.stderr
    assert "2 cases imported" in done.stdout
    assert "a slice is missing" in done.stdout  # the table names files: it is for the screen
    with (tmp_path / "map.csv").open() as file:
        rows = list(csv.DictReader(file))
    uids = {str(pydicom.dcmread(p).SeriesInstanceUID) for p in folder.rglob("IM0000")}
    assert {row["series_instance_uid"] for row in rows} < uids
    assert {row["patient_id"] for row in rows} == {PATIENT}
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "map.csv").stat().st_mode) == 0o600
    again = init("other.jrss", "--keep-map", "map.csv")
    assert (again.returncode, (tmp_path / "other.jrss").exists()) == (2, False)
    assert "map.csv" in again.stderr
    with Project.open(tmp_path / "p.jrss", read_only=True) as project:
        assert {c.case_id for c in project.cases()} < {row["case_id"] for row in rows}
    assert_none_of(planted(folder), tmp_path / "p.jrss")
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"in", "groups.csv", "p.jrss", "map.csv"}
