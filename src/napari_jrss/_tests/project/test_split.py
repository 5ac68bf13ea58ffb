"""Splits keep subject groups together, are nested in N, and say when there are too few cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from napari_jrss.errors import ProjectError
from napari_jrss.project.split import Assignment, split_by_group


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[dict[str, str | None], list[str]]:
    """Groups of up to 3 cases, cases without a group, and which cases have a label."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=12))
    groups: dict[str, str | None] = {}
    for g, size in enumerate(sizes):
        alone = size == 1 and draw(st.booleans())
        for i in range(size):
            groups[f"case{g:02d}_{i}"] = None if alone else f"subject{g}"
    known = [case_id for case_id in groups if draw(st.integers(0, 4)) > 0]
    return groups, known


def assign(
    cohort: tuple[dict[str, str | None], list[str]],
    labelled: int | None,
    validation: int,
    test: int,
    training: int | None,
    seed: int = 0,
) -> Assignment | None:
    groups, known = cohort
    try:
        return split_by_group(
            groups,
            known,
            labelled=labelled,
            validation=validation,
            test=test,
            training=training,
            seed=seed,
        )
    except ProjectError:
        return None


@given(
    cohort=cohorts(),
    validation=st.integers(0, 3),
    test=st.integers(0, 5),
    training=st.none() | st.integers(0, 12),
    seed=st.integers(0, 5),
)
def test_sides_share_no_subject_and_labelled_sets_are_nested(
    cohort: tuple[dict[str, str | None], list[str]],
    validation: int,
    test: int,
    training: int | None,
    seed: int,
) -> None:
    groups, known = cohort
    smaller: Assignment | None = None
    for n in range(6):
        now = assign(cohort, n, validation, test, training, seed)
        if now is None:
            continue
        sides = (now.train, now.validation, now.test, now.unused)
        assert sorted(c for side in sides for c in side) == sorted(groups)
        assert (len(now.validation), len(now.test)) == (validation, test)
        assert training is None or len(now.train) == training
        assert len(now.labelled) == n
        assert set(now.labelled) <= set(now.train) & set(known)
        assert {*now.validation, *now.test} <= set(known)
        subjects = [{groups[c] or c for c in side} for side in sides[:3]]
        assert not subjects[0] & subjects[1]
        assert not subjects[0] & subjects[2]
        assert not subjects[1] & subjects[2]
        if smaller is not None:
            assert set(smaller.labelled) < set(now.labelled)
            assert (smaller.train, smaller.validation, smaller.test) == sides[:3]
        smaller = now


def test_the_order_of_the_cases_does_not_matter_but_the_seed_does() -> None:
    groups: dict[str, str | None] = {f"c{i:02d}": f"s{i // 2}" for i in range(40)}
    backwards = dict(reversed(groups.items()))
    first = assign((groups, list(groups)), 3, 4, 10, 20)
    assert first is not None
    assert assign((backwards, list(backwards)), 3, 4, 10, 20) == first
    other = assign((groups, list(groups)), 3, 4, 10, 20, seed=1)
    assert other is not None
    assert other.test != first.test


def test_the_first_labelled_cases_are_of_different_subjects() -> None:
    groups: dict[str, str | None] = {f"c{i:02d}": f"s{i // 2}" for i in range(40)}
    split = assign((groups, list(groups)), 5, 4, 10, 20)
    assert split is not None
    assert len({groups[c] for c in split.labelled}) == 5


def test_a_limit_keeps_the_few_labels_there_are() -> None:
    groups: dict[str, str | None] = {f"c{i:03d}": None for i in range(100)}
    split = assign((groups, ["c017", "c058", "c099"]), 3, 0, 0, 10)
    assert split is not None
    assert split.labelled == ("c017", "c058", "c099")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((5, 4, 40, 30), "needs more labelled cases"),
        ((5, 0, 0, 30), "30 training cases were asked for, 10"),
        ((9, 1, 2, 8), "9 labelled cases were asked for among 8"),
        ((9, 1, 2, None), "9 labelled cases were asked for, 7 of the 7"),
        ((-1, 0, 0, None), "-1 labelled"),
    ],
)
def test_too_few_cases_are_one_clear_error(
    numbers: tuple[int, int, int, int | None], message: str
) -> None:
    labelled, validation, test, training = numbers
    groups: dict[str, str | None] = {f"c{i}": None for i in range(10)}
    with pytest.raises(ProjectError, match=message):
        split_by_group(
            groups,
            list(groups),
            labelled=labelled,
            validation=validation,
            test=test,
            training=training,
            seed=0,
        )
