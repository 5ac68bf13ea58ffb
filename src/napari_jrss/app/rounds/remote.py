"""The far side of a launched training: ``python -m napari_jrss.app.rounds.remote``.

:class:`~napari_jrss.app.rounds.launch.InLaunchedProcess` starts it behind ``ssh``, ``srun`` or the
like, and talks to it over its standard input and output. It ends when these are closed, or when
nothing was heard for a minute, so nothing is left running. It needs no project: either it works in
the project's folder, which both sides see, or it gets copies of the arrays that the round reads,
and returns what the round writes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from napari_jrss import __version__
from napari_jrss.app.rounds.peers import Peers
from napari_jrss.config import TrainingConfig
from napari_jrss.errors import EXPECTED, JRSSError, ProjectError, one_line
from napari_jrss.io.atomic import sweep, write_text
from napari_jrss.io.channel import Channel, ChannelError
from napari_jrss.io.round_files import RoundDescription, RoundFiles
from napari_jrss.io.transfer import (
    COMMIT,
    PIECE,
    Incoming,
    checksum,
    checksums,
    files_below,
    send_files,
)
from napari_jrss.io.zarr_check import read_array
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.transform import GridTransform
from napari_jrss.processes import Parent
from napari_jrss.project.cases import read_case_scan
from napari_jrss.project.folder import ROUNDS
from napari_jrss.project.records import round_folder
from napari_jrss.snapshot import CachedArrays, CaseScan, CohortSnapshot, Image, times_finer

if TYPE_CHECKING:
    from napari_jrss.app.rounds.train import InThisProcess
    from napari_jrss.training.loop import Cancel
    from napari_jrss.training.round import RoundTask

STATES = "*.state.safetensors"
_STATE_EVERY_S, _STATE_SHARE = 30.0, 10.0
"""A training state is returned at most every so often, and in at most a tenth of the time."""


class FolderError(JRSSError):
    """The folder of a project isn't seen from here, or another training uses it."""


class Setup(BaseModel):
    """What the far side gets ready for.

    Attributes
    ----------
    project
        Name of the project's copies here; the same for each training of a project.
    folder
        Where the project's folder is seen here; None: copies come.
    probe
        Name of a file that lies in that folder now.
    required
        Whether it is an error if the folder isn't seen; else copies come.
    silence
        Seconds without a word from home after which this process ends.
    device, devices, threads, config
        As of :class:`~napari_jrss.app.rounds.process.InOwnProcess`.
    """

    project: str
    folder: str | None
    probe: str
    required: bool
    silence: float
    device: str
    devices: int = 1
    threads: int | None
    config: TrainingConfig


