"""A tau slider says what screening would say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_jrss.app.review.prediction_review import Screening
from napari_jrss.app.review.regions import uncertain_regions
from napari_jrss.config import ScreeningConfig
from napari_jrss.io.predictions import Prediction
from napari_jrss.training.screening import screen

CLASSES = 4


@given(
    seed=st.integers(0, 2**32 - 1),
    tau=st.one_of(
        st.floats(0, 1),
        st.sampled_from([0.0, 0.5, 1.0, 0.7, float(np.float16(0.7))]),
    ),
    gate=st.sampled_from(["mean", "max", "none"]),
    voxel_gate=st.booleans(),
    held_back=st.sets(st.integers(1, CLASSES - 1)),
)
def test_it_equals_screening_at_any_tau(
    seed: int, tau: float, gate: str, voxel_gate: bool, held_back: set[int]
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, rng.integers(1, CLASSES + 1), (3, 4, 5)).astype(np.uint8)
    # Few distinct values, so that many lie exactly at tau.
    confidence = rng.choice([0, 0.25, 0.5, tau, 0.7, 0.7001, 1], label.shape).astype(np.float16)
    prediction = Prediction(label, confidence)
    config = ScreeningConfig(tau=tau, class_gate=gate, voxel_gate=voxel_gate)
    expected = screen(prediction, CLASSES, (1, 2, 3), config, held_back)

    names = {c: f"structure {c}" for c in held_back}
    ready = Screening(prediction, CLASSES, config.model_copy(update={"tau": 0.3}), names)
    screened = ready.at(tau)
    np.testing.assert_array_equal(ready.target(tau), expected.target)
    np.testing.assert_array_equal(screened.classes_passed, expected.classes_passed)
    assert screened.kept_fraction == pytest.approx(expected.kept_fraction)
    assert screened.structures_passed == expected.classes_passed[1:].sum()
    assert ("not learned yet: structure" in screened.words) == bool(held_back)
    out = np.empty_like(label)
    assert ready.target(tau, out) is out
    np.testing.assert_array_equal(out, expected.target)


def test_the_worst_region_comes_first_and_far_ones_are_kept_apart() -> None:
    uncertainty = np.zeros((20, 30, 30), np.float16)
    uncertainty[3:5, 4:6, 4:6] = 1
    uncertainty[14:18, 20:24, 20:24] = 1
    label = np.zeros(uncertainty.shape, np.uint8)
    label[10:] = 2
    prediction = Prediction(label, np.ones(label.shape, np.float16), uncertainty)
    worst, second = uncertain_regions(prediction, (1.0, 1.0, 1.0), fraction=0.01)
    assert 14 <= worst.at[0] < 18
    assert worst.index == 2
    assert 3 <= second.at[0] < 5
    assert worst.volume_ml > second.volume_ml > 0
    assert worst.volume_ml < 0.3


def test_without_a_student_low_confidence_is_what_is_uncertain() -> None:
    confidence = np.ones((12, 12, 12), np.float16)
    confidence[5:7, 5:7, 5:7] = 0.4
    prediction = Prediction(np.zeros(confidence.shape, np.uint8), confidence)
    (region,) = uncertain_regions(prediction, (1.0, 1.0, 1.0), fraction=0.02)
    assert np.abs(np.array(region.at) - 5.5).max() <= 0.5
    sure = Prediction(prediction.label, np.ones_like(confidence))
    assert uncertain_regions(sure, (1.0, 1.0, 1.0)) == []
