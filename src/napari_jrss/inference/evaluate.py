"""Figures of a round's networks on the test cases: a row per case and pair, then a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import nn

from napari_jrss.inference.predict import displacement_field, predict_case, warp_array
from napari_jrss.metrics import (
    calibration_error,
    dice_per_class,
    hd95_mm,
    jacobian_statistics,
)
from napari_jrss.snapshot import CaseArrays

Pairs = Literal["two-fixed", "all"]
SpacingOf = Callable[[str], Sequence[float]]
"""Voxel size (z, y, x) in mm of a case."""


class CaseEvaluated(BaseModel):
    """Segmentation of one test case.

    Lists run over the foreground classes, None where a figure is undefined; `seconds` is the time
    of the prediction, `calibration_error` that of :func:`napari_jrss.metrics.calibration_error`.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["case_evaluated"] = "case_evaluated"
    case_id: str
    dice: list[float | None]
    hd95_mm: list[float | None]
    calibration_error: float | None = None
    seconds: float


class PairEvaluated(BaseModel):
    """Registration of one ordered pair of test cases.

    Lists run over the foreground classes, None where a figure is undefined. The figures of the
    Jacobian are those of :class:`napari_jrss.metrics.JacobianStatistics`.
    """

    model_config = ConfigDict(frozen=True)
    kind: Literal["pair_evaluated"] = "pair_evaluated"
    moving: str
    fixed: str
    dice_before: list[float | None]
    dice: list[float | None]
    hd95_mm: list[float | None]
    std_jacobian: float
    sdlogj_plus3: float
    folded_percent: float
    folded_percent_forward: float
    seconds: float


def evaluation_pairs(cases: Sequence[str], pairs: Pairs, seed: int) -> list[tuple[str, str]]:
    """Ordered pairs (moving, fixed) of test cases.

    ``two-fixed``: two fixed cases, drawn with `seed`, each with all cases but these two moving
    (section 4.1 of the paper); where there are no others, the two onto each other. ``all``:
    every ordered pair.
    """
    if pairs == "all":
        return list(permutations(sorted(cases), 2))
    fixed = [str(case) for case in np.random.default_rng(seed).permutation(sorted(cases))[:2]]
    moving = sorted(set(cases) - set(fixed)) or fixed
    return [(m, f) for f in fixed for m in moving if m != f]


def evaluate_segmentation(
    network: nn.Module,
    arrays: CaseArrays,
    cases: Sequence[str],
    classes: int,
    spacing_of: SpacingOf,
    device: torch.device,
) -> Iterator[CaseEvaluated]:
    """Segment each test case and compare it with its label, on the training grid.

    `network` maps (B, channels, z, y, x) to logits (B, C, z, y, x), C = `classes`.
    """
    for case in cases:
        image, truth = arrays.channels(case), arrays.label(case)
        started = _now(device)
        prediction = predict_case(network, image, device)
        seconds = _now(device) - started
        label = prediction.label
        off = calibration_error(label, prediction.confidence, truth)
        yield CaseEvaluated(
            case_id=case,
            dice=none_for_nan(dice_per_class(label, truth, classes)),
            hd95_mm=none_for_nan(hd95_mm(label, truth, classes, spacing_of(case))),
            calibration_error=None if np.isnan(off) else off,
            seconds=seconds,
        )


def evaluate_registration(
    network: nn.Module,
    arrays: CaseArrays,
    pairs: Sequence[tuple[str, str]],
    classes: int,
    spacing_of: SpacingOf,
    device: torch.device,
) -> Iterator[PairEvaluated]:
    """Register each pair (moving, fixed) and compare the warped label with the fixed one.

    `network` maps two images (B, channels, z, y, x) to a field (B, 3, z, y, x) in voxels.
    """
    for moving, fixed in pairs:
        image, target = arrays.channels(moving), arrays.channels(fixed)
        label, truth = arrays.label(moving), arrays.label(fixed)
        started = _now(device)
        field = displacement_field(network, image, target, device)
        seconds = _now(device) - started
        warped = warp_array(label, field, nearest=True)
        regularity = jacobian_statistics(field)
        yield PairEvaluated(
            moving=moving,
            fixed=fixed,
            dice_before=none_for_nan(dice_per_class(label, truth, classes, "absent_in_either")),
            dice=none_for_nan(dice_per_class(warped, truth, classes, "absent_in_either")),
            hd95_mm=none_for_nan(hd95_mm(warped, truth, classes, spacing_of(fixed))),
            std_jacobian=regularity.std,
            sdlogj_plus3=regularity.sdlogj_plus3,
            folded_percent=regularity.folded_percent,
            folded_percent_forward=regularity.folded_percent_forward,
            seconds=seconds,
        )


def summarise_segmentation(
    rows: Sequence[CaseEvaluated], class_names: Sequence[str]
) -> dict[str, Any]:
    """Mean and standard deviation over the cases, of the classes' mean and of each class."""
    return {
        "cases": len(rows),
        "dice": _statistics([row.dice for row in rows], class_names),
        "hd95_mm": _statistics([row.hd95_mm for row in rows], class_names),
        "calibration_error": _mean_std(
            [np.nan if row.calibration_error is None else row.calibration_error for row in rows]
        ),
        "seconds_per_case": _mean_std([row.seconds for row in rows]),
    }


def summarise_registration(
    rows: Sequence[PairEvaluated], class_names: Sequence[str]
) -> dict[str, Any]:
    """Mean and standard deviation over the pairs, of the classes' mean and of each class."""
    figures = ("std_jacobian", "sdlogj_plus3", "folded_percent", "folded_percent_forward")
    return {
        "pairs": len(rows),
        "dice_before": _statistics([row.dice_before for row in rows], class_names),
        "dice": _statistics([row.dice for row in rows], class_names),
        "hd95_mm": _statistics([row.hd95_mm for row in rows], class_names),
        **{name: _mean_std([getattr(row, name) for row in rows]) for name in figures},
        "seconds_per_pair": _mean_std([row.seconds for row in rows]),
    }


def _statistics(
    rows: Sequence[Sequence[float | None]], class_names: Sequence[str]
) -> dict[str, Any]:
    values = np.array(rows, dtype=float).reshape(len(rows), -1)
    return {
        **_mean_std([_nanmean(row) for row in values]),
        "per_class": {
            name: _mean_std(list(values[:, i])) for i, name in enumerate(class_names[1:])
        },
    }


def _mean_std(values: Sequence[float]) -> dict[str, float | None]:
    known = [value for value in values if not np.isnan(value)]
    if not known:
        return {"mean": None, "std": None}
    return {"mean": float(np.mean(known)), "std": float(np.std(known))}


def _nanmean(values: NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")


def none_for_nan(values: NDArray[np.float64]) -> list[float | None]:
    """The values (n,) as JSON can hold them."""
    return [None if np.isnan(value) else float(value) for value in values]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
