"""The regions in which a teacher is unsure, the worst first."""

from __future__ import annotations

import numpy as np

from napari_jrss.app.review.regions import uncertain_regions
from napari_jrss.io.predictions import Prediction


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
