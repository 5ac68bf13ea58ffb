"""What the program reads from the disk, each with a sound example, ways to spoil it, a reader.

:mod:`napari_jrss._tests.hostile.fuzz` runs the same targets for some minutes.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pydicom.uid import RLELossless

from napari_jrss._tests.io.dicom_phantoms import enhanced, save, slices
from napari_jrss._tests.project.former import FORMAT, former_file, record, write_former_file
from napari_jrss.app.settings import SettingsError, training_config
from napari_jrss.app.status import project_status
from napari_jrss.config import PreprocessingConfig, preset
from napari_jrss.errors import ProjectError, ScanError
from napari_jrss.geometry import rows
from napari_jrss.io.dicom import find_series
from napari_jrss.io.label_files import label_table_from_csv
from napari_jrss.io.layouts import discover, read_case_groups
from napari_jrss.io.nifti import read_label_volume
from napari_jrss.io.predictions import Prediction, read_prediction, write_prediction
from napari_jrss.io.read import read_header, read_volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.case_attributes import CaseAttributes
from napari_jrss.preprocess.transform import GridTransform, Intensity, TrainingGrid
from napari_jrss.project.corrections import Corrections, recover, unsaved
from napari_jrss.project.lock import WriterLock
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome
from napari_jrss.project.schema import MIGRATIONS

from .mutations import (
    Mutation,
    of_bytes,
    of_dicom,
    of_frames,
    of_json,
    of_nifti,
    of_replacement,
    of_rows,
    of_sql,
)

SHAPE = (8, 8, 8)
TABLE = LabelTable.of_groups({"left part": (3,), "right part": (7,)})
SECONDS = 10.0
"""Longest time that reading one of these small inputs may take."""
MEGABYTES = 300
"""Most memory that reading one may add to the process."""


@dataclass(frozen=True)
class Target:
    """Something that is read.

    Attributes
    ----------
    name
        What it is.
    make
        Writes a sound example into an empty folder.
    read
        Reads it out of that folder as the program does.
    mutations
        Ways to spoil it.
    errors
        What reading may raise; each message names a path in the folder.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], object]
    mutations: SearchStrategy[Mutation]
    errors: tuple[type[Exception], ...]


class FaultError(AssertionError):
    """What a reader did that it must not do."""


def attack(target: Target, mutation: Mutation, arena: Path) -> bool:
    """Spoil a copy of the sound example and read it; returns whether it was refused.

    Parameters
    ----------
    target, mutation
        What, and how.
    arena
        A folder of this process's own. It gets ``thing`` to read and ``outside``, which must
        stay as it was.

    Raises
    ------
    FaultError
        Another error than the target's, one that doesn't name the file, no end, too much
        memory, or a change outside.
    """
    sound, thing, outside = arena / f"sound {target.name}", arena / "thing", arena / "outside"
    if not sound.exists():
        sound.mkdir(parents=True)
        target.make(sound)
        shutil.copytree(sound, thing)
        target.read(thing)
        outside.mkdir(exist_ok=True)
        (outside / "loot").write_text("precious")
    shutil.rmtree(thing, ignore_errors=True)
    shutil.copytree(sound, thing, symlinks=True)
    mutation(thing)
    before, around = _contents(outside), _names(arena)
    refused = False
    try:
        with _within(SECONDS), _in_little_memory():
            target.read(thing)
    except target.errors as error:
        refused = True
        text = str(error)
        if str(thing) not in text:
            raise FaultError(f"doesn't name the file: {text[:500]}") from error
        if "\n" in text or len(text) > 2000:
            raise FaultError(f"not one short line: {text[:500]}") from error
    except FaultError:
        raise
    except BaseException as error:
        raise FaultError(f"{type(error).__name__}: {str(error)[:500]}") from error
    if _contents(outside) != before or _names(arena) != around:
        raise FaultError("something was written outside")
    return refused


@contextmanager
def an_arena() -> Iterator[Path]:
    """A folder for :func:`attack`, in memory where the system has such, as much is flushed."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        arena = Path(folder) / "arena"
        arena.mkdir()
        yield arena


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: object) -> None:
        raise FaultError(f"no end after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _in_little_memory() -> Iterator[None]:
    """Limit the address space, and look at the peak afterwards where the system tells it."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/status")
    if not status.exists():
        yield
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    start = _kilobytes(status, "VmRSS")
    room = _kilobytes(status, "VmSize") * 1024 + 4 * MEGABYTES * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        used = (_kilobytes(status, "VmHWM") - start) / 1024
        if used > MEGABYTES:
            raise FaultError(f"took {used:.0f} MB")


