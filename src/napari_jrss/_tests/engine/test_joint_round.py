"""The order of a round, what it leaves on disk, whom it reads, and how it goes on after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from napari_jrss._tests.engine.phantoms import (
    CASES,
    LABELLED,
    NAMES,
    UNLABELLED,
    VALIDATION,
    AfterSteps,
    Never,
    RecordingArrays,
    assert_same_tensors,
    cpu,
    kinds,
    snapshot,
    tiny_config,
    weights,
    write_parent,
)
from napari_jrss.data.batches import CohortSnapshot
from napari_jrss.data.predictions import read_prediction
from napari_jrss.engine.events import Cancelled, Event, RoundFinished, StageStarted, StepEnd
from napari_jrss.engine.joint_round import (
    METRICS,
    PREDICTIONS,
    REGISTRATION,
    STUDENT,
    TEACHER,
    Round,
    RoundError,
    describe,
    labelled_classes,
    run_round,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thread pools cost more than they bring on 16 voxels."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained networks."""
    return write_parent(tmp_path_factory.mktemp("rounds") / "0000")


def joint(folder: Path, parent: Path, cohort: CohortSnapshot | None = None, **changes) -> Round:
    return Round(1, cohort or snapshot(), tiny_config(**changes), folder, parent)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def run(this: Round, cancel: AfterSteps | Never | None = None) -> list[Event]:
    return list(run_round(this, cpu(), cancel or Never()))


def test_pretraining_leaves_both_networks_and_a_prediction_of_each_unlabelled_case(
    tmp_path: Path,
) -> None:
    cohort = snapshot()
    events = run(Round(0, cohort, tiny_config(), tmp_path))
    assert kinds(events) == [
        ("stage_started", "mono_segmentation"),
        ("stage_finished", "mono_segmentation"),
        ("stage_started", "mono_registration"),
        ("stage_finished", "mono_registration"),
        ("stage_started", "prediction"),
        *[("case_screened", "prediction")] * len(UNLABELLED),
        ("stage_finished", "prediction"),
        ("round_finished", ""),
    ]
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        METRICS,
        PREDICTIONS,
        REGISTRATION,
        TEACHER,
    }
    assert {p.name for p in (tmp_path / PREDICTIONS).iterdir()} == {
        f"{case}.zarr" for case in UNLABELLED
    }
    assert read_prediction(tmp_path / PREDICTIONS, "u").uncertainty is None
    finished = events[-1]
    assert isinstance(finished, RoundFinished)
    assert finished.metrics["labelled"] == len(LABELLED)
    assert {"validation_segmentation_dice", "validation_registration_dice"} <= set(finished.metrics)


def test_a_round_screens_registers_teaches_and_predicts_in_the_papers_order(
    tmp_path: Path, parent: Path
) -> None:
    before = files(parent)
    events = run(joint(tmp_path, parent))
    assert kinds(events) == [
        ("stage_started", "screening"),
        *[("case_screened", "screening")] * len(UNLABELLED),
        ("stage_started", "registration_1"),
        ("stage_finished", "registration_1"),
        ("stage_started", "student_1"),
        ("stage_finished", "student_1"),
        ("stage_started", "prediction"),
        *[("case_screened", "prediction")] * len(UNLABELLED),
        ("stage_finished", "prediction"),
        ("round_finished", ""),
    ]
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.json",
        METRICS,
        PREDICTIONS,
        REGISTRATION,
        STUDENT,
        TEACHER,
    }
    uncertainty = read_prediction(tmp_path / PREDICTIONS, "u").uncertainty
    assert uncertainty is not None
    assert uncertainty.min() >= 0
    assert files(parent) == before
    recorded = metrics(tmp_path)
    assert {line["kind"] for line in recorded} == {"case_screened", "epoch_end", "stage_finished"}
    last = events[-1]
    assert isinstance(last, RoundFinished)
    accepted = [e.accepted for e in events if e.kind == "case_screened" and e.stage == "prediction"]
    assert last.metrics["accepted"] == sum(accepted)


def test_the_configuration_tells_settings_cases_and_label_versions(
    tmp_path: Path, parent: Path
) -> None:
    this = joint(tmp_path, parent)
    run(this, AfterSteps(0))
    description = json.loads((tmp_path / "config.json").read_text())
    assert description == json.loads(describe(this.snapshot, this.config))
    assert description["labelled"] == list(LABELLED)
    assert description["label_versions"] == {case: "v0001" for case in (*LABELLED, *VALIDATION)}
    assert description["training"]["screening"]["tau"] == 0.2


def test_labels_are_read_of_labelled_and_validation_cases_only_and_test_cases_never(
    tmp_path: Path, parent: Path
) -> None:
    for folder, origin in ((tmp_path / "0", None), (tmp_path / "1", parent)):
        arrays = RecordingArrays()
        run(Round(1, snapshot(arrays=arrays), tiny_config(), folder, origin))
        assert {case for kind, case in arrays.read if kind == "label"} == {*LABELLED, *VALIDATION}
        assert {case for kind, case in arrays.read if kind == "image"} == set(CASES)


@pytest.mark.parametrize(
    ("origin", "registration_epochs", "stage"),
    [(None, 1, "mono_segmentation"), ("p", 1, "registration_1"), ("p", 0, "student_1")],
)
def test_validation_cases_have_no_part_in_a_step(
    origin: str | None, registration_epochs: int, stage: str, tmp_path: Path, parent: Path
) -> None:
    losses = []
    for name, validation in (("with", VALIDATION), ("without", ())):
        cohort = snapshot(validation=validation)
        config = tiny_config(joint={"registration_epochs": registration_epochs})
        this = Round(1, cohort, config, tmp_path / name, parent if origin else None)
        steps = [e for e in run(this, AfterSteps(6)) if isinstance(e, StepEnd)]
        losses.append([event.losses for event in steps if event.stage == stage])
    assert len(losses[0]) >= 2
    assert losses[0] == losses[1]


