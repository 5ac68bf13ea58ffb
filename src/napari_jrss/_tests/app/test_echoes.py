"""A corrected error is looked for in the other cases, and named where it may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.app.phantoms import give_teacher, make_project
from napari_jrss.app.review import echo, echoes
from napari_jrss.app.session import Session
from napari_jrss.project.project import Project

WAIT_S = 150
WRONG = (slice(11, 15), slice(19, 23), slice(10, 14))  # of the training grid: 64 voxels, 0.128 ml


def give_error(project: Project, *case_ids: str) -> None:
    """Let the teacher see structure 2 where there is none."""
    files = project.require_teacher().files
    for case_id in case_ids:
        prediction = files.prediction(case_id)
        assert prediction is not None
        prediction.label[WRONG] = 2
        files.write_prediction(case_id, prediction)


@pytest.fixture
def session(one_thread: None, tmp_path: Path) -> Iterator[Session]:
    path = make_project(tmp_path)
    with Project.open(path) as project:
        give_teacher(project)
    made = Session(author="a reader", device="cpu")
    made.open(path)
    yield made
    assert made.close(30)


def accept_corrected(session: Session, case_id: str) -> None:
    """Open a case, take the error out of its draft, and accept it."""
    review = session.review
    review.open(case_id)
    assert review.wait(WAIT_S)
    review.open_case.editor.label[mask_on_scan(session, case_id)] = 0
    review.open_case.editor.sync()
    review.accept()
    assert review.wait(WAIT_S)
    assert session.workspace.background.wait(WAIT_S)


def mask_on_scan(session: Session, case_id: str) -> np.ndarray:
    project = session.workspace.open_project
    mask = np.zeros(project.grid.shape, np.uint8)
    mask[WRONG] = 1
    return project.attributes(case_id).transform.label_to_scan(mask) == 1


def test_a_place_is_carried_and_named_where_the_same_is_wrong() -> None:
    draft, accepted = np.zeros((2, 8, 16, 16), np.uint8)
    draft[2:6, 4:8, 4:8] = 1
    draft[7, 0, 0] = 1  # too small to count
    accepted[2:6, 4:8, 4:8] = 2
    (found,) = echo.corrections(draft, accepted, (1, 1, 1))
    assert (found.first, found.second) == (1, 2)
    field = np.zeros((3, *draft.shape), np.float32)
    field[2] = -3  # the fixed case has everything three voxels further along x
    place = echo.carried_place(found, field)
    expected = np.zeros(draft.shape, bool)
    expected[2:6, 4:8, 7:11] = True
    np.testing.assert_array_equal(place, expected)
    there, carried = np.where(expected, np.uint8(1), 0), np.where(expected, np.uint8(2), 0)
    here = echo.same_confusion(found, place, there, carried)
    np.testing.assert_array_equal(here, expected)
    assert not echo.same_confusion(found, place, 2 * there, carried).any()
    assert not echo.same_confusion(found, place, there, there).any()
    there[2:6, 4:8, 8:] = 0
    there[2:4] = 0
    assert not echo.same_confusion(found, place, there, carried).any()  # too few voxels are left
    half = np.where(expected, np.uint8(2), 0)
    half[:4] = 0
    assert echo.support(found, expected, [carried, half]) == pytest.approx(0.75)
    assert echo.support(found, expected, []) == 0


@pytest.mark.slow
def test_a_case_with_the_same_error_is_named_and_no_other(session: Session) -> None:
    project = session.workspace.open_project
    first, second, third = project.snapshot().unlabelled
    give_error(project, first, second)
    said: list[str] = []
    session.review.echoes.after_accept = True
    session.review.echoes.changed.connect(lambda: said.append(session.review.echoes.looking))
    accept_corrected(session, first)
    found = session.review.echoes.found
    assert list(found) == [second]
    assert third not in found
    each = found[second]
    assert each.corrected == first
    assert (each.place.first, each.place.second) == (2, 0)
    on_scan = np.zeros(project.attributes(second).transform.scan_shape, bool)
    on_scan[each.place.box] = each.place.mask
    overlap = np.count_nonzero(on_scan & mask_on_scan(session, second))
    # the scans are noise, so that registration shifts the place a little
    assert overlap > 0.6 * np.count_nonzero(on_scan)
    assert "Looking for the same errors in other cases: 1 of 2" in said
    assert said[-1] == ""

    wanted: list[object] = []
    session.review.place_wanted.connect(wanted.append)
    assert session.review.open_at(second, each.place)
    assert session.review.wait(WAIT_S)
    assert session.review.open_case.case_id == second
    assert wanted == [each.place]
    # naming changes nothing
    assert not session.review.unsaved
    assert not project.case(second).labelled
    session.review.accept()
    assert session.review.wait(WAIT_S)
    assert second not in session.review.echoes.found


@pytest.mark.slow
def test_a_script_asks_for_it_and_another_teacher_drops_it(session: Session) -> None:
    project = session.workspace.open_project
    first, second, _ = project.snapshot().unlabelled
    give_error(project, first, second)
    accept_corrected(session, first)
    assert session.review.echoes.found == {}
    session.review.echoes.look(first)
    assert session.workspace.background.wait(WAIT_S)
    assert list(session.review.echoes.found) == [second]
    give_teacher(project, seed=1)
    session.workspace.rounds_changed.emit()
    assert session.review.echoes.found == {}


def test_it_stops_where_it_is(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    project = session.workspace.open_project
    first, second, third = project.snapshot().unlabelled
    give_error(project, first, second, third)
    accept_corrected(session, first)
    looked: list[str] = []
    looks = echoes.Echoes._place_in

    def look_once(self: echoes.Echoes, *arguments: object) -> object:
        looked.append(str(arguments[4]))
        self.stop()
        return looks(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(echoes.Echoes, "_place_in", look_once)
    session.review.echoes.look(first)
    assert session.workspace.background.wait(WAIT_S)
    assert len(looked) == 1
    assert session.review.echoes.found == {}
    assert session.review.echoes.looking == ""