def _kilobytes(status: Path, key: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise KeyError(key)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- scans


def _scan(folder: Path, name: str, label: bool = False) -> None:
    rng = np.random.default_rng(0)
    ids = np.zeros(SHAPE, np.uint8)
    ids[2:6, 2:6, 1:4], ids[2:6, 2:6, 4:7] = 3, 7
    array = ids if label else (ids * 20 + rng.normal(0, 3, SHAPE)).astype(np.float32)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(image, folder / name)


def _scans(folder: Path) -> None:
    _scan(folder, "scan.nii")
    _scan(folder, "scan.nii.gz")
    _scan(folder, "label.nii.gz", label=True)


def _read_scans(folder: Path) -> None:
    for name in ("scan.nii", "scan.nii.gz", "label.nii.gz"):
        path = folder / name
        header = read_header(path)
        volume = read_volume(path)
        assert volume.shape == header.shape[::-1]
        assert np.isfinite(volume.affine).all()
        assert np.isfinite(volume.array).all()
        assert volume.to_lps().array.size == volume.array.size
    read_label_volume(folder / "label.nii.gz")


_SCANS = ("scan.nii", "scan.nii.gz", "label.nii.gz")


_OTHERS = ("scan.nrrd", "scan.mha", "scan.mgz")


def _other_scans(folder: Path) -> None:
    _scan(folder, "scan.nii")
    image = sitk.ReadImage(str(folder / "scan.nii"))
    (folder / "scan.nii").unlink()
    for name in _OTHERS[:2]:
        sitk.WriteImage(image, str(folder / name), useCompression=name == "scan.mha")
    array = sitk.GetArrayFromImage(image).T
    nib.save(nib.MGHImage(array, np.diag([1.0, 1.5, 2.0, 1.0])), folder / "scan.mgz")


def _read_other_scans(folder: Path) -> None:
    for name in _OTHERS:
        header, volume = read_header(folder / name), read_volume(folder / name)
        assert volume.shape == header.shape[::-1]
        assert np.isfinite(volume.affine).all()
        assert np.isfinite(volume.array).all()


# -- DICOM series


def _dicom(folder: Path) -> None:
    voxels = np.arange(4 * 8 * 8, dtype=np.int16).reshape(4, 8, 8)
    affine = np.diag([1.0, 1.5, 2.0, 1.0])
    save(folder / "plain", slices(voxels, affine))
    save(folder / "frames", [enhanced(voxels, affine)])
    packed = slices(voxels, affine, "MR")
    for one in packed:
        one.compress(RLELossless)
    save(folder / "packed", packed)


def _read_dicom(folder: Path) -> None:
    series, left = find_series(folder)
    assert len(series) + len(left) > 0
    for each in series:
        assert np.isfinite(each.affine).all()
    for name in ("plain", "frames", "packed"):
        volume = read_volume(folder / name)
        assert np.isfinite(volume.array).all()
        assert volume.to_lps().array.size == volume.array.size


_DICOM = ("plain/IM0000", "plain/IM0002", "frames/IM0000", "packed/IM0001")


# -- a folder of scans


def _decathlon(folder: Path) -> None:
    for number in range(2):
        _scan(folder / "imagesTr", f"brain_{number}.nii.gz")
        _scan(folder / "labelsTr", f"brain_{number}.nii.gz", label=True)
    description = {
        "name": "Brain",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "3": "left part", "7": "right part"},
        "training": [
            {"image": f"./imagesTr/brain_{n}.nii.gz", "label": f"./labelsTr/brain_{n}.nii.gz"}
            for n in range(2)
        ],
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _nnunet(folder: Path) -> None:
    for number in range(2):
        _scan(folder / "imagesTr", f"brain_{number}_0000.nii.gz")
        _scan(folder / "labelsTr", f"brain_{number}.nii.gz", label=True)
    description = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "left part": 3, "right part": 7},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(description))


def _read_cohort(folder: Path) -> None:
    cohort = discover(folder)
    for case in cohort.cases:
        for file in filter(None, (case.image, case.label)):
            # A link may lead anywhere, as scans often lie elsewhere; a name in a file may not.
            assert Path(os.path.normpath(file)).is_relative_to(folder), file


def _tables(folder: Path) -> None:
    (folder / "groups.csv").write_text(
        "label,name,class_id,class_name,colour\n3,left,1,left part,#e69f00\n"
        "7,right,2,right part,#56b4e9\n8,right too,2,right part,\n"
    )
    (folder / "cases.csv").write_text("case,subject\na.nii.gz,1\nb.nii.gz,1\nc.nii.gz,2\n")


