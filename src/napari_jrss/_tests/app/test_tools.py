"""Tools of one structure, and what the brush may change."""

from __future__ import annotations

import numpy as np
import pytest

from napari_jrss._tests.app.test_review import opened
from napari_jrss.app.review import repairs
from napari_jrss.app.review.brush import BrushLimits, intensities_like
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError

LPS = np.eye(4)
RAS_TURNED = np.diag([-1.0, 1.0, 1.0, 1.0])  # x grows to the patient's right


def cube(*, value: int = 1) -> np.ndarray:
    label = np.zeros((9, 11, 11), np.uint8)
    label[3:6, 4:7, 4:7] = value
    return label


def test_growing_and_shrinking_are_in_mm() -> None:
    grown = repairs.grow(cube(), 1, (3.0, 1.0, 1.0), 1.0)
    changed = np.argwhere(grown != cube())
    assert set(changed[:, 0]) == {3, 4, 5}  # a slice of 3 mm is farther than 1 mm
    assert (grown == 1).sum() == 3 * (9 + 12)
    assert (repairs.grow(cube(), 1, (1.0, 1.0, 1.0), 1.0) == 1).sum() == 27 + 6 * 9
    assert (repairs.shrink(cube(), 1, (1.0, 1.0, 1.0), 1.0) == 1).sum() == 1
    thin = repairs.shrink(cube(), 1, (3.0, 1.0, 1.0), 1.0)
    np.testing.assert_array_equal(np.argwhere(thin == 1), [[z, 5, 5] for z in (3, 4, 5)])


def test_growing_leaves_neighbours_and_shrinking_gives_to_them() -> None:
    label = cube()
    label[:, :, 7:] = 2
    grown = repairs.grow(label, 1, (1.0, 1.0, 1.0), 1.0)
    np.testing.assert_array_equal(grown == 2, label == 2)
    shrunk = repairs.shrink(label, 1, (1.0, 1.0, 1.0), 1.0)
    assert shrunk[4, 5, 6] == 2
    assert shrunk[4, 5, 4] == 0


