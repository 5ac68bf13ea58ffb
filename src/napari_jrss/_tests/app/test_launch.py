"""Rounds on another computer: a real sshd on the loopback, and a script in srun's place."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

import napari_jrss
from napari_jrss._tests.app import sshd
from napari_jrss._tests.app.phantoms import FINE, assert_same_rounds
from napari_jrss._tests.app.series import train
from napari_jrss._tests.training.phantoms import (
    Never,
    assert_same_tensors,
    kinds,
    tiny_config,
    weights,
)
from napari_jrss.app.planning import change_plan, propose
from napari_jrss.app.rounds.launch import InLaunchedProcess, LaunchError, RunOn
from napari_jrss.cli import app
from napari_jrss.config import PreprocessingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.networks.weights import StateDict
from napari_jrss.processes import ProcessError
from napari_jrss.progress_bar import finish
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome
from napari_jrss.training.events import Cancelled, EpochEnd, Event, StepEnd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the signals are POSIX's"),
]

# Long enough to be interrupted, with a saved state every few steps.
LONG = {"segmentation": {"epochs": 1, "minimum_steps": 60}}
ENDLESS = {"segmentation": {"epochs": 1, "minimum_steps": 100_000}}
SOURCES = str(Path(napari_jrss.__file__).parents[1])

needs_sshd = pytest.mark.skipif(bool(sshd.MISSING), reason=sshd.MISSING)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    environment = {"PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
    with sshd.serving(tmp_path_factory.mktemp("sshd"), environment) as running:
        yield running


@pytest.fixture
def far(server: sshd.Server) -> Iterator[RunOn]:
    """Where rounds run by ssh; nothing may be left running there."""
    yield RunOn(server.command, sys.executable, threads=1)
    assert wait_until(lambda: not far_sides(), 5)


@pytest.fixture(scope="module")
def expected(trainable_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return Straight(trainable_once, tmp_path_factory.mktemp("straight"))


class Straight:
    """The same rounds trained in this process, without interruption, once for each settings."""

    def __init__(self, project: Path, folder: Path) -> None:
        self._project, self._folder = project, folder
        self._known: dict[str, tuple[list[Event], list[dict[str, StateDict]]]] = {}

    def __call__(self, rounds: int, **changes: object):
        key = f"{rounds} {changes}"
        if key not in self._known:
            path = shutil.copytree(self._project, self._folder / f"{len(self._known)}.jrss")
            with Project.open(path) as project:
                events = list(train(project, tiny_config(**changes), rounds, Never(), device="cpu"))
                self._known[key] = events, [weights(e.folder) for e in project.rounds()]
        return self._known[key]


def far_sides() -> list[psutil.Process]:
    """The far sides of launched trainings that run on this computer."""
    mark = ["-P", "-m", "napari_jrss.app.rounds.remote"]
    every = psutil.process_iter(["cmdline"])
    return [process for process in every if (process.info["cmdline"] or [])[1:] == mark]


def wait_until(condition, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def executor(project: Project, run_on: RunOn, **options: object) -> InLaunchedProcess:
    return InLaunchedProcess(project.path, run_on, "cpu", **options)


def assert_as_expected(project: Project, expected: list[dict[str, StateDict]]) -> None:
    assert len(project.rounds()) == len(expected)
    for entry, known in zip(project.rounds(), expected, strict=True):
        assert entry.outcome is RoundOutcome.FINISHED
        assert_same_tensors(weights(entry.folder), known)
        assert {p.name for p in entry.folder.iterdir()} == {
            *(f for f in known), "config.json", "metrics.jsonl", "predictions"
        }  # fmt: skip


@needs_sshd
def test_by_ssh_with_copies_it_is_the_round_of_this_process(
    server: sshd.Server, far: RunOn, project: Project, expected: Straight, monkeypatch
) -> None:
    events, known = expected(1)
    seen = {}
    own = []
    for event in train(project, tiny_config(), 1, Never(), executor=executor(project, far)):
        own.append(event)
        if event.kind == "stage_started" and event.stage == "student_1":
            seen = {p: p.read_bytes() for p in server.home.rglob("*") if p.is_file()}
    assert [each for each in kinds(own) if each[1] != "sending"] == kinds(events)
    assert_as_expected(project, known)
    assert project.round(1).metrics["device"] == "cpu by ssh"
    for entry in project.rounds():
        for case in project.snapshot(entry.number).unlabelled:
            assert entry.files.prediction(case) is not None
    # What was there: arrays, networks and predictions; nothing of where the scans came from.
    names = {p.relative_to(server.home).as_posix() for p in seen}
    assert len(names) > 20
    assert not [name for name in names if "sqlite" in name or "scan" in name]
    cases = {case.case_id for case in project.cases()}
    used = {*project.snapshot().training, *project.snapshot().validation}
    assert {n.split("/cases/")[1].split(".")[0] for n in names if "/cases/" in n} == used < cases
    source = Path(project.attributes(cases.pop()).source)
    assert not [p for p, content in seen.items() if str(source.parent).encode() in content]
    # When the series has ended, nothing is kept there.
    left = {p.suffix for p in server.home.rglob("*") if p.is_file()}
    assert left <= {".lock"}


def finer(finer_once: Path, place: Path) -> Project:
    """A project whose scans are finer than its grid, open for writing."""
    return Project.open(shutil.copytree(finer_once, place / "coarse.jrss"))


@needs_sshd
def test_by_ssh_the_scans_go_out_once_for_labels_at_their_own_voxels(
    server: sshd.Server, far: RunOn, finer_once: Path, fine_round: Path, tmp_path: Path
) -> None:
    with finer(finer_once, tmp_path) as project:
        sent: list[str] = []
        seen: dict[Path, bytes] = {}
        told = 0
        for event in train(project, FINE, 1, Never(), executor=executor(project, far)):
            if event.kind == "file_sent":
                sent.append(event.file)
                assert event.step <= told
            elif event.kind == "stage_started" and event.stage == "sending":
                told = event.steps  # the megabytes, before they go
            elif event.kind == "stage_started" and event.stage == "own_voxels_1":
                seen = {p: p.read_bytes() for p in server.home.rglob("*") if p.is_file()}
        assert_same_rounds(project, fine_round)
        scans = [name for name in sent if "/scan/" in name]
        assert len(set(scans)) == len(scans)
        assert sum("/scan/image/0/c/" in name for name in scans) == len(project.cases())
        labelled = project.snapshot().label_versions
        assert sum("/scan/v0001/0/c/" in name for name in scans) == len(labelled)
        assert not [name for name in sent if "scan_label" in name]
        folder = str(finer_once.parent).encode()
        assert seen
        assert not [path for path, content in seen.items() if folder in content]


def test_in_a_folder_that_both_see_labels_at_their_own_voxels_are_learned(
    finer_once: Path, fine_round: Path, tmp_path: Path
) -> None:
    with finer(finer_once, tmp_path) as project:
        run_on = RunOn(wrapper(tmp_path, 'exec "$@"'), threads=1)
        events = list(train(project, FINE, 1, Never(), executor=executor(project, run_on)))
        assert "file_sent" not in {event.kind for event in events}
        assert_same_rounds(project, fine_round)


@needs_sshd
def test_by_ssh_after_a_change_of_the_plan_and_without_a_registration_network(
    far: RunOn, project: Project, tmp_path: Path
) -> None:
    """The cases are in another folder then, and their labels on another grid."""
    wishes = PreprocessingConfig(spacing_mm=tuple(1.25 * s for s in project.grid.spacing_mm))
    change_plan(project, propose(project, "2h", wishes)["balanced"], workers=1)
    config = tiny_config(
        registration={"epochs": 0, "minimum_steps": 0},
        joint={"student": "perturbed", "segmentation_epochs": 1, "registration_epochs": 0},
    )
    with Project.open(shutil.copytree(project.path, tmp_path / "here.jrss")) as here:
        list(train(here, config, 1, Never(), device="cpu"))
        known = [weights(entry.folder) for entry in here.rounds()]
    list(train(project, config, 1, Never(), executor=executor(project, far)))
    assert_as_expected(project, known)


@needs_sshd
def test_a_killed_connection_leaves_a_round_that_resumes(
    far: RunOn, project: Project, expected: Straight
) -> None:
    _, known = expected(0, **LONG)
    place = executor(project, far)
    killed = []

    def cut(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == 40:
            killed.append(place.process)
            os.kill(place.process, signal.SIGKILL)

    with pytest.raises(ProcessError, match=r"connection to ssh .* broke .* resume goes on"):
        finish(train(project, tiny_config(**LONG), 0, Never(), executor=place), cut)
    assert len(killed) == 1
    assert wait_until(lambda: not far_sides(), 5)
    assert project.round(0).outcome is RoundOutcome.FAILED

    again = list(
        train(project, tiny_config(), 0, Never(), resume=True, executor=executor(project, far))
    )
    started = next(event for event in again if event.kind == "stage_started")
    # What had gone there wasn't sent again, and the steps that were saved weren't taken again.
    assert (started.stage, started.first_step > 0) == ("mono_segmentation", True)
    assert_as_expected(project, known)


@needs_sshd
def test_cancel_reaches_the_other_side_and_the_round_goes_on_at_home(
    far: RunOn, project: Project, expected: Straight
) -> None:
    _, known = expected(0, **LONG)
    cancel, asked = threading.Event(), 0.0
    events = []
    for event in train(project, tiny_config(**LONG), 0, cancel, executor=executor(project, far)):
        events.append(event)
        if isinstance(event, EpochEnd) and not asked:
            asked = time.monotonic()
            cancel.set()
    assert time.monotonic() - asked < 5
    assert isinstance(events[-1], Cancelled)
    assert 0 < events[-1].step < 60
    assert project.round(0).outcome is RoundOutcome.CANCELLED
    assert project.round(0).files.state("mono_segmentation").exists()

    at_home = list(train(project, tiny_config(), 0, Never(), resume=True, device="cpu"))
    assert at_home[0].first_step == events[-1].step
    assert_as_expected(project, known)


@needs_sshd
def test_a_folder_that_both_share_is_trained_in_where_it_is_seen_there(
    server: sshd.Server, far: RunOn, project: Project, expected: Straight, tmp_path: Path
) -> None:
    _, known = expected(0)
    odd = tmp_path / "mine & 'yours'"
    odd.mkdir()
    seen = odd / "the study.jrss"
    seen.symlink_to(project.path)
    python = odd / "python 3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    place = executor(project, RunOn(server.command, str(python), str(seen), threads=1))
    events = list(train(project, tiny_config(), 0, Never(), executor=place))
    assert "file_sent" not in {event.kind for event in events}
    assert_as_expected(project, known)

    elsewhere = RunOn(server.command, sys.executable, str(tmp_path))
    with pytest.raises(ProcessError, match=r"ssh .*: .* isn't the project's folder there"):
        list(train(project, tiny_config(), 1, Never(), executor=executor(project, elsewhere)))
    assert len(project.rounds()) == 1


@needs_sshd
def test_a_connection_that_falls_silent_counts_as_broken(far: RunOn, project: Project) -> None:
    place = executor(project, far, silence=10.0)
    stopped = []

    def hold(event: Event) -> None:
        if isinstance(event, StepEnd) and not stopped:
            stopped.append(time.monotonic())
            os.kill(place.process, signal.SIGSTOP)

    with pytest.raises(ProcessError, match=r"connection .* broke"):
        finish(train(project, tiny_config(**ENDLESS), 0, Never(), executor=place), hold)
    assert 1 < time.monotonic() - stopped[0] < 30
    assert wait_until(lambda: not far_sides(), 5)


@needs_sshd
def test_the_command_line_sends_a_training_away_and_ctrl_c_stops_it_there(
    server: sshd.Server, far: RunOn, project: Project, tmp_path: Path
) -> None:
    project.close()
    settings = tmp_path / "settings.json"
    settings.write_text(tiny_config(**ENDLESS).model_dump_json())
    arguments = ["train", str(project.path), "--config", str(settings), "--rounds", "0", "--json"]
    arguments += ["--on", far.command, "--remote-python", far.python, "--threads", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "napari_jrss", *arguments, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": SOURCES},
        start_new_session=True,
    )
    with process:
        while "step_end" not in (line := process.stdout.readline()):
            assert line
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to all that it started
        asked = time.monotonic()
        _, told = process.communicate(timeout=60)
    assert time.monotonic() - asked < 10
    assert process.returncode == 130
    assert "--resume goes on" in told
    with Project.open(project.path) as opened:
        assert opened.round(0).outcome is RoundOutcome.CANCELLED
        assert opened.round(0).files.state("mono_segmentation").exists()


SRUN = """#!/bin/sh
# As srun: options first, then the command, whose streams are its own.
echo "srun: job 7 has been allocated resources" >&2
printf "Welcome to the cluster > "
echo "$@" > "{record}"
while [ "${{1#--}}" != "$1" ]; do shift; done
SLURM_JOB_ID=7 "$@"
"""


def test_by_srun_in_the_same_folder_and_stopped_at_once(project: Project, tmp_path: Path) -> None:
    record, srun = tmp_path / "arguments", tmp_path / "srun"
    srun.write_text(SRUN.format(record=record))
    srun.chmod(0o755)
    run_on = RunOn(f"{srun} --gres=gpu:1 '--comment=a b'", threads=1)
    at_once, cancel, asked = threading.Event(), threading.Event(), 0.0
    place = executor(project, run_on, at_once=at_once)
    events = []
    for event in train(project, tiny_config(**ENDLESS), 0, cancel, executor=place):
        events.append(event)
        if isinstance(event, StepEnd) and not asked:
            # Stopped in the middle of a step, as by a step that takes hours.
            (side,) = far_sides()
            side.suspend()
            asked = time.monotonic()
            at_once.set()
            cancel.set()
    assert time.monotonic() - asked < 5
    assert isinstance(events[-1], Cancelled)
    assert wait_until(lambda: not far_sides(), 5)
    assert record.read_text().startswith("--gres=gpu:1 --comment=a b ")
    assert "file_sent" not in {event.kind for event in events}


def test_a_time_limit_of_the_scheduler_saves_the_state(project: Project, tmp_path: Path) -> None:
    place = executor(project, RunOn(wrapper(tmp_path, 'exec "$@"'), threads=1))

    def limit(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == 2:
            (side,) = far_sides()
            side.terminate()

    with pytest.raises(LaunchError, match="stopped there, as by a time limit"):
        finish(train(project, tiny_config(**ENDLESS), 0, Never(), executor=place), limit)
    assert project.round(0).outcome is RoundOutcome.FAILED
    assert project.round(0).files.state("mono_segmentation").exists()
    assert wait_until(lambda: not far_sides(), 5)


def wrapper(folder: Path, text: str) -> str:
    script = folder / "wrapper"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    return str(script)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (f'shift; exec "{sys.executable}" -I -S "$@"', "napari-jrss isn't installed for"),
        (f'"$@" | sed -u s/{napari_jrss.__version__}/0.0.7/', "but 0.0.7 at .*wrapper: install"),
        ("echo no such partition >&2; exit 1", r"no training could start \(no such partition\)"),
        ("exit 3", r"no training could start \(ended unexpectedly \(exit code 3, see train"),
    ],
)  # fmt: skip
def test_a_far_side_that_is_not_fit_is_one_line(
    script: str, message: str, project: Project, tmp_path: Path
) -> None:
    place = executor(project, RunOn(wrapper(tmp_path, script)))
    with pytest.raises((ProcessError, LaunchError), match=message) as told:
        list(train(project, tiny_config(), 0, Never(), executor=place))
    assert "\n" not in str(told.value)
    assert project.rounds() == []
    assert wait_until(lambda: not far_sides(), 5)


HOSTILE = """
import json, sys