def test_without_registration_epochs_the_parents_network_is_used(
    tmp_path: Path, parent: Path
) -> None:
    events = run(joint(tmp_path, parent, joint={"registration_epochs": 0}))
    assert ("stage_started", "registration_1") not in kinds(events)
    assert torch.equal(
        weights(tmp_path)[REGISTRATION]["backbone.head.weight"],
        weights(parent)[REGISTRATION]["backbone.head.weight"],
    )


def test_the_parents_predictions_are_screened_and_a_later_case_is_predicted(
    tmp_path: Path, parent: Path
) -> None:
    own = shutil.copytree(parent, tmp_path / "0")
    run(Round(0, snapshot(unlabelled=("u", "v")), tiny_config(), own))
    told = {
        event.case_id: event
        for event in run_round(joint(tmp_path / "1", own), cpu(), AfterSteps(3))
        if event.kind == "case_screened"
    }
    assert set(told) == set(UNLABELLED)
    assert not (own / PREDICTIONS / "w.zarr").exists()
    shutil.rmtree(own / PREDICTIONS / "v.zarr")
    events = run_round(joint(tmp_path / "2", own), cpu(), AfterSteps(3))
    again = {event.case_id: event for event in events if event.kind == "case_screened"}
    assert again == told


@pytest.mark.parametrize(
    ("cohort", "message"),
    [
        (snapshot(labelled=()), "no training case has a label"),
        (snapshot(labelled=("a",), unlabelled=()), "at least two training cases"),
        (snapshot(unlabelled=()), "needs unlabelled training cases"),
    ],
)
def test_a_cohort_that_cannot_train_is_refused_before_anything_is_written(
    cohort: CohortSnapshot, message: str, tmp_path: Path, parent: Path
) -> None:
    with pytest.raises(RoundError, match=message):
        run(joint(tmp_path / "1", parent, cohort))
    assert not (tmp_path / "1").exists()


def test_a_label_table_without_structures_is_refused(tmp_path: Path) -> None:
    cohort = snapshot()
    object.__setattr__(cohort, "class_names", NAMES[:1])
    with pytest.raises(RoundError, match="no structure to learn"):
        run(Round(0, cohort, tiny_config(), tmp_path))


def test_a_teacher_that_is_sure_of_nothing_says_so(tmp_path: Path, parent: Path) -> None:
    with pytest.raises(RoundError, match=r"passes tau = 1\.0.*lower tau"):
        run(joint(tmp_path, parent, screening={"tau": 1.0}))


def test_classes_that_must_pass_are_those_of_the_labelled_cases() -> None:
    assert labelled_classes(snapshot()) == (1, 2)


@pytest.mark.parametrize("origin", [None, "parent"])
def test_a_round_cancelled_again_and_again_ends_like_the_straight_run(
    origin: str | None, tmp_path: Path, parent: Path
) -> None:
    start = parent if origin else None
    run(Round(1, snapshot(), tiny_config(), tmp_path / "straight", start))
    broken = Round(1, snapshot(), tiny_config(), tmp_path / "broken", start)
    # One more look than a stage and its screening repeat before they get on.
    for look in (0, 1, 2, 4, 4, 4, 4, 4, 5, 5, 5, 5):
        events = run(broken, AfterSteps(look))
        if isinstance(events[-1], RoundFinished):
            break
        assert isinstance(events[-1], Cancelled)
        steps = [e for e in events if isinstance(e, StepEnd)]
        assert len(steps) <= look
    else:
        events = run(broken)
    assert isinstance(events[-1], RoundFinished)
    assert_same_tensors(weights(tmp_path / "straight"), weights(tmp_path / "broken"))
    assert files(tmp_path / "straight") == files(tmp_path / "broken")


def test_what_is_done_is_not_done_again(tmp_path: Path, parent: Path) -> None:
    this = joint(tmp_path, parent)
    finished = run(this)[-1]
    before = files(tmp_path)
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")}
    events = run(this)
    assert [e for e in events if isinstance(e, StepEnd)] == []
    assert events[-1] == finished
    assert files(tmp_path) == before
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*.safetensors")} == stamps


def test_a_resumed_stage_tells_where_it_goes_on(tmp_path: Path) -> None:
    this = Round(0, snapshot(), tiny_config(), tmp_path)
    cancelled = run(this, AfterSteps(3))[-1]
    assert cancelled == Cancelled(stage="mono_segmentation", step=3)
    started = run(this, AfterSteps(0))[0]
    assert isinstance(started, StageStarted)
    assert started.first_step == 3
    assert started.best is not None


def test_leftovers_of_a_kill_and_half_a_line_are_swept(tmp_path: Path) -> None:
    this = Round(0, snapshot(), tiny_config(), tmp_path)
    run(this, AfterSteps(3))
    whole = (tmp_path / METRICS).read_text()
    (tmp_path / METRICS).write_text(whole + '{"kind":"epoch_e')
    (tmp_path / ".teacher.safetensors.123").write_bytes(b"half")
    (tmp_path / PREDICTIONS / ".u.zarr.123").mkdir(parents=True)
    run(this, AfterSteps(0))
    assert (tmp_path / METRICS).read_text() == whole
    assert [p.name for p in tmp_path.rglob(".*")] == []
