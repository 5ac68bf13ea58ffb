"""Choose grid and training for a cohort and a machine, and say why, in plain words.

A plan is the finest voxel size at which pre-training and one round end within a budget of time and
fit into the memory. The size of an axis is never below that of the scans.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

from napari_jrss.config import PreprocessingConfig, Shape, TrainingConfig, Triple, preset
from napari_jrss.errors import ScanError
from napari_jrss.labels import LabelTable
from napari_jrss.preprocess.cost import Cost, Machine, training_cost
from napari_jrss.preprocess.facts import ScanFacts
from napari_jrss.times import duration

Level: TypeAlias = Literal["quick", "balanced", "fine"]

BUDGETS_S: dict[Level, float] = {"quick": 20 * 60, "balanced": 2 * 3600, "fine": 10 * 3600}
"""Seconds for the pre-training and one round, by level."""

FEWEST_VOXELS = 30
"""A structure with fewer voxels on the training grid is hard to learn."""

_NIGHT_S = 10 * 3600
_MULTIPLE = 8  # networks halve the grid three times
_SLACK_VOXELS = 0.05  # a rounding error of a header must not enlarge the grid by a voxel
_TENTH_MM = 0.1
_COARSEST_MM = 20.0
_COARSEST = 32  # voxels along the longest axis: no coarser grid is tried
# A crop that sees less of the grid doesn't know where it is (docs/dev/choices.md).
_CROP_SHARE = 0.08
# Steps for each structure: as many as the budget allows; with fewer, a coarser grid is better.
_STEPS = (150, 100, 60, 40, 20)
# With so many steps for each structure, images that look different teach more than they cost
# (docs/dev/choices.md); then this share of the labelled scans is changed in the pre-training.
_AMPLE_STEPS, _CHANGED_LOOKS = 300, 0.5
# Learning at the scans' own voxels may take this part of the budget; else a finer grid is better.
_OWN_VOXELS_SHARE = 0.4
# From a grid up to so many times coarser than the scans they are learned as well or better, where
# crops of the finest grid would see less of it than usual (docs/dev/choices.md).
_COARSER = 2.0
_MEMORY_SHARE = 0.7  # other programs need some, too
# The box around head or body is worth it if it has less than this part of the voxels, and holds
# the labels. With less than the least part it is rather one bright structure.
_LEAST, _MUCH_SMALLER, _ALL_INSIDE = 0.2, 0.5, 0.999
_ANY_CT = (-1000.0, 1000.0)  # HU


class Plan(BaseModel):
    """How a cohort reaches the training grid and is trained on, kept with a project.

    Attributes
    ----------
    level, budget_s
        What was asked for: its name, and the seconds for the pre-training and one round.
    wishes
        Settings of the training grid that were given, which the plan keeps.
    preprocessing
        All settings of the training grid.
    training
        Settings that replace those of the preset ``fast``, nested as in
        :class:`~napari_jrss.config.TrainingConfig`.
    shape, spacing_mm
        The training grid (z, y, x) that this leads to.
    pretraining_s, round_s, memory
        Expected seconds of the pre-training and of one round, and bytes at the peak.
    fits
        Whether it keeps to the budget and to the memory.
    small
        Structures that have fewer than 30 voxels on this grid where they are smallest, and how
        many.
    reasons
        Why it is so, a sentence each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    level: Level
    budget_s: float
    wishes: PreprocessingConfig
    preprocessing: PreprocessingConfig
    training: dict[str, Any] = {}
    shape: Shape
    spacing_mm: Triple
    pretraining_s: float
    round_s: float
    memory: float
    fits: bool
    small: dict[str, int] = {}
    reasons: tuple[str, ...] = ()

    def config(self) -> TrainingConfig:
        """The settings of the training."""
        return _config(self.training)

    @property
    def grid(self) -> str:
        """Voxel size and shape in words."""
        sizes = [f"{s:.3g}" for s in self.spacing_mm]
        spacing = sizes[0] if len(set(sizes)) == 1 else " x ".join(sizes)
        return f"{spacing} mm, {' x '.join(map(str, self.shape))} voxels"

    def line(self) -> str:
        """The plan in one line."""
        return (
            f"{self.level}: {self.grid} (z y x); pre-training about "
            f"{duration(self.pretraining_s)}, a round {duration(self.round_s)}; "
            f"{self.memory / 2**30:.1f} GiB of memory"
            + ("" if self.fits else f"; more than {duration(self.budget_s)} or the memory allow")
        )


