"""Predictions on disk: there in full or not at all."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from napari_jrss.io.predictions import (
    Prediction,
    prediction_path,
    read_prediction,
    write_prediction,
)


def prediction(seed: int, uncertainty: bool = True, dtype: type = np.uint8) -> Prediction:
    rng = np.random.default_rng(seed)
    shape = (5, 6, 7)
    return Prediction(
        rng.integers(0, 9, shape).astype(dtype),
        rng.random(shape).astype(np.float16),
        rng.random(shape).astype(np.float16) if uncertainty else None,
        rng.integers(0, 9, shape).astype(dtype) if uncertainty else None,
        rng.random(shape).astype(np.float16) if uncertainty else None,
    )


def assert_same(first: Prediction, second: Prediction) -> None:
    for name in (field.name for field in fields(first)):
        one, other = getattr(first, name), getattr(second, name)
        if one is None:
            assert other is None
        else:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("uncertainty", [True, False])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_prediction_comes_back(uncertainty: bool, dtype: type, tmp_path: Path) -> None:
    told = prediction(0, uncertainty, dtype)
    write_prediction(tmp_path / "new", "case.1", told)
    assert_same(read_prediction(tmp_path / "new", "case.1"), told)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["case.1.zarr"]


def test_a_second_prediction_takes_the_place_of_the_first(tmp_path: Path) -> None:
    write_prediction(tmp_path, "a", prediction(0))
    write_prediction(tmp_path, "a", prediction(1, uncertainty=False))
    assert_same(read_prediction(tmp_path, "a"), prediction(1, uncertainty=False))


def test_a_view_is_written_as_it_looks(tmp_path: Path) -> None:
    told = prediction(0)
    turned = Prediction(told.label.T, told.confidence.T[::-1])
    write_prediction(tmp_path, "a", turned)
    assert_same(read_prediction(tmp_path, "a"), turned)


def test_a_case_without_a_prediction_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no prediction of case b"):
        read_prediction(tmp_path, "b")
    assert prediction_path(tmp_path, "b") == tmp_path / "b.zarr"


def test_what_was_half_written_is_no_prediction(tmp_path: Path) -> None:
    """A write that fails on the way leaves the one before as it was."""
    write_prediction(tmp_path, "a", prediction(0))
    broken = Prediction(prediction(1).label, np.array(object()))  # can't be stored
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever zarr raises
        write_prediction(tmp_path, "a", broken)
    assert_same(read_prediction(tmp_path, "a"), prediction(0))
