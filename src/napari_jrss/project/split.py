"""Which cases train, validate and test: whole subject groups, the same for every N."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from napari_jrss.errors import ProjectError


@dataclass(frozen=True)
class Assignment:
    """What :func:`split_by_group` decides; every case is in exactly one of the first four."""

    # Case ids, sorted; named as the values of `Split`.
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    unused: tuple[str, ...]
    labelled: tuple[str, ...]  # the N of the training cases whose labels are in force


def split_by_group(
    groups: Mapping[str, str | None],
    with_label: Collection[str],
    *,
    labelled: int | None,
    validation: int,
    test: int,
    training: int | None,
    seed: int,
) -> Assignment:
    """Assign cases to test, validation and training; no subject group is in two of them.

    The groups are shuffled by the seed alone. The test set is filled first, then validation, then
    training. A group that is larger than the number of cases still missing goes to a later set;
    only when no other group is left is it cut, and its other cases are unused. Test and validation
    take cases with labels only (an unlabelled scan of the same subject is unused). `labelled` cases
    are chosen last, from the start of one fixed order, so the labelled set of a smaller N lies in
    that of a larger N.

    A group of None is a subject with this scan alone. For the numbers see :meth:`Project.split`;
    fewer cases than asked for are a :class:`ProjectError`.
    """
    asked = {"test": test, "validation": validation, "training": training, "labelled": labelled}
    for name, number in asked.items():
        if number is not None and number < 0:
            raise ProjectError(f"a split can't have {number} {name} cases")
    if seed < 0:
        raise ProjectError(f"the seed is {seed}, but it can't be negative")
    if training is not None and labelled is not None and labelled > training:
        raise ProjectError(
            f"{labelled} labelled cases were asked for among {training} training cases"
        )
    members: dict[tuple[bool, str], list[str]] = {}
    for case_id in sorted(groups):
        group = groups[case_id]
        members.setdefault((True, case_id) if group is None else (False, group), []).append(case_id)
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0]))
    keys = sorted(members)
    pool = [
        [members[keys[g]][i] for i in rng.permutation(len(members[keys[g]]))]
        for g in rng.permutation(len(keys))
    ]

    known = frozenset(with_label)
    unused: list[str] = []
    sets: dict[str, list[str]] = {}
    for name, number in (("test", test), ("validation", validation)):
        sets[name], pool = _fill(pool, number, known, unused)
        if len(sets[name]) < number:
            raise ProjectError(
                f"a split with {test} test and {validation} validation cases needs more labelled "
                f"cases than there are ({len(known & set(groups))}, whole subject groups kept "
                "together)"
            )
    # Groups with labels first: a limit K must not leave out the few labels that there are.
    pool.sort(key=lambda group: known.isdisjoint(group))
    everyone = frozenset(groups)
    wanted = sum(map(len, pool)) if training is None else training
    train, left = _fill(pool, wanted, everyone, unused)
    if training is not None and len(train) < training:
        raise ProjectError(
            f"{training} training cases were asked for, {len(train)} are left beside {test} test "
            f"and {validation} validation cases"
        )
    unused += [case_id for group in left for case_id in group]
    # One case of each subject before a second of any: the first N labels differ most.
    position = {case_id: i for group in pool for i, case_id in enumerate(group)}
    candidates = sorted((c for c in train if c in known), key=lambda c: position[c])
    if labelled is not None and labelled > len(candidates):
        raise ProjectError(
            f"{labelled} labelled cases were asked for, {len(candidates)} of the {len(train)} "
            "training cases have a label"
        )
    return Assignment(
        train=tuple(sorted(train)),
        validation=tuple(sorted(sets["validation"])),
        test=tuple(sorted(sets["test"])),
        unused=tuple(sorted(unused)),
        labelled=tuple(sorted(candidates[:labelled])),
    )


def _fill(
    pool: Sequence[list[str]], number: int, eligible: frozenset[str], unused: list[str]
) -> tuple[list[str], list[list[str]]]:
    """Take `number` eligible cases in whole groups; the rest of a taken group is unused."""
    taken: list[str] = []
    left: list[list[str]] = []
    for group in pool:
        fitting = [case_id for case_id in group if case_id in eligible]
        if fitting and len(taken) + len(fitting) <= number:
            taken += fitting
            unused += [case_id for case_id in group if case_id not in eligible]
        else:
            left.append(group)
    if len(taken) < number:
        for i, group in enumerate(left):
            fitting = [case_id for case_id in group if case_id in eligible]
            if fitting:  # larger than what is missing: cut it
                cut = fitting[: number - len(taken)]
                taken += cut
                unused += [case_id for case_id in group if case_id not in cut]
                del left[i]
                break
    return taken, left
