"""Two opinions on a case: what they dispute, and a person who decides."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.app.phantoms import give_teacher, make_project
from napari_jrss.app.review.opinions import decided, disputes, slice_to_paint
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError
from napari_jrss.labels import IGNORED
from napari_jrss.project.project import Project

SPACING = (2.0, 1.0, 1.0)
WAIT_S = 150


def test_places_are_apart_by_their_classes_and_the_largest_comes_first() -> None:
    first, second = np.zeros((2, 12, 20, 20), np.uint8)
    first[2:4, 2:6, 2:6] = 1  # only the first has it: 32 voxels
    second[2:4, 6:8, 2:6] = 2  # beside it, only the second: 16 voxels
    first[8, 10:14, 10:14] = 1  # another class by each: 16 voxels
    second[8, 10:14, 10:14] = 2
    first[8, 10, 10] = second[8, 10, 10] = 1  # where they agree
    first[11, 0, 0], second[11, 1, 0] = IGNORED, IGNORED
    found = disputes(first, second, SPACING)
    assert [(each.first, each.second) for each in found] == [(1, 0), (0, 2), (1, 2)]
    assert [each.volume_ml for each in found] == pytest.approx([0.064, 0.032, 0.030])
    assert found[0].box == (slice(2, 4), slice(2, 6), slice(2, 6))
    assert found[2].mask.sum() == 15
    for each in found:
        assert (first[each.box][each.mask] == each.first).all()
        assert (second[each.box][each.mask] == each.second).all()
        assert first[each.at] == each.first
        assert second[each.at] == each.second
    assert len(disputes(first, second, SPACING, least_ml=0.031)) == 2
    assert disputes(first, first, SPACING) == []


def test_a_dispute_is_shown_where_most_of_it_lies() -> None:
    first, second = np.zeros((2, 12, 20, 20), np.uint8)
    first[2:10, 5, 5] = 1  # thin, through many slices
    first[7, 5, 5:15] = 1
    first[7, 5:9, 12:15] = 1
    (found,) = disputes(first, second, SPACING)
    z, y, x = found.at
    assert z == 7
    assert 5 <= y <= 8
    assert x >= 11


def test_a_decision_gives_one_place_the_class_and_keeps_what_is_kept() -> None:
    first, second = np.zeros((2, 4, 8, 8), np.uint8)
    second[1, 2:5, 2:5] = 2
    second[3, 7, 7] = 1
    (large, _) = disputes(first, second, SPACING)
    kept = np.zeros(first.shape, bool)
    kept[1, 2, 2] = True
    new = decided(first, large, True, kept)
    assert np.count_nonzero(new) == 8
    assert new[1, 2, 2] == 0
    assert new[3, 7, 7] == 0
    np.testing.assert_array_equal(decided(new, large, False, kept), first)


def test_the_slice_in_the_largest_gap_comes_next() -> None:
    label = np.zeros((20, 10, 10), np.uint8)
    label[2:18, 2:8, 2:8] = 1
    label[10:18, 2:5, 2:8] = 1
    assert slice_to_paint(label, 1, 0, []) == 9
    assert slice_to_paint(label, 1, 0, [9]) in (5, 13)
    label[14:18, 2:8, 2:8] = 0
    label[14:18, 4, 4] = 1  # much changes towards that end
    assert slice_to_paint(label, 1, 0, [9]) == 13
    assert slice_to_paint(label, 1, 0, range(20)) is None
    assert slice_to_paint(label, 2, 0, []) is None


@pytest.fixture
def session(one_thread: None, tmp_path: Path) -> Iterator[Session]:
    path = make_project(tmp_path)
    with Project.open(path) as project:
        give_teacher(project)
    made = Session(author="a reader", device="cpu")
    made.pairs.engine = "refine"
    made.open(path)
    yield made
    assert made.close(30)


def settle(session: Session) -> None:
    assert session.review.wait(WAIT_S)
    assert session.workspace.inference.wait(WAIT_S)
    assert session.review.wait(WAIT_S)


@pytest.fixture
def case_id(session: Session) -> str:
    """An unlabelled case, whose teacher's draft has a block that no atlas has."""
    project = session.workspace.open_project
    name = project.snapshot().unlabelled[0]
    files = project.require_teacher().files
    prediction = files.prediction(name)
    assert prediction is not None
    prediction.label[12:15, 18:22, 10:14] = 2
    files.write_prediction(name, prediction)
    session.review.open(name)
    settle(session)
    return name