def _read_groups(folder: Path) -> None:
    table = label_table_from_csv(folder / "groups.csv")
    assert len(table.names) == len({c.index for c in table.classes})
    ids = np.array([i for c in table.classes for i in c.source_ids], np.int32)
    assert (table.to_classes(ids) < len(table.classes)).all()
    LabelTable.model_validate_json(table.model_dump_json())


def _read_subjects(folder: Path) -> None:
    groups = read_case_groups(folder / "cases.csv", "subject", ["a", "b", "c"])
    assert all(groups.values())


def _settings(folder: Path) -> None:
    text = preset("smoke").model_dump_json(exclude={"seed", "preset"})
    (folder / "changes.json").write_text(text)


# -- a case


def make_case(folder: Path, case_id: str, label: bool = True) -> Path:
    """A case of a project, without the scan that it would have been made from."""
    rng = np.random.default_rng(len(case_id))
    classes = np.zeros(SHAPE, np.uint8)
    classes[2:6, 2:6, 1:4], classes[2:6, 2:6, 4:7] = 1, 2
    transform = GridTransform(
        source_shape=SHAPE,
        source_affine=rows(np.eye(4)),
        header=None,
        shape=SHAPE,
        grid_to_source=rows(np.eye(4)),
        intensity=Intensity(low=0, high=100, mean=50, std=20),
    )
    attributes = CaseAttributes(
        case_id=case_id,
        source="scan.nii.gz",
        checksum="0" * 64,
        transform=transform,
        spacing_mm=(1, 1, 1),
    )
    image = rng.normal(0, 1, SHAPE).astype(np.float32)
    return store.write_case(
        folder, attributes, image, classes if label else None, TABLE, version="v0001"
    )


def _read_case(folder: Path) -> None:
    path = store.case_path(folder, "a")
    attributes = store.read_attributes(path)
    assert store.read_image(path).shape == attributes.transform.shape
    for version in store.label_versions(path):
        assert store.read_label(path, version).max() < len(TABLE.classes)
    back = attributes.transform.label_to_source(np.zeros(attributes.transform.shape, np.uint8))
    assert back.shape == attributes.transform.source_shape


_CASE = "a.ome.zarr"
_CASE_JSON = tuple(
    f"{_CASE}/{name}zarr.json" for name in ("", "0/", "labels/", "labels/v0001/", "labels/v0001/0/")
)
_CASE_CHUNKS = (f"{_CASE}/0/c/0/0/0", f"{_CASE}/labels/v0001/0/c/0/0/0")
_CASE_FOLDERS = (_CASE, f"{_CASE}/0", f"{_CASE}/labels", f"{_CASE}/labels/v0001", f"{_CASE}/0/c")


def _predictions(folder: Path) -> None:
    label = np.ones(SHAPE, np.uint8)
    half = np.full(SHAPE, 0.5, np.float16)
    write_prediction(folder, "a", Prediction(label, half, half))


def _read_prediction(folder: Path) -> None:
    try:
        prediction = read_prediction(folder, "a")
    except KeyError:  # there is none, which is no damage
        assert not (folder / "a.zarr").exists()
        return
    assert prediction.label.shape == prediction.confidence.shape


# -- a project


def make_project(folder: Path) -> None:
    """A project of four cases and two rounds, made without worker processes."""
    path = folder / "brain.jrss"
    with Project.create(path, TABLE, PreprocessingConfig()) as project:
        grid = TrainingGrid(shape=SHAPE, spacing_mm=(1, 1, 1))
        project._ledger.set_grid(grid.model_dump_json())
        for case_id in "abcd":
            make_case(path / "cases", case_id, label=case_id != "d")
            project.register_case(case_id, group=f"subject {case_id}")
        project.split(labelled=1, validation=1)
        training = next(c.case_id for c in project.cases() if c.labelled)
        project.restore(training, "v0001", "Ada")
        project.reject("d", "Ada", "not a brain")
        project._ledger.fail_import("e", "e.nii.gz: truncated")
        config = json.dumps(
            {
                "training": preset("smoke").model_dump(mode="json"),
                "classes": list(TABLE.names),
                "rounds_left": 0,
            }
        )
        parent = None
        for _ in range(2):
            entry = project.start_round(parent, config, project.snapshot().label_versions)
            metrics = {"labelled": 1.0, "accepted": 1.0, "validation_segmentation_dice": 0.5}
            project.finish_round(entry.number, RoundOutcome.FINISHED, metrics, promote=True)
            parent = entry.number


