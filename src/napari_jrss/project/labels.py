"""The labels of a project: versions that are never changed, decisions, and their history."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from napari_jrss.errors import ProjectError, from_os_error
from napari_jrss.labels import IGNORED
from napari_jrss.preprocess import case_store as store
from napari_jrss.project.cases import ProjectCases, read_checked_label
from napari_jrss.project.records import Event, HistoryEntry, LabelVersion, Status, now
from napari_jrss.snapshot import Label

_VERSION = re.compile(r"v[0-9]{4,}")
_DRAFT = re.compile(r"blank|imported|(?:round|case|version|file):\S+")


class ProjectLabels(ProjectCases):
    """The labels of a project; see :class:`~napari_jrss.project.project.Project`."""

    def label(self, case_id: str, version: str | None = None) -> Label:
        """A label (z, y, x) of a case on the training grid, as class indices.

        Parameters
        ----------
        case_id
            The case.
        version
            Which label; None for the one in force.

        Raises
        ------
        ProjectError
            There is none, or its voxels aren't what was once written.
        """
        case = self.case(case_id)
        version = version or case.label_version
        if version is None:
            raise ProjectError(f"{self.path}: case {case_id} has no label")
        checksum = self._version(case_id, version).sha256
        return read_checked_label(self.case_path(case_id), version, checksum)

    def label_versions(self, case_id: str) -> list[LabelVersion]:
        """All label versions of a case, oldest first."""
        return self._ledger.versions(self.case(case_id).case_id)

    def label_counts(self) -> dict[str, int]:
        """Number of label versions of each case that has any."""
        return dict(Counter(version.case_id for version in self._ledger.versions()))

    def add_label_version(
        self,
        case_id: str,
        array: ArrayLike,
        author: str,
        *,
        draft: str = "blank",
        status: Status = Status.MANUAL,
        voxels_changed: int | None = None,
        seconds: float | None = None,
    ) -> str:
        """Keep a new label of a case and put it in force; earlier ones stay.

        Parameters
        ----------
        case_id
            The case.
        array
            Class indices (z, y, x) on the training grid.
        author
            Who made it, by the name that the person gave.
        draft
            What it was made from, see :func:`check_draft`.
        status
            MANUAL, ACCEPTED (as the teacher drew it) or CORRECTED.
        voxels_changed
            How many voxels differ from the draft; counted here when the draft is blank or a
            version.
        seconds
            Time spent on it.

        Returns
        -------
        str
            The version, such as ``v0002``.

        Raises
        ------
        ProjectError
            The array doesn't fit the case or the label table, or the project is read-only.
        """
        case = self.case(case_id)
        self.check_writable()
        if not author.strip():
            raise ProjectError("a label needs its author's name")
        if not Status(status).has_label:
            raise ProjectError(f"a label's status can't be {Status(status).value}")
        check_draft(draft)
        path = self.case_path(case.case_id)
        array = self.checked_label(case_id, array)
        if voxels_changed is None:
            if draft == "blank":
                voxels_changed = int(np.count_nonzero(array))
            elif draft.startswith("version:"):
                before = self.label(case_id, draft.removeprefix("version:"))
                voxels_changed = int(np.count_nonzero(array != before))
        kind = {
            Status.MANUAL: Event.LABELLED,
            Status.ACCEPTED: Event.ACCEPTED,
            Status.CORRECTED: Event.CORRECTED,
        }[Status(status)]
        label = LabelVersion(
            case_id=case_id,
            version=self._next_version(case_id, path),
            status=Status(status),
            created=now(),
            author=author,
            draft=draft,
            voxels_changed=voxels_changed,
            seconds=seconds,
            sha256=store.fingerprint(array),
        )
        return self._put_in_force(path, label, array, kind)

    def restore(self, case_id: str, version: str, author: str) -> str:
        """Put an earlier label back in force, as a new version; returns its name.

        Raises
        ------
        ProjectError
            There is no such version, it is damaged, or the project is read-only.
        """
        self.check_writable()
        if not author.strip():
            raise ProjectError("a label needs its author's name")
        array = self.label(case_id, version)
        path = self.case_path(case_id)
        label = replace(
            self._version(case_id, version),
            version=self._next_version(case_id, path),
            created=now(),
            author=author,
            draft=f"version:{version}",
            voxels_changed=0,
            seconds=None,
        )
        return self._put_in_force(path, label, array, Event.RESTORED)

    def _put_in_force(self, path: Path, label: LabelVersion, array: Label, kind: Event) -> str:
        """Write a label, flush it, and only then let the ledger know."""
        try:
            store.add_label(path, label.version, array, self.table)
        except OSError as error:
            raise ProjectError(
                f"{path}: label can't be written ({from_os_error(error)})"
            ) from error
        self._ledger.add_version(label, kind, f"from {label.draft}")
        return label.version

    def reject(
        self, case_id: str, author: str, reason: str = "", round_number: int | None = None
    ) -> None:
        """Record that a person rejected a case's pseudo-label; a label in force stays."""
        self._decide(case_id, Event.REJECTED, author, round_number, reason)

    def skip(
        self, case_id: str, author: str, reason: str = "", round_number: int | None = None
    ) -> None:
        """Record that a person looked at a case and left it for later."""
        self._decide(case_id, Event.SKIPPED, author, round_number, reason)

    def _decide(
        self, case_id: str, kind: Event, author: str, round_number: int | None, reason: str
    ) -> None:
        if not author.strip():
            raise ProjectError("a decision needs its author's name")
        self._ledger.decide(self.case(case_id).case_id, kind, author, round_number, reason)

    def history(self, case_id: str | None = None) -> list[HistoryEntry]:
        """What happened, oldest first: to one case, or in the whole project."""
        return self._ledger.history(None if case_id is None else self.case(case_id).case_id)

    def _version(self, case_id: str, version: str) -> LabelVersion:
        for entry in self.label_versions(case_id):
            if entry.version == version:
                return entry
        raise ProjectError(f"{self.path}: case {case_id} has no label version {version!r}")

    def checked_label(
        self, case_id: str, array: ArrayLike, shape: tuple[int, ...] | None = None
    ) -> Label:
        """Return class indices as the project keeps them, by default on the training grid.

        A :class:`ProjectError` if they have another shape, aren't integers, or aren't classes of
        the project.
        """
        array, shape = np.asarray(array), shape or self.grid.shape
        if array.dtype.kind not in "iub":
            raise ProjectError(f"case {case_id}: a label holds integers, not {array.dtype}")
        if array.shape != shape:
            raise ProjectError(
                f"case {case_id}: label of shape {array.shape}, the training grid has {shape}"
            )
        known = array if self.table.ignored_id is None else array[array != IGNORED]
        low, high = int(known.min(initial=0)), int(known.max(initial=0))
        last = len(self.table.names) - 1
        if low < 0 or high > last:
            raise ProjectError(
                f"case {case_id}: the label has class {low if low < 0 else high}, "
                f"the project's are 0 to {last}"
            )
        return np.ascontiguousarray(array, self.table.dtype)

    def _next_version(self, case_id: str, path: Path) -> str:
        """A name that neither the ledger nor the disk knows.

        A label that a killed program had written but not registered keeps its name: it may be
        somebody's last work, and nothing here overwrites a label.
        """
        names = {entry.version for entry in self.label_versions(case_id)}
        names |= store.labels_on_disk(path)
        numbers = [int(name[1:]) for name in names if _VERSION.fullmatch(name)]
        return f"v{max(numbers, default=0) + 1:04d}"


def check_draft(draft: str) -> None:
    """Raise :class:`ProjectError` unless a draft says what a label was drawn from.

    That is ``blank``, ``imported``, ``round:2`` (the teacher of that round), ``case:A``
    (propagated from case A), ``version:v0001`` or ``file:a.nii.gz``.
    """
    if not _DRAFT.fullmatch(draft):
        raise ProjectError(
            f"{draft!r} is no draft: blank, imported, round:N, case:ID, version:vNNNN or file:NAME"
        )
