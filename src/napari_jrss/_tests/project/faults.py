"""Programs that die: each changes a project, and is killed before its n-th step on the disk."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np

from napari_jrss import processes
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import EXPECTED
from napari_jrss.io.layouts import discover
from napari_jrss.io.predictions import Prediction, write_prediction
from napari_jrss.labels import LabelTable
from napari_jrss.project.corrections import Corrections, recoverable
from napari_jrss.project.export.datasets import export_dataset
from napari_jrss.project.export.folder import ExportFolder
from napari_jrss.project.export.labels import export_label_files
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome

TABLE = LabelTable.of_groups({"left part": (3,), "right part": (7,)})
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
_STATEMENTS = ("BEGIN", "INSERT", "UPDATE", "COMMIT", "CREATE", "ALTER", "PRAGMA user_version")


@dataclass(frozen=True)
class Where:
    """What a program works on: a project, scans to add, a folder to export to, and a file in
    which it says what it was told is done."""

    project: Path
    scans: Path
    out: Path
    done: Path

    def say(self, text: str) -> None:
        with self.done.open("a") as file:
            file.write(text + "\n")


def ingest(where: Where) -> None:
    with Project.open(where.project) as project:
        for result in project.add_cases(discover(where.scans).cases, workers=1):
            where.say(f"case {result.case_id} {result.ok}")


def paint(where: Where) -> None:
    """Corrections of case0, never accepted."""
    with Project.open(where.project) as project:
        label = project.scan_label("case0")
        corrections = Corrections(project, "case0", "version:v0001", label.copy(), "Ada")
        for i in range(4):
            label.flat[[2 * i, 2 * i + 1]] = 2
            corrections.save({0: label[0]}, seconds=i)
            where.say(f"painted {2 * i + 2}")


def accept(where: Where) -> None:
    """Corrections of case0, accepted; as often as there is no second version."""
    with Project.open(where.project) as project:
        if len(project.label_versions("case0")) > 1:
            return
        found = recoverable(project, "case0")
        if found is not None:
            corrections, label = Corrections.resume(project, found), found.label
        else:
            label = project.scan_label("case0")
            corrections = Corrections(project, "case0", "version:v0001", label.copy(), "Ada")
        label[0, 0, :6] = 2
        corrections.save({0: label[0]})
        where.say("painted 6")
        where.say(f"version case0 {corrections.accept(label)}")


def decide(where: Where) -> None:
    """An earlier label brought back, one pseudo-label rejected, one skipped, another split."""
    with Project.open(where.project) as project:
        where.say(f"version case1 {project.restore('case1', 'v0001', 'Ada')}")
        project.reject("case0", "Ada", "leaks")
        where.say("event case0 rejected")
        project.skip("case1", "Ada")
        project.split(labelled=1)
        where.say("event - split")


def bring_up(where: Where) -> None:
    """Labels of a project of an older version, brought to the scans' own voxels."""
    with Project.open(where.project) as project:
        for case in project.cases():
            project.scan_label(case.case_id)
            where.say(f"scan {case.case_id}")


def of_an_older_version(project: Path) -> None:
    """Make a project what it was when labels lay on the training grid only."""
    for case in (project / "cases").iterdir():
        shutil.rmtree(case / "scan", ignore_errors=True)
    with closing(sqlite3.connect(project / "project.sqlite")) as ledger, ledger:
        ledger.executescript(
            "ALTER TABLE project DROP COLUMN plan; ALTER TABLE project DROP COLUMN cases_folder;"
            "ALTER TABLE project DROP COLUMN channels; ALTER TABLE rounds DROP COLUMN kind;"
            "DROP TABLE scan_labels; PRAGMA user_version = 2;"
        )


def play_round(where: Where) -> None:
    """A round as the engine and the session write one."""
    with Project.open(where.project) as project:
        left = project.unfinished_round()
        if left is None:
            entry = project.start_round(None, "{}", project.snapshot().label_versions)
        else:
            entry = project.resume_round(left.number)
        where.say(f"round {entry.number}")
        label = project.label("case0")
        for case_id in ("case0", "case1"):
            confidence = np.ones(label.shape, np.float16)
            write_prediction(entry.folder / "predictions", case_id, Prediction(label, confidence))
        project.finish_round(entry.number, RoundOutcome.FINISHED, {"dice": 0.5}, promote=True)
        where.say(f"teacher {entry.number}")


def replan(where: Where) -> None:
    """Other cases for a coarser training grid."""
    with Project.open(where.project) as project:
        wishes = PreprocessingConfig(spacing_mm=(2.5, 2.5, 2.5))
        plan = project.propose_plans(7200, wishes)["balanced"]
        for moved in project.change_plan(plan, "Ada", workers=1):
            where.say(f"moved {moved.case_id}")
        where.say("plan 2.5")


def export(where: Where) -> None:
    with Project.open(where.project, read_only=True) as project:
        for path in export_label_files(project, where.out / "labels"):
            where.say(f"file {path}")
        if not (where.out / "Dataset001_Brain").exists():
            export_dataset(project, where.out / "Dataset001_Brain")


