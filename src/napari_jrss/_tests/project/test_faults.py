"""A fault campaign: programs killed with SIGKILL at many steps, full disks, read-only folders.

NAPARI_JRSS_KILLS=all kills before every single step instead of a sample of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest

from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import EXPECTED, ProjectError
from napari_jrss.io.layouts import FoundCase, FoundCohort
from napari_jrss.io.predictions import read_prediction
from napari_jrss.preprocess import case_store as store
from napari_jrss.project.corrections import Corrections, recover, unsaved
from napari_jrss.project.export.labels import export_label_files
from napari_jrss.project.project import Project
from napari_jrss.project.records import Event, RoundOutcome

from .conftest import TABLE, write_scan
from .faults import ATTEMPTS, PROGRAMS, Where, of_an_older_version

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows"),
]

ALL = os.environ.get("NAPARI_JRSS_KILLS") == "all"
KILLS = 10
"""Kills per program, unless all."""


Play = Callable[[str, Where, int | None], tuple[int, int]]


@pytest.fixture(scope="module")
def play() -> Iterator[Play]:
    """Runs a program in a process of its own, up to a step: its exit code and its steps."""
    command = [sys.executable, "-m", "napari_jrss._tests.project.faults"]
    nursery = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert nursery.stdin is not None
    assert nursery.stdout is not None
    requests, answers = nursery.stdin, nursery.stdout

    def play(program: str, where: Where, deadly: int | None) -> tuple[int, int]:
        paths = [str(getattr(where, field.name)) for field in fields(where)]
        requests.write(json.dumps([program, deadly, *paths]) + "\n")
        code, steps = json.loads(answers.readline())
        return code, steps

    yield play
    requests.close()
    nursery.wait()
    answers.close()


@pytest.fixture(scope="module")
def small(cohort: FoundCohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two labelled cases, which are quick to copy and to check."""
    path = tmp_path_factory.mktemp("small") / "brain.jrss"
    with Project.create(path, TABLE, PreprocessingConfig()) as project:
        assert all(r.ok for r in project.add_cases(cohort.cases[:2], workers=1))
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scan with a label and one without."""
    folder = tmp_path_factory.mktemp("scans")
    write_scan(folder, "new0", "RAS", seed=7)
    write_scan(folder, "new1", "LAS", seed=8, labelled=False)
    return folder


def check(where: Where, before: Path) -> None:
    """The project opens, all that was there and all that was said to be done is there, whole."""
    said = [line.split() for line in where.done.read_text().splitlines()]
    with Project.open(where.project) as project, Project.open(before, read_only=True) as old:
        ledger = sqlite3.connect(project.path / "project.sqlite")
        assert ledger.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert ledger.execute("PRAGMA foreign_key_check").fetchall() == []
        ledger.close()
        cases = {case.case_id for case in project.cases()}
        assert cases >= {case.case_id for case in old.cases()}
        for case_id in sorted(cases):
            assert project.image(case_id).shape == project.grid.shape
            assert project.attributes(case_id).case_id == case_id
            for version in project.label_versions(case_id):
                project.label(case_id, version.version)  # checks what it reads
                project.scan_label(case_id, version.version)
        for case in old.cases():
            versions = [v.sha256 for v in project.label_versions(case.case_id)]
            before_ = [v.sha256 for v in old.label_versions(case.case_id)]
            assert versions[: len(before_)] == before_
            for version in old.label_versions(case.case_id):
                np.testing.assert_array_equal(
                    project.scan_label(case.case_id, version.version),
                    old.scan_label(case.case_id, version.version),
                )
        assert project.history()[: len(old.history())] == old.history()
        # A folder that no row speaks of is whole all the same.
        assert [path.name for path in project.path.glob("cases*")] == [project.cases_path.name]
        for path in project.cases_path.iterdir():
            assert path.suffix == ".zarr", "something is left aside"
            store.read_attributes(path)
            store.read_image(path)
            for version in store.label_versions(path):
                store.read_label(path, version)
        for entry in project.rounds():
            assert (entry.folder / "config.json").read_text() == "{}"
            for path in (entry.folder / "predictions").glob("[!.]*.zarr"):
                read_prediction(path.parent, path.stem)
        finished = [
            r
            for r in project.rounds()
            if r.outcome is RoundOutcome.FINISHED and project.of_this_plan(r)
        ]
        assert project.teacher == (finished[-1] if finished else None)
        painted = [int(words[1]) for words in said if words[0] == "painted"]
        accepted = [v for v in project.label_versions("case0") if v.draft == "version:v0001"]
        for problem in [entry.problem for entry in unsaved(project)]:
            assert problem == ""
        if painted and not accepted:
            assert recover(project, "case0").voxels_changed >= max(painted) - 1
        if accepted:
            assert unsaved(project) == []
        for words in said:
            match words:
                case ["case", case_id, "True"]:
                    assert case_id in cases
                case ["version", case_id, version]:
                    assert version in [v.version for v in project.label_versions(case_id)]
                case ["event", case_id, kind]:
                    history = project.history(None if case_id == "-" else case_id)
                    assert Event(kind) in [entry.kind for entry in history]
                case ["scan", case_id]:
                    assert project.label_versions(case_id)[0].scan_sha256 is not None
                case ["round", number]:
                    project.round(int(number))
                case ["teacher", number]:
                    assert project.round(int(number)).outcome is RoundOutcome.FINISHED
                case ["file", path]:
                    assert Path(path).exists()
                case ["plan", spacing]:
                    assert project.grid.spacing_mm == (float(spacing),) * 3
                case ["case", *_] | ["painted", _] | ["moved", _]:
                    pass
                case _:
                    raise AssertionError(words)
    for path in where.out.rglob("[!.]*.nii.gz"):
        np.asarray(nib.load(path).dataobj)  # whole, or not under this name
    for path in where.out.rglob("Dataset001_Brain"):
        description = json.loads((path / "dataset.json").read_text())
        assert description["numTraining"] == len(list((path / "labelsTr").iterdir()))


def points(steps: int) -> Iterator[int]:
    """Which steps to kill before: all, or the first, the last and some between."""
    chosen = range(1, steps + 1) if ALL else np.linspace(1, steps, min(KILLS, steps))
    yield from sorted({round(n) for n in chosen})


@pytest.mark.parametrize("program", PROGRAMS)
def test_killed_before_any_step_nothing_is_lost(
    program: str,
    play: Play,
    small: Path,
    scans: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    def fresh(name: str) -> Where:
        where = Where(tmp_path / f"{name}.jrss", scans, tmp_path / f"{name}.out", tmp_path / name)
        shutil.copytree(small, where.project)
        if program == "bring_up":
            of_an_older_version(where.project)
        where.out.mkdir()
        where.done.touch()
        return where

    straight = fresh("straight")
    code, steps = play(program, straight, None)
    assert code == 0
    assert steps > 10
    check(straight, small)
    kills = 0
    for deadly in points(steps):
        where = fresh(f"killed{deadly}")
        code, _ = play(program, where, deadly)
        assert code == -signal.SIGKILL
        kills += code == -signal.SIGKILL
        check(where, small)
        if program != "paint":  # it goes on where it was killed, or does all of it again
            assert play(program, where, None)[0] == 0
            check(where, small)
        shutil.rmtree(where.project)
    assert kills >= min(KILLS, steps) - 2
    record_property("kills", kills)
    print(f"{program}: killed {kills} times at {steps} steps")


IMPORTING = """
import sys
from napari_jrss.io.layouts import (discover)
from napari_jrss.project.project import (Project)

