"""What a run draws, and the memory it keeps volumes in."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_jrss.snapshot import CachedArrays, CohortSnapshot
from napari_jrss.training.sampling import draw_cases, draw_pairs, draw_start, step_seed

ids = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=9, unique=True)
seeds = st.integers(0, 2**62)


@given(ids, st.integers(0, 20), seeds)
def test_cases_repeat_only_when_there_are_too_few(cases: list[str], count: int, seed: int) -> None:
    drawn = draw_cases(cases, count, np.random.default_rng(seed))
    assert len(drawn) == count
    assert set(drawn) <= set(cases)
    assert all(type(case) is str for case in drawn)
    often = Counter(drawn)
    assert max(often.values(), default=0) <= -(-count // len(cases))
    assert drawn == draw_cases(cases, count, np.random.default_rng(seed))


def test_every_case_is_drawn_about_as_often() -> None:
    rng = np.random.default_rng(0)
    often = Counter(case for _ in range(900) for case in draw_cases(tuple("abc"), 1, rng))
    assert min(often.values()) > 240


def test_nothing_can_be_drawn_from_nothing() -> None:
    with pytest.raises(ValueError, match="no case to draw from"):
        draw_cases([], 1, np.random.default_rng(0))


@given(
    ids.filter(lambda cases: len(cases) > 1),
    st.integers(0, 9),
    st.integers(0, 12),
    st.floats(0, 1),
    seeds,
)
def test_pairs_are_of_two_cases_and_supervised_as_far_as_asked(
    cases: list[str], supervised: int, count: int, fraction: float, seed: int
) -> None:
    known = cases[:supervised]
    pairs = draw_pairs(cases, known, count, fraction, np.random.default_rng(seed))
    assert len(pairs) == count
    assert all(moving != fixed for moving, fixed in pairs)
    assert {case for pair in pairs for case in pair} <= set(cases)
    both = sum(moving in known and fixed in known for moving, fixed in pairs)
    assert both >= (int(count * fraction) if len(known) > 1 else 0)


def test_a_fraction_of_a_small_batch_holds_on_average() -> None:
    rng = np.random.default_rng(0)
    cases = tuple(f"c{i}" for i in range(200))
    drawn = [pair for _ in range(1000) for pair in draw_pairs(cases, ("c0", "c1"), 2, 0.25, rng)]
    assert sum(set(pair) == {"c0", "c1"} for pair in drawn) / len(drawn) == pytest.approx(
        0.25, abs=0.03
    )


def test_both_orders_and_all_pairs_come() -> None:
    rng = np.random.default_rng(0)
    drawn = {pair for _ in range(200) for pair in draw_pairs(tuple("abc"), ("a",), 1, 1.0, rng)}
    assert drawn == {(m, f) for m in "abc" for f in "abc" if m != f}


def test_a_pair_needs_two_cases() -> None:
    with pytest.raises(ValueError, match="at least two"):
        draw_pairs(["a"], ["a"], 1, 0, np.random.default_rng(0))


def test_seeds_of_steps_stages_and_runs_are_independent() -> None:
    drawn = [
        step_seed(seed, stage, step)
        for seed in range(5)
        for stage in ("mono_segmentation", "student_1", "student_2", "")
        for step in range(50)
    ]
    assert len(set(drawn)) == len(drawn)
    assert all(0 <= seed < 2**63 for seed in drawn)
    # Neighbours share no bits to speak of: a step's draw tells nothing of the next one's.
    first = [np.random.default_rng(seed).random() for seed in drawn]
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.1


def test_a_steps_seed_stays_what_it_was() -> None:
    """A resumed run may be resumed by another process, on another day."""
    assert step_seed(0, "student_1", 7) == 8832635852760415132


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=60),
    st.integers(0, 500),
)
def test_the_cache_gives_what_is_on_disk_and_keeps_to_its_budget(
    wanted: list[tuple[str, bool]], budget: int
) -> None:
    def content(case: str) -> np.ndarray:
        return np.full(ord(case) - 90, ord(case), np.uint8)

    arrays = CachedArrays(lambda c: content(c).astype(np.float32), content, budget)
    for case, image in wanted:
        got = arrays.image(case) if image else arrays.label(case)
        np.testing.assert_array_equal(got, content(case))
        assert got.dtype == (np.float32 if image else np.uint8)
        kept = [array.nbytes for array in arrays._kept.values()]
        assert sum(kept) <= budget or len(kept) == 1


def test_the_least_recently_used_volume_leaves_first() -> None:
    read: list[str] = []

    def image(case: str) -> np.ndarray:
        read.append(case)
        return np.zeros(10, np.float32)

    arrays = CachedArrays(image, image, budget_bytes=80)
    for case in ("a", "b", "a", "c", "a", "b"):
        arrays.image(case)
    assert read == ["a", "b", "c", "b"]


def test_image_and_label_of_a_case_are_kept_apart() -> None:
    arrays = CachedArrays(lambda c: np.zeros(2, np.float32), lambda c: np.ones(2, np.uint8))
    assert arrays.image("a")[0] == 0
    assert arrays.label("a")[0] == 1


def test_a_snapshots_training_cases_are_labelled_and_unlabelled_in_a_fixed_order() -> None:
    snapshot = CohortSnapshot(
        ("background", "x"),
        (1, 1, 1),
        (8, 8, 8),
        labelled=("d", "a"),
        unlabelled=("c",),
        validation=("b",),
        label_versions={},
        arrays=CachedArrays(lambda c: np.zeros(1, np.float32), lambda c: np.zeros(1, np.uint8)),
    )
    assert snapshot.training == ("a", "c", "d")
    assert snapshot.classes == 2


def test_a_crop_lies_in_the_volume_and_about_its_centre_where_there_is_room() -> None:
    shape, crop, rng = (10, 20, 8), (4, 6, 8), np.random.default_rng(0)
    starts = [draw_start(shape, crop, rng) for _ in range(300)]
    assert {z for z, _, _ in starts} == set(range(7))
    assert {y for _, y, _ in starts} == set(range(15))
    assert {x for _, _, x in starts} == {0}
    assert draw_start(shape, crop, rng, centre=(5, 9, 3)) == (3, 6, 0)
    assert draw_start(shape, crop, rng, centre=(0, 19, 7)) == (0, 14, 0)
