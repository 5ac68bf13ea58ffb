"""The order of a round, what it leaves on disk, whom it reads, and how it goes on after a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from napari_jrss._tests.training.phantoms import (
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
from napari_jrss.io.predictions import read_prediction, write_prediction
from napari_jrss.io.round_files import RoundFiles
from napari_jrss.snapshot import CohortSnapshot
from napari_jrss.training.events import (
    Cancelled,
    CaseJudged,
    CaseScreened,
    EpochEnd,
    Event,
    RoundFinished,
    StageFinished,
    StageStarted,
    StepEnd,
    parse_event,
)
from napari_jrss.training.round import RoundTask, labelled_classes, run_round
from napari_jrss.training.trainable import RoundError

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Thread pools cost more than they bring on 16 voxels."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Straight:
    """A round that nothing interrupted, whom it read, and its parent as it was before."""

    this: RoundTask
    events: list[Event]
    read: list[tuple[str, str]]
    parent_before: dict[str, bytes]


def straight(folder: Path, parent: Path | None) -> Straight:
    arrays = RecordingArrays()
    this = RoundTask(1, snapshot(arrays=arrays), tiny_config(), folder, parent)
    before = files(parent) if parent else {}
    return Straight(this, run(this), arrays.read, before)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of untrained networks."""
    return write_parent(tmp_path_factory.mktemp("rounds") / "0000")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Straight:
    return straight(tmp_path_factory.mktemp("rounds") / "0000", None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, parent: Path) -> Straight:
    return straight(tmp_path_factory.mktemp("rounds") / "0001", parent)


def joint(folder: Path, parent: Path, cohort: CohortSnapshot | None = None, **changes) -> RoundTask:
    return RoundTask(1, cohort or snapshot(), tiny_config(**changes), folder, parent)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run(this: RoundTask, cancel: AfterSteps | Never | None = None) -> list[Event]:
    return list(run_round(this, cpu(), cancel or Never()))


def test_pretraining_leaves_both_networks_and_a_prediction_of_each_unlabelled_case(
    pretrained: Straight,
) -> None:
    assert kinds(pretrained.events) == [
        ("stage_started", "mono_segmentation"),
        ("stage_finished", "mono_segmentation"),
        ("stage_started", "mono_registration"),
        ("stage_finished", "mono_registration"),
        ("stage_started", "prediction"),
        *[("case_judged", "prediction")] * len(LABELLED),
        *[("case_screened", "prediction")] * len(UNLABELLED),
        ("stage_finished", "prediction"),
        ("round_finished", ""),
    ]
    folder = pretrained.this.folder
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "predictions",
        "registration.safetensors",
        "teacher.safetensors",
    }
    assert {p.stem for p in (folder / "predictions").iterdir()} == set(UNLABELLED)
    assert read_prediction(folder / "predictions", "u").uncertainty is None
    last = pretrained.events[-1]
    assert isinstance(last, RoundFinished)
    assert last.metrics["labelled"] == len(LABELLED)
    assert {"validation_segmentation_dice", "validation_registration_dice"} <= set(last.metrics)
    assert last.warning.startswith("Not learned yet: ")  # in the few steps of a test


def test_a_round_screens_registers_teaches_and_predicts_in_the_papers_order(
    finished: Straight, parent: Path
) -> None:
    events, folder = finished.events, finished.this.folder
    assert kinds(events) == [
        ("stage_started", "screening"),
        *[("case_screened", "screening")] * len(UNLABELLED),
        ("stage_started", "registration_1"),
        ("stage_finished", "registration_1"),
        ("stage_started", "student_1"),
        ("stage_finished", "student_1"),
        ("stage_started", "prediction"),
        *[("case_judged", "prediction")] * len(LABELLED),
        *[("case_screened", "prediction")] * len(UNLABELLED),
        ("stage_finished", "prediction"),
        ("round_finished", ""),
    ]
    assert {p.name for p in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "predictions",
        "registration.safetensors",
        "student.safetensors",
        "teacher.safetensors",
    }
    uncertainty = read_prediction(folder / "predictions", "u").uncertainty
    assert uncertainty is not None
    assert uncertainty.min() >= 0
    assert files(parent) == finished.parent_before
    screened = [e for e in events if isinstance(e, CaseScreened)]
    last = events[-1]
    assert isinstance(last, RoundFinished)
    assert last.metrics["accepted"] == sum(e.accepted for e in screened if e.stage == "prediction")


def test_metrics_are_the_events_that_outlive_a_run(finished: Straight) -> None:
    lines = finished.this.files.metrics.read_text().splitlines()
    kinds_kept = EpochEnd | CaseScreened | CaseJudged | StageFinished
    kept = [e for e in finished.events if isinstance(e, kinds_kept)]
    assert [parse_event(line) for line in lines] == kept
    assert {event.kind for event in kept} == {
        "case_judged",
        "case_screened",
        "epoch_end",
        "stage_finished",
    }


def test_the_configuration_tells_settings_cases_and_label_versions(
    tmp_path: Path, parent: Path
) -> None:
    this = joint(tmp_path, parent)
    run(this, AfterSteps(0))
    description = json.loads((tmp_path / "config.json").read_text())
    assert description["training"] == json.loads(this.config.model_dump_json())
    assert description["labelled"] == list(LABELLED)
    assert description["label_versions"] == {case: "v0001" for case in (*LABELLED, *VALIDATION)}
    assert description["training"]["screening"]["tau"] == 0.2


