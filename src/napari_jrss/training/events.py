"""What long work says while it runs: small frozen messages that survive a trip as JSON."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True)


class StageStarted(_Event):
    """A stage begins, or goes on at `first_step`, with the `best` so far, after an interruption."""

    kind: Literal["stage_started"] = "stage_started"
    stage: str
    steps: int
    first_step: int = 0
    best: float | None = None


class StepEnd(_Event):
    """One optimiser step; `losses` holds the total and its parts, before weighting."""

    kind: Literal["step_end"] = "step_end"
    stage: str
    step: int
    steps: int
    losses: dict[str, float]
    seconds: float


class EpochEnd(_Event):
    """A validated epoch; `validation` is the mean foreground Dice, `best` the best so far."""

    kind: Literal["epoch_end"] = "epoch_end"
    stage: str
    epoch: int
    step: int
    losses: dict[str, float]
    validation: float | None
    best: float | None


class CaseScreened(_Event):
    """The teacher's pseudo-label of one case, held against tau (Eq. 3)."""

    kind: Literal["case_screened"] = "case_screened"
    stage: str
    case_id: str
    accepted: bool
    kept_fraction: float
    class_confidence: list[float | None]
    classes_passed: list[bool]


class CaseJudged(_Event):
    """The teacher's label of one labelled case, held against the person's.

    `dice` is that of each foreground class, None where the person's label has none of it.
    """

    kind: Literal["case_judged"] = "case_judged"
    stage: str
    case_id: str
    dice: list[float | None]


class StageFinished(_Event):
    """A stage is done and its result is on disk."""

    kind: Literal["stage_finished"] = "stage_finished"
    stage: str
    best: float | None = None


class RoundFinished(_Event):
    """A round is done; its weights and predictions are on disk.

    `unlearned` are the classes that its teacher doesn't find even in labelled scans, and
    `warning` says in a line what a person should know before the teacher is trusted; empty if
    there is nothing.
    """

    kind: Literal["round_finished"] = "round_finished"
    number: int
    metrics: dict[str, float]
    unlearned: list[int] = []
    warning: str = ""


class Cancelled(_Event):
    """The work stopped on request; it can be resumed from `step` of `stage`."""

    kind: Literal["cancelled"] = "cancelled"
    stage: str
    step: int


Event = (
    StageStarted
    | StepEnd
    | EpochEnd
    | CaseScreened
    | CaseJudged
    | StageFinished
    | RoundFinished
    | Cancelled
)
_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def parse_event(text: str | bytes) -> Event:
    """Read an event back from ``event.model_dump_json()``."""
    return _adapter.validate_json(text)
