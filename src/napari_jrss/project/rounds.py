"""The rounds of a project, their teachers, and the snapshots that they train on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.io.atomic import sync_folder, write_text
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.preprocess import case_store as store
from napari_jrss.project.cases import read_case_scan, read_grid_label, read_scan_label
from napari_jrss.project.folder import ROUNDS
from napari_jrss.project.labels import ProjectLabels
from napari_jrss.project.records import (
    LabelVersion,
    Round,
    RoundKind,
    RoundOutcome,
    Split,
    round_folder,
)
from napari_jrss.snapshot import (
    CachedArrays,
    CaseScan,
    CohortSnapshot,
    Image,
    Label,
    times_finer,
)

_logger = logging.getLogger(__name__)


class ProjectRounds(ProjectLabels):
    """The rounds of a project; see :class:`~napari_jrss.project.project.Project`."""

    def rounds(self) -> list[Round]:
        """All rounds by number."""
        rounds = self._ledger.rounds(self.path / ROUNDS)
        for entry in rounds:
            # A round's folder is written into by its number alone.
            self._inside(ROUNDS, entry.folder.name, entry.files.predictions.name)
        return rounds

    def round(self, number: int) -> Round:
        """One round; a :class:`ProjectError` if there is none of this number."""
        for entry in self.rounds():
            if entry.number == number:
                return entry
        raise ProjectError(f"{self.path}: has no round {number}")

    def start_round(
        self,
        parent: int | None,
        config_json: str,
        label_versions: Mapping[str, str],
        kind: RoundKind = RoundKind.TRAINING,
        detail: str = "",
    ) -> Round:
        """Begin a round: its number, its folder, and the labels as it will use them.

        A round that was left running by a program that died counts as cancelled from now on.
        `parent` is the finished round whose teacher it starts from, None for pre-training;
        `config_json` goes to the folder's ``config.json``; `label_versions` are those of a
        snapshot. `detail` is kept in the history.
        """
        self.check_writable()
        if parent is not None and self.round(parent).outcome is not RoundOutcome.FINISHED:
            raise ProjectError(f"{self.path}: round {parent} isn't finished, so it has no teacher")
        roles = self._roles(label_versions)
        for case_id in label_versions.keys() - roles.keys():
            raise ProjectError(f"{self.path}: case {case_id!r} neither trains nor validates")
        number = max((entry.number for entry in self.rounds()), default=-1) + 1
        folder = self._inside(ROUNDS, round_folder(number))
        config = RoundFiles(folder).config
        # A killed start leaves at most the configuration, or its unfinished copy.
        if folder.exists() and any(
            file != config and not file.name.startswith(".") for file in folder.iterdir()
        ):
            raise ProjectError(
                f"{folder}: exists, though the ledger has no round {number}; move it away"
            )
        try:
            folder.parent.mkdir(exist_ok=True)
            folder.mkdir(exist_ok=True)
            write_text(config, config_json)
            sync_folder(folder.parent)
        except OSError as error:
            raise ProjectError(f"{folder}: can't be written ({from_os_error(error)})") from error
        self._ledger.add_round(number, parent, config_json, roles, kind, detail)
        _logger.info("round %d begins: %s", number, " ".join(config_json.split()))
        return self.round(number)

    def resume_round(self, number: int) -> Round:
        """Go on with a round that was cancelled, failed, or left running by a dead program."""
        self._unfinished(number)
        self._ledger.resume_round(number)
        _logger.info("round %d is resumed", number)
        return self.round(number)

    def finish_round(
        self,
        number: int,
        outcome: RoundOutcome | str,
        metrics: Mapping[str, object] | None = None,
        *,
        promote: bool = False,
    ) -> Round:
        """Record how a round ended: FINISHED (for good), CANCELLED or FAILED.

        `metrics` hold what JSON can. With `promote` its teacher becomes the current one in the same
        transaction.
        """
        self._unfinished(number)
        outcome = RoundOutcome(outcome)
        if outcome is RoundOutcome.RUNNING:
            raise ProjectError(f"{self.path}: a round can't end as 'running'")
        if promote and outcome is not RoundOutcome.FINISHED:
            raise ProjectError(f"{self.path}: a round that was {outcome} has no teacher")
        text = json.dumps(dict(metrics or {}))
        self._ledger.end_round(number, outcome, text, promote)
        _logger.info("round %d is %s: %s", number, outcome, text)
        return self.round(number)

    def add_metrics(self, number: int, metrics: Mapping[str, object], reason: str) -> None:
        """Record more metrics of a round that has ended; the history says why."""
        known = self.round(number).metrics
        self._ledger.set_metrics(number, json.dumps({**known, **metrics}), reason)

    def unfinished_round(self) -> Round | None:
        """The latest round, if it can still be resumed, which a quick one can't."""
        for entry in self.rounds()[-1:]:
            if entry.kind is RoundKind.QUICK or entry.outcome is RoundOutcome.FINISHED:
                return None
            return entry if self.of_this_plan(entry) else None
        return None

    def before_quick(self, entry: Round) -> Round:
        """The training that a round comes from: itself, or the one before the quick rounds."""
        while entry.kind is RoundKind.QUICK and entry.parent is not None:
            entry = self.round(entry.parent)
        return entry

    def promote(self, number: int, author: str | None = None, reason: str = "") -> None:
        """Make a finished round's teacher the current one; an earlier round rolls back."""
        if self.round(number).outcome is not RoundOutcome.FINISHED:
            raise ProjectError(f"{self.path}: round {number} isn't finished, so it has no teacher")
        if not self.of_this_plan(self.round(number)):
            raise ProjectError(
                f"{self.path}: round {number} was trained on the grid of another plan"
            )
        self._ledger.promote(number, author, reason)
        _logger.info("the teacher is that of round %d", number)

    @property
    def teacher(self) -> Round | None:
        """The round whose teacher is the current one."""
        number = self._ledger.teacher()
        return None if number is None else self.round(number)

    def require_teacher(self) -> Round:
        """The round whose teacher is the current one; a ProjectError before the first."""
        entry = self.teacher
        if entry is None:
            raise ProjectError(f"{self.path}: has no trained networks yet (train)")
        return entry

    def of_this_plan(self, entry: Round) -> bool:
        """Whether a round was trained on the present training grid, not on that of another plan."""
        return entry.number >= self._ledger.first_round()

    def _unfinished(self, number: int) -> None:
        if self.round(number).outcome is RoundOutcome.FINISHED:
            raise ProjectError(f"{self.path}: round {number} is finished")

    # -- for the engine

    def _roles(self, label_versions: Mapping[str, str]) -> dict[str, tuple[str, str | None]]:
        """What each case is for when these labels are used: case id -> (role, label version)."""
        roles: dict[str, tuple[str, str | None]] = {}
        for case in self.cases():
            version = label_versions.get(case.case_id)
            if case.split is Split.TRAIN:
                roles[case.case_id] = ("labelled" if version else "unlabelled", version)
            elif case.split is Split.VALIDATION and version:
                roles[case.case_id] = ("validation", version)
        return roles

    def snapshot(self, round_number: int | None = None) -> CohortSnapshot:
        """The cases and labels as they are now, or as a round found them at its start.

        A :class:`ProjectError` if there are no cases.
        """
        if round_number is None:
            roles = self._roles(
                {case.case_id: case.label_version for case in self.cases() if case.label_version}
            )
        else:
            roles = self._ledger.roles(self.round(round_number).number)
        if not roles:
            raise ProjectError(f"{self.path}: has no cases to train on")
        versions = {case_id: version for case_id, (_, version) in roles.items() if version}
        paths = {case_id: self.case_path(case_id) for case_id in roles}
        grid = self.grid
        known = {(v.case_id, v.version): v for v in self._ledger.versions()}
        labels = {case_id: known[case_id, version] for case_id, version in versions.items()}
        reader = _SnapshotReader(paths, labels, grid.shape, self.inputs)
        scans = _ScanReader(paths, labels)
        return CohortSnapshot(
            class_names=self.table.names,
            spacing_mm=grid.spacing_mm,
            shape=grid.shape,
            labelled=_with_role(roles, "labelled"),
            unlabelled=_with_role(roles, "unlabelled"),
            validation=_with_role(roles, "validation"),
            label_versions=versions,
            arrays=CachedArrays(reader.image, reader.label),
            channels=self.channels,
            scans=scans,
        )


