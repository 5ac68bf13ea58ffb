import numpy as np
import pytest
import surface_distance

from napari_jrss.labels import IGNORED
from napari_jrss.metrics import (
    calibration_error,
    dice_per_class,
    folds,
    hd95_mm,
    jacobian_statistics,
)


def test_dice_counts_what_it_should() -> None:
    truth = np.zeros((4, 4, 4), np.uint8)
    prediction = truth.copy()
    truth[0] = 1
    prediction[0, :2] = 1
    prediction[3, 3, 3] = 2
    dice = dice_per_class(prediction, truth, classes=4)
    np.testing.assert_allclose(dice, [2 * 8 / (16 + 8), 0, np.nan])
    dice = dice_per_class(prediction, truth, classes=4, undefined="absent_in_either")
    np.testing.assert_allclose(dice, [2 * 8 / (16 + 8), np.nan, np.nan])


def test_the_calibration_error_by_hand() -> None:
    """Ten voxels at 0.9, of which six are right, and ten at 0.6, of which six are right."""
    prediction = np.ones((1, 5, 4), np.uint8)
    confidence = np.repeat([0.9, 0.6], 10).reshape(1, 5, 4)
    truth = np.where(np.arange(20) % 10 < 6, 1, 0).astype(np.uint8).reshape(1, 5, 4)
    assert calibration_error(prediction, confidence, truth) == pytest.approx(0.15)
    # the background on both sides, and what nobody knows, doesn't count
    more = [np.concatenate([a, b]) for a, b in ((prediction, 0 * prediction), (truth, 0 * truth))]
    sure = np.concatenate([confidence, 0 * confidence + 0.5])
    assert calibration_error(more[0], sure, more[1]) == pytest.approx(0.15)
    truth[confidence == 0.9] = IGNORED
    assert calibration_error(prediction, confidence, truth) == pytest.approx(0)
    assert np.isnan(calibration_error(0 * truth, confidence, 0 * truth))


def test_labels_that_do_not_fit_are_refused() -> None:
    labels = np.full((4, 4, 4), 3, np.uint8)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        dice_per_class(labels, labels, 3)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        hd95_mm(labels, labels, 3, (1, 1, 1))
    with pytest.raises(ValueError, match="shapes differ"):
        dice_per_class(labels, labels[1:], 4)


def test_dice_survives_many_classes_in_uint8() -> None:
    labels = np.arange(250, dtype=np.uint8).reshape(5, 5, 10)
    np.testing.assert_array_equal(dice_per_class(labels, labels, 250), np.ones(249))


def test_hd95_of_shifted_slabs_is_the_shift_in_mm() -> None:
    truth = np.zeros((12, 30, 30), np.uint8)
    prediction = truth.copy()
    truth[2:4], prediction[5:7] = 1, 1
    np.testing.assert_allclose(hd95_mm(prediction, truth, 2, (2.5, 1, 1)), [7.5])


def test_hd95_is_undefined_where_a_class_is_missing() -> None:
    truth = np.zeros((6, 6, 6), np.uint8)
    truth[2, 2, 2] = 1
    assert np.isnan(hd95_mm(np.zeros_like(truth), truth, 3, (1, 1, 1))).all()


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3.0, 0.7, 0.5)])
def test_hd95_equals_deepminds(spacing: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        noise = rng.random((2, 14, 12, 16))
        # single voxels, holes, contact with the border: every neighbourhood occurs
        prediction, truth = np.digitize(noise, [0.5, 0.9])
        wanted = [
            surface_distance.compute_robust_hausdorff(
                surface_distance.compute_surface_distances(truth == c, prediction == c, spacing), 95
            )
            for c in (1, 2)
        ]
        np.testing.assert_allclose(hd95_mm(prediction, truth, 3, spacing), wanted, rtol=1e-6)


def test_jacobian_of_a_known_affine() -> None:
    matrix = np.array([[0.1, 0.2, -0.1], [0.05, -0.2, 0.1], [0.3, 0.0, 0.15]])
    grid = np.stack(np.meshgrid(*map(np.arange, (6, 7, 9)), indexing="ij")).astype(float)
    statistics = jacobian_statistics(np.einsum("ij,jzyx->izyx", matrix, grid))
    assert statistics.std == pytest.approx(0, abs=1e-9)
    assert statistics.folded_percent == statistics.folded_percent_forward == 0
    mirrored = jacobian_statistics(np.stack([-2 * grid[0], grid[1] * 0, grid[2] * 0]))
    assert mirrored.folded_percent == mirrored.folded_percent_forward == 100


def test_statistics_of_a_known_stretch() -> None:
    field = np.zeros((3, 8, 9, 40), np.float32)
    position = np.arange(40, dtype=np.float32)
    field[2] = 0.01 * position**2
    determinants = np.gradient(field[2, 0, 0]) + 1
    statistics = jacobian_statistics(field)
    assert statistics.std == pytest.approx(determinants.std(), rel=1e-5)
    wanted = np.log(determinants[2:-2] + 3).std()
    assert statistics.sdlogj_plus3 == pytest.approx(wanted, rel=1e-5)


def test_only_forward_differences_see_a_checkerboard() -> None:
    field = np.zeros((3, 8, 8, 9))
    field[2] = np.where(np.arange(9) % 2, -0.8, 0.8)
    statistics = jacobian_statistics(field)
    assert statistics.folded_percent_forward == 50
    assert folds(field)[0, 0].tolist() == [True, False] * 4 + [False]
    # the one-sided differences at the first column
    assert statistics.folded_percent == pytest.approx(100 / 9)


def test_something_else_is_no_field() -> None:
    with pytest.raises(ValueError, match="displacement"):
        jacobian_statistics(np.zeros((8, 8, 8, 3)))