class RoundOrder(BaseModel):
    """One round, told without its project.

    Attributes
    ----------
    number, parent
        Of the round, and of that whose teacher it starts from.
    cases
        Name of the project's folder of cases, which is another one after a change of the plan.
    description
        Its settings and its cases.
    labels
        SHA-256 of the voxels of each label that it reads, by case.
    scans, scan_labels
        Of each case whose scan it reads at its own voxels: how its images reached the training
        grid, and the SHA-256 of its label there. Empty in a round that reads none.
    inputs, own
        What the round reads, and what its folder holds at home: names below the project's folder,
        or below the round's, with their SHA-256. Empty in a folder that both sides see.
    """

    number: int
    parent: int | None
    cases: str
    description: RoundDescription
    labels: dict[str, str]
    scans: dict[str, list[GridTransform]] = {}
    scan_labels: dict[str, str] = {}
    inputs: dict[str, str] = {}
    own: dict[str, str] = {}

    @property
    def key(self) -> str:
        """The same for each start of the same round."""
        return sha256(self.model_dump_json(exclude={"own"}).encode()).hexdigest()

    def task(self, root: Path) -> RoundTask:
        """The round in a folder laid out as a project."""
        from napari_jrss.training.round import RoundTask

        said = self.description
        assert said.spacing_mm is not None
        assert said.shape is not None
        snapshot = CohortSnapshot(
            class_names=tuple(said.classes),
            spacing_mm=said.spacing_mm,
            shape=said.shape,
            labelled=tuple(said.labelled),
            unlabelled=tuple(said.unlabelled),
            validation=tuple(said.validation),
            label_versions=said.label_versions,
            arrays=CachedArrays(
                lambda case_id: self._image(root, case_id),
                lambda case_id: self.grid_label(root, case_id),
            ),
            channels=tuple(said.channels),
            scans=_Scans(self, root) if self.scans else None,
        )
        folder = root / ROUNDS / round_folder(self.number)
        parent = None if self.parent is None else root / ROUNDS / round_folder(self.parent)
        return RoundTask(self.number, snapshot, said.training, folder, parent)

    def case_path(self, root: Path, case_id: str) -> Path:
        """The folder of a case there."""
        return store.case_path(root / self.cases, case_id)

    def grid_label(self, root: Path, case_id: str) -> NDArray[Any]:
        """A label on the training grid, as it was accepted; else a :class:`ProjectError`."""
        return self._label(root, case_id, store.label_folder, self.labels[case_id])

    def scan_label(self, root: Path, case_id: str) -> NDArray[Any]:
        """A label on the scan's own voxels; errors as of :meth:`grid_label`."""
        if case_id not in self.scan_labels:  # in a project of an older version
            return self.scans[case_id][0].label_to_scan(self.grid_label(root, case_id))
        return self._label(root, case_id, store.scan_folder, self.scan_labels[case_id])

    def _image(self, root: Path, case_id: str) -> Image:
        path = self.case_path(root, case_id)
        image = store.read_channels(path, max(1, len(self.description.channels)))
        if image.shape[1:] != self.description.shape:
            raise ProjectError(f"{path}: isn't on the training grid")
        return image

    def _label(
        self, root: Path, case_id: str, folder: Callable[[Path, str], Path], sha256: str
    ) -> NDArray[Any]:
        path, version = self.case_path(root, case_id), self.description.label_versions[case_id]
        label = read_array(folder(path, version))
        if store.fingerprint(label) != sha256:
            raise ProjectError(f"{path}: label {version} isn't what was written; it is damaged")
        return label


@dataclass(frozen=True)
class _Scans:
    """The scans of a round at their own voxels; a :class:`napari_jrss.snapshot.CaseScans`."""

    order: RoundOrder
    root: Path

    def scan(self, case_id: str) -> CaseScan:
        path = self.order.case_path(self.root, case_id)
        return read_case_scan(path, self.order.scans[case_id])

    def scan_label(self, case_id: str) -> NDArray[Any]:
        return self.order.scan_label(self.root, case_id)

    def finer(self, case_id: str) -> float:
        return times_finer(self.order.scans[case_id][0].scan_to_grid)


class _Copies(BaseModel):
    """What is known of the copy of a round's folder: which round, and what both sides have had."""

    key: str
    known: set[str]


