"""The Dice to expect: who is judged by whom, what is kept, and when it no longer holds."""

from __future__ import annotations

from pathlib import Path

import pytest

import napari_jrss as jrss
from napari_jrss._tests.app.phantoms import make_project
from napari_jrss._tests.training.phantoms import AfterSteps
from napari_jrss.app.forecast import Forecast, _Share, _shares, forecast, last_forecast
from napari_jrss.app.status import project_status
from napari_jrss.config import TrainingConfig, preset
from napari_jrss.project.project import Project
from napari_jrss.training.cross_validation import folds
from napari_jrss.training.events import CaseJudged, EpochEnd, StageStarted, StepEnd
from napari_jrss.training.trainable import RoundError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def quick() -> TrainingConfig:
    settings = preset("smoke").model_dump()
    settings["segmentation"] |= {"minimum_steps": 6}
    return TrainingConfig.model_validate(settings)


def test_folds_are_five_parts_or_one_for_each_case() -> None:
    cases = [f"c{i}" for i in range(12)]
    parts = folds(cases, 0)
    assert sorted(len(part) for part in parts) == [2, 2, 2, 3, 3]
    assert sorted(case for part in parts for case in part) == sorted(cases)
    assert folds(cases, 0) == parts != folds(cases, 1)
    assert sorted(folds(cases[:3], 0)) == [("c0",), ("c1",), ("c2",)]
    with pytest.raises(RoundError, match="two labelled training cases"):
        folds(["c0"], 0)


def test_each_labelled_case_is_judged_once_by_a_network_that_never_saw_it(tmp_path: Path) -> None:
    with Project.open(make_project(tmp_path)) as project:
        labelled = project.snapshot().labelled
        events = list(forecast.events(project, quick(), device="cpu"))
        judged = [event.case_id for event in events if isinstance(event, CaseJudged)]
        assert sorted(judged) == sorted(labelled)
        assert sum(isinstance(event, StageStarted) for event in events) == 5
        known = last_forecast(project)
        assert known is not None
        assert set(known.dice) == set(labelled)
        assert known.line() in project_status(project).forecast
        assert not (project.path / "forecast").exists()
        # a new label makes it one of the past
        project.split(labelled=4, validation=1, test=1)
        assert last_forecast(project) is None
        assert project_status(project).forecast == ""


def test_a_cancelled_forecast_goes_on_with_the_same_result(tmp_path: Path) -> None:
    whole, broken = (tmp_path / name for name in ("whole", "broken"))
    for folder in (whole, broken):
        folder.mkdir()
    with Project.open(make_project(whole)) as project:
        expected = jrss.forecast(project, quick(), device="cpu")
    with Project.open(make_project(broken)) as project:
        for look in (9, 20):
            assert forecast(project, quick(), device="cpu", cancel=AfterSteps(look)) is None
            assert last_forecast(project) is None
        assert forecast(project, quick(), device="cpu") == expected


def test_two_processes_share_five_parts_equally_and_say_the_same(tmp_path: Path) -> None:
    assert _shares(5, 1) == [_Share(part) for part in (1, 2, 3, 4, 5)]
    assert _shares(4, 2) == [_Share(part) for part in (1, 2, 3, 4)]
    assert _shares(2, 5) == [_Share(1), _Share(2)]
    # each of two has two and a half: 1/2, 3, 5 and 2, 4, 1/2
    assert _shares(5, 2) == [_Share(1, 0.5), *map(_Share, (2, 3, 4, 5)), _Share(1)]

    one, two = (tmp_path / name for name in ("one", "two"))
    for folder in (one, two):
        folder.mkdir()
    with Project.open(make_project(one)) as project:
        expected = forecast(project, quick(), device="cpu")
    with Project.open(make_project(two)) as project:
        events = list(forecast.events(project, quick(), device="cpu", workers=2))
        assert last_forecast(project) == expected
    begun = next(event for event in events if isinstance(event, StageStarted))
    steps = [event for event in events if isinstance(event, StepEnd)]
    assert len(steps) == begun.steps == steps[-1].steps == 5 * 6  # none of them twice
    assert steps[-1].step == begun.steps
    # in the log of a cluster, each of these is a line
    assert [event.stage for event in events if isinstance(event, EpochEnd)][:5] == ["all_parts"] * 5


def test_the_summary_names_the_worst_structure_first() -> None:
    said = Forecast(
        structures=("left", "right", "none"),
        dice={"a": (0.9, 0.5, None), "b": (0.7, 0.3, None)},
        folds=2,
        label_versions={"a": "v0001", "b": "v0001"},
    )
    assert said.mean() == pytest.approx((0.6, 0.1))
    first, right, left = said.summary().splitlines()
    assert "expected Dice on unlabelled scans: 0.600 (std 0.100 over 2 labelled cases" in first
    assert right.split() == ["right", "0.400", "(0.100)"]
    assert left.split() == ["left", "0.800", "(0.100)"]
