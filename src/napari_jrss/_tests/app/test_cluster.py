"""Work on a cluster: a real scheduler, and real workers of which one is killed at work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import distributed
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from napari_jrss._tests.app.phantoms import FINE, assert_same_rounds
from napari_jrss._tests.app.series import train
from napari_jrss._tests.experiments.conftest import PROTOCOL
from napari_jrss._tests.training.phantoms import (
    Never,
    tiny_config,
)
from napari_jrss.app.evaluation import evaluate
from napari_jrss.app.forecast import forecast
from napari_jrss.app.pairs.comparison import compare_engines
from napari_jrss.app.rounds.elsewhere import executor_elsewhere
from napari_jrss.app.rounds.launch import LaunchError, RunOn
from napari_jrss.app.rounds.on_cluster import OnCluster
from napari_jrss.app.segmenting import segment_scans
from napari_jrss.cli import app
from napari_jrss.cluster import Cluster, ClusterError, worker_command, worker_environment
from napari_jrss.experiments.protocol import Protocol
from napari_jrss.experiments.run import run_experiment
from napari_jrss.pool import working
from napari_jrss.progress_bar import finish
from napari_jrss.project.export.folder import RECORD
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome
from napari_jrss.sample_data import make_cohort
from napari_jrss.training.events import Cancelled, EpochEnd, Event, StepEnd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the signals are POSIX's"),
]

LONG = {"segmentation": {"epochs": 1, "minimum_steps": 30}}
ENDLESS = {"segmentation": {"epochs": 1, "minimum_steps": 100_000}}


class Workers:
    """A scheduler on this computer, and two worker processes that nannies start again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self._log = (folder / "dask.log").open("w")
        here = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard")
        commands = (
            [sys.executable, "-m", "distributed.cli.dask_scheduler", *here],
            [sys.executable, "-m", "napari_jrss", "worker", self.address, "--processes", "2"],
        )
        self._processes = [
            subprocess.Popen(
                command, stdout=self._log, stderr=self._log, cwd=folder, start_new_session=True
            )
            for command in commands
        ]
        self.client = distributed.Client(self.address, timeout=60, set_as_default=False)
        self.client.wait_for_workers(2, timeout=120)

    def kill_busy(self) -> int:
        """SIGKILL to a worker process that is at work; its id."""
        until, busy = time.monotonic() + 10, []
        while not busy:  # between two jobs, none is
            assert time.monotonic() < until
            busy = [worker for worker, jobs in self.client.processing().items() if jobs][:1]
        (pid,) = self.client.run(os.getpid, workers=busy).values()
        os.kill(pid, signal.SIGKILL)
        return int(pid)

    def close(self) -> None:
        self.client.close()
        for process in self._processes[::-1]:
            below = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
            for each in below:
                if each.is_running():
                    each.kill()
        self._log.close()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    made = Workers(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


def test_import_and_forecast_are_those_of_this_computer_though_a_worker_is_killed(
    workers: Workers, tmp_path: Path
) -> None:
    cohort = make_cohort(tmp_path / "cohort", cases=6, shape=(16, 24, 16), structures=2)
    arguments = ["--images", str(cohort / "images"), "--labels", str(cohort / "labels")]
    arguments += ["--groups", str(cohort / "groups.csv"), "--shape", "16", "24", "16"]
    for name, where in (("far", workers.address), ("here", "1")):
        place = str(tmp_path / f"{name}.jrss")
        done = CliRunner().invoke(app, ["init", place, *arguments, "--workers", where])
        assert done.exit_code == 0, done.output
    with Project.open(tmp_path / "far.jrss") as far, Project.open(tmp_path / "here.jrss") as here:
        cases = [case.case_id for case in here.cases()]
        assert [case.case_id for case in far.cases()] == cases
        for case in cases:
            np.testing.assert_array_equal(far.image(case), here.image(case))
            np.testing.assert_array_equal(far.label(case), here.label(case))

        config, killed = tiny_config(), []

        def kill(event: Event) -> None:
            if isinstance(event, StepEnd) and not killed:
                killed.append(workers.kill_busy())

        with Cluster(workers.address, [far.path]) as cluster:
            judged = finish(forecast.events(far, config, device="cpu", workers=cluster), kill)
        assert len(killed) == 1
        assert judged == forecast(here, config, device="cpu", workers=2)
        assert not (far.path / "forecast").exists()


@pytest.fixture(scope="module")
def trained(trainable_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a teacher that has learned for a few steps."""
    path = shutil.copytree(trainable_once, tmp_path_factory.mktemp("trained") / "brain.jrss")
    with Project.open(path) as project:
        list(train(project, tiny_config(), 0, Never(), device="cpu"))
    return path


@pytest.fixture(params=["cluster", "processes"])
def pool(request: pytest.FixtureRequest, trained: Path) -> Iterator[Cluster | int]:
    """The cluster's workers, or a process of this computer."""
    if request.param == "processes":
        yield 1
        return
    with Cluster(request.getfixturevalue("workers").address, [trained]) as cluster:
        yield cluster


def killer(workers: Workers, pool: Cluster | int) -> Callable[[object], None]:
    """Kills one process at work, once."""
    killed: list[int] = []

    def kill(_: object) -> None:
        if killed:
            return
        if isinstance(pool, Cluster):
            killed.append(workers.kill_busy())
            return
        for each in psutil.Process().children():
            if "spawn_main" in str(each.cmdline()):
                each.kill()
                killed.append(each.pid)
                return

    return kill


def test_scans_are_segmented_as_in_this_process_though_a_worker_is_killed(
    workers: Workers,
    pool: Cluster | int,
    trained: Path,
    trainable_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = trainable_once.parent / "cohort" / "images"
    monkeypatch.chdir(images)  # the workers were started elsewhere
    (tmp_path / "broken.nii.gz").write_bytes(b"no scan")
    scans = [*sorted(each.name for each in images.iterdir()), str(tmp_path / "broken.nii.gz")]
    with Project.open(trained, read_only=True) as project:
        options = {"maps": True, "device": "cpu"}
        here = segment_scans(project, scans, tmp_path / "here", **options)
        events = segment_scans.events(project, scans, tmp_path / "far", workers=pool, **options)
        far = finish(events, killer(workers, pool))
    assert [result.scan for result in far] == [Path(scan) for scan in scans]
    assert [bool(result.problem) for result in far] == [False] * 8 + [True]
    for mine, theirs in zip(here, far, strict=True):
        assert theirs.volumes_ml == mine.volumes_ml
        assert theirs.problem == mine.problem
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == names
    assert len(names) >= 2 * 8
    for name in names:
        known = (tmp_path / "here" / name).read_bytes()
        assert name == RECORD or (tmp_path / "far" / name).read_bytes() == known


def test_figures_are_those_of_this_process(
    pool: Cluster | int, trained: Path, tmp_path: Path
) -> None:
    def known(path: Path) -> list[dict[str, object]]:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [row | {"seconds": 0} for row in rows]

    with Project.open(shutil.copytree(trained, tmp_path / "brain.jrss")) as project:
        file = project.round(0).files.evaluation(True)
        here = evaluate(project, refine=True, device="cpu")
        rows = known(file)
        file.unlink()
        far = evaluate(project, refine=True, device="cpu", workers=pool)
        assert known(file) == rows
        assert len(rows) == 2 + 2
    (mine,), (theirs,) = here.rounds, far.rounds
    assert theirs.segmentation["dice"] == mine.segmentation["dice"]
    assert theirs.registration["std_jacobian"] == mine.registration["std_jacobian"]


def test_engines_are_measured_as_in_this_process(pool: Cluster | int, trained: Path) -> None:
    with Project.open(trained, read_only=True) as project:
        options = {"names": ["refine"], "pairs": 3, "device": "cpu"}
        here = compare_engines(project, **options)
        far = compare_engines(project, workers=pool, **options)
    assert far.pairs == here.pairs
    assert far.figures[0].dice == here.figures[0].dice
    assert far.failed == here.failed == {}


def test_the_runs_of_an_experiment_are_shared(workers: Workers, tmp_path: Path) -> None:
    protocol = Protocol.model_validate(
        PROTOCOL | {"runs": [{"methods": ["initial", "mono"], "labelled": [2]}], "seeds": [0, 1]}
    )
    out, killed = tmp_path / "far", []

    def kill_when_busy() -> None:
        until = time.monotonic() + 120
        while not killed and time.monotonic() < until:
            if any((out / "runs").glob("mono*/*.jsonl")):
                with suppress(StopIteration):
                    killed.append(workers.kill_busy())
            time.sleep(0.05)

    watch = threading.Thread(target=kill_when_busy)
    watch.start()
    with Cluster(workers.address, [tmp_path]) as cluster:
        ended = list(run_experiment(protocol, out, workers=cluster, threads=1, device="cpu"))
    watch.join()
    assert len(killed) == 1
    here = list(run_experiment(protocol, tmp_path / "here", workers=1, threads=1, device="cpu"))
    assert [each.problem for each in ended] == [""] * 4
    assert {each.run.id for each in ended} == {each.run.id for each in here}

    def table(folder: Path) -> list[str]:
        rows = [line for line in (folder / "results.csv").read_text().splitlines()]
        return [row for row in rows if "seconds" not in row]

    assert table(out) == table(tmp_path / "here")


def test_a_round_goes_on_at_another_worker_and_is_recorded_once(
    workers: Workers, finer_once: Path, fine_round: Path, tmp_path: Path
) -> None:
    """It also learns at the scans' own voxels."""
    killed = []

    def kill(event: Event) -> None:
        if isinstance(event, StepEnd) and event.stage == "own_voxels_1" and not killed:
            killed.append(workers.kill_busy())

    with Project.open(shutil.copytree(finer_once, tmp_path / "coarse.jrss")) as project:
        place = executor_elsewhere(project.path, RunOn(workers.address), "cpu")
        finish(train(project, FINE, 1, Never(), executor=place), kill)
        assert len(killed) == 1
        assert_same_rounds(project, fine_round)
        assert project.round(1).metrics["device"] == "cpu by dask"


def test_cancel_reaches_the_worker_and_the_round_goes_on_at_home(
    workers: Workers, project: Project
) -> None:
    cancel, asked = threading.Event(), 0.0
    place = OnCluster(project.path, workers.address, "cpu")
    events = []
    for event in train(project, tiny_config(**ENDLESS), 0, cancel, executor=place):
        events.append(event)
        if isinstance(event, EpochEnd) and not asked:
            asked = time.monotonic()
            cancel.set()
    assert time.monotonic() - asked < 5
    assert isinstance(events[-1], Cancelled)
    assert project.round(0).outcome is RoundOutcome.CANCELLED
    assert not any(workers.client.processing().values())  # nothing is left running there
    at_home = train(project, tiny_config(), 0, cancel := threading.Event(), resume=True)
    assert next(iter(at_home)).first_step >= events[-1].step > 0
    cancel.set()
    at_home.close()


def test_what_a_function_raises_is_that_items_outcome(workers: Workers) -> None:
    with Cluster(workers.address) as cluster:
        outcomes = dict(each for each in working(partial(divmod, 7), [2, 0, 4], cluster) if each)
    assert (outcomes[2], outcomes[4]) == ((3, 1), (1, 3))
    assert isinstance(outcomes[0], ZeroDivisionError)


def test_what_is_no_fit_cluster_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, why in {
        "tcp://127.0.0.1:1": "no scheduler answers",
        "tcp://10.0.0.1:8786": "use tls://",
        "http://127.0.0.1:8786": "not the address of a scheduler",
        "tcp://127.0.0.1": "not the address of a scheduler",
    }.items():
        monkeypatch.setattr("napari_jrss.cluster._CONNECT_S", 1.0)
        with pytest.raises(ClusterError, match=why) as told:
            Cluster(address)
        assert "\n" not in str(told.value)
    with pytest.raises(LaunchError, match="leave out both"):
        executor_elsewhere(tmp_path, RunOn("tls://host:1", python="python3"), "cpu")


def test_a_worker_has_the_threads_and_the_gpu_that_were_asked_for() -> None:
    command, environment = worker_command("tls://host:1", 3, gpu=True), worker_environment(4)
    assert command[command.index("--nworkers") + 1] == "3"
    assert command[command.index("--resources") + 1] == "GPU=1"
    assert "--resources" not in worker_command("tls://host:1", 3, gpu=False)
    assert environment["DASK_DISTRIBUTED__NANNY__PRE_SPAWN_ENVIRON__OMP_NUM_THREADS"] == "4"