def say(kind, payload=b"", **body):
    about = json.dumps({"kind": kind, "size": len(payload), **body})
    sys.stdout.buffer.write(about.encode() + b"\\n" + payload)
    sys.stdout.flush()

def hear(kind):
    while json.loads(line := sys.stdin.buffer.readline())["kind"] != kind:
        pass
    sys.stdin.buffer.read(json.loads(line)["size"])

say("hello", version=sys.argv[1])
hear("setup")
say("ready", device="abacus")
hear("round")
say("missing", sys.argv[2].encode())
say(*sys.argv[3:4], payload=b"evil", **json.loads(sys.argv[4]))
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("missing", "kind", "body", "message"),
    [
        ('{"a": [[1]]}', "event", {}, "isn't of a round"),
        ('["../../.ssh/id_ed25519", "/etc/passwd"]', "event", {}, "isn't of a round"),
        ("[]", "piece", {"file": "../../evil", "sha256": "0"}, "isn't wanted"),
        ("[]", "piece", {"file": "config.json", "sha256": "0"}, "isn't wanted"),
        ("[]", "piece", {"file": "teacher.safetensors", "sha256": "0"}, "damaged on its way"),
    ],
)
def test_a_hostile_far_side_neither_reads_nor_writes_what_it_should_not(
    missing: str, kind: str, body: dict, message: str, project: Project, tmp_path: Path
) -> None:
    script = tmp_path / "far.py"
    script.write_text(HOSTILE)
    words = [sys.executable, script, napari_jrss.__version__, missing, kind, json.dumps(body)]
    place = executor(project, RunOn(shlex.join(map(str, words)), folder=""))
    with pytest.raises(JRSSError, match=message):
        list(train(project, tiny_config(), 0, Never(), executor=place))
    assert project.round(0).outcome is RoundOutcome.FAILED
    assert [path.name for path in project.round(0).folder.iterdir()] == ["config.json"]


