"""Test cases and pairs, what is undefined, and the summaries by hand."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from napari_jrss._tests.training.phantoms import NAMES, RecordingArrays, phantom
from napari_jrss.config import NetworkConfig
from napari_jrss.inference.evaluate import (
    CaseEvaluated,
    PairEvaluated,
    evaluate_registration,
    evaluate_segmentation,
    evaluation_pairs,
    summarise_registration,
    summarise_segmentation,
)
from napari_jrss.networks.build import build_registration_network

CPU = torch.device("cpu")
C = len(NAMES)


def spacing_of(case_id: str) -> tuple[float, float, float]:
    """Twice the scale for case z."""
    scale = 2.0 if case_id == "z" else 1.0
    return 2.0 * scale, scale, scale


case_ids = st.lists(st.text("abcdefg", min_size=1, max_size=3), min_size=2, max_size=7, unique=True)


@given(case_ids, st.integers(0, 5), st.randoms(use_true_random=False))
def test_pairs_depend_on_the_seed_and_not_on_the_order_of_the_cases(cases, seed, random) -> None:
    shuffled = random.sample(cases, len(cases))
    two = evaluation_pairs(cases, "two-fixed", seed)
    assert two == evaluation_pairs(shuffled, "two-fixed", seed)
    every = evaluation_pairs(cases, "all", seed)
    assert every == evaluation_pairs(shuffled, "all", seed + 1) == [*permutations(sorted(cases), 2)]
    assert set(two) <= set(every)
    assert len(set(two)) == len(two)
    assert len({fixed for _, fixed in two}) == 2
    fixed, moving = {f for _, f in two}, {m for m, _ in two}
    assert fixed | moving == set(cases)
    assert not fixed & moving or len(cases) == 2
    assert all(type(name) is str for pair in two for name in pair)


def test_seeds_choose_other_fixed_cases() -> None:
    cases = [f"c{i}" for i in range(10)]
    chosen = {frozenset(f for _, f in evaluation_pairs(cases, "two-fixed", s)) for s in range(8)}
    assert len(chosen) > 1


class Threshold(nn.Module):
    """Sees the phantoms' blocks by their brightness."""

    def forward(self, image: Tensor) -> Tensor:
        grey = image[:, 0]
        classes = (grey > 0.7).long() + (grey > 2.6).long()
        return 10 * nn.functional.one_hot(classes, C).movedim(-1, 1).float()


class NoStructure(RecordingArrays):
    """The second structure is missing from the labels."""

    def label(self, case_id: str) -> np.ndarray:
        label = phantom(case_id)[1].copy()
        label[label == 2] = 0
        return label


def test_a_segmented_case_is_compared_with_its_label() -> None:
    (row,) = evaluate_segmentation(Threshold(), RecordingArrays(), ["x"], C, spacing_of, CPU)
    assert row.case_id == "x"
    assert row.dice[0] is not None
    assert row.dice[0] > 0.95
    assert len(row.dice) == len(row.hd95_mm) == C - 1
    assert row.seconds > 0
    assert row.calibration_error is not None
    assert 0 < row.calibration_error < 0.1  # it is always sure, and nearly always right
    assert CaseEvaluated.model_validate_json(row.model_dump_json()) == row


def test_a_sure_network_that_is_wrong_is_badly_calibrated() -> None:
    (right,) = evaluate_segmentation(Threshold(), RecordingArrays(), ["x"], C, spacing_of, CPU)
    (wrong,) = evaluate_segmentation(Threshold(), NoStructure(), ["x"], C, spacing_of, CPU)
    label = phantom("x")[1]
    share = (label == 2).sum() / (label > 0).sum()
    assert right.calibration_error is not None
    assert wrong.calibration_error is not None
    assert wrong.calibration_error == pytest.approx(right.calibration_error + share, abs=0.02)


