"""What Dice to expect on unlabelled scans, by cross-validation over the labelled cases."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event as Flag
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from napari_jrss.app.api import training_bars
from napari_jrss.config import PresetName, TrainingConfig
from napari_jrss.config import preset as settings_of
from napari_jrss.errors import ProjectError
from napari_jrss.io.atomic import write_text
from napari_jrss.pool import AskedToStop, Told, Workers, tell, working
from napari_jrss.progress_bar import long_call
from napari_jrss.project.project import Project

if TYPE_CHECKING:
    from napari_jrss.training.events import Event
    from napari_jrss.training.loop import Cancel


_ALL = "all_parts"


class Forecast(BaseModel):
    """Dice of each labelled case, segmented by a network that learned without it.

    Attributes
    ----------
    structures
        Names of the structures.
    dice
        By case, a value for each structure; None where the case's label lacks it.
    folds
        How many networks were trained; each learned from all labelled cases but its own part.
    label_versions
        Label version of each case, to tell whether the forecast is of today's labels.
    """

    model_config = ConfigDict(frozen=True)
    structures: tuple[str, ...]
    dice: Mapping[str, tuple[float | None, ...]]
    folds: int
    label_versions: Mapping[str, str]

    def per_structure(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation over the cases, for each structure that one of them has."""
        table = np.array(list(self.dice.values()), float)
        return {
            name: (float(np.nanmean(column)), float(np.nanstd(column)))
            for name, column in zip(self.structures, table.T, strict=True)
            if not np.isnan(column).all()
        }

    def mean(self) -> tuple[float, float]:
        """Mean over structures, then mean and standard deviation over the cases."""
        cases = [np.nanmean(np.array(row, float)) for row in self.dice.values()]
        return float(np.mean(cases)), float(np.std(cases))

    def mean_of(self, case_id: str) -> float:
        """Mean of one case over its structures; NaN without any."""
        values = [value for value in self.dice[case_id] if value is not None]
        return float(np.mean(values)) if values else float("nan")

    def line(self) -> str:
        """The forecast in one line."""
        mean, std = self.mean()
        return (
            f"expected Dice on unlabelled scans: {mean:.3f} (std {std:.3f} over {len(self.dice)} "
            f"labelled cases, each segmented by a network that learned without it)"
        )

    def summary(self) -> str:
        """A line for the mean, and one for each structure, the worst first."""
        rows = sorted(self.per_structure().items(), key=lambda item: item[1])
        width = max(map(len, self.structures))
        return "\n".join(
            [
                self.line(),
                *(f"  {name:{width}}  {mean:.3f} ({std:.3f})" for name, (mean, std) in rows),
            ]
        )


def last_forecast(project: Project) -> Forecast | None:
    """The project's forecast, if there is one and no label has changed since."""
    known = _read(_file(project))
    if known is None:
        return None
    snapshot = project.snapshot()
    versions = {case: snapshot.label_versions[case] for case in snapshot.labelled}
    return known if versions == dict(known.label_versions) else None


def former_forecast(project: Project) -> Forecast | None:
    """The forecast before the last one, which was of other labels."""
    return _read(_former_file(project))


def _read(path: Path) -> Forecast | None:
    if not path.is_file():
        return None
    try:
        return Forecast.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError:
        return None  # of another version of the program; it can be made again


def _former_file(project: Project) -> Path:
    return project.path / "forecast_before.json"


def _file(project: Project) -> Path:
    return project.path / "forecast.json"


@long_call(training_bars)
def forecast(
    project: Project,
    config: TrainingConfig | None = None,
    *,
    preset: PresetName = "fast",
    device: str = "auto",
    workers: Workers = None,
    cancel: Cancel | None = None,
) -> Generator[Event, None, Forecast | None]:
    """Tell what Dice to expect on unlabelled scans, without any case that was held back.

    The pre-training is repeated on parts of the labelled cases: five times, or once for each case
    where fewer than five are labelled. So it takes up to five times as long as one pre-training.
    The result is kept in the project, and ``napari-jrss status`` shows it while it is of today's
    labels. An interrupted forecast goes on where it stopped.

    Parameters
    ----------
    project
        With at least two labelled training cases.
    config
        Settings; None: those of the preset.
    preset
        Name of the settings where `config` is None.
    device
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    workers
        Processes that share the parts, of this computer or of a cluster; None: one part after the
        other in this process.
    cancel
        Its ``is_set()`` is asked before each step; True stops the work.

    Returns
    -------
    Forecast or None
        Dice of each labelled case; None if it was cancelled.

    Raises
    ------
    JRSSError
        Fewer than two cases are labelled, or there is no such device.
    """
    from napari_jrss.inference.device import make_fabric
    from napari_jrss.training.cross_validation import cross_validate, folds
    from napari_jrss.training.events import Cancelled, CaseJudged

    settings = settings_of(preset) if config is None else config
    snapshot = project.snapshot()
    versions = {case: snapshot.label_versions[case] for case in snapshot.labelled}
    parts = folds(snapshot.labelled, settings.seed)
    folder = _folder(project)
    told = folder / "of.json"
    of = (
        Forecast(
            structures=snapshot.class_names[1:], dice={}, folds=len(parts), label_versions=versions
        ).model_dump_json()
        + settings.model_dump_json()
    )
    if folder.exists() and (not told.exists() or told.read_text(encoding="utf-8") != of):
        shutil.rmtree(folder)  # an interrupted forecast of other labels or settings
    folder.mkdir(exist_ok=True)
    write_text(told, of)
    dice: dict[str, tuple[float | None, ...]] = {}
    stop = Flag() if cancel is None else cancel
    if workers is None:
        fabric = make_fabric(device, settings.precision)
        events = cross_validate(snapshot, settings, folder, fabric, stop)
    else:
        job = partial(_judge, project.path, settings, versions, device)
        at_once = workers if isinstance(workers, int) else workers.threads
        events = _in_pool(job, _shares(len(parts), at_once), workers, stop)
    for event in events:
        if isinstance(event, CaseJudged):
            dice[event.case_id] = tuple(event.dice)
        yield event
        if isinstance(event, Cancelled):
            return None
    result = Forecast(
        structures=snapshot.class_names[1:],
        dice=dict(sorted(dice.items())),
        folds=len(parts),
        label_versions=versions,
    )
    before = _read(_file(project))
    if before is not None and dict(before.label_versions) != versions:
        write_text(_former_file(project), before.model_dump_json(indent=1))
    write_text(_file(project), result.model_dump_json(indent=1))
    shutil.rmtree(folder)
    return result


