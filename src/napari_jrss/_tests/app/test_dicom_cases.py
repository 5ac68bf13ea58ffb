"""Cases from DICOM in a session: no path leads to their scans, and they register all the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.io.dicom_phantoms import lps_affine, save, slices
from napari_jrss._tests.io.phantoms import blobs
from napari_jrss.app.pairs.registering import read_registration_input
from napari_jrss.config import PreprocessingConfig
from napari_jrss.io.dicom_layout import discover_dicom
from napari_jrss.io.read import read_volume
from napari_jrss.labels import LabelTable
from napari_jrss.project.project import Project


@pytest.mark.slow
def test_a_side_of_a_pair_is_the_scan_as_the_project_holds_it(tmp_path: Path) -> None:
    stored = (3 * blobs()).astype(np.int16)
    folder = save(tmp_path / "in", slices(stored, lps_affine("PIR", (1, 1.2, 2.5), 9)))
    table = LabelTable.from_ids([1], {1: "part"})
    config = PreprocessingConfig(shape=(48, 48, 48))
    with Project.create(tmp_path / "p.jrss", table, config) as project:
        assert all(r.ok for r in project.add_cases(discover_dicom(folder).cases, workers=1))
        side = read_registration_input(project, project.cases()[0].case_id)
        scan, original = side.volume(), read_volume(folder)
        np.testing.assert_allclose(scan.affine, original.affine)
        np.testing.assert_allclose(scan.array, original.array, atol=0.01)
        other = read_registration_input(
            project, str(folder)
        )  # the folder of a series stands for its scan
        np.testing.assert_allclose(other.image, side.image, atol=1e-5)
