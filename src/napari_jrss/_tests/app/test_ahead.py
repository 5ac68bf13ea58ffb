"""Drafts that are ready before a case is opened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import yaml

import napari_jrss
from napari_jrss._tests.app.phantoms import give_teacher, make_project
from napari_jrss.app.pairs.registering import engine_of, engine_of_votes
from napari_jrss.app.review.ahead import USUAL
from napari_jrss.app.session import Session
from napari_jrss.config import preset
from napari_jrss.inference.engines import EngineError
from napari_jrss.io.round_files import RoundDescription
from napari_jrss.project.project import Project

pytestmark = pytest.mark.slow

WAIT_S = 150


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture
def session(one_thread: None, path: Path) -> Iterator[Session]:
    made = Session(author="a reader", device="cpu")
    made.pairs.engine = "refine"
    failed: list[Exception] = []
    made.workspace.background.failed.connect(failed.append)
    yield made
    assert made.close(30)
    assert failed == []


def settle(session: Session) -> None:
    assert session.review.wait(WAIT_S)
    assert session.workspace.background.wait(WAIT_S)
    assert session.review.wait(WAIT_S)


def test_the_next_cases_begin_from_the_average(path: Path, session: Session) -> None:
    with Project.open(path) as project:
        give_teacher(project)
    session.open(path)
    session.review.ahead.cases = 2
    settle(session)
    cohort, ahead = session.cohort, session.review.ahead
    project = session.workspace.open_project
    names = [each.case_id for each in cohort.suggestions(3)]
    assert len(names) == 3
    assert names[0] == cohort.suggest().case_id  # type: ignore[union-attr]
    assert [ahead.draft_of(name) is not None for name in names] == [True, True, False]

    review = session.review
    review.open(names[0])
    settle(session)
    voters = project.snapshot().labelled
    origin = review.open_case.editor.origin
    kind, _, rest = origin.draft.partition(":")
    said, _, teacher = rest.partition("+round:")
    assert (kind, teacher) == ("case", "0")
    assert set(said.split(",")) == set(voters)
    assert not review.unsaved
    assert origin.draft in [choice.draft for choice in review.open_case.draft_choices]
    # it is what Propagate makes
    review.prediction.propagate()
    assert session.workspace.inference.wait(WAIT_S)
    settle(session)
    made = next(d for d in reversed(review.open_case.drafts) if "+round:" in d)
    np.testing.assert_array_equal(origin.label, review.open_case.drafts[made])
    # the third is made while the first is open
    assert ahead.draft_of(names[2]) is not None

    # what it began from is in the history, and an unchanged one is accepted as such
    review.accept()
    settle(session)
    (version,) = [
        v
        for v in project.label_versions(names[0])
        if v.version == review.open_case.case.label_version
    ]
    assert version.draft == origin.draft
    # the new label votes, too
    found = ahead.draft_of(names[1])
    assert found is not None
    assert names[0] in found.versions


def test_corrections_of_such_a_draft_come_back(path: Path, session: Session) -> None:
    with Project.open(path) as project:
        give_teacher(project)
    session.open(path)
    session.review.ahead.cases = 1
    settle(session)
    review, name = session.review, session.cohort.suggestions(1)[0].case_id
    review.open(name)
    settle(session)
    origin, editor = review.open_case.editor.origin, review.open_case.editor
    editor.label[1, 1, 1:4] = 2
    editor.sync()
    review.close_case("keep")
    settle(session)
    review.ahead.cases = 0
    review.open(name)
    settle(session)
    again = review.open_case.editor
    assert again.origin.draft == origin.draft
    np.testing.assert_array_equal(again.origin.label, origin.label)
    assert again.voxels_changed == 3
    review.close_case("discard")
    settle(session)


def test_without_a_teacher_it_is_the_vote(path: Path, session: Session) -> None:
    session.open(path)
    session.review.ahead.cases = 1
    settle(session)
    name = session.cohort.suggestions(1)[0].case_id
    session.review.open(name)
    settle(session)
    draft = session.review.open_case.editor.origin.draft
    assert draft.startswith("case:")
    assert "round" not in draft


def test_another_teacher_and_a_changed_label_make_it_outdated(path: Path, session: Session) -> None:
    session.open(path)
    project, ahead = session.workspace.open_project, session.review.ahead
    name = project.snapshot().unlabelled[0]
    ahead.prepare([name])
    settle(session)
    assert ahead.draft_of(name) is not None
    atlas = project.snapshot().labelled[0]
    label = project.label(atlas)
    label[0, 0, 0] = 1
    project.add_label_version(atlas, label, "anna")
    assert ahead.draft_of(name) is None
    ahead.prepare([name])
    settle(session)
    assert ahead.draft_of(name) is not None
    give_teacher(project)
    assert ahead.draft_of(name) is None
    session.review.open(name)
    settle(session)
    assert session.review.open_case.editor.origin.draft == "round:0"


def test_a_script_gets_none_and_a_rejected_draft_is_not_offered(
    path: Path, session: Session
) -> None:
    session.open(path)
    settle(session)
    assert session.review.ahead.cases == 0
    project, review = session.workspace.open_project, session.review
    name = project.snapshot().unlabelled[0]
    review.open(name)
    settle(session)
    assert review.open_case.editor.origin.draft == "blank"
    give_teacher(project)
    project.reject(name, "anna", "wrong")
    review.close_case()
    review.ahead.prepare([name])
    settle(session)
    review.open(name)
    settle(session)
    assert review.open_case.editor.origin.draft == "blank"


def test_what_fails_is_told_once(
    path: Path, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_jrss.app.review import ahead

    tried: list[object] = []

    def fail(*_: object, **__: object) -> None:
        tried.append(1)
        raise EngineError("the engine is broken")

    monkeypatch.setattr(ahead, "project_registrar", fail)
    told: list[str] = []
    session.workspace.background.failed.disconnect()
    session.workspace.background.failed.connect(lambda error: told.append(str(error)))
    session.open(path)
    session.review.ahead.cases = 1
    settle(session)
    for _ in range(3):
        session.review.suggest_next()
        settle(session)
    assert told == ["the engine is broken"]
    assert len(tried) == 1


def test_the_window_has_the_usual_number() -> None:
    text = (Path(napari_jrss.__file__).parent / "napari.yaml").read_text(encoding="utf-8")
    work = yaml.safe_load(text)["contributions"]["configurations"]["work"]
    assert work["properties"]["ahead"]["default"] == USUAL > 0


@pytest.mark.parametrize(("settings", "engine"), [("fast", "refine"), ("paper", "jrss")])
def test_labels_that_vote_beside_a_teacher_are_registered_without_it(
    path: Path, settings: Literal["fast", "paper"], engine: str
) -> None:
    with Project.open(path) as project:
        assert engine_of_votes(project) == "refine"
        give_teacher(project)
        teacher = project.require_teacher()
        description = RoundDescription.of(project.snapshot(), preset(settings))
        teacher.files.config.write_text(description.model_dump_json())
        assert engine_of(project) == "jrss"
        assert engine_of_votes(project) == engine
        assert engine_of_votes(project, "greedy") == "greedy"
