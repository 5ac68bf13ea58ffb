"""Work on a cluster: a real scheduler, and real workers of which one is killed at work."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import distributed
import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from napari_jrss._tests.training.phantoms import (
    Never,
    assert_same_tensors,
    tiny_config,
    weights,
)
from napari_jrss.app.forecast import forecast
from napari_jrss.app.rounds.elsewhere import executor_elsewhere
from napari_jrss.app.rounds.launch import LaunchError, RunOn
from napari_jrss.app.rounds.on_cluster import OnCluster
from napari_jrss.app.rounds.train import train
from napari_jrss.cli import app
from napari_jrss.cluster import Cluster, ClusterError, worker_command, worker_environment
from napari_jrss.pool import working
from napari_jrss.progress_bar import finish
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
        busy = next(worker for worker, jobs in self.client.processing().items() if jobs)
        (pid,) = self.client.run(os.getpid, workers=[busy]).values()
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


def test_a_round_goes_on_at_another_worker_and_is_recorded_once(
    workers: Workers, project: Project, tmp_path: Path
) -> None:
    with Project.open(shutil.copytree(project.path, tmp_path / "here.jrss")) as here:
        list(train(here, tiny_config(**LONG), 1, Never(), device="cpu"))
        known = [weights(entry.folder) for entry in here.rounds()]
    killed = []

    def kill(event: Event) -> None:
        if isinstance(event, StepEnd) and event.step == 20 and not killed:
            killed.append(workers.kill_busy())

    place = executor_elsewhere(project.path, RunOn(workers.address), "cpu")
    finish(train(project, tiny_config(**LONG), 1, Never(), executor=place), kill)
    assert len(killed) == 1
    assert [entry.outcome for entry in project.rounds()] == [RoundOutcome.FINISHED] * 2
    assert project.round(1).metrics["device"] == "cpu by dask"
    for entry, expected in zip(project.rounds(), known, strict=True):
        assert_same_tensors(weights(entry.folder), expected)


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