def test_what_is_no_command_is_one_line(project: Project) -> None:
    for command, message in (
        ("", "there is no command"),
        ("ssh 'gpu", "not a command"),
    ):
        with pytest.raises(LaunchError, match=message):
            RunOn(command)
    place = executor(project, RunOn("no-such-scheduler --gres=gpu:1"))
    with pytest.raises(ProcessError, match="no-such-scheduler: No such file"):
        list(train(project, tiny_config(), 0, Never(), executor=place))
    assert project.rounds() == []


def test_the_words_that_another_shell_reads_are_quoted() -> None:
    there = RunOn("ssh gpu nice", python="~/my envs/bin/python")
    assert there.arguments[:5] == ["ssh", "gpu", "nice", "~/'my envs/bin/python'", "-P"]
    assert RunOn("ssh gpu").arguments[2] == "python3"
    here = RunOn("srun -n 1", python="/a b/python")
    assert here.arguments[:4] == ["srun", "-n", "1", "/a b/python"]
    assert here.environment == {}


@needs_sshd
def test_two_devices_there_share_each_batch(far: RunOn, project: Project) -> None:
    napari_jrss.train(project, tiny_config(), rounds=1, device="cpu", devices=2, on=far)
    assert [entry.outcome for entry in project.rounds()] == [RoundOutcome.FINISHED] * 2
    assert project.teacher is not None
    assert project.teacher.metrics["device"] == "2 x cpu by ssh"
    assert project.teacher.files.teacher.exists()


def test_options_that_do_not_go_together_are_told(project: Project) -> None:
    with pytest.raises(LaunchError, match="a round runs on one device of a cluster's worker"):
        napari_jrss.train(project, on="tcp://localhost:8786", devices=2)
    told = CliRunner().invoke(app, ["train", str(project.path), "--remote-python", "python3"])
    assert str(told.exception) == "--remote-python and --remote-folder go with --on"
