"""A real ``sshd`` on the loopback, with keys and settings of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = (None, "/usr/sbin:/usr/local/sbin:/sbin")
SSHD, SSH, KEYGEN = (
    next(filter(None, (shutil.which(name, path=path) for path in _FOLDERS)), None)
    for name in ("sshd", "ssh", "ssh-keygen")
)
MISSING = (
    ""
    if sys.platform == "linux" and SSHD and SSH and KEYGEN
    else "openssh-server and openssh-client are missing"
)


@dataclass(frozen=True)
class Server:
    """A running server, and the command that reaches it."""

    command: str
    home: Path  # where the other side keeps its copies
    process: subprocess.Popen[bytes]


@contextmanager
def serving(folder: Path, environment: dict[str, str]) -> Iterator[Server]:
    """A server whose sessions have these variables."""
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # it asks for this when run by root
    for name in ("host", "user"):
        command = [str(KEYGEN), "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = folder / "cache"
    variables = {"XDG_CACHE_HOME": str(home), **environment}
    settings = f"""
        ListenAddress 127.0.0.1
        Port {port}
        HostKey {folder / "host"}
        PidFile {folder / "sshd.pid"}
        AuthorizedKeysFile {folder / "authorized"}
        PasswordAuthentication no
        PermitRootLogin yes
        StrictModes no
        UsePAM no
        SetEnv {" ".join(f"{name}={value}" for name, value in variables.items())}
    """
    (folder / "sshd_config").write_text("\n".join(map(str.strip, settings.splitlines())))
    with (folder / "sshd.log").open("wb") as log:
        process = subprocess.Popen(
            [str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stderr=log
        )
    ssh = (
        f"ssh -p {port} -i {folder / 'user'} -F none -o BatchMode=yes -o IdentitiesOnly=yes "
        f"-o StrictHostKeyChecking=no -o UserKnownHostsFile={folder / 'known'} "
        f"-o LogLevel=ERROR {getpass.getuser()}@127.0.0.1"
    )
    try:
        until = time.monotonic() + 10
        while b"listening" not in (folder / "sshd.log").read_bytes():
            assert process.poll() is None, (folder / "sshd.log").read_text()
            assert time.monotonic() < until, "sshd doesn't listen"
            time.sleep(0.05)
        yield Server(ssh, home, process)
    finally:
        process.terminate()
        process.wait()
