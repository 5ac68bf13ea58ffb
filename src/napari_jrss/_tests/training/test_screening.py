"""Screening at tau: two gates, what they ignore, and when a case counts as labelled."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from napari_jrss.config import ScreeningConfig
from napari_jrss.io.predictions import Prediction
from napari_jrss.training.screening import IGNORED, Screening, screen

CLASSES = 4
Gate = Literal["mean", "max", "none"]


def prediction(label: list[int], confidence: list[float]) -> Prediction:
    """A row of voxels."""
    shape = (1, 1, len(label))
    return Prediction(
        np.array(label, np.uint8).reshape(shape), np.array(confidence, np.float16).reshape(shape)
    )


labels = arrays(np.uint8, (2, 3, 4), elements=st.integers(0, CLASSES - 1))
confidences = arrays(np.float16, (2, 3, 4), elements=st.floats(0, 1, width=16))
gates = st.sampled_from(["mean", "max", "none"])


def test_a_voxel_at_or_below_tau_is_ignored_never_background() -> None:
    told = prediction([1, 1, 1, 0], [0.75, 0.5, 1.0, 0.25])
    target = screen(told, 2, (1,), ScreeningConfig(tau=0.5, class_gate="none")).target
    assert target.ravel().tolist() == [1, IGNORED, 1, IGNORED]


@pytest.mark.parametrize(
    ("gate", "passed"),
    [("mean", [True, False, True]), ("max", [True, True, True]), ("none", [True, True, True])],
)
def test_a_class_passes_by_its_mean_its_maximum_or_always(gate: Gate, passed: list[bool]) -> None:
    told = prediction([0, 0, 1, 1, 1, 2], [0.75, 1.0, 0.25, 0.25, 0.75, 1.0])
    result = screen(told, 4, (1, 2), ScreeningConfig(tau=0.5, class_gate=gate))
    assert result.classes_passed.tolist() == [*passed, False]
    assert np.isnan(result.class_confidence[3])
    statistic = {"mean": 1.25 / 3, "max": 0.75}.get(gate, 1.25 / 3)
    assert result.class_confidence[1] == pytest.approx(statistic)


def test_a_class_that_fails_is_ignored_where_the_voxel_alone_would_pass() -> None:
    told = prediction([0, 1, 1, 1], [1.0, 1.0, 0.25, 0.25])
    result = screen(told, 2, (1,), ScreeningConfig(tau=0.6))
    assert result.target.ravel().tolist() == [0, IGNORED, IGNORED, IGNORED]
    assert result.label.ravel().tolist() == [0, 1, 1, 1]
    assert not result.accepted


def test_a_class_gate_alone_keeps_every_voxel_of_its_class() -> None:
    told = prediction([1, 1, 1], [1.0, 1.0, 0.25])
    config = ScreeningConfig(tau=0.5, voxel_gate=False)
    assert screen(told, 2, (1,), config).target.ravel().tolist() == [1, 1, 1]


def test_exactly_tau_does_not_pass() -> None:
    told = prediction([0, 1], [0.5, 0.5])
    for gate in ("mean", "max"):
        result = screen(told, 2, (1,), ScreeningConfig(tau=0.5, class_gate=gate))
        assert not result.classes_passed.any()
        assert (result.target == IGNORED).all()


@pytest.mark.parametrize("gate", ["mean", "max"])
def test_tau_of_one_refuses_and_tau_of_zero_keeps_what_has_any_confidence(gate: Gate) -> None:
    told = prediction([0, 1], [1.0, 1.0])
    assert screen(told, 2, (1,), ScreeningConfig(tau=1, class_gate=gate)).kept_fraction == 0
    told = prediction([0, 1], [0.001, 0.001])
    assert screen(told, 2, (1,), ScreeningConfig(tau=0, class_gate=gate)).kept_fraction == 1


@pytest.mark.parametrize(
    ("fraction", "passing", "accepted"),
    [(1.0, 2, True), (1.0, 1, False), (0.5, 1, True), (0.51, 1, False), (0.0, 1, True)],
)
def test_a_case_is_accepted_by_the_fraction_of_its_classes(
    fraction: float, passing: int, accepted: bool
) -> None:
    told = prediction([1, 2], [1.0, 1.0 if passing == 2 else 0.25])
    config = ScreeningConfig(tau=0.5, accept_fraction=fraction)
    assert screen(told, 3, (1, 2), config).accepted == accepted


def test_at_least_one_class_must_pass_whatever_the_fraction() -> None:
    told = prediction([1, 2], [0.25, 0.25])
    for required in ((1, 2), ()):
        assert not screen(told, 3, required, ScreeningConfig(accept_fraction=0)).accepted


def test_a_class_that_is_absent_does_not_pass_and_only_required_ones_count() -> None:
    told = prediction([0, 1], [1.0, 1.0])
    config = ScreeningConfig(tau=0.5)
    assert not screen(told, 3, (1, 2), config).accepted
    assert screen(told, 3, (1,), config).accepted
    # The background passes, too, and counts for nothing.
    assert not screen(prediction([0, 0], [1.0, 1.0]), 3, (1, 2), config).accepted


def test_a_class_held_back_passes_nowhere_is_not_asked_for_and_leaves_a_hole() -> None:
    told = prediction([0, 1, 2, 2], [1.0, 1.0, 1.0, 1.0])
    result = screen(told, 3, (1, 2), ScreeningConfig(tau=0.5), held_back=(2,))
    assert result.classes_passed.tolist() == [True, True, False]
    assert result.target.ravel().tolist() == [0, 1, IGNORED, IGNORED]
    assert result.label.ravel().tolist() == [0, 1, IGNORED, IGNORED]
    assert result.accepted
    assert told.label.ravel().tolist() == [0, 1, 2, 2]
    assert not screen(told, 3, (1, 2), ScreeningConfig(tau=0.5), held_back=(1, 2)).accepted


@given(st.integers(1, 60), st.data())
def test_n_of_m_classes_are_the_fraction_n_by_m(required: int, data: st.DataObject) -> None:
    passing = data.draw(st.integers(1, required))
    told = prediction(list(range(1, required + 1)), [1.0] * passing + [0.25] * (required - passing))
    config = ScreeningConfig(tau=0.5, accept_fraction=passing / required)
    assert screen(told, required + 1, range(1, required + 1), config).accepted


@pytest.mark.slow
@given(labels, confidences, st.floats(0, 1), gates, st.booleans())
def test_what_is_kept_is_predicted_confident_and_of_a_class_that_passed(
    label: np.ndarray, confidence: np.ndarray, tau: float, gate: Gate, voxel_gate: bool
) -> None:
    config = ScreeningConfig(tau=tau, class_gate=gate, voxel_gate=voxel_gate)
    result = screen(Prediction(label, confidence), CLASSES, (1, 2, 3), config)
    confidence = confidence.astype(float)
    kept = result.target != IGNORED
    np.testing.assert_array_equal(result.target[kept], label[kept])
    assert result.classes_passed[label[kept]].all()
    if voxel_gate:
        assert (confidence[kept] > tau).all()
    ignored = ~kept & result.classes_passed[label]
    assert not ignored.any() if not voxel_gate else (confidence[ignored] <= tau).all()
    assert result.kept_fraction == pytest.approx(kept.mean())
    assert np.array_equal(
        np.isnan(result.class_confidence), np.bincount(label.ravel(), minlength=CLASSES) == 0
    )


@pytest.mark.slow
@given(labels, confidences, st.floats(0, 1), st.floats(0, 1), gates, st.booleans())
def test_a_higher_tau_keeps_no_more(
    label: np.ndarray, confidence: np.ndarray, a: float, b: float, gate: Gate, voxel_gate: bool
) -> None:
    low, high = (
        screen(
            Prediction(label, confidence),
            CLASSES,
            (1, 2, 3),
            ScreeningConfig(tau=tau, class_gate=gate, voxel_gate=voxel_gate),
        )
        for tau in sorted((a, b))
    )
    assert not ((high.target != IGNORED) & (low.target == IGNORED)).any()
    assert low.accepted or not high.accepted


@pytest.mark.slow
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
def test_screening_is_eq_3_voxel_by_voxel_and_a_preview_at_any_tau_says_the_same(
    seed: int, tau: float, gate: Gate, voxel_gate: bool, held_back: set[int]
) -> None:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, rng.integers(1, CLASSES + 1), (3, 4, 5)).astype(np.uint8)
    # Few distinct values, so that many lie exactly at tau.
    confidence = rng.choice([0, 0.25, 0.5, tau, 0.7, 0.7001, 1], label.shape).astype(np.float16)
    exact = confidence.astype(np.float64)
    statistic = {"mean": np.mean, "max": np.max, "none": lambda _: 2}[gate]
    passed = np.array(
        [
            c not in held_back and bool((label == c).any() and statistic(exact[label == c]) > tau)
            for c in range(CLASSES)
        ]
    )
    kept = passed[label] & (exact > tau if voxel_gate else True)
    target = np.where(kept, label, IGNORED)

    told = Prediction(label, confidence)
    config = ScreeningConfig(tau=tau, class_gate=gate, voxel_gate=voxel_gate)
    screened = screen(told, CLASSES, (1, 2, 3), config, held_back)
    np.testing.assert_array_equal(screened.target, target)
    np.testing.assert_array_equal(screened.classes_passed, passed)

    names = {c: f"structure {c}" for c in held_back}
    ready = Screening(told, CLASSES, config.model_copy(update={"tau": 0.3}), names)
    preview = ready.at(tau)
    np.testing.assert_array_equal(ready.target(tau), target)
    np.testing.assert_array_equal(preview.classes_passed, passed)
    assert preview.kept_fraction == kept.mean()
    assert f"and {passed[1:].sum()} of {CLASSES - 1} structures" in preview.words
    assert ("not learned yet: structure" in preview.words) == bool(held_back)
    out = np.empty_like(label)
    assert ready.target(tau, out) is out
    np.testing.assert_array_equal(out, target)
