"""What shows how well a pair fits, on fields whose every value is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_jrss.app.pairs.views import (
    cells,
    checkerboard,
    dashed_outline,
    deformed_grid,
    displacement_vectors,
    dotted_outline,
    magnified,
    shown_range,
)
from napari_jrss.inference.predict import warp_array
from napari_jrss.metrics import folded_in_structures, jacobian_map, jacobian_statistics

SHAPE = (12, 16, 20)


def translation(z: float, y: float, x: float) -> NDArray[np.float32]:
    field = np.empty((3, *SHAPE), np.float32)
    field[:] = np.reshape((z, y, x), (3, 1, 1, 1))
    return field


def waves(strength: float) -> NDArray[np.float32]:
    z, y, x = np.indices(SHAPE) / 3
    return (strength * np.stack([np.sin(y + x), np.cos(z) * np.sin(x), np.sin(z + y)])).astype(
        np.float32
    )


def test_the_identity_keeps_every_volume_and_folds_nowhere() -> None:
    np.testing.assert_array_equal(jacobian_map(translation(0, 0, 0)), 1)
    np.testing.assert_allclose(jacobian_map(translation(3, -2, 5)), 1, atol=1e-6)


def test_the_jacobian_is_that_of_the_figures() -> None:
    field = waves(4)
    jacobian, figures = jacobian_map(field), jacobian_statistics(field)
    assert 100 * np.mean(jacobian <= 0) == pytest.approx(figures.folded_percent)
    assert figures.folded_percent > 1
    assert jacobian.std() == pytest.approx(figures.std, rel=1e-4)


@pytest.mark.parametrize(("factor", "volume"), [(2.0, 2.0), (0.5, 0.5), (-1.0, -1.0)])
def test_stretching_one_axis_by_a_factor_is_the_jacobian(factor: float, volume: float) -> None:
    field = translation(0, 0, 0)
    field[2] = (factor - 1) * np.arange(SHAPE[2])
    np.testing.assert_allclose(jacobian_map(field), volume, atol=1e-5)


def test_vectors_lead_from_the_fixed_to_the_moving_image_by_the_known_length() -> None:
    spacing_mm = np.array([2.0, 1.0, 1.5])
    moving = np.zeros(SHAPE, np.float32)
    moving[5, 9, 14] = 1
    field = translation(1, -2, 3)
    fixed_point = np.argwhere(warp_array(moving, field) == 1)
    np.testing.assert_array_equal(fixed_point, [[4, 11, 11]])  # left and right, as x says

    vectors = displacement_vectors(field, stride=1, across=0)
    assert len(vectors) == np.prod(SHAPE)
    starts, ways = vectors[:, 0], vectors[:, 1]
    here = (starts == fixed_point).all(1)
    np.testing.assert_array_equal((starts + ways)[here], [[5, 9, 14]])
    lengths_mm = np.linalg.norm(ways * spacing_mm, axis=1)
    np.testing.assert_allclose(lengths_mm, np.sqrt(2**2 + 2**2 + 4.5**2), rtol=1e-6)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_vectors_are_thinned_within_a_slice_and_every_slice_has_some(across: int) -> None:
    starts = displacement_vectors(waves(1), 4, across)[:, 0]
    for axis, size in enumerate(SHAPE):
        expected = np.arange(size) if axis == across else np.arange(2, size, 4)
        np.testing.assert_array_equal(np.unique(starts[:, axis]), expected)


def test_a_vector_has_its_own_voxels_displacement() -> None:
    field = waves(1)
    for (z, y, x), way in displacement_vectors(field, 5, 1).astype(np.float32):
        np.testing.assert_array_equal(way, field[:, int(z), int(y), int(x)])


@pytest.mark.parametrize("across", [0, 1, 2])
def test_the_grid_at_rest_has_lines_between_its_cells(across: int) -> None:
    cell = (3, 4, 5)
    lines = deformed_grid(translation(0, 0, 0), cell, across)
    expected = np.zeros(SHAPE, bool)
    for axis in {0, 1, 2} - {across}:
        last = np.arange(cell[axis] - 1, SHAPE[axis] - 1, cell[axis])
        np.moveaxis(expected, axis, 0)[last] = True
    np.testing.assert_array_equal(lines, expected)


def test_the_grid_moves_against_the_field_and_is_drawn_finer() -> None:
    rest = deformed_grid(translation(0, 0, 0), (4, 4, 5), 0)
    moved = deformed_grid(translation(0, 0, 2), (4, 4, 5), 0)
    # the moving image's line at x is seen at x - 2
    np.testing.assert_array_equal(moved[:, :, :-3], rest[:, :, 2:-1])
    finer = deformed_grid(translation(0, 0, 0), (4, 4, 5), 0, finer=3)
    assert finer.shape == (12, 48, 60)
    columns = np.flatnonzero(finer[0, 0])
    np.testing.assert_array_equal(columns, [14, 29, 44])


@pytest.mark.parametrize("across", [0, 1, 2])
def test_outlines_are_the_outermost_pixels_of_each_structure(across: int) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[4:8, 4:8, 4:8] = 1
    label[4:8, 4:8, 8:12] = 2
    fine, dashes = magnified(label, across), dashed_outline(label, across)
    finer = 13  # the least for 256 pixels along 20 voxels
    assert fine.shape == tuple(n if a == across else n * finer for a, n in enumerate(SHAPE))
    expected = np.zeros(fine.shape, bool)
    for structure in (1, 2):
        inside = fine == structure
        core = inside.copy()
        for axis in {0, 1, 2} - {across}:
            core &= np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
        expected |= inside & ~core
    np.testing.assert_array_equal(dashes > 0, expected)
    np.testing.assert_array_equal(dotted_outline(label, across), fine * (dashes == 1))
    # both kinds on each side that is seen
    seen = np.take(dashes, 5, across)
    rows, columns = np.nonzero(seen)
    for side in (seen[rows.min()], seen[rows.max()], seen[:, columns.min()]):
        assert set(side) == {0, 1, 2}


def test_the_checkerboard_shows_both_images_in_turn() -> None:
    one, other = np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32)
    board = checkerboard(one, other, (6, 4, 10))
    assert board.mean() == 0.5
    assert board[0, 0, 0] == 0
    assert board[0, 0, 10] == board[0, 4, 0] == board[6, 0, 0] == 1
    assert board[6, 4, 0] == board[5, 3, 9] == 0


def test_cells_are_cubes_in_millimetres() -> None:
    assert cells((40, 64, 64), (4.0, 1.0, 2.0), 8) == (5, 20, 10)
    assert cells((16, 16, 16), (1.0, 1.0, 1.0), 20) == (2, 2, 2)


def test_what_is_shown_leaves_out_the_extremes_and_is_never_empty() -> None:
    image = np.random.default_rng(0).normal(0, 1, (50, 60, 70)).astype(np.float32)
    image[::9, ::9, ::9] = 1000
    low, high = shown_range(image)
    assert -3 < low < -2
    assert 2 < high < 3
    low, high = shown_range(np.zeros(SHAPE, np.float32))
    assert low < high


def test_folds_are_counted_in_each_structure() -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[:4] = 1
    label[4:8] = 3
    folded = np.zeros(SHAPE, bool)
    folded[3:6] = True
    assert folded_in_structures(folded, label, 4) == [25.0, None, 50.0]