def main() -> None:
    """Serve one training, then end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = _channel()
    # A scheduler's time limit: save the state and end.
    signal.signal(signal.SIGTERM, lambda *_: channel.stop.set())
    code = 0
    try:
        # Whatever a shell has printed, this begins a line.
        channel.begin_line()
        channel.send("hello", version=__version__)
        _serve(channel)
    except ChannelError:
        code = 1
    except Exception as error:
        code, fault = 1, not isinstance(error, EXPECTED)
        text = one_line(error)
        if fault:
            traceback.print_exc()
            text = f"{type(error).__name__}: {text}"
        channel.send("error", text=text, fault=fault)
    # The thread that listens would be in the way of an orderly end.
    os._exit(code)


def _channel() -> Channel:
    """The standard streams; what libraries print goes to the standard error."""
    incoming, outgoing = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    return Channel(incoming, outgoing, lambda silent: os._exit(1))


def _serve(channel: Channel) -> None:
    from napari_jrss.app.rounds.process import step_back

    setup = Setup.model_validate_json(channel.wait_for("setup").payload)
    channel.silence = setup.silence
    copies = platformdirs.user_cache_path("napari-jrss", appauthor=False) / ROUNDS
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    shared = _shared(setup)
    root = shared or copies / Path(setup.project).name
    with _alone(copies / f"{root.name}.lock", channel):
        if setup.threads is not None:
            os.environ["OMP_NUM_THREADS"] = str(setup.threads)

        def failed(reason: str) -> None:
            channel.send("error", text=reason, fault=True)
            os._exit(1)

        with Peers(_follow, setup.devices, failed) as peers:
            step_back()
            peers.send(setup.model_dump_json())
            executor = _ready(setup, channel.stop)
            channel.send("ready", device=executor.device, shared=shared is not None)
            while (message := channel.wait_for("round", "done")).kind == "round":
                order = RoundOrder.model_validate_json(message.payload)
                executor.prepare(order.description.training, channel.stop)
                task = order.task(root)
                returning = _take(channel, order, root, task.files) if shared is None else None
                peers.send(json.dumps([str(root), order.model_dump_json()]))
                _run(channel, task, returning, executor)
        if shared is None:
            shutil.rmtree(root, ignore_errors=True)
        channel.send("gone")


def _ready(setup: Setup, stop: Cancel) -> InThisProcess:
    """What runs rounds in this process, ready for them."""
    import torch

    from napari_jrss.app.rounds.train import InThisProcess

    torch.set_num_threads(max(1, (setup.threads or torch.get_num_threads()) // setup.devices))
    executor = InThisProcess(setup.device, setup.devices)
    executor.prepare(setup.config, stop)
    return executor


def _follow(parent: Parent) -> None:
    """A further process of a training on several devices: takes part in each round."""
    from napari_jrss.app.rounds.process import step_back

    step_back()
    executor = _ready(Setup.model_validate_json(parent.receive()), parent.stop)
    while True:
        root, order = json.loads(parent.receive())
        for event in executor.run_task(
            RoundOrder.model_validate_json(order).task(Path(root)), parent.stop
        ):
            parent.send(event.model_dump_json())


def _shared(setup: Setup) -> Path | None:
    """The project's folder as it is seen here; None if copies are to come."""
    if setup.folder is None:
        return None
    folder = Path(setup.folder).expanduser()
    if (folder / Path(setup.probe).name).is_file() and os.access(folder / ROUNDS, os.W_OK):
        return folder
    if setup.required:
        raise FolderError(f"{folder}: isn't the project's folder there, or can't be written")
    return None


@contextmanager
def _alone(path: Path, channel: Channel) -> Iterator[None]:
    """One training of a project at a time; an earlier one whose line broke needs time to end."""
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    until = time.monotonic() + 1.5 * channel.silence
    while not lock.is_locked:
        try:
            lock.acquire()
        except Timeout:
            if time.monotonic() > until or channel.stop.is_set():
                raise FolderError("another training of this project still runs there") from None
            time.sleep(0.2)
        except (OSError, NotImplementedError):  # a cluster's file system may know no locks
            break
    try:
        yield
    finally:
        lock.release()


def _run(
    channel: Channel, task: RoundTask, returning: _Returning | None, executor: InThisProcess
) -> None:
    """Run a round, send its events, and return what it writes where that is a copy."""
    try:
        for event in executor.run_task(task, channel.stop):
            if returning is not None and event.kind in _MILESTONES:
                returning.send(all_of_it=event.kind in _ENDS)
            channel.send("event", event.model_dump_json().encode())
    except Exception:
        if returning is not None:
            returning.send(all_of_it=True)
        raise