@pytest.mark.slow
def test_the_first_look_propagates_and_each_answer_is_one_undo(
    session: Session, case_id: str
) -> None:
    review, disputed = session.review, session.review.disputed
    gone: list[object] = []
    disputed.dispute_changed.connect(lambda: gone.append(disputed.dispute))
    disputed.next()
    settle(session)
    case = review.open_case
    assert disputed.of(case)
    assert disputed.drafts[0] == "round:0"
    assert disputed.drafts[1].startswith("case:")
    assert "+round:" not in disputed.drafts[1]  # the vote alone, as an opinion of its own
    assert disputed.dispute is disputed.disputes[0]
    assert gone == [disputed.dispute]
    volumes = [each.volume_ml for each in disputed.disputes]
    assert volumes == sorted(volumes, reverse=True)

    block = next(each for each in disputed.disputes if each.first == 2 and each.second == 0)
    while disputed.dispute is not block:
        before = case.editor.snapshot()
        disputed.next()  # neither: nothing changes
        settle(session)
        np.testing.assert_array_equal(case.editor.snapshot(), before)
    before = case.editor.snapshot()
    number, left = disputed.disputes.index(block), disputed.left
    disputed.decide("second")
    settle(session)
    changed = before != case.editor.snapshot()
    assert changed.sum() == block.mask.sum()
    assert (case.editor.snapshot()[block.box][block.mask] == 0).all()
    assert disputed.left == max(0, left - 1)
    assert disputed.dispute is not block or number == len(disputed.disputes) - 1
    assert (case.editor.undo_name or "").startswith("as the propagated from")
    review.tools.undo()
    np.testing.assert_array_equal(case.editor.snapshot(), before)


def test_accepted_structures_and_painted_voxels_stay(session: Session, case_id: str) -> None:
    review, disputed = session.review, session.review.disputed
    case = review.open_case
    case.editor.label[12, 18, 10] = 1  # by hand
    case.editor.sync()
    disputed.compare("round:0", "blank")
    settle(session)
    block = disputed.disputes[[int(d.first) for d in disputed.disputes].index(2)]
    ours = [d for d in disputed.disputes if d.first == 2]
    assert block in ours
    while disputed.dispute not in ours or 12 not in range(*disputed.dispute.box[0].indices(99)):
        disputed.next()
        settle(session)
    before = case.editor.snapshot()
    disputed.decide("second")
    settle(session)
    after = case.editor.snapshot()
    assert after[12, 18, 10] == 1
    assert (after != before).any()
    review.tools.undo()
    review.accept_structure(2)
    disputed.compare("round:0", "blank")
    settle(session)
    while disputed.dispute is not None and disputed.dispute.first != 2:
        disputed.next()
        settle(session)
    before = case.editor.snapshot()
    disputed.decide("second")
    settle(session)
    np.testing.assert_array_equal(case.editor.snapshot(), before)


def test_it_says_what_is_missing(session: Session, case_id: str) -> None:
    with pytest.raises(ProjectError, match="go to a disputed place first"):
        session.review.disputed.decide("first")
    session.review.disputed.compare("round:0", "round:0")
    told: list[str] = []
    session.workspace.notified.connect(told.append)
    settle(session)
    assert session.review.disputed.disputes == []
    assert "The two opinions dispute nothing more" in told


def test_the_next_slice_is_told(session: Session, case_id: str) -> None:
    wanted: list[tuple[int, int]] = []
    session.review.disputed.slice_wanted.connect(lambda axis, n: wanted.append((axis, n)))
    session.review.disputed.next_slice(1)
    settle(session)
    label = session.review.open_case.editor.snapshot()
    expected = slice_to_paint(label, 1, 0, [])
    assert wanted == [(0, expected)]
