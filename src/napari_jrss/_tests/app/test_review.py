"""Reviewing without a window: open, correct, accept, recover."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_jrss._tests.app.phantoms import describe, give_networks, give_teacher
from napari_jrss.app.cohort import SplitCounts
from napari_jrss.app.review.consensus import average, with_votes
from napari_jrss.app.review.editor import Edit
from napari_jrss.app.review.review import Leave, Review, UnsavedError
from napari_jrss.app.session import Session
from napari_jrss.errors import ProjectError
from napari_jrss.io.predictions import Prediction, prediction_path
from napari_jrss.project.corrections import recover, unsaved
from napari_jrss.project.records import Split, Status
from napari_jrss.training.events import Event, StageStarted


def unlabelled(session: Session) -> str:
    return session.workspace.open_project.snapshot().unlabelled[0]


def opened(session: Session, case_id: str | None = None) -> Review:
    review = session.review
    review.open(case_id or unlabelled(session))
    assert review.wait(10)
    assert review.case is not None
    return review


@pytest.fixture
def failures(session: Session) -> list[Exception]:
    """What went wrong in the queue of the review."""
    found: list[Exception] = []
    session.review.queue.failed.connect(found.append)
    return found


def test_a_case_opens_with_its_pseudo_label_and_nothing_is_written(session: Session) -> None:
    review = opened(session)
    case = review.case
    assert case is not None
    assert case.prediction is not None
    assert case.image.shape == case.grid.shape
    np.testing.assert_array_equal(case.editor.label, case.prediction.label)
    assert case.editor.origin.draft == "round:0"
    assert not review.unsaved
    assert [source.draft for source in case.draft_choices] == ["round:0", "blank"]
    review.close_case()
    assert review.wait(10)
    assert not session.workspace.open_project.corrections_path(case.case_id).exists()


def test_a_labelled_case_opens_with_its_label_never_with_the_proposal(session: Session) -> None:
    labelled = session.workspace.open_project.snapshot().labelled[0]
    case = opened(session, labelled).case
    assert case is not None
    np.testing.assert_array_equal(case.editor.label, session.workspace.open_project.label(labelled))
    with pytest.raises(ProjectError, match="nothing was changed since v0001"):
        session.review.accept()


def test_accepting_a_corrected_case_makes_n_grow(session: Session) -> None:
    review, project = opened(session), session.workspace.open_project
    before = len(project.snapshot().labelled)
    case = review.case
    assert case is not None
    case.editor.label[0, :2, :2] = 2
    assert review.unsaved
    review.accept()
    assert review.wait(10)
    snapshot = project.snapshot()
    assert len(snapshot.labelled) == before + 1
    version = project.label_versions(case.case_id)[-1]
    assert version.status is Status.CORRECTED
    assert (version.author, version.draft, version.voxels_changed) == ("anna", "round:0", 4)
    assert version.seconds is not None
    np.testing.assert_array_equal(project.label(case.case_id), case.editor.label)
    assert not project.corrections_path(case.case_id).exists()
    assert not review.unsaved
    assert review.suggestion is not None
    assert review.suggestion.case_id != case.case_id


def test_an_unchanged_pseudo_label_is_accepted_as_such(session: Session) -> None:
    review = opened(session)
    review.accept()
    assert review.wait(10)
    case = session.workspace.open_project.case(review.open_case.case_id)
    assert case.status is Status.ACCEPTED


def test_accepting_during_training_leaves_the_round_its_own_labels(session: Session) -> None:
    project, stop = session.workspace.open_project, threading.Event()
    begun = project.snapshot()
    entry = project.start_round(0, describe(project), begun.label_versions)

    def fake_round(cancel: threading.Event) -> Iterator[Event]:
        yield StageStarted(stage="screening", steps=1)
        stop.wait(20)

    session.workspace.training.start(fake_round)
    try:
        review = opened(session)
        review.open_case.editor.label[0, 0, :3] = 1
        review.accept()
        assert review.wait(10)
        assert session.workspace.training.state.busy
        assert project.snapshot(entry.number).label_versions == begun.label_versions
        assert len(project.snapshot().labelled) == len(begun.labelled) + 1
    finally:
        stop.set()
        assert session.workspace.training.wait(5)


def test_corrections_survive_a_program_that_dies(
    session: Session, tmp_path: Path, failures: list[Exception]
) -> None:
    review = opened(session)
    editor, case_id = review.open_case.editor, review.open_case.case_id
    editor.label[0, 0, :5] = 1
    editor.sync()
    editor.label[1, 0, :5] = 2
    editor.sync()
    editor.undo()
    assert review.wait(10)
    path = session.workspace.open_project.path
    died = shutil.copytree(path, tmp_path / "died.jrss")

    other = Session(author="anna")
    other.open(died)
    try:
        assert other.review.wait(10)
        assert [entry.case_id for entry in other.review.unfinished] == [case_id]
        back = opened(other, case_id)
        assert back.open_case.recovered is not None
        np.testing.assert_array_equal(back.open_case.editor.label, editor.label)
        assert back.open_case.editor.voxels_changed == 5
        back.accept()
        assert back.wait(10)
        version = other.workspace.open_project.label_versions(case_id)[-1]
        assert (version.voxels_changed, version.draft) == (5, "round:0")
    finally:
        other.close()
    assert failures == []


def test_accepted_structures_are_accepted_still_when_the_case_is_opened_again(
    session: Session, tmp_path: Path
) -> None:
    first, second = session.workspace.open_project.snapshot().unlabelled[:2]
    review = opened(session, first)
    review.accept_structure(2)
    review.accept_structure(1)
    review.accept_structure(1, accepted=False)
    review.open(second)  # nothing was corrected: nobody is asked
    assert review.wait(10)
    died = shutil.copytree(session.workspace.open_project.path, tmp_path / "died.jrss")
    other = Session(author="anna")
    other.open(died)
    try:
        assert other.review.wait(10)
        (entry,) = other.review.unfinished
        assert (entry.case_id, entry.voxels_changed, entry.accepted) == (first, 0, {2})
        assert opened(other, first).open_case.editor.locked == {2}
    finally:
        other.close()

    review.open(first)
    assert review.wait(10)
    assert review.open_case.editor.locked == {2}
    voxels = np.flatnonzero(review.open_case.editor.label == 2)
    review.start_from("blank")
    assert review.wait(10)
    np.testing.assert_array_equal(np.flatnonzero(review.open_case.editor.label), voxels)
    review.accept()
    assert review.wait(10)
    review.open(second)
    assert review.wait(10)
    assert unsaved(session.workspace.open_project) == []


def test_giving_a_case_up_takes_its_ticks_away(session: Session) -> None:
    first, second = session.workspace.open_project.snapshot().unlabelled[:2]
    review = opened(session, first)
    review.accept_structure(2)
    review.open_case.editor.label[review.open_case.editor.label == 1] = 0
    review.open(second, "discard")
    assert review.wait(10)
    assert unsaved(session.workspace.open_project) == []
    assert opened(session, first).open_case.editor.locked == set()


@pytest.mark.slow
def test_corrections_are_saved_as_often_as_the_session_says(session: Session) -> None:
    changed = []
    for autosave_s in (60, 0.05):
        session.workspace.autosave_s = autosave_s
        review = opened(session)
        editor, case_id = review.open_case.editor, review.open_case.case_id
        for z in range(2):  # the first change is saved at once
            editor.label[z, 0, :5] = 1 + (editor.label[z, 0, 0] == 1)
            editor.sync()
            threading.Event().wait(0.6)
        changed.append(recover(session.workspace.open_project, case_id).voxels_changed)
        review.close_case(Leave.KEEP)
        assert review.wait(10)
        assert recover(session.workspace.open_project, case_id).voxels_changed > 5
        review.discard_unfinished(case_id)
        assert review.wait(10)
    late, soon = changed
    assert late == 5
    assert soon > 5


def test_a_disk_that_is_full_is_told_once_and_tried_again(
    session: Session, failures: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    session.workspace.autosave_s = 0.01
    review = opened(session)
    editor, case_id = review.open_case.editor, review.open_case.case_id

    def paint(z: int) -> None:
        editor.label[z, 0, :5] = 1 + (editor.label[z, 0, 0] == 1)
        editor.sync()
        assert review.wait(10)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("napari_jrss.project.corrections.write_bytes", full)
        paint(0)
        paint(1)
    assert [type(error) for error in failures] == [ProjectError]
    assert "No space left on device" in str(failures[0])
    paint(2)
    label = recover(session.workspace.open_project, case_id).label
    np.testing.assert_array_equal(label, editor.label)


def test_a_pause_is_no_work_and_a_stroke_costs_the_painter_nothing(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = opened(session).open_case
    indices = np.arange(0, case.editor.label.size, 2)
    before = case.editor.label.ravel()[indices]
    edit, spent = Edit("paint", indices, before, before), []
    for _ in range(50):
        started = time.perf_counter()
        case.autosave.note(edit)
        spent.append(time.perf_counter() - started)
    assert np.median(spent) < 2e-3
    moment, before = time.monotonic(), case.autosave.seconds
    for later in (10, 20, 3620):
        monkeypatch.setattr(time, "monotonic", lambda at=moment + later: at)
        case.autosave.touch()
    assert case.autosave.seconds == pytest.approx(before + 50, abs=1)
    monkeypatch.undo()


def test_a_case_with_corrections_is_not_left_by_accident(session: Session) -> None:
    first, second = session.workspace.open_project.snapshot().unlabelled[:2]
    review = opened(session, first)
    review.open_case.editor.label[0, 0, 0] = 1
    with pytest.raises(UnsavedError, match=first):
        review.open(second)
    review.ask = lambda case: None
    review.open(second)
    assert review.wait(10)
    assert review.open_case.case_id == first

    review.open(second, Leave.KEEP)
    assert review.wait(10)
    assert review.open_case.case_id == second
    review.open(first)
    assert review.wait(10)
    assert review.open_case.editor.voxels_changed == 1
    review.open(second, "discard")
    assert review.wait(10)
    review.open(first)
    assert review.wait(10)
    assert review.open_case.editor.voxels_changed == 0


@pytest.mark.parametrize("leave", ["accept", "keep"])
def test_closing_the_project_keeps_the_corrections(session: Session, leave: str) -> None:
    review = opened(session)
    case_id, path = review.open_case.case_id, session.workspace.open_project.path
    review.open_case.editor.label[0, 0, 0] = 1
    if leave == "accept":
        review.accept()
    session.close()
    assert review.case is None
    session.open(path)
    assert session.review.wait(10)
    assert [e.case_id for e in review.unfinished] == ([] if leave == "accept" else [case_id])


def test_tau_says_what_would_enter_training(session: Session) -> None:
    review = opened(session)
    everything = review.prediction.set_tau(0.0)
    assert everything.words == "100 % of voxels and 2 of 2 structures are sure enough to train on"
    assert not review.prediction.set_tau(1.0).classes_passed.any()
    assert review.open_case.structures()[0].passes is False


def test_the_most_uncertain_region_comes_first_and_then_round_again(session: Session) -> None:
    review = opened(session)
    review.prediction.next_uncertain()
    assert review.wait(10)
    assert review.prediction.region is not None
    z, y, x = review.prediction.region.at
    assert (8 <= z < 10, 6 <= y < 8, 4 <= x < 6) == (True, True, True)


def test_drafts_and_tools_share_one_undo(session: Session, failures: list[Exception]) -> None:
    review = opened(session)
    editor = review.open_case.editor
    start = editor.label.copy()

    def do(command: Callable[..., None], *arguments: object) -> None:
        command(*arguments)
        assert review.wait(10)

    do(review.start_from, "blank")
    assert not editor.label.any()
    assert editor.origin.draft == "blank"
    do(review.tools.take_structure, 1, "round:0")
    assert set(np.unique(editor.label)) == {0, 1}
    editor.label[0, 0, 0] = 1
    do(review.tools.keep_largest, 1)
    assert editor.label[0, 0, 0] == 0
    editor.label[6, 9, 7] = 0
    do(review.tools.fill_holes, 1)
    assert editor.label[6, 9, 7] == 1
    do(review.tools.smooth, 1)
    do(review.draft_from, np.ones_like(start), "case:A")
    assert editor.origin.draft == "blank"  # what was corrected stays
    with pytest.raises(UnsavedError, match="accept them first, or agree to replace them"):
        review.start_from("case:A")
    review.start_from("case:A", replace=True)
    assert review.wait(10)
    assert editor.origin.draft == "case:A"
    while editor.undo_name is not None:
        review.tools.undo()
    np.testing.assert_array_equal(editor.label, start)
    assert editor.origin.draft == "round:0"
    assert review.wait(10)
    assert failures == []


def test_an_accepted_structure_is_protected(session: Session) -> None:
    review = opened(session)
    editor = review.open_case.editor
    before = editor.label.copy()
    review.accept_structure(1)
    editor.label[:] = 2
    editor.sync()
    np.testing.assert_array_equal(editor.label == 1, before == 1)
    with pytest.raises(ProjectError, match="is accepted"):
        review.tools.smooth(1)
    assert [row.accepted for row in review.open_case.structures()] == [True, False]
    review.accept_structure(1, False)
    editor.label[:] = 2
    editor.sync()
    assert (editor.label == 2).all()


def test_reject_and_skip_are_recorded_and_another_case_is_suggested(session: Session) -> None:
    review, project = opened(session), session.workspace.open_project
    case_id = review.open_case.case_id
    with pytest.raises(ProjectError, match="needs a reason"):
        review.skip(" ")
    review.skip("motion")
    assert review.wait(10)
    entry = project.history(case_id)[-1]
    assert (str(entry.kind), entry.author) == ("skipped", "anna")
    assert "motion" in entry.detail
    review.reject()
    assert review.wait(10)
    assert project.case(case_id).status is Status.REJECTED
    assert review.suggestion is not None
    assert review.suggestion.case_id != case_id


def test_a_read_only_project_can_only_be_looked_at(taught_once: Path) -> None:
    session = Session(author="anna")
    session.open(taught_once, read_only=True)
    try:
        review = opened(session)
        for command in (review.accept, review.reject, review.tools.revert):
            with pytest.raises(ProjectError, match="read-only"):
                command()
        with pytest.raises(ProjectError, match="read-only"):
            review.start_from("blank")
        assert not review.unsaved
    finally:
        session.close()


def test_a_label_needs_a_name(session: Session) -> None:
    review = opened(session)
    session.workspace.author = ""
    review.open_case.editor.label[0, 0, 0] = 1
    with pytest.raises(ProjectError, match="author"):
        review.accept()
    session.workspace.author = "berta"
    review.accept()
    assert review.wait(10)
    version = session.workspace.open_project.label_versions(review.open_case.case_id)[-1]
    assert version.author == "berta"


def test_a_test_case_says_that_it_never_trains(session: Session) -> None:
    cases = {case.split: case.case_id for case in session.workspace.open_project.cases()}
    review, n = (
        opened(session, cases["test"]),
        len(session.workspace.open_project.snapshot().labelled),
    )
    assert "never trains" in review.open_case.purpose
    review.open_case.editor.label[0, 0, 0] = 1
    review.accept()
    assert review.wait(10)
    assert len(session.workspace.open_project.snapshot().labelled) == n


def test_the_suggested_case_is_read_before_it_is_opened(session: Session) -> None:
    review, project = opened(session), session.workspace.open_project
    review.ahead.cases = 1
    review.suggest_next()
    assert review.wait(10)
    assert session.review.stop_background()
    assert review.wait(10)
    assert review.suggestion is not None
    name = review.suggestion.case_id
    scan = project.scan_image(name)
    shutil.rmtree(project.case_path(name) / "scan" / "image")
    case = opened(session, name).open_case
    np.testing.assert_array_equal(case.image, scan)
    assert case.editor.origin.draft == "round:0"


def test_a_draft_that_was_carried_to_the_scan_is_not_carried_again(session: Session) -> None:
    first, second = session.workspace.open_project.snapshot().unlabelled[:2]
    drafts = [opened(session, name).open_case.editor.origin for name in (first, second, first)]
    assert drafts[2].label is drafts[0].label
    assert drafts[1].label is not drafts[0].label


def test_the_latest_of_many_wishes_is_on_the_table(session: Session) -> None:
    cases = [case.case_id for case in session.workspace.open_project.cases()]
    for case_id in cases:
        session.review.open(case_id)
    assert session.review.wait(20)
    assert session.review.open_case.case_id == cases[-1]


def test_a_new_teacher_changes_the_proposal_but_not_a_persons_work(session: Session) -> None:
    review, project = opened(session), session.workspace.open_project
    review.open_case.editor.label[0, 0, 0] = 1
    review.open_case.editor.sync()
    mine = review.open_case.editor.label.copy()
    number = give_teacher(project, seed=1)
    session.workspace.rounds_changed.emit()
    assert review.wait(10)
    assert review.open_case.teacher is not None
    assert review.open_case.teacher.number == number
    np.testing.assert_array_equal(review.open_case.editor.label, mine)
    assert review.open_case.editor.origin.draft == "round:0"


def forget_prediction(session: Session, case_id: str) -> None:
    teacher = session.workspace.open_project.teacher
    assert teacher is not None
    shutil.rmtree(prediction_path(teacher.files.predictions, case_id))


def until(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        threading.Event().wait(0.1)
    raise TimeoutError


def test_a_missing_prediction_is_made_in_the_background(
    session: Session, failures: list[Exception]
) -> None:
    case_id = unlabelled(session)
    give_networks(session.workspace.open_project)
    forget_prediction(session, case_id)
    gate = threading.Event()

    def another_job(cancel: threading.Event) -> Iterator[object]:
        gate.wait(20)
        yield "done"

    session.workspace.inference.start(another_job)
    review = opened(session, case_id)
    assert review.open_case.prediction is None
    assert review.open_case.editor.origin.draft == "blank"
    gate.set()  # the prediction waited for its turn
    until(lambda: review.open_case.screened is not None)
    prediction = review.open_case.prediction
    assert prediction is not None
    # Nobody had touched the blank label, so the proposal takes its place.
    assert review.open_case.editor.origin.draft == "round:0"
    np.testing.assert_array_equal(review.open_case.editor.label, prediction.label)
    teacher = session.workspace.open_project.teacher
    assert teacher is not None
    assert teacher.files.has_prediction(case_id)
    assert session.workspace.inference.wait(20)
    assert failures == []


def test_a_late_prediction_never_overwrites_what_was_painted(session: Session) -> None:
    case_id = unlabelled(session)
    give_networks(session.workspace.open_project)
    forget_prediction(session, case_id)
    gate = threading.Event()

    def another_job(cancel: threading.Event) -> Iterator[object]:
        gate.wait(20)
        yield "done"

    session.workspace.inference.start(another_job)
    review = opened(session, case_id)
    review.open_case.editor.label[3, 3, 3] = 2
    mine = review.open_case.editor.label.copy()
    gate.set()
    until(lambda: review.open_case.screened is not None)
    np.testing.assert_array_equal(review.open_case.editor.label, mine)
    assert review.open_case.editor.origin.draft == "blank"
    assert session.workspace.inference.wait(20)


def test_labelled_cases_propagate_to_a_draft(session: Session) -> None:
    give_networks(session.workspace.open_project)
    review = opened(session)
    labelled = session.workspace.open_project.snapshot().labelled
    review.prediction.propagate()
    assert session.workspace.inference.wait(60)
    assert session.workspace.inference.error is None
    draft = "case:" + ",".join(labelled)
    assert draft in [source.draft for source in review.open_case.draft_choices]
    review.start_from(draft)
    assert review.wait(10)
    assert review.open_case.editor.origin.draft == draft
    assert review.open_case.editor.label.any()
    review.accept()
    assert review.wait(10)
    version = session.workspace.open_project.label_versions(review.open_case.case_id)[-1]
    assert (version.draft, version.status) == (draft, Status.ACCEPTED)


def test_the_average_of_the_vote_and_the_teacher_is_a_draft_too(session: Session) -> None:
    give_networks(session.workspace.open_project)
    review, said = opened(session), []
    session.workspace.notified.connect(said.append)
    case, project = review.open_case, session.workspace.open_project
    review.prediction.propagate()
    assert session.workspace.inference.wait(60)
    vote, both = (source.draft for source in case.draft_choices if "case:" in source.draft)
    assert both == f"{vote}+round:0"
    teacher = case.prediction
    assert teacher is not None
    agreed = case.drafts[vote] == teacher.label
    assert agreed.any()
    np.testing.assert_array_equal(case.drafts[both][agreed], teacher.label[agreed])
    assert len(said) == 1
    assert said[0].endswith("averaged with the teacher's of round 0 is ready, see Draft")
    review.start_from(both)
    review.accept()
    assert review.wait(10)
    assert project.label_versions(case.case_id)[-1].draft == both


def test_an_average_takes_the_class_with_the_largest_mean_probability() -> None:
    def say(*opinions: tuple[int, float, int, float]) -> Prediction:
        label, sure, second, less = (np.array([[values]]) for values in zip(*opinions, strict=True))
        return Prediction(
            label.astype(np.uint8),
            sure.astype(np.float16),
            None,
            second.astype(np.uint8),
            less.astype(np.float16),
        )

    one = say((1, 0.6, 2, 0.4), (1, 0.5, 0, 0.5), (3, 0.5, 2, 0.4), (1, 1, 0, 0))
    other = say((2, 0.9, 1, 0.1), (1, 0.5, 2, 0.5), (1, 0.5, 2, 0.4), (2, 1, 0, 0))
    both = average(one, other)
    assert both.label.ravel().tolist() == [2, 1, 2, 1]
    np.testing.assert_allclose(both.confidence.ravel(), [0.65, 0.5, 0.4, 0.5], atol=1e-3)
    assert both.second is not None
    assert both.second.ravel().tolist() == [1, 0, 3, 2]
    alone = Prediction(one.label, one.confidence)  # of an older version
    assert average(alone, alone).label.tolist() == one.label.tolist()
    # A single voter, always sure, counts half as much as a teacher; a hundred count as much.
    teacher, vote = say((1, 0.8, 2, 0.2)), say((2, 1, 0, 0))
    assert with_votes(teacher, vote, 1).label.item() == 1
    assert with_votes(teacher, vote, 100).label.item() == 2


def test_a_case_that_can_not_be_read_leaves_the_present_one_as_it_was(
    session: Session, failures: list[Exception]
) -> None:
    review = opened(session)
    case, other = review.open_case, session.workspace.open_project.snapshot().labelled[0]
    case.editor.label[0, 0, :2] = 1
    case.editor.sync()
    assert review.wait(10)
    session.workspace.open_project.corrections_path(other).write_bytes(b"damaged")
    review.open(other, Leave.KEEP)
    assert review.wait(10)
    assert [type(error) for error in failures] == [ProjectError]
    assert review.case is case
    case.editor.label[0, 0, 2:5] = 1
    case.editor.sync()
    assert review.wait(10)
    review.draft_from(case.editor.snapshot(), "case:A")  # of the case that is here
    assert review.wait(10)
    assert "case:A" in case.drafts
    review.accept()
    assert review.wait(10)
    assert not session.workspace.open_project.corrections_path(case.case_id).exists()
    review.close_case()
    again = opened(session, case.case_id).open_case
    assert again.editor.origin.draft == f"version:{again.versions[-1].version}"
    assert (again.editor.label[0, 0, :5] == 1).all()


def test_what_is_painted_while_the_next_case_is_read_is_kept_for_later(
    session: Session, failures: list[Exception]
) -> None:
    review = opened(session)
    case, other = review.open_case, session.workspace.open_project.snapshot().labelled[0]
    gate = threading.Event()
    review.queue.submit(gate.wait)  # a slow disk
    assert review.open(other)
    case.editor.label[0, 0, :3] = 1
    case.editor.sync()
    case.editor.label[0, 1, :3] = 1  # a stroke under way
    gate.set()
    assert review.wait(10)
    assert review.open_case.case_id == other
    [entry] = review.unfinished
    assert (entry.case_id, entry.voxels_changed) == (case.case_id, 6)
    assert not [t for t in threading.enumerate() if t.name.startswith("journal")]
    back = opened(session, case.case_id).open_case
    assert (back.editor.label[0, :2, :3] == 1).all()
    assert review.unfinished == []
    assert failures == []


def test_accepting_twice_at_once_makes_one_version(session: Session) -> None:
    review = opened(session)
    case = review.open_case
    case.editor.label[0, 0, :3] = 1
    gate = threading.Event()
    review.queue.submit(gate.wait)
    review.accept()
    review.accept()
    gate.set()
    assert review.wait(10)
    before, version = session.workspace.open_project.label_versions(case.case_id)
    assert before.author == "import"
    assert (version.status, version.voxels_changed) == (Status.CORRECTED, 3)
    assert case.recovered is None


def test_asking_for_the_case_that_is_here_asks_nothing_and_keeps_the_undo(
    session: Session,
) -> None:
    review = opened(session)
    case = review.open_case
    case.editor.label[0, 0, :3] = 1
    case.editor.sync()
    assert review.open(case.case_id)
    assert review.wait(10)
    assert review.open_case is case
    assert case.editor.undo_name == "paint"
    # asked for with an answer, it is read again with its corrections
    assert review.open(case.case_id, Leave.KEEP)
    assert review.wait(10)
    assert review.open_case is not case
    assert (review.open_case.editor.label[0, 0, :3] == 1).all()
    assert review.open_case.recovered is not None


def test_the_case_on_the_table_follows_a_split_and_new_names(
    trainable_once: Path, tmp_path: Path
) -> None:
    session = Session(author="anna")
    session.open(shutil.copytree(trainable_once, tmp_path / "brain.jrss"))
    project = session.workspace.open_project
    review = opened(session, project.snapshot().labelled[0])
    session.cohort.rename(1, "first")
    assert review.wait(10)
    case = review.open_case
    assert case.structures()[0].name == "first"
    assert case.case.labelled
    for seed in range(50):
        session.cohort.split(SplitCounts(labelled=1, validation=1, test=1), seed=seed)
        now = project.case(case.case_id)
        if now.split is Split.TRAIN and not now.labelled:
            break
    else:
        pytest.fail("no seed hides its label")
    assert review.wait(10)
    assert review.open_case.case == now
    # its label is hidden from training, so from the person who labels it as well
    assert [source.draft for source in review.open_case.draft_choices] == ["blank"]
    assert not review.open_case.editor.label.any()
    session.close()


def test_after_a_decision_the_suggested_case_opens_if_that_is_wanted(session: Session) -> None:
    review = opened(session)
    first = review.open_case.case_id
    review.skip("later")
    assert review.wait(10)
    assert review.open_case.case_id == first
    review.accept(go_on=True)
    assert review.wait(10)
    assert review.open_case.case_id != first
    assert review.open_case.awaited


def test_structures_that_are_missing_are_those_of_the_draft_or_all_of_an_empty_one(
    session: Session,
) -> None:
    case = opened(session).open_case
    assert case.missing() == []
    case.editor.label[case.editor.label == 1] = 0
    case.editor.sync()
    assert case.missing() == [case.table.names[1]]
    session.review.start_from("blank", replace=True)
    assert session.review.wait(10)
    assert case.missing() == list(case.table.names[1:])


def test_a_structure_is_found_in_its_largest_slice(session: Session) -> None:
    case = opened(session).open_case
    case.editor.label[:] = 0
    case.editor.label[3, 2:4, 2:4] = 1
    case.editor.label[5, 4:9, 6:9] = 1
    case.editor.sync()
    assert case.middle_of(1, axis=0) == (5, 6, 7)
    assert case.middle_of(1, axis=1) == (5, 4, 7)
    assert case.structures_in(0, 5) == {1}
    assert case.structures_in(0, 6) == set()
    assert case.middle_of(2, axis=0) is None


def test_a_ct_can_be_seen_through_its_windows(session: Session) -> None:
    case = opened(session).open_case
    assert list(case.windows) == ["Automatic", "Whole range"]
    case.extremes = (-1024.0, 2000.0)
    assert case.windows["CT soft tissue"] == (-160, 240)
