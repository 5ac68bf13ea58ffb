"""One loop through one cohort: each case opened, corrected, accepted and learned from.

Everything is done with the commands of a :class:`~napari_jrss.app.session.Session`, as a window
does it. What was done is kept after each accepted case, so that a killed run goes on where it was:
a case that wasn't accepted yet is begun anew, a round of training goes on from its last saved step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from napari_jrss.app.pairs.registering import Registrar, project_registrar, register_labelled
from napari_jrss.app.review.consensus import with_votes
from napari_jrss.app.review.review import Leave
from napari_jrss.app.session import Session
from napari_jrss.config import TrainingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.experiments.annotator.cohort import (
    CohortDice,
    costs_of,
    hidden_label,
    mean_dice,
    settings_of,
)
from napari_jrss.experiments.annotator.correcting import Correcting, Task
from napari_jrss.experiments.annotator.hand import believed
from napari_jrss.experiments.annotator.loops import Loop
from napari_jrss.experiments.protocol import Protocol
from napari_jrss.inference.partners import Field
from napari_jrss.io.atomic import end_with_whole_line, write_text
from napari_jrss.io.predictions import Prediction
from napari_jrss.project.project import Project
from napari_jrss.snapshot import Image

ROWS, PENDING = "cases.jsonl", "pending.json"
AUTHOR = "simulated annotator"
IMAGES_ALONE = "refine"
"""The engine that needs no trained network."""
SHORT_DECAY = 0.9
"""Of the teacher's average, a step, in rounds that are too short for the preset's."""


@dataclass(frozen=True)
class Place:
    """Where one run is kept."""

    folder: Path

    @property
    def project(self) -> Path:
        """The project that the loop works on."""
        return self.folder / "cohort.jrss"

    def rows(self) -> list[dict[str, Any]]:
        """What was said of each accepted case."""
        path = self.folder / ROWS
        end_with_whole_line(path)
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def add(self, row: dict[str, Any]) -> None:
        """Keep what was said of one case."""
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.pending_path.unlink(missing_ok=True)

    @property
    def pending_path(self) -> Path:
        """What is known of a case that is accepted now, and not learned from yet."""
        return self.folder / PENDING


@contextmanager
def loop_work(
    protocol: Protocol, loop: Loop, seed: int, place: Place, device: str
) -> Iterator[LoopWork]:
    """The loop where it was left, on a session of its own."""
    with opened_session(place.project, device) as session:
        yield LoopWork(protocol, loop, seed, place, session)


@contextmanager
def opened_session(path: Path, device: str) -> Iterator[Session]:
    """A session on a project, in this process alone; what fails in the background is raised."""
    session, failed = Session(author=AUTHOR, device=device), list[Exception]()
    session.rounds.own_process = False
    session.review.queue.failed.connect(failed.append)
    session.workspace.background.failed.connect(failed.append)
    session.open(path)
    try:
        yield session
        if failed:
            raise failed[0]
    finally:
        session.close(timeout=60)


class LoopWork:
    """The state of one loop, of which all that matters is on the disk."""

    def __init__(
        self, protocol: Protocol, loop: Loop, seed: int, place: Place, session: Session
    ) -> None:
        self._settings = settings_of(protocol)
        self._loop, self._seed, self._place, self._session = loop, seed, place, session
        self._config = protocol.config(seed)
        self._rows = place.rows()
        self._fields: dict[bytes, Field] = {}
        session.workspace.engine = IMAGES_ALONE if loop.draft == "atlas" else ""

    @property
    def done(self) -> int:
        """Cases that were accepted and learned from."""
        return len(self._rows)

    @property
    def _project(self) -> Project:
        return self._session.workspace.open_project

    def label_first(self) -> None:
        """Label one case, unless that was done, and leave its row for the loops to begin with."""
        if self._pending() is None:
            case_id, reason = self._next_case([case.case_id for case in self._project.cases()])
            self._label(case_id, reason)

    def step(self) -> bool:
        """Label one more case and learn from it; False if none is left."""
        row = self._pending()
        if row is None:
            left = [case.case_id for case in self._project.cases() if not case.labelled]
            if not left:
                return False
            case_id, reason = self._next_case(left)
            row = self._label(case_id, reason)
        started = time.process_time()
        self._learn()
        row["learning_cpu_s"] = round(time.process_time() - started, 1)
        cohort = self._cohort_dice()
        row |= {
            "cohort_dice": cohort.mean,
            "worst_tenth": cohort.worst_tenth,
            "by_case": cohort.by_case,
        }
        self._place.add(row)
        self._rows.append(row)
        return True

    def _pending(self) -> dict[str, Any] | None:
        """The row of a case that a killed run had accepted and not learned from yet."""
        path = self._place.pending_path
        if not path.exists():
            return None
        row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if row["step"] == self.done and self._project.case(row["case"]).labelled:
            return row
        path.unlink()  # it was killed before the case was accepted
        return None

    # -- which case

    def _next_case(self, left: list[str]) -> tuple[str, str]:
        order = self._loop.order
        if order == "program" and self._project.teacher is not None:
            self._session.cohort.summarise()
            self._session.cohort.summaries.wait()
            self._session.review.suggest_next()
            self._wait()
            suggestion = self._session.review.suggestion
            assert suggestion is not None
            return suggestion.case_id, suggestion.reason
        if order == "entropy" and self._project.teacher is not None:
            entropies = self._entropies(left)
            most = max(left, key=lambda case_id: (entropies[case_id], case_id))
            return most, f"mean entropy {entropies[most]:.4f}"
        names = sorted(case.case_id for case in self._project.cases())
        shuffled = np.random.default_rng([self._seed, 1]).permutation(names).tolist()
        return next(name for name in shuffled if name in left), "at random"

    def _entropies(self, case_ids: list[str]) -> dict[str, float]:
        """Mean entropy of the teacher's probabilities of each case, in nats."""
        from napari_jrss.inference.device import find_device
        from napari_jrss.inference.load import load_teacher
        from napari_jrss.inference.predict import segmentation_logits

        device = find_device(self._session.workspace.device)
        network = load_teacher(self._project.require_teacher().files, device)
        found = {}
        for case_id in case_ids:
            log = segmentation_logits(network, self._project.image(case_id), device).log_softmax(0)
            found[case_id] = float(-(log.exp() * log).sum(0).mean())
        return found

    # -- the label

    def _label(self, case_id: str, reason: str) -> dict[str, Any]:
        """Open a case, correct it to its goal and accept it."""
        review, loop, settings = self._session.review, self._loop, self._settings
        if any(each.case_id == case_id for each in review.unfinished):
            review.discard_unfinished(case_id)
        started = time.process_time()
        if loop.draft in ("atlas", "average"):  # as a window makes it before the case is opened
            review.ahead.prepare([case_id])
            self._session.workspace.background.wait()
        review.open(case_id, Leave.DISCARD)
        self._wait()
        begun = review.open_case.editor.origin.draft
        if loop.draft in ("atlas", "average") and not begun.startswith("case:"):
            raise ProjectError(f"{case_id}: no label was propagated to it")
        project, classes = self._project, len(self._project.table.names)
        truth = hidden_label(project, case_id)
        seed = [self._seed, *sha256(case_id.encode()).digest()[:4]]
        belief = believed(truth, classes, settings.hand_sd_voxels, seed)
        task = Task(truth, belief, settings.goal_dice, settings.axis, classes, costs_of(settings))
        work = Correcting(review, task)
        draft_dice = work.dice()
        work.look_through()
        if loop.opinions and review.open_case.prediction is not None:
            work.choose_opinions()
        if loop.interpolation:
            work.interpolate()
        if loop.region_tool:
            work.region_strokes()
        work.brush()
        work.effort.voxels = review.open_case.editor.voxels_changed
        row = {
            "step": self.done,
            "case": case_id,
            "reason": reason,
            "draft": review.open_case.editor.origin.draft,
            "draft_dice": draft_dice.tolist(),
            "dice": work.dice().tolist(),
            "reached": not work.failing(),
            "effort": work.effort.as_dict(),
            "drafting_cpu_s": round(time.process_time() - started, 1),
        }
        write_text(self._place.pending_path, json.dumps(row))
        review.accept()
        self._wait()
        review.close_case()
        self._wait()
        return row

    # -- learning

    def learn_first(self) -> None:
        """Train the first teacher, on the labels that there are."""
        if self._project.teacher is None:
            self._train(self._config, 0)

    def _learn(self) -> None:
        """Train a round on the labels that there are now, unless that was done or is useless."""
        project = self._project
        if not self._loop.learns or not project.snapshot().unlabelled:
            return
        if project.require_teacher().number <= self.done:
            self._train(self._round_config(), 1)
        self._session.cohort.predict()
        self._wait()

    def _train(self, config: TrainingConfig, rounds: int) -> None:
        control = self._session.rounds
        if control.interrupted is not None:
            control.resume()
        else:
            control.start(config, rounds, anyway=True)
        runner = self._session.workspace.training
        runner.wait()
        if runner.error is not None:
            raise runner.error

    def _round_config(self) -> TrainingConfig:
        """Settings of the round after an accepted case: a long one after the first, then short."""
        joint, first = self._config.joint, self.done == 0
        if first and self._loop.joint_round:
            return self._config
        changes = {
            "lambda_u": 0.0,
            "registration_augmentation": 0.0,
            "propagated_labels": 0.0,
            "minimum_steps": 2 * joint.minimum_steps if first else self._settings.steps_on_labels,
            "ema_decay": joint.ema_decay if first else SHORT_DECAY,
        }
        return self._config.model_copy(update={"joint": joint.model_copy(update=changes)})

    # -- what the cohort has now

    def _cohort_dice(self) -> CohortDice:
        """Of the accepted labels, and of the drafts that the loop has of the other cases."""
        project, draft = self._project, self._loop.draft
        by_case = {}
        for case in project.cases():
            name = case.case_id
            if case.labelled:
                by_case[name] = mean_dice(project, name, project.scan_label(name))
            elif draft == "blank":
                by_case[name] = 0.0
            else:
                found = self._vote(name) if draft != "teacher" else self._predicted(name)
                if draft == "average":
                    found = with_votes(
                        self._predicted(name), found, len(project.snapshot().labelled)
                    )
                label = project.attributes(name).transform.prediction_to_scan(found)
                by_case[name] = mean_dice(project, name, label)
        return CohortDice(by_case)

    def _predicted(self, case_id: str) -> Prediction:
        prediction = self._project.require_teacher().files.prediction(case_id)
        assert prediction is not None
        return prediction

    def _vote(self, case_id: str) -> Prediction:
        """The vote of the labelled cases; a pair is registered once."""
        registrar = project_registrar(
            self._project, IMAGES_ALONE, device=self._session.workspace.device
        )

        def field(moving: Image, fixed: Image) -> Field:
            key = sha256(moving.tobytes() + fixed.tobytes()).digest()
            if key not in self._fields:
                self._fields[key] = registrar.field(moving, fixed)
            return self._fields[key]

        *_, vote = register_labelled(self._project, case_id, Registrar(registrar.engine, field))
        assert isinstance(vote, Prediction)
        return vote

    def _wait(self) -> None:
        """Until what was asked for is done; an error of a job is raised."""
        session = self._session
        session.review.wait()
        job = session.workspace.inference
        job.wait()
        session.review.wait()
        if job.error is not None:
            raise ProjectError(f"{self._loop.name}: {job.error}") from job.error