def budget_seconds(text: str) -> float:
    """Seconds of a budget such as ``20min``, ``2h`` or ``night`` (10 hours)."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(min|h)\s*", text)
    if text.strip() == "night":
        return _NIGHT_S
    if found is None or float(found[1]) == 0:
        raise ScanError(f"{text!r}: a budget is such as 20min, 2h or night")
    return float(found[1]) * {"min": 60, "h": 3600}[found[2]]


def make_plan(
    facts: Sequence[ScanFacts],
    table: LabelTable,
    machine: Machine,
    level: Level = "balanced",
    budget_s: float | None = None,
    wishes: PreprocessingConfig | None = None,
    extent_mm: Triple | None = None,
    images: int = 1,
) -> Plan:
    """The finest plan that keeps to a budget.

    Parameters
    ----------
    facts
        Of the scans that can be read, see :func:`~napari_jrss.preprocess.facts.scan_facts`.
    table
        The structures.
    machine
        What will train.
    level, budget_s
        The budget by name, or in seconds.
    wishes
        Settings that were given, and that the plan keeps; it chooses those that weren't.
    extent_mm
        Extent (z, y, x) of the grid, where it is settled.
    images
        Number of images of each case.

    Raises
    ------
    ScanError
        No scan can be read.
    """
    if not facts:
        raise ScanError("no scan can be read")
    wishes = wishes or PreprocessingConfig()
    chosen, reasons = _frame(facts, wishes)
    budget = budget_s or BUDGETS_S[level]
    labelled = sum(bool(each.structures_ml) for each in facts)
    extent = _extent(facts, chosen["crop"]) if extent_mm is None else np.array(extent_mm)
    native = np.median([each.spacing_mm for each in facts], axis=0)
    largest = max(math.prod(each.shape) for each in facts)
    sizes = (len(table.names), len(facts), len(facts) - labelled, machine, images)
    most_memory = _MEMORY_SHARE * machine.memory

    def on_grid(spacing: Triple) -> _Grid:
        """The training on a grid of this spacing, with as many steps as the budget allows."""
        shape = wishes.shape or _shape(extent, spacing)
        finer = float((np.prod(spacing) / np.prod(native)) ** (1 / 3))
        shortest = _config(_training(shape, 1))
        own = training_cost(shortest, shape, *sizes, finer, largest)
        own_s = own.seconds - training_cost(shortest, shape, *sizes).seconds
        own_voxels = own_s <= _OWN_VOXELS_SHARE * budget and own.memory <= most_memory
        for steps in _STEPS:
            training = _training(shape, steps)
            if not own_voxels:
                training["fine"] = {"steps": 0}
            config = _config(training)
            cost = training_cost(config, shape, *sizes, finer, largest)
            fits = cost.seconds <= budget and cost.memory <= most_memory
            if fits:
                break
        reason = ""
        if finer >= config.fine.least_finer:
            why = (
                "needs more memory"
                if own.memory > most_memory
                else f"would take more than {100 * _OWN_VOXELS_SHARE:.0f} % of the time"
            )
            reason = (
                f"after each training, {config.fine.steps} steps at the scans' own voxels, so that "
                "labels are as fine as these"
                if own_voxels
                else "labels are interpolated from this grid to the scans' own voxels: learning "
                f"these, too, {why}"
            )
        else:
            own_voxels = False
        usual = preset("fast").segmentation
        whole_crops = math.prod(shape) * usual.crop_fraction**3 <= usual.crop_voxels
        small = _small(facts, table, spacing)
        return _Grid(
            *(spacing, shape, training, cost, fits, finer, own_voxels, whole_crops, small, reason)
        )

    grids = map(on_grid, _spacings(native, wishes))
    grid = finest = _finest(grids)
    if level != "fine":
        grid = _coarser(grids, finest) or finest
    spacing, shape, training, cost = grid.spacing, grid.shape, grid.training, grid.cost
    if grid.reason:
        reasons.append(grid.reason)
    chosen |= {"spacing_mm": spacing}
    if wishes.prealign == "none" and chosen["crop"] != "labelled":
        chosen |= {"shape": shape}
    reasons += _why(native, grid, machine, budget, coarser=grid is not finest)
    structures = len(table.names) - 1
    if structures * _AMPLE_STEPS <= preset("fast").segmentation.minimum_steps:
        training["segmentation"] = {
            **training.get("segmentation", {}),
            "strong_intensity": _CHANGED_LOOKS,
        }
        reasons.append(
            f"{100 * _CHANGED_LOOKS:.0f} % of the labelled scans are made to look different while "
            "training, since few structures leave time for it"
        )
    if grid.small:
        reasons.append(
            f"{len(grid.small)} structures have fewer than {FEWEST_VOXELS} voxels and are hard to "
            "learn: a longer budget or a smaller spacing keeps them larger"
        )
    return Plan(
        level=level,
        budget_s=budget,
        wishes=wishes,
        preprocessing=PreprocessingConfig.model_validate(
            {**wishes.model_dump(exclude_unset=True), **chosen}
        ),
        training=training,
        shape=shape,
        spacing_mm=spacing,
        pretraining_s=cost.pretraining_s,
        round_s=cost.round_s,
        memory=cost.memory,
        fits=grid.fits,
        small=grid.small,
        reasons=tuple(reasons),
    )


def make_plans(
    facts: Sequence[ScanFacts],
    table: LabelTable,
    machine: Machine,
    wishes: PreprocessingConfig | None = None,
    budget_s: float | None = None,
    extent_mm: Triple | None = None,
    images: int = 1,
) -> dict[Level, Plan]:
    """The plan of each level, or the one for a budget; see :func:`make_plan`."""
    levels: tuple[Level, ...] = ("balanced",) if budget_s else tuple(BUDGETS_S)
    return {
        level: make_plan(facts, table, machine, level, budget_s, wishes, extent_mm, images)
        for level in levels
    }


@dataclass(frozen=True)
class _Grid:
    """A training grid and what training on it costs.

    Attributes
    ----------
    finer
        How many times finer than it the scans' own voxels are.
    own_voxels
        Whether these are learned, too.
    whole_crops
        Whether a crop sees as much of it as the settings say.
    small
        Voxels of the structures that have too few.
    reason
        What becomes of the scans' own voxels; empty if the grid is as fine.
    """

    spacing: Triple
    shape: Shape
    training: dict[str, Any]
    cost: Cost
    fits: bool
    finer: float
    own_voxels: bool
    whole_crops: bool
    small: dict[str, int]
    reason: str


def _finest(grids: Iterator[_Grid]) -> _Grid:
    """The first grid that fits, or the last one."""
    for grid in grids:
        if grid.fits or max(grid.shape) <= _COARSEST:
            break
    return grid


def _coarser(grids: Iterator[_Grid], finest: _Grid) -> _Grid | None:
    """A grid that follows the finest one and is better: crops see more of it.

    The scans' own voxels are learned from it, and it loses no structure. The first of which a crop
    sees as much as usual, or the coarsest of them.
    """
    found = None
    for grid in grids:
        if not finest.fits or finest.whole_crops or grid.finer > _COARSER:
            break
        if grid.fits and grid.own_voxels and len(grid.small) <= len(finest.small):
            found = grid
            if grid.whole_crops:
                break
    return found


def _frame(
    facts: Sequence[ScanFacts], wishes: PreprocessingConfig
) -> tuple[dict[str, Any], list[str]]:
    """Crop and intensities, with the reasons."""
    chosen: dict[str, Any] = {"crop": wishes.crop}
    reasons = []
    if "crop" not in wishes.model_fields_set and wishes.prealign == "none" and not wishes.resize:
        share = float(np.prod(_extent(facts, "foreground")) / np.prod(_extent(facts, "center")))
        inside = [each.label_inside for each in facts if each.label_inside is not None]
        if _LEAST < share < _MUCH_SMALLER and inside and min(inside) >= _ALL_INSIDE:
            chosen["crop"] = "foreground"
            reasons.append(
                f"head or body take up {100 * share:.0f} % of the volume that holds all scans, so "
                "the grid is centred on them"
            )
    known = [each for each in facts if each.ct is not None]
    clips = {"clip_values", "clip_percentiles"} & wishes.model_fields_set
    if known and all(each.ct for each in known) and not clips:
        windows = [each.window for each in known if each.window is not None]
        low, high = (min(w[0] for w in windows), max(w[1] for w in windows)) if windows else _ANY_CT
        low, high = math.floor(low), math.ceil(high)
        if low < high:
            chosen["clip_values"] = (low, high)
            what = "99 % of the values in the structures" if windows else "tissue and air"
            reasons.append(f"the scans are CT: clipped to {low} to {high} HU, which holds {what}")
    return chosen, reasons


def _extent(facts: Sequence[ScanFacts], crop: str) -> np.ndarray[Any, Any]:
    """Extent (z, y, x) in mm that holds all scans, or the head or body in each of them."""
    whole = np.array([each.extent_mm for each in facts])
    if crop != "foreground":
        return np.asarray(whole.max(0))
    read = np.array([each.foreground_mm is not None for each in facts])
    inner = np.array([each.foreground_mm or each.extent_mm for each in facts])
    if read.any():  # the others are taken to be filled as much as the fullest that was read
        share = (inner[read] / whole[read]).max(0)
        inner[~read] = whole[~read] * share
    return np.asarray(inner.max(0))


def _spacings(native: np.ndarray[Any, Any], wishes: PreprocessingConfig) -> Iterator[Triple]:
    """Voxel sizes (z, y, x) in mm, the finest first."""
    if wishes.spacing_mm is not None:
        yield wishes.spacing_mm
        return
    finest = float(native.min())
    if wishes.shape is not None:
        z, y, x = native.tolist()
        yield z, y, x
        return
    coarser = np.arange(math.floor(finest / _TENTH_MM) + 1, _COARSEST_MM / _TENTH_MM) * _TENTH_MM
    for size in (finest, *coarser):
        z, y, x = (round(float(max(n, size)), 6) for n in native)
        yield z, y, x


def _shape(extent: np.ndarray[Any, Any], spacing: Triple) -> Shape:
    voxels = extent / np.array(spacing) - _SLACK_VOXELS
    z, y, x = (max(1, int(n)) * _MULTIPLE for n in np.ceil(voxels / _MULTIPLE))
    return z, y, x


def _training(shape: Shape, steps: int) -> dict[str, Any]:
    """Settings of the training that a grid needs, where they aren't the usual ones."""
    usual = preset("fast").segmentation
    changes: dict[str, Any] = {}
    crop = math.ceil(_CROP_SHARE * math.prod(shape))
    if crop > usual.crop_voxels:
        changes["crop_voxels"] = crop
    if steps != usual.steps_per_structure:
        changes["steps_per_structure"] = steps
    return {"segmentation": changes} if changes else {}


