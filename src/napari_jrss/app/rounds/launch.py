"""Rounds on another computer: the training process stands behind ``ssh``, ``srun`` or the like.

The far side is :mod:`napari_jrss.app.rounds.remote`. Where both sides see the project's folder, the
round is trained in it. Elsewhere the arrays that the round reads go there, without the names of
files or patients, and the round's folder comes back bit by bit while it is trained.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from math import ceil
from pathlib import Path, PurePath
from platform import node
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter, ValidationError

from napari_jrss import __version__
from napari_jrss.app.rounds.process import LOG, PATIENCE_S, Position
from napari_jrss.app.rounds.remote import STATES, RoundOrder, Setup
from napari_jrss.config import TrainingConfig
from napari_jrss.errors import JRSSError
from napari_jrss.io.atomic import temp_path
from napari_jrss.io.channel import SILENCE_S, Channel, ChannelError, Message
from napari_jrss.io.round_files import RoundDescription
from napari_jrss.io.transfer import COMMIT, PIECE, Incoming, checksums, files_below, send_files
from napari_jrss.preprocess import case_store as store
from napari_jrss.processes import ChildProcess, ProcessError, import_path
from napari_jrss.project.project import Project
from napari_jrss.project.records import Round
from napari_jrss.training.trainable import check_devices, scans_read

if TYPE_CHECKING:
    from napari_jrss.training.events import Event
    from napari_jrss.training.loop import Cancel

_logger = logging.getLogger(__name__)

_FAR_SIDE = "napari_jrss.app.rounds.remote"
_GRACE_S = 1.0
_CLEARING_S = 10.0
_SENDING = "sending"
_NAMES = TypeAdapter(list[str])

Read = TypeVar("Read")


class LaunchError(JRSSError):
    """What is to stand before the training process isn't a command, or the far side isn't fit."""


@dataclass(frozen=True)
class RunOn:
    """Where rounds run, if not on this computer.

    Parameters
    ----------
    command
        What stands before the training process, such as ``ssh gpu``, ``srun --gres=gpu:1`` or
        ``docker exec -i box``; words are separated and quoted as in a shell.
    python
        Python there, in which napari-jrss is installed. Empty: ``python3`` behind ``ssh``, else the
        Python of this process.
    folder
        The project's folder as it is seen there, for a folder that both computers share. Empty:
        behind ``ssh``, copies go there; else the path is the same, and copies go there if nothing
        is seen at it.
    threads
        CPU threads there; None: as many as PyTorch takes.
    """

    command: str
    python: str = ""
    folder: str = ""
    threads: int | None = None

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise LaunchError(f"{self.command}: not a command ({error})") from None
        if not words:
            raise LaunchError("there is no command to run the training with, such as: ssh gpu")

    @property
    def program(self) -> str:
        """Name of the command's program, such as ``ssh``."""
        return PurePath(shlex.split(self.command)[0]).stem

    @property
    def by_ssh(self) -> bool:
        """Whether a shell on another computer reads the rest of the command."""
        return self.program == "ssh"

    @property
    def arguments(self) -> list[str]:
        """The whole command."""
        words = shlex.split(self.command)
        python = self.python or ("python3" if self.by_ssh else sys.executable)
        started = [python, "-P", "-m", _FAR_SIDE]
        return [*words, *(map(_quoted, started) if self.by_ssh else started)]

    @property
    def environment(self) -> dict[str, str]:
        """Variables for the command: this process's own Python finds the same package."""
        return {} if self.by_ssh or self.python else {"PYTHONPATH": import_path()}


