"""Events of a training: frozen models that can be sent and kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from napari_jrss.io.atomic import write_text
from napari_jrss.training.trainable import RoundError


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
    """The teacher's pseudo-label of one case, compared with tau (Eq. 3).

    Lists run over the C classes; a confidence is None where no voxel was predicted.
    """

    kind: Literal["case_screened"] = "case_screened"
    stage: str
    case_id: str
    accepted: bool
    kept_fraction: float
    class_confidence: list[float | None]
    classes_passed: list[bool]


class CaseJudged(_Event):
    """The teacher's label of one labelled case, compared with the person's.

    `dice` has a value for each foreground class, None where the person's label lacks it.
    """

    kind: Literal["case_judged"] = "case_judged"
    stage: str
    case_id: str
    dice: list[float | None]


class PairRegistered(_Event):
    """A labelled scan was registered to an unlabelled one, to deform it in training."""

    kind: Literal["pair_registered"] = "pair_registered"
    stage: str
    moving: str
    fixed: str


class FileSent(_Event):
    """A file that the round needs, or a piece of a large one, has gone to the other computer.

    `step` counts the megabytes so far.
    """

    kind: Literal["file_sent"] = "file_sent"
    stage: str
    file: str
    step: int


class StageFinished(_Event):
    """A stage is done and its result is on disk."""

    kind: Literal["stage_finished"] = "stage_finished"
    stage: str
    best: float | None = None


class RoundFinished(_Event):
    """A round is done; its weights and predictions are on disk.

    `unlearned` are the classes that its teacher doesn't find even in labelled scans; `warning` is
    a line about the teacher for the person, empty if there is nothing to warn of.
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
    | PairRegistered
    | FileSent
    | StageFinished
    | RoundFinished
    | Cancelled
)
_adapter: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def parse_event(text: str | bytes) -> Event:
    """Read an event back from ``event.model_dump_json()``."""
    return _adapter.validate_json(text)


class MetricsFile:
    """The events of a round that outlive its run, one a line, each once: ``metrics.jsonl``.

    Parameters
    ----------
    path
        The file, which need not exist.
    """

    _KEPT = (StageStarted, EpochEnd, CaseScreened, CaseJudged, StageFinished)

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: Event) -> None:
        """Append an event, unless it is there or doesn't outlive the run.

        A stage that goes on from a training state repeats the epochs after it: its start removes
        them.

        Raises
        ------
        RoundError
            The file is damaged.
        """
        if not isinstance(event, self._KEPT):
            return
        known = self._lines()
        if isinstance(event, StageStarted):
            kept = [
                text + "\n"
                for text, line in known.items()
                if line.get("stage") != event.stage or line.get("step", 0) <= event.first_step
            ]
            write_text(self.path, "".join(kept))
        elif _identity(event.model_dump()) not in map(_identity, known.values()):
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(event.model_dump_json() + "\n")

    def epochs(self) -> Iterator[EpochEnd]:
        """The epochs so far; the half line that a killed run may have left is passed over."""
        if self.path.exists():
            for line in self.path.read_bytes().splitlines(keepends=True):
                if b'"epoch_end"' in line and line.endswith(b"\n"):
                    event = parse_event(line)
                    assert isinstance(event, EpochEnd)
                    yield event

    def _lines(self) -> dict[str, dict[str, Any]]:
        """Each line of the file, and the JSON object that it holds."""
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise RoundError(f"{self.path}: not a file of this round")
        try:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            lines = {line: json.loads(line) for line in text.split("\n") if line}
        except (OSError, ValueError, RecursionError) as error:
            raise RoundError(f"{self.path}: damaged ({error})") from error
        for line in lines.values():
            if not isinstance(line, dict) or not isinstance(line.get("step", 0), int | float):
                raise RoundError(f"{self.path}: damaged (a line that is not an event)")
        return lines


def _identity(line: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(line.get(key) for key in ("kind", "stage", "case_id", "step"))
