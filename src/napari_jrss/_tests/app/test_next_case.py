"""Which case comes next: by the figures that speak for it, in words that give them."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from napari_jrss.app.case_summary import PredictionFigures, block_vector
from napari_jrss.app.next_case import Suggestion, suggest, suggest_now
from napari_jrss.cli import app
from napari_jrss.io.predictions import Prediction
from napari_jrss.project.project import Project
from napari_jrss.project.records import RoundOutcome


def unlabelled(project: Project) -> list[str]:
    return [c.case_id for c in project.cases() if c.split == "train" and not c.labelled]


def figures(confidence: tuple[float, ...], uncertainty: float | None) -> PredictionFigures:
    return PredictionFigures(float(np.mean(confidence)), confidence, uncertainty, dice=None)


def finished_round(project: Project) -> None:
    """A round that predicts one class everywhere, the second case less surely."""
    parent = None if project.teacher is None else project.teacher.number
    number = project.start_round(parent, "{}", project.snapshot().label_versions).number
    for case_id, confidence in zip(unlabelled(project), (0.9, 0.6), strict=False):
        label = np.zeros(project.grid.shape, np.uint8)
        label[4:8] = 1
        label[8:12] = 2
        kl = np.full(label.shape, 1 - confidence, np.float16)
        sure = np.full(label.shape, confidence, np.float16)
        project.round(number).files.write_prediction(case_id, Prediction(label, sure, kl))
    project.finish_round(number, RoundOutcome.FINISHED, promote=True)


def case_of(suggestion: Suggestion | None) -> str:
    assert suggestion is not None
    return suggestion.case_id


@pytest.mark.parametrize("worse", [0, 1])
def test_disagreement_of_teacher_and_student_comes_first(project: Project, worse: int) -> None:
    cases = unlabelled(project)
    known = {c: figures((0.9, 0.8), 0.3 if i == worse else 0.1) for i, c in enumerate(cases)}
    best = suggest(project, {}, known)
    assert case_of(best) == cases[worse]
    assert best is not None
    assert "1.5 times as much" in best.reason


@pytest.mark.parametrize("worse", [0, 1])
def test_a_structure_that_the_teacher_is_unsure_of_is_named(project: Project, worse: int) -> None:
    cases = unlabelled(project)
    known = {c: figures((0.9, 0.4 if i == worse else 0.8), None) for i, c in enumerate(cases)}
    best = suggest(project, {}, known)
    assert case_of(best) == cases[worse]
    assert best is not None
    assert f"unsure of {project.table.names[2]} (confidence 0.40)" in best.reason


def test_a_structure_that_is_not_found_asks_for_a_label(project: Project) -> None:
    first, second = unlabelled(project)
    known = {first: figures((0.9, 0.9), None), second: figures((0.9, float("nan")), None)}
    best = suggest(project, {}, known)
    assert case_of(best) == second
    assert best is not None
    assert f"finds no {project.table.names[2]}" in best.reason


def test_propagated_labels_that_contradict_the_teacher_count(project: Project) -> None:
    first, second = unlabelled(project)
    best = suggest(project, {}, {}, agreement={first: 0.55, second: 0.9})
    assert case_of(best) == first
    assert best is not None
    assert "agree by Dice 0.55" in best.reason


@pytest.mark.parametrize("like", [0, 1])
def test_the_case_that_the_labelled_ones_cover_worst(project: Project, like: int) -> None:
    rng = np.random.default_rng(0)
    labelled = [c.case_id for c in project.cases() if c.labelled]
    cases = unlabelled(project)
    known, other = (block_vector(rng.standard_normal((16, 16, 16)).astype("f4")) for _ in range(2))
    views = dict.fromkeys(labelled, known) | {
        case_id: known if i == like else other for i, case_id in enumerate(cases)
    }
    best = suggest(project, views, {})
    assert case_of(best) == cases[1 - like]
    assert best is not None
    assert "least like the labelled cases (correlation" in best.reason


def test_skipped_and_rejected_cases_come_last_until_there_is_a_new_teacher(
    project: Project,
) -> None:
    finished_round(project)
    sure, unsure = unlabelled(project)
    assert case_of(suggest_now(project)) == unsure
    project.skip(unsure, "Ada", "too noisy")
    assert case_of(suggest_now(project)) == sure
    project.reject(sure, "Ada")
    last = suggest_now(project)
    assert case_of(last) == unsure
    assert last is not None
    assert "skipped before" in last.reason
    finished_round(project)
    assert case_of(suggest_now(project)) == unsure
    assert "skipped" not in str(suggest_now(project))


def test_the_case_just_seen_is_not_suggested_again(project: Project) -> None:
    first, second = unlabelled(project)
    known = {first: figures((0.1, 0.1), 1.0), second: figures((0.9, 0.9), 0.1)}
    assert case_of(suggest(project, {}, known, after=first)) == second


def test_nothing_is_left_to_suggest(project: Project) -> None:
    for case_id in unlabelled(project):
        label = np.ones(project.grid.shape, np.uint8)
        project.add_label_version(case_id, label, "Ada")
    assert suggest_now(project) is None


def test_labels_hidden_from_training_are_not_looked_at(project: Project) -> None:
    finished_round(project)
    before = suggest_now(project)
    hidden = [c.case_id for c in project.cases() if c.reference_version]
    assert hidden
    for case_id in hidden:
        shutil.rmtree(project.case_path(case_id) / "labels" / "v0001")
    assert suggest_now(project) == before


def test_without_a_teacher_and_without_labels_the_most_typical_case_comes_first(
    project: Project,
) -> None:
    project.split(labelled=0)
    cases = unlabelled(project)
    rng = np.random.default_rng(0)
    noise = [block_vector(rng.standard_normal((16, 16, 16)).astype("f4")) for _ in cases]
    common = block_vector(rng.standard_normal((16, 16, 16)).astype("f4"))
    for typical in range(len(cases)):
        # All share something with one case, and nothing with one another.
        views = dict(zip(cases, noise, strict=True)) | {cases[typical]: common}
        views = {c: v if c == cases[typical] else v + common for c, v in views.items()}
        views = {c: v / np.linalg.norm(v) for c, v in views.items()}
        suggestion = suggest(project, views, {})
        assert case_of(suggestion) == cases[typical]
        assert suggestion is not None
        assert "no case is labelled yet" in suggestion.reason
    assert suggest_now(project) is not None


def test_the_command_line_says_the_same(project: Project) -> None:
    finished_round(project)
    expected = suggest_now(project)
    assert expected is not None
    said = CliRunner().invoke(app, ["next", str(project.path)])
    assert said.output.strip() == f"{expected.case_id}: {expected.reason}"
    as_json = CliRunner().invoke(app, ["next", str(project.path), "--json"])
    assert json.loads(as_json.output)["case_id"] == expected.case_id


def test_blocks_correlate_whatever_the_scale(project: Project) -> None:
    image = project.image(unlabelled(project)[0])
    assert block_vector(image) @ block_vector(3 * image + 7) == pytest.approx(1, abs=1e-4)
    assert block_vector(image).shape == (512,)
