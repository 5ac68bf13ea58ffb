"""The region stroke: what one stroke on a slice changes in 3D."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.app.test_review import opened
from napari_jrss.app.review import strokes
from napari_jrss.app.review.strokes import LESS, MORE
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError
from napari_jrss.io.read import read_volume
from napari_jrss.labels import IGNORED

SHAPE, SPACING = (24, 40, 40), (2.0, 1.0, 1.0)


def ball(radius_mm: float, z_mm: float = 24.0) -> np.ndarray:
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (z * 2 - z_mm) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < radius_mm**2


def scan(truth: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 5, SHAPE)
    return (1000 + 60 * truth + noise).astype(np.int16)


def cut_off() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ball, a label that lacks its right side, and a stroke along the middle of what it lacks."""
    truth = ball(13)
    label = truth.astype(np.uint8)
    label[:, :, 26:] = 0
    line = np.stack([np.full(13, 12), np.arange(14, 27), np.full(13, 29)], 1)
    return truth, label, line


def repaired(label: np.ndarray, found: strokes.Region, amount: float = 0.0) -> np.ndarray:
    new = label.copy()
    new[found.box] = strokes.changed(label[found.box], found, amount)
    return new


def test_one_stroke_brings_back_what_a_structure_lacks() -> None:
    truth, label, line = cut_off()
    found = strokes.region(label, scan(truth), line, 1, SPACING)
    lacked = np.count_nonzero(truth & (label == 0))
    new = repaired(label, found)
    assert np.count_nonzero(truth & (new == 0)) < 0.6 * lacked
    assert np.count_nonzero((new == 1) & ~truth) < 0.05 * lacked
    new = repaired(label, found, 2.0)
    assert np.count_nonzero(truth & (new == 0)) < 0.3 * lacked
    assert np.count_nonzero((new == 1) & ~truth) < 0.1 * lacked
    slices = np.flatnonzero((new != label).any((1, 2)))
    assert slices.min() <= 9
    assert slices.max() >= 15


def test_one_stroke_takes_away_what_a_structure_has_too_much_of() -> None:
    truth, _, line = cut_off()
    label = truth.astype(np.uint8)
    kept = truth.copy()
    kept[:, :, 26:] = False
    label[:, :2] = 2
    found = strokes.region(label, scan(kept), line, 1, SPACING, adding=False)
    new = repaired(label, found, 2.0)
    excess = np.count_nonzero(truth & ~kept)
    assert np.count_nonzero((new == 1) & ~kept) < 0.3 * excess
    assert np.count_nonzero((new != 1) & kept) < 0.1 * excess
    assert set(np.unique(new[new != label])) == {0}  # the nearest other class


def test_what_is_removed_becomes_the_nearest_class_that_is_not_locked() -> None:
    label = np.ones((3, 9, 9), np.uint8)
    label[:, :, :2], label[:, :, 7:] = 2, 3
    line = np.array([[1, y, 5] for y in range(2, 7)])
    found = strokes.region(label, np.zeros(label.shape), line, 1, (1, 1, 1), adding=False)
    assert (strokes.changed(label[found.box], found)[1, 2:7, 5] == 3).all()
    spared = strokes.changed(label[found.box], found, locked=[3])
    assert (spared[1, 2:7, 5] == 2).all()


def test_more_holds_less_and_all_hangs_together_with_the_stroke() -> None:
    truth, label, line = cut_off()
    found = strokes.region(label, scan(truth), line, 1, SPACING)
    masks = [found.mask(amount) for amount in (LESS, -1.0, 0.0, 1.0, MORE)]
    sizes = [int(mask.sum()) for mask in masks]
    assert sizes == sorted(sizes)
    assert sizes[0] >= len(line)
    assert sizes[0] < sizes[2] < sizes[4]
    for small, large in pairwise(masks):
        assert not (small & ~large).any()


def test_what_may_not_change_does_not_whatever_the_amount() -> None:
    truth, label, line = cut_off()
    label[:4], label[10, 20, 30] = 2, IGNORED
    keep = np.zeros(SHAPE, bool)
    keep[12:15, 18:22, 28:32] = True
    found = strokes.region(label, scan(truth), line, 1, SPACING, keep=keep, locked=[2])
    new = repaired(label, found, MORE)
    changed = new != label
    assert changed.any()
    assert not (changed & (keep | (label == 2) | (label == IGNORED))).any()


@pytest.mark.parametrize(
    "line",
    [np.zeros((0, 3), int), np.array([[-1, 5, 5], [99, 0, 0]]), np.array([[12, 20, 20]])],
    ids=["no voxels", "beyond the scan", "already the structure"],
)
def test_a_stroke_that_says_nothing_new_changes_nothing(line: np.ndarray) -> None:
    truth, label, _ = cut_off()
    found = strokes.region(label, scan(truth), line, 1, SPACING)
    assert found.empty
    assert not found.mask(MORE).any()


