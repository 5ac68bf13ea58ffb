"""Labels live on the scan's own voxels; the training grid's copy can be made of them."""

from __future__ import annotations

import json
import shutil
import sqlite3
import zlib
from collections.abc import Collection
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from napari_jrss import pool
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.layouts import discover
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.project.corrections import Corrections, recoverable
from napari_jrss.project.export.labels import export_label_files
from napari_jrss.project.project import Project

from .faults import of_an_older_version

SHAPE = (44, 40, 36)  # x, y, z in RAS
TABLE = LabelTable.of_groups({"left part": (3,), "right part": (7,), "dot": (500,)})
CUT = {"spacing_mm": (4, 4, 4), "shape": (8, 8, 8)}
KINDS = {
    "RAS": np.int16,
    "LPS": np.int16,
    "PIR": np.uint16,
    "SAL": np.int32,
    "oblique": np.float32,
    "sheared": np.float64,
}


def write(folder: Path, name: str) -> None:
    """A scan and its label; the label reaches every border and has single voxels."""
    rng = np.random.default_rng(list(KINDS).index(name))
    ids = np.zeros(SHAPE, KINDS[name])
    ids[2:20, 3:30, 2:28] = 3
    ids[22:42, :27, 5:] = 7
    ids[rng.random(SHAPE) < 0.02] = 500
    image = (rng.normal(100, 5, SHAPE) + 20 * (ids > 0)).astype(np.float32)
    affine = np.diag([1.0, 1.0, 1.3, 1.0])
    affine[:3, 3] = (-22, -20, 40)
    turn = None
    if name == "oblique":
        a = np.deg2rad(17)
        affine[:3, :3] = np.array(
            [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
        ) @ np.diag([-1.0, 1.1, 1.3])
    elif name == "sheared":
        affine[1, 2] = 0.3
    else:
        turn = ornt_transform(io_orientation(affine), axcodes2ornt(tuple(name)))
    for part, array in (("images", image), ("labels", ids)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        scan = nib.Nifti1Image(array, affine)
        nib.save(
            scan.as_reoriented(turn) if turn is not None else scan, folder / part / f"{name}.nii.gz"
        )


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    for name in KINDS:
        write(folder, name)
    return folder


def make(path: Path, scans: Path, names: Collection[str] = KINDS, **plan: object) -> Project:
    project = Project.create(path, TABLE, PreprocessingConfig.model_validate(plan))
    with pytest.MonkeyPatch.context() as patch:  # starting new processes takes most of the time
        patch.setattr(pool, "get_context", lambda _: get_context("fork"))
        found = [case for case in discover(scans).cases if case.case_id in names]
        results = list(project.add_cases(found, workers=2))
    assert [r.reason for r in results if not r.ok] == []
    return project


@pytest.fixture(scope="module")
def made_once(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A closed project whose grid is coarse and cuts a part of each label off."""
    path = tmp_path_factory.mktemp("made") / "coarse.jrss"
    make(path, scans, **CUT).close()
    return path


@pytest.fixture
def path(made_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "study.jrss"))


def exported(project: Project, folder: Path) -> dict[str, nib.Nifti1Image]:
    return {
        p.name.removesuffix(".nii.gz"): nib.Nifti1Image.from_filename(p)
        for p in export_label_files(project, folder)
    }


def source(scans: Path, name: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_filename(scans / "labels" / f"{name}.nii.gz")


def voxels(image: nib.Nifti1Image) -> NDArray[np.generic]:
    return np.asarray(image.dataobj)


def assert_untouched(project: Project, scans: Path, folder: Path) -> None:
    for name, image in exported(project, folder).items():
        original = source(scans, name)
        assert image.get_data_dtype() == original.get_data_dtype() == KINDS[name]
        assert voxels(image).tobytes() == voxels(original).tobytes()
        np.testing.assert_array_equal(image.affine, original.affine)


def test_an_untouched_label_is_exported_bit_for_bit_though_the_grid_cuts_it(
    path: Path, scans: Path, tmp_path: Path
) -> None:
    """Six orientations and types at 4 mm."""
    with Project.open(path) as project:
        assert {case.case_id for case in project.cases()} == set(KINDS)
        assert_untouched(project, scans, tmp_path / "out")


@pytest.mark.parametrize(
    "plan",
    [
        {"spacing_mm": (4, 4, 4), "prealign": "affine"},
        {"spacing_mm": (0.9, 0.9, 0.9)},
        {"crop": "foreground", "shape": (12, 12, 12), "resize": True},
    ],
    ids=["prealigned", "finer", "resized"],
)
def test_an_untouched_label_is_exported_bit_for_bit_at_any_plan(
    plan: dict[str, object], scans: Path, tmp_path: Path
) -> None:
    with make(tmp_path / "a.jrss", scans, ("SAL", "oblique"), **plan) as project:
        assert len(project.cases()) == 2
        assert_untouched(project, scans, tmp_path / "out")


def nearest(
    transform: GridTransform, shape: tuple[int, ...]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Nearest voxel (z, y, x) of the training grid to each of the scan's own, written anew.

    And whether it is the only one: midway between two, rounding decides.
    """
    back = np.linalg.inv(transform.grid_to_scan)
    points = np.indices(shape).reshape(3, -1)[::-1]
    mapped = back[:3, :3] @ points + back[:3, 3:]
    moved = mapped[::-1].reshape(3, *shape) + 0.5
    return np.floor(moved).astype(int), (np.abs(moved - np.rint(moved)) > 1e-6).all(0)


@pytest.mark.parametrize("case_id", KINDS)
def test_what_is_painted_on_the_training_grid_changes_its_voxels_and_nothing_else(
    case_id: str, path: Path, scans: Path, tmp_path: Path
) -> None:
    with Project.open(path) as project:
        before, label = project.scan_label(case_id), project.label(case_id)
        original = label.copy()
        label[1:3, 2, 2:4] = (label[1:3, 2, 2:4] + 1) % 4
        label[5, 4, 4] = 0
        version = project.add_label_version(case_id, label, "Ada", draft="version:v0001")
        after, transform = project.scan_label(case_id), project.attributes(case_id).transform
        np.testing.assert_array_equal(project.label(case_id), label)
        found = exported(project, tmp_path / "out")[case_id]
        assert project.scan_label(case_id, "v0001").tobytes() == before.tobytes()
        assert project.label_versions(case_id)[-1].version == version
    places, only = nearest(transform, before.shape)
    within = ((places >= 0) & (places < 8)).all(0)
    painted = np.zeros(before.shape, bool)
    painted[within] = (label != original)[tuple(places[:, within])]
    assert 0 < painted.sum() < painted.size / 4
    untouched = ~painted & only
    np.testing.assert_array_equal(after[untouched], before[untouched])
    np.testing.assert_array_equal(after[painted & only], label[tuple(places[:, painted & only])])
    same = transform.turn_to_source(untouched).T
    np.testing.assert_array_equal(voxels(found)[same], voxels(source(scans, case_id))[same])


def test_a_label_drawn_from_nothing_is_where_it_was_painted(path: Path) -> None:
    with Project.open(path) as project:
        label = np.zeros(project.grid.shape, np.uint8)
        label[2, 2, 2] = 3
        project.add_label_version("oblique", label, "Ada")
        found = project.scan_label("oblique")
        transform = project.attributes("oblique").transform
        places, only = nearest(transform, found.shape)
        np.testing.assert_array_equal((found == 3)[only], (places == 2).all(0)[only])
        assert project.restore("oblique", "v0001", "Ada") == "v0003"
        np.testing.assert_array_equal(
            project.scan_label("oblique"), project.scan_label("oblique", "v0001")
        )


def test_the_copy_on_the_training_grid_can_be_thrown_away(path: Path) -> None:
    with Project.open(path) as project:
        label = project.label("PIR")
        shutil.rmtree(project.case_path("PIR") / "labels" / "v0001")
        np.testing.assert_array_equal(project.label("PIR"), label)
        np.testing.assert_array_equal(project.snapshot().arrays.label("PIR"), label)


def test_a_label_that_was_changed_behind_the_ledger_is_refused(path: Path) -> None:
    with Project.open(path) as project:
        case = project.case_path("PIR")
        label = store.read_scan_label(case, "v0001")
        store.add_to_scan(case, "v0001", label[::-1], TABLE)
        with pytest.raises(ProjectError, match="isn't what was written; it is damaged"):
            project.scan_label("PIR")


def test_an_older_project_gets_its_labels_from_their_files(
    path: Path, scans: Path, tmp_path: Path
) -> None:
    with Project.open(path) as project:
        label = project.label("SAL")
        label[1:3, 2, 2:4] = (label[1:3, 2, 2:4] + 1) % 4
        project.add_label_version("SAL", label, "Ada", draft="version:v0001")
        expected = {c.case_id: project.scan_label(c.case_id) for c in project.cases()}
    of_an_older_version(path)
    with Project.open(path) as project:
        assert project.label_versions("SAL")[0].scan_sha256 is None
        for case_id, voxels_ in expected.items():
            np.testing.assert_array_equal(project.scan_label(case_id), voxels_)
            assert project.label_versions(case_id)[-1].scan_sha256 is not None
        assert (
            voxels(exported(project, tmp_path / "out")["PIR"]).tobytes()
            == voxels(source(scans, "PIR")).tobytes()
        )
    assert (path / "project-schema2.sqlite").is_file()
    with Project.open(path, read_only=True) as project:  # kept: no file is needed again
        np.testing.assert_array_equal(project.scan_label("SAL"), expected["SAL"])


def test_where_a_file_is_gone_an_older_label_stays_as_it_is_and_that_is_told(
    path: Path, scans: Path, tmp_path: Path
) -> None:
    of_an_older_version(path)
    with Project.open(path) as project:
        for case_id in ("PIR", "SAL"):
            store.update_sources(project.case_path(case_id), label_source=str(tmp_path / "gone"))
        assert project.labels_without_source() == ["PIR", "SAL"]
        carried = project.attributes("PIR").transform.label_to_scan(project.label("PIR"))
        np.testing.assert_array_equal(project.scan_label("PIR"), carried)
        project.restore("SAL", "v0001", "Ada")
        assert project.label_versions("PIR")[0].scan_sha256 is None
        assert len(list(project.find_sources(scans / "labels"))) == 2
        assert project.labels_without_source() == []
        found = exported(project, tmp_path / "out")
    for case_id in ("PIR", "SAL"):
        assert voxels(found[case_id]).tobytes() == voxels(source(scans, case_id)).tobytes()


def of_the_former_program(
    project: Project, case_id: str, base: NDArray[np.generic], label: NDArray[np.generic]
) -> None:
    """Corrections on the training grid, as the program kept them when labels lay there."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(
            """
            PRAGMA application_id = 1246909251; PRAGMA user_version = 1;
            CREATE TABLE corrections (
                only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
                info TEXT NOT NULL
            ) STRICT;
            CREATE TABLE slices (
                z INTEGER PRIMARY KEY,
                base BLOB NOT NULL,
                label BLOB NOT NULL
            ) STRICT;
            """
        )
        info = {
            "case_id": case_id,
            "draft": "version:v0001",
            "author": "Ada",
            "started": "2026-11-20T10:00:00+00:00",
            "last_change": "2026-11-20T10:05:00+00:00",
            "seconds": 300.0,
            "accepted": [],
            "shape": base.shape,
            "classes": len(TABLE.names),
        }
        db.execute("INSERT INTO corrections VALUES (1, ?)", (json.dumps(info),))
        for z, pair in enumerate(zip(base, label, strict=True)):
            packed = [zlib.compress(each.tobytes(), 1) for each in pair]
            db.execute("INSERT INTO slices VALUES (?, ?, ?)", (z, *packed))
        db.commit()
        path = project.corrections_path(case_id)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(db.serialize())


def test_corrections_of_an_older_version_go_on_on_the_scans_voxels(path: Path) -> None:
    with Project.open(path) as project:
        base, before = project.label("SAL"), project.scan_label("SAL")
        label = base.copy()
        label[1:3, 2, 2:4] = (label[1:3, 2, 2:4] + 1) % 4
        of_the_former_program(project, "SAL", base, label)
        expected = project.attributes("SAL").transform.paint(before, base, label)
        found = recoverable(project, "SAL")
        assert found is not None
        np.testing.assert_array_equal(found.base, before)
        np.testing.assert_array_equal(found.label, expected)
        corrections = Corrections.resume(project, found)
        expected[0, 0, 0] = 1
        corrections.save({0: expected[0]})
        again = recoverable(project, "SAL")
        assert again is not None
        assert not again.carried
        np.testing.assert_array_equal(again.label, expected)
        corrections.accept(expected)
        np.testing.assert_array_equal(project.scan_label("SAL"), expected)
        assert recoverable(project, "SAL") is None
