"""Drafts of TotalSegmentator, by a program that stands in for it: a real process."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from napari_jrss._tests.app.phantoms import blocks, give_teacher, make_project
from napari_jrss._tests.app.total_segmentator import install
from napari_jrss.app.drafting import (
    DraftMade,
    NothingInCommonError,
    _words,
    draft_by_totalsegmentator,
)
from napari_jrss.app.session import Session
from napari_jrss.app.status import history
from napari_jrss.cli import app
from napari_jrss.errors import ProjectError
from napari_jrss.inference.totalsegmentator import VARIABLE, DraftError, TotalSegmentator
from napari_jrss.project.drafts import keep_draft, kept_draft, kept_drafts
from napari_jrss.project.project import Project

pytestmark = pytest.mark.slow

SHAPE = (16, 24, 16)
KEY = "tool:TotalSegmentator_2.4.0_total"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = make_project(tmp_path_factory.mktemp("drafts"), SHAPE)
    with Project.open(path) as project:
        project.split(labelled=6, validation=1, test=1)
    return path


@pytest.fixture(autouse=True)
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = install(tmp_path / "elsewhere")
    monkeypatch.setenv(VARIABLE, str(path))
    return path


@pytest.fixture
def folder(made_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_once, tmp_path / "brain.jrss"))


@pytest.fixture
def project(folder: Path) -> Iterator[Project]:
    with Project.open(folder) as project:
        yield project


@pytest.fixture
def session(folder: Path) -> Iterator[Session]:
    session = Session(author="anna")
    session.open(folder)
    yield session
    session.close()


def unlabelled(project: Project) -> list[str]:
    return list(project.snapshot().unlabelled)


def test_all_unlabelled_cases_get_drafts_under_the_projects_own_names(project: Project) -> None:
    cases = unlabelled(project)
    assert len(cases) == 2
    results = draft_by_totalsegmentator(project)
    assert [each.case_id for each in results] == cases
    for each in results:
        assert (each.found, each.lacking) == (("structure 1", "structure 2"), ())
        assert kept_drafts(project, each.case_id) == (KEY,)
        label = kept_draft(project, each.case_id, KEY)
        truth = blocks(SHAPE, 2, int(each.case_id.removeprefix("case_")))
        for index in (1, 2):
            drawn, wanted = label == index, truth == index
            assert 2 * (drawn & wanted).sum() / (drawn.sum() + wanted.sum()) > 0.75
    assert unlabelled(project) == cases  # a draft is nobody's label


def test_a_case_opens_with_its_draft_and_its_history_tells_it(session: Session) -> None:
    project, review = session.workspace.open_project, session.review
    case_id = unlabelled(project)[0]
    draft_by_totalsegmentator(project, [case_id])
    review.open(case_id)
    assert review.wait(10)
    case = review.open_case
    assert case.editor.origin.draft == KEY
    assert case.draft_choices[0].title == "Draft of TotalSegmentator 2.4.0 total"
    review.accept()
    assert review.wait(10)
    assert history(project, case_id)[-1].draft == KEY
    assert project.case(case_id).labelled


def test_the_open_case_begins_with_it_unless_it_was_touched(session: Session) -> None:
    project, review = session.workspace.open_project, session.review
    first, second = unlabelled(project)
    for case_id, touch in ((first, False), (second, True)):
        review.open(case_id, "keep")
        assert review.wait(10)
        case = review.open_case
        if touch:
            case.editor.label[0, 0, :3] = 2
        review.tool_drafts.totalsegmentator(TotalSegmentator(), [case_id])
        assert session.workspace.inference.wait(30)
        assert review.wait(10)
        assert case.kept == (KEY,)
        assert (case.editor.origin.draft == KEY) is not touch
        if touch:
            assert (case.editor.snapshot()[0, 0, :3] == 2).all()
            review.start_from(KEY, replace=True)
            assert review.wait(10)
            assert case.editor.origin.draft == KEY


def test_a_teachers_draft_comes_first(project: Project, folder: Path) -> None:
    case_id = unlabelled(project)[0]
    draft_by_totalsegmentator(project, [case_id])
    give_teacher(project)
    project.close()
    session = Session(author="anna")
    session.open(folder)
    session.review.open(case_id)
    assert session.review.wait(10)
    case = session.review.open_case
    assert case.editor.origin.draft == "round:0"
    assert KEY in [choice.draft for choice in case.draft_choices]
    session.close()


def test_names_may_differ_in_capitals_and_order_and_others_are_told(project: Project) -> None:
    assert _words("Left kidney") == _words("kidney_left")
    assert _words("Left kidney") != _words("kidney_right")
    cases = unlabelled(project)[:1]
    with pytest.raises(NothingInCommonError, match=r"it has aorta, liver, spleen: say which is"):
        draft_by_totalsegmentator(project, cases, TotalSegmentator(task="organs"))
    (result,) = draft_by_totalsegmentator(
        project, cases, TotalSegmentator(task="organs"), names={"Spleen": "structure 1"}
    )
    assert (result.found, result.lacking) == (("structure 1",), ("structure 2",))
    assert "TotalSegmentator has none named structure 2" in result.line()
    with pytest.raises(DraftError, match="no structure 'structure 3'; did you mean"):
        draft_by_totalsegmentator(project, cases, names={"aorta": "structure 3"})


def test_a_failure_costs_one_case_and_is_one_line(project: Project) -> None:
    results = draft_by_totalsegmentator(project, program=TotalSegmentator(task="broken"))
    assert len(results) == 2
    for each in results:
        assert each.problem == (
            "TotalSegmentator failed (exit code 1): RuntimeError: CUDA out of memory"
        )
        assert kept_drafts(project, each.case_id) == ()


def test_without_the_program_a_line_says_what_to_install(
    project: Project, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DraftError, match="is not installed: pip install TotalSegmentator"):
        draft_by_totalsegmentator(project)
    with pytest.raises(DraftError, match="gone: no such program"):
        TotalSegmentator(executable="gone").find()
    install(tmp_path)  # on the search path
    assert TotalSegmentator().find().startswith(str(tmp_path))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_cancelling_ends_the_program_and_all_that_it_started(
    session: Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "pids"
    monkeypatch.setenv("STAND_IN_WAITS", str(told))
    session.review.tool_drafts.totalsegmentator(TotalSegmentator())
    until = time.monotonic() + 20
    while not (told.exists() and told.read_text().strip()):
        assert time.monotonic() < until
        time.sleep(0.05)
    began = time.monotonic()
    session.workspace.inference.cancel()
    assert session.workspace.inference.wait(10)
    assert time.monotonic() - began < 5
    started = {int(pid) for pid in told.read_text().split()}
    until = time.monotonic() + 5  # a busy machine takes a moment to end what was killed
    while left := {pid for pid in started if _runs(pid)}:
        assert time.monotonic() < until, left
        time.sleep(0.05)
    for case_id in unlabelled(session.workspace.open_project):
        assert kept_drafts(session.workspace.open_project, case_id) == ()


def test_progress_is_told_while_it_runs(project: Project) -> None:
    events = list(draft_by_totalsegmentator.events(project, cancel=threading.Event()))
    made = [each for each in events if isinstance(each, DraftMade)]
    assert [(each.done, each.total) for each in made] == [(1, 2), (2, 2)]


def test_a_draft_that_does_not_fit_is_refused(project: Project) -> None:
    case_id = unlabelled(project)[0]
    label = np.zeros(SHAPE, np.uint8)
    with pytest.raises(ProjectError, match="label of shape"):
        keep_draft(project, case_id, "tool:x", label[1:])
    for key in ("tool:../x", "tool:", "round:1"):
        with pytest.raises(ProjectError, match="no draft"):
            keep_draft(project, case_id, key, label)
    keep_draft(project, case_id, "tool:x", label).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"x\.nii\.gz"):
        kept_draft(project, case_id, "tool:x")


def test_the_command_drafts_and_tells(folder: Path, program: Path) -> None:
    arguments = ["draft", str(folder), "--from", "totalsegmentator", "--fast"]
    result = CliRunner().invoke(app, [*arguments, "--executable", str(program)])
    assert result.exit_code == 0, result.output
    assert result.stdout.count("a draft with 2 structures") == 2
    with Project.open(folder, read_only=True) as project:
        for case_id in unlabelled(project):
            assert kept_drafts(project, case_id) == (f"{KEY}_fast",)
