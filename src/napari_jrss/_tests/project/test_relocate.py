"""Scans whose files have moved are found again by what is in them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from napari_jrss.cli import app
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.layouts import discover
from napari_jrss.project.export.datasets import export_dataset
from napari_jrss.project.project import Project
from napari_jrss.project.records import Event

from .conftest import TABLE, write_scan

pytestmark = pytest.mark.slow


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[Project]:
    """Three cases, one without a label; all files were moved to "new", some renamed."""
    old = tmp_path / "old"
    for i, labelled in enumerate((True, True, False)):
        write_scan(old, f"case{i}", "RAS", seed=i, labelled=labelled)
    with Project.create(tmp_path / "a.jrss", TABLE, PreprocessingConfig()) as project:
        assert all(r.ok for r in project.add_cases(discover(old).cases, workers=1))
        assert project.missing_sources() == []
        (tmp_path / "new" / "deep").mkdir(parents=True)
        shutil.move(old / "images", tmp_path / "new" / "deep" / "images")
        shutil.move(old / "labels", tmp_path / "new" / "labels")
        images = tmp_path / "new" / "deep" / "images"
        (images / "case1.nii.gz").rename(images / "renamed.NII.GZ")
        yield project


def test_files_are_found_by_their_content_and_remembered(moved: Project, tmp_path: Path) -> None:
    new = tmp_path / "new"
    shutil.copy(new / "deep" / "images" / "case0.nii.gz", new / "copy.nii.gz")
    (new / "case2.nii.gz").write_text("another file of that name")
    if hasattr(os, "mkfifo"):
        os.mkfifo(new / "pipe.nii.gz")
    assert len(moved.missing_sources()) == 5
    with pytest.raises(ProjectError, match="can't be read"):
        export_dataset(moved, tmp_path / "Dataset001_Brain")
    found = {(s.case_id, s.kind): s.path for s in moved.find_sources(new)}
    images = new / "deep" / "images"
    assert found == {
        ("case0", "scan"): images / "case0.nii.gz",
        ("case1", "scan"): images / "renamed.NII.GZ",
        ("case2", "scan"): images / "case2.nii.gz",
        ("case0", "label"): new / "labels" / "case0.nii.gz",
        ("case1", "label"): new / "labels" / "case1.nii.gz",
    }
    assert moved.missing_sources() == []
    assert moved.attributes("case1").source == str(images / "renamed.NII.GZ")
    assert moved.label("case1").any()
    assert [e.detail for e in moved.history("case1") if e.kind is Event.RELINKED] == [
        "label",
        "scan",
    ]
    export_dataset(moved, tmp_path / "Dataset001_Brain")
    assert list(moved.find_sources(new)) == []


def test_what_is_not_there_stays_missing(moved: Project, tmp_path: Path) -> None:
    images = tmp_path / "new" / "deep" / "images"
    changed = images / "case0.nii.gz"
    changed.write_bytes(changed.read_bytes() + b"!")
    assert {s.case_id for s in moved.find_sources(images)} == {"case1", "case2"}
    old = tmp_path / "old"
    assert [(f.case_id, f.kind, f.path) for f in moved.missing_sources()] == [
        ("case0", "scan", old / "images" / "case0.nii.gz"),
        ("case0", "label", old / "labels" / "case0.nii.gz"),
        ("case1", "label", old / "labels" / "case1.nii.gz"),
    ]
    with pytest.raises(ProjectError, match="nowhere: no such folder"):
        list(moved.find_sources(tmp_path / "nowhere"))
    moved.close()
    with Project.open(moved.path, read_only=True) as reader:
        assert len(reader.missing_sources()) == 3
        with pytest.raises(ProjectError, match="read-only"):
            list(reader.find_sources(images))


def test_the_command_says_what_it_found_and_what_not(moved: Project, tmp_path: Path) -> None:
    moved.close()
    run = CliRunner()
    told = run.invoke(app, ["relink", str(moved.path), str(tmp_path / "new" / "deep")]).output
    assert "3 files found" in told
    assert "case0: label case0.nii.gz is still missing" in told
    told = run.invoke(app, ["relink", str(moved.path), str(tmp_path / "new")]).output
    assert "2 files found" in told
    assert "missing" not in told
    told = run.invoke(app, ["relink", str(moved.path), str(tmp_path / "new")]).output
    assert "no file is missing" in told


def test_scans_of_two_files_are_told_by_their_voxels(tmp_path: Path) -> None:
    old, labels = tmp_path / "old", tmp_path / "labels"
    old.mkdir()
    labels.mkdir()
    for name, seed in (("a", 0), ("b", 1), ("twin", 0)):
        array = np.random.default_rng(seed).integers(0, 99, (9, 9, 9)).astype(np.int16)
        nib.Nifti1Pair(array, np.eye(4)).to_filename(old / f"{name}.hdr")
        nib.Nifti1Pair(np.where(array > 50, 3, 0).astype(np.uint8), np.eye(4)).to_filename(
            labels / f"{name}.hdr"
        )
    assert (old / "a.hdr").read_bytes() == (old / "b.hdr").read_bytes()
    with Project.create(tmp_path / "a.jrss", TABLE, PreprocessingConfig()) as project:
        results = list(project.add_cases(discover(images=old, labels=labels).cases, workers=1))
        assert {r.case_id: r.reason for r in results} == {
            "a": "",
            "b": "",
            "twin": "the same scan as a",
        }
        new = tmp_path / "new"
        new.mkdir()
        for ending in (".hdr", ".img"):
            (old / f"a{ending}").rename(new / f"x{ending}")
            (old / f"b{ending}").rename(new / f"a{ending}")
        shutil.copy(new / "a.hdr", new / "alone.hdr")
        with pytest.raises(ProjectError, match="'napari-jrss relink' finds scans"):
            export_dataset(project, tmp_path / "Dataset001_Brain")
        found = {s.case_id: s.path.name for s in project.find_sources(new)}
        assert found == {"a": "x.hdr", "b": "a.hdr"}
        (new / "x.img").write_bytes((new / "a.img").read_bytes())
        with pytest.raises(ProjectError, match=r"x\.hdr: has changed since case"):
            export_dataset(project, tmp_path / "Dataset001_Brain")
