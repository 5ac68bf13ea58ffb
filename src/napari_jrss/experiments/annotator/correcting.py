"""How the simulated annotator corrects one open case, with the commands of the review.

The worst slice comes first. An annotator with two opinions chooses between them first, dispute by
dispute. One who may interpolate draws every fourth slice of a structure that is missing or poor,
and has the program draw those between. What a tool made worse is undone. A structure that is good
enough is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from napari_jrss.app.review.disputed import Choice
from napari_jrss.app.review.editor import BY_HAND
from napari_jrss.app.review.open_case import OpenCase
from napari_jrss.app.review.opinions import Dispute
from napari_jrss.app.review.region_stroke import STEP, Preview
from napari_jrss.app.review.review import Review
from napari_jrss.app.review.strokes import MORE, changed
from napari_jrss.experiments.annotator.costs import CostModel, Effort
from napari_jrss.experiments.annotator.hand import LEAST_VOXELS, Fault, largest_fault, strokes
from napari_jrss.metrics import dice_per_class
from napari_jrss.snapshot import Label

GAP = 4
"""Slices from one that is corrected to the next, where those between are interpolated."""
POOR = 0.6
"""Dice with what the hand believes, below which a structure is drawn anew by interpolation."""
REGION_LEAST = 120
"""Voxels of the smallest fault that is worth a region stroke."""
REGION_GAIN = 10
"""Voxels that a region has to put right on balance, or it is dropped."""
LOOKS_TO_DECIDE = 2
"""Slices that are looked at before a region or a dispute is decided."""
DISPUTE_LEAST = 40
"""Voxels of the smallest dispute that is worth going to."""
MOST_DROPPED = 2
"""Regions that are dropped before the hand turns to the brush."""


@dataclass(frozen=True, eq=False)
class Task:
    """One case to bring to its goal."""

    truth: Label  # the manual label (z, y, x), of which only the Dice is taken
    belief: Label  # what the hand believes it to be
    goal: float  # Dice of each structure at which it is good enough
    axis: int  # across which the annotator goes through the slices
    classes: int
    costs: CostModel


class Correcting:
    """The work on the case that is open for review."""

    def __init__(self, review: Review, task: Task) -> None:
        self._review = review
        self._task = task
        self._brush, self._value = 0, 0
        self.effort = Effort(cases=1)

    @property
    def _case(self) -> OpenCase:
        return self._review.open_case

    def dice(self, label: Label | None = None) -> np.ndarray:
        """Dice of each structure of the label under correction, or of another one."""
        label = self._case.editor.label if label is None else label
        return dice_per_class(label, self._task.truth, self._task.classes)

    def failing(self) -> list[int]:
        """Structures that aren't good enough yet."""
        return [i for i, dice in enumerate(self.dice(), start=1) if dice < self._task.goal]

    # -- drafts

    def look_through(self) -> None:
        """Look at each slice that shows a structure, or should."""
        shown = self._across(self._case.editor.label) > 0
        shown |= self._across(self._task.belief) > 0
        self.effort.looks += int(shown.any((1, 2)).sum())

    # -- two opinions

    def choose_opinions(self) -> None:
        """Go through what teacher and propagated label dispute; take the one that is right."""
        disputed = self._review.disputed
        disputed.compare()
        self._review.wait()
        while self.failing() and (dispute := disputed.dispute) is not None:
            if np.count_nonzero(dispute.mask) < DISPUTE_LEAST:
                return
            self.effort.looks += LOOKS_TO_DECIDE
            self.effort.keys += 1
            disputed.decide(self._better(dispute))
            self._review.wait()

    def _better(self, dispute: Dispute) -> Choice:
        """The opinion that puts most voxels right on balance, or neither."""
        seen = self._case.editor.label[dispute.box][dispute.mask]
        belief = self._task.belief[dispute.box][dispute.mask]
        right: dict[Choice, int] = {
            "neither": int(np.count_nonzero(belief == seen)),
            "first": int(np.count_nonzero(belief == dispute.first)),
            "second": int(np.count_nonzero(belief == dispute.second)),
        }
        return max(right, key=lambda choice: right[choice])

    # -- the region stroke

    def region_strokes(self) -> None:
        """Draw along the largest faults, and take the region that a stroke means where it helps."""
        tried = np.zeros(self._task.truth.shape, bool)
        dropped = 0
        while dropped < MOST_DROPPED and (failing := self.failing()):
            fault = largest_fault(
                self._case.editor.label, self._task.belief, failing, tried, self._task.axis
            )
            if fault is None or fault.size < REGION_LEAST:
                return
            tried[tuple(fault.line.T)] = True
            dropped += not self._region_stroke(fault)

    def _region_stroke(self, fault: Fault) -> bool:
        """Draw one region stroke and turn the wheel while that helps; whether it was taken."""
        region, effort = self._review.tools.region, self.effort
        effort.slices += 1
        effort.strokes += 1
        effort.path_voxels += len(fault.line)
        effort.keys += 1  # the structure, and whether it is added or removed
        region.draw(fault.line, fault.index, adding=fault.adding)
        self._review.wait()
        preview = region.preview
        if preview is None:
            return False
        effort.looks += LOOKS_TO_DECIDE
        gain = self._gain(preview, 0.0)
        # A person sees whether the region is too small or too large.
        step = max((STEP, -STEP), key=lambda by: self._gain(preview, by))
        amount = step
        while (more := self._gain(preview, amount)) > gain and abs(amount) <= MORE:
            region.set_amount(amount)
            gain, amount = more, amount + step
            effort.keys += 1
        effort.keys += 1  # take it or drop it
        if gain < REGION_GAIN:
            region.drop()
            return False
        region.take()
        self._review.wait()
        return True

    def _gain(self, preview: Preview, amount: float) -> int:
        """Voxels that a region puts right, less those that it spoils, by what the hand believes."""
        new = changed(preview.seen, preview.region, amount, self._case.editor.locked)
        belief = self._task.belief[preview.region.box]
        return int(np.count_nonzero(new == belief) - np.count_nonzero(preview.seen == belief))

    # -- the brush

    def brush(self) -> None:
        """Correct slice by slice, the worst first: thick errors, then those a voxel thin."""
        for fine in (False, True):
            left = set(range(self._across(self._task.belief).shape[0]))
            while left and (failing := self.failing()):
                errors = self._errors(failing)
                worst = max(left, key=lambda i: (errors[i], -i))
                if errors[worst] < LEAST_VOXELS:
                    break
                left.remove(worst)
                self.correct_slice(worst, failing, fine=fine)

    def correct_slice(self, number: int, classes: list[int], *, fine: bool) -> int:
        """Correct some structures on one slice; how many strokes that took."""
        label, belief = self._across(self._case.editor.label), self._across(self._task.belief)
        made = 0
        for stroke in strokes(
            label[number].copy(), belief[number], classes, fine, self._task.costs
        ):
            self._choose(stroke.brush, stroke.value)
            label[number][stroke.painted] = stroke.value
            where: list[slice] = [slice(None)] * 3
            where[self._task.axis] = slice(number, number + 1)
            if self._case.editor.sync(BY_HAND, tuple(where)) is not None:
                made += 1
                self.effort.strokes += 1
                self.effort.path_voxels += stroke.path_voxels
        self.effort.slices += made > 0
        return made

    def _choose(self, brush: int, value: int) -> None:
        self.effort.keys += (brush != self._brush) + (value != self._value)
        self._brush, self._value = brush, value

    # -- interpolation

    def interpolate(self) -> None:
        """Correct every fourth slice of what is mostly wrong, and draw the slices between."""
        chosen = [i for i in self.failing() if self._poor(i)]
        if not chosen:
            return
        belief = self._across(self._task.belief)
        for number in self._keys(chosen):
            shown = [i for i in chosen if (belief[number] == i).any()]
            shown += [i for i in chosen if i not in shown and self._shows(number, i)]
            self.correct_slice(number, shown, fine=True)
        for index in chosen:
            interpolate = partial(self._review.tools.interpolate, index, self._task.axis)
            self.try_tool(interpolate, looks=self._between(index))

    def try_tool(self, tool: Callable[[], None], *, looks: int) -> bool:
        """Use a tool, look at what it did on some slices, and undo what isn't better."""
        before, name = np.nanmean(self.dice()), self._case.editor.undo_name
        tool()
        self._review.wait()
        self.effort.clicks += 1
        if self._case.editor.undo_name == name and np.nanmean(self.dice()) == before:
            return False  # there was nothing to change
        self.effort.looks += looks
        if np.nanmean(self.dice()) > before:
            return True
        self._review.tools.undo()
        self.effort.keys += 1
        return False

    def _poor(self, index: int) -> bool:
        """Whether a structure is so wrong that a person draws it anew."""
        label, belief = self._case.editor.label == index, self._task.belief == index
        both = np.count_nonzero(label) + np.count_nonzero(belief)
        return bool(2 * np.count_nonzero(label & belief) < POOR * both)

    def _keys(self, classes: list[int]) -> list[int]:
        """Every fourth slice of each structure, with its first and last one."""
        keys: set[int] = set()
        belief = self._across(self._task.belief)
        for index in classes:
            shown = np.flatnonzero((belief == index).any((1, 2)))
            if shown.size:
                keys |= {*range(int(shown[0]), int(shown[-1]) + 1, GAP), int(shown[-1])}
        return sorted(keys)

    def _between(self, index: int) -> int:
        keys = self._case.editor.painted_slices(index, self._task.axis)
        return keys[-1] - keys[0] + 1 - len(keys) if len(keys) > 1 else 0

    def _shows(self, number: int, index: int) -> bool:
        return bool((self._across(self._case.editor.label)[number] == index).any())

    def _across(self, label: Label) -> Label:
        """A view of a label whose first axis is the one that the annotator goes along."""
        return np.moveaxis(label, self._task.axis, 0)

    def _errors(self, classes: list[int]) -> list[int]:
        """Voxels of each slice that the hand sees as wrong and that concern some structures."""
        label, belief = self._across(self._case.editor.label), self._across(self._task.belief)
        concerned = np.isin(label, classes) | np.isin(belief, classes)
        return [int(n) for n in np.count_nonzero((label != belief) & concerned, axis=(1, 2))]