if __name__ == "__main__":
    with Project.open(sys.argv[1]) as project:
        for result in project.add_cases(discover(sys.argv[2]).cases, workers=2):
            print("case", result.case_id, result.ok, flush=True)
"""


def test_an_import_killed_from_outside_leaves_no_worker_and_no_half_case(
    small: Path, tmp_path: Path
) -> None:
    """The real thing, with workers that were spawned; only the parent is killed."""
    (tmp_path / "importing.py").write_text(IMPORTING)
    for i in range(6):
        write_scan(tmp_path / "scans", f"new{i}", "RAS", seed=10 + i, labelled=i % 2 == 0)
    where = Where(tmp_path / "a.jrss", tmp_path / "scans", tmp_path / "out", tmp_path / "done")
    shutil.copytree(small, where.project)
    command = [sys.executable, tmp_path / "importing.py", where.project, where.scans]
    for _ in range(2):
        with where.done.open("w") as done:
            process = subprocess.Popen(command, stdout=done)
            while "True" not in where.done.read_text():
                assert process.poll() is None
                time.sleep(0.02)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
        assert workers
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert alive == []
        check(where, small)
    with where.done.open("w") as done:
        subprocess.run(command, stdout=done, check=True)
    check(where, small)
    with Project.open(where.project, read_only=True) as project:
        assert len(project.cases()) == 8


# -- no room, or no right to write


def outcomes(play: Play, where: Where, limit: int | None) -> dict[str, str]:
    """What became of each attempt: "done", or one line that names a file."""
    assert play("attempt", where, limit)[0] == 0
    answers = dict(json.loads(where.done.read_text()))
    where.done.write_text("")
    for name, answer in answers.items():
        if answer != "done":
            assert "\n" not in answer, answer
            assert str(where.project.parent) in answer or str(where.out) in answer, (name, answer)
    return answers


def test_files_that_cannot_grow_leave_the_project_as_it_was(
    play: Play, small: Path, scans: Path, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE, which needs no rights."""
    failed = set()
    for limit in (0, 100, 700, 2_000, 9_000):
        where = Where(tmp_path / f"{limit}.jrss", scans, tmp_path / "out", tmp_path / "done")
        shutil.copytree(small, where.project)
        where.out.mkdir(exist_ok=True)
        failed |= {
            name for name, answer in outcomes(play, where, limit).items() if answer != "done"
        }
        check(where, small)
        assert set(outcomes(play, where, None).values()) == {"done"}
        check(where, small)
        shutil.rmtree(where.out)
    assert failed == set(ATTEMPTS)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"can't mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_project_as_it_was(
    play: Play, small: Path, scans: Path, disk: Path, tmp_path: Path
) -> None:
    failed = set()
    for room in (0, 4, 12, 24, 40, 64):
        where = Where(disk / f"{room}.jrss", scans, disk / "out", tmp_path / "done")
        shutil.copytree(small, where.project)
        where.out.mkdir()
        usage = shutil.disk_usage(disk)
        (disk / "filler").write_bytes(bytes(usage.free - 1024 * room))
        failed |= {name for name, answer in outcomes(play, where, None).items() if answer != "done"}
        (disk / "filler").unlink()
        check(where, small)
        assert set(outcomes(play, where, None).values()) == {"done"}
        check(where, small)
        shutil.rmtree(where.out)
        shutil.rmtree(where.project)
    assert failed == set(ATTEMPTS)