@pytest.mark.parametrize(("affine", "left"), [(LPS, 8), (RAS_TURNED, 2)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_affine_says_which_part_is_on_the_left(
    affine: np.ndarray, left: int, side: str
) -> None:
    label = np.zeros((5, 5, 11), np.uint8)
    label[2, 1:4, 1:4] = label[2, 1:4, 7:10] = 1
    label[2, 2, 5] = 1  # a crumb, to the side that it lies on or the plane's right
    new = repairs.split_sides(label, 1, 2, affine, side)
    assert new is not None
    assert new[2, 2, left] == (2 if side == "left" else 1)
    assert new[2, 2, 10 - left] == (1 if side == "left" else 2)
    assert ((new > 0) == (label > 0)).all()


def test_one_part_is_cut_midway_and_parts_one_behind_the_other_are_not_split() -> None:
    whole = np.zeros((3, 5, 10), np.uint8)
    whole[1, 1:4, 2:8] = 1
    new = repairs.split_sides(whole, 1, 2, LPS, "left")
    assert new is not None
    assert (new == 2).sum() == (new == 1).sum() == 9
    behind = np.zeros((3, 9, 5), np.uint8)
    behind[1, 1:3, 2] = behind[1, 6:8, 2] = 1
    assert repairs.split_sides(behind, 1, 2, LPS, "left") is None


def test_a_component_is_taken_alone() -> None:
    label, source = cube(), cube()
    source[3, 4, 4], source[5, 6, 6] = 0, 2
    new = repairs.take_component(label, source, (5, 6, 6))
    assert new[5, 6, 6] == 2
    assert new[3, 4, 4] == 1
    np.testing.assert_array_equal(repairs.take_component(label, source, (0, 0, 0)), label)


# -- commands


def test_each_tool_is_one_action(session: Session) -> None:
    review = opened(session)
    editor, tools = review.open_case.editor, review.tools
    start = editor.label.copy()
    spacing = review.open_case.spacing_mm
    for command, name, expected in (
        (lambda: tools.grow(1), "grow", repairs.grow(start, 1, spacing, min(spacing))),
        (lambda: tools.shrink(1), "shrink", repairs.shrink(start, 1, spacing, min(spacing))),
        (
            lambda: tools.split_sides(1, 2, "left"),
            "left part to",
            repairs.split_sides(start, 1, 2, review.open_case.transform.scan_affine, "left"),
        ),
    ):
        command()
        assert review.wait(10)
        np.testing.assert_array_equal(editor.label, expected)
        assert str(editor.undo_name).startswith(name)
        tools.undo()
        np.testing.assert_array_equal(editor.label, start)
    with pytest.raises(ProjectError, match="left or right"):
        tools.split_sides(1, 2, "up")
    with pytest.raises(ProjectError, match="another structure"):
        tools.split_sides(1, 1, "left")


def test_a_part_is_taken_from_a_draft_where_it_differs(session: Session) -> None:
    review = opened(session)
    editor = review.open_case.editor
    start = editor.label.copy()
    assert start[8, 10, 7] == 2
    editor.label[8, 10, 7], editor.label[5, 8, 5] = 0, 2
    editor.sync()
    review.tools.take_component((8, 10, 7), "round:0")
    assert review.wait(10)
    assert editor.label[8, 10, 7] == start[8, 10, 7]
    assert editor.label[5, 8, 5] == 2
    said: list[str] = []
    session.workspace.notified.connect(said.append)
    review.tools.take_component((8, 10, 7), "round:0")
    assert review.wait(10)
    assert "Here the label is that of the teacher's draft" in said[-1]
    with pytest.raises(ProjectError, match="beyond the scan"):
        review.tools.take_component((99, 0, 0), "round:0")


def test_the_brush_paints_only_intensities_and_only_over_one_structure(session: Session) -> None:
    review = opened(session)
    case, tools = review.open_case, review.tools
    editor, start = case.editor, case.editor.label.copy()
    low, high = (float(v) for v in np.quantile(case.image, (0.3, 0.6)))
    tools.limit_brush(BrushLimits((low, high), over=0))
    editor.label[4:6] = 1
    edit = editor.sync()
    assert edit is not None
    assert not edit.shown
    assert not edit.refused
    may = (start == 0) & (case.image >= low) & (case.image <= high)
    may[:4] = may[6:] = False
    np.testing.assert_array_equal(editor.label, np.where(may, 1, start))
    tools.grow(2)  # tools go by their own rules
    assert review.wait(10)
    tools.limit_brush(BrushLimits())
    editor.label[:] = 1
    editor.sync()
    assert (editor.label == 1).all()


def test_the_next_case_takes_any_intensity(session: Session) -> None:
    review = opened(session)
    first = review.open_case.case_id
    review.tools.limit_brush(BrushLimits(over=0))
    review.tools.limit_like((4, 8, 5))
    assert review.tools.limits.intensities is not None
    other = next(c for c in session.workspace.open_project.cases() if c.case_id != first)
    opened(session, other.case_id)
    assert review.tools.limits == BrushLimits(over=0)
    editor = review.open_case.editor
    start = editor.label.copy()
    editor.label[:] = 1
    editor.sync()
    np.testing.assert_array_equal(editor.label, np.where(start == 0, 1, start))


def test_the_eraser_gives_voxels_to_the_neighbour_that_is_not_locked(session: Session) -> None:
    review = opened(session)
    editor = review.open_case.editor
    editor.label[:] = 0
    editor.label[4:8, 4:12, 4:8], editor.label[4:8, 4:12, 8:12] = 1, 2
    editor.sync()
    review.tools.limit_brush(BrushLimits(to_neighbour=True))
    editor.label[5, 8, 7] = editor.label[5, 4, 4] = 0
    editor.sync()
    assert editor.label[5, 8, 7] == 2  # beside structure 2
    assert editor.label[5, 4, 4] == 0  # at the outside
    review.accept_structure(2)
    editor.label[6, 8, 7] = 0
    editor.sync()
    assert editor.label[6, 8, 7] == 0


def test_like_intensities_lie_about_those_of_the_place() -> None:
    image = np.random.default_rng(0).normal(100, 5, (20, 20, 20))
    image[:, :, 10:] += 200
    low, high = intensities_like(image, (10, 10, 4), (1.0, 1.0, 1.0))
    assert 80 < low < 95
    assert 105 < high < 120