def test_a_large_box_is_judged_on_every_second_voxel_and_ends_at_the_same_edge() -> None:
    """The same body with voxels of half the size: the same volume changes, to a tenth."""
    volumes = []
    for size in (1.0, 0.5):
        n = int(60 / size)
        z, y, x = (np.ogrid[:n, :n, :n][i] * size - 30 for i in range(3))
        truth = z**2 + y**2 + x**2 < 20**2
        label = (truth & (x < 8)).astype(np.uint8)
        image = 100.0 * truth + np.random.default_rng(0).normal(0, 8, truth.shape)
        rows = np.arange(int(22 / size), int(38 / size))
        line = np.stack([np.full(len(rows), n // 2), rows, np.full(len(rows), int(44 / size))], 1)
        found = strokes.region(label, image, line, 1, (size,) * 3)
        assert (np.prod(found.odds.shape) > 250_000) == (size < 1)
        volumes.append(float(found.mask().sum()) * size**3)
    assert volumes[1] == pytest.approx(volumes[0], rel=0.1)


def test_on_real_scans_a_stroke_repairs_far_more_than_it_spoils(shared_data: Path) -> None:
    """Drafts are the true labels, moved by two voxels; the stroke runs along the largest fault."""
    folder = shared_data / "hippocampus_msd"
    good = bad = 0
    for scan_file in sorted((folder / "images").iterdir())[:6]:
        image = read_volume(scan_file).array
        truth = read_volume(folder / "labels" / scan_file.name).array.astype(np.uint8)
        label = np.roll(truth, 2, 1)
        lacks = (truth == 1) & (label != 1)
        z = int(lacks.sum((1, 2)).argmax())
        rows, columns = np.nonzero(lacks[z])
        middle = rows == np.round(np.median(rows))
        line = np.stack([np.full(middle.sum(), z), rows[middle], columns[middle]], 1)
        new = repaired(label, strokes.region(label, image, line, 1, (1, 1, 1)))
        changed = new != label
        good += np.count_nonzero(changed & (new == truth))
        bad += np.count_nonzero(changed & (label == truth))
    assert good > 3 * bad
    assert good > 200


# -- the commands


def draw(session: Session, **options: object) -> np.ndarray:
    """Draw in the middle of structure 1's lower half, as not belonging to it; the voxels."""
    label = session.review.open_case.editor.label
    at = np.argwhere(label == 1)
    line = at[at[:, 0] == at[:, 0].min()][:4]
    session.review.tools.region.draw(line, 1, adding=False, **options)
    assert session.review.wait(10)
    return line


def test_a_stroke_is_seen_swept_taken_and_undone_as_one(session: Session) -> None:
    review = opened(session)
    tool, editor = review.tools.region, review.open_case.editor
    start, told = editor.label.copy(), []
    tool.preview_changed.connect(lambda: told.append(tool.preview))
    line = draw(session)
    assert tool.preview is not None
    assert tool.preview.name == f"remove from {review.open_case.table.names[1]}"
    small = int(tool.preview.region.mask(tool.preview.amount).sum())
    for _ in range(4):
        tool.more()
    assert tool.preview.amount == 2.0
    assert int(tool.preview.region.mask(tool.preview.amount).sum()) >= small
    np.testing.assert_array_equal(editor.label, start)  # only shown so far
    tool.take()
    assert review.wait(10)
    assert tool.preview is None
    assert told[-1] is None
    assert (editor.label[tuple(line.T)] != 1).all()
    assert editor.undo_name == f"remove from {review.open_case.table.names[1]}"
    assert editor.painted()[tuple(line.T)].all()
    taken = editor.label.copy()
    review.tools.undo()
    np.testing.assert_array_equal(editor.label, start)
    assert not editor.painted().any()
    review.tools.redo()
    np.testing.assert_array_equal(editor.label, taken)
    assert editor.painted()[tuple(line.T)].all()


def test_what_is_taken_is_on_the_disk(session: Session) -> None:
    review = opened(session)
    case_id = review.open_case.case_id
    draw(session)
    review.tools.region.take()
    assert review.wait(10)
    taken = review.open_case.editor.label.copy()
    review.close_case("keep")
    assert review.wait(10)
    np.testing.assert_array_equal(opened(session, case_id).open_case.editor.label, taken)


def test_what_was_painted_stays_also_while_a_region_is_shown(session: Session) -> None:
    review = opened(session)
    editor, tool = review.open_case.editor, review.tools.region
    at = np.argwhere(editor.label == 1)
    first, second = tuple(at[0]), tuple(at[1])
    editor.label[first] = 2
    editor.sync()
    editor.label[first] = 1  # painted by hand: it is structure 1
    editor.sync()
    draw(session, amount=MORE)
    editor.label[second] = 2  # painted while the region is shown
    tool.take()
    assert review.wait(10)
    assert editor.label[first] == 1
    assert editor.label[second] == 2


def test_a_region_that_is_dropped_changes_nothing(session: Session) -> None:
    review = opened(session)
    start = review.open_case.editor.label.copy()
    draw(session)
    review.tools.region.drop()
    review.tools.region.take()
    assert review.wait(10)
    np.testing.assert_array_equal(review.open_case.editor.label, start)


def test_strokes_that_can_not_be_are_refused_in_words(session: Session) -> None:
    review = opened(session)
    said: list[str] = []
    session.workspace.notified.connect(said.append)
    review.tools.region.draw([[0, 0, 0]], 1, adding=False)
    assert review.wait(10)
    assert "Nothing to change" in said[-1]
    with pytest.raises(ProjectError, match="no structure 9"):
        review.tools.region.draw([[0, 0, 0]], 9)
    review.accept_structure(1)
    with pytest.raises(ProjectError, match="is accepted"):
        review.tools.region.draw([[0, 0, 0]], 1)
