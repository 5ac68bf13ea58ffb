"""The labels of a project: versions that are never changed, decisions, and their history."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import ArrayLike

from napari_jrss.errors import ProjectError, ScanError, from_os_error
from napari_jrss.io.label_files import read_classes
from napari_jrss.io.nifti import file_checksum
from napari_jrss.io.predictions import Prediction
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.io.volume import Volume
from napari_jrss.labels import IGNORED
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.pipeline import on_grid_of
from napari_jrss.project.cases import (
    IMPORT_AUTHOR,
    ProjectCases,
    read_grid_label,
    read_scan_label,
)
from napari_jrss.project.folder import ROUNDS
from napari_jrss.project.records import (
    Event,
    HistoryEntry,
    LabelVersion,
    Status,
    now,
    round_folder,
)
from napari_jrss.snapshot import Label

_logger = logging.getLogger(__name__)

_BRINGING_UP = Lock()  # two threads may ask for the same label

_VERSION = re.compile(r"v[0-9]{4,}")
_DRAFT = re.compile(
    r"blank|imported|(?:round|case|version|file):\S+|tool:[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
)


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
        return read_grid_label(self.case_path(case_id), self.label_version(case_id, version))

    def scan_label(self, case_id: str, version: str | None = None) -> Label:
        """A label (z, y, x) of a case on the scan's own voxels, turned to LPS.

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

        Notes
        -----
        A project of an older version held labels on the training grid only. The label is then
        read from the file that it was imported from, with what was painted on it since, and
        kept. Where that file is gone, the label of the training grid is carried to the scan.
        """
        path = self.case_path(self.case(case_id).case_id)
        with _BRINGING_UP:
            label = self.label_version(case_id, version)
            if label.scan_sha256 is None:
                array, certain = self._carried(label)
                if certain and not self.read_only:
                    checksum = store.fingerprint(array)
                    try:
                        store.add_to_scan(path, label.version, array, self.table)
                        self._ledger.add_scan_label(case_id, label.version, checksum)
                    except (OSError, ProjectError) as error:  # tried again the next time
                        _logger.warning("label %s of %s isn't kept: %s", version, case_id, error)
                return array
        return read_scan_label(path, label)

    def grid_sha256(self, case_id: str, version: str) -> str:
        """SHA-256 of a label's voxels on the present training grid; errors as of :meth:`label`."""
        moved = self.attributes(case_id).grid_sha256
        return moved.get(version, self.label_version(case_id, version).sha256)

    def label_version(self, case_id: str, version: str | None = None) -> LabelVersion:
        """A label version of a case, the one in force by default; a ProjectError without it."""
        version = version or self.case(case_id).label_version
        if version is None:
            raise ProjectError(f"{self.path}: case {case_id} has no label")
        for entry in self.label_versions(case_id):
            if entry.version == version:
                return entry
        raise ProjectError(f"{self.path}: case {case_id} has no label version {version!r}")

    def label_versions(self, case_id: str) -> list[LabelVersion]:
        """All label versions of a case, oldest first."""
        return self._ledger.versions(self.case(case_id).case_id)

    def every_label_version(self) -> list[LabelVersion]:
        """The label versions of all cases, oldest first."""
        return self._ledger.versions()

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
        on_scan: bool = False,
        status: Status = Status.MANUAL,
        voxels_changed: int | None = None,
        seconds: float | None = None,
        helped: Mapping[str, int] | None = None,
    ) -> str:
        """Keep a new label of a case and put it in force; earlier ones stay.

        Parameters
        ----------
        case_id
            The case.
        array
            Class indices (z, y, x) on the training grid, or on the scan's own voxels.
        author
            Who made it, by the name that the person gave.
        draft
            What it was made from, see :func:`check_draft`.
        on_scan
            Whether the label was drawn on the scan's own voxels, turned to LPS.
        status
            MANUAL, ACCEPTED (as the teacher drew it) or CORRECTED.
        voxels_changed
            How many voxels differ from the draft; counted here when the draft is blank or a
            version.
        seconds
            Time spent on it.
        helped
            Actions of other programs in it, by their names; the history tells them.

        Returns
        -------
        str
            The version, such as ``v0002``.

        Raises
        ------
        ProjectError
            The array doesn't fit the case or the label table, or the project is read-only.

        Notes
        -----
        A label that was drawn on the training grid is, on the scan's own voxels, that of the
        draft, and differs from it where the nearest voxel of the training grid was painted.
        """
        case = self.case(case_id)
        self.check_writable()
        if not author.strip():
            raise ProjectError("a label needs its author's name")
        if not Status(status).has_label:
            raise ProjectError(f"a label's status can't be {Status(status).value}")
        check_draft(draft)
        path = self.case_path(case.case_id)
        transform = self.attributes(case_id).transform
        array = self.checked_label(case_id, array, transform.scan_shape if on_scan else None)
        if voxels_changed is None:
            if draft == "blank":
                voxels_changed = int(np.count_nonzero(array))
            elif draft.startswith("version:"):
                read = self.scan_label if on_scan else self.label
                before = read(case_id, draft.removeprefix("version:"))
                voxels_changed = int(np.count_nonzero(array != before))
        kind = {
            Status.MANUAL: Event.LABELLED,
            Status.ACCEPTED: Event.ACCEPTED,
            Status.CORRECTED: Event.CORRECTED,
        }[Status(status)]
        if on_scan:
            array, scan, certain = transform.label_to_grid(array), array, True
        else:
            scan, certain = self._on_scan(case_id, draft, array)
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
            scan_sha256=store.fingerprint(scan) if certain else None,
        )
        return self._put_in_force(path, label, array, scan, kind, _with_help(helped or {}))

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
        array, scan = self.label(case_id, version), self.scan_label(case_id, version)
        path = self.case_path(case_id)
        label = replace(
            self.label_version(case_id, version),
            version=self._next_version(case_id, path),
            created=now(),
            author=author,
            draft=f"version:{version}",
            voxels_changed=0,
            seconds=None,
            sha256=store.fingerprint(array),  # the plan may have changed since
        )
        return self._put_in_force(path, label, array, scan, Event.RESTORED)

    def _put_in_force(
        self,
        path: Path,
        label: LabelVersion,
        array: Label,
        scan: Label,
        kind: Event,
        how: str = "",
    ) -> str:
        """Write a label, flush it, and only then let the ledger know."""
        kept = None if label.scan_sha256 is None else scan
        try:
            store.add_label(path, label.version, array, self.table, kept)
        except OSError as error:
            raise ProjectError(
                f"{path}: label can't be written ({from_os_error(error)})"
            ) from error
        self._ledger.add_version(label, kind, f"from {label.draft}{how}")
        return label.version

    # -- from the training grid to the scan's voxels

    def _predicted(self, case_id: str, draft: str, base: Label | None) -> Prediction | None:
        """The prediction that a label was drawn from, if it is there and still that label."""
        kind, _, number = draft.partition(":")
        if kind != "round" or not number.isdecimal():
            return None
        try:
            found = RoundFiles(self._inside(ROUNDS, round_folder(int(number)))).prediction(case_id)
        except ScanError as error:
            _logger.warning("%s", error)
            return None
        same = found is not None and (base is None or np.array_equal(found.label, base))
        return found if same else None

    def carry_to_scan(
        self, case_id: str, draft: str, base: Label, label: Label
    ) -> tuple[Label, Label]:
        """A draft of the training grid, and what was painted on it, on the scan's own voxels.

        Parameters
        ----------
        case_id
            The case.
        draft
            What the draft is, see :func:`check_draft`.
        base, label
            On the training grid: the draft, and the label as it was painted on it.

        Returns
        -------
        base, label
            On the scan's own voxels, turned to LPS.
        """
        start, _ = self._on_scan(case_id, draft, base, base)
        return start, self.attributes(case_id).transform.paint(start, base, label)

    def labels_without_source(self) -> list[str]:
        """Cases of an older project whose label is exported as the training grid holds it.

        The file that it was imported from is gone, so nothing tells its own voxels.
        """
        versions = {(v.case_id, v.version): v for v in self._ledger.versions()}
        found = []
        for case in self.cases():
            name = case.label_version or ""
            while (label := versions.get((case.case_id, name))) and label.scan_sha256 is None:
                if label.draft == "imported" and label.author == IMPORT_AUTHOR:
                    if not Path(self.attributes(case.case_id).label_source or "").is_file():
                        found.append(case.case_id)
                    break
                name = label.draft.removeprefix("version:")
        return found

    def _carried(self, label: LabelVersion) -> tuple[Label, bool]:
        """A label that is only known on the training grid, as :meth:`_on_scan` gives it."""
        case_id, array = label.case_id, self.label(label.case_id, label.version)
        if label.draft != "imported" or label.author != IMPORT_AUTHOR:
            return self._on_scan(case_id, label.draft, array)
        about = self.attributes(case_id)
        source = Path(about.label_source or "")
        try:
            if file_checksum(source) == about.label_checksum:
                transform = about.transform
                voxels = np.broadcast_to(np.False_, transform.source_shape)
                scan = Volume(voxels, np.array(transform.source_affine), header=transform.header)
                found = on_grid_of(scan, read_classes(source, self.table))
                return transform.turn_to_scan(found.array), True
        except (OSError, ScanError) as error:
            _logger.warning("label %s of %s: %s", label.version, case_id, error)
        return about.transform.label_to_scan(array), False

    def _on_scan(
        self, case_id: str, draft: str, array: Label, base: Label | None = None
    ) -> tuple[Label, bool]:
        """A label of the training grid on the scan's own voxels, given what it was drawn from.

        The second value is False where a file that the draft was imported from is gone: once it
        is found again, the label comes out better.
        """
        transform, certain = self.attributes(case_id).transform, True
        kind, _, name = draft.partition(":")
        if kind == "blank":
            base = np.zeros_like(array)
            start = np.zeros(transform.scan_shape, array.dtype)
        elif kind == "version":
            base = self.label(case_id, name)
            earlier = self.label_version(case_id, name)
            if earlier.scan_sha256 is None:
                start, certain = self._carried(earlier)
            else:
                start = read_scan_label(self.case_path(case_id), earlier)
        elif (made := self._predicted(case_id, draft, base)) is not None:
            base, start = made.label, transform.prediction_to_scan(made)
        elif base is None:
            return transform.label_to_scan(array), True
        else:
            start = transform.label_to_scan(base)
        return transform.paint(start, base, array), certain

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

    def checked_label(
        self, case_id: str, array: ArrayLike, shape: tuple[int, ...] | None = None
    ) -> Label:
        """Return class indices as the project keeps them, by default on the training grid.

        A :class:`ProjectError` if they have another shape, aren't integers, or aren't classes of
        the project.
        """
        where, shape = ("scan", shape) if shape else ("training grid", self.grid.shape)
        array = np.asarray(array)
        if array.dtype.kind not in "iub":
            raise ProjectError(f"case {case_id}: a label holds integers, not {array.dtype}")
        if array.shape != shape:
            raise ProjectError(
                f"case {case_id}: label of shape {array.shape}, the {where} has {shape}"
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


def _with_help(helped: Mapping[str, int]) -> str:
    """Such as ", with nnInteractive 2.6 (3 actions)"; empty without help."""
    told = [f"{name} ({n} action{'s' if n > 1 else ''})" for name, n in sorted(helped.items())]
    return f", with {', '.join(told)}" if told else ""


def check_draft(draft: str) -> None:
    """Raise :class:`ProjectError` unless a draft says what a label was drawn from.

    That is ``blank``, ``imported``, ``round:2`` (the teacher of that round), ``case:A``
    (propagated from case A), ``version:v0001``, ``file:a.nii.gz`` or ``tool:TotalSegmentator``.
    """
    if not _DRAFT.fullmatch(draft):
        raise ProjectError(
            f"{draft!r} is no draft: blank, imported, round:N, case:ID, version:vNNNN, file:NAME "
            "or tool:NAME"
        )