def test_distances_are_in_the_cases_own_millimetres() -> None:
    class SameAgain(RecordingArrays):
        """Case z is case x, in larger voxels."""

        def image(self, case_id: str) -> np.ndarray:
            return phantom("x")[0]

        def label(self, case_id: str) -> np.ndarray:
            return np.roll(phantom("x")[1], 2, 2)

    rows = list(evaluate_segmentation(Threshold(), SameAgain(), ["x", "z"], C, spacing_of, CPU))
    assert rows[0].hd95_mm[0] == pytest.approx(2)
    assert rows[1].hd95_mm[0] == pytest.approx(4)
    identity = build_registration_network(NetworkConfig())
    pairs = [("y", "x"), ("y", "z")]
    pair_rows = list(evaluate_registration(identity, SameAgain(), pairs, C, spacing_of, CPU))
    assert pair_rows[0].hd95_mm[0] == 0


def test_a_structure_that_was_invented_scores_zero_and_has_no_distance() -> None:
    (row,) = evaluate_segmentation(Threshold(), NoStructure(), ["x"], C, spacing_of, CPU)
    assert row.dice[1] == 0
    assert row.hd95_mm[1] is None


def test_the_identity_changes_no_dice_and_is_regular() -> None:
    network = build_registration_network(NetworkConfig())
    with torch.no_grad():
        network.backbone.head.weight.zero_()  # type: ignore[union-attr, operator]
    arrays = RecordingArrays()
    pairs = [("x", "y"), ("y", "x")]
    rows = list(evaluate_registration(network, arrays, pairs, C, spacing_of, CPU))
    assert [(row.moving, row.fixed) for row in rows] == pairs
    for row in rows:
        assert row.dice == row.dice_before
        assert row.std_jacobian == 0
        assert row.folded_percent == 0
        assert PairEvaluated.model_validate_json(row.model_dump_json()) == row


def test_a_structure_missing_in_a_pair_is_undefined() -> None:
    network = build_registration_network(NetworkConfig())
    (row,) = evaluate_registration(network, NoStructure(), [("x", "y")], C, spacing_of, CPU)
    assert row.dice[0] is not None
    assert row.dice[1] is None
    assert row.dice_before[1] is None


def test_summary_of_segmentation_by_hand() -> None:
    x: dict[str, Any] = {"dice": [0.8, 0.4], "hd95_mm": [1.0, None], "calibration_error": 0.1}
    y: dict[str, Any] = {"dice": [0.6, None], "hd95_mm": [3.0, None]}
    rows = [
        CaseEvaluated(case_id="x", **x, seconds=1),
        CaseEvaluated(case_id="y", **y, seconds=3),  # as older rows, without a calibration error
    ]
    told = summarise_segmentation(rows, NAMES)
    assert told["calibration_error"] == {"mean": 0.1, "std": 0.0}
    # Each case's mean over its own classes, then mean and deviation over the cases.
    assert told["cases"] == 2
    assert told["dice"]["mean"] == pytest.approx(0.6)
    assert told["dice"]["std"] == pytest.approx(0)
    assert told["dice"]["per_class"]["left"] == pytest.approx({"mean": 0.7, "std": 0.1})
    assert told["dice"]["per_class"]["right"] == pytest.approx({"mean": 0.4, "std": 0})
    assert told["hd95_mm"]["mean"] == pytest.approx(2)
    assert told["hd95_mm"]["per_class"]["right"] == {"mean": None, "std": None}
    assert told["seconds_per_case"] == {"mean": 2, "std": 1}


def test_summary_of_registration_by_hand() -> None:
    given = {
        "moving": "x",
        "fixed": "y",
        "hd95_mm": [None, None],
        "sdlogj_plus3": 0.1,
        "folded_percent_forward": 0.0,
        "seconds": 1.0,
    }
    rows = [
        PairEvaluated(
            dice_before=[0.2, 0.4], dice=[0.6, 0.8], std_jacobian=0.2, folded_percent=1, **given
        ),
        PairEvaluated(
            dice_before=[0.4, None], dice=[0.9, None], std_jacobian=0.4, folded_percent=0, **given
        ),
    ]
    told = summarise_registration(rows, NAMES)
    assert told["pairs"] == 2
    assert told["dice_before"]["mean"] == pytest.approx(0.35)
    assert told["dice"]["mean"] == pytest.approx(0.8)
    assert told["dice"]["std"] == pytest.approx(0.1)
    assert told["hd95_mm"]["mean"] is None
    assert told["std_jacobian"] == pytest.approx({"mean": 0.3, "std": 0.1})
    assert told["folded_percent"] == {"mean": 0.5, "std": 0.5}
