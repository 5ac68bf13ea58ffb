"""The cases of a project: how scans become cases, and which of them train, validate and test."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_jrss.errors import ProjectError, ScanError, did_you_mean, from_os_error
from napari_jrss.geometry import Triple, spacing_mm
from napari_jrss.io.layouts import FoundCase
from napari_jrss.io.nifti import file_checksum
from napari_jrss.io.read import read_volume
from napari_jrss.pool import Workers
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.case_attributes import DICOM_SOURCE, CaseAttributes
from napari_jrss.preprocess.grid import training_grid
from napari_jrss.preprocess.ingest import IngestResult, ingest
from napari_jrss.preprocess.transform import GridTransform, at_own_resolution
from napari_jrss.project.folder import LEFTOVERS, REFERENCE, ROUNDS, ProjectFolder
from napari_jrss.project.records import Case, FailedImport, LabelVersion, Split, Status, now
from napari_jrss.project.split import Assignment, split_by_group
from napari_jrss.snapshot import CaseScan, Image, Label

_logger = logging.getLogger(__name__)

IMPORT_AUTHOR = "import"
FIRST_VERSION = "v0001"


@dataclass(frozen=True, eq=False)
class ChannelScan:
    """A further image of a case: (z, y, x) on its own voxels turned to LPS, and its place."""

    name: str
    array: NDArray[Any]
    transform: GridTransform


class ProjectCases(ProjectFolder):
    """The cases of a project; see :class:`~napari_jrss.project.project.Project`."""

    def cases(self) -> list[Case]:
        """All cases, by id."""
        return self._ledger.cases()

    def case(self, case_id: str) -> Case:
        """One case.

        Raises
        ------
        ProjectError
            The project has no such case.
        """
        case = self._ledger.case(case_id)
        if case is None:
            known = (each.case_id for each in self.cases())
            hint = did_you_mean(case_id, known)
            raise ProjectError(f"{self.path}: has no case {case_id!r}{hint}")
        return case

    def attributes(self, case_id: str) -> CaseAttributes:
        """Where a case came from, and the transform back to its scan's own grid."""
        return store.read_attributes(self.case_path(self.case(case_id).case_id))

    def spacing_of(self, case_id: str) -> Triple:
        """Voxel size (z, y, x) in mm: of the common frame, else of this scan by itself."""
        if self.grid.affine is not None:
            return self.grid.spacing_mm
        return spacing_mm(self.attributes(case_id).transform.grid_affine)

    def image(self, case_id: str) -> Image:
        """Preprocessed image (z, y, x) of a case on the training grid; of several the first."""
        return store.read_image(self.case_path(self.case(case_id).case_id))

    def channel_images(self, case_id: str) -> Image:
        """All preprocessed images (channels, z, y, x) of a case, see :attr:`channels`."""
        path = self.case_path(self.case(case_id).case_id)
        return store.read_channels(path, self.inputs)

    def channel_scan(self, case_id: str, number: int) -> ChannelScan:
        """Further image `number`, from 1, of a case with its own intensities, on its own voxels.

        They are turned to LPS; see :meth:`scan_image` for the first image.
        """
        path = self.case_path(self.case(case_id).case_id)
        about = store.read_attributes(path).channels[number - 1]
        array = store.read_channel_scan(path, number)
        return ChannelScan(about.name, array, about.transform)

    def scan_image(self, case_id: str) -> NDArray[Any]:
        """The scan (z, y, x) of a case with its own intensities, turned to LPS.

        A project of an older version doesn't hold it. It is then read from its file and kept, or,
        where that is gone, made of the image on the training grid.
        """
        about, path = self.attributes(case_id), self.case_path(case_id)
        transform = about.transform
        image = store.read_scan_image(path)
        if image is not None:
            return image
        source = Path(about.source)
        try:
            if about.source != DICOM_SOURCE and file_checksum(source) == about.checksum:
                image = store.smallest(transform.turn_to_scan(read_volume(source).array))
        except (OSError, ScanError) as error:
            _logger.warning("scan of %s: %s", case_id, error)
        if image is None:
            return transform.turn_to_scan(transform.image_to_source(self.image(case_id)))
        if not self.read_only:
            try:
                store.add_scan_image(path, image)
            except OSError as error:  # it is only kept to be quick
                _logger.warning("%s: can't be written (%s)", path, from_os_error(error))
        return np.ascontiguousarray(image)

    def case_scan(self, case_id: str) -> CaseScan:
        """The images of a case on the scan's own voxels, as the networks see them."""
        return read_case_scan(self.case_path(self.case(case_id).case_id))

    def add_cases(
        self,
        found: Sequence[FoundCase],
        workers: Workers = None,
        groups: Mapping[str, str | None] | None = None,
    ) -> Iterator[IngestResult]:
        """Preprocess scans in worker processes and make each a case as it gets ready.

        The first scans added settle the training grid. A scan that fails is recorded with the
        reason, see :meth:`failed_imports`, and the others go on; it may be added again. The same
        scan under another name, or pseudonym, is left out: no scan may both train and test.

        Yields one result per scan, in the order in which they end. Without `workers`, there is a
        process per core; `groups` has the subject group of each case, where known. Raises a
        :class:`ScanError` if no scan can be read, or the reference case is none of them.
        """
        self.check_writable()
        groups = groups or {}
        known = {case.case_id.lower() for case in self.cases()}
        fresh = []
        for scan in found:
            try:
                path = self.case_path(scan.case_id)
            except ProjectError as error:
                yield self._failed(IngestResult(scan.case_id, False, str(error)))
                continue
            if scan.case_id.lower() in known:
                yield IngestResult(scan.case_id, False, "the project has this case already")
                continue
            known.add(scan.case_id.lower())
            self._clear(path)
            fresh.append(scan)
        if not fresh:
            return
        if not self.cases():
            # The first import that brings a case settles the grid.
            kept = self._inside(REFERENCE)
            chosen = training_grid(fresh, self.preprocessing, self.table, workers, kept)
            if chosen.reference is not None:  # relative to the project, which may be moved
                chosen = chosen.model_copy(update={"reference": Path(REFERENCE)})
            self._ledger.set_grid(chosen.model_dump_json())
        twins = _Twins(self._image_at)
        for case in self.cases():
            twins.add(self.attributes(case.case_id))
        for result in ingest(
            fresh,
            self.preprocessing,
            self.table,
            self.cases_path,
            workers,
            grid=self.grid,
            version=FIRST_VERSION,
            channels=self.channels,
        ):
            if result.ok:
                path = self.case_path(result.case_id)
                attributes = store.read_attributes(path)
                twin = twins.of(attributes)
                if twin is not None:
                    self._clear(path)
                    result = IngestResult(result.case_id, False, f"the same scan as {twin}")
                else:
                    twins.add(attributes)
            if result.ok:
                self.register_case(result.case_id, groups.get(result.case_id))
                yield result
            else:
                yield self._failed(result)

    def register_case(self, case_id: str, group: str | None = None) -> Case:
        """Make a case of a scan whose folder ``cases/<case_id>.ome.zarr`` is in place.

        The first label in it becomes the label in force, with the status MANUAL. A
        :class:`ProjectError` if the id is taken (upper and lower case don't count), or the folder
        isn't there.
        """
        self.check_writable()
        path = self.case_path(case_id)
        if self._ledger.has_case(case_id):
            raise ProjectError(f"{self.path}: has a case {case_id} already")
        if not path.is_dir():
            raise ProjectError(f"{path}: no such folder")
        label = None
        for version in store.label_versions(path)[:1]:
            label = LabelVersion(
                case_id=case_id,
                version=version,
                status=Status.MANUAL,
                created=now(),
                author=IMPORT_AUTHOR,
                draft="imported",
                voxels_changed=None,
                seconds=None,
                sha256=store.fingerprint(store.read_label(path, version)),
                scan_sha256=store.fingerprint(store.read_scan_label(path, version))
                if store.has_on_scan(path, version)
                else None,
            )
        self._ledger.add_case(case_id, group, label)
        _logger.info("imported %s, %s a label", case_id, "without" if label is None else "with")
        return self.case(case_id)

    def _image_at(self, case_id: str) -> Image:
        """The preprocessed image of a scan that may not be a case yet."""
        return store.read_image(self.case_path(case_id))

    def _failed(self, result: IngestResult) -> IngestResult:
        self._ledger.fail_import(result.case_id, result.reason)
        _logger.warning("%s can't be imported: %s", result.case_id, result.reason)
        return result

    def _clear(self, path: Path) -> None:
        """Remove the folder that a killed import left and that never became a case.

        A folder with more than an imported label holds somebody's work, even if the ledger
        doesn't know it: it is moved to the leftovers, not removed.
        """
        if not path.exists():
            return
        if store.labels_on_disk(path) <= {FIRST_VERSION}:
            shutil.rmtree(path)
        else:
            leftovers = self._inside(LEFTOVERS)
            leftovers.mkdir(exist_ok=True)
            path.rename(leftovers / f"{now().replace(':', '')}-{path.name}")

    def _require_no_rounds(self) -> None:
        if self._ledger.rounds(self.path / ROUNDS):
            raise ProjectError(
                f"{self.path}: has rounds trained on its split; a new split needs a new project"
            )

    def failed_imports(self) -> list[FailedImport]:
        """Scans that couldn't become cases, and why."""
        return self._ledger.failed_imports()

    def split(
        self,
        labelled: int | None = None,
        validation: int = 0,
        test: int = 0,
        training: int | None = None,
        seed: int = 0,
        groups: Mapping[str, str | None] | None = None,
    ) -> Assignment:
        """Assign the cases to training, validation and test, whole subject groups together.

        For one seed the three sets are the same for every `labelled`, and the labelled set of
        a smaller N lies in that of a larger N. Training cases beyond N count as unlabelled;
        labels they have are kept, hidden from training.

        Parameters
        ----------
        labelled
            N; None for every training case that has a label.
        validation, test
            Numbers of cases (with labels).
        training
            K; the cases beyond it are UNUSED. None for all that are left.
        seed
            Of the shuffle.
        groups
            Subject group of every case; None for those that the project knows.

        Returns
        -------
        Assignment
            Which cases train, validate, test and are put aside, and which are labelled.

        Raises
        ------
        ProjectError
            Too few cases, a case without an entry in `groups`, or rounds that were trained
            on an earlier split (test cases may have trained then).
        """
        self._require_no_rounds()
        cases = {case.case_id: case for case in self.cases()}
        if groups is None:
            groups = {case_id: case.group for case_id, case in cases.items()}
        for case_id in cases.keys() - groups.keys():
            raise ProjectError(f"{self.path}: no subject group is given for case {case_id}")
        groups = {case_id: groups[case_id] for case_id in cases}
        label = {c.case_id: c.label_version or c.reference_version for c in cases.values()}
        assignment = split_by_group(
            groups,
            [case_id for case_id, version in label.items() if version is not None],
            labelled=labelled,
            validation=validation,
            test=test,
            training=training,
            seed=seed,
        )
        hidden = set(assignment.train) - set(assignment.labelled)
        versions = {(v.case_id, v.version): v for v in self._ledger.versions()}
        assigned = []
        for split in Split:
            for case_id in getattr(assignment, split):
                case, version = replace(cases[case_id], split=split), label[case_id]
                if version is not None and case_id in hidden:
                    case = replace(
                        case,
                        status=Status.UNLABELLED,
                        label_version=None,
                        reference_version=version,
                    )
                elif version is not None:
                    status = versions[case_id, version].status
                    case = replace(
                        case, status=status, label_version=version, reference_version=None
                    )
                assigned.append(case)
        counts = Counter(case.split for case in assigned)
        detail = ", ".join(f"{counts[split]} {split}" for split in Split)
        self._ledger.assign(
            assigned, f"{detail}; {len(assignment.labelled)} labelled; seed {seed}", groups
        )
        return assignment

    def assign_splits(self, splits: Mapping[str, str]) -> None:
        """Assign cases to the splits that a table gives; the others stay as they are.

        Raises
        ------
        ProjectError
            There are rounds already.
        """
        self._require_no_rounds()
        cases = [
            replace(case, split=Split(splits[case.case_id]))
            for case in self.cases()
            if case.case_id in splits
        ]
        self._ledger.assign(cases, "as the table of the import gives it", {})