def _look_at_project(folder: Path) -> None:
    with Project.open(folder / "brain.jrss", read_only=True) as project:
        project_status(project).model_dump_json()
        for case in project.cases():
            project.attributes(case.case_id)
            assert project.image(case.case_id).shape == project.grid.shape
            for version in project.label_versions(case.case_id):
                project.label(case.case_id, version.version)
            for entry in project.history(case.case_id):
                assert entry.at
        for entry in project.rounds():
            entry.files.description()
        project.history()
        snapshot = project.snapshot()
        for case_id in snapshot.labelled:
            snapshot.arrays.label(case_id)


def _work_in_project(folder: Path) -> None:
    """Look at it, then write into it what a person would."""
    _look_at_project(folder)
    with Project.open(folder / "brain.jrss") as project:
        case_id = project.cases()[0].case_id
        project.add_label_version(case_id, np.ones(project.grid.shape, np.uint8), "Ada")
        project.skip(case_id, "Ada", "later")
        entry = project.start_round(None, "{}", project.snapshot().label_versions)
        project.finish_round(entry.number, RoundOutcome.CANCELLED)
    _look_at_project_again(folder)


def _look_at_project_again(folder: Path) -> None:
    with Project.open(folder / "brain.jrss", read_only=True) as project:
        case_id = project.cases()[0].case_id
        assert project.label(case_id).all()