def _config(changes: dict[str, Any]) -> TrainingConfig:
    settings = preset("fast").model_dump()
    for name, values in changes.items():
        settings[name] |= values
    return TrainingConfig.model_validate(settings)


def _small(facts: Sequence[ScanFacts], table: LabelTable, spacing: Triple) -> dict[str, int]:
    """Voxels of each structure that has too few of them where it is smallest."""
    voxel_ml = math.prod(spacing) / 1000
    found = {}
    for index, name in enumerate(table.names[1:], start=1):
        volumes = [v for each in facts if (v := each.structures_ml.get(index))]
        if volumes and (voxels := round(min(volumes) / voxel_ml)) < FEWEST_VOXELS:
            found[name] = voxels
    return found


def _why(
    native: np.ndarray[Any, Any], grid: _Grid, machine: Machine, budget: float, *, coarser: bool
) -> list[str]:
    where = f"on {machine.cores} cores" if machine.device == "cpu" else "on the GPU"
    known = "as this machine has trained before" if machine.known else "by a usual machine's speed"
    reasons = []
    if np.allclose(native, grid.spacing, atol=0.01):
        reasons.append("the voxels are as small as the scans' own")
    else:
        own = f"the scans' own are {' x '.join(f'{n:.3g}' for n in native)} mm"
        reasons.append(
            f"a grid up to {_COARSER:.0f} times coarser than the scans, so that training sees more "
            f"of it at a time; their own voxels are learned from there; {own}"
            if coarser
            else "the smallest voxels with which pre-training and a round take at most "
            f"{duration(budget)} {where} ({known}); {own}"
        )
    changed = grid.training.get("segmentation", {})
    if "crop_voxels" in changed:
        reasons.append(
            f"training sees {changed['crop_voxels']} voxels at a time, {100 * _CROP_SHARE:.0f} % "
            "of the grid, since less doesn't show where it is"
        )
    if "steps_per_structure" in changed:
        reasons.append(f"{changed['steps_per_structure']} steps for each structure, to save time")
    if not grid.fits:
        over = grid.cost.memory > _MEMORY_SHARE * machine.memory
        reasons.append(
            "no voxel size fits into the memory of this machine"
            if over
            else f"no voxel size keeps to {duration(budget)}"
        )
    return reasons
