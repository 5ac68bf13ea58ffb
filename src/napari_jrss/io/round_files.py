"""The files in a round's folder: their names, and how each is read and written."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from napari_jrss.config import TrainingConfig
from napari_jrss.errors import ProjectError
from napari_jrss.io.atomic import end_with_whole_line, sweep
from napari_jrss.io.predictions import (
    Prediction,
    prediction_path,
    read_prediction,
    write_prediction,
)
from napari_jrss.snapshot import CohortSnapshot

KEPT = "kept"
"""Metric of a quick round: 1 if its teacher may come into force, 0 if the former one stays."""
DRAFT_DICE, ANCHOR_DRAFT_DICE = "draft_dice", "anchor_draft_dice"
"""Its metrics: Dice of the drafts of the new cases, by the teacher before it, and by the teacher of
the last training; the second only where they differ. Neither had seen the labels."""


class QuickPlan(BaseModel):
    """What a quick round does, which learns from labels that were accepted just now.

    Attributes
    ----------
    new
        Cases whose label the teacher hasn't seen.
    steps
        Of the optimiser.
    judged
        Cases on which the teacher is compared before and after: validation cases or, without any,
        labelled cases that it has seen before.
    predicted
        Cases that the new teacher predicts before the round ends; others wait until they are
        opened.
    """

    new: list[str]
    steps: int
    judged: list[str] = []
    predicted: list[str] = []


class RoundDescription(BaseModel):
    """What ``config.json`` says of a round: its settings, and the cases that it uses."""

    training: TrainingConfig
    classes: list[str]  # names of the C output classes, the background first
    # Training grid (z, y, x): voxel size in mm, and number of voxels.
    spacing_mm: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    # Case ids.
    labelled: list[str] = []
    unlabelled: list[str] = []
    validation: list[str] = []
    label_versions: Mapping[str, str] = {}  # label version of each labelled and validation case
    # Number of rounds that were to follow, so that an interrupted series can be resumed.
    rounds_left: int = 0
    quick: QuickPlan | None = None  # None: an ordinary round
    # Names of the images that each case has, the one that is registered first; of one: empty, and
    # not written.
    channels: list[str] = []

    @model_serializer(mode="wrap")
    def _without_empty(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = write(self)
        if not self.channels:
            fields.pop("channels", None)
        return fields

    @classmethod
    def of(
        cls,
        snapshot: CohortSnapshot,
        config: TrainingConfig,
        rounds_left: int = 0,
        quick: QuickPlan | None = None,
    ) -> RoundDescription:
        """Describe a round that is about to start."""
        return cls(
            training=config,
            classes=list(snapshot.class_names),
            spacing_mm=snapshot.spacing_mm,
            shape=snapshot.shape,
            labelled=list(snapshot.labelled),
            unlabelled=list(snapshot.unlabelled),
            validation=list(snapshot.validation),
            label_versions=snapshot.label_versions,
            rounds_left=rounds_left,
            quick=quick,
            channels=list(snapshot.channels),
        )


class RoundFiles:
    """The files of one round, in its folder; none of them needs to be there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.json"  # JSON of the `RoundDescription`
        # One event a line, see `napari_jrss.training.events.MetricsFile`.
        self.metrics = folder / "metrics.jsonl"
        # Weights that the round ended with; a pre-training has no student.
        self.teacher = folder / "teacher.safetensors"
        self.student = folder / "student.safetensors"
        self.registration = folder / "registration.safetensors"
        # Of the network for the scans' own voxels; only where these are finer than the grid.
        self.fine = folder / "fine.safetensors"
        # Folder of the teacher's predictions, `<case_id>.zarr`.
        self.predictions = folder / "predictions"

    def state(self, stage: str) -> Path:
        """Training state of a stage; there only while the stage runs."""
        return self.folder / f"{stage}.state.safetensors"

    def evaluation(self, refined: bool = False) -> Path:
        """Figures, one line per test case and pair; `refined`: with each pair's field improved."""
        return self.folder / ("evaluation_refined.jsonl" if refined else "evaluation.jsonl")

    def description(self) -> RoundDescription:
        """Read ``config.json``; a :class:`ProjectError` if it is missing or damaged."""
        try:
            if self.config.exists() and not self.config.is_file():
                raise OSError("not a file")
            return RoundDescription.model_validate_json(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ProjectError(
                f"{self.config}: unreadable description of a round ({reason})"
            ) from None

    def training_config(self) -> TrainingConfig:
        """The settings that the round was started with; errors as of :meth:`description`."""
        return self.description().training

    def has_prediction(self, case_id: str) -> bool:
        """Whether the round's teacher has predicted a case."""
        return prediction_path(self.predictions, case_id).exists()

    def prediction(self, case_id: str, on_scan: bool = True) -> Prediction | None:
        """The teacher's prediction of a case, None if there is none; a ScanError if damaged.

        Without `on_scan` its label on the scan's own voxels isn't read.
        """
        if not self.has_prediction(case_id):
            return None
        return read_prediction(self.predictions, case_id, on_scan)

    def write_prediction(self, case_id: str, prediction: Prediction) -> None:
        """Write the teacher's prediction of a case; it replaces an earlier one."""
        write_prediction(self.predictions, case_id, prediction)

    def drop(self) -> None:
        """Remove the weights, training states and predictions of a round that is given up."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)
        if self.predictions.is_dir():
            shutil.rmtree(self.predictions)
        self.sweep()

    def sweep(self) -> None:
        """Remove what a killed run left half written; only while nobody writes there."""
        sweep(self.folder)
        sweep(self.predictions)
        end_with_whole_line(self.metrics)