_ENDS = ("stage_finished", "cancelled", "round_finished")
_MILESTONES = (*_ENDS, "epoch_end", "case_screened")


def _take(channel: Channel, order: RoundOrder, root: Path, files: RoundFiles) -> _Returning:
    """Get the copies that are missing; the round's own, unless what is here is further."""
    folder = files.folder
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    sweep(root)
    record = folder.with_suffix(".json")
    copies = _read(record)
    at_home = {f"{name} {digest}" for name, digest in order.own.items()}
    # What home has and never was here was made elsewhere, and is further.
    if copies is None or copies.key != order.key or at_home - copies.known:
        shutil.rmtree(folder, ignore_errors=True)
        record.unlink(missing_ok=True)
        copies = None
    wanted = dict(order.inputs)
    if copies is None:
        prefix = folder.relative_to(root).as_posix()
        wanted |= {f"{prefix}/{name}": digest for name, digest in order.own.items()}
    _prune(root, wanted, folder, record)
    missing = [n for n, d in wanted.items() if not (root / n).is_file() or checksum(root / n) != d]
    channel.send("missing", json.dumps(missing).encode())
    incoming = Incoming(root, wanted.__contains__)
    while (message := channel.wait_for(PIECE, COMMIT)).kind == PIECE:
        incoming.add(message)
    incoming.commit()
    if copies is None:
        copies = _Copies(key=order.key, known=at_home)
        write_text(record, copies.model_dump_json())
    return _Returning(channel, folder, record, copies, order.own)


def _read(record: Path) -> _Copies | None:
    try:
        return _Copies.model_validate_json(record.read_bytes())
    except (OSError, ValidationError):
        return None


def _prune(root: Path, wanted: dict[str, str], folder: Path, record: Path) -> None:
    """Remove the copies of other rounds, and of cases that are in use no more."""
    for path in files_below(root):
        own = path == record or folder in path.parents
        if not own and path.relative_to(root).as_posix() not in wanted:
            path.unlink()
    for parent, _, _ in os.walk(root, topdown=False):
        if not any(Path(parent).iterdir()) and Path(parent) not in (root, folder.parent):
            Path(parent).rmdir()


class _Returning:
    """Sends home what a round has written since the last time."""

    def __init__(
        self, channel: Channel, folder: Path, record: Path, copies: _Copies, at_home: dict[str, str]
    ) -> None:
        self._channel, self._folder, self._record = channel, folder, record
        self._copies, self._at_home = copies, dict(at_home)
        self._seen: dict[str, tuple[int, int]] = {}
        self._state_due = 0.0
        self._states: set[str] = set()

    def send(self, *, all_of_it: bool) -> None:
        """Send the files that are new; training states only if `all_of_it`, or when it is time."""
        began = time.monotonic()
        with_states = all_of_it or began >= self._state_due
        states = {path.name for path in self._folder.glob(STATES)}
        changed = []
        for path in files_below(self._folder):
            name, about = path.relative_to(self._folder).as_posix(), path.stat()
            sign = (about.st_mtime_ns, about.st_size)
            skipped = name == RoundFiles(self._folder).config.name
            skipped |= name in states and not with_states
            if not skipped and self._seen.get(name) != sign:
                self._seen[name] = sign
                changed.append(path)
        new = {
            name: digest
            for name, digest in checksums(self._folder, changed).items()
            if self._at_home.get(name) != digest
        }
        if not new and states == self._states:
            return
        self._copies.known |= {f"{name} {digest}" for name, digest in new.items()}
        write_text(self._record, self._copies.model_dump_json())
        for _ in send_files(self._channel, self._folder, new):
            pass
        self._channel.send(COMMIT, states=sorted(states))
        self._at_home |= new
        self._states = states
        if with_states:
            now = time.monotonic()
            self._state_due = now + max(_STATE_EVERY_S, _STATE_SHARE * (now - began))


if __name__ == "__main__":
    main()
