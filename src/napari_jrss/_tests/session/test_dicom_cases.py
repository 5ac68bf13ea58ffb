"""Cases from DICOM in a session: no path leads to their scans, and they register all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from napari_jrss._tests.data.dicom_phantoms import lps_affine, save, slices
from napari_jrss._tests.data.phantoms import blobs
from napari_jrss.config import PreprocessingConfig
from napari_jrss.data.labels import LabelTable
from napari_jrss.data.layouts import discover_dicom
from napari_jrss.data.volume import read_volume
from napari_jrss.project.project import Project
from napari_jrss.session.registering import read_side


def test_a_side_of_a_pair_is_the_scan_as_the_project_holds_it(tmp_path: Path) -> None:
    stored = (3 * blobs()).astype(np.int16)
    folder = save(tmp_path / "in", slices(stored, lps_affine("PIR", (1, 1.2, 2.5), 9)))
    table = LabelTable.from_ids([1], {1: "part"})
    config = PreprocessingConfig(shape=(48, 48, 48))
    with Project.create(tmp_path / "p.jrss", table, config) as project:
        assert all(r.ok for r in project.add_cases(discover_dicom(folder).cases, workers=1))
        side = read_side(project, project.cases()[0].case_id)
        scan, original = side.volume(), read_volume(folder)
        np.testing.assert_allclose(scan.affine, original.affine)
        np.testing.assert_allclose(scan.array, original.array, atol=0.01)
        other = read_side(project, str(folder))  # the folder of a series stands for its scan
        np.testing.assert_allclose(other.image, side.image, atol=1e-5)