def test_a_folder_that_cannot_be_written_can_be_looked_at(
    small: Path, scans: Path, disk: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(small, disk / "brain.jrss"))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(ProjectError, match=r"brain\.jrss: can't be written \(Read-only file"):
        Project.open(path)
    with pytest.raises(ProjectError, match=r"new\.jrss: can't be made \(Read-only file"):
        Project.create(disk / "new.jrss", TABLE, PreprocessingConfig())
    with Project.open(path, read_only=True) as project:
        assert project.label("case0").any()
        assert len(list(export_label_files(project, tmp_path / "labels"))) == 2
        with pytest.raises(ProjectError, match="Read-only file system"):
            list(export_label_files(project, disk / "labels"))


def test_a_disk_that_becomes_read_only_under_way_is_told(
    small: Path, disk: Path, tmp_path: Path
) -> None:
    path = Path(shutil.copytree(small, disk / "brain.jrss"))
    with Project.open(path) as project:
        label, scan = project.label("case0"), project.scan_label("case0")
        # Files that are open to be written stand in the way of an ordinary remount.
        freeze = ["mount", "-o", "remount,ro,bind", str(disk), str(disk)]
        subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
        subprocess.run(freeze, check=True)
        try:
            for change in (
                lambda: project.add_label_version("case0", label, "Ada"),
                lambda: project.restore("case0", "v0001", "Ada"),
                lambda: Corrections(project, "case0", "blank", scan, "Ada").save({0: scan[0]}),
                lambda: project.start_round(None, "{}", {}),
            ):
                with pytest.raises(ProjectError, match=r"Read-only file system|readonly"):
                    change()
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)
    with Project.open(path) as project:
        assert len(project.label_versions("case0")) == 1
        assert project.rounds() == []


def test_a_disk_that_is_gone_is_told(small: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(small, tmp_path / "brain.jrss"))
    with Project.open(path) as project:
        label, scan = project.label("case0"), project.scan_label("case0")
        path.rename(tmp_path / "elsewhere")
        for call in (
            lambda: project.label("case0"),
            lambda: project.add_label_version("case0", label, "Ada"),
            lambda: project.reject("case0", "Ada"),
            lambda: project.start_round(None, "{}", {}),
            lambda: Corrections(project, "case0", "blank", scan, "Ada").save({0: scan[0]}),
            lambda: list(project.add_cases([FoundCase("new", tmp_path / "new.nii.gz")])),
        ):
            with pytest.raises(ValueError, match=r"brain\.jrss") as caught:
                call()
            assert isinstance(caught.value, EXPECTED)
        assert not path.exists()
    with Project.open(tmp_path / "elsewhere") as project:
        assert len(project.label_versions("case0")) == 1