def test_labels_are_read_of_labelled_and_validation_cases_only_and_test_cases_never(
    pretrained: Straight, finished: Straight
) -> None:
    for each in (pretrained, finished):
        assert {case for kind, case in each.read if kind == "label"} == {*LABELLED, *VALIDATION}
        assert {case for kind, case in each.read if kind == "image"} == set(CASES)


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
        this = RoundTask(1, cohort, config, tmp_path / name, parent if origin else None)
        steps = [e for e in run(this, AfterSteps(6)) if isinstance(e, StepEnd)]
        losses.append([event.losses for event in steps if event.stage == stage])
    # a look between validation cases takes the place of one before a step
    shared = min(map(len, losses))
    assert shared >= 2
    assert losses[0][:shared] == losses[1][:shared]


def test_without_registration_epochs_the_parents_network_is_used(
    tmp_path: Path, parent: Path
) -> None:
    events = run(joint(tmp_path, parent, joint={"registration_epochs": 0}))
    assert ("stage_started", "registration_1") not in kinds(events)
    assert torch.equal(
        weights(tmp_path)["registration.safetensors"]["backbone.head.weight"],
        weights(parent)["registration.safetensors"]["backbone.head.weight"],
    )


def test_the_parents_predictions_are_screened_and_a_later_case_is_predicted(
    tmp_path: Path, pretrained: Straight
) -> None:
    own = shutil.copytree(pretrained.this.folder, tmp_path / "0")

    def screened(name: str) -> list[Event]:
        events = run_round(joint(tmp_path / name, own), cpu(), AfterSteps(3))
        return [event for event in events if isinstance(event, CaseScreened)]

    told = screened("1")
    assert [event.case_id for event in told if isinstance(event, CaseScreened)] == [*UNLABELLED]
    shutil.rmtree(own / "predictions" / "w.zarr")
    assert screened("2") == told
    assert not (own / "predictions" / "w.zarr").exists()
    # It is the prediction on disk that counts, not a new one.
    told_w = read_prediction(own / "predictions", "v")
    write_prediction(own / "predictions", "u", told_w)
    assert screened("3")[0] != told[0]


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
        run(RoundTask(0, cohort, tiny_config(), tmp_path))


def test_a_teacher_that_is_sure_of_nothing_says_so(tmp_path: Path, parent: Path) -> None:
    with pytest.raises(RoundError, match=r"passes tau = 1\.0.*lower tau"):
        run(joint(tmp_path, parent, screening={"tau": 1.0}))


def test_classes_that_must_pass_are_those_of_the_labelled_cases() -> None:
    assert labelled_classes(snapshot()) == (1, 2)


@pytest.mark.parametrize("name", ["pretrained", "finished"])
def test_a_round_cancelled_again_and_again_ends_like_the_straight_run(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    expected: Straight = request.getfixturevalue(name)
    broken = replace(expected.this, folder=tmp_path)
    # One more look than a stage and its screening repeat before they get on.
    for look in (0, 1, 2, 4, 4, 5, 5, 6, 6, 8, 10, 12):
        events = run(broken, AfterSteps(look))
        if isinstance(events[-1], RoundFinished):
            break
        assert isinstance(events[-1], Cancelled)
        assert sum(isinstance(e, StepEnd) for e in events) <= look
    assert isinstance(events[-1], RoundFinished)
    assert_same_tensors(weights(tmp_path), weights(expected.this.folder))
    assert files(tmp_path) == files(expected.this.folder)


def test_what_is_done_is_not_done_again(finished: Straight, tmp_path: Path) -> None:
    folder = shutil.copytree(finished.this.folder, tmp_path / "again")
    before = files(folder)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    events = run(replace(finished.this, folder=folder))
    assert [e for e in events if isinstance(e, StepEnd)] == []
    assert events[-1] == finished.events[-1]
    assert files(folder) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_the_seed_decides(pretrained: Straight, tmp_path: Path) -> None:
    other = replace(pretrained.this, folder=tmp_path, config=tiny_config(seed=1))
    steps = [e.losses for e in run(other, AfterSteps(2)) if isinstance(e, StepEnd)]
    first = [e.losses for e in pretrained.events if isinstance(e, StepEnd)][:2]
    assert len(steps) == 2
    assert steps != first


def test_a_resumed_stage_tells_where_it_goes_on(tmp_path: Path) -> None:
    this = RoundTask(0, snapshot(), tiny_config(), tmp_path)
    cancelled = run(this, AfterSteps(5))[-1]  # three steps, two validation cases
    assert cancelled == Cancelled(stage="mono_segmentation", step=3)
    started = run(this, AfterSteps(0))[0]
    assert isinstance(started, StageStarted)
    assert started.first_step == 3
    assert started.best is not None


def test_leftovers_of_a_kill_and_half_a_line_are_swept(tmp_path: Path) -> None:
    this = RoundTask(0, snapshot(), tiny_config(), tmp_path)
    run(this, AfterSteps(5))
    whole = RoundFiles(tmp_path).metrics.read_text()
    RoundFiles(tmp_path).metrics.write_text(whole + '{"kind":"epoch_e')
    (tmp_path / ".1a2b-teacher.safetensors.partial").write_bytes(b"half")
    (tmp_path / "predictions" / ".1a2b-u.zarr.partial").mkdir(parents=True)
    run(this, AfterSteps(0))
    assert RoundFiles(tmp_path).metrics.read_text() == whole
    assert [p.name for p in tmp_path.rglob(".*")] == []
