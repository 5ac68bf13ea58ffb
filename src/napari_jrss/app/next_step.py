"""Where the work on a project stands, from the import to the export, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from napari_jrss.app.rounds.train import interrupted_round, rounds_left
from napari_jrss.project.project import Project
from napari_jrss.project.records import Case, Round, Split

TRAIN_AFTER = 3
"""With so many labels that the teacher hasn't seen, training comes before further labels."""


class Step(StrEnum):
    """The steps of the work, in order."""

    IMPORT = "import"
    LABEL = "label"
    TRAIN = "train"
    REVIEW = "review"
    EXPORT = "export"


class StepState(StrEnum):
    """Where a step stands."""

    LATER = "later"
    NEXT = "next"
    RUNNING = "running"
    DONE = "done"


@dataclass(frozen=True)
class WorkState:
    """The state of each step, and the one next action.

    Attributes
    ----------
    states
        By step, in the order of the work.
    details
        By step, what there is of it, such as "12 cases"; empty if there is nothing.
    next
        The step that the action belongs to.
    action
        What to do next, in one sentence.
    """

    states: dict[Step, StepState]
    details: dict[Step, str]
    next: Step
    action: str


def work_state(
    project: Project | None,
    *,
    importing: bool = False,
    training: bool = False,
    first: str | None = None,
) -> WorkState:
    """Where the work stands.

    Parameters
    ----------
    project
        The open project; None: nothing is imported yet.
    importing, training
        Whether scans are being read, and whether a round runs, in this program.
    first
        The case to label first, where that is known, see
        :func:`~napari_jrss.app.next_case.first_case`.
    """
    cases = [] if project is None else project.cases()
    to_train = [case for case in cases if case.split is Split.TRAIN]
    labelled = [case for case in to_train if case.labelled]
    teacher = None if project is None else project.teacher
    left = len(to_train) - len(labelled)
    # what a quick round learned is still new to the next training
    trained = None if project is None or teacher is None else project.before_quick(teacher)
    fresh = _unseen(labelled, trained)
    step, action = _next(project, to_train, labelled, teacher, len(fresh), training, first)
    if importing:
        step, action = Step.IMPORT, "The scans are being read."
    reached = {
        Step.IMPORT: bool(cases),
        Step.LABEL: bool(labelled) and not (importing and teacher is None),
        Step.TRAIN: teacher is not None,
        Step.REVIEW: teacher is not None and left == 0,
        Step.EXPORT: False,
    }
    running = {Step.IMPORT: importing, Step.TRAIN: training}
    states = {
        each: StepState.RUNNING
        if running.get(each)
        else StepState.NEXT
        if each is step
        else StepState.DONE
        if reached[each]
        else StepState.LATER
        for each in Step
    }
    details = {
        Step.IMPORT: _count(len(cases), "case") if cases else "",
        Step.LABEL: f"{len(labelled)} labelled" if to_train else "",
        Step.TRAIN: "" if teacher is None else f"round {teacher.number}",
        Step.REVIEW: f"{left} left" if teacher is not None else "",
        Step.EXPORT: "",
    }
    return WorkState(states, details, step, action)


def _next(
    project: Project | None,
    to_train: list[Case],
    labelled: list[Case],
    teacher: Round | None,
    fresh: int,
    training: bool,
    first: str | None,
) -> tuple[Step, str]:
    left = len(to_train) - len(labelled)
    if project is None:
        return Step.IMPORT, "Import a folder of scans, or open a project."
    if not to_train:
        return Step.IMPORT, "The project has no case to train on: add scans."
    if training:
        return Step.REVIEW, (
            "A training runs. Meanwhile you can label further cases for the next one."
            if left
            else "A training runs, and every case has a label. Wait for its end."
        )
    if interrupted_round(project) is not None or rounds_left(project):
        return Step.TRAIN, "The training was interrupted: resume it."
    if not labelled:
        which = f"{first}, the most typical scan" if first else "a first scan"
        return Step.LABEL, (
            f"Label {which}: paint it, or begin with prompts, TotalSegmentator or a file; then "
            "accept it."
        )
    if teacher is None:
        few = " Three to five make a better start." if len(labelled) < 3 and left else ""
        return Step.TRAIN, (
            f"Train a first teacher on {_count(len(labelled), 'labelled case')}.{few}"
        )
    if fresh and (fresh >= TRAIN_AFTER or not left):
        new = "1 label is" if fresh == 1 else f"{fresh} labels are"
        return Step.TRAIN, f"{new} new since the last training: train again."
    if left:
        return Step.REVIEW, (f"Correct and accept the next case ({left} left).")
    return Step.EXPORT, "Every training case has a label: export the labels."


def _unseen(labelled: list[Case], teacher: Round | None) -> list[Case]:
    """Labelled cases whose label the present teacher wasn't trained on."""
    if teacher is None:
        return labelled
    return [c for c in labelled if teacher.label_versions.get(c.case_id) != c.label_version]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")
