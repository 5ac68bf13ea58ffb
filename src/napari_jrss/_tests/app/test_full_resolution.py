"""Review works on the scan's own voxels, whatever the training grid is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_jrss._tests.app.phantoms import describe
from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.app.session import Session
from napari_jrss.config import PreprocessingConfig
from napari_jrss.geometry import rows
from napari_jrss.io.predictions import Prediction
from napari_jrss.io.volume import Volume
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess import case_store as store
from napari_jrss.preprocess.case_attributes import CaseAttributes
from napari_jrss.preprocess.pipeline import preprocess
from napari_jrss.preprocess.transform import TrainingGrid
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome

SHAPE = (30, 36, 40)
GRID = TrainingGrid(shape=(12, 12, 12), spacing_mm=(3.0, 3.0, 3.0))
TABLE = LabelTable.of_groups({"ball": (1,), "dot": (2,)})
CASES = ("upright", "turned", "unlabelled")


def ball(centre: tuple[int, int, int], radius: float) -> NDArray[np.bool_]:
    z, y, x = np.ogrid[tuple(map(slice, SHAPE))]
    c, b, a = centre
    return np.asarray((z - c) ** 2 + (y - b) ** 2 + (x - a) ** 2 <= radius**2)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans of 1 mm on a grid of 3 mm; of the second, the grid's axes are others."""
    path = tmp_path_factory.mktemp("fine") / "fine.jrss"
    label = ball((15, 18, 20), 9).astype(np.uint8)
    label[2, 3, 4] = 2  # one voxel, which no coarse grid holds
    config = PreprocessingConfig(shape=GRID.shape, spacing_mm=GRID.spacing_mm)
    with Project.create(path, TABLE, config) as project:
        project._ledger.set_grid(GRID.model_dump_json())
        for number, case_id in enumerate(CASES):
            noise = np.random.default_rng(number).normal(0, 3, SHAPE)
            image = np.rint(noise + 100 * label).astype(np.float32)
            affine = np.eye(4)
            ready = preprocess(Volume(image, affine), Volume(label, affine), config, GRID)
            transform = ready.transform
            if case_id == "turned":
                a = np.deg2rad(20)
                turn = np.eye(4)
                turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
                middle = np.eye(4)
                middle[:3, 3] = (np.array(GRID.shape) - 1) / 2
                matrix = transform.matrix @ middle @ turn @ np.linalg.inv(middle)
                transform = transform.model_copy(update={"grid_to_source": rows(matrix)})
            drawn = case_id != "unlabelled"
            about = CaseAttributes(
                case_id=case_id,
                source="gone.nii.gz",
                checksum=case_id,
                transform=transform,
                spacing_mm=GRID.spacing_mm,
            )
            store.write_case(
                project.path / "cases",
                about,
                ready.image,
                transform.label_to_grid(label) if drawn else None,
                TABLE,
                "v0001",
                label if drawn else None,
                store.smallest(image),
            )
            project.register_case(case_id)
        entry = project.start_round(None, describe(project), project.snapshot().label_versions)
        for case_id in CASES:
            blurred = project.attributes(case_id).transform
            found = blurred.label_to_grid(ball((15, 18, 20), 9).astype(np.uint8))
            sure = np.full(GRID.shape, 0.9, np.float16)
            sure[6, 6, 6] = 0.2
            entry.files.write_prediction(
                case_id, Prediction(found, sure, None, np.zeros_like(found), 1 - sure)
            )
        project.finish_round(entry.number, RoundOutcome.FINISHED, promote=True)
    return path


@pytest.fixture
def session(made_once: Path, tmp_path: Path) -> Iterator[Session]:
    import shutil

    session = Session(author="anna")
    session.open(shutil.copytree(made_once, tmp_path / "fine.jrss"))
    yield session
    session.close()


def opened(session: Session, case_id: str) -> OpenCase:
    session.review.open(case_id)
    assert session.review.wait(10)
    return session.review.open_case


@pytest.mark.parametrize("case_id", ["upright", "turned"])
def test_scan_and_label_are_those_of_the_scan_itself(session: Session, case_id: str) -> None:
    project, case = session.workspace.open_project, opened(session, case_id)
    assert case.image.shape == case.editor.label.shape == SHAPE
    assert case.image.dtype == np.int16
    np.testing.assert_array_equal(case.image, project.scan_image(case_id))
    assert case.editor.label[2, 3, 4] == 2
    assert case.spacing_mm == (1.0, 1.0, 1.0)
    assert case.structures()[1].volume_ml == pytest.approx(0.001)
    case.editor.label[20, 20, 20:23] = 2
    session.review.accept()
    assert session.review.wait(10)
    before, after = project.scan_label(case_id, "v0001"), project.scan_label(case_id, "v0002")
    assert np.argwhere(before != after).tolist() == [[20, 20, x] for x in (20, 21, 22)]
    assert project.label_versions(case_id)[-1].voxels_changed == 3
    np.testing.assert_array_equal(
        project.label(case_id), project.attributes(case_id).transform.label_to_grid(after)
    )


def test_corrections_come_back_at_full_resolution(session: Session) -> None:
    case = opened(session, "turned")
    case.editor.label[7, 8, 9] = 2
    session.review.close_case("keep")
    assert session.review.wait(10)
    again = opened(session, "turned")
    assert again.recovered is not None
    assert again.editor.voxels_changed == 1
    assert again.editor.label[7, 8, 9] == 2


def test_a_pseudo_label_starts_from_the_teachers_probabilities(session: Session) -> None:
    case = opened(session, "unlabelled")
    assert case.prediction is not None
    expected = case.transform.prediction_to_scan(case.prediction)
    np.testing.assert_array_equal(case.editor.label, expected)
    truth = ball((15, 18, 20), 9)
    overlap = 2 * np.count_nonzero(truth & (expected == 1))
    assert overlap / (truth.sum() + np.count_nonzero(expected)) > 0.9


@pytest.mark.parametrize("case_id", ["upright", "turned"])
def test_what_the_teacher_says_is_shown_where_it_belongs(session: Session, case_id: str) -> None:
    """Each of the scan's voxels gets the value of the nearest one of the training grid."""
    case = opened(session, case_id)
    values = np.arange(1, 1 + np.prod(GRID.shape), dtype=np.int32).reshape(GRID.shape)
    back = np.linalg.inv(case.transform.grid_to_scan)
    z, y, x = (12, 19, 22)
    place = np.floor(back[:3, :3] @ (x, y, z) + back[:3, 3] + 0.5).astype(int)[::-1]
    shown = case.shown(values)
    if case_id == "upright":
        assert case.grid_placement is not None
        spacing, start = case.grid_placement
        assert spacing == pytest.approx((3, 3, 3))
        at = np.floor((np.array((z, y, x)) - start) / spacing + 0.5).astype(int)
        np.testing.assert_array_equal(at, place)
    else:
        assert case.grid_placement is None
        assert shown.shape == SHAPE
        assert shown[z, y, x] == values[tuple(place)]
        assert (shown == 0).any()  # beyond the grid
