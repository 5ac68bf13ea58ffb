"""Scans whose files have moved since they were imported, found again by their checksums."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from napari_jrss.errors import ProjectError, ScanError, from_os_error
from napari_jrss.io.nifti import file_checksum
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.case_attributes import DICOM_SOURCE, CaseAttributes, ChannelAttributes
from napari_jrss.project.rounds import ProjectRounds

if TYPE_CHECKING:
    from napari_jrss.io.dicom import DicomSeries


@dataclass(frozen=True)
class MissingFile:
    """A file that a case was made from."""

    case_id: str
    kind: str  # `scan`, `label` (its first one), or `image` and the name of a further image
    path: Path  # where the file is, or was when last seen
    checksum: str  # its SHA-256


class ProjectSources(ProjectRounds):
    """The files behind the cases; see :class:`~napari_jrss.project.project.Project`."""

    def missing_sources(self) -> list[MissingFile]:
        """Files that aren't where they were when the cases were made of them, by case id.

        Cases of DICOM series aren't among them: of these no path is kept.
        """
        found: list[MissingFile] = []
        for case in self.cases():
            about = self.attributes(case.case_id)
            if about.source != DICOM_SOURCE:
                found.append(MissingFile(case.case_id, "scan", Path(about.source), about.checksum))
            found += [
                MissingFile(case.case_id, f"image {other.name}", Path(other.source), other.checksum)
                for other in about.channels
                if other.source != DICOM_SOURCE
            ]
            if about.label_source and about.label_source != DICOM_SOURCE:
                path, checksum = Path(about.label_source), about.label_checksum or ""
                found.append(MissingFile(case.case_id, "label", path, checksum))
        return [file for file in found if not file.path.exists()]

    def find_sources(self, folder: str | Path) -> Iterator[MissingFile]:
        """Look below a folder for missing files, by checksum, and remember where they are.

        Parameters
        ----------
        folder
            Where to look. Only files with the ending of a missing one are read, those with
            its name first.

        Yields
        ------
        MissingFile
            Each file as it is found; the project knows its new place by then.

        Raises
        ------
        ProjectError
            There is no such folder, or the project is read-only.
        """
        self.check_writable()
        folder = Path(folder).absolute()
        if not folder.is_dir():
            raise ProjectError(f"{folder}: no such folder")
        missing = self.missing_sources()
        names = {lost.path.name for lost in missing}
        endings = tuple({_ending(lost.path) for lost in missing})
        files = [
            Path(below) / name
            for below, _, found in os.walk(folder)
            for name in found
            if name.lower().endswith(endings)
        ]
        files.sort(key=lambda file: (file.name not in names, file))
        for file in files:
            if not missing:
                break
            checksum = _checksum(file)
            for lost in [lost for lost in missing if lost.checksum == checksum]:
                # Equal files, such as empty labels of two cases, are distinguished by their names.
                alike = sum((o.checksum, o.kind) == (checksum, lost.kind) for o in missing)
                if alike > 1 and file.name != lost.path.name:
                    continue
                missing.remove(lost)
                yield self._relink(replace(lost, path=file))

    def _relink(self, found: MissingFile) -> MissingFile:
        path = self.case_path(found.case_id)
        place = str(found.path)
        try:
            if found.kind == "scan":
                store.update_sources(path, source=place)
            elif found.kind == "label":
                store.update_sources(path, label_source=place)
            else:
                store.update_sources(path, channels={found.kind.removeprefix("image "): place})
        except OSError as error:
            raise ProjectError(f"{path}: can't be written ({from_os_error(error)})") from error
        self._ledger.relinked(found.case_id, found.kind)
        return found


def _ending(path: Path) -> str:
    """``.nii.gz`` and the like, in lower case."""
    return "".join(
        path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]
    ).lower()


def _checksum(file: Path) -> str | None:
    """SHA-256; None for what can't be read, such as a pipe or another user's file."""
    if not file.is_file():
        return None
    try:
        return file_checksum(file)
    except (OSError, ScanError):
        return None


def find_dicom_sources(
    folder: Path | str, cases: Iterable[CaseAttributes]
) -> dict[str, DicomSeries]:
    """The series that cases were made from, among those of a folder.

    They stand under the case id; those of further images under ``<case id>/<name>``.

    A series is recognised by its geometry and its voxels, not by identifiers, so an anonymised copy
    serves as well. A case whose series isn't there is missing from the result. A :class:`ScanError`
    if there is no such folder.
    """
    from napari_jrss.io.dicom import checksum, find_series, read_series

    images: dict[str, CaseAttributes | ChannelAttributes] = {}
    for case in cases:
        images |= {case.case_id: case} | {f"{case.case_id}/{c.name}": c for c in case.channels}
    wanted = [(key, image) for key, image in images.items() if image.source == DICOM_SOURCE]
    found: dict[str, DicomSeries] = {}
    for series in find_series(folder)[0]:
        alike = [
            (key, image)
            for key, image in wanted
            if image.transform.source_shape == series.shape
            and np.allclose(image.transform.source_affine, series.affine, atol=1e-2)
        ]
        if not alike:
            continue
        try:
            voxels = checksum(read_series(series))
        except ScanError:
            continue  # damaged, so no case was made from it
        for key, image in alike:
            if image.checksum == voxels:
                found.setdefault(key, series)
    return found
