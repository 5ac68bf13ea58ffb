"""The log of a project: what it holds, what it must not hold, and that it never fails the work."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from napari_jrss import __version__
from napari_jrss._tests.app.phantoms import give_teacher, make_project
from napari_jrss.app.runner import JobRunner
from napari_jrss.errors import ScanError
from napari_jrss.io.layouts import FoundCase
from napari_jrss.logs import LOG
from napari_jrss.processes import Child, Parent, ProcessError
from napari_jrss.project.project import Project

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} (INFO|WARNING|ERROR) napari_jrss\S*: ")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("logged"))


@pytest.fixture
def path(made_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "brain.jrss"))


@pytest.mark.slow
def test_it_tells_what_happened_to_the_project(path: Path, tmp_path: Path) -> None:
    with Project.open(path) as project:
        (tmp_path / "broken.nii").write_bytes(b"no scan")
        broken = FoundCase("broken", tmp_path / "broken.nii", None)
        (failed,) = project.add_cases([broken], workers=1)
        give_teacher(project)
    lines = (path / LOG).read_text().splitlines()
    assert all(LINE.match(line) for line in lines)
    text = "\n".join(lines)
    assert f"opened brain.jrss; napari-jrss {__version__}, torch " in text
    assert "imported case_00, with a label" in text
    assert f"broken can't be imported: {failed.reason}" in text
    assert 'round 0 begins: {"' in text
    assert '"preset":"smoke"' in text
    assert "round 0 is finished: {}" in text
    assert lines[-1].endswith("closed brain.jrss")


def test_only_the_program_that_writes_into_the_project_logs(path: Path) -> None:
    before = (path / LOG).read_bytes()
    with pytest.raises(ZeroDivisionError), Project.open(path, read_only=True):
        1 / 0  # noqa: B018
    assert (path / LOG).read_bytes() == before
    assert not any(
        str(path) in str(handler) for handler in logging.getLogger("napari_jrss").handlers
    )


def test_an_unexpected_error_is_logged_with_its_traceback(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Project.open(path):
        1 / 0  # noqa: B018
    text = (path / LOG).read_text()
    assert "ERROR napari_jrss.project.folder: ended early: ZeroDivisionError" in text
    assert f'File "{__file__}"' in text


def test_a_job_that_fails_is_logged(path: Path) -> None:
    def work(cancel: object) -> None:
        raise KeyError("nothing of this name")

    with Project.open(path):
        runner = JobRunner("inference")
        runner.start(work)  # type: ignore[arg-type]
        assert runner.wait(10)
    assert "inference failed: KeyError: 'nothing of this name'\n" in (path / LOG).read_text()


def fail_in_child(parent: Parent) -> None:
    """What the child of the next test does."""
    print("no such layer", file=sys.stderr, flush=True)
    os._exit(3)


def receive(child: Child) -> bytes:
    while (line := child.receive()) is None:
        pass
    return line


@pytest.mark.slow
def test_a_child_process_that_fails_leaves_what_it_printed(path: Path) -> None:
    with Project.open(path), Child("training", fail_in_child, log=path / "training.log") as child:
        with pytest.raises(ProcessError, match="exit code 3"):
            receive(child)
        pid = child.pid
    text = (path / LOG).read_text()
    assert f"the training process {pid} starts\n" in text
    assert f"the training process {pid} ends with code 3; it printed:\nno such layer\n" in text


@pytest.mark.parametrize("error", [ScanError, FileNotFoundError])
def test_no_path_of_a_scan_is_logged(path: Path, error: type[Exception]) -> None:
    def fail() -> None:
        secret = "/data/Mueller^Hans 1960/IM0001"
        try:
            raise (
                error(2, "No such file or directory", secret)
                if error is not ScanError
                else error(secret)
            )
        except error as cause:
            raise RuntimeError("decoder") from cause

    with pytest.raises(RuntimeError), Project.open(path):
        fail()
    text = (path / LOG).read_text()
    assert "RuntimeError: decoder" in text
    assert f"caused by {error.__name__}" in text
    assert "Mueller" not in text
    assert "IM0001" not in text


def test_a_log_of_a_million_bytes_begins_anew(path: Path) -> None:
    old = b"x" * 1_000_000
    (path / LOG).write_bytes(old)
    Project.open(path).close()
    assert (path / f"{LOG}.1").read_bytes() == old
    assert "opened brain.jrss" in (path / LOG).read_text()


def test_a_link_or_a_folder_in_its_place_is_left_alone(path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.txt"
    outside.write_text("mine\n")
    (path / LOG).unlink()
    (path / LOG).symlink_to(outside)
    Project.open(path).close()
    assert outside.read_text() == "mine\n"
    (path / LOG).unlink()
    (path / LOG).mkdir()
    Project.open(path).close()
    assert list((path / LOG).iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit of the size of files")
def test_the_work_goes_on_where_the_log_can_not_be_written(path: Path) -> None:
    import resource

    (path / LOG).write_bytes(b"x" * 900_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, before[1]))
    try:
        with Project.open(path) as project:
            project.skip("case_05", "Ada")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (path / LOG).stat().st_size == 900_000
    with Project.open(path, read_only=True) as project:
        assert project.history("case_05")[-1].kind == "skipped"


@pytest.mark.slow
def test_verbose_logs_to_the_standard_error(path: Path) -> None:
    command = [sys.executable, "-m", "napari_jrss", "--verbose", "split", str(path), "--test", "1"]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    lines = result.stderr.splitlines()
    assert LINE.match(lines[0])
    assert "opened brain.jrss" in lines[0]
    assert "training" in result.stdout