@dataclass(frozen=True)
class _SnapshotReader:
    """Reads a snapshot's volumes; a label that isn't in the snapshot can't be read."""

    paths: Mapping[str, Path]
    labels: Mapping[str, LabelVersion]
    shape: tuple[int, int, int]
    inputs: int

    def image(self, case_id: str) -> Image:
        image = store.read_channels(self.paths[case_id], self.inputs)
        if image.shape[1:] != self.shape:
            raise ProjectError(f"{self.paths[case_id]}: isn't on the training grid")
        return image

    def label(self, case_id: str) -> Label:
        if case_id not in self.labels:
            raise KeyError(f"case {case_id} has no label in this snapshot")
        return read_grid_label(self.paths[case_id], self.labels[case_id])


@dataclass(frozen=True)
class _ScanReader:
    """Reads a snapshot's scans on their own voxels; nothing is kept in memory."""

    paths: Mapping[str, Path]
    labels: Mapping[str, LabelVersion]

    def scan(self, case_id: str) -> CaseScan:
        return read_case_scan(self.paths[case_id])

    def scan_label(self, case_id: str) -> Label:
        label, path = self.labels[case_id], self.paths[case_id]
        if label.scan_sha256 is not None:
            return read_scan_label(path, label)
        on_grid = read_grid_label(path, label)  # in a project of an older version
        return store.read_attributes(path).transform.label_to_scan(on_grid)

    def finer(self, case_id: str) -> float:
        return times_finer(store.read_attributes(self.paths[case_id]).transform.scan_to_grid)


def _with_role(roles: Mapping[str, tuple[str, str | None]], role: str) -> tuple[str, ...]:
    return tuple(sorted(case_id for case_id, (own, _) in roles.items() if own == role))
