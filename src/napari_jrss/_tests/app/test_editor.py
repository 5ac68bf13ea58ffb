"""The label under correction: every change can be undone, whatever made it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_jrss.app.review import repairs
from napari_jrss.app.review.editor import Edit, LabelEditor
from napari_jrss.app.work_queue import WorkQueue

SHAPE, CLASSES = (5, 6, 7), 4
VOXELS = int(np.prod(SHAPE))

voxels = st.lists(st.integers(0, VOXELS - 1), min_size=1, max_size=20)
classes = st.integers(0, CLASSES - 1)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("paint"), voxels, classes),
        st.tuples(st.just("some"), voxels, classes),
        st.tuples(st.just("replace"), st.just([]), classes),
        st.tuples(st.just("begin"), st.just([]), classes),
        st.tuples(st.just("undo"), st.just([]), classes),
        st.tuples(st.just("redo"), st.just([]), classes),
    ),
    max_size=15,
)


def empty() -> np.ndarray:
    return np.zeros(SHAPE, np.uint8)


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 5, 6), (1, 1, 1), (130, 130, 130)])
def test_voxels_of_each_value_are_counted(shape: tuple[int, int, int]) -> None:
    label = np.random.default_rng(0).choice([0, 1, 2, 255], shape).astype(np.uint8)
    for each in (label, np.asfortranarray(label)):
        counts = LabelEditor(each, "blank", CLASSES).counts
        np.testing.assert_array_equal(counts, np.bincount(label.ravel(), minlength=256))


def do(editor: LabelEditor, action: str, where: list[int], value: int) -> None:
    if action == "paint":
        editor.label.reshape(-1)[where] = value
        editor.sync()
    elif action == "some":
        some = editor.label.copy()
        some.reshape(-1)[where] = value
        editor.replace("some", some)
    elif action == "replace":
        editor.replace("all", np.full(SHAPE, value, np.uint8))
    elif action == "begin":
        editor.begin("anew", np.full(SHAPE, value, np.uint8), f"case:{value}")
    else:
        getattr(editor, action)()


@pytest.mark.slow
@given(actions)
def test_undoing_everything_leads_back_and_redoing_forth(steps: list[Any]) -> None:
    start = np.random.default_rng(0).integers(0, CLASSES, SHAPE).astype(np.uint8)
    editor = LabelEditor(start, "blank", CLASSES)
    journal = start.copy()  # follows what the signal says, as a journal does

    def follow(edit: Edit) -> None:
        np.testing.assert_array_equal(journal.reshape(-1)[edit.indices], edit.before)
        journal.reshape(-1)[edit.indices] = edit.after

    editor.changed.connect(follow)
    for step in steps:
        do(editor, *step)
        np.testing.assert_array_equal(journal, editor.label)
        np.testing.assert_array_equal(
            editor.counts, np.bincount(editor.label.ravel(), minlength=editor.counts.size)
        )
    end, origin = editor.label.copy(), editor.origin
    while editor.redo() is not None:
        pass
    last = editor.label.copy()
    undone = 0
    while editor.undo() is not None:
        undone += 1
    np.testing.assert_array_equal(editor.label, start)
    assert editor.origin.draft == "blank"
    for _ in range(undone):
        assert editor.redo() is not None
    np.testing.assert_array_equal(editor.label, last)
    if not steps or steps[-1][0] != "undo":
        np.testing.assert_array_equal(journal, last)
    assert end.shape == last.shape
    assert origin.label.shape == SHAPE


def test_a_stroke_during_which_a_tool_runs_stays_as_painted() -> None:
    editor = LabelEditor(empty(), "blank", CLASSES)
    seen = editor.snapshot()
    editor.label[0, 0, 0] = 3  # painted while the tool works
    editor.replace("tool", np.full(SHAPE, 1, np.uint8), seen)
    assert editor.label[0, 0, 0] == 3
    assert (editor.label.reshape(-1)[1:] == 1).all()
    editor.undo()
    assert editor.label[0, 0, 0] == 3
    editor.undo()
    assert not editor.label.any()


def test_a_new_action_forgets_what_was_undone() -> None:
    editor = LabelEditor(empty(), "blank", CLASSES)
    editor.label[0] = 1
    editor.undo()
    editor.label[1] = 2
    editor.sync()
    assert editor.redo() is None


def test_a_locked_structure_neither_loses_nor_wins_voxels() -> None:
    label = empty()
    label[0], label[1] = 1, 2
    editor = LabelEditor(label, "blank", CLASSES)
    editor.lock(1)
    editor.label[:2] = 3  # over the locked structure
    editor.label[4] = 1  # more of it
    edit = editor.sync()
    assert edit is not None
    assert not edit.shown
    assert (editor.label[0] == 1).all()
    assert (editor.label[1] == 3).all()
    assert (editor.label[4] == 0).all()
    editor.replace("all", np.full(SHAPE, 2, np.uint8))
    assert (editor.label[0] == 1).all()
    assert (editor.label[1:] == 2).all()


def test_a_class_that_does_not_exist_is_taken_back() -> None:
    editor = LabelEditor(empty(), "blank", CLASSES)
    editor.label[0, 0, :3] = CLASSES
    editor.label[0, 0, 3] = CLASSES - 1
    edit = editor.sync()
    assert edit is not None
    assert not edit.shown
    assert editor.label[0, 0, :4].tolist() == [0, 0, 0, CLASSES - 1]


def test_the_oldest_actions_are_forgotten_beyond_the_memory() -> None:
    editor = LabelEditor(empty(), "blank", CLASSES, undo_bytes=1000)
    for i in range(50):
        editor.label.reshape(-1)[i] = 1
        editor.sync()
    undone = 0
    while editor.undo() is not None:
        undone += 1
    assert 10 < undone < 100


def test_painted_slices_are_those_of_strokes_in_force() -> None:
    editor = LabelEditor(empty(), "blank", CLASSES)
    editor.label[1, 2:4, 2:4] = 1
    editor.sync()
    editor.label[3, 2:4, 2:4] = 1
    editor.sync()
    editor.label[4, 2:4, 2:4] = 2
    editor.sync()
    assert editor.painted_slices(1, 0) == [1, 3]
    assert editor.painted_slices(1, 1) == [2, 3]
    editor.undo()
    editor.undo()
    assert editor.painted_slices(1, 0) == [1]


def ball(radius: float, shape: tuple[int, int, int] = (24, 24, 24)) -> np.ndarray:
    """A ball of class 1 in the middle."""
    grid = np.indices(shape) - (np.array(shape) // 2)[:, None, None, None]
    return ((grid**2).sum(0) <= radius**2).astype(np.uint8)


def test_interpolation_of_two_slices_lies_between_them() -> None:
    label = np.zeros((9, 32, 32), np.uint8)
    y, x = np.indices((32, 32)) - 16
    small, large = y**2 + x**2 <= 16, y**2 + x**2 <= 100
    label[0][small] = 1
    label[8][large] = 1
    label[4, 16, 16] = 2
    new = repairs.interpolate(label, 1, 0)
    areas = (new == 1).sum((1, 2))
    assert (np.diff(areas) > 0).all()
    assert areas[4] == pytest.approx(np.pi * 49, rel=0.1)  # a disc of radius 7
    assert new[4, 16, 16] == 2
    assert (areas[0], areas[8]) == (small.sum(), large.sum())


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_interpolation_restores_the_gaps_of_a_ball(axis: int) -> None:
    whole = ball(8)
    gappy = whole.copy()
    across = np.moveaxis(gappy, axis, 0)
    across[np.arange(24) % 3 != 0] = 0
    new = repairs.interpolate(gappy, 1, axis)
    shown = np.flatnonzero(across.any((1, 2)))
    inner = slice(shown[0], shown[-1] + 1)
    a, b = np.moveaxis(new, axis, 0)[inner], np.moveaxis(whole, axis, 0)[inner]
    assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.95


def test_interpolation_draws_anew_between_chosen_slices_only() -> None:
    label = ball(8)
    label[9:15] = np.where(np.indices((6, 24, 24))[1] < 3, 1, label[9:15])  # a wrong wall
    new = repairs.interpolate(label, 1, 0, [8, 15])
    np.testing.assert_array_equal(new[:9], label[:9])
    np.testing.assert_array_equal(new[15:], label[15:])
    assert not new[9:15, :3].any()
    assert new[12, 12, 12] == 1


def test_filling_gives_a_structure_only_enclosed_background() -> None:
    label = ball(8)
    label[10:13, 10:13, 10:13] = 0
    label[11, 11, 11] = 2
    new = repairs.fill_holes(label, 1)
    expected = ball(8)
    expected[11, 11, 11] = 2
    np.testing.assert_array_equal(new, expected)
    # A tunnel is no cavity, but a hole of each slice.
    label = ball(8)
    label[:, 12, 12] = 0
    np.testing.assert_array_equal(repairs.fill_holes(label, 1), label)
    assert (repairs.fill_holes(label, 1, axis=0)[5:20, 12, 12] == 1).all()


def test_the_largest_part_stays_and_an_island_becomes_what_surrounds_it() -> None:
    label = ball(6)
    label[0, 0, 0:2] = 1  # in the background
    label[20:, :, :] = 2
    label[22, 10, 10] = 1  # inside of another structure
    new = repairs.keep_largest(label, 1)
    assert new[0, 0, 0] == 0
    assert new[22, 10, 10] == 2
    np.testing.assert_array_equal(new[6:19] == 1, ball(6)[6:19] == 1)


def test_smoothing_removes_a_spike_and_leaves_no_gap_between_neighbours() -> None:
    label = np.zeros((16, 16, 16), np.uint8)
    label[4:12, 4:12, 4:8] = 1
    label[4:12, 4:12, 8:12] = 2
    label[8, 8, 8] = 1  # a spike into the other
    label[8, 8, 2:4] = 1  # a spike into the background
    new = repairs.smooth(label, 1, (1.0, 1.0, 1.0))
    assert new[8, 8, 8] == 2
    assert new[8, 8, 2] == 0
    assert (new[6:10, 6:10, 5:11] > 0).all()


def test_taking_a_structure_takes_its_extent_and_nothing_else() -> None:
    label, source = ball(5), ball(7) * 1
    source[0] = 3
    label[2] = 2
    new = repairs.take(label, 1, source)
    np.testing.assert_array_equal(new == 1, source == 1)
    np.testing.assert_array_equal(new[2], label[2])
    assert not (new == 3).any()


@pytest.mark.parametrize(
    "tool",
    [
        lambda label: repairs.smooth(label, 3, (1, 1, 1)),
        lambda label: repairs.fill_holes(label, 3),
        lambda label: repairs.keep_largest(label, 3),
        lambda label: repairs.interpolate(label, 3, 0),
        lambda label: repairs.take(label, 3, ball(3)),
    ],
)
def test_a_structure_that_is_not_there_changes_nothing(tool: Any) -> None:
    label = ball(4)
    new = tool(label)
    np.testing.assert_array_equal(new, label)
    assert not np.shares_memory(new, label)


def test_a_queue_does_one_thing_after_another_and_goes_on_after_an_error() -> None:
    queue, done, failed = WorkQueue("test"), [], []
    queue.failed.connect(failed.append)
    gate = threading.Event()
    queue.submit(gate.wait)
    queue.submit(lambda: done.append(1))
    queue.submit(lambda: 1 / 0)
    queue.submit(lambda: done.append(2))
    assert not queue.wait(0.05)
    assert done == []
    gate.set()
    assert queue.wait(5)
    assert done == [1, 2]
    assert [type(error) for error in failed] == [ZeroDivisionError]
    assert not queue.busy
    assert "test" not in [thread.name for thread in threading.enumerate() if thread.is_alive()]


def test_work_for_later_is_planned_once_and_done_when_it_is_due_or_waited_for() -> None:
    queue, done = WorkQueue("test"), []

    def work() -> None:
        done.append(1)

    for _ in range(5):
        queue.submit(work, after_s=60)
    assert not queue.busy
    queue.submit(lambda: done.append(0))
    assert queue.wait(5)
    assert done == [0, 1]
    due = threading.Event()
    queue.submit(due.set, after_s=0.05)
    assert due.wait(5)