def read_case_scan(path: Path, transforms: Sequence[GridTransform] = ()) -> CaseScan:
    """The images of a case on its scan's own voxels, turned to LPS, scaled for the networks.

    `transforms` are those of its images; none: as stored with the case.
    """
    transforms = transforms or store.read_attributes(path).transforms
    first = store.read_scan_image(path)
    if first is None:  # in a project of an older version
        on_grid = store.read_image(path)
        first = transforms[0].turn_to_scan(transforms[0].image_to_source(on_grid))
    others = [store.read_channel_scan(path, n) for n in range(1, len(transforms))]
    return at_own_resolution([first, *others], transforms)


def read_grid_label(path: Path, label: LabelVersion) -> Label:
    """Read a label (z, y, x) on the training grid.

    Where its copy on this grid is gone or damaged, it is made of the label on the scan's voxels.

    Raises
    ------
    ProjectError
        Its voxels aren't what was written.
    ScanError
        It can't be read.
    """
    try:
        array = store.read_label(path, label.version)
        if store.fingerprint(array) in (label.sha256, _of_this_plan(path, label.version)):
            return array
        raise ProjectError(f"{path}: label {label.version} isn't what was written; it is damaged")
    except (ScanError, ProjectError) as error:
        if label.scan_sha256 is None:
            raise
        array = store.read_attributes(path).transform.label_to_grid(read_scan_label(path, label))
        _logger.warning("%s; made anew of the label on the scan's voxels", error)
        return array


