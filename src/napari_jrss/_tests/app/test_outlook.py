"""When to stop: pace, expected Dice of the rest, and the gain of one more case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.app.phantoms import blocks, describe, give_teacher, make_project
from napari_jrss.app import forecast as forecasting
from napari_jrss.app.forecast import Forecast
from napari_jrss.app.outlook import outlook
from napari_jrss.app.status import project_status
from napari_jrss.io.atomic import write_text
from napari_jrss.io.round_files import ANCHOR_DRAFT_DICE, DRAFT_DICE
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundKind, RoundOutcome


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    with Project.open(make_project(tmp_path)) as opened:
        yield opened


def accept(project: Project, case_id: str, seconds: float | None) -> None:
    label = blocks(project.grid.shape, 2, 1)
    project.add_label_version(case_id, label, "anna", seconds=seconds)


def give_forecast(project: Project, dice: dict[str, tuple[float | None, float]]) -> None:
    versions = project.snapshot().label_versions
    known = Forecast(
        structures=project.table.names[1:],
        dice=dice,
        folds=5,
        label_versions={case: versions[case] for case in project.snapshot().labelled},
    )
    write_text(forecasting._file(project), known.model_dump_json())


def test_nothing_is_said_of_what_nobody_knows(project: Project) -> None:
    found = outlook(project)
    assert (found.done, found.to_do) == (5, 3)
    assert found.seconds_left is None
    assert found.expected == {}
    assert found.gain is None
    assert found.lines() == ["5 of 8 done."]


def test_the_pace_is_of_the_cases_that_were_corrected(project: Project) -> None:
    first, second, third = project.snapshot().unlabelled
    accept(project, first, 100.0)
    accept(project, second, 300.0)
    found = outlook(project)
    assert (found.pace_s, found.paced, found.seconds_left) == (200.0, 2, 200.0)
    assert found.progress() == "7 of 8 done, 1 to do: about 3 min at your pace of 3 min a case"
    accept(project, first, 500.0)  # once more: 600 s in all
    assert outlook(project).pace_s == 450.0
    accept(project, third, None)  # nobody knows how long
    assert outlook(project).progress() == "8 of 8 done"
    assert "8 of 8 done." in project_status(project).outlook


def test_the_rest_is_expected_to_be_as_the_forecast_with_its_interval(project: Project) -> None:
    labelled = project.snapshot().labelled
    values = [0.80, 0.84, 0.88, 0.90, 0.78]
    give_forecast(project, {c: (v, 0.5) for c, v in zip(labelled, values, strict=True)})
    first, second = project.table.names[1:]
    found = outlook(project).expected
    assert found[first].mean == pytest.approx(0.84)
    # t of 4 degrees of freedom at 95 % is 2.132
    half = 2.132 * np.std(values, ddof=1) * np.sqrt(1 / 5 + 1 / 3)
    assert found[first].low == pytest.approx(0.84 - half, abs=1e-3)
    assert found[first].high == pytest.approx(0.84 + half, abs=1e-3)
    assert found[second].low == found[second].high == 0.5
    line = outlook(project).lines()[1]
    assert line.startswith("Expected Dice of the drafts of the 3 others, 90% interval: ")
    assert f"{second} 0.50 (0.50 to 0.50); {first} 0.84 (0.76 to 0.92)" in line
    accept(project, project.snapshot().unlabelled[0], 60.0)
    assert outlook(project).expected == {}  # the forecast is of other labels


def test_two_values_make_no_interval(project: Project) -> None:
    labelled = project.snapshot().labelled
    give_forecast(project, {c: (None if i > 1 else 0.9, 0.5) for i, c in enumerate(labelled)})
    assert list(outlook(project).expected) == [project.table.names[2]]


def quick(project: Project, **metrics: float) -> None:
    teacher = project.require_teacher()
    entry = project.start_round(
        teacher.number, describe(project), project.snapshot().label_versions, RoundKind.QUICK
    )
    project.finish_round(entry.number, RoundOutcome.FINISHED, dict(metrics), promote=True)


def test_a_case_is_worth_what_drafts_of_unseen_cases_gained(project: Project) -> None:
    give_teacher(project)
    wanted = list(project.snapshot().unlabelled)
    accept(project, wanted[0], 60.0)
    quick(project, draft_dice=0.7)  # by the teacher of the training: no comparison
    for learned, gain in enumerate((0.02, 0.03, 0.07), start=1):
        if learned < 3:
            accept(project, wanted[learned], 60.0)
        quick(project, **{DRAFT_DICE: 0.8 + gain, ANCHOR_DRAFT_DICE: 0.8})
        assert (outlook(project).gain is None) is (learned < 3)
    found = outlook(project)
    assert found.gain is not None
    # 1, 2 and 3 cases had been learned: the line through zero
    assert found.gain.mean == pytest.approx((0.02 + 2 * 0.03 + 3 * 0.07) / 14)
    assert found.gain.low < found.gain.mean < found.gain.high
    assert found.compared == 3
    assert "by 3 comparisons." in found.lines()[-1]
    assert ("chance" in found.lines()[-1]) is (found.gain.low <= 0)


def test_two_forecasts_say_it_too(project: Project) -> None:
    labelled = project.snapshot().labelled
    give_forecast(project, {c: (0.80 + i / 100, 0.5) for i, c in enumerate(labelled)})
    before = forecasting._file(project).read_text()
    for case in project.snapshot().unlabelled[:2]:
        accept(project, case, 60.0)
    now = project.snapshot().labelled
    write_text(forecasting._former_file(project), before)
    give_forecast(
        project,
        {c: (0.84 + (labelled.index(c) / 100 if c in labelled else 0), 0.5) for c in now},
    )
    found = outlook(project)
    assert found.compared == 5
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(0.02 / 2)