def replace_exported(where: Where) -> None:
    """An exported file replaced by a later export, which must know it whenever that died."""
    for content in (b"first", b"second"):
        out = ExportFolder(where.out / "names", ["labels.txt"])
        out.make()
        where.say(f"file {out.write('labels.txt', content)}")


PROGRAMS: dict[str, Callable[[Where], None]] = {
    "ingest": ingest,
    "paint": paint,
    "accept": accept,
    "decide": decide,
    "bring_up": bring_up,
    "play_round": play_round,
    "replan": replan,
    "export": export,
    "replace_exported": replace_exported,
}


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def run(program: str, where: Where, steps: Synchronized[int], deadly: int | None) -> None:
    """Run a program, and kill its process and its workers before a step.

    A step is whatever changes the disk: a file opened to be written, renamed, removed or
    flushed, a folder made, a statement that changes the ledger. `steps` counts them, in the
    workers too.
    """

    def step() -> None:
        with steps.get_lock():
            steps.value += 1
            if steps.value == deadly:
                os.killpg(0, signal.SIGKILL)

    def trace(statement: str) -> None:
        if statement.lstrip().startswith(_STATEMENTS):
            step()

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        if event in _CHANGES or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        ):
            step()

    connect, flush = sqlite3.connect, os.fsync

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        if arguments[0] != ":memory:":
            connection.set_trace_callback(trace)
        return connection

    def fsync(descriptor: int) -> None:
        step()
        flush(descriptor)

    os.fsync, sqlite3.connect = fsync, traced
    sys.addaudithook(audit)
    # Forked, so that the workers count their steps too, and at once.
    processes.get_context = lambda _: get_context("fork")  # type: ignore[assignment]
    PROGRAMS[program](where)


def attempt(where: Where, limit: int | None) -> None:
    """Do one thing after the other where there is no room, or none for files of more than
    `limit` bytes; say of each whether it was done, or why not."""
    processes.get_context = lambda _: get_context("fork")  # type: ignore[assignment]
    if limit is not None:
        import resource

        where.done.touch()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    answers = []
    for name, work in ATTEMPTS.items():
        try:
            answer = work(where)
        except Exception as error:
            answer = str(error) if isinstance(error, EXPECTED) else traceback.format_exc()
        answers.append([name, answer])
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    where.done.write_text(json.dumps(answers))


def _label(where: Where) -> str:
    with Project.open(where.project) as project:
        label = np.random.default_rng(0).integers(0, 3, project.grid.shape)
        project.add_label_version("case0", label, "Ada")
    return "done"


def _reject(where: Where) -> str:
    with Project.open(where.project) as project:
        project.reject("case1", "Ada")
    return "done"


def _restore(where: Where) -> str:
    with Project.open(where.project) as project:
        project.restore("case1", "v0001", "Ada")
    return "done"


def _corrections(where: Where) -> str:
    with Project.open(where.project) as project:
        shape = project.attributes("case1").transform.scan_shape
        base = np.random.default_rng(1).integers(0, 3, shape)
        corrections = Corrections(project, "case1", "blank", base, "Ada")
        try:
            corrections.save(dict(enumerate(base // 2)))
            corrections.save({0: base[0]}, accepted={1})
        finally:
            corrections.discard()
    return "done"


def _round(where: Where) -> str:
    play_round(replace(where, done=Path(os.devnull)))
    return "done"


def _ingest(where: Where) -> str:
    with Project.open(where.project) as project:
        results = list(project.add_cases(discover(where.scans).cases, workers=1))
    reasons = [r.reason for r in results if not r.ok and "already" not in r.reason]
    return reasons[0] if reasons else "done"


def _replan(where: Where) -> str:
    replan(replace(where, done=Path(os.devnull)))
    return "done"


def _export(where: Where) -> str:
    export(replace(where, done=Path(os.devnull)))
    return "done"


def _create(where: Where) -> str:
    Project.create(where.out / "new.jrss", TABLE, PreprocessingConfig()).close()
    shutil.rmtree(where.out / "new.jrss")
    return "done"


ATTEMPTS: dict[str, Callable[[Where], str]] = {
    "label": _label,
    "reject": _reject,
    "restore": _restore,
    "corrections": _corrections,
    "round": _round,
    "ingest": _ingest,
    "replan": _replan,
    "export": _export,
    "create": _create,
}


def nursery() -> None:
    """Run the programs named on the standard input, each in a process forked from this one,
    which has imported all that they need; tell how each ended, and after how many steps."""
    for line in sys.stdin:
        program, number, *paths = json.loads(line)
        steps = get_context("fork").Value("i", 0)
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(2, 1)
            code = 1
            try:
                where = Where(*map(Path, paths))
                if program == "attempt":
                    attempt(where, number)
                else:
                    run(program, where, steps, number)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        # Not through its lock, which the dead may hold.
        print(json.dumps([status, steps.get_obj().value]), flush=True)


if __name__ == "__main__":
    nursery()