def _folder(project: Project) -> Path:
    return project.path / "forecast"


@dataclass(frozen=True)
class _Share:
    """What a worker does at a stretch: it trains a part until then, and judges it in the end."""

    part: int
    until: float = 1.0


def _shares(parts: int, workers: int) -> list[_Share]:
    """The work on all parts, so that the workers end together.

    With five parts, one of two workers would have three of them. So those that are left over are
    trained to the half first, and go on after the others.
    """
    left_over = range(1, parts % workers + 1) if workers < parts else ()
    whole = range(len(left_over) + 1, parts + 1)
    halves = [_Share(part, 0.5) for part in left_over]
    return halves + [_Share(part) for part in (*whole, *left_over)]


def _judge(
    path: Path, config: TrainingConfig, versions: Mapping[str, str], device: str, share: _Share
) -> None:
    """In a worker: train and judge one part, or train it a part of the way; tell the events."""
    from napari_jrss.inference.device import make_fabric
    from napari_jrss.training.cross_validation import fold_name, folds, judge_fold
    from napari_jrss.training.events import Cancelled, StageStarted, StepEnd

    fabric = make_fabric(device, config.precision)
    stop = _StopHere()
    with Project.open(path, read_only=True) as project:
        snapshot = project.snapshot()
        if any(snapshot.label_versions[case] != version for case, version in versions.items()):
            raise ProjectError("a label was changed during the forecast; start it again")
        part = folds(snapshot.labelled, config.seed)[share.part - 1]
        for event in judge_fold(share.part, part, snapshot, config, _folder(project), fabric, stop):
            if isinstance(event, StageStarted | StepEnd) and event.stage == fold_name(share.part):
                step = event.step if isinstance(event, StepEnd) else event.first_step
                stop.here = share.until < 1 and step >= share.until * event.steps
            if not (stop.here and isinstance(event, Cancelled)):
                tell(event.model_dump_json())


class _StopHere(AskedToStop):
    """Stops a training also where its share ends."""

    here = False

    def is_set(self) -> bool:
        """Whether the share ends here, or nobody waits for it any more."""
        return self.here or super().is_set()


def _in_pool(
    job: Callable[[_Share], None], shares: Sequence[_Share], workers: Workers, cancel: Cancel
) -> Iterator[Event]:
    """The events of all parts: what was judged, and the steps of all as those of one stage."""
    from napari_jrss.training.cross_validation import fold_name
    from napari_jrss.training.events import (
        Cancelled,
        CaseJudged,
        EpochEnd,
        StageStarted,
        StepEnd,
        parse_event,
    )

    steps: dict[str, int] = {}
    parts = len({share.part for share in shares})
    begun = {share.part for share in shares if share.until < 1}  # which can't be ended yet

    def ready(share: _Share) -> bool:
        return share.until < 1 or share.part not in begun

    with closing(working(job, shares, workers, ready=ready)) as working_on:
        for step in working_on:
            if cancel.is_set():
                yield Cancelled(stage=_ALL, step=sum(steps.values()))
                return
            if step is None:
                continue
            share, outcome = step
            if isinstance(outcome, Exception):
                raise outcome
            if not isinstance(outcome, Told):
                begun.discard(share.part)
            event = parse_event(outcome.message.encode()) if isinstance(outcome, Told) else None
            if isinstance(event, StageStarted) and event.stage == fold_name(share.part):
                if not steps:
                    yield StageStarted(stage=_ALL, steps=event.steps * parts)
                steps[event.stage] = event.first_step
            elif isinstance(event, StepEnd):
                steps[event.stage] = event.step
                done = {"stage": _ALL, "step": sum(steps.values())}
                yield event.model_copy(update={**done, "steps": event.steps * parts})
            elif isinstance(event, EpochEnd):
                yield event.model_copy(update={"stage": _ALL, "step": sum(steps.values())})
            elif isinstance(event, CaseJudged):
                yield event