def _of_this_plan(path: Path, version: str) -> str | None:
    """The fingerprint of a label that was brought to the grid of another plan."""
    return store.read_attributes(path).grid_sha256.get(version)


def read_scan_label(path: Path, label: LabelVersion) -> Label:
    """Read a label (z, y, x) on the scan's own voxels, turned to LPS, as somebody accepted it.

    Raises
    ------
    ProjectError
        Its voxels aren't what was written.
    ScanError
        It can't be read.
    """
    array = store.read_scan_label(path, label.version)
    if store.fingerprint(array) != label.scan_sha256:
        raise ProjectError(f"{path}: label {label.version} isn't what was written; it is damaged")
    return array


class _Twins:
    """Scans by what tells that two are the same one, perhaps from files of different formats."""

    def __init__(self, image: Callable[[str], Image]) -> None:
        self._image = image
        self._by_checksum: dict[str, str] = {}
        self._by_values: dict[str, list[str]] = {}

    def add(self, one: CaseAttributes) -> None:
        self._by_checksum.setdefault(one.checksum, one.case_id)
        self._by_values.setdefault(self._values(one), []).append(one.case_id)

    def of(self, one: CaseAttributes) -> str | None:
        """The case that was made of the same scan."""
        if one.checksum in self._by_checksum:
            return self._by_checksum[one.checksum]
        alike = self._by_values.get(self._values(one), [])
        if not alike:
            return None
        image = self._image(one.case_id)
        return next((a for a in alike if np.array_equal(image, self._image(a))), None)

    @staticmethod
    def _values(one: CaseAttributes) -> str:
        """The same for equal scans, and seldom for others."""
        transform = one.transform
        return f"{transform.intensity.model_dump_json()} {transform.source_shape}"