def _quoted(word: str) -> str:
    """A word as another shell reads it; a ``~/`` at its start stays that shell's home."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)


class InLaunchedProcess:
    """Rounds run behind a command; a :class:`napari_jrss.app.rounds.train.Executor`.

    Parameters
    ----------
    run_on
        The command, and what is where on the other side.
    devices, at_once, patience
        As of :class:`~napari_jrss.app.rounds.process.InOwnProcess`.
    silence
        Seconds without a sign of life after which the connection counts as broken.
    """

    def __init__(
        self,
        project: Path,
        run_on: RunOn,
        device: str = "auto",
        *,
        devices: int = 1,
        at_once: Cancel | None = None,
        patience: float = PATIENCE_S,
        silence: float = SILENCE_S,
    ) -> None:
        self.device = self._asked_for = device
        self._project, self._on, self._devices = project, run_on, devices
        self._at_once, self._patience, self._silence = at_once, patience, silence
        self._process: ChildProcess | None = None
        self._channel: Channel | None = None
        self._greeted = self._shared = self._finished = False

    @property
    def process(self) -> int | None:
        """Id of the process of the command while there is one."""
        return None if self._process is None else self._process.pid

    def prepare(self, config: TrainingConfig, cancel: Cancel) -> bool:
        """Start the command and greet the far side; False if cancelled."""
        if self._process is not None and self._finished:
            return not cancel.is_set()  # the far side goes on with the next round
        self.close()
        check_devices(config, self._devices)
        self._process = ChildProcess(
            f"command {self._on.command}",
            self._on.arguments,
            log=self._project / LOG,
            environment=self._on.environment,
            apart=True,
        )
        self._channel = Channel(
            self._process.stdout, self._process.stdin, self._lost, self._silence
        )
        self._greeted = False
        probe = temp_path(self._project / "probe")
        try:
            if (hello := self._next(cancel, "hello")) is None:
                return False
            self._greeted = True
            self._check_version(str(hello.body.get("version"))[:50])
            folder = self._on.folder or (None if self._on.by_ssh else str(self._project))
            probe.touch()
            setup = Setup(
                project=sha256(f"{node()} {self._project}".encode()).hexdigest()[:16],
                folder=folder,
                probe=probe.name,
                required=bool(self._on.folder),
                silence=self._silence,
                device=self._asked_for,
                devices=self._devices,
                threads=self._on.threads,
                config=config,
            )
            self._send("setup", setup.model_dump_json().encode())
            if (ready := self._next(cancel, "ready")) is None:
                return False
        finally:
            probe.unlink(missing_ok=True)
        self._shared = bool(ready.body.get("shared"))
        self.device = f"{str(ready.body.get('device'))[:20]} by {self._on.program}"
        where = "in the same folder" if self._shared else "with copies"
        _logger.info("training runs on %s: %s, %s", self.device, self._on.command, where)
        return True

    def run(self, project: Project, entry: Round, cancel: Cancel) -> Iterator[Event]:
        """Relay the events of the round, and bring its files home; a ``ProcessError`` if it fails.

        The round can be resumed from what came home; or, on the same computer, from what was left
        there by a connection that broke.
        """
        from napari_jrss.training.events import Cancelled

        self._finished = False
        try:
            order = self._order(project, entry, cancel)
            if cancel.is_set():
                yield Cancelled(stage=_SENDING, step=0)
                return
            self._send("round", order.model_dump_json().encode())
            if not self._shared and not (yield from self._supply(entry, order, cancel)):
                return
            yield from self._follow(entry, cancel)
        finally:
            if not self._finished:
                self.close()

    def close(self) -> None:
        """End the far side if it still runs; it removes its copies if the round was finished."""
        if self._process is None or self._channel is None:
            return
        if self._finished:
            with suppress(ChannelError):
                self._channel.send("done")
                until = time.monotonic() + _CLEARING_S
                while self._channel.receive() is None and time.monotonic() < until:
                    pass
        self._finished = False
        self._channel.close()
        self._process.end(_GRACE_S)
        if self._channel.join(_GRACE_S):  # else a process that ssh left behind holds the stream
            self._process.stdout.close()
        self._process = self._channel = None

    def _lost(self, silent: bool) -> None:
        process = self._process
        if silent and process is not None:
            _logger.warning("nothing was heard from %s for too long", self._on.command)
            process.kill()

    # -- the round

    def _order(self, project: Project, entry: Round, cancel: Cancel) -> RoundOrder:
        """The round, with the checksums of what it reads and has, where that must be copied.

        They are not complete if cancelled.
        """
        snapshot, config = project.snapshot(entry.number), entry.files.training_config()
        versions = {
            case_id: project.label_version(case_id, version)
            for case_id, version in snapshot.label_versions.items()
        }
        on_scan = scans_read(config, snapshot)
        order = RoundOrder(
            number=entry.number,
            parent=entry.parent,
            cases=project.cases_path.name,
            description=RoundDescription.of(snapshot, config),
            labels={c: project.grid_sha256(c, label.version) for c, label in versions.items()},
            # the header of a scan's file stays at home
            scans={
                case_id: [
                    each.model_copy(update={"header": None})
                    for each in project.attributes(case_id).transforms
                ]
                for case_id in on_scan
            },
            scan_labels={
                case_id: label.scan_sha256
                for case_id, label in versions.items()
                if case_id in on_scan and label.scan_sha256 is not None
            },
        )
        if self._shared:
            return order
        entry.files.sweep()
        folders: list[Path] = []
        for case_id in (*snapshot.training, *snapshot.validation):
            case, further = project.case_path(case_id), range(1, project.inputs)
            folders.append(store.image_folder(case))
            folders += [store.channel_folder(case, number) for number in further]
            if case_id in versions:
                folders.append(store.label_folder(case, versions[case_id].version))
            if case_id in order.scans:
                folders.append(store.scan_folder(case))
                folders += [store.channel_scan_folder(case, number) for number in further]
            if case_id in order.scan_labels:
                folders.append(store.scan_folder(case, versions[case_id].version))
        paths = [path for folder in folders for path in files_below(folder)]
        if entry.parent is not None:
            parent = project.round(entry.parent).files
            paths += filter(Path.exists, (parent.teacher, parent.registration))
            for case_id in snapshot.unlabelled:
                files = files_below(parent.predictions / f"{case_id}.zarr")
                paths += [file for file in files if "scan_label" not in file.parts]
        return order.model_copy(
            update={
                "inputs": checksums(project.path, takewhile(lambda _: not cancel.is_set(), paths)),
                "own": checksums(entry.folder, filter(_of_round, files_below(entry.folder))),
            }
        )

    def _supply(
        self, entry: Round, order: RoundOrder, cancel: Cancel
    ) -> Generator[Event, None, bool]:
        """Send what the far side lacks; False if cancelled."""
        from napari_jrss.training.events import Cancelled, FileSent, StageFinished, StageStarted

        assert self._channel is not None
        prefix = entry.folder.relative_to(self._project).as_posix()
        known = order.inputs | {f"{prefix}/{name}": digest for name, digest in order.own.items()}
        answer = self._next(cancel, "missing")
        asked_for = [] if answer is None else self._read(answer, _NAMES.validate_json)
        names = [name for name in asked_for if name in known]
        megabytes = sum((self._project / name).stat().st_size for name in names) / 1e6
        if names:
            yield StageStarted(stage=_SENDING, steps=ceil(megabytes))
        done = 0.0
        if answer is not None:
            try:
                missing = {name: known[name] for name in names}
                for name, size in send_files(self._channel, self._project, missing):
                    done += size / 1e6
                    yield FileSent(stage=_SENDING, file=name, step=int(done))
                    if cancel.is_set():
                        break
                else:
                    self._channel.send(COMMIT)
            except ChannelError as error:
                raise self._broken() from error
        if cancel.is_set():
            yield Cancelled(stage=_SENDING, step=int(done))
            return False
        if names:
            yield StageFinished(stage=_SENDING)
        return True

    def _follow(self, entry: Round, cancel: Cancel) -> Iterator[Event]:
        """The events of the round, until it ends."""
        from napari_jrss.training.events import Cancelled, RoundFinished, parse_event

        assert self._channel is not None
        incoming = Incoming(entry.folder, _may_come)
        position, asked, heard = Position(), False, time.monotonic()
        try:
            while True:
                if cancel.is_set() and not asked:
                    asked, heard = True, time.monotonic()
                    with suppress(ChannelError):
                        self._channel.ask_to_stop()
                if asked and (
                    (self._at_once is not None and self._at_once.is_set())
                    or time.monotonic() - heard > self._patience
                ):
                    yield position.cancelled()
                    return
                message = self._receive()
                if message is None:
                    continue
                heard = time.monotonic()
                if message.kind == PIECE:
                    incoming.add(message)
                elif message.kind == COMMIT:
                    incoming.commit()
                    _drop_states(entry.folder, message.body.get("states"))
                elif message.kind == "event":
                    event = self._read(message, parse_event)
                    if isinstance(event, Cancelled) and not asked:
                        raise LaunchError(
                            f"{self._on.command}: the training was stopped there, as by a time "
                            "limit; its state is saved, and resume goes on from it"
                        )
                    position.add(event)
                    self._finished = isinstance(event, RoundFinished)
                    yield event
                    if isinstance(event, RoundFinished | Cancelled):
                        return
        finally:
            incoming.discard()

    # -- messages

    def _send(self, kind: str, payload: bytes) -> None:
        assert self._channel is not None
        try:
            self._channel.send(kind, payload)
        except ChannelError as error:
            raise self._broken() from error

    def _next(self, cancel: Cancel, kind: str) -> Message | None:
        """Wait for a message of this kind; None if cancelled."""
        while not cancel.is_set():
            message = self._receive()
            if message is not None and message.kind == kind:
                return message
        return None

    def _receive(self) -> Message | None:
        """The next message; a ProcessError if it tells of an error, or none can come."""
        assert self._channel is not None
        try:
            message = self._channel.receive()
        except ChannelError as error:
            raise self._broken() from error
        if message is not None and message.kind == "error":
            raise self._told(message)
        return message

    def _read(self, message: Message, read: Callable[[bytes], Read]) -> Read:
        try:
            return read(message.payload)
        except ValidationError:
            text = f"{self._on.command}: what came isn't of a round ({message.kind[:100]!r})"
            raise LaunchError(text) from None

    def _told(self, message: Message) -> ProcessError:
        see = f" (see {LOG})" if message.body.get("fault") else ""
        text = " ".join(str(message.body.get("text")).split())[:1000]
        return ProcessError(f"{self._on.command}: {text}{see}")

    def _broken(self) -> ProcessError:
        """Why nothing comes any more, in one line."""
        assert self._channel is not None
        assert self._process is not None
        with suppress(ChannelError):  # what it may have said before
            while True:
                message = self._channel.receive(_GRACE_S)
                if message is None:
                    break
                if message.kind == "error":
                    return self._told(message)
        self._process.end(_GRACE_S)
        command, lines = self._on.command, self._process.printed().splitlines() or [""]
        why = "".join(c for c in lines[-1] if c.isprintable())[:300] or self._process.ending()
        if self._greeted:
            return ProcessError(
                f"the connection to {command} broke ({why}); resume goes on from what was trained"
            )
        if "No module named" in why and "napari_jrss" in why:
            return ProcessError(
                f"{command}: napari-jrss isn't installed for {self._on.arguments[-4]} there; "
                "install it, or name the right Python (--remote-python)"
            )
        return ProcessError(f"{command}: no training could start ({why})")

    def _check_version(self, version: str) -> None:
        if version != __version__:
            raise LaunchError(
                f"napari-jrss is {__version__} here, but {version} at {self._on.command}: install "
                "the same version on both"
            )


def _of_round(path: Path) -> bool:
    return path.name != "config.json" and not path.name.startswith("evaluation")


def _may_come(name: str) -> bool:
    """Whether a file of a round may be written by the far side."""
    folder, _, rest = name.partition("/")
    if rest:
        return folder == "predictions"
    return name == "metrics.jsonl" or name.endswith(".safetensors")


def _drop_states(folder: Path, there: object) -> None:
    """Remove the training states of stages that have ended on the far side."""
    for path in folder.glob(STATES):
        if isinstance(there, list) and path.name not in there:
            path.unlink(missing_ok=True)
