"""The annotator's cohort: some cases of the training side, with labels that training can't see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from napari_jrss.experiments.annotator.costs import CostModel
from napari_jrss.experiments.cohort import discover_data, subjects_of
from napari_jrss.experiments.protocol import AnnotatorSettings, Protocol, ProtocolError
from napari_jrss.io.atomic import new_folder
from napari_jrss.metrics import dice_per_class
from napari_jrss.project.project import Project
from napari_jrss.project.split import split_by_group
from napari_jrss.snapshot import Label

HIDDEN = "v0001"
"""The manual label of each case, which came with its scan."""


def settings_of(protocol: Protocol) -> AnnotatorSettings:
    """What the protocol says of its annotator; :class:`ProtocolError` if it has none."""
    if protocol.annotator is None:
        raise ProtocolError("the protocol describes no annotator")
    return protocol.annotator


def costs_of(settings: AnnotatorSettings) -> CostModel:
    """The model of seconds with the protocol's changes; a :class:`ProtocolError` on a wrong one."""
    known = {field.name for field in fields(CostModel)}
    for name in settings.costs:
        if name not in known:
            raise ProtocolError(f"costs: there is no {name}; known: {', '.join(sorted(known))}")
    return replace(CostModel(), **settings.costs)


def make_cohort_project(protocol: Protocol, seed: int, path: Path) -> None:
    """Make the project of the cohort of one seed: every label is hidden, every case trains.

    The cases come from the training side of the protocol's split, so that its test cases are
    never looked at. A :class:`ProtocolError` where there are fewer, or a scan can't be read.
    """
    settings, sizes = settings_of(protocol), protocol.split
    with TemporaryDirectory() as folder:  # of synthetic scans
        found = discover_data(protocol.data, Path(folder))
        scans = {case.case_id: case for case in found.cohort.cases}
        dealt = split_by_group(
            subjects_of(protocol.data, found),
            {name for name, case in scans.items() if case.label is not None},
            labelled=settings.cases,
            validation=sizes.validation,
            test=sizes.test,
            training=sizes.training,
            seed=seed if sizes.seed is None else sizes.seed,
        )
        wanted = [scans[name] for name in dealt.labelled]
        with new_folder(path) as unfinished:
            table, preprocessing = found.require_table(), protocol.data.preprocessing
            with Project.create(unfinished, table, preprocessing) as project:
                for result in project.add_cases(wanted, workers=1):
                    if not result.ok or not result.labelled:
                        why = result.reason or "; ".join(result.notes)
                        raise ProtocolError(f"{result.case_id}: {why}")
                project.split(labelled=0, validation=0, test=0)


@dataclass(frozen=True)
class CohortDice:
    """Dice of a label of each case of the cohort, mean of its structures."""

    by_case: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over the cases."""
        return float(np.mean(list(self.by_case.values())))

    @property
    def worst_tenth(self) -> float:
        """Mean over the worst tenth of the cases, at least one."""
        values = sorted(self.by_case.values())
        return float(np.mean(values[: max(1, round(len(values) / 10))]))


def hidden_label(project: Project, case_id: str) -> Label:
    """The manual label (z, y, x) of a case on the scan's voxels."""
    return project.scan_label(case_id, HIDDEN)


def mean_dice(project: Project, case_id: str, label: Label) -> float:
    """Mean Dice of a label (z, y, x) on the scan's voxels over the structures of its case."""
    truth = hidden_label(project, case_id)
    return float(np.nanmean(dice_per_class(label, truth, len(project.table.names))))