def _columns() -> dict[str, tuple[str, ...]]:
    import sqlite3

    connection = sqlite3.connect(":memory:")
    for script in MIGRATIONS:
        connection.executescript(script)
    tables = [
        name
        for (name,) in connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
        )
    ]
    columns = {
        table: tuple(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
        for table in tables
    }
    connection.close()
    return columns


_PROJECT = "brain.jrss"
_CORRECTIONS = f"{_PROJECT}/journal/d.sqlite"
_FORMER = f"{_PROJECT}/journal/d.journal"
_PROJECT_PARTS = (
    *("", "/cases", "/rounds", "/rounds/0000", "/rounds/0001", "/rounds/0001/config.json"),
    *("/project.sqlite", "/project.lock", "/cases/a.ome.zarr", "/cases/a.ome.zarr/labels"),
    *("/cases/a.ome.zarr/labels/v0001", "/cases/a.ome.zarr/labels/zarr.json"),
    "/cases/a.ome.zarr/0/c/0/0/0",
)


def _corrections(folder: Path) -> None:
    make_project(folder)
    with Project.open(folder / _PROJECT) as project:
        label = np.zeros(SHAPE, np.uint8)
        corrections = Corrections(project, "d", "blank", label.copy(), "Ada")
        for z in range(3):
            label[z, z] = 1
            corrections.save({z: label[z]}, accepted={1}, seconds=z)


def _former_corrections(folder: Path) -> None:
    make_project(folder)
    records = [record(1.7e9 + i, i, [i, 100 + i], b"\1\2") for i in range(3)]
    blank, classes = np.zeros(SHAPE, np.uint8), len(TABLE.classes)
    content = former_file("d", "blank", blank, "Ada", classes, *records)
    write_former_file(folder / _PROJECT, "d", content)


def _recover(folder: Path) -> None:
    with Project.open(folder / _PROJECT) as project:
        for entry in unsaved(project):
            assert not entry.problem or str(folder) in entry.problem, entry.problem
        found = recover(project, "d")
        assert found.label.max() < len(TABLE.classes)
        assert found.voxels_changed <= found.label.size
        corrections = Corrections.resume(project, found)
        found.label[0, 0, 5] = 1
        corrections.save({0: found.label[0]})
        corrections.accept(found.label)
        project.label("d")


def _hold(folder: Path) -> None:
    (folder / "project.lock").touch()
    (folder / "project.writer").write_text(
        '{"process": 1, "computer": "x", "since": "2026-01-01T00:00:00+00:00"}'
    )


def _wait_for(folder: Path) -> None:
    """What a second program says while another holds the lock."""
    path = folder / "project.lock"
    if not path.is_file() or path.is_symlink():
        WriterLock(path).release()
        return
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            WriterLock(path)
        except ProjectError as error:
            if "open for writing in" not in str(error):
                raise
        else:
            raise AssertionError("two hold one lock")


READERS: tuple[Target, ...] = (
    Target(
        "scan",
        _scans,
        _read_scans,
        st.one_of(of_nifti(*_SCANS), of_bytes(*_SCANS), of_replacement(*_SCANS)),
        (ScanError,),
    ),
    Target(
        "NRRD, MetaImage and MGZ",
        _other_scans,
        _read_other_scans,
        st.one_of(of_bytes(*_OTHERS), of_replacement(*_OTHERS)),
        (ScanError,),
    ),
    Target(
        "DICOM series",
        _dicom,
        _read_dicom,
        st.one_of(of_dicom(*_DICOM), of_bytes(*_DICOM), of_replacement(*_DICOM)),
        (ScanError,),
    ),
    Target(
        "decathlon folder",
        _decathlon,
        _read_cohort,
        st.one_of(
            of_json("dataset.json"),
            of_json("dataset.json"),
            of_bytes("dataset.json"),
            of_replacement("dataset.json", "imagesTr/brain_0.nii.gz", "labelsTr"),
        ),
        (ScanError,),
    ),
    Target(
        "nnU-Net folder",
        _nnunet,
        _read_cohort,
        st.one_of(
            of_json("dataset.json"),
            of_bytes("dataset.json"),
            of_replacement("imagesTr", "labelsTr", "labelsTr/brain_1.nii.gz"),
        ),
        (ScanError,),
    ),
    Target(
        "groups.csv",
        _tables,
        _read_groups,
        st.one_of(of_rows("groups.csv"), of_bytes("groups.csv"), of_replacement("groups.csv")),
        (ScanError,),
    ),
    Target(
        "cases.csv",
        _tables,
        _read_subjects,
        st.one_of(of_rows("cases.csv"), of_bytes("cases.csv"), of_replacement("cases.csv")),
        (ScanError,),
    ),
    Target(
        "settings file",
        _settings,
        lambda folder: training_config("fast", folder / "changes.json"),
        st.one_of(
            of_json("changes.json"), of_bytes("changes.json"), of_replacement("changes.json")
        ),
        (SettingsError,),
    ),
    Target(
        "case in zarr",
        lambda folder: (make_case(folder, "a"), None)[1],
        _read_case,
        st.one_of(
            of_json(*_CASE_JSON),
            of_json(*_CASE_JSON),
            of_bytes(*_CASE_JSON, *_CASE_CHUNKS),
            of_replacement(*_CASE_JSON, *_CASE_CHUNKS, *_CASE_FOLDERS),
        ),
        (ScanError,),
    ),
    Target(
        "prediction in zarr",
        _predictions,
        _read_prediction,
        st.one_of(
            of_json("a.zarr/zarr.json", "a.zarr/label/zarr.json", "a.zarr/confidence/zarr.json"),
            of_bytes("a.zarr/label/zarr.json", "a.zarr/label/c/0/0/0"),
            of_replacement("a.zarr", "a.zarr/label", "a.zarr/label/zarr.json", "a.zarr/zarr.json"),
        ),
        (ScanError,),
    ),
    Target(
        "ledger, looked at",
        make_project,
        _look_at_project,
        st.one_of(
            of_sql(f"{_PROJECT}/project.sqlite", _columns()),
            of_sql(f"{_PROJECT}/project.sqlite", _columns()),
            of_bytes(f"{_PROJECT}/project.sqlite"),
        ),
        (ProjectError, ScanError),
    ),
    Target(
        "project, worked in",
        make_project,
        _work_in_project,
        st.one_of(
            of_replacement(*(_PROJECT + part for part in _PROJECT_PARTS)),
            of_sql(f"{_PROJECT}/project.sqlite", _columns()),
            of_bytes(f"{_PROJECT}/project.sqlite", f"{_PROJECT}/project.lock"),
            of_json(
                f"{_PROJECT}/cases/a.ome.zarr/labels/zarr.json",
                f"{_PROJECT}/cases/a.ome.zarr/zarr.json",
                f"{_PROJECT}/rounds/0001/config.json",
            ),
        ),
        (ProjectError, ScanError),
    ),
    Target(
        "corrections",
        _corrections,
        _recover,
        st.one_of(
            of_sql(_CORRECTIONS, {"corrections": ("only_row", "info"), "slices": ("z", "label")}),
            of_bytes(_CORRECTIONS),
            of_replacement(f"{_PROJECT}/journal", _CORRECTIONS),
        ),
        (ProjectError, ScanError),
    ),
    Target(
        "corrections, former format",
        _former_corrections,
        _recover,
        st.one_of(
            of_frames(_FORMER, len(FORMAT)),
            of_bytes(_FORMER),
            of_replacement(f"{_PROJECT}/journal", _FORMER),
        ),
        (ProjectError, ScanError),
    ),
    Target(
        "project.lock, held",
        _hold,
        _wait_for,
        st.one_of(
            of_json("project.writer"),
            of_bytes("project.writer", "project.lock"),
            of_replacement("project.writer"),
            of_replacement("project.lock"),
        ),
        (ProjectError,),
    ),
)
