"""What Windows and macOS need, as far as it shows on any system."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest

import napari_jrss
from napari_jrss._tests.app.phantoms import give_teacher, make_project
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError
from napari_jrss.io.found import case_id_of, stem
from napari_jrss.project.drafts import keep_draft
from napari_jrss.project.folder import check_case_id
from napari_jrss.project.project import Project

PACKAGE = Path(napari_jrss.__file__).parent
SOURCES = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_tests" not in path.relative_to(PACKAGE).parts
]
POSIX_ONLY = {
    "os": {
        *("fork", "forkpty", "killpg", "setsid", "getpgid", "getuid", "geteuid", "chown", "nice"),
        *("sched_getaffinity", "mkfifo", "wait", "WNOHANG", "getsid", "setpgid"),
    },
    "signal": {"SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "alarm", "pause"},
}
POSIX_MODULES = {"fcntl", "grp", "pwd", "resource", "termios", "pty", "tty", "syslog"}
# Where they are used all the same, behind a question about the system.
GUARDED = {
    ("processes.py", "os.killpg"),
    ("processes.py", "signal.SIGKILL"),
    ("threads.py", "os.sched_getaffinity"),
}


def used(path: Path) -> Iterator[str]:
    """Names in a file that only POSIX has."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.attr in POSIX_ONLY.get(node.value.id, ()):
                yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.Import):
            yield from (each.name for each in node.names if each.name in POSIX_MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module in POSIX_MODULES:
            yield node.module


def test_no_module_calls_what_only_posix_has() -> None:
    found = {
        (path.relative_to(PACKAGE).as_posix(), name) for path in SOURCES for name in used(path)
    }
    assert found <= GUARDED, sorted(found - GUARDED)
    assert found >= GUARDED, "no longer used: take it out of the list"


@pytest.mark.slow
def test_every_worker_is_spawned() -> None:
    """A fork copies locks; Windows has none, and macOS advises against it."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            given = [ast.unparse(each) for each in node.args]
            if name == "get_context":
                assert given == ["'spawn'"], path
            if name == "ProcessPoolExecutor":
                assert "get_context('spawn')" in given, path
            assert not ast.unparse(node.func).endswith("multiprocessing.Process"), path


@pytest.mark.slow
def test_the_core_runs_where_posix_calls_are_missing() -> None:
    """As on Windows, `os` and `signal` lack them; what stands on them must ask first."""
    names = sorted(
        f"napari_jrss.{path.relative_to(PACKAGE).with_suffix('').as_posix().replace('/', '.')}"
        for path in SOURCES
        if path.name not in ("__init__.py", "__main__.py")
        and path.relative_to(PACKAGE).parts[0] not in ("widgets", "training", "networks")
    )
    probe = (
        "import importlib, os, signal\n"
        "for name in ('killpg', 'sched_getaffinity', 'getpgid', 'fork', 'nice'):\n"
        "    delattr(os, name)\n"
        "del signal.SIGHUP, signal.SIGUSR1\n"
        f"for name in {names}: importlib.import_module(name)\n"
        "from napari_jrss.pool import in_processes\n"
        "from napari_jrss.threads import available_cores\n"
        "assert available_cores() >= 1\n"
        "print([result for _, result in in_processes(abs, [-1, -2], 1)])\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["[1,", "2]"]


def test_every_file_of_a_project_can_be_named_on_windows(tmp_path: Path) -> None:
    path = make_project(tmp_path)
    with Project.open(path) as project:
        give_teacher(project)
        shape = project.attributes("case_05").transform.scan_shape
        keep_draft(project, "case_05", "tool:A_program_2.4.0", np.zeros(shape, np.uint8))
    session = Session(author="anna")
    session.open(path)
    session.review.open("case_06")
    session.review.wait(10)
    session.review.open_case.editor.label[0, :2, :2] = 2
    session.close()
    files = [each.relative_to(path) for each in path.rglob("*")]
    assert any(each.parts[0] == "journal" for each in files)
    for each in files:
        for part in PureWindowsPath(each).parts:
            assert not set(part) & set('<>:"|?*\\'), each
            assert part == part.rstrip(" ."), each
            assert not _reserved(part), each
        assert len(str(each)) < 120, "Windows takes 260 characters with the folder's own path"


def _reserved(name: str) -> bool:
    stem_ = name.split(".")[0].upper()
    devices = {f"{kind}{n}" for kind in ("COM", "LPT") for n in "123456789"}
    return stem_ in devices | {"CON", "PRN", "AUX", "NUL"}


@pytest.mark.parametrize("name", ["con", "NUL.x", "lpt1", "a.", "a b", "a:b", "a\\b", "..\\a"])
def test_a_case_that_windows_cannot_name_is_refused(name: str) -> None:
    with pytest.raises(ProjectError, match="can't be a case id"):
        check_case_id(name)


def test_paths_of_windows_give_the_same_names() -> None:
    scan = PureWindowsPath(r"D:\Study 1\images\case_01.nii.gz")
    assert stem(scan) == "case_01"  # type: ignore[arg-type]
    check_case_id(case_id_of(stem(scan)))  # type: ignore[arg-type]
