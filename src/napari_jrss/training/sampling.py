"""Which cases and pairs a step trains on: a function of the seed, the stage and the step alone.

A resumed run therefore draws what the straight run would have drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np

from napari_jrss.config import Shape


def step_seed(seed: int, stage: str, step: int) -> int:
    """A seed of 63 bits that depends on nothing but its arguments."""
    return int(
        np.random.SeedSequence([seed, crc32(stage.encode()), step]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )


def draw_cases(cases: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Draw `count` cases, without repetition as long as there are enough of them."""
    if not cases:
        raise ValueError("there is no case to draw from")
    repeats = -(-count // len(cases))
    pool = [c for _ in range(repeats) for c in rng.permutation(np.asarray(cases, dtype=object))]
    return [str(case) for case in pool[:count]]


def draw_start(
    shape: Shape, crop: Shape, rng: np.random.Generator, centre: Shape | None = None
) -> Shape:
    """First voxel (z, y, x) of a crop that lies in the volume: about `centre`, or anywhere."""
    room = [size - n for size, n in zip(shape, crop, strict=True)]
    if centre is None:
        z, y, x = (int(rng.integers(most + 1)) for most in room)
    else:
        z, y, x = (
            min(max(0, at - n // 2), most) for at, n, most in zip(centre, crop, room, strict=True)
        )
    return z, y, x


def draw_pairs(
    cases: Sequence[str],
    supervised: Sequence[str],
    count: int,
    supervised_fraction: float,
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """Draw ordered pairs (moving, fixed) of different cases.

    Parameters
    ----------
    cases
        All training cases (at least two).
    supervised
        Those of them that have a label or an accepted pseudo-label.
    count
        Number of pairs.
    supervised_fraction
        Fraction of the pairs drawn from `supervised` on both sides, as far as it holds two
        cases, on average over the draws; the other pairs are random.
    """
    if len(cases) < 2:
        raise ValueError("registration needs at least two training cases")
    from_supervised, rest = divmod(count * supervised_fraction, 1)
    if len(supervised) < 2:
        from_supervised = 0
    elif rest > 0:
        from_supervised += rng.random() < rest
    pairs = []
    for i in range(count):
        pool = supervised if i < from_supervised else cases
        moving, fixed = rng.choice(len(pool), size=2, replace=False)
        pairs.append((pool[moving], pool[fixed]))
    return pairs
