"""A cluster with TLS as docs/how-to/use-a-cluster.md sets it up: certificates and settings."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from napari_jrss.project.project import Project
from napari_jrss.sample_data import make_cohort

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="the signals are POSIX's"),
    pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl isn't installed"),
]

SETTINGS = """
distributed:
  comm:
    tls:
      ca-file: {ca}.pem
      scheduler: {{cert: {own}.pem, key: {own}.key}}
      worker: {{cert: {own}.pem, key: {own}.key}}
      client: {{cert: {own}.pem, key: {own}.key}}
"""


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_certificates(folder: Path) -> None:
    """An authority ``ca``, and a key and certificate ``me`` that it has signed."""
    folder.mkdir()
    new = ["-newkey", "rsa:2048", "-nodes"]
    openssl(
        folder, *("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"),
        *("-subj", "/CN=study"),
    )  # fmt: skip
    openssl(folder, "req", *new, "-keyout", "me.key", "-out", "me.csr", "-subj", "/CN=me")
    openssl(
        folder, *("x509", "-req", "-in", "me.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
        *("-CAcreateserial", "-days", "2", "-out", "me.pem"),
    )  # fmt: skip


def settings(folder: Path, ca: Path, own: Path) -> dict[str, str]:
    """The environment of a computer whose dask settings name these certificates."""
    folder.mkdir()
    (folder / "distributed.yaml").write_text(SETTINGS.format(ca=ca, own=own))
    return {**os.environ, "DASK_CONFIG": str(folder)}


@dataclass
class Secured:
    """A scheduler's address, and the environments of a user, a stranger, and one without files."""

    address: str
    user: dict[str, str]
    stranger: dict[str, str]
    lost: dict[str, str]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    ours, theirs = folder / "ours", folder / "theirs"
    make_certificates(ours)
    make_certificates(theirs)
    user = settings(folder / "user", ours / "ca", ours / "me")
    # who knows the authority, and has a certificate of another one
    stranger = settings(folder / "stranger", ours / "ca", theirs / "me")
    lost = settings(folder / "lost", ours / "none", ours / "none")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tls://127.0.0.1:{port}"
    keys = ("--tls-ca-file", "ca.pem", "--tls-cert", "me.pem", "--tls-key", "me.key")
    scheduler = ("--host", "127.0.0.1", "--port", str(port), "--no-dashboard", *keys)
    commands = (
        ([sys.executable, "-m", "distributed.cli.dask_scheduler", *scheduler], {**os.environ}),
        ([sys.executable, "-m", "napari_jrss", "worker", address, "--processes", "1"], user),
    )
    with (folder / "dask.log").open("w") as log:
        started = [
            subprocess.Popen(
                command, cwd=ours, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            for command, environment in commands
        ]
        try:
            yield Secured(address, user, stranger, lost)
        finally:
            for process in reversed(started):
                below = psutil.Process(process.pid).children(recursive=True)
                process.terminate()
                process.wait(30)
                for each in below:
                    if each.is_running():
                        each.kill()


def make_project(
    folder: Path, address: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    arguments = ["init", "study.jrss", "--images", "images", "--labels", "labels"]
    return subprocess.run(
        [sys.executable, "-m", "napari_jrss", *arguments, "--workers", address],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_an_import_goes_over_tls_and_strangers_are_kept_out(
    cluster: Secured, tmp_path: Path
) -> None:
    cohort = make_cohort(tmp_path / "cohort", cases=3, shape=(16, 24, 16), structures=2)
    done = make_project(cohort, cluster.address, cluster.user)
    assert done.returncode == 0, done.stderr
    with Project.open(cohort / "study.jrss") as project:
        assert len(project.cases()) == 3

    for address, environment, why in (
        (cluster.address, cluster.stranger, "no scheduler answers"),
        (cluster.address, {**os.environ}, "dask's settings name no certificates"),
        (cluster.address, cluster.lost, "can't be used (FileNotFoundError"),
        (cluster.address.replace("tls", "tcp"), cluster.user, "no scheduler answers"),
    ):
        shutil.rmtree(cohort / "study.jrss", ignore_errors=True)
        refused = make_project(cohort, address, environment)
        assert refused.returncode != 0
        assert why in refused.stderr
        assert "Traceback" not in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
        assert not (cohort / "study.jrss").exists()
