"""What one training run may see: a fixed set of cases, and which of them come next.

Nothing here touches a project: a :class:`CohortSnapshot` is taken from one, and a running
round works on the labels as they were then. Sampling depends on nothing but the seed, the
stage and the step, so a resumed run draws what the straight run would have drawn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Label = NDArray[np.uint8] | NDArray[np.uint16]


class CaseArrays(Protocol):
    """Where a run reads its volumes from, by case id."""

    def image(self, case_id: str) -> Image:
        """Preprocessed image (z, y, x) on the training grid."""
        ...

    def label(self, case_id: str) -> Label:
        """Class indices (z, y, x) on the training grid."""
        ...


@dataclass
class CachedArrays:
    """Volumes kept in memory up to a budget, so that small cohorts are read from disk once.

    Parameters
    ----------
    read_image, read_label
        Read one case's volume from disk.
    budget_bytes
        Least recently used volumes leave when the total would pass this many bytes.
    """

    read_image: Callable[[str], Image]
    read_label: Callable[[str], Label]
    budget_bytes: int = 2**30
    _kept: OrderedDict[tuple[str, str], NDArray[np.generic]] = field(
        default_factory=OrderedDict, repr=False
    )

    def image(self, case_id: str) -> Image:
        return self._get("image", case_id, self.read_image)

    def label(self, case_id: str) -> Label:
        return self._get("label", case_id, self.read_label)

    def _get(self, kind: str, case_id: str, read: Callable[[str], NDArray]) -> NDArray:  # type: ignore[type-arg]
        key = (kind, case_id)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        array = read(case_id)
        self._kept[key] = array
        while (
            len(self._kept) > 1 and sum(a.nbytes for a in self._kept.values()) > self.budget_bytes
        ):
            self._kept.popitem(last=False)
        return array


@dataclass(frozen=True)
class CohortSnapshot:
    """The cases of one run: N labelled, J unlabelled, and the validation cases.

    Attributes
    ----------
    class_names
        Names of the C output classes; index 0 is the background.
    spacing_mm
        Voxel size (z, y, x) of the training grid in mm.
    shape
        Training grid (z, y, x) in voxels.
    labelled, unlabelled, validation
        Case ids. Validation cases have labels and never train.
    label_versions
        Label version used for each labelled and validation case.
    arrays
        Where the volumes come from.
    """

    class_names: tuple[str, ...]
    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    validation: tuple[str, ...]
    label_versions: Mapping[str, str]
    arrays: CaseArrays

    @property
    def training(self) -> tuple[str, ...]:
        """All K = N + J training cases, in a fixed order."""
        return tuple(sorted((*self.labelled, *self.unlabelled)))

    @property
    def classes(self) -> int:
        """Number of classes C, background included."""
        return len(self.class_names)


def step_seed(seed: int, stage: str, step: int) -> int:
    """A seed of 63 bits that depends on nothing but its arguments."""
    return int(
        np.random.SeedSequence([seed, crc32(stage.encode()), step]).generate_state(1, np.uint64)[0]
        >> np.uint64(1)
    )


def draw_cases(cases: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """Draw `count` cases, without repetition while there are enough of them."""
    if not cases:
        raise ValueError("there is no case to draw from")
    repeats = -(-count // len(cases))
    pool = [c for _ in range(repeats) for c in rng.permutation(np.asarray(cases, dtype=object))]
    return [str(case) for case in pool[:count]]


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
